"""Workers and clients that lose the head, and find it again."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import rustray
from e2e import functions
from helpers.cluster import Cluster, joined
from helpers.waiting import aeventually, eventually

_add = rustray.remote(functions.add)
_hold = rustray.remote(functions.hold)


@pytest.mark.slow
async def test_a_pause_shorter_than_the_lease_runs_nothing_again(tmp_path: Path) -> None:
    """A worker that stands still for a while keeps its tasks: each runs once, in one attempt."""
    marks = tmp_path / "marks"
    marks.mkdir()
    settings = {"SCHEDULER__HEARTBEAT_INTERVAL_S": "0.3"}  # the lease: 10 s
    with Cluster(tmp_path, settings) as cluster:
        cluster.start_head()
        worker = cluster.start_worker("a")
        with cluster.as_own():
            async with cluster.head_node() as head:
                await aeventually(lambda: joined(head, 1), 20)
                ids = await head.submit_tasks_batch(
                    [rustray.TaskSpec("mark", [str(marks), i, 0.02]) for i in range(100)]
                )
                eventually(lambda: len(functions.executions(marks)) >= 10, 20)
                worker.signal(signal.SIGSTOP)

                async def is_missed() -> bool:
                    return (await head.list_workers())[0].last_seen_s > 1.5

                await aeventually(is_missed, 10)
                worker.signal(signal.SIGCONT)
                results = [await head.get_task_result(task_id, 30) for task_id in ids]
                assert [result and result.unwrap() for result in results] == list(range(100))
                assert {result.attempts for result in results if result} == {1}
                assert (await head.get_status()).counters["workers_joined"] == 1
    assert functions.executions(marks) == dict.fromkeys(range(100), 1)


@pytest.mark.slow
def test_after_a_restart_of_the_head_all_go_on(tmp_path: Path) -> None:
    """The worker joins the new head by itself, keeps what it runs, and every result arrives."""
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        worker = cluster.start_worker("a")
        with cluster.session():
            eventually(lambda: cluster.json("workers", "list")["workers"], 20)
            done = _add.remote(1, 2)
            assert rustray.get(done, timeout=20) == 3
            held = [_hold.remote(str(tmp_path), i) for i in range(4)]
            eventually(lambda: (tmp_path / "runs-0").exists(), 20)
            # Frames keep their order: with this result here, the tasks before it are acked.
            assert rustray.get(_add.options(num_cpus=0).remote(0, 1), timeout=20) == 1
            cluster.restart_head()
            (tmp_path / "go").touch()
            assert rustray.get(held, timeout=40) == [0, 1, 2, 3]
            runs = [(tmp_path / f"runs-{i}").read_text() for i in range(4)]
            assert runs == ["x"] * 4
            assert rustray.get(_add.remote(20, 22), timeout=40) == 42
            assert rustray.get(done) == 3
            [seen] = cluster.json("workers", "list")["workers"]
            assert (seen["worker_id"], seen["pid"]) == (worker.node_id, worker.pid)


@pytest.mark.slow
def test_a_client_that_leaves_at_once_has_handed_everything_in(tmp_path: Path) -> None:
    """What was submitted before an orderly end is at the head, however much that is.

    Regression: what the pacing of small frames held back was lost.
    """
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        cluster.start_worker("a")
        eventually(lambda: cluster.json("workers", "list")["workers"], 20)
        for count in (1, 300, 3000):
            before = cluster.json("status")["counters"].get("tasks_accepted", 0)
            with cluster.session():
                refs = [_add.remote(number, 1) for number in range(count)]
            after = cluster.json("status")["counters"]["tasks_accepted"]
            assert (len(refs), after - before) == (count, count)


@pytest.mark.slow
def test_a_worker_waits_for_a_head_that_is_not_there_yet(tmp_path: Path) -> None:
    """A worker whose head has gone keeps knocking, however long that takes."""
    with Cluster(tmp_path) as cluster:
        head = cluster.start_head()
        worker = cluster.start_worker("a")
        eventually(lambda: cluster.json("workers", "list")["workers"], 20)
        head.kill()
        eventually(lambda: "the head" in worker.text().partition("joined the head")[2], 20)
        assert worker.is_running
        cluster.start_head(port=cluster.port)
        eventually(lambda: cluster.json("workers", "list")["workers"], 20)
        assert cluster.run("submit", "add", "40", "2", "--wait").stdout == "42\n"
