"""What an executor that runs one task at a time has to begin, and what is taken back of it.

The agent asks for what has not begun, and the control thread answers. Where that cannot answer in
time the agent takes it, and says afterwards what may still begin (`rustray.worker.taking_back`).
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence

from rustray.worker.cell import RULINGS, STOP, Cell


class Refused(BaseException):
    """A task must not begin."""


class Todo:
    """The chunk at hand: the main thread takes tasks from its front, the control thread the rest.

    Whoever takes a task out of the deque that `enter` returns owns it.
    """

    def __init__(self, cell: Cell) -> None:
        self._words = cell.words
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._left: deque[int] = deque()
        self._number = self._end = 0
        self._reclaimed = 0
        self._rulings: list[tuple[int, int, int]] = []  # those that this chunk may be under
        self._known = 0

    # ── Called by the main thread ─────────────────────────────────────────────────────────

    def enter(self, number: int, ends: Sequence[int], *, is_able: bool) -> deque[int] | None:
        """Begin a chunk; None: it was given back, or taken.

        Args:
            number: Of the chunk.
            ends: Of its tasks.
            is_able: False: none of them can run, and none is to be given back either.
        """
        left = deque(ends if is_able else ())
        with self._lock:
            self._number, self._left, self._end = number, left, len(ends)
            self._rulings = [each for each in self._rulings if each[0] >= number]
            return left if number > self._reclaimed else None

    def look(self, number: int, index: int) -> None:
        """Look whether a task may begin, by its chunk and its place there; waits for a ruling.

        Raises:
            Refused: it was taken, and all behind it.
        """
        if self._words[STOP] < number:
            return
        if os.getpid() != self._pid:
            os._exit(0)  # a copy that a task has forked: there is nobody who would tell it
        with self._lock:
            while self._known < self._words[RULINGS]:
                self._changed.wait()
            if all(_allows(ruling, number, index) for ruling in self._rulings):
                return
            if number == self._number:
                self._left.clear()
                self._end = min(self._end, index)
        raise Refused

    # ── Called by the control thread ──────────────────────────────────────────────────────

    def reclaim(self, upto: int) -> tuple[int, int]:
        """See `rustray.worker.child_base.Runner.reclaim`."""
        with self._lock:
            self._reclaimed = max(self._reclaimed, upto)
            if self._number <= upto:
                self._drop_behind(0)
            return self._number, self._end

    def rule(self, upto: int, found: int, begun: int) -> None:
        """See `rustray.worker.child_base.Runner.rule`."""
        with self._lock:
            if found < upto:
                self._reclaimed = max(self._reclaimed, upto)
            if self._number == found:
                self._drop_behind(begun)
            self._rulings.append((upto, found, begun))
            self._known += 1
            self._changed.notify_all()

    def _drop_behind(self, place: int) -> None:
        """Drop from a place on what the main thread has not taken; the lock is held."""
        while self._end > place and self._left:
            try:
                self._left.pop()
            except IndexError:  # the main thread was faster
                break
            self._end -= 1


def _allows(ruling: tuple[int, int, int], number: int, index: int) -> bool:
    upto, found, begun = ruling
    return number > upto or number < found or (number == found and index < begun)
