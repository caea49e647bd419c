"""Memory that is used again: a writer's own segments, warm.

Fresh memory costs more than what is written to it (on the machine this was measured on, 10 MiB
take 6.8 ms into new pages and 0.8 ms into pages that are there). So a process keeps some of the
memory that it has written, and writes to it again once nobody reads it any more.

Who reads it has a read-only descriptor of its own, or a mapping of that, and neither can be
made writable: the memory is sealed against new writers (``F_SEAL_FUTURE_WRITE``), and only the
mapping that its owner made before can still write. Whether anybody reads is asked of the kernel:
it grants a write lease only where no other descriptor of that file is open and no mapping of one
stands, in whatever process, however it ended. Nobody has to be told, and nobody can forget.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Final

from rustray.objects import mapping
from rustray.objects.copying import copy

MIN_BYTES: Final = 100 * 1024
DEFAULT_BUDGET: Final = 256 << 20
EXECUTOR_BUDGET: Final = 64 << 20
IDLE_S: Final = 10.0
"""What was not used for so long goes when somebody looks: the next writer, or a worker's
heartbeat."""
MAX_ARENAS: Final = 16
F_SEAL_FUTURE_WRITE: Final = 0x10
_F_SETSIG: Final = 10  # has no name in the standard library
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
_UNIT: Final = 64 * 1024
_WASTE: Final = 2
"""Memory is used again for what takes at least a half of it."""
_JOIN_AT: Final = 3
"""When it is used for so many a time its pages are joined: that costs as much as a dozen readers
save, and what is used three times is used often."""


class Arena:
    """Memory that only this process can write to, again and again.

    Attributes:
        capacity: Bytes.
        is_taken: Somebody is writing to it.
        used_at: When it was last taken (`time.monotonic`).
        uses: How often it was taken.
    """

    def __init__(self, fd: int, capacity: int, now: float) -> None:
        """Make one of a memfd that has been written; the descriptor stays the caller's.

        Raises:
            OSError: no memory or descriptors, or the kernel knows no such seal.
        """
        self.capacity = capacity
        self.is_taken = True
        self.used_at = now
        self.uses = 1
        # All of it is there before it is mapped: to touch what is not could be a SIGBUS.
        os.posix_fallocate(fd, 0, capacity)
        with contextlib.ExitStack() as undo:
            self._memory = mapping.map_writable(fd, capacity)
            undo.callback(self._memory.release)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            self._probe = _reopen(fd)
            undo.callback(os.close, self._probe)
            # Should somebody open it while we ask, the kernel's signal must not end this process.
            fcntl.fcntl(self._probe, _F_SETSIG, signal.SIGURG)
            undo.pop_all()

    def write(self, parts: Sequence[bytes | memoryview]) -> None:
        """Overwrite it from its start."""
        position = 0
        for part in parts:
            copy(self._memory[position : position + len(part)], part)
            position += len(part)

    def reader(self) -> int:
        """Return a new descriptor for readers.

        Raises:
            OSError: no descriptors left.
        """
        return _reopen(self._probe)

    def begin(self, now: float) -> None:
        """Somebody is going to write to it, for what nobody reads."""
        self.is_taken, self.used_at = True, now
        self.uses += 1

    def settle(self) -> None:
        """Have it in large pages, if it is used often; by whom it is taken."""
        if self.uses == _JOIN_AT:
            mapping.join_pages(self._probe, self.capacity)

    def is_read(self) -> bool:
        """Whether anybody has a descriptor or a mapping of it, in whatever process."""
        try:
            fcntl.fcntl(self._probe, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError:
            return True
        fcntl.fcntl(self._probe, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False

    def close(self) -> None:
        """Let go of it; who reads it keeps it."""
        self._memory.release()
        os.close(self._probe)


class Pool:
    """The arenas of this process; any thread.

    Attributes:
        budget: Bytes that they may have together; 0 for none.
    """

    def __init__(self, budget: int = DEFAULT_BUDGET) -> None:
        self.budget = budget
        self._arenas: list[Arena] = []
        self._lock = threading.Lock()
        self._works: bool | None = None
        os.register_at_fork(after_in_child=self._forget)

    def take(self, size: int) -> Arena | None:
        """Return memory for so many bytes that nobody reads; None: there is none.

        Who has written it and opened a reader gives it back with `give_back`.
        """
        if not MIN_BYTES <= size <= self.budget:
            return None
        self.trim()
        with self._lock:
            arena = self._unread(size)
            if arena is None:
                return None
            arena.begin(time.monotonic())
        try:
            arena.settle()
        except BaseException:  # (Ctrl-C, or a cancelled task: that takes milliseconds)
            self.give_back(arena)
            raise
        return arena

    def _unread(self, size: int) -> Arena | None:
        for arena in self._arenas:
            fits = size <= arena.capacity <= size * _WASTE
            if fits and not (arena.is_taken or arena.is_read()):
                return arena
        return None

    def add(self, size: int, fd: int) -> Arena | None:
        """Keep a memfd that has just been written; None: it is none to be kept.

        The descriptor stays the caller's, who gives the memory back as after `take`.
        """
        capacity = -(-size // _UNIT) * _UNIT
        if not size >= MIN_BYTES or capacity > self.budget or not self._is_possible():
            return None
        with self._lock:
            oldest = sorted(self._arenas, key=lambda each: each.used_at)
            while oldest and (
                self.size + capacity > self.budget or len(self._arenas) >= MAX_ARENAS
            ):
                self._drop([oldest.pop(0)])
            if self.size + capacity > self.budget:
                return None
            with contextlib.suppress(OSError):
                arena = Arena(fd, capacity, time.monotonic())
                self._arenas.append(arena)
                return arena
        return None

    def give_back(self, arena: Arena) -> None:
        """It is written, and its reader is open: it is used again when that has gone."""
        with self._lock:
            arena.is_taken = False

    def trim(self) -> None:
        """Let go of what has not been used for a while."""
        if self._arenas:
            with self._lock:
                last = time.monotonic() - IDLE_S
                self._drop([arena for arena in self._arenas if arena.used_at < last])

    def clear(self) -> None:
        """Let go of all of it that nobody is writing to."""
        with self._lock:
            self._drop(list(self._arenas))

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return sum(arena.capacity for arena in self._arenas)

    def _drop(self, arenas: Sequence[Arena]) -> None:
        for arena in arenas:
            if not arena.is_taken:
                self._arenas.remove(arena)
                arena.close()

    def _is_possible(self) -> bool:
        """Try once whether this system tells who reads; what does not is not trusted."""
        if self._works is None:
            self._works = False
            with contextlib.suppress(OSError):
                self._works = _try()
        return self._works

    def _forget(self) -> None:
        """In a forked child: the memory is its parent's."""
        arenas, self._arenas = self._arenas, []
        self._lock = threading.Lock()
        for arena in arenas:
            arena.close()


def _reopen(fd: int) -> int:
    """Open a file anew, for reading only, whatever the descriptor may."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def _try() -> bool:
    fd = os.memfd_create("rustray-object", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        arena = Arena(fd, _UNIT, 0.0)
    finally:
        os.close(fd)
    try:
        before = arena.is_read()
        reader = arena.reader()
        during = arena.is_read()
        os.close(reader)
        return (before, during, arena.is_read()) == (False, True, False)
    finally:
        arena.close()


POOL: Final = Pool()
"""This process's."""
