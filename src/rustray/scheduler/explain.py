"""Why a task is where it is, and what would move it."""

from __future__ import annotations

from typing import Final

from rustray.common.ids import TaskId, child_prefix, task_id
from rustray.scheduler.placement import room
from rustray.scheduler.records import Batch, ClassQueue, WorkerRecord
from rustray.scheduler.state import SchedulerState
from rustray.scheduler.variants import can_run, nearest_miss
from rustray.task.columns import StoredColumn
from rustray.task.failures import decode_failure, shorten
from rustray.task.inputs import producers_of
from rustray.task.state import TaskState
from rustray.task.views import Explanation, WorkerReason

_NAMED_INPUTS: Final = 3
MOST_TOLD: Final = 300
"""Characters of an error."""


def explain(state: SchedulerState, batch: Batch, offset: int, now: float) -> Explanation:
    """Explain one task; there is always an answer.

    Complexity: O(workers + batches of its queue).
    """
    present = TaskState(batch.state[offset])
    name = task_id(batch.prefix, batch.first + offset)
    if present.is_terminal:
        return _explain_ended(batch, offset, name, present)
    if present is not TaskState.QUEUED:
        return _explain_leased(state, batch, offset, name, present)
    if offset in batch.delayed:
        return _explain_delayed(state, batch, offset, name)
    if offset in batch.missing:
        return _explain_missing(state, batch, offset, name)
    queue = batch.queue
    reasons = tuple(_reason(state, queue, worker, now) for worker in state.workers.values())
    position = _position(queue, batch, offset)
    feasible = [reason for reason in reasons if reason.is_feasible]
    if not reasons:
        summary = "it waits because no worker is connected."
        advice = "start one: rustray worker"
    elif not feasible:
        summary = f"it waits because none of {len(reasons)} workers can ever run it."
        advice = "add a worker that has what is missing, or cancel the task and ask for less."
    else:
        summary = (
            f"it waits for room: {position} tasks of its kind are ahead of it, and "
            f"{len(feasible)} of {len(reasons)} workers can run it."
        )
        advice = "it starts when they have worked off what is ahead; more workers make it sooner."
    return Explanation(name, present, summary, position, reasons, advice)


def _explain_ended(batch: Batch, offset: int, name: TaskId, present: TaskState) -> Explanation:
    """Say where it ended, and what of, as far as that is in memory."""
    stored = batch.outcomes[batch.lease[offset]]
    where = f" on {stored.worker_id}" if stored is not None and stored.worker_id else ""
    summary = f"the task has ended: {present.name}{where}."
    is_here = stored is not None and not isinstance(stored.payloads, StoredColumn)
    if present is TaskState.SUCCEEDED or stored is None or not is_here or stored.is_evicted:
        return Explanation(name, present, summary)
    info = decode_failure(stored.payloads[offset - stored.offset])
    cause = f"it needs the result of task {info.origin}, which failed: " if info.origin else ""
    error = f"{info.error_type.removeprefix('builtins.')}: " if info.error_type else ""
    summary += f" {cause}{error}{' '.join(shorten(info.message, MOST_TOLD).split())}"
    advice = f"all of the error: rustray tasks get {name}"
    if present is not TaskState.CANCELLED:
        first = info.origin or name
        advice += f"; once its cause is mended, run it again: rustray tasks retry {first}"
    return Explanation(name, present, summary, advice=advice)


def _explain_delayed(state: SchedulerState, batch: Batch, offset: int, name: str) -> Explanation:
    delay = batch.delayed[offset]
    if not delay.reason:
        return Explanation(
            name,
            TaskState.QUEUED,
            "it is exclusive, and an earlier attempt may still run on a worker that was lost, or "
            "its worker gave it back because it hears nothing of the head; it waits for "
            f"{max(delay.due_s - state.now, 0.0):.1f} s at most.",
            advice="it starts when that time is over.",
        )
    budget = batch.queue.task_class.max_retries
    used = batch.reruns.get(offset, 0) - batch.oom_reruns.get(offset, 0)
    left = f"{budget - used} more may follow" if budget >= 0 else "more may follow"
    return Explanation(
        name,
        TaskState.QUEUED,
        f"it raised {delay.reason!r}, and retry {used} starts in "
        f"{max(delay.due_s - state.now, 0.0):.1f} s; {left}.",
        advice="retry_delay_s sets the pause; cancel the task if another try cannot help.",
    )


def _explain_missing(state: SchedulerState, batch: Batch, offset: int, name: str) -> Explanation:
    assert batch.inputs is not None
    producers = producers_of(batch.inputs[offset])
    waited_for: list[str] = []
    for prefix, sequence in producers:
        found = state.find(prefix, sequence)
        if found is None or TaskState(found[0].state[found[1]]).is_terminal:
            continue
        present = TaskState(found[0].state[found[1]]).name
        function = found[0].queue.task_class.function
        waited_for.append(f"{task_id(prefix, sequence)} ({function}, {present})")
        if len(waited_for) == _NAMED_INPUTS:
            break
    lacking = batch.missing[offset]
    more = f" and {lacking - len(waited_for)} more" if lacking > len(waited_for) else ""
    return Explanation(
        name,
        TaskState.QUEUED,
        f"it waits for {lacking} of the {len(producers)} tasks whose results it takes: "
        f"{', '.join(waited_for)}{more}.",
        advice=f"ask what keeps them: rustray tasks explain {waited_for[0].split()[0]}"
        if waited_for
        else "",
    )


def _explain_leased(
    state: SchedulerState, batch: Batch, offset: int, name: str, present: TaskState
) -> Explanation:
    lease = state.leases[batch.lease[offset]]
    worker = lease.worker
    if worker is state.ghost:
        missing = ", ".join(sorted(state.awaited))
        return Explanation(
            name,
            present,
            f"the head was restarted, and a worker of before may still have it; not back are: "
            f"{missing}.",
            advice=f"it is queued when they are back and have said that they do not, or in "
            f"{max(worker.expires_at_s - state.now, 0.0):.0f} s.",
        )
    verb = {
        TaskState.LEASED: "has it, as one of the next to run or as one that started just now",
        TaskState.RUNNING: "runs it",
        TaskState.CANCELLING: "was told to stop it, and has not confirmed yet",
    }[present]
    if lease.is_idle and batch.inputs is not None:
        [(prefix, sequence)] = producers_of(batch.inputs[offset])
        verb = f"has it, and begins it as soon as {task_id(prefix, sequence)} ends, which it takes"
    summary = f"worker {worker.worker_id} {verb} (attempt {lease.attempt})."
    if lease.blocked and offset - lease.low in lease.blocked:
        summary += _children_text(state, batch.prefix, batch.first + offset)
    progress = state.progress.get((batch.number, offset))
    if progress is not None:
        summary += f" It said that it is {progress.fraction:.0%} done"
        summary += f": {progress.message}." if progress.message else "."
    advice = ""
    if worker.is_full and present is TaskState.LEASED:
        summary += " The worker starts nothing now: results that wait for the head fill its spool."
        advice = (
            "it goes on when the head has taken some of them; worker.spool_disk_mb allows more."
        )
    if worker.state == "disconnected":
        summary += " The worker is not connected now."
        advice = "if it stays away, its tasks go to others when its lease ends."
    return Explanation(name, present, summary, -1, (), advice)


def _children_text(state: SchedulerState, prefix: bytes, sequence: int) -> str:
    session = state.sessions.get(child_prefix(prefix, sequence))
    left = sum(batch.unfinished for batch in session.batches) if session is not None else 0
    return f" It waits for tasks of its own ({left} have not ended), and holds no core meanwhile."


def _position(queue: ClassQueue, batch: Batch, offset: int) -> int:
    ahead = 0
    for span in queue.spans:
        if span.batch is batch and span.low <= offset < span.high:
            return ahead + batch.state.count(TaskState.QUEUED, span.low, offset)
        ahead += span.batch.state.count(TaskState.QUEUED, span.low, span.high)
    return ahead


def _reason(
    state: SchedulerState, queue: ClassQueue, worker: WorkerRecord, now: float
) -> WorkerReason:
    task_class = queue.task_class
    name = worker.worker_id
    offered = task_class.offered_function
    if offered and offered not in worker.functions:
        return WorkerReason(name, False, f"it does not offer the function {offered!r}")
    if not can_run(queue, worker):
        return WorkerReason(name, False, ", ".join(nearest_miss(queue, worker)[2]))
    if worker.state != "ready":
        silent = now - worker.last_seen_s
        return WorkerReason(
            name, worker.state != "draining", f"it is {worker.state} ({silent:.0f} s)"
        )
    if any(room(state, queue, variant, worker) > 0 for variant in queue.variants):
        return WorkerReason(name, True, "it has room, and gets the task at the next step")
    return WorkerReason(
        name,
        True,
        f"it is full: {worker.load.tasks} tasks leased, {worker.load.load:.0%} of its size",
    )
