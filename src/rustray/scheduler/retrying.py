"""What a worker's report of an end leads to: the end itself, or another attempt.

Three budgets: ``max_retries`` counts re-runs of any kind but those of ``oom_retries``, which are
for tasks that outgrew their memory; ``crash_limit`` counts the executors that a task has killed by
itself. An exception of user code is re-run only where ``retry_exceptions`` names it, and after a
pause.
"""

from __future__ import annotations

import heapq

from rustray.common.errors import ObjectLost, TaskOutOfMemory
from rustray.scheduler import placed
from rustray.scheduler.commands import PersistCrash, PersistOomRerun, PersistRerun
from rustray.scheduler.completion import (
    cancelled_payloads,
    count_attempt,
    failure_payloads,
    finish,
    owned_runs,
    put_back,
    release,
    requeue,
    take_from,
)
from rustray.scheduler.inputs import queue_again
from rustray.scheduler.records import Batch, Delay, Lease, Part, WorkerRecord
from rustray.scheduler.stale import OUT_OF_RANGE, count_stale, lease_of
from rustray.scheduler.state import SchedulerState, haunt
from rustray.task.columns import PayloadColumn
from rustray.task.failures import TOLD, decode_failure
from rustray.task.frames import LeaseOutcome
from rustray.task.inputs import LACKS
from rustray.task.result import FailureInfo
from rustray.task.retries import is_wanted, pause_s
from rustray.task.state import TaskState

MEAN_WEIGHT = 0.3
"""Weight of the newest report in the moving average of run times."""
REPORTABLE = frozenset(
    {
        TaskState.SUCCEEDED,
        TaskState.FAILED,
        TaskState.CANCELLED,
        TaskState.TIMED_OUT,
        TaskState.LEASED,
    }
)
MAX_LACKS = 20
"""How often a task is tried again that could not have an input, though its worker was there and
has answered; for each input."""
LACK_PAUSE_S = 0.5
"""Before another attempt of a task that could not have an input."""
CUT_OFF = "contact"
"""Phase of the failure of an exclusive task whose worker had lost the head."""
MAX_REASON = 200
"""Characters of a failure that are kept to explain why a task waits for its next attempt."""


def on_outcome(state: SchedulerState, worker: WorkerRecord, report: LeaseOutcome) -> None:
    """Take a worker's report of how consecutive tasks of a lease ended."""
    count = len(report.payloads)
    lease = lease_of(state, worker, report.lease, count)
    if lease is None:
        return
    if report.state not in REPORTABLE:  # the codec lets none through
        count_stale(state, OUT_OF_RANGE, max(count, 1))
        return
    queue = lease.batch.queue
    if report.state is TaskState.SUCCEEDED and count:
        mean = max(report.run_us, 0) / count / 1e6
        old = queue.mean_run_s
        queue.mean_run_s = mean if old < 0 else old + MEAN_WEIGHT * (mean - old)
    may_retry = report.state is TaskState.LEASED or (
        report.state is TaskState.FAILED and bool(queue.task_class.retry_exceptions)
    )
    for part in owned_runs(state, lease, report.offset, count):
        start = part.low - lease.low - report.offset
        payloads = report.payloads.slice(start, start + part.count)
        release(state, lease, part)
        worker.finished += part.count
        if report.state is TaskState.CANCELLED:
            _stopped(state, lease, part, payloads)
        elif not may_retry:
            finish(state, part, report.state, payloads, worker)
        elif part.state is TaskState.CANCELLING:
            finish(state, part, TaskState.CANCELLED, cancelled_payloads(part.count), worker)
        else:
            # From the last to the first, so that each goes to the very front of its queue.
            for one in reversed(part.singles()):
                index = one.low - part.low
                payload = payloads.slice(index, index + 1)
                if report.state is TaskState.LEASED:
                    _lost_executor(state, lease, one, payload)
                else:
                    _raised(state, lease, one, payload)


def _stopped(state: SchedulerState, lease: Lease, part: Part, payloads: PayloadColumn) -> None:
    """End tasks that a worker has stopped, but for those that it was told to drop.

    It was told so while another worker had them: by a head before this one, or by this one before
    the worker was lost. Or that head died before it could confirm a cancel: who asked asks again.
    """
    is_asked = part.state is TaskState.CANCELLING
    may_run = lease.is_adopted and part.batch.queue.task_class.max_retries != 0
    if is_asked or not may_run:
        ends = cancelled_payloads(part.count) if is_asked else payloads
        finish(state, part, TaskState.CANCELLED, ends, lease.worker)
        return
    for one in reversed(part.singles()):
        index = one.low - part.low
        payload = payloads.slice(index, index + 1)
        if decode_failure(payload[0]).phase == TOLD:
            _queue_dropped(state, lease, one)
        else:  # it has ended itself
            finish(state, one, TaskState.CANCELLED, payload, lease.worker)


def _queue_dropped(state: SchedulerState, lease: Lease, one: Part) -> None:
    """Have a task run that its worker was made to drop, at no cost to its budget."""
    state.counters["tasks_dropped"] += 1
    if _is_haunted(state, lease):
        count_attempt(lease, one)
        haunt(state, one)
        return
    # Whoever has an exclusive one may still run it, for as long as its lease can last.
    pause_s = max(state.settings.lease_ttl_s, state.exclusive_from_s - state.now)
    if one.state is TaskState.RUNNING:
        put_back(state, lease, one, pause_s)
    else:
        requeue(state, lease, one, pause_s)


def _raised(state: SchedulerState, lease: Lease, one: Part, payload: PayloadColumn) -> None:
    """Try a task again whose function has raised, if that is wanted, after a pause."""
    task_class = one.batch.queue.task_class
    info = decode_failure(payload[0])
    if not is_wanted(task_class.retry_exceptions, info) or not _may_rerun(one):
        finish(state, one, TaskState.FAILED, payload, lease.worker)
        return
    used = _count_rerun(state, lease, one)
    if _is_haunted(state, lease):
        haunt(state, one)
        return
    wait_s = pause_s(task_class.retry_delay_s, used, state.jitter.fraction())
    if wait_s <= 0:
        requeue(state, lease, one)
        return
    text = f"{info.error_type.removeprefix('builtins.')}: {info.message}"
    _pause(state, lease, one, wait_s, text)


def _pause(state: SchedulerState, lease: Lease, one: Part, wait_s: float, text: str) -> None:
    """Have a released task wait before its next attempt."""
    take_from(state, lease, one)
    delay = Delay(state.now + wait_s, text[:MAX_REASON])
    one.batch.delayed[one.low] = delay
    state.delayed += 1
    subject = (one.batch, one.low)
    heapq.heappush(state.timers, (delay.due_s, state.next_order, "retry", subject))
    state.next_order += 1


def on_retry_due(state: SchedulerState, batch: Batch, offset: int) -> None:
    """Queue a task whose pause is over; one that has been cancelled meanwhile stays away."""
    delay = batch.delayed.get(offset)
    if delay is None or delay.due_s > state.now:
        return
    del batch.delayed[offset]
    state.delayed -= 1
    queue_again(state, batch, offset, offset + 1)


def _lost_executor(state: SchedulerState, lease: Lease, one: Part, payload: PayloadColumn) -> None:
    info = decode_failure(payload[0])
    if info.code == TaskOutOfMemory.code:
        _outgrew(state, lease, one, payload)
    elif info.phase.startswith(LACKS):
        _lacked_input(state, lease, one, payload, info)
    elif info.phase == CUT_OFF or info.code == ObjectLost.code:
        # The worker stopped it, or had its result damaged on disk after it had ended: the task has
        # nothing to do with that.
        retry_or_fail(state, lease, one, payload)
    else:
        _crashed(state, lease, one, payload, info)


def _lacked_input(
    state: SchedulerState, lease: Lease, one: Part, payload: PayloadColumn, info: FailureInfo
) -> None:
    """Try a task again that could not have an input from where that is."""
    name = info.phase.removeprefix(LACKS)
    stored = placed.find(state, name)
    # A worker that was asked for it and has not answered yet may be frozen: that is no refusal.
    may_come = stored is not None and (placed.is_away(state, stored) or placed.is_asked(stored))
    if stored is not None:
        placed.want(state, stored)
    # Each of many inputs may lack once: they come to the head one after the other.
    producer, counts = name.rpartition("-")[0], one.batch.lacks.setdefault(one.low, {})
    counts[producer] = counts.get(producer, 0) + (not may_come)
    if counts[producer] > MAX_LACKS:
        finish(state, one, TaskState.FAILED, payload, lease.worker)
    elif _is_haunted(state, lease):
        haunt(state, one)
    else:  # at no cost: it was not begun. Who is away answers, or is given up, in time.
        _pause(state, lease, one, LACK_PAUSE_S, info.message)


def _outgrew(state: SchedulerState, lease: Lease, one: Part, payload: PayloadColumn) -> None:
    """Try a task again that was stopped for its memory, out of the budget for that alone."""
    batch = one.batch
    budget = batch.queue.task_class.oom_retries
    used = batch.oom_reruns.get(one.low, 0)
    if 0 <= budget <= used:
        finish(state, one, TaskState.FAILED, payload, lease.worker)
        return
    batch.oom_reruns[one.low] = used + 1
    state.commands.append(PersistOomRerun(batch.number, one.low, used + 1))
    _run_again(state, lease, one)


def _crashed(
    state: SchedulerState, lease: Lease, one: Part, payload: PayloadColumn, info: FailureInfo
) -> None:
    """Try a task again whose executor has died, or end it as one that kills executors."""
    batch = one.batch
    task_class = batch.queue.task_class
    if task_class.max_retries:
        text = f"on {lease.worker.worker_id}: {info.message}"
        crashes = batch.crashes.setdefault(one.low, [])
        crashes.append(text)
        if 0 < task_class.crash_limit <= len(crashes):
            state.counters["crash_limits_reached"] += 1
            finish(state, one, TaskState.POISONED, _poison(crashes, info), lease.worker)
            return
        state.commands.append(PersistCrash(batch.number, one.low, text))
    retry_or_fail(state, lease, one, payload)


def _poison(crashes: list[str], last: FailureInfo) -> PayloadColumn:
    count = len(crashes)
    listed = "\n".join(f"{number}. {text}" for number, text in enumerate(crashes, start=1))
    info = FailureInfo(
        "TASK_POISONED",
        f"the task has killed {count} executor processes, which is its crash_limit, so it is not "
        f"tried again; look at what it does there, or raise the limit:\n{listed}",
        exit_code=last.exit_code,
        signal=last.signal,
    )
    return failure_payloads(1, info)


def retry_or_fail(state: SchedulerState, lease: Lease, part: Part, payloads: PayloadColumn) -> None:
    """Queue released tasks for another attempt while their budget lasts, else fail them.

    Args:
        state: The scheduler's state.
        lease: Under which they ran.
        part: The tasks.
        payloads: Encoded failures to end with, one a task.
    """
    for one in reversed(part.singles()):
        if not _may_rerun(one):
            index = one.low - part.low
            item = payloads.slice(index, index + 1)
            finish(state, one, TaskState.FAILED, item, lease.worker)
        else:
            _run_again(state, lease, one)


def _run_again(state: SchedulerState, lease: Lease, one: Part) -> None:
    _count_rerun(state, lease, one)
    if _is_haunted(state, lease):
        haunt(state, one)
    else:
        requeue(state, lease, one)


def _may_rerun(one: Part) -> bool:
    batch = one.batch
    budget = batch.queue.task_class.max_retries
    used = batch.reruns.get(one.low, 0) - batch.oom_reruns.get(one.low, 0)
    return budget < 0 or used < budget


def _count_rerun(state: SchedulerState, lease: Lease, one: Part) -> int:
    """Take a re-run out of a task's budget; returns its number, from 1."""
    batch = one.batch
    used = batch.reruns[one.low] = batch.reruns.get(one.low, 0) + 1
    batch.failed[one.low] = lease.attempt
    # Also of one that a worker of before may have already: no number comes twice.
    batch.grants[one.low] = max(lease.attempt, batch.grants.get(one.low, 0))
    state.commands.append(PersistRerun(batch.number, one.low, lease.attempt, used))
    state.counters["tasks_retried"] += 1
    return used


def _is_haunted(state: SchedulerState, lease: Lease) -> bool:
    """Whether an earlier head may have taken this very report already.

    It may have given the next attempt to a worker that is not back yet.
    """
    return state.ghost is not None and lease.number < state.settings.first_lease
