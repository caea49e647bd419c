"""Outcomes that are in no frame yet: in memory, on disk, and on their way between. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from rustray.task.frames import LeaseOutcome, LeaseRange
from rustray.worker.events import Command
from rustray.worker.spool import READ_AHEAD_BYTES, SHEAF_BYTES, Spool, weight_of

DEFAULT_MEMORY_BYTES: Final = 128_000_000
MAX_FRAME_TASKS: Final = 4096
MAX_FRAME_BYTES: Final = 1 << 20
MAX_FRAME_OUTCOMES: Final = 4096


@dataclass(slots=True)
class WaitingOutcomes:
    """A queue whose front is in memory, and the rest on disk where the memory is short.

    Attributes:
        memory_limit: Bytes of all outcomes of the worker above which it is full. Half of them may
            wait in memory here.
        spool: What comes after `front`.
        front: What is sent next.
        front_weight: Bytes of it.
    """

    memory_limit: int = DEFAULT_MEMORY_BYTES
    spool: Spool = field(default_factory=Spool)
    front: deque[LeaseOutcome] = field(default_factory=deque)
    front_weight: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits, neither in memory nor on disk."""
        return not (self.front or self.spool.sheaves)

    @property
    def weight(self) -> int:
        """Bytes of what is in memory."""
        return self.front_weight + self.spool.tail_weight + self.spool.held_weight

    @property
    def _read_ahead(self) -> int:
        return min(READ_AHEAD_BYTES, self.memory_limit // 8)

    @property
    def _sheaf_size(self) -> int:
        return min(SHEAF_BYTES, self.memory_limit // 8)

    def add(self, outcome: LeaseOutcome) -> None:
        """Take an outcome behind all others."""
        spool = self.spool
        if spool.sheaves:
            spool.tail.append(outcome)
            spool.tail_weight += weight_of(outcome)
        else:
            self.front.append(outcome)
            self.front_weight += weight_of(outcome)

    def put_first(self, outcomes: list[LeaseOutcome], weight: int) -> None:
        """Take back what was sent in vain, before all others."""
        self.front.extendleft(reversed(outcomes))
        self.front_weight += weight

    def ranges(self) -> Iterator[LeaseRange]:
        """List the tasks of all that waits."""
        for outcome in self.front:
            yield LeaseRange(outcome.lease, outcome.offset, len(outcome.payloads))
        yield from self.spool.ranges()

    def take(self) -> tuple[list[LeaseOutcome], int]:
        """Take out what fits into a frame; returns its weight too."""
        waiting = self.front
        taken: list[LeaseOutcome] = []
        tasks, size = MAX_FRAME_TASKS, MAX_FRAME_BYTES
        while waiting and len(taken) < MAX_FRAME_OUTCOMES:
            outcome = waiting[0]
            column = outcome.payloads
            count, length = len(column), len(column.blob)
            if count > tasks or length > size:
                fits = _items_within(outcome, tasks, size)
                if not taken:
                    fits = max(fits, 1)
                if fits == 0:
                    break
                if fits < count:
                    first, rest = split_outcome(outcome, fits)
                    waiting[0] = rest
                    self.front_weight += weight_of(first) + weight_of(rest) - weight_of(outcome)
                    taken.append(first)
                    break
            waiting.popleft()
            taken.append(outcome)
            tasks -= count
            size -= length
        weight = sum(map(weight_of, taken))
        self.front_weight -= weight
        return taken, weight

    # ── Between memory and disk ───────────────────────────────────────────────────────────────

    @property
    def must_plan(self) -> bool:
        """Whether `plan` could say anything."""
        spool = self.spool
        waiting = self.front_weight + spool.tail_weight
        return bool(spool.sheaves) or waiting > self.memory_limit // 2

    def plan(self, is_sending: bool, now: float) -> list[Command]:
        """Say what is to be written to disk, and what to be read back while there is a session."""
        commands: list[Command] = []
        spool = self.spool
        if spool.sheaves:
            if is_sending:
                self._fetch(commands)
            commands += spool.write_again(now)
        if self.front_weight + spool.tail_weight > self.memory_limit // 2:
            self._spill(commands, now)
        return commands

    def _fetch(self, commands: list[Command]) -> None:
        """Bring back what is sent next."""
        spool = self.spool
        while spool.sheaves and self.front_weight < self._read_ahead:
            found = spool.take_first()
            if not isinstance(found, tuple):
                if found is not None:
                    commands.append(found)
                return
            self._extend(*found)

    def _extend(self, outcomes: list[LeaseOutcome], weight: int) -> None:
        self.front.extend(outcomes)
        self.front_weight += weight
        spool = self.spool
        if not spool.sheaves and spool.tail:
            self.front.extend(spool.tail)
            self.front_weight += spool.tail_weight
            spool.tail.clear()
            spool.tail_weight = 0

    def _spill(self, commands: list[Command], now: float) -> None:
        """Have the newest of what waits in memory written, until it is within its bound."""
        spool = self.spool
        while self.front_weight + spool.tail_weight > self.memory_limit // 2:
            if not spool.may_write(self._sheaf_size, now):
                return
            in_front = spool.tail_weight < self._sheaf_size
            if in_front and spool.is_reading:
                return  # what is being read comes before what would be written
            outcomes, weight = self._cut(in_front)
            if not outcomes:
                return
            if not spool.may_write(weight, now):
                self._put_back(in_front, outcomes, weight)
                return
            commands.append(spool.store(outcomes, weight, in_front=in_front))

    def _cut(self, in_front: bool) -> tuple[list[LeaseOutcome], int]:
        """Cut a sheaf off the end of what waits in front, or of the tail.

        In front there stays what can be sent at once.
        """
        source = self.front if in_front else self.spool.tail
        left = self.front_weight - self._read_ahead if in_front else self.spool.tail_weight
        cut: list[LeaseOutcome] = []
        weight = 0
        while weight < self._sheaf_size and len(source) > in_front:
            one = weight_of(source[-1])
            if one > left - weight:
                break
            cut.append(source.pop())
            weight += one
        cut.reverse()
        self._weigh(in_front, -weight)
        return cut, weight

    def _put_back(self, in_front: bool, outcomes: list[LeaseOutcome], weight: int) -> None:
        (self.front if in_front else self.spool.tail).extend(outcomes)
        self._weigh(in_front, weight)

    def _weigh(self, in_front: bool, change: int) -> None:
        if in_front:
            self.front_weight += change
        else:
            self.spool.tail_weight += change

    def sheaf_written(self, number: int, is_stored: bool, now: float) -> list[Command]:
        """A sheaf is on disk, or the disk has refused it."""
        return list(self.spool.written(number, is_stored, now))

    def sheaf_read(self, number: int, outcomes: list[LeaseOutcome] | None) -> int:
        """A sheaf is back, or damaged (None); returns how many tasks lost their outcomes by that.

        Those are reported as lost with their executor: the head decides whether to run them again.
        """
        sheaf, is_whole = self.spool.came_back(number, outcomes)
        assert sheaf.outcomes is not None
        self._extend(sheaf.outcomes, sum(map(weight_of, sheaf.outcomes)))
        return 0 if is_whole else sum(one.count for one in sheaf.ranges)


def _items_within(outcome: LeaseOutcome, tasks: int, size: int) -> int:
    column = outcome.payloads
    return min(bisect_right(column.ends, column.base + size), tasks, len(column))


def split_outcome(outcome: LeaseOutcome, count: int) -> tuple[LeaseOutcome, LeaseOutcome]:
    """Split after ``count`` tasks; the run time is shared out by number."""
    total = len(outcome.payloads)
    run_us = outcome.run_us * count // total
    return (
        LeaseOutcome(outcome.lease, outcome.offset, outcome.state,
                     outcome.payloads.slice(0, count), run_us),
        LeaseOutcome(outcome.lease, outcome.offset + count, outcome.state,
                     outcome.payloads.slice(count, total), outcome.run_us - run_us),
    )  # fmt: skip
