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
from rustray.scheduler.results import next_expiry
from rustray.scheduler.state import FEW_TIMERS, SchedulerState, runs, unqueue
from rustray.task.result import FailureInfo
from rustray.task.state import TaskState

RECALL_AGAIN_S: Final = 0.5


def start_batch_timers(state: SchedulerState, batch: Batch, since_s: float | None = None) -> None:
    """Start the queue and total limits and the deadline of a batch: at most one timer each.

    Args:
        state: The scheduler's.
        batch: Which.
        since_s: When the limits begin; None: with its acceptance.
    """
    task_class = batch.queue.task_class
    start_s = batch.accepted_at_s if since_s is None else since_s
    if batch.deadline_s is not None:
        _start_timer(state, batch.deadline_s, "deadline", batch)
    if task_class.queue_timeout_s:
        _start_timer(state, start_s + task_class.queue_timeout_s, "queue", batch)
    if task_class.total_timeout_s:
        _start_timer(state, start_s + task_class.total_timeout_s, "total", batch)


def _start_timer(state: SchedulerState, due_s: float, kind: str, batch: Batch) -> None:
    heapq.heappush(state.timers, (due_s, state.next_order, kind, batch))
    state.next_order += 1


def on_queue_limit(state: SchedulerState, batch: Batch) -> None:
    """End the tasks of a batch that have not started; what workers have in stock is called back.

    A recall may get lost with its connection, so it is repeated until all have ended or started.
    """
    if batch.unfinished == 0:
        return
    batch.is_overdue = True
    is_recalling = False
    for part in _parts(state, batch, batch.queue.task_class.queue_timeout_s):
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
        _start_timer(state, state.now + RECALL_AGAIN_S, "queue", batch)


def _recall(state: SchedulerState, lease: Lease, offsets: list[int]) -> None:
    low = offsets[0] - lease.low
    state.commands.append(
        RecallLease(lease.worker.worker_id, lease.number, low, offsets[-1] + 1 - offsets[0])
    )


def _parts(state: SchedulerState, batch: Batch, limit_s: float | None) -> list[Part]:
    """Return the parts of a batch whose limit has passed: all, but for what was retried since.

    Args:
        state: The scheduler's.
        batch: Which.
        limit_s: The limit; None for a deadline, which a retry does not move.
    """
    found = [Part(batch, a, b, TaskState(byte)) for a, b, byte in runs(batch.state, 0, batch.count)]
    if batch.revived is None or limit_s is None:
        return found
    due: list[Part] = []
    for part in found:
        if not part.state.is_terminal:
            flags = bytes(
                batch.is_past(one, limit_s, state.now) for one in range(part.low, part.high)
            )
            due += [
                Part(batch, part.low + a, part.low + b, part.state)
                for a, b, is_past in runs(flags, 0, part.count)
                if is_past
            ]
    return due


def _expire_queued(state: SchedulerState, part: Part, info: FailureInfo) -> None:
    unqueue(state, part)
    finish(state, part, TaskState.TIMED_OUT, failure_payloads(part.count, info), None)


def on_total_limit(state: SchedulerState, batch: Batch) -> None:
    """End whatever of a batch has not ended within its total limit."""
    _end_all(state, batch, "total", _total_info(batch))


def on_deadline(state: SchedulerState, batch: Batch) -> None:
    """End whatever of a batch has not ended by its deadline."""
    _end_all(state, batch, "deadline", _DEADLINE_INFO)


_DEADLINE_INFO: Final = FailureInfo(
    "TASK_TIMEOUT", "the task did not end before its deadline", phase="deadline"
)


def _total_info(batch: Batch) -> FailureInfo:
    limit_s = batch.queue.task_class.total_timeout_s
    text = f"the task did not end within its total_timeout_s={limit_s:g}"
    return FailureInfo("TASK_TIMEOUT", text, phase="total")


def end_queued_if_due(state: SchedulerState, batch: Batch) -> None:
    """End what is queued of a batch whose time is up, before it is given out."""
    if batch.due_s is None or batch.due_s > state.now:
        return
    is_deadline = batch.deadline_s == batch.due_s
    info = _DEADLINE_INFO if is_deadline else _total_info(batch)
    limit_s = None if is_deadline else batch.queue.task_class.total_timeout_s
    for part in _parts(state, batch, limit_s):
        if part.state is TaskState.QUEUED:
            _expire_queued(state, part, info)


def _end_all(state: SchedulerState, batch: Batch, kind: str, info: FailureInfo) -> None:
    """End what has not ended; workers are told to stop it.

    What a worker of before a restart may hold waits until that is known, and for the report of one
    that has just come back: it may have ended in time.
    """
    if batch.unfinished == 0:
        return
    ghost = state.ghost
    limit_s = batch.queue.task_class.total_timeout_s if kind == "total" else None
    for part in _parts(state, batch, limit_s):
        if part.state is TaskState.QUEUED:
            _expire_queued(state, part, info)
        elif not part.state.is_terminal:
            for one in part.singles():
                lease = state.leases[batch.lease[one.low]]
                if lease.worker is not ghost:
                    _stop_leased(state, lease, one, info)
    if ghost is not None and batch.unfinished:
        _start_timer(state, max(ghost.expires_at_s, state.now) + RECALL_AGAIN_S, kind, batch)


def _stop_leased(state: SchedulerState, lease: Lease, part: Part, info: FailureInfo) -> None:
    """End tasks that a worker has; what it reports of them later is stale."""
    worker = lease.worker
    state.commands.append(
        CancelLease(worker.worker_id, lease.number, part.low - lease.low, part.count, force=True)
    )
    release(state, lease, part)
    finish(state, part, TaskState.TIMED_OUT, failure_payloads(part.count, info), worker)


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


def drop_idle_timers(state: SchedulerState) -> None:
    """Forget timers of what is gone; they would keep it in memory until they are due.

    Complexity: O(timers), and called only when their number has doubled.
    """
    state.timers = [timer for timer in state.timers if _is_of_use(state, timer[3])]
    heapq.heapify(state.timers)
    state.compact_timers_at = 2 * len(state.timers) + FEW_TIMERS


def _is_of_use(state: SchedulerState, subject: object) -> bool:
    if isinstance(subject, tuple):
        subject = subject[0]
    if isinstance(subject, Batch):
        return bool(subject.unfinished or subject.kept)
    return not isinstance(subject, Lease) or state.leases.get(subject.number) is subject


def next_deadline(state: SchedulerState) -> float | None:
    """Return when a timer or a result's time to live is due, or None."""
    due = state.timers[0][0] if state.timers else None
    expiry = next_expiry(state)
    if expiry is None or due is None:
        return expiry if due is None else due
    return min(due, expiry)
