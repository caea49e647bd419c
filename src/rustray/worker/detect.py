"""What this machine lets the worker use: cores, memory, and the name of its host."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rustray.common.errors import ConfigError
from rustray.worker import numerics

_MB: Final = 1_000_000
_NO_LIMIT_BYTES: Final = 1 << 60
"""cgroup v1 says "no limit" with a number near 2**63."""
_MIN_CPUS: Final = 0.01
DESCRIPTORS_AN_EXECUTOR: Final = 8
"""Three that the agent keeps, and for a moment those that go to the executor."""
STANDING_IN: Final = 512
"""Executors for those whose tasks wait for tasks of their own."""
_DESCRIPTORS_BESIDE: Final = 256


def cpu_cores(root: Path = Path("/")) -> float:
    """Return the cores that this process may use, a cgroup's quota included.

    Args:
        root: Where ``proc`` and ``sys`` are; another one in tests.
    """
    cores = float(len(os.sched_getaffinity(0)))
    for limit in (*_cpu_limits_v2(root), _cpu_limit_v1(root)):
        if limit is not None:
            cores = min(cores, limit)
    # A quota of 1.5 cores is worth saying; one of 1.4999 is one of 1.5.
    return max(round(cores, 2), _MIN_CPUS)


def memory_mb(root: Path = Path("/")) -> int:
    """Return the megabytes (10**6 bytes) that this process may use, a cgroup's limit included."""
    limits = [_total_memory(root), *_memory_limits_v2(root), _memory_limit_v1(root)]
    known = [limit for limit in limits if limit is not None and 0 < limit < _NO_LIMIT_BYTES]
    return max(min(known, default=_MB) // _MB, 1)


def gpu_count(root: Path = Path("/")) -> int:
    """Count the GPUs that the drivers of NVIDIA or AMD show on this machine."""
    with contextlib.suppress(OSError):
        found = list((root / "proc/driver/nvidia/gpus").iterdir())
        if found:
            return len(found)
    with contextlib.suppress(OSError):
        nodes = (root / "sys/class/kfd/kfd/topology/nodes").iterdir()
        # A node without such units is a processor.
        texts = (_read(node / "properties") for node in nodes)
        return sum(
            re.search(r"^simd_count [1-9]", text, re.MULTILINE) is not None for text in texts
        )
    return 0


def gpus(own: Mapping[str, str], root: Path = Path("/")) -> tuple[int, tuple[str, ...] | None]:
    """Return how many GPUs this process may use, and the ids that its environment names.

    Args:
        own: Its environment, which may show it fewer than there are; then it names them.
        root: Where ``proc`` and ``sys`` are; another one in tests.
    """
    count = gpu_count(root)
    visible = numerics.visible_gpus(own)
    return (count if visible is None else min(count, len(visible))), visible


def allow_descriptors(executors: int) -> None:
    """See to it that this process may open what so many executors take.

    The soft limit is raised where it is too low, and where that is allowed so far that others can
    stand in for executors whose tasks wait; the hard one is not ours to change.

    Raises:
        ConfigError: the hard limit is too low; says what to do.
    """
    needed = _DESCRIPTORS_BESIDE + DESCRIPTORS_AN_EXECUTOR * executors
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed + DESCRIPTORS_AN_EXECUTOR * STANDING_IN
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"{executors} executors take about {needed} file descriptors, and this process may "
            f"open {hard}: offer fewer cores (--cpus N, num_cpus=N), or raise the limit "
            f"(ulimit -n {needed})"
        )
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, soft), hard))


def host_key(root: Path = Path("/")) -> str:
    """Name this boot of the host and the process namespace, "" where the system does not tell."""
    boot = _read(root / "proc/sys/kernel/random/boot_id")
    try:
        namespace = str((root / "proc/self/ns/pid").readlink())
    except OSError:
        return ""
    return f"{boot}/{namespace}" if boot else ""


def default_name() -> str:
    """Return the host's name as a worker's name: letters, digits, ``.``, ``_`` and ``-``."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "worker"


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process, 0 if it is gone."""
    fields = _read(Path(f"/proc/{pid}/statm")).split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0


def load_ratio() -> float:
    """Return the load average of the last minute per core of the machine."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except OSError:
        return 0.0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _own_groups(root: Path, controller: str) -> Path | None:
    """Return this process's group for a controller; "" names the unified hierarchy."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controller in controllers.split(","):
            return Path(path.lstrip("/"))
    return None


def _groups_v2(root: Path) -> list[Path]:
    own = _own_groups(root, "")
    if own is None:
        return []
    top = root / "sys/fs/cgroup"
    # A limit of any parent holds too; inside a container the path may name nothing here.
    return [top / own, *(top / parent for parent in own.parents), top]


def _cpu_limits_v2(root: Path) -> list[float]:
    found = []
    for group in _groups_v2(root):
        quota, period = (*_read(group / "cpu.max").split(), "", "")[:2]
        if quota.isdigit() and period.isdigit() and int(period):
            found.append(int(quota) / int(period))
    return found


def _cpu_limit_v1(root: Path) -> float | None:
    own = _own_groups(root, "cpu")
    if own is None:
        return None
    top = root / "sys/fs/cgroup/cpu"
    for group in (top / own, top):
        quota = _read(group / "cpu.cfs_quota_us")
        period = _read(group / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            return int(quota) / int(period)
    return None


def _total_memory(root: Path) -> int | None:
    found = re.search(r"^MemTotal:\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _memory_limits_v2(root: Path) -> list[int]:
    texts = (_read(group / "memory.max") for group in _groups_v2(root))
    return [int(text) for text in texts if text.isdigit()]


def _memory_limit_v1(root: Path) -> int | None:
    own = _own_groups(root, "memory")
    if own is None:
        return None
    top = root / "sys/fs/cgroup/memory"
    for group in (top / own, top):
        text = _read(group / "memory.limit_in_bytes")
        if text.isdigit():
            return int(text)
    return None
