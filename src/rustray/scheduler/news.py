"""What running tasks say of themselves: shown while they run, told to subscribers, never kept."""

from __future__ import annotations

from typing import Final

from rustray.scheduler.commands import PublishEvents
from rustray.scheduler.records import WorkerRecord
from rustray.scheduler.stale import ENDED, MOVED, OUT_OF_RANGE, count_stale, lease_of
from rustray.scheduler.state import Progress, SchedulerState
from rustray.task.frames import LeaseNews
from rustray.task.state import TaskState

NEWS_PER_S: Final = 2_000.0
"""Events of news that the log takes, from all tasks together: others must not be washed out."""


def may_speak(state: SchedulerState, worker: WorkerRecord, item: LeaseNews) -> bool:
    """Whether it is of a task's present lease; what an old attempt says is counted and dropped."""
    lease = lease_of(state, worker, item.lease, 1, "news")
    if lease is None:
        return False
    if not 0 <= item.offset < lease.count:
        count_stale(state, OUT_OF_RANGE, what="news")
        return False
    batch, place = lease.batch, lease.low + item.offset
    present = TaskState(batch.state[place])
    if present.is_terminal:
        count_stale(state, ENDED, what="news")
        return False
    if present is TaskState.QUEUED or batch.lease[place] != lease.number:
        count_stale(state, MOVED, what="news")
        return False
    return True


def on_news(state: SchedulerState, worker: WorkerRecord, item: LeaseNews) -> None:
    """Take what a task says that `may_speak`."""
    lease = worker.leases[item.lease]
    batch, place = lease.batch, lease.low + item.offset
    present = TaskState(batch.state[place])
    if item.fraction is not None:
        state.progress[batch.number, place] = Progress(item.fraction, item.text)
    if not _may_publish(state):
        state.counters["news_dropped"] += 1
        return
    state.commands.append(
        PublishEvents(
            batch.prefix,
            batch.first + place,
            1,
            present,
            lease.attempt,
            worker.worker_id,
            batch.queue.task_class.function,
            item,
            batch.durability,
        )
    )


def _may_publish(state: SchedulerState) -> bool:
    """Take one of the events that are allowed now; unused ones of one second are kept."""
    passed_s = state.now - state.news_counted_at_s
    state.news_allowed = min(state.news_allowed + passed_s * NEWS_PER_S, NEWS_PER_S)
    state.news_counted_at_s = state.now
    if state.news_allowed < 1.0:
        return False
    state.news_allowed -= 1.0
    return True
