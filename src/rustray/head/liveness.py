"""Finding out that a worker's process on this very host is gone.

A broken connection proves nothing: the worker may be alive behind a bad network, and
giving its tasks to others before its lease ends would run them twice at a time. But a process of
this host that the kernel no longer lists is dead for certain, and nobody has to wait.
"""

from __future__ import annotations

from pathlib import Path

import psutil


def host_key() -> str:
    """Name this host's boot and process namespace; "" where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return ""
    return f"{boot}/{namespace}"


def is_process_gone(pid: int) -> bool:
    """Return whether no process of this id runs here (a zombie does not run)."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OSError):  # OSError: this process has no descriptor left to look with
        return False
