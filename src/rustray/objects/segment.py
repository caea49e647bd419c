"""A segment: sealed memory that other processes read without a copy.

It is a memfd: no name in any file system, so nothing is left in ``/dev/shm`` after any kind of
death; the kernel frees it with the last descriptor and mapping. Once written it is sealed:
nobody who reads it can change it, and nobody can cut it, so that no reader is sent a SIGBUS. Its
writer may use it again when nobody reads it any more (`rustray.objects.recycling`).

A descriptor goes to another process over a Unix socket. A process of the same user may also open
``/proc/<pid>/fd/<n>`` of one that holds it; not from another user or PID namespace (another
container), nor of another user where ``/proc`` hides such.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Final

from rustray.objects.mapping import map_readable, view_of
from rustray.objects.recycling import F_SEAL_FUTURE_WRITE, POOL, Arena

MAX_SEGMENT_BYTES: Final = 1 << 46
_MFD_NOEXEC_SEAL: Final = 0x8
_FIXED: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_UNWRITABLE: Final = fcntl.F_SEAL_WRITE | F_SEAL_FUTURE_WRITE
_SEALS: Final = _FIXED | fcntl.F_SEAL_WRITE
_MAX_PARTS: Final = 512  # of one writev; the kernel takes 1,024

Part = bytes | memoryview


class NotASegment(ValueError):
    """A descriptor is no sealed memory of the size that was told; mapping it would be unsafe."""


class Segment:
    """Sealed memory behind one descriptor.

    Attributes:
        size: Bytes.
    """

    __slots__ = ("__weakref__", "_fd", "_owner", "size")

    def __init__(self, fd: int, size: int) -> None:
        """Own a descriptor; see `write` and `adopt`."""
        self._fd = fd
        self.size = size
        self._owner = weakref.finalize(self, os.close, fd)

    @classmethod
    def write(cls, parts: Sequence[Part]) -> Segment:
        """Write the parts one after the other, and seal them.

        Raises:
            OSError: no memory, or no descriptors left.
            ValueError: there is nothing to write, or too much.
        """
        size = sum(map(len, parts))
        arena = POOL.take(size)
        if arena is None:
            return cls.fill(size, lambda fd: _write_all(fd, parts), may_recycle=True)
        try:
            arena.write(parts)
            return cls(arena.reader(), size)
        finally:
            POOL.give_back(arena)

    @classmethod
    def fill(cls, size: int, fill: Callable[[int], None], *, may_recycle: bool = False) -> Segment:
        """Have new memory filled with so many bytes, and seal it.

        Args:
            size: Bytes.
            fill: Writes them to a descriptor.
            may_recycle: This process may write to it again when nobody reads it any more.

        Raises:
            OSError: no memory, or no descriptors left.
            ValueError: the size is out of range, or not what was written.
        """
        if not 0 < size <= MAX_SEGMENT_BYTES:
            raise ValueError(f"a segment holds 1 to {MAX_SEGMENT_BYTES} bytes, not {size}")
        fd = _create()
        try:
            fill(fd)
            if os.fstat(fd).st_size != size:
                raise ValueError(f"{os.fstat(fd).st_size} bytes were written, not {size}")
            arena = POOL.add(size, fd) if may_recycle else None
            if arena is not None:
                return _reader_of(arena, fd, size)
            _seal(fd)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, size)

    @classmethod
    def adopt(cls, fd: int, size: int) -> Segment:
        """Take over a descriptor from another process; it is closed if it is none.

        Raises:
            NotASegment: it could change or shrink under a reader, or has another size.
        """
        try:
            check_sealed(fd, size)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, size)

    @classmethod
    def open_of(cls, pid: int, fd: int, size: int) -> Segment:
        """Open the segment that another process of this user holds under that number.

        Raises:
            OSError: the process is gone, of another user, or out of sight.
            NotASegment: what it holds there is another thing by now.
        """
        found = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        return cls.adopt(found, size)

    def fileno(self) -> int:
        """Return the descriptor; it stays this object's.

        Raises:
            ValueError: it is closed.
        """
        if not self._owner.alive:
            raise ValueError("the segment is closed")
        return self._fd

    def view(self) -> memoryview:
        """Map it, read-only; the mapping stays as long as anything refers to it, also if closed.

        Raises:
            OSError: no address space or no more mappings.
        """
        return map_readable(self.fileno(), self.size)

    def detach(self) -> int:
        """Hand the descriptor over to the caller, who closes it.

        Raises:
            ValueError: it is closed.
        """
        fd = self.fileno()
        self._owner.detach()
        return fd

    def close(self) -> None:
        """Let go of the descriptor; idempotent."""
        self._owner()

    def __repr__(self) -> str:
        state = f"descriptor {self._fd}" if self._owner.alive else "closed"
        return f"Segment({self.size} bytes, {state})"


class SegmentWriter:
    """Memory that is filled bit by bit, and sealed when it is whole."""

    def __init__(self) -> None:
        """Make it.

        Raises:
            OSError: no descriptors left.
        """
        self._fd = _create()
        self._owner = weakref.finalize(self, os.close, self._fd)

    def write(self, part: Part) -> None:
        """Append bytes.

        Raises:
            OSError: no memory.
        """
        _write_all(self._fd, [part])

    def finish(self, size: int) -> Segment:
        """Seal it.

        Raises:
            ValueError: not so many bytes were written.
        """
        found = os.fstat(self._fd).st_size
        if found != size or not size:
            raise ValueError(f"{found} bytes were written, not {size}")
        _seal(self._fd)
        self._owner.detach()
        return Segment(self._fd, size)

    def close(self) -> None:
        """Let go of it, unless it is finished; idempotent."""
        self._owner()


def _reader_of(arena: Arena, fd: int, size: int) -> Segment:
    """Return the first reader of new memory, and let go of the descriptor that has written it."""
    try:
        segment = Segment(arena.reader(), size)
    finally:
        POOL.give_back(arena)
    os.close(fd)
    return segment


def check_sealed(fd: int, size: int) -> None:
    """Look whether a descriptor can be mapped without a risk.

    Raises:
        NotASegment: it cannot.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        raise NotASegment("the descriptor is no sealed memory") from None
    if seals & _FIXED != _FIXED or not seals & _UNWRITABLE:
        raise NotASegment("the memory is not sealed")
    found = os.fstat(fd).st_size
    if found < size or not size:  # it may be larger where it is used again
        raise NotASegment(f"the memory has {found} bytes and not {size}")


def remembered(view: memoryview) -> Callable[[], memoryview | None]:
    """Return what finds a mapping again, as long as anybody looks at it; keeps it not itself."""
    memory = weakref.ref(view.obj)

    def find() -> memoryview | None:
        found = memory()
        return None if found is None else view_of(found).toreadonly()

    return find


def _create() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    # Some systems demand that it can never be executed, older kernels do not know the flag.
    with contextlib.suppress(OSError):
        return os.memfd_create("rustray-object", flags | _MFD_NOEXEC_SEAL)
    return os.memfd_create("rustray-object", flags)


def _seal(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_SEAL)


def _write_all(fd: int, parts: Sequence[Part]) -> None:
    waiting = [memoryview(part).cast("B") for part in parts if len(part)]
    waiting.reverse()
    while waiting:
        batch = waiting[: -_MAX_PARTS - 1 : -1]
        written = os.writev(fd, batch)  # at most 2 GiB at once, says the kernel
        while written:
            first = waiting[-1]
            if written < len(first):
                waiting[-1] = first[written:]
                break
            written -= len(first)
            waiting.pop()


__all__ = [
    "MAX_SEGMENT_BYTES",
    "NotASegment",
    "Segment",
    "SegmentWriter",
    "check_sealed",
]
