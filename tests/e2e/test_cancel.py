"""Cancelling what does not want to end: flag, interrupt, SIGTERM, SIGKILL, and nothing is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import rustray
from helpers.cluster import Cluster, joined
from helpers.waiting import aeventually, eventually
from rustray.task.state import TaskState

pytestmark = pytest.mark.slow

SETTINGS = {
    "WORKER__CANCEL_NOTICE_S": "0.5",
    "WORKER__CANCEL_GRACE_S": "0.5",
    "WORKER__KILL_GRACE_S": "0.5",
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head and a worker that is not patient."""
    with Cluster(tmp_path_factory.mktemp("cluster"), SETTINGS) as made:
        made.start_head()
        made.start_worker("a", cpus=2)
        with made.as_own():
            yield made


def is_gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def pids(folder: Path) -> list[int]:
    """Return the processes that the task has started, once there are any."""
    path = folder / "pids"
    return [int(each) for each in path.read_text().split()] if path.exists() else []


def descendants(started: list[int]) -> list[int]:
    """Return processes with all below them."""
    return started + [
        c.pid for pid in started for c in psutil.Process(pid).children(recursive=True)
    ]


@pytest.mark.parametrize(
    ("looks", "catches", "expected"),
    [
        (True, True, ["flag", "interrupt", "SIGTERM"]),
        (True, False, ["flag", "interrupt"]),
        (False, True, ["interrupt", "SIGTERM"]),
    ],
)
async def test_each_stage_comes_and_nothing_is_left(
    cluster: Cluster, tmp_path: Path, looks: bool, catches: bool, expected: list[str]
) -> None:
    """It is told, interrupted, terminated and killed, with all that it started."""
    async with cluster.head_node() as head:
        await aeventually(lambda: joined(head, 1), 20)
        spec = rustray.TaskSpec("stubborn", [str(tmp_path), looks, catches])
        task_id = await head.submit_task(spec)
        started = eventually(lambda: pids(tmp_path), 20)
        eventually(lambda: len(descendants(started)) >= 5, 20)
        everything = descendants(started)
        assert await head.cancel_task(task_id) is TaskState.CANCELLING
        result = await head.get_task_result(task_id, 30)
        assert result is not None
        assert result.state is TaskState.CANCELLED
        eventually(lambda: all(map(is_gone, everything)), 20)
    assert (tmp_path / "notes").read_text().split() == expected


async def test_force_kills_at_once(cluster: Cluster, tmp_path: Path) -> None:
    """Nobody is asked."""
    async with cluster.head_node() as head:
        await aeventually(lambda: joined(head, 1), 20)
        task_id = await head.submit_task(rustray.TaskSpec("stubborn", [str(tmp_path), True, True]))
        started = eventually(lambda: pids(tmp_path), 20)
        eventually(lambda: len(descendants(started)) >= 5, 20)
        everything = descendants(started)
        await head.cancel_task(task_id, force=True)
        result = await head.get_task_result(task_id, 30)
        assert result is not None
        assert result.state is TaskState.CANCELLED
        eventually(lambda: all(map(is_gone, everything)), 20)
    assert not (tmp_path / "notes").exists()


@pytest.mark.parametrize("ending", ["return", "raise"])
async def test_a_task_that_looks_may_end_by_itself(
    cluster: Cluster, tmp_path: Path, ending: str
) -> None:
    """What it returns then is its result; to be CANCELLED it raises what would be raised in it."""
    async with cluster.head_node() as head:
        await aeventually(lambda: joined(head, 1), 20)
        task_id = await head.submit_task(rustray.TaskSpec("polite", [str(tmp_path), ending]))
        eventually((tmp_path / "running").exists, 20)
        await head.cancel_task(task_id)
        result = await head.get_task_result(task_id, 30)
        assert result is not None
        if ending == "return":
            assert (result.state, result.value) == (TaskState.SUCCEEDED, "stopped early")
        else:
            assert result.state is TaskState.CANCELLED


@pytest.mark.parametrize("limit", [None, 1.0])
async def test_what_an_obedient_task_has_started_ends_with_it(
    cluster: Cluster, tmp_path: Path, limit: float | None
) -> None:
    """Cancelled or out of time: the task obeys at once, and its child does not survive it."""
    async with cluster.head_node() as head:
        await aeventually(lambda: joined(head, 1), 20)
        spec = rustray.TaskSpec("leaves_a_child", [str(tmp_path)], timeout_s=limit)
        task_id = await head.submit_task(spec)
        [child] = eventually(lambda: pids(tmp_path), 20)
        if limit is None:
            await head.cancel_task(task_id)
        result = await head.get_task_result(task_id, 30)
        assert result is not None
        assert result.state is (TaskState.CANCELLED if limit is None else TaskState.TIMED_OUT)
        eventually(lambda: is_gone(child), 20)
