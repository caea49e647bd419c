"""Tasks that hand in tasks, on a cluster over gRPC: depth, cancels, retries, restarts."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import rustray
from e2e import nested_functions as nested
from e2e.nested_functions import runs
from helpers.cluster import Cluster
from helpers.sources import ROOT
from helpers.waiting import aeventually, eventually

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head and a worker of two slots."""
    settings = {"WORKER__CANCEL_NOTICE_S": "0"}
    with Cluster(tmp_path_factory.mktemp("cluster"), settings) as made:
        made.start_head()
        made.start_worker("a", cpus=2)
        yield made


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """The same, with a session of this program."""
    with shared.session():
        yield shared


def test_depth_100_on_two_slots(cluster: Cluster) -> None:
    """Each waits for the next one, and two slots are enough."""
    assert rustray.get(nested.depth.remote(100), timeout=120) == 100


def test_a_cancel_takes_the_children_along(cluster: Cluster, tmp_path: Path) -> None:
    """A cancel goes down to what waits below, to any depth."""
    top = nested.grandparent.remote(str(tmp_path), "deep")
    eventually(lambda: runs(tmp_path, "deep") == 1, 20)
    pid = int((tmp_path / "deep").read_text())
    rustray.cancel(top)
    with pytest.raises(rustray.TaskCancelled):
        rustray.get(top, timeout=20)
    eventually(lambda: not psutil.pid_exists(pid), 20)


async def test_a_cancel_that_is_not_recursive_leaves_them(cluster: Cluster, tmp_path: Path) -> None:
    """``recursive=False`` stops the task alone; its child ends by itself."""
    top = nested.parent.remote(str(tmp_path), ["spared"])
    await aeventually(lambda: _async(runs(tmp_path, "spared") == 1), 20)
    rustray.cancel(top, recursive=False)
    with pytest.raises(rustray.TaskCancelled):
        await rustray.aget(top, timeout=20)
    async with cluster.head_node() as head:
        running = await head.list_tasks(function="e2e.nested_functions.child")
        [spared] = [task for task in running if not task.state.is_terminal]
        (tmp_path / "go-spared").touch()
        result = await head.get_task_result(spared.task_id, 20)
    assert result is not None
    assert result.state is rustray.TaskState.SUCCEEDED


async def _async(value: bool) -> bool:
    return value


def test_a_retry_finds_the_children_of_before(cluster: Cluster, tmp_path: Path) -> None:
    """An attempt that hands in the same gets the same tasks: none runs twice."""
    names = ["a", "b"]
    top = nested.dies_once.remote(str(tmp_path), names, names)
    eventually(lambda: runs(tmp_path, "a") == 1, 20)
    (tmp_path / "go-a").touch()
    eventually(lambda: runs(tmp_path, "b") == 1, 20)
    (tmp_path / "die").touch()
    eventually(lambda: runs(tmp_path, "parent") == 2, 20)
    (tmp_path / "go-b").touch()
    assert rustray.get(top, timeout=30) == names
    assert [runs(tmp_path, name) for name in names] == [1, 1]


def test_a_retry_that_goes_another_way_cancels_the_old_one(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Where an attempt hands in something else it gets that, and what is left is stopped."""
    top = nested.dies_once.remote(str(tmp_path), ["same", "old", "older"], ["same", "new"])
    (tmp_path / "go-same").touch()
    (tmp_path / "go-new").touch()
    eventually(lambda: runs(tmp_path, "old") == 1, 20)
    pid = int((tmp_path / "old").read_text())
    (tmp_path / "die").touch()
    assert rustray.get(top, timeout=30) == ["same", "new"]
    assert runs(tmp_path, "same") == 1
    eventually(lambda: not psutil.pid_exists(pid), 20)
    assert runs(tmp_path, "old") == 1


async def test_children_outlive_a_task_that_has_ended(cluster: Cluster, tmp_path: Path) -> None:
    """What a task has handed in is there when it has ended, and can be fetched by its id."""
    task_id = await rustray.aget(nested.leaves.remote(str(tmp_path)), timeout=20)
    (tmp_path / "go-left").touch()
    async with cluster.head_node() as head:
        result = await head.get_task_result(task_id, 20)
    assert result is not None
    assert result.state is rustray.TaskState.SUCCEEDED


def test_heads_and_workers_that_die_while_tasks_wait(tmp_path: Path) -> None:
    """A waiting task's session comes back to the next head, and nothing runs twice.

    A recursion without end is an error that says so, also after that. When the worker dies, its
    tasks run again elsewhere, each once.
    """
    with Cluster(tmp_path, {"SCHEDULER__MAX_TASK_DEPTH": "5"}) as own:
        own.start_head()
        first = own.start_worker("a", cpus=2)
        with own.session():
            top = nested.grandparent.remote(str(tmp_path), "leaf")
            eventually(lambda: runs(tmp_path, "leaf") == 1, 30)
            own.restart_head()
            (tmp_path / "go-leaf").touch()
            assert rustray.get(top, timeout=60) == ["leaf"]
            counts = {name: runs(tmp_path, name) for name in ("grandparent", "parent", "leaf")}
            assert counts == {"grandparent": 1, "parent": 1, "leaf": 1}
            assert rustray.get(nested.depth.remote(5), timeout=60) == 5
            with pytest.raises(rustray.NestedTooDeep, match="max_task_depth is 5"):
                rustray.get(nested.depth.remote(6), timeout=60)
            again = nested.parent.remote(str(tmp_path), ["x"])
            eventually(lambda: runs(tmp_path, "x") == 1, 30)
            own.start_worker("b", cpus=2)
            first.signal(signal.SIGKILL)
            (tmp_path / "go-x").touch()
            assert rustray.get(again, timeout=60) == ["x"]
    assert (runs(tmp_path, "parent"), runs(tmp_path, "x")) == (3, 2)


def test_the_example_runs() -> None:
    """Nested Monte-Carlo: two levels, each as wide as it turns out to need."""
    program = ROOT / "examples" / "nested_monte_carlo.py"
    answer = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=90, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert answer.stdout.count("within") == 3
