"""Stopping tasks, wherever they are."""

from __future__ import annotations

from rustray.scheduler.commands import CancelLease, PersistCancel
from rustray.scheduler.completion import cancelled_payloads, finish
from rustray.scheduler.records import Part
from rustray.scheduler.state import SchedulerState, runs, unqueue
from rustray.task.frames import CancelRequest
from rustray.task.state import TaskState


def on_cancel(state: SchedulerState, request: CancelRequest) -> None:
    """Cancel a range of tasks; idempotent, and no effect on tasks that have ended.

    A queued task is CANCELLED at once and never starts. One that a worker has is
    CANCELLING until that confirms; if it ends first, its outcome stands.
    """
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
                if part.state is not TaskState.CANCELLING:
                    state.commands.append(PersistCancel(batch.number, start, part.count))
                for one in part.singles():
                    _cancel_leased(state, one, request.force)


def _cancel_leased(state: SchedulerState, one: Part, force: bool) -> None:
    lease = state.leases[one.batch.lease[one.low]]
    if one.state is not TaskState.CANCELLING:
        state.set_state(one, TaskState.CANCELLING)
    state.commands.append(
        CancelLease(lease.worker.worker_id, lease.number, one.low - lease.low, 1, force)
    )
