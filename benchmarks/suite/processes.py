"""Process trees: their memory, their CPU time, and their end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import psutil

_PR_SET_CHILD_SUBREAPER: Final = 36
_GRACE_S: Final = 3.0


def adopt_orphans() -> None:
    """Become the parent of orphaned descendants, so that none is lost from sight (Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def tree(pid: int) -> list[int]:
    """Return a process and its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return []


def pss_bytes(pids: Iterable[int]) -> int:
    """Return the memory of processes together; what they share is counted once."""
    total = 0
    for pid in pids:
        # One that ends meanwhile holds nothing.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            for line in text.splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time that processes have used; the clock's step is 10 ms."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
    return total


class CpuMeter:
    """CPU time by role, from its creation on."""

    def __init__(self, roles: Mapping[str, list[int]]) -> None:
        self._roles = roles
        self._before = {role: cpu_seconds(pids) for role, pids in roles.items()}

    def us_per_task(self, tasks: int) -> dict[str, float]:
        """Return microseconds of CPU a task, by role and in all."""
        spent = {
            role: (cpu_seconds(pids) - self._before[role]) / tasks * 1e6
            for role, pids in self._roles.items()
        }
        spent["all"] = sum(spent.values())
        return {role: round(us, 2) for role, us in spent.items()}


def wait_until_quiet(pids: Iterable[int], *, within_s: float, window_s: float = 0.5) -> bool:
    """Wait until processes together use less than a quarter of a core; say whether they do.

    Some systems are never idler than that: their housekeeping counts as rest.
    """
    watched = list(pids)
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        before = cpu_seconds(watched)
        time.sleep(window_s)
        if cpu_seconds(watched) - before < 0.25 * window_s:
            return True
    return False


def end_all_children() -> int:
    """End every descendant of this process, by its id; return how many there were.

    All of them were started here: `adopt_orphans` keeps those whose parent has gone.
    """
    ended: set[int] = set()
    for end in (psutil.Process.terminate, psutil.Process.kill):
        deadline = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline:
            _reap()
            left = psutil.Process().children(recursive=True)
            if not left:
                return len(ended)
            for process in left:
                if process.pid not in ended or end is psutil.Process.kill:
                    ended.add(process.pid)
                    with contextlib.suppress(psutil.NoSuchProcess):
                        end(process)
            time.sleep(0.05)
    return len(ended)


def _reap() -> None:
    for child in psutil.Process().children():
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child.pid, os.WNOHANG)
