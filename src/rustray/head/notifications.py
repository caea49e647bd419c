"""Events of tasks, for whoever subscribes.

Events are kept as ranges in one bounded log, and a subscriber is only a position in it. So
an event costs the same with no subscriber and with a thousand, a slow subscriber costs no
memory (when the log's end overtakes it, it is dropped with its cursor), and one that comes back
with its cursor gets everything that is still kept.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Final

from rustray.common.errors import ResourceExhausted
from rustray.common.ids import split_task_id, task_id
from rustray.rpc.api import EventFilter
from rustray.scheduler.commands import PersistEvents, PublishEvents
from rustray.task.frames import LeaseNews
from rustray.task.result import TaskEvent
from rustray.task.state import TaskState

KEPT_RANGES = 100_000
KEPT_BYTES = 64 << 20
"""Of what tasks said, at most; the older half goes when that is reached."""
BATCH_EVENTS = 200
"""Events of one message: what a slow subscriber may have in memory, a thousand times over."""
SCAN_RANGES = 1_000
"""Ranges that one subscriber looks through before others have their turn."""


class NotificationManager:
    """The log of task events.

    Attributes:
        revision: Number of the newest event; the first is 1, but for a head after another.
        on_drop: Called with the revision of the oldest event when older ones have been dropped.
    """

    def __init__(self, kept_ranges: int = KEPT_RANGES, kept_bytes: int = KEPT_BYTES) -> None:
        self.revision = 0
        self.on_drop: Callable[[int], None] = _ignore
        self._numbered = 0
        self._begin = 0
        self._kept_ranges = kept_ranges
        self._kept_bytes = kept_bytes
        self._bytes = 0
        self._firsts: list[int] = []
        self._rows: list[_Row] = []
        self._dropped = 0
        self._wakers: set[asyncio.Event] = set()

    def number(self, events: PublishEvents, time_unix_s: float) -> PersistEvents:
        """Give events their revisions; what is numbered first is to be published first."""
        kept = PersistEvents(self._numbered + 1, time_unix_s, events)
        self._numbered += events.count
        return kept

    def publish(self, kept: PersistEvents) -> None:
        """Append numbered events, and wake who waits for some.

        Complexity: O(1) amortised, and O(subscribers) only where some wait.
        """
        self._append(kept.revision, kept.time_unix_s, kept.events)

    def tell(self, events: PublishEvents, time_unix_s: float) -> None:
        """Number events and publish them at once: they rest on nothing that has to be safe."""
        revision = self._numbered + 1
        self._numbered += events.count
        self._append(revision, time_unix_s, events)

    def _append(self, revision: int, time_unix_s: float, events: PublishEvents) -> None:
        self._note(revision, time_unix_s, events)
        rows = self._rows
        if len(rows) >= 2 * self._kept_ranges:
            self._drop(len(rows) - self._kept_ranges)
        elif self._bytes > self._kept_bytes:
            self._drop(-(-len(rows) // 2))
        if self._wakers:
            for waker in self._wakers:
                waker.set()

    def _note(self, revision: int, time_unix_s: float, events: PublishEvents) -> None:
        self._firsts.append(revision)
        row = _row_of(time_unix_s, events)
        self._rows.append(row)
        self.revision = revision + events.count - 1
        if events.news is not None:
            self._bytes += _size(row)

    def _drop(self, surplus: int) -> None:
        """Forget the oldest ranges."""
        self._bytes -= sum(map(_size, self._rows[:surplus]))
        del self._firsts[:surplus]
        del self._rows[:surplus]
        self._dropped += surplus
        self.on_drop(self.oldest_revision)

    def go_on(self, kept: Sequence[PersistEvents], revision: int) -> None:
        """Take up what earlier heads have told, before the first event of this one.

        Args:
            kept: Their events, as far as they are known, in order.
            revision: Above all that they have given out; new events are numbered from there.
        """
        for one in kept:
            self._note(one.revision, one.time_unix_s, one.events)
        self.revision = self._numbered = revision
        self._begin = kept[0].revision - 1 if kept else revision

    def clear(self) -> None:
        """Forget all events, at the end."""
        self._drop(len(self._rows))

    @property
    def oldest_revision(self) -> int:
        """Revision of the oldest event that is still kept."""
        return self._firsts[0] if self._firsts else self.revision + 1

    async def subscribe(self, where: EventFilter) -> AsyncIterator[list[TaskEvent]]:
        """Yield lists of events that pass the filter, in order of revision, for ever.

        However much has to be looked through, the event loop is given free in between.

        Raises:
            ResourceExhausted: the events after the cursor are not all kept any more, or are of
                a head whose events are lost; the message names one that works.
        """
        if where.cursor > self.revision or 0 < where.cursor < self._begin:
            raise ResourceExhausted(
                f"the events after revision {where.cursor} are not known to this head, whose "
                f"newest is {self.revision}: it was restarted without them; subscribe again with "
                "cursor 0, and read the tasks' present states for what was missed",
                reason="EVENTS_GONE",
            )
        cursor = self.revision if where.cursor < 0 else max(where.cursor, self._begin)
        wanted = _Wanted(where)
        waker = asyncio.Event()
        self._wakers.add(waker)
        position = self._position(cursor)
        try:
            while True:
                waker.clear()
                events, cursor, position = self._read(wanted, cursor, position)
                if events:
                    yield events
                elif cursor >= self.revision:
                    await waker.wait()
                else:
                    await asyncio.sleep(0)
        finally:
            self._wakers.discard(waker)

    def _position(self, cursor: int) -> int:
        """Return the absolute number of the range that holds the event after ``cursor``."""
        index = bisect_right(self._firsts, cursor + 1) - 1
        return self._dropped + max(index, 0)

    def _read(
        self, wanted: _Wanted, cursor: int, position: int
    ) -> tuple[list[TaskEvent], int, int]:
        """Take what is wanted after ``cursor``, until a list is full or enough was looked at."""
        if cursor + 1 < self.oldest_revision:
            raise ResourceExhausted(
                f"events after revision {cursor} are not all kept any more; "
                f"subscribe again with cursor {self.oldest_revision - 1} and read the tasks' "
                "present states for what was missed",
                reason="EVENTS_GONE",
            )
        found: list[TaskEvent] = []
        for _ in range(SCAN_RANGES):
            index = position - self._dropped
            if len(found) >= BATCH_EVENTS or index >= len(self._rows):
                break
            first_revision = self._firsts[index]
            kept = _kept(first_revision, self._rows[index])
            record = kept.events
            last_revision = first_revision + record.count - 1
            low = max(cursor + 1 - first_revision, 0)
            offsets = wanted.offsets(record, low, BATCH_EVENTS - len(found))
            found += [_event(kept, offset) for offset in offsets]
            if len(found) >= BATCH_EVENTS and found[-1].revision < last_revision:
                return found, found[-1].revision, position
            cursor = max(cursor, last_revision)
            position += 1
        return found, cursor, position


class _Wanted:
    """A filter, made ready: what it costs does not depend on how many tasks it names."""

    def __init__(self, where: EventFilter) -> None:
        self._states = frozenset(where.states)
        self._functions = frozenset(where.functions)
        self._sequences: dict[bytes, list[int]] | None = {} if where.task_ids else None
        for name in where.task_ids:
            prefix, sequence = split_task_id(name)
            assert self._sequences is not None
            self._sequences.setdefault(bytes(prefix), []).append(sequence)
        for sequences in (self._sequences or {}).values():
            sequences.sort()

    def offsets(self, record: PublishEvents, low: int, limit: int) -> Sequence[int]:
        """Return which tasks of a range, from offset ``low`` on, are wanted; at most so many."""
        if self._states and (record.news is not None or record.state not in self._states):
            return ()
        if self._functions and record.function not in self._functions:
            return ()
        if self._sequences is None:
            return range(low, min(record.count, low + limit))
        named = self._sequences.get(record.prefix, ())
        start = bisect_left(named, record.first + low)
        stop = bisect_left(named, record.first + record.count, start)
        return [sequence - record.first for sequence in named[start : min(stop, start + limit)]]


_Row = tuple[float, bytes, int, int, int, int, str, str, LeaseNews | None]
"""When, and the fields of a `PublishEvents` to its news. A plain tuple of plain values: there are
up to 200,000 of these, and the garbage collector does not go through them."""
_STATES: Final = {int(state): state for state in TaskState}


def _row_of(time_unix_s: float, events: PublishEvents) -> _Row:
    return (
        time_unix_s, events.prefix, events.first, events.count, int(events.state),
        events.attempt, events.worker_id, events.function, events.news,
    )  # fmt: skip


def _kept(revision: int, row: _Row) -> PersistEvents:
    time_unix_s, prefix, first, count, state, attempt, worker_id, function, news = row
    told = PublishEvents(prefix, first, count, _STATES[state], attempt, worker_id, function, news)
    return PersistEvents(revision, time_unix_s, told)


def _size(row: _Row) -> int:
    news = row[-1]
    return 0 if news is None else len(news.value) + len(news.text)


def _ignore(_revision: int) -> None:
    """Stand in for a journal that keeps no events."""


def _event(kept: PersistEvents, offset: int) -> TaskEvent:
    record = kept.events
    event = TaskEvent(
        kept.revision + offset,
        task_id(record.prefix, record.first + offset),
        record.state,
        record.attempt,
        record.worker_id,
        record.function,
        kept.time_unix_s,
    )
    news = record.news
    if news is None:
        return event
    if news.fraction is not None:
        return replace(event, kind="progress", progress=news.fraction, message=news.text)
    return replace(event, kind="emit", name=news.text, value=news.value)
