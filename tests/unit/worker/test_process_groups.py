"""A bound on an executor's processes, in files that look like the kernel's (F26)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rustray.worker.process_groups import Cleared, ProcessGroups


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system with version 1 groups, of which ``/mine`` is this process's."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("8:pids:/mine\n4:memory:/x\n0::/\n")
    own = tmp_path / "sys/fs/cgroup/pids/mine"
    own.mkdir(parents=True)
    (own / "cgroup.procs").touch()
    return tmp_path


@pytest.fixture
def children() -> Iterator[list[int]]:
    """Three processes that wait to be killed."""
    code = "import sys; sys.stdin.read()"
    found = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) for _ in "abc"]
    yield [child.pid for child in found]
    for child in found:
        child.communicate()


def _found(root: Path) -> ProcessGroups:
    groups, where = ProcessGroups.find(50, None, root)
    assert groups is not None
    assert where.endswith("pids/mine (version 1)")
    return groups


def _path(root: Path, executor_id: int) -> Path:
    return root / f"sys/fs/cgroup/pids/mine/rustray-{os.getpid()}-{executor_id}"


def test_an_executor_enters_a_group_with_the_bound(root: Path) -> None:
    """One group each, below this process's own."""
    groups = _found(root)
    groups.enter(1, 77)
    assert (_path(root, 1) / "pids.max").read_text() == "50"
    assert (_path(root, 1) / "cgroup.procs").read_text() == "77"
    assert groups.look() == []


def test_a_refused_fork_costs_the_executors_children_and_not_itself(
    root: Path, children: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are killed once for each look that finds more refusals; the bound holds again then."""
    groups = _found(root)
    executor, *started = children
    groups.enter(1, executor)
    group = _path(root, 1)
    killed: list[int] = []
    bounds: list[str] = []

    def kill(pid: int, signum: int) -> None:
        assert signum == signal.SIGKILL
        bounds.append((group / "pids.max").read_text())
        killed.append(pid)
        left = set((group / "cgroup.procs").read_text().split()) - {str(pid)}
        (group / "cgroup.procs").write_text("\n".join(left))

    monkeypatch.setattr(os, "kill", kill)
    (group / "cgroup.procs").write_text("\n".join(map(str, children)))
    (group / "pids.events").write_text("max 3\n")
    (group / "pids.current").write_text("4\n")  # the executor's one thread, and three dead
    assert groups.look() == [Cleared(1, 2)]
    assert sorted(killed) == sorted(started)
    assert set(bounds) == {"0"}, "nothing new may come while they are killed"
    assert (group / "pids.max").read_text() == "53", "who is dead and not reaped takes no room"
    assert groups.look() == []


def test_what_this_process_cannot_see_is_not_signalled(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel lists it as 0 (it is of another namespace), and a signal to 0 would end us."""
    groups = _found(root)
    groups.enter(1, 77)
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _: killed.append(pid))
    (_path(root, 1) / "cgroup.procs").write_text("0\n77\n")
    (_path(root, 1) / "pids.events").write_text("max 3\n")
    assert groups.look() == [Cleared(1, 0)]
    assert killed == []


def test_there_are_none_where_nothing_is_delegated(root: Path) -> None:
    """And it says why."""
    (root / "proc/self/cgroup").write_text("0::/\n")
    groups, why = ProcessGroups.find(50, None, root)
    assert groups is None
    assert "delegated" in why
    (root / "proc/self/cgroup").write_text("8:pids:/gone\n")
    groups, why = ProcessGroups.find(50, None, root)
    assert groups is None
    assert "may not be written" in why
