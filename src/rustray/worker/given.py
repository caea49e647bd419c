"""Inputs that are in the node's memory: their descriptors go to the executor with the task.

So it need not ask the node's port for them, which takes a round trip between the processes. They go
beside the chunk on the data channel, and a `wire.GIVEN` message before it says what each is of.
Nothing depends on them: an executor that does not look for descriptors (that of threads, of
coroutines), or has too many files open, asks the port.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Final

from rustray.objects.segment import Segment
from rustray.task.columns import PayloadColumn
from rustray.task.inputs import placed_in
from rustray.worker import wire

MAX_GIVEN: Final = 8
"""Inputs of one chunk that are given; what is beyond that comes by the port."""
ROOM: Final = socket.CMSG_SPACE(MAX_GIVEN * 4)
MIN_PAYLOAD_BYTES: Final = 64
"""A call with the place of an input is longer."""

Look = Callable[[bytes], Segment | None]
"""Returns what is at a packed place, if it is in the memory of this node."""
Ancillary = Sequence[tuple[int, int, bytes]]
NOTHING: Final[Ancillary] = ()


def nowhere(_place: bytes) -> Segment | None:
    """Stand in for a `Look` where there is no store."""
    return None


def give(number: int, payloads: PayloadColumn, look: Look) -> tuple[bytes, Ancillary]:
    """Find what goes along with a chunk of one task that takes inputs.

    Args:
        number: The chunk's.
        payloads: Its arguments.
        look: Finds an input.

    Returns:
        Messages that go before it, and as ancillary data the descriptors; they stay their owner's.
    """
    if len(payloads) != 1 or payloads.size_bytes < MIN_PAYLOAD_BYTES:
        return b"", NOTHING
    try:
        places = placed_in(payloads[0], MAX_GIVEN)
    except (ValueError, IndexError, struct.error):
        return b"", NOTHING  # the executor says what is wrong with it
    messages, descriptors = [], array.array("i")
    for place in dict.fromkeys(places):  # two parts of one result are in one place
        segment = look(place)
        if segment is not None:
            descriptors.append(segment.fileno())
            messages.append(wire.pack_given(number, _identity(segment.fileno()), place))
    if not messages:
        return b"", NOTHING
    return b"".join(messages), [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors.tobytes())]


class Given:
    """The executor's end: what came along with the chunk at hand. For the main thread.

    Attributes:
        found: Descriptors by packed place.
    """

    def __init__(self) -> None:
        self.found: dict[bytes, int] = {}
        self._unnamed: dict[int, int] = {}

    def receive(self, ancillary: Ancillary) -> None:
        """Take descriptors; the message that names each is the next to be read."""
        for level, kind, data in ancillary:
            if level != socket.SOL_SOCKET or kind != socket.SCM_RIGHTS:
                continue
            for descriptor in array.array("i", data[: len(data) // 4 * 4]):
                # By what it is, and not by its turn: one that did not come (there is a limit of
                # open files) must not have the next one taken for it.
                identity = _identity(descriptor)
                if identity in self._unnamed:
                    os.close(self._unnamed[identity])
                self._unnamed[identity] = descriptor

    def name(self, data: bytes, start: int, stop: int) -> None:
        """Take a `wire.GIVEN` message."""
        identity, place = wire.unpack_given(data, start, stop)
        descriptor = self._unnamed.pop(identity, None)
        if descriptor is not None:
            if place in self.found:
                os.close(self.found[place])
            self.found[place] = descriptor

    def take(self, place: bytes, size: int) -> Segment | None:
        """Have what is at a packed place, if it came along, and there is a descriptor left.

        Raises:
            ValueError: it is not sealed, or not of that size.
        """
        descriptor = self.found.get(place)
        if descriptor is None:
            return None
        try:
            own = os.dup(descriptor)  # a call may take several parts of it
        except OSError:
            return None
        return Segment.adopt(own, size)

    def drop(self) -> None:
        """Let go of what came with a chunk that has ended."""
        for descriptor in self.found.values():
            with contextlib.suppress(OSError):  # a task has closed it, as it may close anything
                os.close(descriptor)
        self.found.clear()


GIVEN: Final = Given()


def _identity(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino
