"""Outcomes that wait on disk: which of them go there, and when they come back. Pure.

What the head has not taken yet waits in memory up to a bound, the newest of it goes to disk in
sheaves of a few megabytes, and each comes back when its turn to be sent is near. The order is that
of the tasks' ends: first what is in memory in front, then the sheaves, then what came after them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from rustray.common.errors import ObjectLost
from rustray.task.columns import PayloadColumn
from rustray.task.failures import encode_failure
from rustray.task.frames import LeaseOutcome, LeaseRange
from rustray.task.result import FailureInfo
from rustray.task.state import TaskState
from rustray.worker.events import Command, DropSheaf, ReadSheaf, WriteSheaf
from rustray.worker.records import NEVER, merge_ranges

SHEAF_BYTES: Final = 4 << 20
READ_AHEAD_BYTES: Final = 8 << 20
"""So much is kept or brought back to memory in front, to be sent next."""
RETRY_S: Final = 5.0
"""A disk that has refused a sheaf is tried again after this time."""
OUTCOME_BYTES: Final = 256
"""What an outcome takes beside its payloads and their ends."""
_END_BYTES: Final = 4
_DAMAGED: Final = encode_failure(
    FailureInfo(
        ObjectLost.code,
        "the task had ended, and its result was damaged on the disk of its worker, where it waited "
        "for the head; see to that disk. The task is run again as far as max_retries allows",
    )
)


def weight_of(outcome: LeaseOutcome) -> int:
    """Return about how many bytes of memory an outcome takes."""
    column = outcome.payloads
    return len(column.blob) + _END_BYTES * len(column.ends) + OUTCOME_BYTES


class Phase(Enum):
    """Where a sheaf is."""

    HELD = "held"
    """In memory: the disk refused it."""
    WRITING = "writing"
    """In memory still, and under way to disk."""
    STORED = "stored"
    READING = "reading"


@dataclass(slots=True, eq=False)
class Sheaf:
    """Consecutive outcomes that go to disk together.

    Attributes:
        ranges: Their tasks.
        weight: Bytes that they take in memory, about what they take on disk.
        outcomes: Themselves, None while they are on disk only.
    """

    number: int
    ranges: list[LeaseRange]
    weight: int
    outcomes: list[LeaseOutcome] | None
    phase: Phase


@dataclass(slots=True)
class Spool:
    """The sheaves, and what came after the last of them.

    Attributes:
        disk_limit: Bytes that may be on disk; 0: there is no disk to use.
        sheaves: In order; the first is the next to come back.
        tail: Outcomes that came after the last sheaf; empty while there is none.
        tail_weight: Bytes of them.
        held_weight: Bytes of sheaves that are in memory.
        disk_weight: Bytes on disk or under way there.
        refused: Sheaves that the disk has refused, and that were not tried again yet.
        retry_at: The disk is not tried before this.
        dropped: Sheaves under way to disk that were needed before they were there.
    """

    disk_limit: int = 0
    sheaves: deque[Sheaf] = field(default_factory=deque)
    tail: deque[LeaseOutcome] = field(default_factory=deque)
    tail_weight: int = 0
    held_weight: int = 0
    disk_weight: int = 0
    refused: int = 0
    retry_at: float = -NEVER
    dropped: dict[int, int] = field(default_factory=dict)
    last_number: int = 0

    @property
    def is_reading(self) -> bool:
        """Whether the first sheaf is on its way back."""
        return bool(self.sheaves) and self.sheaves[0].phase is Phase.READING

    def ranges(self) -> Iterator[LeaseRange]:
        """List the tasks of all that is here."""
        for sheaf in self.sheaves:
            yield from sheaf.ranges
        for outcome in self.tail:
            yield LeaseRange(outcome.lease, outcome.offset, len(outcome.payloads))

    def may_write(self, weight: int, now: float) -> bool:
        """Whether the disk takes so much more."""
        return now >= self.retry_at and self.disk_weight + weight <= self.disk_limit

    def store(self, outcomes: list[LeaseOutcome], weight: int, *, in_front: bool) -> WriteSheaf:
        """Make a sheaf and have it written."""
        self.last_number += 1
        ranges = merge_ranges([LeaseRange(o.lease, o.offset, len(o.payloads)) for o in outcomes])
        sheaf = Sheaf(self.last_number, ranges, weight, outcomes, Phase.WRITING)
        if in_front:
            self.sheaves.appendleft(sheaf)
        else:
            self.sheaves.append(sheaf)
        self.held_weight += weight
        self.disk_weight += weight
        return WriteSheaf(sheaf.number, outcomes)

    def write_again(self, now: float) -> Iterator[Command]:
        """Have written what the disk had refused, when it is time to."""
        for sheaf in self.sheaves if self.refused and now >= self.retry_at else ():
            if sheaf.phase is Phase.HELD and self.may_write(sheaf.weight, now):
                assert sheaf.outcomes is not None
                sheaf.phase = Phase.WRITING
                self.refused -= 1
                self.disk_weight += sheaf.weight
                yield WriteSheaf(sheaf.number, sheaf.outcomes)

    def written(self, number: int, is_stored: bool, now: float) -> Iterator[Command]:
        """A sheaf is on disk, or the disk has refused it."""
        dropped = self.dropped.pop(number, None)
        if dropped is not None:
            self.disk_weight -= dropped
            if is_stored:
                yield DropSheaf(number)
            return
        sheaf = next(one for one in self.sheaves if one.number == number)
        if is_stored:
            sheaf.phase, sheaf.outcomes = Phase.STORED, None
            self.held_weight -= sheaf.weight
        else:
            sheaf.phase = Phase.HELD
            self.refused += 1
            self.disk_weight -= sheaf.weight
            self.retry_at = now + RETRY_S

    def take_first(self) -> tuple[list[LeaseOutcome], int] | ReadSheaf | None:
        """Take the first sheaf out, or say what has to happen before (None: to wait)."""
        first = self.sheaves[0]
        if first.outcomes is not None:
            self.sheaves.popleft()
            self.held_weight -= first.weight
            if first.phase is Phase.WRITING:
                self.dropped[first.number] = first.weight
            else:
                self.refused -= 1
            return first.outcomes, first.weight
        if first.phase is Phase.READING:
            return None
        first.phase = Phase.READING
        return ReadSheaf(first.number)

    def came_back(self, number: int, outcomes: list[LeaseOutcome] | None) -> tuple[Sheaf, bool]:
        """Take out the sheaf that was read; False if what was read is not what was written."""
        sheaf = self.sheaves.popleft()
        assert sheaf.number == number
        self.disk_weight -= sheaf.weight
        if outcomes is not None:
            ranges = [LeaseRange(o.lease, o.offset, len(o.payloads)) for o in outcomes]
            if merge_ranges(ranges) == sheaf.ranges:
                sheaf.outcomes = outcomes
                return sheaf, True
        sheaf.outcomes = [_lost(one) for one in sheaf.ranges]
        return sheaf, False


def _lost(one: LeaseRange) -> LeaseOutcome:
    payloads = PayloadColumn.of([_DAMAGED] * one.count)
    return LeaseOutcome(one.lease, one.offset, TaskState.LEASED, payloads, 0)
