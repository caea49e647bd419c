"""Processes that a task has started and that have left the executor's process group.

A signal to the group does not reach them. They are found by their parents, as the kernel lists
them, so before these are gone; one whose parent has ended already (a daemon that has forked twice)
belongs to nobody any more.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
_STATE_FIELD: Final = 0
_GROUP_FIELD: Final = 2
_START_FIELD: Final = 19
"""Places in /proc/PID/stat, after the name in parentheses."""


def strays(pid: int, proc: Path = PROC) -> set[tuple[int, str]]:
    """Return the descendants of a group's leader that are in other groups.

    Args:
        pid: The leader.
        proc: Where processes are described; another one in tests.

    Returns:
        Process id and start time of each, which together are of one process only.
    """
    found: set[tuple[int, str]] = set()
    pending, seen = _children(pid, proc), {pid}
    while pending:
        child = pending.pop()
        if child in seen:
            continue
        seen.add(child)
        pending += _children(child, proc)
        fields = _stat(child, proc)
        if fields and int(fields[_GROUP_FIELD]) != pid:
            found.add((child, fields[_START_FIELD]))
    return found


def kill(processes: Iterable[tuple[int, str]], signum: int, proc: Path = PROC) -> None:
    """Signal those that are still the same processes."""
    for pid, started in processes:
        fields = _stat(pid, proc)
        if fields and fields[_START_FIELD] == started and fields[_STATE_FIELD] != "Z":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signum)


def _children(pid: int, proc: Path) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in (proc / str(pid) / "task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (thread / "children").read_text().split())
    return found


def _stat(pid: int, proc: Path) -> list[str]:
    """Return the fields of a process after its name; none if it is gone."""
    try:
        text = (proc / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
