"""A wall clock that jumps by years, at the head's machine or at a worker's (F23)."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import rustray
from chaos.shim import Shim
from helpers.cluster import COMMAND_TIMEOUT_S, FUNCTIONS, Cluster, Node, joined
from helpers.waiting import aeventually

pytestmark = pytest.mark.slow

TEN_YEARS_S = 10 * 365 * 86_400
YEAR_S = 365 * 86_400
_TTL_S = 2.0
_JUMPED_S = 2 * _TTL_S
_SETTINGS = {
    "SCHEDULER__LEASE_TTL_S": str(_TTL_S),
    "SCHEDULER__HEARTBEAT_INTERVAL_S": "0.4",
}


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    """A clock for some of the processes."""
    folder = tmp_path / "shim"
    folder.mkdir()
    made = Shim(folder)
    if made.missing:
        pytest.skip(made.missing)
    yield made
    made.close()


@pytest.mark.parametrize("jump_s", [TEN_YEARS_S, -TEN_YEARS_S], ids=["+10y", "-10y"])
@pytest.mark.parametrize("who", ["head", "worker"])
async def test_a_jump_of_ten_years_ends_nothing(
    tmp_path: Path, shim: Shim, who: str, jump_s: int
) -> None:
    """No lease ends, work goes on as before, and so does it when the clock is right again."""
    at_head = shim.environment if who == "head" else {}
    at_worker = shim.environment if who == "worker" else {}
    with Cluster(tmp_path, _SETTINGS) as cluster:
        head = _start_head(cluster, at_head)
        worker = cluster.start_worker("a", cpus=2, functions=FUNCTIONS, state_dir=None, **at_worker)
        with cluster.as_own():
            async with cluster.head_node() as client:
                await aeventually(lambda: joined(client, 1), 20)
                held = await client.submit_task(rustray.TaskSpec("hold", [str(tmp_path), 1]))
                await aeventually(lambda: (tmp_path / "runs-1").exists(), 20)
                shim.set(clock_offset_s=jump_s)
                done = 0
                until = time.monotonic() + _JUMPED_S
                while time.monotonic() < until:
                    limited = rustray.TaskSpec("add", [done, 1], timeout_s=30, total_timeout_s=60)
                    task = await client.submit_task(limited)
                    result = await client.get_task_result(task, 20)
                    assert result is not None
                    assert result.unwrap() == done + 1
                    done += 1
                # New connections too: a clock that is right finds nothing wrong with the head.
                assert cluster.run("status").returncode == 0
                shim.set(clock_offset_s=0)
                (tmp_path / "go").touch()
                result = await client.get_task_result(held, 20)
                assert result is not None
                assert result.unwrap() == 1
                assert result.attempts == 1
                assert [one.worker_id for one in await client.list_workers()] == [worker.node_id]
        assert (tmp_path / "runs-1").read_text() == "x"
        counters = cluster.json("status")["counters"]
        assert not counters.get("workers_lost")
        assert head.is_running
        assert worker.is_running
        for node in (head, worker):
            assert "Traceback" not in node.text()
        if who == "head":
            assert "wall clock of this machine has jumped" in head.text()
        assert "another session" not in worker.text()


@pytest.mark.parametrize("jump_s", [TEN_YEARS_S, -TEN_YEARS_S], ids=["+10y", "-10y"])
def test_what_starts_while_the_clock_is_wrong_says_so(
    tmp_path: Path, shim: Shim, jump_s: int
) -> None:
    """Commands and heads name the clock, and change nothing; with the clock right all is there."""
    with Cluster(tmp_path, _SETTINGS) as cluster:
        head = cluster.start_head()
        cluster.start_worker("a")
        task = cluster.json("submit", "add", "1", "2", "--wait")["task_id"]
        shim.set(clock_offset_s=jump_s)
        answer = _run(cluster, shim, "status")
        assert answer.returncode == 3, answer.stderr
        assert "clock" in answer.stderr
        head.end()
        answer = _run(cluster, shim, "head", "--port", "0")
        assert answer.returncode == 2, answer.stderr
        assert "clock" in answer.stderr
        cluster.start_head(port=cluster.port)
        assert cluster.json("tasks", "get", task)["value"] == 3


@pytest.mark.parametrize("jump_s", [-3000, 7200], ids=["-50min", "+2h"])
async def test_a_head_that_started_with_a_wrong_clock_is_well_when_that_is_set_right(
    tmp_path: Path, shim: Shim, jump_s: int
) -> None:
    """As a machine does that hears the time some seconds after its start: tokens are good then."""
    with Cluster(tmp_path, _SETTINGS) as cluster:
        head = _start_head(cluster, shim.environment)
        worker = cluster.start_worker("a")
        with cluster.as_own():
            async with cluster.head_node() as client:
                await aeventually(lambda: joined(client, 1), 20)
                held = await client.submit_task(rustray.TaskSpec("hold", [str(tmp_path), 1]))
                await aeventually(lambda: (tmp_path / "runs-1").exists(), 20)
        shim.set(clock_offset_s=jump_s)
        head.kill()
        head = _start_head(cluster, shim.environment, cluster.port)
        shim.set(clock_offset_s=0)
        with cluster.as_own():
            async with cluster.head_node() as client:
                await aeventually(lambda: joined(client, 1), 30)
                (tmp_path / "go").touch()
                result = await client.get_task_result(held, 20)
                assert result is not None
                assert result.attempts == 1
        assert worker.is_running
        assert "Traceback" not in head.text()


def test_a_head_that_ran_a_year_ahead_has_deleted_nothing(tmp_path: Path, shim: Shim) -> None:
    """Results are older than their time to live then; they are there, then and afterwards."""
    with Cluster(tmp_path, _SETTINGS) as cluster:
        cluster.start_head().end()
        port = 0
        tasks: list[str] = []
        for offset_s in (0, YEAR_S, 0):
            shim.set(clock_offset_s=offset_s)
            head = _start_head(cluster, shim.environment, port)
            port = cluster.port
            # The worker's clock and the commands' are always right.
            worker = cluster.start_worker(f"a{len(tasks)}")
            done = cluster.json("submit", "add", str(len(tasks)), "0", "--wait")
            tasks.append(done["task_id"])
            for number, task in enumerate(tasks):
                assert cluster.json("tasks", "get", task)["value"] == number
            worker.end()
            head.end()


def _start_head(cluster: Cluster, env: dict[str, str], port: int = 0) -> Node:
    node = cluster.launch(
        "head", ["-m", "rustray", "head", "--port", str(port)], state_dir=None, **env
    )
    return cluster.adopt_head(node)


def _run(cluster: Cluster, shim: Shim, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rustray", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        cwd=cluster.directory,
        env=cluster.environment(None, **shim.environment),
        check=False,
    )
