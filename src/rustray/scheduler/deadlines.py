"""Limits of time: queue, run and total limits of tasks, leases, results' time to live."""

from __future__ import annotations

import heapq

from rustray.scheduler.commands import CancelLease
from rustray.scheduler.completion import failure_payloads, finish, owned_runs, release
from rustray.scheduler.records import Batch, Lease
from rustray.scheduler.state import SchedulerState, runs
from rustray.task.result import FailureInfo
from rustray.task.state import TaskState


def start_batch_timers(state: SchedulerState, batch: Batch, now: float) -> None:
    """Start the queue and total limits of a batch: at most one timer each."""
    task_class = batch.queue.task_class
    for kind, limit_s in (
        ("queue", task_class.queue_timeout_s),
        ("total", task_class.total_timeout_s),
    ):
        if limit_s:
            heapq.heappush(state.timers, (now + limit_s, state.next_order, kind, batch))
            state.next_order += 1


def on_queue_limit(state: SchedulerState, batch: Batch, now: float) -> None:
    """End the tasks of a batch that no worker has ever taken."""
    limit_s = batch.queue.task_class.queue_timeout_s
    info = FailureInfo(
        "TASK_TIMEOUT",
        f"no worker took the task within its queue_timeout_s={limit_s:g}; "
        "add workers, or allow a longer wait",
        phase="queue",
    )
    if batch.unfinished == 0:
        return
    for low, high, byte in list(runs(batch.state, 0, batch.count)):
        if byte != TaskState.QUEUED:
            continue
        for start, end in _never_granted(batch, low, high):
            _expire_queued(state, batch, start, end, info, now)


def _never_granted(batch: Batch, low: int, high: int) -> list[tuple[int, int]]:
    if not batch.grants:
        return [(low, high)]
    return [(i, i + 1) for i in range(low, high) if i not in batch.grants]


def _expire_queued(
    state: SchedulerState, batch: Batch, low: int, high: int, info: FailureInfo, now: float
) -> None:
    batch.queue.queued -= high - low
    payloads = failure_payloads(high - low, info)
    finish(state, batch, low, high, TaskState.QUEUED, TaskState.TIMED_OUT, payloads, None, now)


def on_total_limit(state: SchedulerState, batch: Batch, now: float) -> None:
    """End whatever of a batch has not ended; workers are told to stop it."""
    limit_s = batch.queue.task_class.total_timeout_s
    info = FailureInfo(
        "TASK_TIMEOUT",
        f"the task did not end within its total_timeout_s={limit_s:g}",
        phase="total",
    )
    if batch.unfinished == 0:
        return
    for low, high, byte in list(runs(batch.state, 0, batch.count)):
        if byte == TaskState.QUEUED:
            _expire_queued(state, batch, low, high, info, now)
        elif byte < TaskState.SUCCEEDED:
            for offset in range(low, high):
                lease = state.leases[batch.lease[offset]]
                _stop_leased(state, lease, offset, offset + 1, info, now)


def _stop_leased(
    state: SchedulerState, lease: Lease, low: int, high: int, info: FailureInfo, now: float
) -> None:
    """End tasks that a worker has; what it reports of them later is stale."""
    worker = lease.worker
    state.commands.append(
        CancelLease(worker.worker_id, lease.number, low - lease.low, high - low, force=True)
    )
    present = TaskState(lease.batch.state[low])
    release(state, lease, high - low)
    payloads = failure_payloads(high - low, info)
    finish(
        state, lease.batch, low, high, present, TaskState.TIMED_OUT, payloads, worker, now
    )


def on_run_limit(state: SchedulerState, subject: tuple[Lease, int, int], now: float) -> None:
    """End tasks whose worker should have stopped them some seconds ago."""
    lease, low, high = subject
    if state.leases.get(lease.number) is not lease:
        return
    limit_s = lease.batch.queue.task_class.timeout_s
    info = FailureInfo(
        "TASK_TIMEOUT", f"the task ran longer than its timeout_s={limit_s:g}", phase="run"
    )
    for start, end, _ in owned_runs(state, lease, low - lease.low, high - low):
        _stop_leased(state, lease, start, end, info, now)


def next_deadline(state: SchedulerState) -> float | None:
    """Return when a timer or a result's time to live is due, or None."""
    due = state.timers[0][0] if state.timers else None
    if state.kept:
        expiry = state.kept[0].finished_at_s + state.settings.result_ttl_s
        due = expiry if due is None else min(due, expiry)
    return due
