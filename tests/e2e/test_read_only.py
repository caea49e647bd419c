"""A state directory that cannot be written, or is somebody else's (F22)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

import rustray
from helpers.cluster import Cluster, joined
from helpers.mounts import fail_disk, own_disk, read_only_at, repair_disk
from helpers.waiting import aeventually

pytestmark = pytest.mark.slow

_USAGE = 2
_UNAVAILABLE = 3


@pytest.mark.parametrize("is_used", [True, False], ids=["of an earlier head", "empty"])
def test_a_read_only_state_directory_is_refused(tmp_path: Path, is_used: bool) -> None:
    """The head does not start: exit code 2, and what to do; what is there stays as it is."""
    with Cluster(tmp_path) as cluster:
        through = read_only_at(cluster.directory)
        if is_used:
            cluster.start_head().end()
        else:
            cluster.state_dir.mkdir(mode=0o700)
        before = _content(cluster.state_dir)
        log = cluster.launch("refused", ["-m", "rustray", "head", "--port", "0"], through=through)
        assert log.wait() == _USAGE
        assert "Read-only file system" in log.text()
        assert "mount it for writing" in log.text()
        assert "--state-dir" in log.text()
        assert "Traceback" not in log.text()
        assert _content(cluster.state_dir) == before
        if is_used:
            cluster.start_head()


def test_a_state_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """The same where the place in which it would be made is read-only."""
    with Cluster(tmp_path) as cluster:
        through = read_only_at(cluster.directory)
        log = cluster.launch("refused", ["-m", "rustray", "head", "--port", "0"], through=through)
        assert log.wait() == _USAGE
        assert "cannot create the state directory" in log.text()
        assert "Read-only file system" in log.text()
        assert "Traceback" not in log.text()


def test_a_foreign_or_open_state_directory_is_refused(tmp_path: Path) -> None:
    """Exit code 2, whose it is, and the command that mends it."""
    with Cluster(tmp_path) as cluster:
        cluster.state_dir.mkdir(mode=0o700)
        cluster.state_dir.chmod(0o777)
        answer = cluster.run("head", "--port", "0")
        assert answer.returncode == _USAGE
        assert f"chmod 700 {cluster.state_dir}" in answer.stderr
        if os.geteuid() != 0:
            pytest.skip("needs root: it gives a directory to another user")
        cluster.state_dir.chmod(0o700)
        os.chown(cluster.state_dir, 12_345, -1)
        answer = cluster.run("head", "--port", "0")
        assert answer.returncode == _USAGE
        assert "belongs to user id 12345" in answer.stderr


async def test_a_disk_that_turns_read_only_stops_the_head_and_costs_nothing_acked(
    tmp_path: Path,
) -> None:
    """As a commit that fails: no ack, exit code 3, and what to do; after a repair all is there."""
    settings = {"SCHEDULER__DISK_RESERVE_MB": "0"}
    with own_disk(tmp_path / "state"), Cluster(tmp_path, settings) as cluster:
        head = cluster.start_head()
        cluster.start_worker("a")
        acked: list[str] = []

        async def submit_all(client: rustray.HeadNode) -> None:
            while True:
                acked.append(await client.submit_task(rustray.TaskSpec("add", [len(acked), 1])))

        with cluster.as_own():
            async with cluster.head_node() as client:
                await aeventually(lambda: joined(client, 1), 20)
                submitting = asyncio.create_task(submit_all(client))
                await aeventually(lambda: len(acked) > 50, 30)
                fail_disk(cluster.state_dir)
                await aeventually(lambda: not head.is_running, 30)
                submitting.cancel()
                await asyncio.wait([submitting])
        assert head.process.returncode == _UNAVAILABLE
        assert "Nothing was acked since" in head.text()
        assert "the file system there is read-only now" in head.text()
        assert "Traceback" not in head.text()
        cluster.workers["a"].end()
        repair_disk(cluster.state_dir)
        cluster.start_head(port=cluster.port)
        cluster.start_worker("b")
        with cluster.as_own():
            async with cluster.head_node() as client:
                for number, task_id in enumerate(acked):
                    result = await client.get_task_result(task_id, 30)
                    assert result is not None
                    assert result.unwrap() == number + 1
        cluster.stop()


def _content(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
