"""Stopping tasks, wherever they are."""

from __future__ import annotations

from rustray.scheduler.commands import CancelLease, PersistCancel
from rustray.scheduler.completion import cancelled_payloads, finish
from rustray.scheduler.state import SchedulerState, runs
from rustray.task.frames import CancelRequest
from rustray.task.state import TaskState


def on_cancel(state: SchedulerState, request: CancelRequest, now: float) -> None:
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
            if byte == TaskState.QUEUED:
                batch.queue.queued -= end - start
                finish(
                    state, batch, start, end, TaskState.QUEUED, TaskState.CANCELLED,
                    cancelled_payloads(end - start), None, now,
                )  # fmt: skip
            elif byte < TaskState.SUCCEEDED:
                state.commands.append(
                    PersistCancel(batch.prefix, batch.first + start, end - start)
                )
                for offset in range(start, end):
                    _cancel_leased(state, batch.lease[offset], offset, request.force)


def _cancel_leased(state: SchedulerState, number: int, offset: int, force: bool) -> None:
    lease = state.leases[number]
    batch = lease.batch
    present = TaskState(batch.state[offset])
    if present is not TaskState.CANCELLING:
        state.set_state(batch, offset, offset + 1, present, TaskState.CANCELLING)
    state.commands.append(
        CancelLease(lease.worker.worker_id, number, offset - lease.low, 1, force)
    )
