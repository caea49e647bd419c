"""`rustray.map` on an embedded cluster: the cases that need real executors."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import rustray


def add(a: int, b: int) -> int:
    """Add."""
    return a + b


pytestmark = pytest.mark.usefixtures("cluster")


def _kill_at(folder: Path, at: int, times: int) -> Any:
    """Return a function that kills its executor at one item, so many times."""

    def run(x: int) -> int:
        if x == at and len(list(folder.glob("death-*"))) < times:
            (folder / f"death-{time.time_ns()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    return run


def test_one_poison_item_does_not_take_its_neighbours_along(tmp_path: Path) -> None:
    """It ends as `TaskPoisoned`, and every other item of its chunk has its result."""
    run = _kill_at(tmp_path, 77, times=100)
    found: list[Any] = list(rustray.map(run, range(200), chunk_size=100, return_exceptions=True))
    assert [x for i, x in enumerate(found) if i != 77] == [i for i in range(200) if i != 77]
    assert isinstance(found[77], rustray.TaskPoisoned)
    assert found[77].item_index == 77
    assert len(list(tmp_path.glob("death-*"))) <= 2 + 1 + 3  # 100, 13, 2 items, and alone


def test_an_executor_that_dies_once_costs_nothing(tmp_path: Path) -> None:
    """Its chunk is split and run again."""
    run = _kill_at(tmp_path, 77, times=1)
    assert list(rustray.map(run, range(200), chunk_size=100)) == list(range(200))


def test_an_executor_killed_from_outside_costs_nothing(tmp_path: Path) -> None:
    """SIGKILL in the middle of a chunk: every item has its result."""

    def run(x: int) -> int:
        (tmp_path / str(os.getpid())).touch()
        time.sleep(0.002)  # the task's work
        return x

    results = rustray.map(run, range(300), chunk_size=100)
    found = list(itertools.islice(results, 1))
    pid = int(next(tmp_path.iterdir()).name)
    os.kill(pid, signal.SIGKILL)
    assert [*found, *results] == list(range(300))


def test_without_retries_a_chunk_that_died_is_lost(tmp_path: Path) -> None:
    """`max_retries=0` says that nothing may run twice, and so it does not."""

    def run(x: int) -> int:
        with (tmp_path / "ran").open("a") as log:
            log.write(f"{x}\n")
        if x == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    options = {"max_retries": 0}
    found: list[Any] = list(
        rustray.map(run, range(20), chunk_size=10, options=options, return_exceptions=True)
    )
    assert all(isinstance(x, rustray.WorkerLost) for x in found[:10])
    assert found[10:] == list(range(10, 20))
    ran = (tmp_path / "ran").read_text().split()
    assert len(ran) == len(set(ran))


def test_a_limit_of_time_hits_the_item_that_hangs() -> None:
    """Its neighbours run in other chunks."""
    found: list[Any] = list(
        rustray.map(
            time.sleep,
            [0, 0, 60, 0, 0, 0, 0, 0],
            chunk_size=8,
            options={"timeout_s": 0.5, "max_retries": 1},
            return_exceptions=True,
        )
    )
    assert isinstance(found[2], rustray.TaskTimeout)
    assert [x for x in found if x is not found[2]] == [None] * 7


def test_coroutines_threads_and_large_results() -> None:
    """Every kind of executor, and results that are larger than a chunk may be."""

    async def later(x: int) -> int:
        await asyncio.sleep(0.001)  # the task's work
        if x == 3:
            raise ValueError("three")
        return x

    found: list[Any] = list(rustray.map(later, range(6), return_exceptions=True))
    assert isinstance(found[3], ValueError)
    assert found[:3] + found[4:] == [0, 1, 2, 4, 5]
    in_thread = rustray.remote(executor="thread")(add)
    assert list(rustray.map(in_thread, [1, 2], [3, 4])) == [4, 6]
    sizes = [len(x) for x in rustray.map(bytes, [3_000_000] * 6, chunk_size=6)]
    assert sizes == [3_000_000] * 6


def test_slow_items_in_one_chunk_are_spread_over_the_slots() -> None:
    """A chunk that turns out to be long gives back what it has not begun."""

    def run(_x: int) -> int:
        time.sleep(0.25)  # the task's work
        return os.getpid()

    pids = list(rustray.map(run, range(8), chunk_size=8))
    assert len(pids) == 8
    assert len(set(pids)) >= 2  # more where one has waited for tasks of its own meanwhile


async def test_amap_runs_there_too() -> None:
    """With an endless input, left early."""
    found = []
    async with rustray.amap(add, itertools.count(), itertools.count()) as results:
        async for value in results:
            found.append(value)
            if len(found) == 500:
                break
    assert found == [2 * x for x in range(500)]


def test_tasks_map_and_give_their_slots_back_meanwhile() -> None:
    """As many tasks as there are slots, each of which waits for a map of its own."""

    @rustray.remote
    def total(n: int) -> int:
        return sum(rustray.map(add, range(n), itertools.repeat(1)))

    @rustray.remote
    async def atotal(n: int) -> int:
        return sum([x async for x in rustray.amap(add, range(n), range(n))])

    expected = [sum(range(1, n + 1)) for n in (10, 20, 30, 40)]
    assert rustray.get([total.remote(n) for n in (10, 20, 30, 40)], timeout=60) == expected
    assert rustray.get([atotal.remote(n) for n in (10, 20)], timeout=60) == [90, 380]
