"""Test your tasks against everything that can go wrong, in virtual time; see docs/testing.md.

with SimCluster(seed=1) as cluster:
    task = cluster.remote(charge, takes_s=5.0, max_retries=2).remote("order-1")
    cluster.run_until(lambda: task.is_running)
    cluster.crash_worker(task.worker)
    assert task.result() == "charged"
"""

from rustray.testing.chaos import FAULTS
from rustray.testing.cluster import SimCluster
from rustray.testing.executor import ExecutorCrash
from rustray.testing.history import HistoryEntry, Run, SimNode
from rustray.testing.network import Faults
from rustray.testing.replay import seeds
from rustray.testing.tasks import SimFunction, SimTask

__all__ = [
    "FAULTS",
    "ExecutorCrash",
    "Faults",
    "HistoryEntry",
    "Run",
    "SimCluster",
    "SimFunction",
    "SimNode",
    "SimTask",
    "seeds",
]
