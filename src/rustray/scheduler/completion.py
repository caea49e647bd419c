"""How tasks end, or go back into the queue."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

from rustray.common.durability import Durability
from rustray.common.errors import PayloadError
from rustray.scheduler import placed
from rustray.scheduler.commands import (
    DeliverOutcome,
    ForgetArguments,
    PersistGrant,
    PersistOutcome,
    PublishEvents,
)
from rustray.scheduler.inputs import let_go, queue_again, tell
from rustray.scheduler.records import Batch, Lease, Part, StoredOutcome, WorkerRecord
from rustray.scheduler.results import drop_overdue, drop_released, is_large, keep, shrink
from rustray.scheduler.stale import ENDED, MOVED, OUT_OF_RANGE, count_stale, lease_of
from rustray.scheduler.state import SchedulerState, hold_back, runs
from rustray.scheduler.view import outcome_of
from rustray.task.columns import PayloadColumn, PlacedColumn
from rustray.task.failures import encode_failure
from rustray.task.frames import LeaseRange
from rustray.task.place import Place
from rustray.task.result import FailureInfo
from rustray.task.state import DEAD_STATES, TaskState

EXCLUSIVE_PAUSE_S = 0.5
"""How long exclusive tasks wait that a worker gave back by itself."""


def owned_runs(state: SchedulerState, lease: Lease, offset: int, count: int) -> list[Part]:
    """Return the runs of a lease's range that are really still under this lease.

    Everything else (a result that came twice, work that was given to another worker
    meanwhile, an offset that a lying worker made up) is counted as stale and left out.
    """
    if offset < 0 or count <= 0 or offset + count > lease.count:
        count_stale(state, OUT_OF_RANGE, max(count, 1))
        return []
    batch = lease.batch
    low = lease.low + offset
    high = low + count
    first = batch.state[low]
    if (
        first < TaskState.SUCCEEDED
        and batch.lease[low:high] == array("Q", (lease.number,)) * count
        and batch.state.count(first, low, high) == count
    ):
        return [Part(batch, low, high, TaskState(first))]
    found: list[Part] = []
    for start, end, byte in runs(batch.state, low, high):
        if byte >= TaskState.SUCCEEDED or byte == TaskState.QUEUED:
            count_stale(state, MOVED if byte == TaskState.QUEUED else ENDED, end - start)
            continue
        run_start = -1
        for index in range(start, end + 1):
            mine = index < end and batch.lease[index] == lease.number
            if mine and run_start < 0:
                run_start = index
            elif not mine:
                if run_start >= 0:
                    found.append(Part(batch, run_start, index, TaskState(byte)))
                    run_start = -1
                if index < end:
                    count_stale(state, MOVED)
    return found


def release(state: SchedulerState, lease: Lease, part: Part) -> None:
    """Take tasks off their lease and its worker."""
    number = part.count
    state.unblock(lease, part.low, part.high)
    lease.remaining -= number
    worker = lease.worker
    if lease.remaining == 0:
        del state.leases[lease.number]
        del worker.leases[lease.number]
        worker.running.pop(lease.number, None)
    if lease.followers:
        for follower in lease.followers:
            if follower.number in state.leases:
                state.wake(follower)
    if lease.is_halfway:
        state.fresh.append(lease)
    if lease.is_idle:
        worker.followers -= 1
    else:
        state.charge(worker, lease.variant, -number)


def requeue(state: SchedulerState, lease: Lease, part: Part, pause_s: float = 0.0) -> None:
    """Put released tasks back at the head of their queue, under the next attempt number.

    Those that never started, and whose queue limit has passed, end instead; exclusive ones are
    not given away for so long.
    """
    batch = part.batch
    if not batch.is_overdue:
        put_back(state, lease, part, pause_s)
        return
    limit_s = batch.queue.task_class.queue_timeout_s
    for one in reversed(part.singles()):
        if one.low in batch.reruns or not batch.is_past(one.low, limit_s, state.now):
            put_back(state, lease, one, pause_s)
        else:
            end_overdue(state, one)


def put_back(state: SchedulerState, lease: Lease, part: Part, pause_s: float = 0.0) -> None:
    """Do what `requeue` does, without a look at their queue limit."""
    take_from(state, lease, part)
    worker, is_exclusive = lease.worker, part.batch.queue.task_class.exclusive
    # A lost worker's executors may outlive it, but not its lease.
    if is_exclusive and worker.is_lost and hold_back(state, part, worker.expires_at_s):
        return
    if is_exclusive and pause_s and hold_back(state, part, state.now + pause_s):
        return
    queue_again(state, part.batch, part.low, part.high)


def take_from(state: SchedulerState, lease: Lease, part: Part) -> None:
    """Make released tasks QUEUED ones that no queue has yet."""
    batch = part.batch
    count_attempt(lease, part)
    if batch.queue.task_class.max_retries == 0:
        state.commands.append(PersistGrant(batch.number, part.low, part.count, is_granted=False))
        if batch.begun:
            batch.begun.difference_update(range(part.low, part.high))
    batch.lease[part.low : part.high] = array("Q", (0,)) * part.count
    state.set_state(part, TaskState.QUEUED)


def count_attempt(lease: Lease, part: Part) -> None:
    """See to it that the next attempt of these tasks has a number that none before it had.

    A worker that came back late may have taken them over from the queue as an old attempt.
    """
    batch = part.batch
    for offset in range(part.low, part.high):
        batch.grants[offset] = max(lease.attempt, batch.grants.get(offset, batch.lost_attempts))


def end_overdue(state: SchedulerState, part: Part) -> None:
    """End tasks that no worker has started within their queue limit."""
    limit_s = part.batch.queue.task_class.queue_timeout_s
    info = FailureInfo(
        "TASK_TIMEOUT",
        f"no worker started the task within its queue_timeout_s={limit_s:g}; "
        "add workers, or allow a longer wait",
        phase="queue",
    )
    finish(state, part, TaskState.TIMED_OUT, failure_payloads(part.count, info), None)


def give_back(state: SchedulerState, worker: WorkerRecord, returned: LeaseRange) -> None:
    """Take back tasks that a worker has not started and never will."""
    lease = lease_of(state, worker, returned.lease, returned.count)
    if lease is None:
        return
    # One that hears nothing of the head gives back at once whatever exclusive it is given. (What
    # was asked back has another worker waiting for it.)
    is_asked = worker.state != "ready" or state.now < worker.recall_until_s
    pause_s = 0.0 if is_asked else EXCLUSIVE_PAUSE_S
    for part in reversed(owned_runs(state, lease, returned.offset, returned.count)):
        release(state, lease, part)
        if part.state is TaskState.CANCELLING:
            finish(state, part, TaskState.CANCELLED, cancelled_payloads(part.count), worker)
        else:
            state.counters["tasks_returned"] += part.count
            requeue(state, lease, part, pause_s)


def finish(
    state: SchedulerState,
    part: Part,
    end: TaskState,
    payloads: PayloadColumn,
    worker: WorkerRecord | None,
) -> None:
    """End tasks (already released from their lease, if they had one).

    Args:
        state: The scheduler's state.
        part: The tasks.
        end: The terminal state that all of them enter.
        payloads: Encoded values or failures, one a task.
        worker: Where they ran; None for tasks that no worker has.
    """
    if type(payloads) is PlacedColumn:
        place, end, payloads = _checked(state, part, end, payloads, worker)
        _finish_alike(state, part, end, payloads, worker, place)
        return
    if part.count > 1 and part.batch.queue.task_class.stream_window:
        for one in part.singles():  # each has items of its own
            index = one.low - part.low
            _finish_alike(state, one, end, payloads.slice(index, index + 1), worker)
        return
    if part.count > 1 and (part.batch.reruns or part.batch.revived is not None):
        for low, high in _alike(part):
            index = low - part.low
            piece = Part(part.batch, low, high, part.state)
            _finish_alike(state, piece, end, payloads.slice(index, index + high - low), worker)
        return
    _finish_alike(state, part, end, payloads, worker)


def _alike(part: Part) -> Iterator[tuple[int, int]]:
    """Split into runs of tasks that have been started equally often."""
    batch, low = part.batch, part.low
    revived, reruns = batch.revived, batch.reruns
    started = [
        reruns.get(offset, 0) + (revived.attempts[offset] if revived is not None else 0)
        for offset in range(low, part.high)
    ]
    for _, run in groupby(range(part.count), started.__getitem__):
        offsets = list(run)
        yield low + offsets[0], low + offsets[-1] + 1


def _finish_alike(
    state: SchedulerState,
    part: Part,
    end: TaskState,
    payloads: PayloadColumn,
    worker: WorkerRecord | None,
    place: Place | None = None,
) -> None:
    batch, low, number = part.batch, part.low, part.count
    was_granted = worker is not None or bool(batch.grants.get(low))
    attempts = 1 + batch.reruns.get(low, 0) if was_granted else 0
    if batch.revived is not None:
        attempts += batch.revived.attempts[low]
    # What a person counts are starts; what orders the events of a task are its leases.
    attempt = batch.grants.get(low, batch.lost_attempts) + (worker is not None)
    worker_id = worker.info.worker_id if worker is not None else ""
    index = len(batch.outcomes)
    stored = StoredOutcome(
        state.next_outcome, batch, low, end, payloads, worker_id, attempts, state.now, index, number
    )
    stored.is_large = is_large(state, end, payloads)
    if end in DEAD_STATES or place is not None:
        _keep_arguments(stored, low, part.high)
        placed.enter(state, stored, place)
    for offset in range(low, part.high) if batch.crashes else ():
        batch.crashes.pop(offset, None)
    state.next_outcome += 1
    if batch.streams and low in batch.streams:
        stored.item_bytes = batch.streams[low].bytes
    batch.lease[low : part.high] = array("Q", (index,)) * number
    keep(state, stored)
    state.set_state(part, end)
    state.counters[_ENDED[end]] += number
    batch.unfinished -= number
    size = 0
    if batch.unfinished == 0:
        assert batch.payloads is not None
        size = len(batch.payloads.blob)
        batch.payloads = None
        batch.grants.clear()
    state.count_pending(batch, -number, -size)
    _announce(state, stored, attempt)
    if batch.inputs is not None:
        for one in let_go(state, batch, low, part.high):
            drop_overdue(state, one)
    if batch.dependants:
        tell(state, stored, low, part.high)
    if batch.unfinished == 0:
        digests = b"".join(batch.digests or ())
        state.commands.append(ForgetArguments(batch.number, digests, batch.durability))
    drop_released(state, stored)
    shrink(state)


def _checked(
    state: SchedulerState, part: Part, end: TaskState, payloads: PlacedColumn,
    worker: WorkerRecord | None,
) -> tuple[Place | None, TaskState, PayloadColumn]:  # fmt: skip
    """Return where a value has stayed, state and payloads; None and a failure if that is a lie."""
    try:
        if end is not TaskState.SUCCEEDED:
            raise PayloadError("the worker has kept the value of a task that has none")
        return placed.place_of(state, part.batch, part.low, payloads, worker), end, payloads
    except PayloadError as error:
        state.counters["false_places"] += 1
        info = FailureInfo(error.code, str(error))
        return None, TaskState.FAILED, failure_payloads(1, info)


def _keep_arguments(stored: StoredOutcome, low: int, high: int) -> None:
    """Keep what it takes to run tasks again that have ended."""
    batch = stored.batch
    assert batch.payloads is not None
    stored.arguments = batch.payloads.slice(low, high)
    stored.fence = 1 + _most_grants(batch, low, high)


def _most_grants(batch: Batch, low: int, high: int) -> int:
    """Return the highest number of an attempt but the last that one of some tasks has had."""
    grants, lost = batch.grants, batch.lost_attempts
    return max(grants.get(offset, lost) for offset in range(low, high)) if grants else lost


def _announce(state: SchedulerState, stored: StoredOutcome, attempt: int) -> None:
    """Persist an outcome, then tell whoever wants to know."""
    batch = stored.batch
    outcome = outcome_of(stored, stored.offset, stored.offset + len(stored.payloads))
    commands = state.commands
    # A cancel holds, whatever the task has asked for: it must not run after that.
    is_cancelled = stored.state is TaskState.CANCELLED
    commands.append(
        PersistOutcome(
            stored.number,
            batch.number,
            stored.offset,
            outcome,
            stored.is_large,
            stored.arguments,
            stored.fence,
            Durability.DEFAULT if is_cancelled else batch.durability,
        )
    )
    is_put = batch.queue.task_class.is_put and stored.state is TaskState.SUCCEEDED
    if is_put:  # who has handed it in has it
        outcome = replace(outcome, payloads=PayloadColumn.of([b""] * len(stored.payloads)))
    commands.append(DeliverOutcome(batch.prefix, outcome, batch.is_pushed, batch.durability))
    commands.append(
        PublishEvents(
            batch.prefix,
            outcome.first,
            len(stored.payloads),
            stored.state,
            attempt,
            stored.worker_id,
            batch.queue.task_class.function,
            None,
            batch.durability,
        )
    )


_ENDED = {
    TaskState.SUCCEEDED: "tasks_succeeded",
    TaskState.FAILED: "tasks_failed",
    TaskState.CANCELLED: "tasks_cancelled",
    TaskState.TIMED_OUT: "tasks_timed_out",
    TaskState.POISONED: "tasks_poisoned",
}


def failure_payloads(number: int, info: FailureInfo) -> PayloadColumn:
    """Encode one failure for each of ``number`` tasks."""
    return PayloadColumn.of([encode_failure(info)] * number)


def cancelled_payloads(number: int) -> PayloadColumn:
    """Encode the failure of cancelled tasks."""
    return failure_payloads(
        number, FailureInfo("TASK_CANCELLED", "the task was cancelled before it ended")
    )
