"""The head is away while large results are made: they wait on disk, and are told once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import rustray
from e2e import functions
from helpers.cluster import Cluster
from helpers.waiting import eventually

pytestmark = pytest.mark.slow

_WAIT_S = 120.0
_TASKS = 120
_SIZE = 500_000
_MEMORY_MB = 8
# Detached, so that their results are the head's to have, and do not stay with the worker.
_fill = rustray.remote(functions.fill).options(lifetime="detached")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A directory for `functions.fill`, whose tasks never outlive their test."""
    found = tmp_path / "folder"
    found.mkdir()
    yield found
    (found / "go").touch()


def _sheaves(cluster: Cluster) -> list[Path]:
    return list((cluster.state_dir / "spool").glob("*/*.sheaf"))


def _submit_and_take_the_head_away(cluster: Cluster, folder: Path) -> list[rustray.TaskRef[bytes]]:
    """Have one worker hold all tasks, none of which has ended, and kill the head."""
    # Of a hundredth of a core each, so that one worker is given all of them at once.
    small = _fill.options(num_cpus=0.01)
    refs: list[rustray.TaskRef[bytes]]
    refs = [small.remote(str(folder), n, _SIZE) for n in range(_TASKS)]
    eventually(lambda: cluster.json("workers", "list")["workers"][0]["leased"] == _TASKS, 30)
    assert cluster.head is not None
    cluster.head.kill()
    (folder / "go").touch()
    return refs


def _assert_each_was_told_once(refs: list[rustray.TaskRef[bytes]], folder: Path) -> None:
    values = rustray.get(refs, timeout=_WAIT_S)
    assert [int.from_bytes(value[:4], "big") for value in values] == list(range(_TASKS))
    assert {len(value) for value in values} == {_SIZE + 4}
    assert functions.executions(folder) == dict.fromkeys(range(_TASKS), 1)


def test_large_results_wait_on_disk_while_the_head_is_away(tmp_path: Path, folder: Path) -> None:
    """60 MB of results with 8 MB of memory for them: all are made, and each arrives once."""
    settings = {"WORKER__SPOOL_MEMORY_MB": str(_MEMORY_MB), "WORKER__SPOOL_DISK_MB": "200"}
    with Cluster(tmp_path, settings) as cluster:
        cluster.start_head()
        worker = cluster.start_worker("a")
        eventually(lambda: cluster.json("workers", "list")["workers"], 20)
        with cluster.session():
            refs = _submit_and_take_the_head_away(cluster, folder)
            eventually(lambda: len(functions.executions(folder)) == _TASKS, 60)
            eventually(lambda: sum(p.stat().st_size for p in _sheaves(cluster)) > 50_000_000, 30)
            own = _sheaves(cluster)[0].parent
            assert own.stat().st_mode & 0o777 == 0o700
            cluster.start_head(port=cluster.port)
            _assert_each_was_told_once(refs, folder)
            eventually(lambda: _sheaves(cluster) == [], 20)
        worker.end()
        assert not own.exists()


def test_a_full_spool_stops_the_work_and_loses_nothing(tmp_path: Path, folder: Path) -> None:
    """With 10 MB on disk most tasks do not start until the head is back; each runs once."""
    settings = {"WORKER__SPOOL_MEMORY_MB": str(_MEMORY_MB), "WORKER__SPOOL_DISK_MB": "10"}
    with Cluster(tmp_path, settings) as cluster:
        cluster.start_head()
        worker = cluster.start_worker("a")
        eventually(lambda: cluster.json("workers", "list")["workers"], 20)
        with cluster.session():
            refs = _submit_and_take_the_head_away(cluster, folder)
            eventually(lambda: "no more tasks start" in worker.text(), 60)
            assert len(functions.executions(folder)) < _TASKS
            cluster.start_head(port=cluster.port)
            _assert_each_was_told_once(refs, folder)
        assert "tasks start again" in worker.text()


def test_the_next_worker_clears_up_after_one_that_was_killed(tmp_path: Path, folder: Path) -> None:
    """What a dead worker's attempts had made is made again, and its files are removed."""
    settings = {"WORKER__SPOOL_MEMORY_MB": str(_MEMORY_MB), "WORKER__SPOOL_DISK_MB": "200"}
    with Cluster(tmp_path, settings) as cluster:
        cluster.start_head()
        worker = cluster.start_worker("a")
        eventually(lambda: cluster.json("workers", "list")["workers"], 20)
        with cluster.session():
            refs = _submit_and_take_the_head_away(cluster, folder)
            eventually(lambda: _sheaves(cluster), 60)
            left = _sheaves(cluster)[0].parent
            worker.kill()
            assert left.exists()
            cluster.start_head(port=cluster.port)
            cluster.start_worker("b")
            values = rustray.get(refs, timeout=_WAIT_S)
            assert [int.from_bytes(value[:4], "big") for value in values] == list(range(_TASKS))
        assert not left.exists()
