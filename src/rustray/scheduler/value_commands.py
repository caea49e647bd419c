"""What the scheduler tells the shell to do about values that stay with workers; see `commands`."""

from __future__ import annotations

from rustray.common.records import record
from rustray.task.place import Place


@record
class FreeObject:
    """Have a worker let go of a value, once it is safe that nobody needs it there any more."""

    worker_id: str
    object_id: str


@record
class SurrenderObject:
    """Have a worker send a value here that it keeps."""

    worker_id: str
    object_id: str


@record
class AdoptObject:
    """Have a worker take over a value that another one keeps, which leaves.

    Attributes:
        worker_id: Who is to take it.
        place: Where it is.
        name: Its name there from then on.
    """

    worker_id: str
    place: Place
    name: str
