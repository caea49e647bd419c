"""Lists of tasks: every filter, page by page."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from helpers.scheduling import PREFIX, Bench
from rustray.common.errors import PayloadError
from rustray.common.ids import TaskId, task_id
from rustray.head.driver import HeadDriver
from rustray.head.journal import MemoryJournal
from rustray.head.listing import list_tasks
from rustray.head.notifications import NotificationManager
from rustray.rpc.api import TaskFilter
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState

FILTERS = [
    TaskFilter(states=states, function=function, worker_id=worker_id)
    for states, function, worker_id in itertools.product(
        ((), (TaskState.QUEUED,), (TaskState.SUCCEEDED, TaskState.LEASED)),
        ("", "g", "nobody"),
        ("", "w-1", "w-2", "w-3"),
    )
]


def a_mixed_driver() -> HeadDriver:
    """Tasks of two functions, some ended, some with one of two workers, some queued."""
    bench = Bench()
    for name in ("w-1", "w-2"):
        bench.join(name, cpus=2)
    bench.submit(7)
    bench.submit(5, TaskClass("f", priority=-1))
    for name in ("w-1", "w-2", "w-1"):
        assert bench.finish_one(bench.workers[name])
    bench.submit(60)
    bench.submit(3, TaskClass("g", wait_for_resources=True))
    return HeadDriver(
        bench.scheduler, NotificationManager(), MemoryJournal(), asyncio.get_running_loop()
    )


@pytest.mark.parametrize("where", FILTERS, ids=str)
@pytest.mark.parametrize("limit", [1, 7, 1000])
async def test_pages_are_the_whole_list_cut_up(where: TaskFilter, limit: int) -> None:
    """Whatever the filter and the size of a page: all that match, in order, each once."""
    driver = a_mixed_driver()
    order = {task_id(PREFIX, number): number for number in range(75)}
    everything = list_tasks(driver, TaskFilter(), "", 1000).tasks
    assert [order[TaskId(task.task_id)] for task in everything] == list(range(75))
    wanted = [
        task.task_id
        for task in everything
        if (not where.states or task.state in where.states)
        and where.function in ("", task.function)
        and where.worker_id in ("", task.worker_id)
    ]
    found: list[str] = []
    cursor = ""
    while True:
        page = list_tasks(driver, where, cursor, limit)
        assert page.total == len(wanted)
        found += [task.task_id for task in page.tasks]
        cursor = page.next_cursor
        if not cursor:
            break
        assert len(page.tasks) == limit
    assert found == wanted


@pytest.mark.parametrize(
    ("cursor", "limit"), [("x", 1), ("1", 1), ("1.", 1), ("-1.0", 1), ("٣.1", 1), ("", 0)]
)
async def test_a_false_cursor_or_limit_is_an_error(cursor: str, limit: int) -> None:
    """What is not a page's own cursor is refused by name."""
    with pytest.raises(PayloadError):
        list_tasks(a_mixed_driver(), TaskFilter(), cursor, limit)
