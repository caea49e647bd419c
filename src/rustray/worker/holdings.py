"""What a worker answers for when it meets a head."""

from __future__ import annotations

from rustray.common.ids import SessionPrefix, TaskId, task_id
from rustray.task.frames import HeldRange, LeaseRange
from rustray.worker.events import DIRECT_LEASES
from rustray.worker.records import closed_lease, merge_ranges
from rustray.worker.state import WorkerState


def held_ranges(state: WorkerState) -> list[HeldRange]:
    """List all that was leased to the worker and is not told: queued, running, or ended."""
    # What was returned is not held: the head may have given it to somebody else long ago.
    found = list(state.outbox.ended_ranges())
    for lane in state.backlog.lanes.values():
        found += [LeaseRange(s.lease.number, s.low, s.high - s.low) for s in lane.segments]
    for leases in state.followers.values():
        found += [LeaseRange(lease.number, 0, 1) for lease in leases if not lease.is_along]
    for executor in state.executors.values():
        found += [LeaseRange(s.lease.number, s.low, s.high - s.low) for s in executor.pieces()]
    merged = merge_ranges([r for r in found if r.lease < DIRECT_LEASES])
    return [held for each in merged if (held := _named(state, each)) is not None]


def _named(state: WorkerState, part: LeaseRange) -> HeldRange | None:
    """Name tasks so that a head knows them which has not granted them."""
    lease = state.leases.get(part.lease)
    found = closed_lease(lease) if lease is not None else state.closed.get(part.lease)
    if found is None:
        return None  # so long ago that no head would want it
    prefix, first, *rest = found
    return HeldRange(part.lease, part.offset, part.count, prefix, first + part.offset, *rest)


def staying(state: WorkerState, lease: int, offset: int) -> tuple[TaskId, int] | None:
    """Return (task id, lease) of a task whose large result may stay here, or None."""
    found = state.leases.get(lease)
    if found is None or not found.work.task_class.results_stay or lease >= DIRECT_LEASES:
        return None
    return task_id(SessionPrefix(found.prefix), found.first + offset), lease
