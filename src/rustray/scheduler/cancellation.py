"""Stopping tasks, wherever they are."""

from __future__ import annotations

from rustray.scheduler.commands import CancelLease, PersistCancel
from rustray.scheduler.completion import cancelled_payloads, finish
from rustray.scheduler.credit import credits_of
from rustray.scheduler.nesting import children_of
from rustray.scheduler.records import Lease, Part, WorkerRecord
from rustray.scheduler.state import SchedulerState, runs, unqueue
from rustray.task.frames import CancelRequest
from rustray.task.state import TaskState


def on_cancel(state: SchedulerState, request: CancelRequest) -> None:
    """Cancel a range of tasks; idempotent, and no effect on tasks that have ended.

    A queued task is CANCELLED at once and never starts. One that a worker has is
    CANCELLING until that confirms; if it ends first, its outcome stands. What the tasks have
    handed in is cancelled with them.
    """
    todo = [request]
    while todo:
        one = todo.pop()
        for part in _cancel_range(state, one):
            for offset in range(part.low, part.high) if state.nested_batches else ():
                sequence = part.batch.first + offset
                children = children_of(state, part.batch.prefix, sequence, one.force)
                if children is not None and not one.spares_children:
                    todo.append(children)


def _cancel_range(state: SchedulerState, request: CancelRequest) -> list[Part]:
    """Cancel tasks, and return those that had not ended."""
    found: list[Part] = []
    for batch in state.overlapping(request.prefix, request.first, request.count):
        low = max(request.first - batch.first, 0)
        high = min(request.first + request.count - batch.first, batch.count)
        if batch.unfinished == 0:
            continue
        for start, end, byte in list(runs(batch.state, low, high)):
            part = Part(batch, start, end, TaskState(byte))
            if part.state is TaskState.QUEUED:
                unqueue(state, part)
                finish(state, part, TaskState.CANCELLED, cancelled_payloads(part.count), None)
            elif not part.state.is_terminal:
                _cancel_held(state, part, request.force)
            else:
                continue
            found.append(part)
    return found


def _cancel_held(state: SchedulerState, part: Part, force: bool) -> None:
    batch, offsets = part.batch, range(part.low, part.high)
    is_firmer = force and not batch.forced.issuperset(offsets)
    if part.state is not TaskState.CANCELLING or is_firmer:
        state.commands.append(PersistCancel(batch.number, part.low, part.count, force))
    if is_firmer:
        batch.forced |= set(offsets)
    for one in part.singles():
        if one.state is not TaskState.CANCELLING:
            state.set_state(one, TaskState.CANCELLING)
        state.commands.append(_stop(state.leases[batch.lease[one.low]], one.low))


def remind(state: SchedulerState, worker: WorkerRecord) -> None:
    """Tell a worker that is back what it may have missed: stops, and how far streams are."""
    for lease in worker.leases.values():
        state.commands += stops_of(lease)
        state.commands += credits_of(lease)


def stops_of(lease: Lease) -> list[CancelLease]:
    """Return what its worker is to be told of the tasks of a lease that are to stop."""
    batch, end = lease.batch, lease.low + lease.count
    return [
        _stop(lease, offset)
        for low, high, byte in runs(batch.state, lease.low, end)
        if byte == TaskState.CANCELLING
        for offset in range(low, high)
        if batch.lease[offset] == lease.number
    ]


def _stop(lease: Lease, offset: int) -> CancelLease:
    force = offset in lease.batch.forced
    return CancelLease(lease.worker.worker_id, lease.number, offset - lease.low, 1, force)
