"""Shared memory that says which task an executor runs, readable after it has died.

64-bit words: the chunk's lease, the offset of the chunk's first task in that lease, the index of
the running task in the chunk (-1: none), random bits that only agent and executor know, a number
that is odd while the agent reads what was printed, how many bytes it has read of each stream, the
number of the last chunk of which nothing is to begin without a ruling of the agent's, and how many
rulings there are with the next one (`rustray.worker.taking_back`). Per task the executor writes one
word and looks at another.
"""

from __future__ import annotations

import mmap
import os
import secrets
from typing import Final

CELL_BYTES: Final = 128
LEASE: Final = 0
OFFSET: Final = 1
INDEX: Final = 2
DRAWN: Final = 3
READING: Final = 4
READ: Final = 5
"""Of stdout; of stderr in the next word."""
STOP: Final = 7
RULINGS: Final = 8
IDLE: Final = -1


class Cell:
    """The memory of one executor, mapped in the agent and in the executor.

    Attributes:
        words: The words as signed 64-bit integers; see the module's text.
    """

    __slots__ = ("_memory", "words")

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, CELL_BYTES)
        self.words = memoryview(self._memory).cast("q")

    @classmethod
    def create(cls, name: str) -> tuple[Cell, int]:
        """Make a cell that says "none"; return it with its file descriptor, the caller's."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, CELL_BYTES)
            cell = cls(fd)
        except BaseException:
            os.close(fd)
            raise
        cell.words[INDEX] = IDLE
        cell.words[DRAWN] = secrets.randbits(63)
        return cell, fd

    @property
    def drawn(self) -> bytes:
        """The random bits, as 8 bytes."""
        return self.words[DRAWN].to_bytes(8, "little")

    def begin(self, lease: int, offset: int) -> None:
        """Enter a chunk; no task of it runs yet."""
        words = self.words
        words[INDEX] = IDLE
        words[LEASE] = lease
        words[OFFSET] = offset

    def read(self) -> tuple[int, int] | None:
        """Return (lease, offset) of the running task, None if none runs.

        While the executor lives, the answer may be a task that ended a moment ago.
        """
        words = self.words
        for _ in range(3):  # a change of chunk in between shows in the index or the lease
            index, lease, offset = words[INDEX], words[LEASE], words[OFFSET]
            if index == IDLE:
                return None
            if words[INDEX] >= index and words[LEASE] == lease and words[OFFSET] == offset:
                return lease, offset + index
        return None

    def begun(self) -> tuple[int, int, int]:
        """Return lease and offset of the chunk that was begun last, and the index there."""
        words = self.words
        return words[LEASE], words[OFFSET], words[INDEX]

    def close(self) -> None:
        """Unmap the memory."""
        self.words.release()
        self._memory.close()
