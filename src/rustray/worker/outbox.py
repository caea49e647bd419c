"""What the worker has to tell the head, and what it told without an answer yet.

Frames that the head has not acked are kept: when the session breaks, their content goes
back to the front and travels again in the next one. So a result is lost only with
the worker itself. What is kept in memory is bounded: the newest goes to disk (`spool`), and when
that is full too, the worker starts no more tasks until the head has taken something.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from rustray.task.frames import HeldRange, LeaseNews, LeaseOutcome, LeaseRange, WorkerFrame
from rustray.task.streams import ItemQueue, LeaseItems
from rustray.worker.events import DIRECT_LEASES
from rustray.worker.waiting import MAX_FRAME_BYTES, WaitingOutcomes

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
    items: list[LeaseItems] = field(default_factory=list)
    items_weight: int = 0


@dataclass(slots=True)
class Outbox:
    """Everything that waits for the stream, in order.

    Attributes:
        session: Number of the open session, None while there is none.
        sent: Number of the last frame of this session.
        must_greet: The first frame of the session, with ``held``, has not gone yet.
        waits: Tasks that began to wait for others (true), or go on, since the last frame.
        news: What running tasks said of themselves, bounded, sent once and not kept.
        waiting: Outcomes that are in no frame yet.
        unacked_weight: Bytes of outcomes that were sent and not acked.
        items: Of streams, that are in no frame yet; outcomes do not overtake them.
        unacked_items: About how many bytes of items were sent and not acked.
    """

    session: int | None = None
    sent: int = 0
    must_greet: bool = False
    waiting: WaitingOutcomes = field(default_factory=WaitingOutcomes)
    returned: list[LeaseRange] = field(default_factory=list)
    started: list[LeaseRange] = field(default_factory=list)
    waits: dict[tuple[int, int], bool] = field(default_factory=dict)
    news: dict[object, LeaseNews] = field(default_factory=dict)
    unacked: deque[_Sent] = field(default_factory=deque)
    _news_number: int = 0
    unacked_weight: int = 0
    items: ItemQueue[tuple[int, int]] = field(default_factory=ItemQueue)
    unacked_items: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be sent (unacked frames may be under way)."""
        has_results = self.items.runs or not self.waiting.is_empty
        return not (has_results or self.returned or self.started or self.must_greet)

    @property
    def is_ready(self) -> bool:
        """Whether there is something that may be sent now."""
        if self.waiting.front and not (self.unacked and self._is_window_full):
            return True
        others = self.returned or self.started or self.must_greet or self.news or self.waits
        return bool(others or self.items.runs)

    @property
    def _is_window_full(self) -> bool:
        return self.unacked_weight >= self.waiting.memory_limit // 4

    @property
    def memory_weight(self) -> int:
        """Bytes of all outcomes and items that are in memory."""
        unacked = self.unacked_weight + self.unacked_items
        return self.waiting.weight + self.items.weight + unacked

    @property
    def is_full(self) -> bool:
        """Whether no task may start, because its result would have no place."""
        waiting, unacked = self.waiting, self.unacked_weight + self.unacked_items
        return waiting.weight + self.items.weight + unacked > waiting.memory_limit

    @property
    def is_settled(self) -> bool:
        """Whether the head has everything and said so."""
        return self.is_empty and not self.unacked

    def tell_start(self, lease: int, offset: int) -> None:
        """Say that a task runs; of the worker's own the head knows nothing."""
        if lease < DIRECT_LEASES and self.session is not None:
            self.started.append(LeaseRange(lease, offset, 1))

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
        self.waits.clear()
        returned: list[LeaseRange] = []
        while self.unacked:
            frame = self.unacked.pop()
            self.waiting.put_first(frame.outcomes, frame.weight)
            returned[:0] = frame.returned
            for one in reversed(frame.items):
                self.items.put_first((one.lease, one.offset), one.first, one.payloads)
        self.returned[:0] = returned
        self.unacked_weight = self.unacked_items = 0

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
            frame = self.unacked.popleft()
            self.unacked_weight -= frame.weight
            self.unacked_items -= frame.items_weight
        return True

    def take(self, ack: int, held: list[HeldRange] | None) -> WorkerFrame:
        """Build the next frame within its bounds; the caller knows that there is something.

        Args:
            ack: Number of the last frame received from the head.
            held: For the first frame of a session: what the worker answers for.
        """
        self.sent += 1
        self.must_greet = False
        frame = WorkerFrame(self.sent, ack, held)
        items_weight = self._take_items(frame) if self.items.runs else 0
        weight = 0
        if not (self.items.runs or (self.unacked and self._is_window_full)):
            frame.outcomes, weight = self.waiting.take()
        frame.returned, self.returned = self.returned, []
        frame.started, self.started = self.started, []
        if len(frame.returned) > MAX_FRAME_PARTS:
            self.returned = frame.returned[MAX_FRAME_PARTS:]
            del frame.returned[MAX_FRAME_PARTS:]
        if self.waits or self.news:
            self._take_words(frame)
        if frame.outcomes or frame.returned or frame.items:
            self.unacked_weight += weight
            self.unacked_items += items_weight
            self.unacked.append(
                _Sent(self.sent, frame.outcomes, frame.returned, weight, frame.items, items_weight)
            )
        return frame

    def _take_items(self, frame: WorkerFrame) -> int:
        """Put items of streams into a frame; returns their weight."""
        before = self.items.weight
        frame.items = [
            LeaseItems(*key, first, column)
            for key, first, column in self.items.take(MAX_FRAME_BYTES)
        ]
        return before - self.items.weight

    def _take_words(self, frame: WorkerFrame) -> None:
        """Put into a frame what tasks say of themselves, and which wait or go on."""
        waits, self.waits = self.waits, {}
        for key, is_blocked in waits.items():
            (frame.blocked if is_blocked else frame.resumed).append(LeaseRange(*key, 1))
        frame.news = [self.news.pop(key) for key in list(islice(self.news, MAX_FRAME_NEWS))]

    def note_sent(self, frame: WorkerFrame) -> None:
        """Wait for the ack of this last frame although it may carry nothing that needs one."""
        if not self.unacked or self.unacked[-1].number != frame.number:
            self.unacked.append(_Sent(frame.number, [], []))

    def waiting_ranges(self) -> Iterator[LeaseRange]:
        """List the tasks of what is in no frame yet."""
        yield from self.returned
        yield from self.ended_ranges()

    def ended_ranges(self) -> Iterator[LeaseRange]:
        """List the tasks whose outcomes are in no frame yet: before a greeting, all that wait."""
        return self.waiting.ranges()

    def owed_leases(self) -> set[int]:
        """Return the leases of all outcomes that the head has not confirmed."""
        owed = {one.lease for one in self.ended_ranges()}
        for frame in self.unacked:
            owed.update(outcome.lease for outcome in frame.outcomes)
        return owed
