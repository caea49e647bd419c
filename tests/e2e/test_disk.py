"""A head whose disk is full for a while, or at its end."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import rustray
from helpers.cluster import Cluster, joined
from helpers.waiting import aeventually

pytestmark = pytest.mark.slow

_DISK_MB = 40
_RESERVE_MB = 15


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system of its own, of 40 MB."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it mounts a tmpfs")
    place = tmp_path / "state"
    place.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m,mode=700", "tmpfs", str(place)]
    answer = subprocess.run(mount, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {answer.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", str(place)], check=True)


async def test_below_the_reserve_only_submits_are_refused(small_disk: Path) -> None:
    """What was accepted ends and can be had, a cancel is taken, and room ends the refusals."""
    settings = {"SCHEDULER__DISK_RESERVE_MB": str(_RESERVE_MB)}
    with Cluster(small_disk, settings) as cluster:
        cluster.start_head()
        cluster.start_worker("a")
        ballast = cluster.state_dir / "ballast"
        with cluster.as_own():
            async with cluster.head_node() as head:
                await aeventually(lambda: joined(head, 1), 20)
                held = rustray.TaskSpec("hold", [str(small_disk), 1])
                running = await head.submit_task(held)
                waiting = await head.submit_task(rustray.TaskSpec("hold", [str(small_disk), 2]))
                await aeventually(lambda: (small_disk / "runs-1").exists(), 20)
                with ballast.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, (_DISK_MB - _RESERVE_MB) << 20)
                refusals: list[rustray.ResourceExhausted] = []

                async def is_refused() -> bool:
                    try:
                        await head.submit_task(rustray.TaskSpec("add", [1, 2]))
                    except rustray.ResourceExhausted as error:
                        refusals.append(error)
                        return True
                    return False

                await aeventually(is_refused, 20)
                assert refusals[0].retryable
                assert "disk_reserve_mb" in str(refusals[0])
                await head.cancel_task(waiting)
                (small_disk / "go").touch()
                result = await head.get_task_result(running, 20)
                assert result is not None
                assert result.unwrap() == 1
                assert await is_refused()
                ballast.unlink()

                async def is_taken() -> bool:
                    return not await is_refused()

                await aeventually(is_taken, 20)
        assert cluster.head is not None
        assert cluster.head.is_running
        assert "no new tasks are accepted" in cluster.head.text()
        assert cluster.json("status")["counters"]["submits_refused_disk_full"] >= 2


async def test_a_disk_without_any_room_stops_the_head_and_costs_nothing_acked(
    small_disk: Path,
) -> None:
    """With no reserve the first commit that fails is the end; with room again all is there."""
    with Cluster(small_disk, {"SCHEDULER__DISK_RESERVE_MB": "0"}) as cluster:
        cluster.start_head()
        ballast = cluster.state_dir / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, (_DISK_MB - 5) << 20)
        acked = await _submit_until_the_head_stops(cluster)
        ballast.unlink()
        await _expect_all(cluster, acked)


async def test_a_file_that_may_not_grow_stops_the_head_and_costs_nothing_acked(
    tmp_path: Path,
) -> None:
    """The same without root: a limit on the size of files makes writes fail."""
    with Cluster(tmp_path) as cluster:
        head = cluster.start_head()
        resource.prlimit(head.pid, resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
        acked = await _submit_until_the_head_stops(cluster)
        await _expect_all(cluster, acked)


async def _submit_until_the_head_stops(cluster: Cluster) -> list[str]:
    acked: list[str] = []
    head = cluster.head
    assert head is not None

    async def submit_all(client: rustray.HeadNode) -> None:
        for number in range(1_000):
            spec = rustray.TaskSpec("add", [number, "x" * 100_000], wait_for_resources=True)
            acked.append(await client.submit_task(spec))

    with cluster.as_own():
        async with cluster.head_node() as client:
            submitting = asyncio.create_task(submit_all(client))
            await aeventually(lambda: not head.is_running, 40)
            submitting.cancel()
            await asyncio.wait([submitting])
    assert 5 < len(acked) < 1_000
    assert head.process.returncode != 0
    assert "Nothing was acked since" in head.text()
    assert "Traceback" not in head.text()
    return acked


async def _expect_all(cluster: Cluster, acked: list[str]) -> None:
    cluster.start_head(port=cluster.port)
    with cluster.as_own():
        async with cluster.head_node() as client:
            known = {task.task_id for task in await client.list_tasks()}
            assert known >= set(acked)
