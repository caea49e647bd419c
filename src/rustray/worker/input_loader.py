"""How an executor gets at what a task takes that is with a node.

Either it came along with the task (`rustray.worker.given`), or the port of its own node has it.
"""

from __future__ import annotations

from rustray.common.errors import RustRayError
from rustray.objects import own_port
from rustray.task.inputs import InputLost
from rustray.task.place import Place
from rustray.worker.given import GIVEN


def load(place: bytes, token: str) -> memoryview:
    """Map a value into this process; see `rustray.task.inputs.Load`."""
    where = None
    try:
        where = Place.unpack(place)
        segment = GIVEN.take(place, where.size) or own_port.take(where, token)
        try:
            return segment.view()
        finally:
            segment.close()
    except (RustRayError, OSError, ValueError) as error:
        name = "" if where is None else where.object_id
        raise InputLost(name, f"an input could not be had: {error}") from None
