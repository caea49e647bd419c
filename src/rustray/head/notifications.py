"""Events of tasks, for whoever subscribes.

Events are kept as ranges in one bounded log, and a subscriber is only a position in it. So
an event costs the same with no subscriber and with a thousand, a slow subscriber costs no
memory (when the log's end overtakes it, it is dropped with its cursor), and one that comes back
with its cursor gets everything that is still kept.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator

from rustray.common.errors import ResourceExhausted
from rustray.common.ids import task_id
from rustray.rpc.api import EventFilter
from rustray.scheduler.commands import PublishEvents
from rustray.task.result import TaskEvent

KEPT_RANGES = 100_000
BATCH_EVENTS = 1_000


class NotificationManager:
    """The log of task events.

    Attributes:
        revision: Number of the newest event; the first is 1.
    """

    def __init__(self, kept_ranges: int = KEPT_RANGES) -> None:
        self.revision = 0
        self._kept_ranges = kept_ranges
        self._firsts: list[int] = []
        self._records: list[tuple[PublishEvents, float]] = []
        self._dropped = 0
        self._wakers: set[asyncio.Event] = set()

    def publish(self, events: PublishEvents, time_unix_s: float) -> None:
        """Append the events of consecutive tasks.

        Complexity: O(1) amortised, and O(subscribers) only where some wait.
        """
        self._firsts.append(self.revision + 1)
        self._records.append((events, time_unix_s))
        self.revision += events.count
        if len(self._records) >= 2 * self._kept_ranges:
            surplus = len(self._records) - self._kept_ranges
            del self._firsts[:surplus]
            del self._records[:surplus]
            self._dropped += surplus
        if self._wakers:
            for waker in self._wakers:
                waker.set()

    @property
    def oldest_revision(self) -> int:
        """Revision of the oldest event that is still kept."""
        return self._firsts[0] if self._firsts else self.revision + 1

    async def subscribe(self, where: EventFilter) -> AsyncIterator[list[TaskEvent]]:
        """Yield lists of events that pass the filter, in order of revision, for ever.

        Raises:
            ResourceExhausted: the events after the cursor are not all kept any more; the
                message names the oldest cursor that works.
        """
        cursor = self.revision if where.cursor < 0 else where.cursor
        waker = asyncio.Event()
        self._wakers.add(waker)
        position = self._position(cursor)
        try:
            while True:
                waker.clear()
                events, cursor, position = self._read(where, cursor, position)
                if events:
                    yield events
                elif cursor >= self.revision:
                    await waker.wait()
        finally:
            self._wakers.discard(waker)

    def _position(self, cursor: int) -> int:
        """Return the absolute number of the range that holds the event after ``cursor``."""
        index = bisect_right(self._firsts, cursor + 1) - 1
        return self._dropped + max(index, 0)

    def _read(
        self, where: EventFilter, cursor: int, position: int
    ) -> tuple[list[TaskEvent], int, int]:
        """Expand ranges after ``cursor`` until a list is full or the log's end is reached."""
        if cursor + 1 < self.oldest_revision:
            raise ResourceExhausted(
                f"events after revision {cursor} are not all kept any more; "
                f"subscribe again with cursor {self.oldest_revision - 1} and read the tasks' "
                "present states for what was missed"
            )
        found: list[TaskEvent] = []
        while len(found) < BATCH_EVENTS and cursor < self.revision:
            index = position - self._dropped
            if index >= len(self._records):
                break
            first_revision = self._firsts[index]
            record, time_unix_s = self._records[index]
            last_revision = first_revision + record.count - 1
            if cursor < last_revision and self._wants_range(where, record):
                low = max(cursor + 1, first_revision)
                high = min(last_revision, low + BATCH_EVENTS - len(found) - 1)
                self._expand(where, record, time_unix_s, first_revision, low, high, found)
                cursor = high
                if high < last_revision:
                    break
            cursor = max(cursor, last_revision)
            position += 1
        return found, cursor, position

    @staticmethod
    def _wants_range(where: EventFilter, record: PublishEvents) -> bool:
        if where.states and record.state not in where.states:
            return False
        return not where.functions or record.function in where.functions

    @staticmethod
    def _expand(
        where: EventFilter,
        record: PublishEvents,
        time_unix_s: float,
        first_revision: int,
        low: int,
        high: int,
        found: list[TaskEvent],
    ) -> None:
        for revision in range(low, high + 1):
            name = task_id(record.prefix, record.first + revision - first_revision)
            if where.task_ids and name not in where.task_ids:
                continue
            found.append(
                TaskEvent(
                    revision,
                    name,
                    record.state,
                    record.attempt,
                    record.worker_id,
                    record.function,
                    time_unix_s,
                )
            )
