"""stdout and stderr of an executor: what Python code prints says whose it is."""

from __future__ import annotations

import fcntl
import io
import os
import stat
import sys
import termios
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from rustray.worker.cell import READ, READING, Cell
from rustray.worker.output_frames import make_magic, pack_frames, pack_mark

if TYPE_CHECKING:
    from rustray.worker.wire import Chunk

STDOUT: Final = 1
STDERR: Final = 2

_look: Final = fcntl.ioctl
_WAITING: Final = termios.FIONREAD
"""Asks a pipe how many bytes are in it, in 32 bits."""

Whose = Callable[[], "tuple[Chunk, int] | None"]
"""Returns chunk and index of the task that the calling code belongs to."""


class TaskOutput(io.RawIOBase):
    """A descriptor that names the task in whose code it is written to.

    Costs something where something is printed, and only there. If the task has pointed the
    descriptor elsewhere, what is printed goes there as it is.
    """

    def __init__(self, fd: int, magic: bytes, whose: Whose) -> None:
        self._fd = fd
        self._magic = magic
        self._whose = whose
        self._pipe = _identity(fd)

    def write(self, data: Any, /) -> int:
        """Write all of it; blocks while the pipe is full."""
        with memoryview(data) as view:
            content = view.cast("B")
            if not len(content):
                return 0
            found = self._whose()
            if found is None or _identity(self._fd) != self._pipe:
                rest = content
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
            else:
                chunk, index = found
                at_ns = time.monotonic_ns()
                place = (chunk.lease, chunk.offset + index)
                for frame in pack_frames(self._magic, content, *place, at_ns):
                    os.write(self._fd, frame)  # whole, or not at all
            return len(content)

    def writable(self) -> bool:
        """Say that it is."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd


def _identity(fd: int) -> tuple[int, int] | None:
    """Return what tells a pipe from all others; None if the descriptor is no pipe (any more)."""
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISFIFO(found.st_mode) else None


class RawMarks:
    """Says where the output of a task ends that runs alone, if there is some.

    There is if more has gone into a pipe than at the last look: what is in it now, and what the
    agent has taken out.
    """

    def __init__(self, fds: Sequence[int], cell: Cell) -> None:
        self._fds = tuple(fds)
        self._words = cell.words
        self._magic = make_magic(cell.drawn)
        self._counts = (bytearray(4), bytearray(4))
        self._totals = [0, 0]
        self._quiet: tuple[int, bytearray, bytearray] | None = None

    def end(self, lease: int, offset: int) -> None:
        """Mark the end of a task: a look at each pipe, and more only if something was printed."""
        words, (out, error) = self._words, self._counts
        turn = words[READING]
        _look(self._fds[0], _WAITING, out)
        _look(self._fds[1], _WAITING, error)
        # As when nothing was new the last time, and the agent has taken nothing since: so it is.
        if (turn, out, error) == self._quiet and turn == words[READING]:
            return
        seen, self._quiet = (turn, out[:], error[:]), None
        if not self._mark(lease, offset) and not turn & 1:
            self._quiet = seen

    def _mark(self, lease: int, offset: int) -> bool:
        """Mark each stream that has something new, or may have; False: none has."""
        words, has_marked = self._words, False
        for stream, (fd, count) in enumerate(zip(self._fds, self._counts, strict=True)):
            turn = words[READING]
            _look(fd, _WAITING, count)
            total = words[READ + stream] + int.from_bytes(count, sys.byteorder)
            is_sure = turn == words[READING] and not turn & 1
            if is_sure and total == self._totals[stream]:
                continue
            mark = pack_mark(self._magic, lease, offset, time.monotonic_ns())
            os.write(fd, mark)
            self._totals[stream] = total + len(mark) if is_sure else -1
            has_marked = True
        return has_marked


def redirect(output_fd: int, error_fd: int, cell: Cell, whose: Whose) -> RawMarks:
    """Point stdin to nothing, stdout and stderr to the agent's pipes.

    Each `print` goes out at once: what a task says before it kills its process is seen, and
    nothing of it is left for the next task to send.
    """
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for name, fd, pipe in (("stdout", STDOUT, output_fd), ("stderr", STDERR, error_fd)):
        os.dup2(pipe, fd)
        os.set_inheritable(pipe, False)
        # A fresh object: whatever the zygote's had buffered or replaced is not ours.
        raw: Any = TaskOutput(fd, make_magic(cell.drawn), whose)
        stream = io.TextIOWrapper(raw, "utf-8", "backslashreplace", write_through=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    return RawMarks((output_fd, error_fd), cell)
