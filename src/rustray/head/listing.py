"""Lists and sums for people: tasks page by page, the cluster at a glance."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from rustray.common.errors import PayloadError
from rustray.common.resources import ResourceSet
from rustray.head.core import HeadCore
from rustray.head.driver import HeadDriver
from rustray.rpc.api import TaskFilter
from rustray.scheduler.records import Batch
from rustray.scheduler.view import TaskSnapshot, batches_in_order, snapshot
from rustray.task.failures import decode_failure
from rustray.task.state import TaskState
from rustray.task.views import ClusterStatus, TaskPage, TaskView

MAX_PAGE = 10_000
MAX_CURSOR = 64


def list_tasks(driver: HeadDriver, where: TaskFilter, cursor: str, limit: int) -> TaskPage:
    """Return one page of the tasks that match, in order of acceptance.

    Raises:
        PayloadError: the cursor is not one of ours, or the limit is not 1 to 10,000.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise PayloadError(f"limit {limit} is outside 1 to {MAX_PAGE}")
    after_batch, after_offset = _parse_cursor(cursor)
    found: list[TaskView] = []
    total = 0
    next_cursor = ""
    for batch in batches_in_order(driver.scheduler.state, 0):
        if where.function and batch.queue.task_class.function != where.function:
            continue
        if batch.number < after_batch or len(found) == limit:
            matching = _count(driver, where, batch)
            if matching and not next_cursor and len(found) == limit:
                next_cursor = f"{batch.number}.{_offsets(driver, where, batch)[0]}"
            total += matching
            continue
        offsets = _offsets(driver, where, batch)
        total += len(offsets)
        start = bisect_left(offsets, after_offset) if batch.number == after_batch else 0
        taken = offsets[start : start + limit - len(found)]
        found += [_view(driver, snapshot(driver.scheduler.state, batch, one)) for one in taken]
        if start + len(taken) < len(offsets):
            next_cursor = f"{batch.number}.{offsets[start + len(taken)]}"
    return TaskPage(tuple(found), next_cursor, total)


def _parse_cursor(cursor: str) -> tuple[int, int]:
    if not cursor:
        return (0, 0)
    number, dot, offset = cursor.partition(".")
    is_number = all(n.isascii() and n.isdigit() for n in (number, offset))
    if not (dot and is_number and len(cursor) <= MAX_CURSOR):
        raise PayloadError(f"{cursor[:40]!r} is not a cursor of an earlier page")
    return (int(number), int(offset))


def _count(driver: HeadDriver, where: TaskFilter, batch: Batch) -> int:
    """Count the tasks of a batch that match, without a look at each where that can be."""
    if where.worker_id:
        return len(_offsets(driver, where, batch))
    if not where.states:
        return batch.count
    return sum(batch.state.count(int(one)) for one in set(where.states))


def _offsets(driver: HeadDriver, where: TaskFilter, batch: Batch) -> Sequence[int]:
    """Return the tasks of a batch that match, in order."""
    wanted = {int(one) for one in where.states}
    candidates: Sequence[int] = range(batch.count)
    if where.worker_id:
        candidates = _offsets_of_worker(driver, where.worker_id, batch)
    if not wanted:
        return candidates
    return [offset for offset in candidates if batch.state[offset] in wanted]


def _offsets_of_worker(driver: HeadDriver, worker_id: str, batch: Batch) -> Sequence[int]:
    """Return what a worker has or had of a batch; O(its outcomes and leases), not O(tasks)."""
    found: list[int] = []
    for stored in batch.outcomes:
        if stored is not None and stored.worker_id == worker_id:
            found += range(stored.offset, stored.offset + len(stored.payloads))
    worker = driver.scheduler.state.workers.get(worker_id)
    for lease in worker.leases.values() if worker is not None else ():
        if lease.batch is batch:
            found += (
                offset
                for offset in range(lease.low, lease.low + lease.count)
                if batch.lease[offset] == lease.number
                and not TaskState(batch.state[offset]).is_terminal
            )
    return sorted(found)


def _view(driver: HeadDriver, found: TaskSnapshot) -> TaskView:
    code = message = ""
    is_failure = found.state.is_terminal and found.state is not TaskState.SUCCEEDED
    if is_failure and found.payload is not None:
        info = decode_failure(found.payload)
        code, message = info.code, info.message
    clock = driver.clock_offset_s
    finished = None if found.finished_at_s is None else found.finished_at_s + clock
    progress, words = None, ""
    if found.progress is not None:
        progress, words = found.progress.fraction, found.progress.message
    return TaskView(
        found.task_id,
        found.function,
        found.state,
        found.priority,
        found.attempts,
        found.worker_id,
        found.accepted_at_s + clock,
        finished,
        code,
        message,
        progress,
        words,
        found.durability,
    )


def cluster_status(core: HeadCore) -> ClusterStatus:
    """Return the cluster at a glance."""
    state = core.driver.scheduler.state
    total: Counter[str] = Counter()
    used: Counter[str] = Counter()
    for worker in state.workers.values():
        total.update(worker.load.total)
        used.update({name: units for name, units in worker.load.leased.items() if units > 0})
    return ClusterStatus(
        cluster_id=core.identity.cluster_id,
        version=core.identity.version,
        address=core.identity.address,
        uptime_s=core.driver.now() - core.started_at_s,
        security=core.identity.security,
        durability=core.driver.journal.level,
        strategy=state.settings.strategy,
        workers=len(state.workers),
        tasks={one.name: state.counts[one] for one in TaskState},
        resources=ResourceSet(total).amounts(),
        used=ResourceSet(used).amounts(),
        counters=dict(sorted(state.counters.items())),
        max_payload_bytes=state.settings.max_payload_bytes,
        max_retries=state.settings.max_retries,
    )
