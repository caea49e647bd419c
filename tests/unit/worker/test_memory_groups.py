"""Control groups: found where they are ours, used as the kernel wants it, and removed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.waiting import eventually
from rustray.worker.memory_groups import MemoryGroups

MB = 1_000_000
ME = str(os.getpid())


class FakeSystem:
    """The files of ``/proc`` and ``/sys`` that matter, below a directory of the test's own."""

    def __init__(self, root: Path, own: str = "service", controllers: str = "cpu memory") -> None:
        self.root = root
        self.own = root / "sys/fs/cgroup" / own
        self.own.mkdir(parents=True)
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(f"0::/{own}\n")
        (self.own / "cgroup.controllers").write_text(controllers)
        (self.own / "cgroup.subtree_control").write_text("")
        (self.own / "cgroup.procs").write_text(ME)

    def find(self) -> tuple[MemoryGroups | None, str]:
        """Look for groups as a worker does."""
        return MemoryGroups.find(self.root)


@pytest.fixture
def _delegated(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under systemd's Delegate=yes: the group is marked as given to us."""

    def xattr(path: object, name: str) -> bytes:
        if name == "user.delegate":
            return b"1"
        raise OSError(61, "No data available")

    monkeypatch.setattr("rustray.worker.memory_groups.os.getxattr", xattr)


@pytest.mark.usefixtures("_delegated")
def test_a_delegated_group_gets_a_leaf_for_the_agent_and_one_for_each_executor(
    tmp_path: Path,
) -> None:
    """The agent leaves the group, memory is given to those below, and limits are written."""
    system = FakeSystem(tmp_path)
    groups, where = system.find()
    assert groups is not None
    assert where == f"{system.own} (version 2)"
    agent = system.own / f"rustray-{ME}-agent"
    assert (agent / "cgroup.procs").read_text() == ME
    assert (system.own / "cgroup.subtree_control").read_text() == "+memory"
    group = system.own / f"rustray-{ME}-7"
    group.mkdir()
    (group / "memory.current").write_text("300\n")
    (group / "memory.events").write_text("oom 1\noom_kill 2\n")
    groups.limit(7, 4321, 1000)
    assert (group / "cgroup.procs").read_text() == "4321"
    assert (group / "memory.oom.group").read_text() == "1"
    assert (group / "memory.max").read_text() == "1300"
    assert not groups.has_killed(7)
    (group / "memory.events").write_text("oom 1\noom_kill 3\n")
    assert groups.has_killed(7)
    groups.limit(7, 4321, 500)
    assert not groups.has_killed(7)  # that was the task before
    groups.unlimit(7)
    assert (group / "memory.max").read_text() == "max"
    groups.unlimit(8)
    groups.remove(8)
    assert not groups.has_killed(8)


def test_groups_of_workers_that_were_killed_are_removed(tmp_path: Path) -> None:
    """Those of the living, and those in which somebody is, stay."""
    system = FakeSystem(tmp_path)
    (tmp_path / "proc" / ME).mkdir()
    (tmp_path / "proc/77").mkdir()
    for name in ("rustray-77-1", "rustray-78-1", "rustray-78-agent", "rustray-x-1", "other"):
        (system.own / name).mkdir()
    (system.own / "rustray-78-agent" / "busy").touch()
    system.find()
    left = {path.name for path in system.own.iterdir() if path.is_dir()}
    assert left - {f"rustray-{ME}-agent"} == {
        "rustray-77-1", "rustray-78-agent", "rustray-x-1", "other",
    }  # fmt: skip


@pytest.mark.usefixtures("_delegated")
@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda s: (s.own / "cgroup.controllers").write_text("cpu hugetlb"), "not control memory"),
        (lambda s: (s.own / "cgroup.procs").write_text(f"{ME}\n99999999"), "other processes"),
        (lambda s: (s.own / "cgroup.subtree_control").unlink(), "may not be written"),
        (lambda s: (s.own / f"rustray-{ME}-agent").touch(), "File exists"),
        (lambda s: (s.root / "proc/self/cgroup").write_text("1:name=systemd:/x\n"), "no control"),
    ],
)
def test_what_is_not_ours_is_left_alone(tmp_path: Path, break_it: object, said: str) -> None:
    """No group is used, the reason is given, and nothing was moved."""
    system = FakeSystem(tmp_path)
    break_it(system)  # type: ignore[operator]
    groups, reason = system.find()
    assert groups is None
    assert said in reason
    assert ME in (system.own / "cgroup.procs").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may write where it was not invited")
def test_root_uses_no_group_that_was_not_delegated(tmp_path: Path) -> None:
    """Root may write in any group; a service manager's own ones are not to be touched."""
    groups, reason = FakeSystem(tmp_path).find()
    assert groups is None
    assert "Delegate=yes" in reason


def test_a_refusal_of_the_kernel_is_an_error_and_leaves_the_agent_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EBUSY of subtree_control, as where a process came in between: back to before."""
    monkeypatch.setattr("rustray.worker.memory_groups._is_delegated", lambda _: True)
    system = FakeSystem(tmp_path)
    real = Path.write_text

    def refuse(path: Path, text: str, *args: object) -> int:
        if path.name == "cgroup.subtree_control":
            (system.own / f"rustray-{ME}-agent" / "cgroup.procs").unlink()  # as it is no real one
            raise OSError(16, "Device or resource busy")
        return real(path, text)

    monkeypatch.setattr(Path, "write_text", refuse)
    groups, reason = system.find()
    assert groups is None
    assert "Device or resource busy" in reason
    assert (system.own / "cgroup.procs").read_text() == ME
    assert not (system.own / f"rustray-{ME}-agent").exists()


# ── On this very system ───────────────────────────────────────────────────────────────────────


@pytest.fixture
def real() -> Iterator[MemoryGroups]:
    """The groups of this system; a loud skip where it has none for us."""
    groups, text = MemoryGroups.find()
    if groups is None:
        pytest.skip(f"no memory control groups to write: {text}")
    yield groups
    groups.close()


_GROW = """
import sys
sys.stdin.readline()
kept = [bytearray(b"x" * 1_000_000) for _ in range(int(sys.argv[1]))]
print(len(kept), flush=True)
sys.stdin.readline()
"""


def start(megabytes: int) -> subprocess.Popen[str]:
    """Start a process that takes so much memory when it is told to."""
    return subprocess.Popen(
        [sys.executable, "-c", _GROW, str(megabytes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def go(process: subprocess.Popen[str]) -> str:
    """Let it grow; return what it says, "" if it died of that."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_the_kernel_kills_what_outgrows_its_group_and_nothing_else(real: MemoryGroups) -> None:
    """One process with 30 MB to take 200, one with 100 MB to take 20: only the first is killed."""
    bad, good = start(200), start(20)
    try:
        real.limit(1, bad.pid, 30 * MB)
        real.limit(2, good.pid, 100 * MB)
        assert go(bad) == ""
        assert bad.wait(10) == -9
        assert go(good) == "20"
        assert eventually(lambda: real.has_killed(1))
        assert not real.has_killed(2)
        real.remove(1)
        real.unlimit(2)
    finally:
        for process in (bad, good):
            process.kill()
            process.communicate()
