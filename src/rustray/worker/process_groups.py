"""A bound on processes that the kernel holds: a control group for each executor.

Where the system has control groups for processes that this one may write (version 1; or version 2,
delegated as for memory), everything that an executor starts stays in its group, whatever parent,
session or process group it takes. So a task that forks without end gets EAGAIN at the bound, harms
nobody else, and can be cleared away to the last process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from rustray.worker.memory_groups import MemoryGroups, own_groups, read, remove_group, sweep

logger = logging.getLogger("rustray.worker")

_REFUSED: Final = re.compile(r"^max (\d+)$", re.MULTILINE)
_CLEAR_WITHIN_S: Final = 2.0
_CLEAR_PAUSE_S: Final = 0.01
_SUBTREE: Final = "cgroup.subtree_control"


@dataclass(slots=True)
class _Group:
    """An executor's group.

    Attributes:
        refused: Forks that the kernel has refused in it, when it was looked at last.
    """

    path: Path
    pid: int
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Cleared:
    """What was done about an executor whose task wanted too many processes.

    Attributes:
        killed: Processes that it had started.
    """

    executor_id: int
    killed: int


class ProcessGroups:
    """Groups below one directory; make it with `find`. Every call may block for milliseconds."""

    def __init__(self, parent: Path, prefix: str, limit: int, *, is_shared: bool) -> None:
        self.limit = limit
        self._parent = parent
        self._prefix = prefix
        self._is_shared = is_shared
        self._groups: dict[int, _Group] = {}

    @classmethod
    def find(
        cls, limit: int, beside: MemoryGroups | None, root: Path = Path("/")
    ) -> tuple[Self | None, str]:
        """Return the groups, and where they are; or None, and why there are none.

        Args:
            limit: Most processes and threads of an executor and all that it starts.
            beside: Those for memory: with version 2 both are the same directories.
            root: Where ``proc`` and ``sys`` are; another one in tests.
        """
        prefix = f"rustray-{os.getpid()}-"
        shared = beside.parent_v2 if beside is not None else None
        found: list[str] = []
        if shared is not None:
            try:
                (shared / _SUBTREE).write_text("+pids")
                return cls(shared, prefix, limit, is_shared=True), f"{shared} (version 2)"
            except OSError as error:
                found.append(f"version 2: {error.strerror}")
        own = own_groups(root)
        if "pids" in own:
            path = root / "sys/fs/cgroup/pids" / own["pids"]
            sweep(path, root)
            if os.access(path / "cgroup.procs", os.W_OK) and os.access(path, os.W_OK):
                return cls(path, prefix, limit, is_shared=False), f"{path} (version 1)"
            found.append(f"version 1: {path} may not be written")
        return None, "; ".join(found) or "no control groups for processes are delegated to it"

    def enter(self, executor_id: int, pid: int) -> None:
        """Bound an executor, before it starts anything.

        Raises:
            OSError: the kernel refuses.
        """
        group = _Group(self._parent / f"{self._prefix}{executor_id}", pid)
        group.path.mkdir(exist_ok=True)
        self._groups[executor_id] = group
        (group.path / "pids.max").write_text(str(self.limit))
        (group.path / "cgroup.procs").write_text(str(pid))

    def look(self) -> list[Cleared]:
        """Kill what those executors have started whose forks were refused since the last look.

        The executor itself goes on, so that a task which has nothing to do with it is not harmed:
        one that handles the refusal, or the next one.
        """
        found: list[Cleared] = []
        for executor_id, group in list(self._groups.items()):
            refused = _refused(group)
            if refused > group.refused:
                killed = self._clear(group, spared=group.pid)
                group.refused = _refused(group)
                found.append(Cleared(executor_id, killed))
        return found

    def remove(self, executor_id: int, *, clear: bool) -> None:
        """Remove the group of an executor that is gone.

        Args:
            executor_id: Which.
            clear: Kill what is left in it.
        """
        group = self._groups.pop(executor_id, None)
        if group is None:
            return
        if clear:
            self._clear(group, spared=0)
        remove_group(group.path)

    def close(self) -> None:
        """Remove all groups; what is left in them is not ours to kill."""
        for executor_id in list(self._groups):
            self.remove(executor_id, clear=False)
        if self._is_shared:
            with contextlib.suppress(OSError):
                (self._parent / _SUBTREE).write_text("-pids")

    def _clear(self, group: _Group, *, spared: int) -> int:
        """Kill all processes of a group but one; return how many there were."""
        killed: set[int] = set()
        give_up_at = time.monotonic() + _CLEAR_WITHIN_S
        with contextlib.suppress(OSError):  # the group is gone
            # So nothing new comes while what is there is killed.
            (group.path / "pids.max").write_text("0")
            while pids := _members(group) - {spared}:
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL)
                killed |= pids
                if time.monotonic() >= give_up_at:
                    logger.warning("%d processes of %s do not end", len(pids), group.path)
                    break
                time.sleep(_CLEAR_PAUSE_S)
            bound = self.limit + _unreaped(group)
            (group.path / "pids.max").write_text(str(bound))
        return len(killed)


def _members(group: _Group) -> set[int]:
    """Return its processes; what this process cannot see has number 0 there, and no signal."""
    return {int(word) for word in read(group.path / "cgroup.procs").split()} - {0}


def _unreaped(group: _Group) -> int:
    """Return how many dead processes of a group are still counted in it.

    What has left its parent is reaped by the system's first process: late, or never where a
    container's first process is none that does so.
    """
    found = read(group.path / "pids.current").strip()
    threads = 0
    with contextlib.suppress(OSError):
        threads = len(os.listdir(f"/proc/{group.pid}/task"))
    return max(int(found) - threads, 0) if found.isdecimal() else 0


def _refused(group: _Group) -> int:
    found = _REFUSED.search(read(group.path / "pids.events"))
    return int(found[1]) if found else 0
