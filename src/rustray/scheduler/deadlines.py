"""Limits of time: queue, run and total limits of tasks, leases, results' time to live."""

from __future__ import annotations

import heapq
from itertools import groupby
from typing import Final

from rustray.scheduler.commands import CancelLease, RecallLease
from rustray.scheduler.completion import (
    end_overdue,
    failure_payloads,
    finish,
    owned_runs,
    release,
)
from rustray.scheduler.records import Batch, Lease, Part
from rustray.scheduler.state import SchedulerState, runs, unqueue
from rustray.task.result import FailureInfo
from rustray.task.state import TaskState

RECALL_AGAIN_S: Final = 0.5


def start_batch_timers(state: SchedulerState, batch: Batch) -> None:
    """Start the queue and total limits of a batch: at most one timer each."""
    task_class = batch.queue.task_class
    if not (task_class.queue_timeout_s or task_class.total_timeout_s):
        return
    for kind, limit_s in (
        ("queue", task_class.queue_timeout_s),
        ("total", task_class.total_timeout_s),
    ):
        if limit_s:
            due = batch.accepted_at_s + limit_s
            heapq.heappush(state.timers, (due, state.next_order, kind, batch))
            state.next_order += 1


def on_queue_limit(state: SchedulerState, batch: Batch) -> None:
    """End the tasks of a batch that have not started; what workers have in stock is called back.

    A recall may get lost with its connection, so it is repeated until all have ended or started.
    """
    if batch.unfinished == 0:
        return
    batch.is_overdue = True
    is_recalling = False
    for part in _parts(batch):
        if part.state is TaskState.QUEUED:
            ending = part.singles() if batch.reruns else (part,)
            for piece in ending:
                if piece.low not in batch.reruns:
                    unqueue(state, piece)
                    end_overdue(state, piece)
        elif part.state is TaskState.LEASED:
            is_recalling = True
            for number, pieces in groupby(part.singles(), lambda one: batch.lease[one.low]):
                _recall(state, state.leases[number], [one.low for one in pieces])
    if is_recalling:
        heapq.heappush(state.timers, (state.now + RECALL_AGAIN_S, state.next_order, "queue", batch))
        state.next_order += 1


def _recall(state: SchedulerState, lease: Lease, offsets: list[int]) -> None:
    low = offsets[0] - lease.low
    state.commands.append(
        RecallLease(lease.worker.worker_id, lease.number, low, offsets[-1] + 1 - offsets[0])
    )


def _parts(batch: Batch) -> list[Part]:
    return [Part(batch, a, b, TaskState(byte)) for a, b, byte in runs(batch.state, 0, batch.count)]


def _expire_queued(state: SchedulerState, part: Part, info: FailureInfo) -> None:
    unqueue(state, part)
    finish(state, part, TaskState.TIMED_OUT, failure_payloads(part.count, info), None)


def on_total_limit(state: SchedulerState, batch: Batch) -> None:
    """End whatever of a batch has not ended; workers are told to stop it."""
    limit_s = batch.queue.task_class.total_timeout_s
    info = FailureInfo(
        "TASK_TIMEOUT",
        f"the task did not end within its total_timeout_s={limit_s:g}",
        phase="total",
    )
    if batch.unfinished == 0:
        return
    for part in _parts(batch):
        if part.state is TaskState.QUEUED:
            _expire_queued(state, part, info)
        elif not part.state.is_terminal:
            for one in part.singles():
                _stop_leased(state, state.leases[batch.lease[one.low]], one, info)


def _stop_leased(state: SchedulerState, lease: Lease, part: Part, info: FailureInfo) -> None:
    """End tasks that a worker has; what it reports of them later is stale."""
    worker = lease.worker
    state.commands.append(
        CancelLease(worker.worker_id, lease.number, part.low - lease.low, part.count, force=True)
    )
    release(state, lease, part.count)
    held_by = None if worker is state.ghost else worker
    finish(state, part, TaskState.TIMED_OUT, failure_payloads(part.count, info), held_by)


def on_run_limit(state: SchedulerState, lease: Lease, low: int, high: int) -> None:
    """End tasks whose worker should have stopped them some seconds ago."""
    if state.leases.get(lease.number) is not lease:
        return
    limit_s = lease.batch.queue.task_class.timeout_s
    info = FailureInfo(
        "TASK_TIMEOUT", f"the task ran longer than its timeout_s={limit_s:g}", phase="run"
    )
    for part in owned_runs(state, lease, low - lease.low, high - low):
        _stop_leased(state, lease, part, info)


def next_deadline(state: SchedulerState) -> float | None:
    """Return when a timer or a result's time to live is due, or None."""
    due = state.timers[0][0] if state.timers else None
    if state.kept:
        expiry = state.kept[0].finished_at_s + state.settings.result_ttl_s
        due = expiry if due is None else min(due, expiry)
    return due
