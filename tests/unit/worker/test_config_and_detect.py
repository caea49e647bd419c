"""WorkerConfig refuses what makes no sense; detection reads affinity and cgroups."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rustray.worker import detect
from rustray.worker.config import WorkerConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cpus": 0}, "cpus must be more than 0"),
        ({"cpus": -1}, "must not be negative"),
        ({"cpus": float("nan")}, "must be finite"),
        ({"memory_mb": float("inf")}, "must be finite"),
        ({"name": "a b"}, "1 to 64 letters"),
        ({"name": ""}, "1 to 64 letters"),
        ({"resources": {"gpus": 1}}, "setting of its own"),
        ({"resources": {"licence": -1}}, "must not be negative"),
        ({"labels": {"zone": 1}}, "both must be text"),
        ({"functions": ("no such/module",)}, "not a module name"),
        ({"worker_port": 70_000}, "outside 0 to 65535"),
        ({"drain_timeout_s": float("nan")}, "drain_timeout_s"),
        ({"thread_concurrency": 0}, "outside 1"),
        ({"max_result_bytes": 0}, "max_result_bytes"),
    ],
)
def test_a_bad_setting_is_named(changes: dict[str, Any], message: str) -> None:
    """Each field that is out of range raises ValueError with its name and range."""
    with pytest.raises(ValueError, match=message):
        WorkerConfig(**{"cpus": 2, "memory_mb": 100, **changes})


def test_amounts_are_one_vector() -> None:
    """Cores, memory, GPUs and custom resources together, as the head wants them."""
    config = WorkerConfig(cpus=1.5, memory_mb=512, gpus=1, resources={"licence": 2})
    assert config.amounts().amounts() == {
        "cpu_cores": 1.5, "gpus": 1, "licence": 2, "memory_mb": 512,
    }  # fmt: skip
    assert config.limits().slots == 2


def write(root: Path, files: dict[str, str]) -> Path:
    """Write files below a directory that stands for ``/``."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_cgroup_v2_quota_limits_cores_and_memory(tmp_path: Path) -> None:
    """The tightest limit of the own group and its parents holds."""
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "proc/meminfo": "MemTotal:       8000000 kB\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
            "sys/fs/cgroup/a/memory.max": "300000000\n",
        },
    )
    assert detect.cpu_cores(root) == 0.5
    assert detect.memory_mb(root) == 300


def test_a_cgroup_v1_quota_limits_cores_and_memory(tmp_path: Path) -> None:
    """Where the path of the group names nothing (in a container), the top group is read."""
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n",
            "proc/meminfo": "MemTotal:       8000000 kB\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "25000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "200000000\n",
        },
    )
    assert detect.cpu_cores(root) == 0.25
    assert detect.memory_mb(root) == 200


def test_without_limits_the_machine_counts(tmp_path: Path) -> None:
    """No quota, garbage, or nothing at all: affinity and total memory."""
    cores = len(os.sched_getaffinity(0))
    assert detect.cpu_cores(tmp_path) == cores
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "nonsense\n3:cpu:/\n4:memory:/\n",
            "proc/meminfo": "MemTotal:       8000000 kB\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert detect.cpu_cores(root) == cores
    assert detect.memory_mb(root) == 8192


def test_this_machine_has_something() -> None:
    """Detection works where the tests run, too."""
    assert detect.cpu_cores() > 0
    assert detect.memory_mb() > 1
    assert detect.resident_bytes(os.getpid()) > 1 << 20
    assert detect.resident_bytes(1 << 30) == 0
    assert WorkerConfig(cpus=1, memory_mb=1, name=detect.default_name()).name
