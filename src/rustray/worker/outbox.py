"""What the worker has to tell the head, and what it told without an answer yet.

Frames that the head has not acked are kept: when the session breaks, their content goes
back to the front and travels again in the next one. So a result is lost only with
the worker itself. What is kept in memory is bounded: the newest goes to disk (`spool`), and when
that is full too, the worker starts no more tasks until the head has taken something.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from rustray.task.frames import HeldRange, LeaseNews, LeaseOutcome, LeaseRange, WorkerFrame
from rustray.worker.events import Command
from rustray.worker.spool import READ_AHEAD_BYTES, SHEAF_BYTES, Spool, weight_of

DEFAULT_MEMORY_BYTES: Final = 128_000_000
MAX_FRAME_TASKS: Final = 4096
MAX_FRAME_BYTES: Final = 1 << 20
MAX_FRAME_PARTS: Final = 4096
"""Outcomes and ranges in one frame, whatever their size."""
MAX_FRAME_NEWS: Final = 256
MAX_NEWS: Final = 4_096
"""News that may wait for a session."""


@dataclass(slots=True)
class _Sent:
    number: int
    outcomes: list[LeaseOutcome]
    returned: list[LeaseRange]
    weight: int = 0


@dataclass(slots=True)
class Outbox:
    """Everything that waits for the stream, in order.

    Attributes:
        session: Number of the open session, None while there is none.
        sent: Number of the last frame of this session.
        must_greet: The first frame of the session, with ``held``, has not gone yet.
        news: What running tasks said of themselves, bounded, sent once and not kept.
        outcomes: What is sent next.
        spool: The outcomes after these, while there are too many for the memory.
        memory_limit: Bytes of outcomes above which the worker is full. Half of them may wait in
            memory, a quarter may be under way without an ack.
        front_weight: Bytes of `outcomes`.
        unacked_weight: Bytes of outcomes that were sent and not acked.
    """

    session: int | None = None
    sent: int = 0
    must_greet: bool = False
    outcomes: deque[LeaseOutcome] = field(default_factory=deque)
    returned: list[LeaseRange] = field(default_factory=list)
    started: list[LeaseRange] = field(default_factory=list)
    news: dict[object, LeaseNews] = field(default_factory=dict)
    unacked: deque[_Sent] = field(default_factory=deque)
    _news_number: int = 0
    spool: Spool = field(default_factory=Spool)
    memory_limit: int = DEFAULT_MEMORY_BYTES
    front_weight: int = 0
    unacked_weight: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be sent (unacked frames may be under way)."""
        has_outcomes = self.outcomes or self.spool.sheaves
        return not (has_outcomes or self.returned or self.started or self.must_greet)

    @property
    def is_ready(self) -> bool:
        """Whether there is something that may be sent now."""
        has_outcomes = self.outcomes and not self._is_window_full
        others = self.returned or self.started or self.must_greet or self.news
        return bool(has_outcomes or others)

    @property
    def _is_window_full(self) -> bool:
        return bool(self.unacked) and self.unacked_weight >= self.memory_limit // 4

    @property
    def _read_ahead(self) -> int:
        return min(READ_AHEAD_BYTES, self.memory_limit // 8)

    @property
    def _sheaf_size(self) -> int:
        return min(SHEAF_BYTES, self.memory_limit // 8)

    @property
    def memory_weight(self) -> int:
        """Bytes of all outcomes that are in memory."""
        spool = self.spool
        waiting = self.front_weight + spool.tail_weight + spool.held_weight
        return waiting + self.unacked_weight

    @property
    def is_full(self) -> bool:
        """Whether no task may start, because its result would have no place."""
        return self.memory_weight > self.memory_limit

    @property
    def is_settled(self) -> bool:
        """Whether the head has everything and said so."""
        return self.is_empty and not self.unacked

    def add(self, outcome: LeaseOutcome) -> None:
        """Take an outcome behind all others."""
        spool = self.spool
        if spool.sheaves:
            spool.tail.append(outcome)
            spool.tail_weight += weight_of(outcome)
        else:
            self.outcomes.append(outcome)
            self.front_weight += weight_of(outcome)

    def open(self, session: int) -> None:
        """Begin a session: what was never acked goes first, in its old order."""
        self.close()
        self.session = session
        self.sent = 0
        self.must_greet = True

    def close(self) -> None:
        """End the session, if there is one."""
        self.session = None
        self.must_greet = False
        self.started.clear()
        returned: list[LeaseRange] = []
        while self.unacked:
            frame = self.unacked.pop()
            self.outcomes.extendleft(reversed(frame.outcomes))
            returned[:0] = frame.returned
        self.returned[:0] = returned
        self.front_weight += self.unacked_weight
        self.unacked_weight = 0

    def add_news(self, item: LeaseNews) -> bool:
        """Take what a task says; of its progress only the latest waits. False: too much waits."""
        news = self.news
        if item.fraction is not None:
            key: object = (item.lease, item.offset)
            news.pop(key, None)
        else:
            self._news_number += 1
            key = self._news_number
        if len(news) >= MAX_NEWS:
            return False
        news[key] = item
        return True

    def acked(self, number: int) -> bool:
        """Forget frames up to this number; False if no such frame was ever sent."""
        if number > self.sent:
            return False
        while self.unacked and self.unacked[0].number <= number:
            self.unacked_weight -= self.unacked.popleft().weight
        return True

    def take(self, ack: int, held: list[HeldRange] | None) -> WorkerFrame:
        """Build the next frame within its bounds; the caller knows that there is something.

        Args:
            ack: Number of the last frame received from the head.
            held: For the first frame of a session: what the worker answers for.
        """
        self.sent += 1
        self.must_greet = False
        outcomes = self._take_outcomes()
        returned, self.returned = self.returned, []
        started, self.started = self.started, []
        if len(returned) > MAX_FRAME_PARTS:
            self.returned = returned[MAX_FRAME_PARTS:]
            del returned[MAX_FRAME_PARTS:]
        news = [self.news.pop(key) for key in list(islice(self.news, MAX_FRAME_NEWS))]
        if outcomes or returned:
            weight = sum(map(weight_of, outcomes))
            self.front_weight -= weight
            self.unacked_weight += weight
            self.unacked.append(_Sent(self.sent, outcomes, returned, weight))
        return WorkerFrame(
            number=self.sent,
            ack=ack,
            held=held,
            outcomes=outcomes,
            returned=returned,
            started=started,
            news=news,
        )

    def note_sent(self, frame: WorkerFrame) -> None:
        """Wait for the ack of this last frame although it may carry nothing that needs one."""
        if not self.unacked or self.unacked[-1].number != frame.number:
            self.unacked.append(_Sent(frame.number, [], []))

    def _take_outcomes(self) -> list[LeaseOutcome]:
        waiting = self.outcomes
        taken: list[LeaseOutcome] = []
        if self._is_window_full:
            return taken
        tasks, size = MAX_FRAME_TASKS, MAX_FRAME_BYTES
        while waiting and len(taken) < MAX_FRAME_PARTS:
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
        return taken

    def waiting_ranges(self) -> Iterator[LeaseRange]:
        """List the tasks of what is in no frame yet."""
        yield from self.returned
        yield from self.ended_ranges()

    def ended_ranges(self) -> Iterator[LeaseRange]:
        """List the tasks whose outcomes are in no frame yet: before a greeting, all that wait."""
        for outcome in self.outcomes:
            yield LeaseRange(outcome.lease, outcome.offset, len(outcome.payloads))
        yield from self.spool.ranges()

    def owed_leases(self) -> set[int]:
        """Return the leases of all outcomes that the head has not confirmed."""
        owed = {one.lease for one in self.ended_ranges()}
        for frame in self.unacked:
            owed.update(outcome.lease for outcome in frame.outcomes)
        return owed

    # ── Between memory and disk ───────────────────────────────────────────────────────────────

    @property
    def must_plan(self) -> bool:
        """Whether `plan` could say anything."""
        spool = self.spool
        waiting = self.front_weight + spool.tail_weight
        return bool(spool.sheaves) or waiting > self.memory_limit // 2

    def plan(self, now: float) -> list[Command]:
        """Say what is to be written to disk, and what to be read back."""
        commands: list[Command] = []
        spool = self.spool
        if spool.sheaves:
            if self.session is not None:
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
        self.outcomes.extend(outcomes)
        self.front_weight += weight
        spool = self.spool
        if not spool.sheaves and spool.tail:
            self.outcomes.extend(spool.tail)
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
        source = self.outcomes if in_front else self.spool.tail
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
        (self.outcomes if in_front else self.spool.tail).extend(outcomes)
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
