"""`rustray.map` over the network: head, workers and client as processes of their own."""

from __future__ import annotations

import itertools
import os
import signal
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rustray
from e2e import functions
from helpers.cluster import Cluster
from helpers.waiting import eventually

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.start_head()
        cluster.start_worker("a", cpus=2)
        eventually(lambda: cluster.json("workers", "list")["workers"], 20)
        with cluster.session():
            yield cluster


@pytest.fixture(autouse=True)
def cluster(_cluster: Cluster) -> Cluster:
    """Head and worker with two cores, shared by the tests of this module."""
    return _cluster


def _kill_at(folder: Path, at: int, times: int) -> Any:
    """Return a function that kills its executor at one item, so many times."""

    def run(x: int) -> int:
        if x == at and len(list(folder.glob("death-*"))) < times:
            (folder / f"death-{time.time_ns()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    return run


def test_many_items_come_in_order() -> None:
    """More than fit into one chunk of the largest size."""
    results = rustray.map(functions.add, range(100_000), itertools.repeat(1))
    assert list(results) == list(range(1, 100_001))
    assert list(rustray.map(str, range(3000))) == [str(x) for x in range(3000)]


def test_one_poison_item_does_not_take_its_neighbours_along(tmp_path: Path) -> None:
    """It ends as `TaskPoisoned`, and every other item of its chunk has its result."""
    run = _kill_at(tmp_path, 77, times=100)
    found: list[Any] = list(rustray.map(run, range(200), chunk_size=100, return_exceptions=True))
    assert [x for i, x in enumerate(found) if i != 77] == [i for i in range(200) if i != 77]
    assert isinstance(found[77], rustray.TaskPoisoned)
    assert found[77].item_index == 77
    assert "(3 more died before, under chunks" in "".join(traceback.format_exception(found[77]))
    assert len(list(tmp_path.glob("death-*"))) <= 2 + 1 + 3  # 100, 13, 2 items, and alone


def test_a_consumer_that_leaves_stops_the_work(tmp_path: Path) -> None:
    """What is under way is cancelled, and the slots are free at once."""

    def linger(x: int) -> int:
        if x:
            (tmp_path / f"began-{x}").touch()
            time.sleep(600)  # the task's work
        return x

    results = rustray.map(linger, itertools.count(), chunk_size=1)
    assert next(results) == 0
    eventually(lambda: len(list(tmp_path.iterdir())) >= 2)
    results.close()
    later = [rustray.remote(functions.add).remote(i, i) for i in range(4)]
    assert rustray.get(later, timeout=30) == [0, 2, 4, 6]


def test_registered_functions_work_by_name(cluster: Cluster) -> None:
    """Where a worker offers them, and where none does the error says so at once."""
    bare = cluster.start_worker("bare", cpus=4, functions="")
    found: Any = rustray.map("add", range(400), range(400), chunk_size=5)
    assert list(found) == list(range(0, 800, 2))
    with pytest.raises(rustray.FunctionNotFound, match="did you mean 'add'"):
        next(rustray.map("ad", [1], [2]))
    bare.kill()


def test_a_lost_worker_costs_nothing(cluster: Cluster) -> None:
    """SIGKILL to one of two workers in the middle: each item once in the results, in order."""
    other = cluster.start_worker("b", cpus=2)
    results = rustray.map(functions.work, range(600), itertools.repeat(0.002), chunk_size=20)
    found = list(itertools.islice(results, 50))
    other.kill()
    assert [*found, *results] == list(range(600))


async def test_a_head_node_maps_by_name(cluster: Cluster) -> None:
    """Registered functions, without code and without pickle; leaving early cancels."""
    async with cluster.head_node() as head:
        results = head.map("add", range(100), itertools.count())
        assert [x async for x in results] == [2 * x for x in range(100)]
        found = [x async for x in head.map("divide", [1, 1], [2, 0], return_exceptions=True)]
        assert found[0] == 0.5
        assert isinstance(found[1], ZeroDivisionError)


def test_an_executor_maps_in_chunks(cluster: Cluster) -> None:
    """On a cluster the chunk size of `Executor.map` adapts itself."""
    with rustray.Executor(cluster.address) as executor:
        assert list(executor.map(functions.add, range(20_000), itertools.repeat(1))) == list(
            range(1, 20_001)
        )
