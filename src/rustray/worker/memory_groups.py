"""Memory limits that the kernel holds: a control group for each executor whose task has one.

Where the system has control groups for memory that this process may write (version 2, delegated to
it as systemd's ``Delegate=yes`` does or as a container's own; or version 1), a limit holds between
two looks of the `MemoryWatch` too. A process takes what it is charged for along only from its entry
on, which is what a task's limit counts: what its executor held before is not the task's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

logger = logging.getLogger("rustray.worker")

_KILLS: Final = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_REMOVE_WITHIN_S: Final = 1.0
_REMOVE_PAUSE_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class _Files:
    """What the files of a group are called, by version of control groups."""

    limit: str
    unlimited: str
    usage: str
    events: str
    whole: str


_V2: Final = _Files("memory.max", "max", "memory.current", "memory.events", "memory.oom.group")
_V1: Final = _Files(
    "memory.limit_in_bytes", "-1", "memory.usage_in_bytes", "memory.oom_control", ""
)


@dataclass(slots=True)
class _Group:
    """An executor's group, and the kernel's kills in it before the present task."""

    path: Path
    kills: int = 0


class MemoryGroups:
    """Groups below one directory; make it with `find`. Every call may block for milliseconds."""

    def __init__(self, parent: Path, files: _Files, prefix: str, agent: Path | None = None) -> None:
        self._parent = parent
        self._files = files
        self._prefix = prefix
        self._agent = agent
        self._groups: dict[int, _Group] = {}

    @classmethod
    def find(cls, root: Path = Path("/")) -> tuple[Self | None, str]:
        """Return the groups, and where they are; or None, and why there are none.

        With version 2 this process moves into a group of its own below the one it is in: only
        groups without processes may have limited ones below them.

        Args:
            root: Where ``proc`` and ``sys`` are; another one in tests.
        """
        own = own_groups(root)
        prefix = f"rustray-{os.getpid()}-"
        found: list[str] = []
        for each in (own.get(""), own.get("memory")):
            if each is not None:
                sweep(root / "sys/fs/cgroup" / each, root)
                sweep(root / "sys/fs/cgroup/memory" / each, root)
        if "" in own:
            reason = cls._unusable_v2(root, own[""])
            path = root / "sys/fs/cgroup" / own[""]
            if not reason:
                try:
                    return cls._enter(path, prefix), f"{path} (version 2)"
                except OSError as error:
                    reason = f"{path}: {error.strerror}"
            found.append(f"version 2: {reason}")
        if "memory" in own:
            path = root / "sys/fs/cgroup/memory" / own["memory"]
            if os.access(path / "cgroup.procs", os.W_OK) and os.access(path, os.W_OK):
                return cls(path, _V1, prefix), f"{path} (version 1)"
            found.append(f"version 1: {path} may not be written")
        return None, "; ".join(found) or "the system has no control groups for memory"

    @property
    def parent_v2(self) -> Path | None:
        """Where the groups are, if they are of version 2 and this process has made room there."""
        return self._parent if self._agent is not None else None

    @staticmethod
    def _unusable_v2(root: Path, own: str) -> str:
        """Say why the version 2 group cannot have groups below it, or return ""."""
        path = root / "sys/fs/cgroup" / own
        if "memory" not in read(path / "cgroup.controllers").split():
            return f"{path} does not control memory"
        if not os.access(path / "cgroup.subtree_control", os.W_OK):
            return f"{path} may not be written"
        if os.geteuid() == 0 and own and not _is_delegated(path):
            # Root may write everywhere; that does not make it ours.
            return f"{path} is not delegated to this process (systemd: Delegate=yes)"
        others = set(read(path / "cgroup.procs").split()) - {str(os.getpid())}
        return f"other processes are in {path}" if others else ""

    @classmethod
    def _enter(cls, path: Path, prefix: str) -> Self:
        agent = path / f"{prefix}agent"
        agent.mkdir(exist_ok=True)
        (agent / "cgroup.procs").write_text(str(os.getpid()))
        try:
            (path / "cgroup.subtree_control").write_text("+memory")
        except OSError:
            (path / "cgroup.procs").write_text(str(os.getpid()))
            agent.rmdir()
            raise
        return cls(path, _V2, prefix, agent)

    def limit(self, executor_id: int, pid: int, limit: int) -> None:
        """Allow an executor, with all that it starts, so many bytes more than it is charged for.

        Raises:
            OSError: the kernel refuses.
        """
        group = self._groups.get(executor_id)
        if group is None:
            group = _Group(self._parent / f"{self._prefix}{executor_id}")
            group.path.mkdir(exist_ok=True)
            self._groups[executor_id] = group
            if self._files.whole:
                (group.path / self._files.whole).write_text("1")
            (group.path / "cgroup.procs").write_text(str(pid))
        group.kills = self._kills(group)
        usage = read(group.path / self._files.usage).strip()
        base = int(usage) if usage.isdecimal() else 0
        (group.path / self._files.limit).write_text(str(base + limit))

    def unlimit(self, executor_id: int) -> None:
        """Allow an executor anything again."""
        group = self._groups.get(executor_id)
        if group is not None:
            with contextlib.suppress(OSError):  # it has died meanwhile
                (group.path / self._files.limit).write_text(self._files.unlimited)

    def has_killed(self, executor_id: int) -> bool:
        """Whether the kernel has killed in a group since its present limit was set."""
        group = self._groups.get(executor_id)
        return group is not None and self._kills(group) > group.kills

    def remove(self, executor_id: int) -> None:
        """Remove the group of an executor that is gone."""
        group = self._groups.pop(executor_id, None)
        if group is not None:
            remove_group(group.path)

    def close(self) -> None:
        """Remove all groups; what is left in them is not ours to kill."""
        for executor_id in list(self._groups):
            self.remove(executor_id)
        if self._agent is not None:
            with contextlib.suppress(OSError):
                (self._parent / "cgroup.subtree_control").write_text("-memory")
                (self._parent / "cgroup.procs").write_text(str(os.getpid()))
            remove_group(self._agent)

    def _kills(self, group: _Group) -> int:
        found = _KILLS.search(read(group.path / self._files.events))
        return int(found[1]) if found else 0


def own_groups(root: Path) -> dict[str, str]:
    """Return the paths of this process's groups: controller to path, "" for version 2."""
    found: dict[str, str] = {}
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        for each in controllers.split(","):
            found[each] = path.lstrip("/")
    return found


def sweep(path: Path, root: Path) -> None:
    """Remove groups below a directory that workers have left behind which were killed."""
    for group in path.glob("rustray-*-*"):
        pid = group.name.split("-")[1]
        if pid.isdecimal() and not (root / "proc" / pid).exists():
            with contextlib.suppress(OSError):  # somebody is in it still
                group.rmdir()


def _is_delegated(path: Path) -> bool:
    for name in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(path, name) == b"1":
                return True
    return False


def remove_group(path: Path) -> None:
    """Remove a group; its last process may take a moment to be gone."""
    give_up_at = time.monotonic() + _REMOVE_WITHIN_S
    while True:
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if time.monotonic() >= give_up_at:
                logger.debug("the control group %s stays: %s", path, error)
                return
            time.sleep(_REMOVE_PAUSE_S)
        else:
            return


def read(path: Path) -> str:
    """Return what a file of the kernel's says, "" if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
