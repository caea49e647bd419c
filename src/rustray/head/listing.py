"""Lists and sums for people: tasks page by page, the cluster at a glance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

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
    for batch, offset in _matching(driver, where):
        total += 1
        if (batch.number, offset) < (after_batch, after_offset):
            continue
        if len(found) == limit:
            next_cursor = next_cursor or f"{batch.number}.{offset}"
            continue
        found.append(_view(driver, snapshot(driver.scheduler.state, batch, offset)))
    return TaskPage(tuple(found), next_cursor, total)


def _parse_cursor(cursor: str) -> tuple[int, int]:
    if not cursor:
        return (0, 0)
    number, dot, offset = cursor.partition(".")
    if not (
        dot and number.isascii() and number.isdigit() and offset.isascii() and offset.isdigit()
    ):
        raise PayloadError(f"{cursor[:40]!r} is not a cursor of an earlier page")
    return (int(number), int(offset))


def _matching(driver: HeadDriver, where: TaskFilter) -> Iterator[tuple[Batch, int]]:
    state = driver.scheduler.state
    wanted = {int(one) for one in where.states}
    for batch in batches_in_order(state, 0):
        if where.function and batch.queue.task_class.function != where.function:
            continue
        for offset in range(batch.count):
            if wanted and batch.state[offset] not in wanted:
                continue
            if where.worker_id and _worker_of(driver, batch, offset) != where.worker_id:
                continue
            yield batch, offset


def _worker_of(driver: HeadDriver, batch: Batch, offset: int) -> str:
    return snapshot(driver.scheduler.state, batch, offset).worker_id


def _view(driver: HeadDriver, found: TaskSnapshot) -> TaskView:
    code = message = ""
    is_failure = found.state.is_terminal and found.state is not TaskState.SUCCEEDED
    if is_failure and found.payload is not None:
        info = decode_failure(found.payload)
        code, message = info.code, info.message
    clock = driver.clock_offset_s
    finished = None if found.finished_at_s is None else found.finished_at_s + clock
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
    )
