"""How an executor says whose output it is: frames among the raw bytes of a pipe.

What Python code prints is written in frames that name the task and the time. What C code and
child processes write to the same descriptors comes raw, between the frames: a frame is written with
one call and fits what the kernel keeps together, so nothing is ever in its middle.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

MAGIC_BYTES: Final = 9
"""What frames begin with is drawn for each executor: no program prints it unless it wants to."""
HEAD: Final = struct.Struct("=9sQQIH")
"""magic, lease, nanoseconds of the monotonic clock, offset, bytes that follow."""
PIPE_BUF: Final = 4_096
"""What Linux keeps together in a pipe."""
MAX_DATA: Final = PIPE_BUF - HEAD.size


@dataclass(frozen=True, slots=True)
class Printed:
    """Bytes of one stream.

    Attributes:
        data: As printed; empty for a mark (`pack_mark`).
        lease: Of the task, None for raw bytes.
        offset: Of the task in its lease.
        at_ns: Monotonic clock; 0 for raw bytes.
    """

    data: bytes
    lease: int | None = None
    offset: int = 0
    at_ns: int = 0


def make_magic(drawn: bytes) -> bytes:
    """Return what frames begin with, from 8 random bytes; no text has it."""
    return b"\xfe" + drawn


def pack_mark(magic: bytes, lease: int, offset: int, at_ns: int) -> bytes:
    """Return a frame without data: raw bytes before it are of this task, or of one before it."""
    return HEAD.pack(magic, lease, at_ns, offset, 0)


def pack_frames(
    magic: bytes, data: bytes | memoryview, lease: int, offset: int, at_ns: int
) -> Iterator[bytes]:
    """Yield what to write, one call each."""
    view = memoryview(data)
    for low in range(0, len(view), MAX_DATA):
        part = view[low : low + MAX_DATA]
        yield HEAD.pack(magic, lease, at_ns, offset, len(part)) + part


class FrameSplitter:
    """Cuts the bytes of one stream into frames and what is between them.

    Who finds out the magic and writes it garbles its own output, and holds back at most 64 KiB of
    it until more comes.
    """

    __slots__ = ("_held", "_magic")

    def __init__(self, magic: bytes) -> None:
        self._magic = magic
        self._held = b""

    def feed(self, data: bytes) -> list[Printed]:
        """Take what arrived; return what is whole, in order.

        Complexity: O(bytes) but for what is held back, which is joined with each call.
        """
        if self._held:
            data = self._held + data
            self._held = b""
        found: list[Printed] = []
        place, size = 0, len(data)
        while place < size:
            start = data.find(self._magic, place)
            if start < 0:
                stop = size - _suffix(data, place, self._magic)
                if stop > place:
                    found.append(Printed(data[place:stop]))
                self._held = data[stop:]
                break
            if start > place:
                found.append(Printed(data[place:start]))
            body = start + HEAD.size
            if body > size:
                self._held = data[start:]
                break
            _, lease, at_ns, offset, length = HEAD.unpack_from(data, start)
            place = body + length
            if place > size:
                self._held = data[start:]
                break
            found.append(Printed(data[body:place], lease, offset, at_ns))
        return found

    def rest(self) -> list[Printed]:
        """Return what is held back, as raw bytes: no more will come."""
        held, self._held = self._held, b""
        return [Printed(held)] if held else []


class OwnerFinder:
    """Finds out whose raw bytes are, in one stream of an executor that runs one task at a time.

    They are of the task whose frame or mark comes next, for its executor marks each end; so they
    are held until that comes, or until it is sure that the task which runs has written them.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: list[tuple[int, bytes]] = []

    @property
    def has_held(self) -> bool:
        """Whether there are bytes without an owner."""
        return bool(self._held)

    def feed(self, found: Sequence[Printed], now_ns: int) -> list[Printed]:
        """Take what has come, in order; return what has an owner now."""
        made: list[Printed] = []
        for printed in found:
            if printed.lease is None:
                self._held.append((now_ns, printed.data))
                continue
            for _, data in self._held:
                made.append(Printed(data, printed.lease, printed.offset, printed.at_ns))
            self._held.clear()
            if printed.data:
                made.append(printed)
        return made

    def release(self, owner: tuple[int, int] | None, until_ns: int) -> list[Printed]:
        """Give what came until then to an owner, or to nobody."""
        count = sum(1 for at_ns, _ in self._held if at_ns <= until_ns)
        taken, self._held = self._held[:count], self._held[count:]
        if owner is None:
            return [Printed(data) for _, data in taken]
        return [Printed(data, *owner, at_ns) for at_ns, data in taken]


def _suffix(data: bytes, low: int, magic: bytes) -> int:
    """Return how many bytes at the end may be the begin of the magic."""
    for length in range(min(len(magic) - 1, len(data) - low), 0, -1):
        if data.endswith(magic[:length]):
            return length
    return 0
