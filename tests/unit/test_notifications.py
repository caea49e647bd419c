"""The log of events, as one subscriber reads it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time

import pytest

from helpers.waiting import aeventually
from rustray.common.errors import ResourceExhausted
from rustray.common.ids import task_id
from rustray.head.notifications import NotificationManager
from rustray.rpc.api import EventFilter
from rustray.scheduler.commands import PersistEvents, PublishEvents
from rustray.task.frames import LeaseNews
from rustray.task.state import TaskState

PREFIX = b"0123456789"


def tell(log: NotificationManager, events: PublishEvents, time_unix_s: float) -> None:
    """Number events and publish them at once."""
    log.publish(log.number(events, time_unix_s))


def a_log(ranges: int, count: int) -> NotificationManager:
    """A log of so many ranges of so many tasks each."""
    log = NotificationManager()
    for number in range(ranges):
        first = number * count
        tell(log, PublishEvents(PREFIX, first, count, TaskState.QUEUED, 0, "", "f"), 1.0)
    return log


async def read(log: NotificationManager, where: EventFilter, number: int) -> list[int]:
    """Return the revisions of the first events."""
    found: list[int] = []
    async with contextlib.aclosing(log.subscribe(where)) as batches:  # type: ignore[type-var]
        async for events in batches:
            found += [event.revision for event in events]
            if len(found) >= number:
                return found
    return found


async def test_named_tasks_are_found_wherever_they_are() -> None:
    """A filter of ids finds their events in order, and nothing else."""
    log = a_log(50, 100)
    names = [task_id(PREFIX, number) for number in (4999, 0, 1234, 1235)]
    where = EventFilter(task_ids=(*names, task_id(b"abcdefghij", 3)), cursor=0)
    assert await read(log, where, 4) == [1, 1235, 1236, 5000]


async def test_a_cursor_in_the_middle_of_a_range_misses_nothing() -> None:
    """Whatever the cursor, the next revision comes next."""
    log = a_log(3, 1500)
    for cursor in (0, 1, 999, 1000, 1499, 1500, 1501, 4499):
        assert (await read(log, EventFilter(cursor=cursor), 1))[0] == cursor + 1
    assert await read(log, EventFilter(cursor=0), 4500) == list(range(1, 4501))


async def test_a_filter_that_matches_nothing_lets_others_run() -> None:
    """Regression: one such subscription stopped the head for a minute."""
    log = a_log(20_000, 50)
    names = tuple(task_id(b"abcdefghij", number) for number in range(10_000))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    reading = asyncio.create_task(read(log, EventFilter(task_ids=names, cursor=0), 1))
    started = time.process_time()
    await aeventually(lambda: turns >= 15)
    assert time.process_time() - started < 5.0
    beside.cancel()
    reading.cancel()
    await asyncio.gather(beside, reading, return_exceptions=True)


async def test_a_cursor_of_an_earlier_head_is_refused() -> None:
    """It would wait in silence for revisions that mean something else."""
    with pytest.raises(ResourceExhausted, match="restarted"):
        await read(a_log(1, 1), EventFilter(cursor=10), 1)


async def test_a_cursor_of_an_earlier_head_is_refused_by_name() -> None:
    """Regression: it was taken for one of this head's, and events were missed without a word."""
    log = NotificationManager()
    log.go_on([], 1000)
    tell(log, PublishEvents(PREFIX, 0, 3, TaskState.QUEUED, 0, "", "f"), 1.0)
    for cursor in (1, 999, 1004):
        with pytest.raises(ResourceExhausted, match="restarted without them"):
            await read(log, EventFilter(cursor=cursor), 1)
    assert await read(log, EventFilter(cursor=0), 3) == [1001, 1002, 1003]
    assert await read(log, EventFilter(cursor=1002), 1) == [1003]


async def test_a_cursor_whose_events_are_gone_is_refused_by_name() -> None:
    """C23: the reason is a code, and the message has a cursor that works."""
    log = NotificationManager(kept_ranges=2)
    for first in range(0, 40, 10):
        tell(log, PublishEvents(PREFIX, first, 10, TaskState.QUEUED, 0, "", "f"), 1.0)
    with pytest.raises(ResourceExhausted, match="with cursor 20 ") as refused:
        await read(log, EventFilter(cursor=19), 1)
    assert refused.value.reason == "EVENTS_GONE"
    assert (await read(log, EventFilter(cursor=20), 1))[0] == 21


async def test_a_log_goes_on_where_an_earlier_head_ended() -> None:
    """What that has told comes first, under the old numbers; then its own, above them."""
    earlier = [
        PersistEvents(first + 1, 1.0, PublishEvents(PREFIX, first, 2, TaskState.QUEUED, 0, "", "f"))
        for first in (2, 4)
    ]
    log = NotificationManager()
    log.go_on(earlier, 1000)
    tell(log, PublishEvents(PREFIX, 9, 2, TaskState.SUCCEEDED, 1, "w", "f"), 2.0)
    everything = [3, 4, 5, 6, 1001, 1002]
    assert await read(log, EventFilter(cursor=0), 6) == everything
    for cursor in (2, 3, 4, 6):
        wanted = [revision for revision in everything if revision > cursor]
        assert await read(log, EventFilter(cursor=cursor), len(wanted)) == wanted
    with pytest.raises(ResourceExhausted, match="restarted without them"):
        await read(log, EventFilter(cursor=1), 1)


async def test_events_that_need_not_be_safe_first_are_read_like_others() -> None:
    """`tell` is `number` and `publish` in one; the two may be mixed."""
    log = a_log(1, 2)
    log.tell(PublishEvents(PREFIX, 2, 3, TaskState.FAILED, 4, "w", "g"), 7.5)
    tell(log, PublishEvents(PREFIX, 9, 1, TaskState.QUEUED, 0, "", "f"), 8.0)
    async with contextlib.aclosing(log.subscribe(EventFilter(cursor=0))) as batches:  # type: ignore[type-var]
        found = await anext(batches)
    assert [event.revision for event in found] == [1, 2, 3, 4, 5, 6]
    third = found[2]
    assert (third.state, third.attempt, third.worker_id) == (TaskState.FAILED, 4, "w")
    assert (third.function, third.time_unix_s, third.task_id) == ("g", 7.5, task_id(PREFIX, 2))


def test_what_is_kept_of_events_is_not_gone_through_by_the_garbage_collector() -> None:
    """There are up to 200,000 ranges: to go through them took a tenth of a lone task's time."""
    log = a_log(100, 1)
    gc.collect()
    assert not any(gc.is_tracked(row) for row in log._rows)


def test_dropped_events_are_dropped_from_the_journal() -> None:
    """The log says from where on it still has them."""
    log = NotificationManager(kept_ranges=10)
    dropped: list[int] = []
    log.on_drop = dropped.append
    for number in range(20):
        tell(log, PublishEvents(PREFIX, number, 3, TaskState.QUEUED, 0, "", "f"), 1.0)
    assert dropped == [31] == [log.oldest_revision]


def said(number: int, fraction: float | None, value: bytes = b"") -> PublishEvents:
    """What the task of this number says."""
    news = LeaseNews(1, 0, fraction, "words", value)
    return PublishEvents(PREFIX, number, 1, TaskState.RUNNING, 2, "w", "f", news)


async def test_what_tasks_say_stands_among_the_events_in_order() -> None:
    """Progress and emitted values have revisions; a filter of states leaves them out."""
    log = a_log(1, 2)
    tell(log, said(0, 0.25), 5.0)
    tell(log, said(1, None, b"\x07"), 6.0)
    assert await read(log, EventFilter(cursor=0), 4) == [1, 2, 3, 4]
    one = EventFilter(task_ids=(task_id(PREFIX, 1),), cursor=0)
    assert await read(log, one, 2) == [2, 4]
    tell(log, PublishEvents(PREFIX, 0, 1, TaskState.RUNNING, 2, "w", "f"), 7.0)
    assert await read(log, EventFilter(states=(TaskState.RUNNING,), cursor=0), 1) == [5]
    async for events in log.subscribe(EventFilter(cursor=2)):
        told = [(e.kind, e.state, e.progress, e.message, e.name, e.value) for e in events]
        assert told == [
            ("progress", TaskState.RUNNING, 0.25, "words", "", None),
            ("emit", TaskState.RUNNING, None, "", "words", b"\x07"),
            ("state", TaskState.RUNNING, None, "", "", None),
        ]
        break


async def test_what_tasks_say_takes_bounded_memory() -> None:
    """By bytes as well as by number; who was overtaken is told."""
    log = NotificationManager(kept_bytes=10_000)
    for number in range(100):
        tell(log, said(number, None, bytes(1_000)), 1.0)
    assert 5 <= log.revision - log.oldest_revision + 1 <= 10
    with pytest.raises(ResourceExhausted):
        await read(log, EventFilter(cursor=1), 1)
    assert await read(log, EventFilter(cursor=log.oldest_revision - 1), 1)
    for number in range(100):
        tell(log, PublishEvents(PREFIX, number, 1, TaskState.QUEUED, 0, "", "f"), 1.0)
    assert log.revision - log.oldest_revision + 1 >= 100
