"""I7: two attempts of an exclusive task never overlap, with real processes and a real partition."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import rustray
from helpers.cluster import Cluster, Node, joined
from helpers.cut_line import CutLine
from helpers.waiting import aeventually, eventually

pytestmark = pytest.mark.slow

SETTINGS = {"SCHEDULER__LEASE_TTL_S": "4", "SCHEDULER__HEARTBEAT_INTERVAL_S": "0.5"}


def attempts(diary: Path) -> dict[int, tuple[int, float, float]]:
    """Return attempt to fence, first and last time at which it was alive."""
    found: dict[int, tuple[int, float, float]] = {}
    for line in diary.read_text().splitlines() if diary.exists() else ():
        words = line.split()
        if len(words) == 3:  # else the process was killed while it wrote the line
            attempt, fence, now = int(words[0]), int(words[1]), float(words[2])
            first = found.get(attempt, (fence, now, now))[1]
            found[attempt] = (fence, first, now)
    return found


async def _run(
    tmp_path: Path, cluster: Cluster, *, exclusive: bool, trouble: Callable[[], None]
) -> dict[int, tuple[int, float, float]]:
    diary = tmp_path / "diary"
    async with cluster.head_node() as head:
        await aeventually(lambda: joined(head, 1), 20)
        spec = rustray.TaskSpec("diary", [str(diary), 1.0], exclusive=exclusive)
        task_id = await head.submit_task(spec)
        eventually(lambda: 1 in attempts(diary), 20)
        cluster.start_worker("b")
        trouble()
        result = await head.get_task_result(task_id, 60)
        assert result is not None
        assert result.unwrap() == 2
    return attempts(diary)


@pytest.mark.parametrize("exclusive", [True, False])
async def test_a_partition(tmp_path: Path, exclusive: bool) -> None:
    """The worker is cut off and both ends think that the line stands: the task stops in time.

    Without the option the two attempts overlap: the partition is a real one.
    """
    with Cluster(tmp_path, SETTINGS) as cluster:
        cluster.start_head()
        with CutLine(cluster.port) as line, cluster.as_own():
            cluster.start_worker("a", "--head", f"rustray://127.0.0.1:{line.port}")
            found = await _run(tmp_path, cluster, exclusive=exclusive, trouble=line.cut)
    assert sorted(found) == [1, 2]
    assert found[1][0] < found[2][0]
    overlap_s = found[1][2] - found[2][1]
    assert overlap_s < 0 if exclusive else overlap_s > 0, found


def _stop(node: Node) -> None:
    """Let the agent of a worker stand still; the processes that it has started go on."""
    os.kill(node.pid, signal.SIGSTOP)


async def test_an_agent_that_stands_still(tmp_path: Path) -> None:
    """The executor goes on meanwhile, and the zygote ends it."""
    with Cluster(tmp_path, SETTINGS) as cluster:
        cluster.start_head()
        with cluster.as_own():
            worker = cluster.start_worker("a")
            found = await _run(tmp_path, cluster, exclusive=True, trouble=lambda: _stop(worker))
    assert sorted(found) == [1, 2]
    assert found[1][2] < found[2][1], found


async def test_an_agent_that_is_killed(tmp_path: Path) -> None:
    """The head knows at once that it is dead, and waits for the end of the lease all the same."""
    with Cluster(tmp_path, SETTINGS) as cluster:
        cluster.start_head()
        with cluster.as_own():
            worker = cluster.start_worker("a")
            found = await _run(tmp_path, cluster, exclusive=True, trouble=worker.kill)
    assert sorted(found) == [1, 2]
    assert found[2][1] - found[1][2] > 1.0, found
