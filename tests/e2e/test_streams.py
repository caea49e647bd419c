"""Generators over a real network, with processes that are killed half-way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rustray
from e2e import functions
from helpers.cluster import Cluster
from helpers.sources import ROOT
from helpers.waiting import aeventually, eventually
from rustray import TaskSpec, TaskState

pytestmark = pytest.mark.slow

count_up = rustray.remote(max_retries=5)(functions.count_up)
LENGTH = 100
PAUSE_S = 0.01


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head and a worker."""
    settings = {"WORKER__CANCEL_NOTICE_S": "0.2"}
    with Cluster(tmp_path_factory.mktemp("cluster"), settings) as made:
        made.start_head()
        made.start_worker("a")
        eventually(lambda: made.json("workers", "list")["workers"], 20)
        yield made


def runs(folder: Path) -> int:
    """Return how often the generator was started."""
    return len(list(folder.glob("run-*")))


def test_items_arrive_while_the_generator_runs(cluster: Cluster, tmp_path: Path) -> None:
    """One item at a time, many at once, and both ways to write a generator."""
    arun = rustray.remote(functions.acount_up)
    with cluster.session():
        refs = count_up.remote(str(tmp_path), LENGTH, PAUSE_S)
        assert rustray.get(next(refs)) == 0
        assert not refs.completed().is_done
        assert list(refs.values()) == list(range(1, LENGTH))
        assert rustray.get(refs.completed()) == LENGTH
        assert list(arun.remote(5_000).values()) == list(range(5_000))


def kill_executor(cluster: Cluster) -> None:
    """Kill what runs the generator."""
    for pid in cluster.workers["a"].executor_pids():
        os.kill(pid, signal.SIGKILL)


def kill_worker(cluster: Cluster) -> None:
    """Kill the worker, and start another one."""
    cluster.workers["a"].kill()
    cluster.start_worker("a")


def kill_head(cluster: Cluster) -> None:
    """Kill the head, and start another one on its journal."""
    cluster.restart_head()


def test_whatever_is_killed_costs_no_item(tmp_path: Path) -> None:
    """Another run goes on behind what the head has; after a head's death even the run goes on."""
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        cluster.start_worker("a")
        eventually(lambda: cluster.json("workers", "list")["workers"], 20)
        with cluster.session():
            for kill, wanted in ((kill_executor, 2), (kill_worker, 2), (kill_head, 1)):
                folder = tmp_path / kill.__name__
                folder.mkdir()
                values = count_up.remote(str(folder), LENGTH, PAUSE_S).values()
                found = [next(values) for _ in range(20)]
                kill(cluster)
                assert found + list(values) == list(range(LENGTH)), kill.__name__
                assert runs(folder) == wanted, kill.__name__


def test_a_consumer_that_leaves_ends_an_endless_generator(cluster: Cluster, tmp_path: Path) -> None:
    """The loop ends early, and nothing runs on."""
    with cluster.session():
        refs = count_up.remote(str(tmp_path), 10**9, 0.0)
        for value in refs.values():
            if value == 300:
                break
        refs.close()
        with pytest.raises(rustray.TaskCancelled):
            rustray.get(refs.completed(), timeout=20)


async def test_any_client_reads_a_registered_generator(cluster: Cluster, tmp_path: Path) -> None:
    """By the task's id; what is read is consumed."""
    with cluster.as_own():
        async with cluster.head_node() as head:
            spec = TaskSpec(
                "count_up", [str(tmp_path), LENGTH, PAUSE_S], num_returns="streaming",
                generator_backpressure_num_objects=10,
            )  # fmt: skip
            task_id = await head.submit_task(spec)
            found = [item async for item in head.stream_task_result(task_id)]
            assert found == list(range(LENGTH))
            result = await head.get_task_result(task_id)
            assert result is not None
            assert result.value == LENGTH
            with pytest.raises(rustray.ObjectLost, match="consumed already"):
                async for _ in head.stream_task_result(task_id):
                    pass
            single = await head.submit_task(TaskSpec("add", [1, 2]))
            with pytest.raises(rustray.PayloadError, match="no generator"):
                async for _ in head.stream_task_result(single):
                    pass
    assert runs(tmp_path) == 1


async def test_a_generator_that_raises_or_is_cancelled_says_so_after_its_items(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Its items stay good; so it is for whoever reads by id."""
    with cluster.as_own():
        async with cluster.head_node() as head:
            spec = TaskSpec("count_up", [str(tmp_path), 10**9, 0.0], num_returns="streaming")
            task_id = await head.submit_task(spec)
            items: list[int] = []

            async def read() -> None:
                async for item in head.stream_task_result(task_id):
                    items.append(item)
                    if len(items) == 100:
                        await head.cancel_task(task_id)

            with pytest.raises(rustray.TaskCancelled):
                await read()
            assert items == list(range(len(items)))
            assert len(items) >= 100
            await aeventually(lambda: _has_ended(head, task_id), 20)


async def _has_ended(head: rustray.HeadNode, task_id: str) -> bool:
    result = await head.get_task_result(task_id, 5.0)
    return result is not None and result.state is TaskState.CANCELLED


def test_the_example_runs() -> None:
    """Batch inference over images by a generator."""
    answer = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "batch_inference.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "64 images" in answer.stdout
