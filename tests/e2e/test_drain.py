"""Workers that leave in good order."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import rustray
from e2e import functions
from helpers.cluster import Cluster, Node, joined
from helpers.waiting import aeventually

_TASKS = 300


def _leave_by_signal(cluster: Cluster, worker: Node) -> None:
    worker.signal(signal.SIGTERM)


def _leave_by_command(cluster: Cluster, worker: Node) -> None:
    answer = cluster.json("workers", "drain", worker.node_id)
    assert answer == {"worker_id": worker.node_id, "state": "draining"}


@pytest.mark.slow
@pytest.mark.parametrize("leave", [_leave_by_signal, _leave_by_command])
async def test_a_drained_worker_leaves_nothing_undone(tmp_path: Path, leave) -> None:
    """It exits with 0; what it did not begin runs elsewhere, nothing twice, and no retry counts."""
    marks = tmp_path / "marks"
    marks.mkdir()
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        first = cluster.start_worker("a")
        with cluster.as_own():
            async with cluster.head_node() as head:
                await aeventually(lambda: joined(head, 1), 20)
                specs = [
                    rustray.TaskSpec("mark", [str(marks), i, 0.02], max_retries=0)
                    for i in range(_TASKS)
                ]
                ids = await head.submit_tasks_batch(specs)
                await aeventually(lambda: len(functions.executions(marks)) >= 20, 20)
                cluster.start_worker("b")
                await aeventually(lambda: joined(head, 2), 20)
                leave(cluster, first)
                assert first.wait(20) == 0, first.text()
                results = [await head.get_task_result(task_id, 40) for task_id in ids]
                assert [result and result.unwrap() for result in results] == list(range(_TASKS))
                assert {result.attempts for result in results if result} == {1}
                counters = (await head.get_status()).counters
    assert functions.executions(marks) == dict.fromkeys(range(_TASKS), 1)
    assert counters.get("tasks_retried", 0) == 0
    assert counters.get("workers_lost", 0) == 0


@pytest.mark.slow
async def test_a_drain_has_an_end(tmp_path: Path) -> None:
    """What still runs after --drain-timeout is handed back, and another worker runs it."""
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        first = cluster.start_worker("a", "--drain-timeout", "0.5")
        with cluster.as_own():
            async with cluster.head_node() as head:
                await aeventually(lambda: joined(head, 1), 20)
                task_id = await head.submit_task(rustray.TaskSpec("hold", [str(tmp_path), 7]))
                await aeventually(lambda: (tmp_path / "runs-7").exists(), 20)
                first.signal(signal.SIGTERM)
                assert first.wait(20) == 0, first.text()
                (tmp_path / "go").touch()
                cluster.start_worker("b")
                result = await head.get_task_result(task_id, 40)
                assert result is not None
                assert result.unwrap() == 7
                assert result.worker_id.startswith("b-")
