"""What a session lets go of: the head is told behind the tasks that take it.

A task that was handed in before its input was freed gets it still. So while one waits to be sent,
or was refused for now, or went with a stream that broke, nothing is let go.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from rustray.client.refs import Batch
from rustray.task.frames import ClientFrame, TaskRange

MAX_RELEASES: Final = 16_384
"""In one frame; and of what was told before, so many are told again over a new stream."""


class Releases:
    """For the loop thread, but for `add` and `note_sealed`."""

    def __init__(self) -> None:
        self.is_told = False
        self._fresh: deque[int] = deque()
        self._held: deque[tuple[int, list[int]]] = deque()
        self._ripe: deque[int] = deque()
        self._told: deque[int] = deque(maxlen=MAX_RELEASES)
        self._takers: deque[Batch] = deque()

    @property
    def has_some(self) -> bool:
        """Whether `fill` has something to look at."""
        return bool(self._fresh or self._ripe)

    @property
    def is_owed(self) -> bool:
        """Whether the head has not been told of all."""
        return bool(self._fresh or self._held or self._ripe)

    @property
    def has_told(self) -> bool:
        """Whether the head was told of some in this stream, and may not have heard it yet."""
        return bool(self._told)

    def add(self, sequence: int) -> None:
        """Let go of the value of a task; a finaliser may call it anywhere: no lock is taken."""
        self._fresh.append(sequence)

    def note_sealed(self, batch: Batch) -> None:
        """Tasks are numbered; in order of their opening."""
        if batch.entry.task_class.has_inputs:
            self._takers.append(batch)

    def fill(self, frame: ClientFrame, opened: int) -> None:
        """Say what is let go, unless tasks may take it that the head does not have for certain.

        Args:
            frame: Gets it.
            opened: How many batches were opened by now: later ones need not be waited for.
        """
        self.is_told = False
        fresh, ripe = self._fresh, self._ripe
        added = [fresh.popleft() for _ in range(min(len(fresh), MAX_RELEASES))]
        if added and self._oldest_taker() <= opened:
            self._held.append((opened, added))
        else:
            ripe.extend(added)
        sequences = sorted(ripe.popleft() for _ in range(min(len(ripe), MAX_RELEASES)))
        self._told.extend(sequences)
        for sequence in sequences:
            last = frame.released[-1] if frame.released else None
            if last is not None and last.first + last.count == sequence:
                frame.released[-1] = TaskRange(last.first, last.count + 1)
            else:
                frame.released.append(TaskRange(sequence, 1))

    def ripen(self) -> bool:
        """Look again, for the head has said something; whether more can be told now."""
        if not self._held:
            return False
        oldest = self._oldest_taker()
        while self._held and self._held[0][0] < oldest:
            self._ripe.extend(self._held.popleft()[1])
        return bool(self._ripe)

    def restart(self) -> None:
        """The stream is new: what was told last may not have arrived."""
        self._fresh.extendleft(self._told)
        self._told.clear()

    def _oldest_taker(self) -> float:
        """Return the place, in the order of opening, of the first that the head may not have."""
        takers = self._takers
        while takers and _is_settled(takers[0]):
            takers.popleft()
        return takers[0].order if takers else float("inf")


def _is_settled(batch: Batch) -> bool:
    return not batch.unfinished or batch.settled.count >= batch.size
