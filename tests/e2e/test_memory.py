"""memory_mb is a limit: what outgrows it is stopped, alone, and retried by its own budget."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

import rustray
from e2e import functions
from helpers.cluster import Cluster
from helpers.waiting import eventually

pytestmark = pytest.mark.slow

_WAIT_S = 60.0
_take = rustray.remote(functions.take)
_work = rustray.remote(functions.work)


def _runs(folder: Path) -> int:
    return len(list(folder.glob("took-*")))


def _spent(journal: Path) -> list[tuple[int]]:
    with contextlib.closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as db:
        return db.execute("SELECT reruns FROM oom_rerun").fetchall()


def test_a_task_that_outgrows_its_memory_is_stopped_alone(tmp_path: Path) -> None:
    """It ends as TaskOutOfMemory with peak and limit; a hundred others beside it succeed."""
    (tmp_path / "go").touch()
    with rustray.init(num_cpus=2, memory_mb=2_000):
        good = [_work.remote(i, 0.005) for i in range(100)]
        bad = _take.options(memory_mb=50).remote(str(tmp_path), 300)
        within = _take.options(memory_mb=100).remote(str(tmp_path), 20)
        with pytest.raises(rustray.TaskOutOfMemory) as caught:
            rustray.get(bad, timeout=_WAIT_S)
        assert rustray.get(good, timeout=_WAIT_S) == list(range(100))
        assert rustray.get(within, timeout=_WAIT_S) == 20
    error = caught.value
    assert isinstance(error, MemoryError)
    assert error.limit == 50
    assert 50 < error.peak <= 320
    assert error.attempt == 1
    assert "memory_mb=50" in str(error)
    assert _runs(tmp_path) == 2


def test_it_runs_again_as_often_as_its_own_budget_says(tmp_path: Path) -> None:
    """oom_retries=2 are three attempts, with max_retries=0; the executors are new ones."""
    (tmp_path / "go").touch()
    with rustray.init(num_cpus=1, memory_mb=2_000):
        bad = _take.options(memory_mb=20, oom_retries=2, max_retries=0).remote(str(tmp_path), 200)
        with pytest.raises(rustray.TaskOutOfMemory) as caught:
            rustray.get(bad, timeout=_WAIT_S)
        assert caught.value.attempt == 3
        assert _runs(tmp_path) == 3
        assert rustray.get(_work.remote(7, 0.0), timeout=_WAIT_S) == 7


def test_what_an_earlier_task_left_is_not_the_next_ones_fault(tmp_path: Path) -> None:
    """One executor that keeps 200 MB from before runs a task of memory_mb=50 to its end."""

    @rustray.remote
    def keep(megabytes: int) -> int:
        import builtins
        import os

        builtins.kept = [os.urandom(1_000_000) for _ in range(megabytes)]  # type: ignore[attr-defined]
        return os.getpid()

    (tmp_path / "go").touch()
    with rustray.init(num_cpus=1, memory_mb=2_000):
        rustray.get(keep.remote(200), timeout=_WAIT_S)
        assert rustray.get(_take.options(memory_mb=50).remote(str(tmp_path), 5), timeout=60) == 5


def test_the_budget_holds_over_a_restart_of_the_head(tmp_path: Path) -> None:
    """One re-run before kill -9 of the head and none after it: two attempts, not three."""
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        cluster.start_worker("a", "--memory-mb", "1000", cpus=1)
        eventually(lambda: cluster.json("workers", "list")["workers"], 20)
        with cluster.session():
            bad = _take.options(memory_mb=20, oom_retries=1).remote(str(tmp_path), 200)
            (tmp_path / "go-1").touch()
            eventually(lambda: _runs(tmp_path) == 2, 30)
            eventually(lambda: _spent(cluster.state_dir / "journal.db") == [(1,)], 20)
            cluster.restart_head()
            (tmp_path / "go").touch()
            with pytest.raises(rustray.TaskOutOfMemory):
                rustray.get(bad, timeout=_WAIT_S)
        assert _runs(tmp_path) == 2
