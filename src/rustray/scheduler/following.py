"""Chains go to their worker together: what takes a result goes along to who is making it.

A task that only lacks the result of one which a worker has just been given is leased to that worker
too, and the one after it, and so on. The worker begins each as soon as the one before has ended, so
that a chain costs no round trip for each of its links. A task that *follows* holds nothing of its
worker until then. If what it follows ends in another way, the worker gives it back.

Only where nothing waits for a worker: else the round trip is hidden by other work. And only the one
task that takes a result: where several do, others may run them.
"""

from __future__ import annotations

from rustray.scheduler.commands import CancelLease
from rustray.scheduler.completion import cancelled_payloads, finish, release, take_from
from rustray.scheduler.inputs import queue_again
from rustray.scheduler.placement import lease_run
from rustray.scheduler.records import Batch, Lease, Part
from rustray.scheduler.state import SchedulerState
from rustray.task.inputs import ID_BYTES, WHOLE, unpack_inputs
from rustray.task.state import TaskState

LINKS = 64
"""Tasks that follow those of one lease, at most."""
MOST = 1_024
"""Those of one worker: each is listed when it comes back."""


def run(state: SchedulerState) -> None:
    """Lease what follows the tasks that have just been leased, and more of what is half done."""
    fresh, state.fresh = state.fresh, []
    if state.blocked:
        return
    for lease in fresh:
        if lease.is_halfway:
            end = _end_of(lease)
            is_there = end.number in state.leases and end.worker.state == "ready"
            if is_there and end.worker.load.load <= 1.0:
                _extend(state, end, end.low, LINKS // 2)
            continue
        left = LINKS
        for offset in range(lease.low, lease.low + lease.count):
            left -= _extend(state, lease, offset, left)


def _end_of(lease: Lease) -> Lease:
    """Return the last of the chain that a worker has."""
    while lease.followers:
        lease = lease.followers[0]
    return lease


def _extend(state: SchedulerState, lease: Lease, offset: int, most: int) -> int:
    """Lease up to so many links of the chain that goes on behind a task; returns how many."""
    for count in range(most):
        found = _next(lease, offset)
        if found is None or lease.worker.followers >= MOST:
            return count
        batch, place = found
        del batch.missing[place]
        state.set_aside -= 1
        after, offset = (lease, offset), place
        lease = lease_run(state, lease.variant, lease.worker, batch, place, place + 1, after)
        lease.is_halfway = count == max(most - LINKS // 2, 0)
    return most


def _next(lease: Lease, offset: int) -> tuple[Batch, int] | None:
    """Return the one task that takes what a leased one makes, if it may follow it."""
    queue = lease.batch.queue
    task_class = queue.task_class
    if task_class.max_retries == 0 or task_class.exclusive or task_class.stream_window:
        return None
    if len(queue.variants) > 1 or task_class.num_returns > 1:
        return None
    waiting = lease.batch.dependants.of(offset)
    if len(waiting) != 1:
        return None
    batch, place = waiting[0]
    is_ready = batch.state[place] == TaskState.QUEUED and batch.missing.get(place) == 1
    if batch.queue is not queue or not is_ready or batch.inputs is None:
        return None
    taken = batch.inputs[place]
    if len(taken) != ID_BYTES or next(unpack_inputs(taken)).index != WHOLE:
        return None
    return batch, place


def take_back(state: SchedulerState) -> None:
    """Queue tasks again that followed one which has ended without a value, whatever was said."""
    orphans, state.orphans = state.orphans, []
    for batch, offset in orphans:
        present = TaskState(batch.state[offset])
        lease = None if present.is_terminal else state.leases.get(batch.lease[offset])
        if lease is None or lease.batch is not batch or not lease.is_behind:
            continue
        part = Part(batch, offset, offset + 1, present)
        release(state, lease, part)
        worker_id = lease.worker.worker_id
        state.commands.append(CancelLease(worker_id, lease.number, 0, 1, force=True))
        if present is TaskState.CANCELLING:
            finish(state, part, TaskState.CANCELLED, cancelled_payloads(1), lease.worker)
        else:
            take_from(state, lease, part)
            queue_again(state, batch, offset, offset + 1)
