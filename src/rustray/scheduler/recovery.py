"""A head that starts with the journal of an earlier one.

The journal says which tasks were accepted and how they ended, and not who had them: leases are not
journaled, so that handing out work costs no commit. Instead every task that had not ended is
put under a lease of the *ghost*, which stands for the workers of before. A worker that comes back
says what it holds, and takes that over under its old lease number. When all of them have come back,
or their time is up, the ghost is gone, and what nobody has is queued. So a task that a worker
still holds is not run again, however long the head was away.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Sequence

from rustray.common.errors import InvariantError
from rustray.scheduler import letters, placed, streams, tombstones
from rustray.scheduler.commands import CancelLease, ForgetWorker
from rustray.scheduler.completion import (
    cancelled_payloads,
    end_overdue,
    failure_payloads,
    finish,
    owned_runs,
    release,
)
from rustray.scheduler.deadlines import end_queued_if_due, start_batch_timers
from rustray.scheduler.events import (
    RecoveredBatch,
    RecoveredOutcome,
    RecoveredRetry,
    StateRecovered,
)
from rustray.scheduler.inputs import queue_again, queue_fresh, register
from rustray.scheduler.load_balancer import WorkerLoad
from rustray.scheduler.placement import new_queue
from rustray.scheduler.records import Batch, Lease, Part, StoredOutcome, WorkerRecord
from rustray.scheduler.results import keep
from rustray.scheduler.state import (
    SchedulerState,
    haunt,
    hold_back,
    runs,
    take_out,
    unqueue,
)
from rustray.scheduler.variants import variant_of
from rustray.task.columns import PlacedColumn, StoredColumn
from rustray.task.frames import HeldRange
from rustray.task.inputs import producers_of
from rustray.task.place import Place
from rustray.task.result import FailureInfo
from rustray.task.state import TaskState
from rustray.task.views import WorkerInfo

KEEP_AFTER_START_S = 3600.0
"""Ages of results are counted by the wall clock over a restart: if that is wrong, people have so
long to set it right and start the head again before anything is deleted for its age."""
GHOST = "(not back since the restart)"
_OPEN = (TaskState.QUEUED, TaskState.LEASED, TaskState.CANCELLING)


def on_recovered(state: SchedulerState, event: StateRecovered) -> None:
    """Rebuild batches and outcomes, and wait for the workers of before."""
    state.expired.update((prefix, last) for prefix, last, _ in event.expired)
    state.code.update(event.codes)
    state.code_bytes = sum(map(len, state.code.values()))
    batches: dict[int, Batch] = {}
    for found in event.batches:
        batches[found.batch] = _rebuild(state, found)
    _restore_streams(state, event, batches)
    history: list[RecoveredOutcome | RecoveredRetry] = [*event.outcomes, *event.retries]
    history.sort(key=lambda one: one.number)
    lives = letters.RestoredLives()
    for ended in history:
        if isinstance(ended, RecoveredRetry):
            letters.restore_retry(state, batches.get(ended.batch), ended, lives)
        else:
            _restore_outcome(state, batches.get(ended.batch), ended)
    letters.resume_lives(state, lives)
    for number, offset, count in event.purges:
        letters.restore_purge(batches.get(number), offset, count)
    _restore_attempts(event, batches)
    state.awaited = set(event.workers)
    state.exclusive_from_s = state.now + state.settings.lease_ttl_s
    if not event.is_clock_sure:
        state.keep_until_s = state.now + min(state.settings.result_ttl_s, KEEP_AFTER_START_S)
    if state.awaited or any(batch.begun for batch in batches.values()):
        _raise_ghost(state, event.grace_s if state.awaited else 0.0)
    else:
        placed.on_workers_gone(state)
    _resume_all(state, batches, event.starts)
    for number, offset, count, force in event.cancels:
        batch = batches.get(number)
        if batch is not None:
            high = min(offset + count, batch.count)
            _cancel_again(state, batch, offset, high, bool(force))


def _resume_all(state: SchedulerState, batches: dict[int, Batch], starts: int) -> None:
    for restored in batches.values():
        register(state, restored, 0, restored.count)
    for restored in batches.values():
        if not (restored.unfinished or restored.kept):
            tombstones.bury(state, restored)
        # Each head may have handed it out once more than the journal knows.
        restored.lost_attempts += starts
        _resume(state, restored)


def _restore_attempts(event: StateRecovered, batches: dict[int, Batch]) -> None:
    for number, offset, attempt, reruns in event.reruns:
        batch = batches.get(number)
        if batch is not None and offset < batch.count:
            batch.grants[offset] = max(attempt, event.starts)
            batch.reruns[offset] = reruns
            batch.failed[offset] = attempt
    for number, offset, reruns in event.oom_reruns:
        if number in batches:
            batches[number].oom_reruns[offset] = reruns
    for number, offset, text in event.crashes:
        if number in batches and batches[number].state[offset] < TaskState.SUCCEEDED:
            batches[number].crashes.setdefault(offset, []).append(text)
    for number, offset, count, is_granted in event.grants:
        if number in batches:
            batch, which = batches[number], range(offset, offset + count)
            begun = batch.begun = batch.begun or set()
            begun.update(which) if is_granted else begun.difference_update(which)


def _restore_streams(
    state: SchedulerState, event: StateRecovered, batches: dict[int, Batch]
) -> None:
    """Before the outcomes, which count what was yielded."""
    for number, offset, consumed in event.reads:
        if number in batches:
            streams.restore_read(batches[number], offset, consumed)
    for items in event.items:
        if items.batch in batches:
            streams.restore_items(state, batches[items.batch], items)


def _rebuild(state: SchedulerState, found: RecoveredBatch) -> Batch:
    queue = new_queue(state, found.task_class)
    count = found.count
    batch = Batch(
        found.batch,
        found.prefix,
        found.first,
        count,
        queue,
        found.payloads,
        found.is_pushed,
        state.now - found.age_s,
    )
    batch.digests = found.digests
    batch.inputs = found.inputs
    if found.time_left_s is not None:
        batch.deadline_s = state.now + found.time_left_s
    queue.batches += 1
    state.next_batch = max(state.next_batch, found.batch + 1)
    state.insert(batch)
    batch.principal = found.principal
    batch.durability = found.durability or state.settings.durability
    size = len(found.payloads.blob) if found.payloads is not None else 0
    state.count_pending(batch, count, size)
    state.counts[TaskState.QUEUED] += count
    state.counters["tasks_recovered"] += count
    return batch


def _restore_outcome(state: SchedulerState, batch: Batch | None, found: RecoveredOutcome) -> None:
    state.next_outcome = max(state.next_outcome, found.number + 1)
    outcome = found.outcome
    low, high = found.offset, found.offset + found.count
    if batch is None or high > batch.count or any(batch.state[low:high]):
        state.counters["outcomes_out_of_place"] += 1
        return
    batch.lease[low:high] = array("Q", (len(batch.outcomes),)) * found.count
    if found.is_expired:
        batch.outcomes.append(None)
        until_s = state.now - found.age_s + state.settings.result_ttl_s
        batch.known_until_s = max(batch.known_until_s, until_s)
    else:
        stored = StoredOutcome(
            found.number,
            batch,
            low,
            outcome.state,
            outcome.payloads,
            outcome.worker_id,
            outcome.attempts,
            state.now - found.age_s,
            len(batch.outcomes),
            found.count,
            isinstance(outcome.payloads, StoredColumn),
            found.arguments,
            found.fence,
        )
        if low in batch.streams:
            stored.item_bytes = batch.streams[low].bytes
        if isinstance(outcome.payloads, PlacedColumn):
            placed.enter(state, stored, Place.unpack(outcome.payloads[0]))
        keep(state, stored)
    state.set_state(Part(batch, low, high, TaskState.QUEUED), outcome.state)
    batch.unfinished -= found.count
    state.count_pending(batch, -found.count, 0)
    if batch.unfinished == 0 and batch.payloads is not None:
        state.count_pending(batch, 0, -len(batch.payloads.blob))
        batch.payloads = None


def _resume(state: SchedulerState, batch: Batch) -> None:
    """Put what has not ended under the ghost, or into the queue where there is none."""
    if batch.unfinished == 0:
        return
    if batch.payloads is None:
        raise InvariantError(f"batch {batch.number} in the journal has tasks without arguments")
    start_batch_timers(state, batch)
    streams.resume(state, batch)
    for low, high, byte in list(runs(batch.state, 0, batch.count)):
        if byte != TaskState.QUEUED:
            continue
        part = Part(batch, low, high, TaskState.QUEUED)
        if state.ghost is not None:
            haunt(state, part)
        elif not _waits_for_lease(state, part):
            queue_fresh(state, batch, low, high)


def _waits_for_lease(state: SchedulerState, part: Part) -> bool:
    """Whether an exclusive task may still run on a worker that was lost before the restart."""
    is_exclusive = part.batch.queue.task_class.exclusive
    return is_exclusive and hold_back(state, part, state.exclusive_from_s)


def _cancel_again(state: SchedulerState, batch: Batch, low: int, high: int, force: bool) -> None:
    if force:
        batch.forced |= set(range(low, high))
    for start, end, byte in list(runs(batch.state, low, high)):
        part = Part(batch, start, end, TaskState(byte))
        if part.state is TaskState.LEASED:
            state.set_state(part, TaskState.CANCELLING)
        elif part.state is TaskState.QUEUED:
            unqueue(state, part)
            finish(state, part, TaskState.CANCELLED, cancelled_payloads(part.count), None)


# ── The ghost ─────────────────────────────────────────────────────────────────────────────────


def _raise_ghost(state: SchedulerState, grace_s: float) -> None:
    info = WorkerInfo(GHOST, 0, GHOST, "", {}, {}, (), "", 0, "")
    load = WorkerLoad(worker_id=GHOST, order=-1, total={})
    due = state.now + grace_s
    ghost = WorkerRecord(info, -1, load, "disconnected", due, state.now, frozenset())
    state.ghost = ghost
    heapq.heappush(state.timers, (due, state.next_order, "expiry", ghost))
    state.next_order += 1


def note_return(state: SchedulerState, worker: WorkerRecord) -> None:
    """A worker has said what it holds; the last one that was awaited ends the wait."""
    if state.ghost is None:
        return
    state.awaited.discard(worker.worker_id)
    if not state.awaited:
        end(state)


def end(state: SchedulerState) -> None:
    """Queue what no worker of before has come back with, and let the ghost go."""
    ghost = state.ghost
    if ghost is None:
        return
    held = list(ghost.leases.values())
    for lease in reversed(held):
        batch = lease.batch
        for part in reversed(owned_runs(state, lease, 0, lease.count)):
            release(state, lease, part)
            if part.state is TaskState.CANCELLING:
                finish(state, part, TaskState.CANCELLED, cancelled_payloads(part.count), None)
                continue
            differ = batch.is_overdue or batch.begun
            for one in reversed(part.singles()) if differ else (part,):
                if batch.begun and one.low in batch.begun:
                    _give_up(state, one)
                elif (
                    batch.is_overdue
                    and one.low not in batch.reruns
                    and batch.is_past(one.low, batch.queue.task_class.queue_timeout_s, state.now)
                ):
                    end_overdue(state, one)
                else:
                    _queue_again(state, one)
    state.ghost = None
    for batch in {lease.batch.number: lease.batch for lease in held}.values():
        end_queued_if_due(state, batch)
    # One that has registered and not said yet what it holds is here again.
    placed.on_workers_gone(state)
    gone = sorted(state.awaited - state.workers.keys())
    state.commands += [ForgetWorker(name) for name in gone]
    state.awaited.clear()


def _give_up(state: SchedulerState, one: Part) -> None:
    one.batch.grants.setdefault(one.low, 1)
    info = FailureInfo(
        "WORKER_LOST",
        "the head was restarted, and the worker that may have begun the task has not come back; "
        "with max_retries=0 it is not run again",
    )
    finish(state, one, TaskState.FAILED, failure_payloads(1, info), None)


def _queue_again(state: SchedulerState, part: Part) -> None:
    batch = part.batch
    batch.lease[part.low : part.high] = array("Q", (0,)) * part.count
    state.set_state(part, TaskState.QUEUED)
    state.counters["tasks_requeued_after_restart"] += part.count
    if _waits_for_lease(state, part):
        return
    queue_again(state, batch, part.low, part.high)


def adopt(state: SchedulerState, worker: WorkerRecord, parts: Sequence[HeldRange]) -> Lease | None:
    """Give a worker back what it got from an earlier head, as far as nobody else has it.

    Args:
        state: The scheduler's.
        worker: Who has it.
        parts: All that it holds of one lease.

    Returns:
        The lease under its old number, or None if there is nothing to give back.
    """
    number, batch = parts[0].lease, _batch_of(state, parts)
    if batch is None or number in state.leases:
        return None
    low = parts[0].first - parts[0].offset - batch.first
    count = max(part.offset + part.count for part in parts)
    variant = variant_of(batch.queue, parts[0].alternative)
    # What a task of it has handed in may have ended under this attempt or an earlier one, which
    # nobody knows now: it counts as an earlier one's, and what ended badly is run anew.
    horizon = state.next_outcome
    if parts[0].follows and not _followed_what_counts(state, worker, batch, parts[0]):
        return None
    lease = Lease(number, batch, low, count, max(parts[0].attempt, 1), worker, variant, 0, horizon)
    lease.is_adopted = True
    for part in parts:
        start = low + part.offset
        for begin, end, byte in list(runs(batch.state, start, start + part.count)):
            attempts = letters.attempts_of_before(batch, begin, end, lease.attempt)
            for first, stop, is_past in attempts:
                if byte not in _OPEN or is_past:
                    _drop(state, lease, first, stop)
                else:
                    _take_over(state, lease, first, stop, TaskState(byte))
    if lease.remaining == 0:
        return None
    state.leases[number] = worker.leases[number] = lease
    # What it had before this attempt is not known, and the next one has a higher number.
    batch.lost_attempts = max(batch.lost_attempts, lease.attempt - 1)
    state.counters["tasks_adopted"] += lease.remaining
    return lease


def _batch_of(state: SchedulerState, parts: Sequence[HeldRange]) -> Batch | None:
    """Return the batch that all parts are of, None if there is none or they contradict."""
    head = parts[0]
    known = state.overlapping(head.prefix, head.first, head.count)
    if len(known) != 1:
        return None
    batch = known[0]
    for part in parts:
        start = part.first - batch.first
        if part.prefix != head.prefix or part.first - part.offset != head.first - head.offset:
            return None
        if part.count <= 0 or part.offset < 0 or start < part.offset:
            return None
        if start + part.count > batch.count:
            return None
    return batch


def _take_over(
    state: SchedulerState, lease: Lease, low: int, high: int, present: TaskState
) -> None:
    failed = lease.batch.failed
    if failed and high - low > 1:
        for offset in range(low, high):
            _take_over(state, lease, offset, offset + 1, present)
        return
    if failed.get(low, 0) >= lease.attempt:
        _drop(state, lease, low, high)  # it was charged for: the ack of that has been lost
        return
    if present is TaskState.QUEUED:
        if lease.batch.missing and high - low > 1:
            for offset in range(low, high):
                _take_over(state, lease, offset, offset + 1, present)
            return
        if low in lease.batch.missing and not _makes_what_it_takes(state, lease, low):
            _drop(state, lease, low, high)
            return
        part = Part(lease.batch, low, high, present)
        take_out(state, part)
        _own(state, lease, low, high)
        state.set_state(part, TaskState.LEASED)
        return
    for offset in range(low, high):
        before = state.leases[lease.batch.lease[offset]]
        if before.worker is not state.ghost or lease.worker.worker_id not in state.awaited:
            _drop(state, lease, offset, offset + 1)
            continue
        release(state, before, Part(lease.batch, offset, offset + 1, present))
        _own(state, lease, offset, offset + 1)


def _followed_what_counts(
    state: SchedulerState, worker: WorkerRecord, batch: Batch, held: HeldRange
) -> bool:
    """Whether a task that was granted behind another one has taken what is that one's result.

    The worker may have been given up with both, or two heads have handed out the first: then the
    result of another attempt may count, or another worker be at it.
    """
    taken = batch.inputs[held.first - batch.first] if batch.inputs is not None else b""
    for prefix, sequence in producers_of(taken):
        found = state.find(prefix, sequence)
        if found is None:
            continue
        maker, place = found
        if not TaskState(maker.state[place]).is_terminal:
            if maker.lease[place] != held.follows:
                return False
            continue
        stored = maker.outcomes[maker.lease[place]]
        if stored is not None and stored.worker_id != worker.worker_id:
            return False
    return True


def _makes_what_it_takes(state: SchedulerState, lease: Lease, offset: int) -> bool:
    """Whether what a task takes has ended, or is with its own worker, which tells of it first.

    Else that worker was given up with both: what it has made of it may never be anybody's result.
    """
    assert lease.batch.inputs is not None
    for prefix, sequence in producers_of(lease.batch.inputs[offset]):
        found = state.find(prefix, sequence)
        if found is None or TaskState(found[0].state[found[1]]).is_terminal:
            continue
        maker = state.leases.get(found[0].lease[found[1]])
        if maker is None or maker.worker is not lease.worker:
            return False
    return True


def _drop(state: SchedulerState, lease: Lease, low: int, high: int) -> None:
    """Tell a worker to let go of tasks that it holds."""
    offset = low - lease.low
    state.commands.append(
        CancelLease(lease.worker.worker_id, lease.number, offset, high - low, force=True)
    )


def _own(state: SchedulerState, lease: Lease, low: int, high: int) -> None:
    lease.batch.lease[low:high] = array("Q", (lease.number,)) * (high - low)
    lease.remaining += high - low
    state.charge(lease.worker, lease.variant, high - low)
