"""Tasks that start processes without end (F26); never a real bomb: each stops by itself."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

import rustray
from e2e import functions
from helpers.cluster import Cluster
from helpers.waiting import eventually
from rustray.worker.process_groups import ProcessGroups

pytestmark = pytest.mark.slow

_BOUND = 60
_CHILDREN = 200
_UNBOUND = {"WORKER__MAX_PROCESSES": "0"}


def _living(folder: Path) -> set[int]:
    """Return those that a task has started and that still run."""
    pids = {int(path.name.partition("-")[2]) for path in folder.glob("pid-*")}
    return {pid for pid in pids if _runs(pid)}


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _need_groups() -> None:
    groups, why = ProcessGroups.find(_BOUND, None)
    if groups is None:
        pytest.skip(f"no control groups for processes here: {why}")
    groups.close()


def test_a_bomb_is_stopped_at_the_bound_and_cleared_away(tmp_path: Path) -> None:
    """It gets EAGAIN, its daemons are killed, the log says so, and the worker works on."""
    _need_groups()
    with Cluster(tmp_path, {"WORKER__MAX_PROCESSES": str(_BOUND)}) as cluster:
        cluster.start_head()
        worker = cluster.start_worker("a")
        with cluster.session():
            spread = rustray.remote(functions.spread)
            with pytest.raises(rustray.TaskExecutionFailed, match="temporarily unavailable"):
                rustray.get(spread.remote(str(tmp_path), _CHILDREN, 0.0), timeout=60)
            assert 0 < len(list(tmp_path.glob("pid-*"))) < _BOUND
            eventually(lambda: not _living(tmp_path), 20, what="all of them are gone")
            eventually(lambda: "[worker] max_processes" in worker.text(), 20)
            add = rustray.remote(functions.add)
            assert rustray.get([add.remote(n, 1) for n in range(50)], timeout=60) == [*range(1, 51)]
            # In the executor of before as well, there is room again.
            few = [spread.remote(str(tmp_path), 5, 0.0) for _ in range(4)]
            assert rustray.get(few, timeout=60) == [5] * 4
        assert worker.is_running
        assert "Traceback" not in worker.text()


def test_daemons_of_a_task_that_times_out_are_killed_with_it(tmp_path: Path) -> None:
    """Below the bound too: what it has started ends with its executor, wherever it has gone."""
    _need_groups()
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        worker = cluster.start_worker("a")
        with cluster.session():
            spread = rustray.remote(functions.spread).options(timeout_s=5.0)
            ref = spread.remote(str(tmp_path), 20, 120.0)
            eventually(lambda: len(_living(tmp_path)) == 20, 20)
            with pytest.raises(rustray.TaskTimeout):
                rustray.get(ref, timeout=60)
            eventually(lambda: not _living(tmp_path), 20, what="all of them are gone")
        assert worker.is_running


def test_without_a_bound_the_worker_survives_two_hundred_children(tmp_path: Path) -> None:
    """And ends them with the task's executor, when its time is up."""
    with Cluster(tmp_path, _UNBOUND) as cluster:
        cluster.start_head()
        worker = cluster.start_worker("a")
        with cluster.session():
            crowd = rustray.remote(functions.crowd).options(timeout_s=8.0)
            ref = crowd.remote(str(tmp_path), _CHILDREN)
            eventually(lambda: len(_living(tmp_path)) == _CHILDREN, 30)
            with pytest.raises(rustray.TaskTimeout):
                rustray.get(ref, timeout=60)
            eventually(lambda: not _living(tmp_path), 20, what="all of them are gone")
            assert rustray.get(rustray.remote(functions.add).remote(1, 2), timeout=60) == 3
        assert worker.is_running
        assert "Traceback" not in worker.text()
