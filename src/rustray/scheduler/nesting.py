"""Tasks that hand in tasks: what they wait for, and what is left of their earlier attempts.

The children of a task are the session whose prefix is made of the task's id
(`rustray.common.ids.child_prefix`), so each attempt finds those of the attempts before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from itertools import groupby

from rustray.common.errors import DuplicateTask
from rustray.common.ids import MAX_SEQUENCE, child_prefix
from rustray.scheduler.completion import owned_runs
from rustray.scheduler.events import TasksSubmitted
from rustray.scheduler.records import DIGEST_BYTES, Batch, WorkerRecord
from rustray.scheduler.stale import lease_of
from rustray.scheduler.state import SchedulerState
from rustray.task.frames import CancelRequest, LeaseRange
from rustray.task.state import TaskState

STALE = DuplicateTask(
    "an earlier attempt of the task has handed in another one under this id, or one that has ended "
    "without a value that could be had now; the attempt takes another id"
)


def on_blocked(state: SchedulerState, worker: WorkerRecord, blocked: LeaseRange) -> None:
    """Take the cores back of tasks that wait for others."""
    lease = lease_of(state, worker, blocked.lease, 1)
    if lease is None:
        return
    for part in owned_runs(state, lease, blocked.offset, blocked.count):
        offsets = set(range(part.low - lease.low, part.high - lease.low))
        known = lease.blocked or set()
        lease.blocked = known | offsets
        state.charge_cores(worker, lease.variant.task_class, -len(offsets - known))


def on_resumed(state: SchedulerState, worker: WorkerRecord, resumed: LeaseRange) -> None:
    """Account the cores again of tasks that go on."""
    lease = worker.leases.get(resumed.lease)
    if lease is not None:
        low = lease.low + resumed.offset
        state.unblock(lease, low, low + resumed.count)


def stale_runs(
    batch: Batch, event: TasksSubmitted, low: int, high: int
) -> Iterator[tuple[int, int, bool]]:
    """Split tasks that are known into runs that can be taken for the same and such that cannot.

    That is only asked of what an attempt hands in after another one: each task is judged by itself.

    Args:
        batch: That has them.
        event: That names them again.
        low: Position in the event of the first.
        high: Position after the last.

    Yields:
        (low, high, whether it is stale), likewise.
    """
    if not event.horizon:
        yield low, high, False
        return
    shift = event.first - batch.first
    names = [blake2b(item, digest_size=DIGEST_BYTES).digest() for item in event.payloads]
    verdicts = [
        _is_stale(batch, position + shift, names[position], event.horizon)
        for position in range(low, high)
    ]
    for is_stale, run in groupby(range(low, high), lambda position: verdicts[position - low]):
        places = list(run)
        yield places[0], places[-1] + 1, is_stale


def _is_stale(batch: Batch, offset: int, name: bytes, horizon: int) -> bool:
    if batch.digests is not None and batch.digests[offset] != name:
        return True
    ended = TaskState(batch.state[offset])
    if not ended.is_terminal:
        return False
    stored = batch.outcomes[batch.lease[offset]]
    if stored is None or stored.is_evicted:
        return True
    return ended is not TaskState.SUCCEEDED and stored.number < horizon


def children_of(
    state: SchedulerState, prefix: bytes, sequence: int, force: bool
) -> CancelRequest | None:
    """Return what cancels all that a task has handed in; None where that is nothing."""
    if not state.nested_batches:
        return None
    children = child_prefix(prefix, sequence)
    if children not in state.sessions:
        return None
    return CancelRequest(children, 0, MAX_SEQUENCE + 1, force)
