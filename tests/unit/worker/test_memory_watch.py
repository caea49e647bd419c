"""What processes hold, measured on real ones, and when the watch looks and tells."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest

from helpers.waiting import aeventually, eventually
from rustray.worker.events import MemoryExceeded, WatchMemory
from rustray.worker.footprint import (
    Reading,
    Subject,
    boot_ticks,
    descendants,
    held_bytes,
    measure,
    share_bytes,
)
from rustray.worker.memory_groups import MemoryGroups
from rustray.worker.memory_watch import MAX_PERIOD_S, MIN_PERIOD_S, MemoryWatch, period_s

MB = 1_000_000
_PARENT = """
import mmap, os, select, subprocess, sys
kept = []
def take(mb):
    kept.append(bytearray(os.urandom(1000) * 1000 * mb))
def child(mb, new_session):
    code = f"import os, sys; x = bytearray(os.urandom(1000) * 1000 * {mb}); "
    code += "print('up', flush=True); sys.stdin.read()"
    kept.append(subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, start_new_session=new_session))
    kept[-1].stdout.readline()
def stay():
    gone, _ = os.pipe()
    while os.path.exists(f"/proc/{parent}/fd/0"):
        select.select([gone], [], [], 0.02)
    os._exit(0)
def fork(count):
    for _ in range(count):
        os.fork() == 0 and stay()
def orphan():
    if os.fork() == 0:
        os.fork() == 0 and stay()
        os._exit(0)
    os.wait()
def map_file(path):
    file = open(path, "rb")
    kept.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    sum(kept[-1][::4096])
parent = os.getpid()
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Process:
    """A process that takes memory when it is told to; the leader of its session."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PARENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self.do("pass")
        self.base = held_bytes(self.pid)

    def do(self, code: str) -> None:
        """Have it run a line, and wait until it has."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{code}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def grown_mb(self, limit_mb: int) -> float:
        """Measure it."""
        [reading] = measure([Subject(self.pid, self.base, limit_mb * MB)])
        return reading.grown / MB

    def end(self) -> None:
        """End it; what it started follows."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def process() -> Iterator[Process]:
    """A process of the test's own."""
    found = Process()
    yield found
    found.end()
    eventually(lambda: not descendants({found.pid}), what="its children end")


def test_what_a_process_takes_is_counted(process: Process) -> None:
    """Sixty megabytes more are sixty, whatever the interpreter held before."""
    assert process.base > MB
    process.do("take(60)")
    assert 59 < process.grown_mb(1000) < 75


def test_what_was_freed_before_is_no_allowance(process: Process) -> None:
    """A base that an earlier task had left counts for as much as is still there."""
    [reading] = measure([Subject(process.pid, process.base + 500 * MB, 10 * MB)])
    assert reading == Reading(reading.own, 0)
    process.base += 500 * MB
    process.do("take(60)")
    assert process.grown_mb(10) == 0


@pytest.mark.parametrize("new_session", [False, True])
def test_what_its_children_take_is_counted(process: Process, new_session: bool) -> None:
    """A program that it starts is its own, also in a session of that program's own."""
    process.do(f"child(50, {new_session})")
    assert 45 < process.grown_mb(1000) < 120
    assert 30 < process.grown_mb(10) < 120


def test_a_child_whose_parent_has_gone_is_counted_by_its_session(process: Process) -> None:
    """A double fork does not get it out of the count, as long as it stays in the session."""
    process.do("orphan()")
    [child] = list(descendants({process.pid, 1 << 30})[process.pid])
    assert psutil.Process(child).ppid() != process.pid


def test_what_an_earlier_task_left_running_is_not_counted(process: Process) -> None:
    """A daemon of 50 MB from before is no fault of the task that comes after it."""
    process.do("child(50, False)")
    since = boot_ticks() + 1
    old = Subject(process.pid, process.base, 10 * MB, since)
    eventually(lambda: boot_ticks() > since)
    assert measure([old])[0].grown < 10 * MB
    process.do("child(50, False)")
    assert 30 * MB < measure([old])[0].grown < 120 * MB


def test_pages_that_forks_share_are_counted_once(process: Process) -> None:
    """Four readers of one array of 80 MB hold 80 MB together and not 400."""
    process.do("take(80)")
    process.do("fork(4)")
    assert process.grown_mb(1000) > 350  # quick, and enough to see that all is well
    assert 60 < process.grown_mb(200) < 120  # exact, since the quick sum says too much


def test_a_mapped_file_is_nobodys_memory(process: Process, tmp_path: Path) -> None:
    """The kernel takes it back when it needs to: reading a data set is no reason to be killed."""
    data = tmp_path / "data"
    data.write_bytes(os.urandom(1000) * 50_000)
    process.do(f"map_file({str(data)!r})")
    assert process.grown_mb(10) < 10


def test_a_process_that_is_gone_holds_nothing(process: Process) -> None:
    """Nobody is blamed, nothing raises."""
    process.end()
    assert held_bytes(process.pid) == share_bytes(process.pid) == 0
    assert measure([Subject(process.pid, 5 * MB, MB)]) == [Reading(0, 0)]


def test_a_kernel_that_says_less_is_understood(tmp_path: Path) -> None:
    """Without RssAnon the resident size counts; without smaps_rollup, the same."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("Name:\tx\nVmRSS:\t    2000 kB\n")
    rest = " ".join("0" * 15)
    (tmp_path / "7" / "stat").write_text(f"7 (a ) b) S 1 7 7 {rest} 500 1")
    assert held_bytes(7, tmp_path) == share_bytes(7, tmp_path) == 2000 * 1024
    (tmp_path / "7" / "status").write_text(
        "VmRSS:\t 9000 kB\nRssAnon:\t 1000 kB\nRssFile:\t 7000 kB\nRssShmem:\t 1000 kB\n"
        "VmSwap:\t 10 kB\n"
    )
    (tmp_path / "7" / "smaps_rollup").write_text(
        "Pss: 900 kB\nPss_Anon: 300 kB\nPss_File: 500 kB\nPss_Shmem: 100 kB\nSwapPss: 5 kB\n"
    )
    assert held_bytes(7, tmp_path) == 2010 * 1024
    assert share_bytes(7, tmp_path) == 405 * 1024
    (tmp_path / "8").mkdir()
    (tmp_path / "8" / "stat").write_text(f"8 (c) S 7 8 8 {rest} 600 1")
    assert descendants({7}, tmp_path) == {7: {8: 600}}


# ── The watch ─────────────────────────────────────────────────────────────────────────────────


def order(executor_id: int, limit_mb: int = 100, lease: int = 1) -> WatchMemory:
    """Watch this very process."""
    return WatchMemory(executor_id, os.getpid(), lease, 0, limit_mb * MB)


class Scale:
    """Measures what it is told to."""

    def __init__(self) -> None:
        self.grown: dict[int, int] = {}
        self.calls: list[list[Subject]] = []

    def __call__(self, subjects: Iterable[Subject]) -> list[Reading]:
        found = list(subjects)
        self.calls.append(found)
        return [Reading(each.base, self.grown.get(each.limit, 0)) for each in found]


async def test_only_what_holds_too_much_is_told_of_and_once() -> None:
    """The one over its limit is named with its task; the other one is watched on."""
    told: list[MemoryExceeded] = []
    scale = Scale()
    watch = MemoryWatch(asyncio.get_running_loop(), told.append, scale)
    scale.grown = {20 * MB: 21 * MB, 30 * MB: 30 * MB}
    watch.add(order(1, 20, lease=5))
    watch.add(order(2, 30, lease=6))
    await aeventually(lambda: len(scale.calls) > 5)
    watch.close()
    await watch.release()
    assert told == [MemoryExceeded(1, 5, 0, 21 * MB, 20 * MB)]


async def test_nothing_is_measured_while_nothing_is_watched() -> None:
    """A task that ends before its first look costs none, and none follows the last task."""
    scale = Scale()
    loop = asyncio.get_running_loop()
    watch = MemoryWatch(loop, lambda _: None, scale)
    for _ in range(50):
        watch.add(order(1, 20))
        watch.remove(1)
    watch.add(order(2, 20))
    await aeventually(lambda: bool(scale.calls))
    assert [len(call) for call in scale.calls] == [1] * len(scale.calls)
    watch.remove(2)
    before = len(scale.calls)
    asleep = loop.create_future()
    loop.call_later(10 * MIN_PERIOD_S, asleep.set_result, None)
    await asleep
    assert len(scale.calls) <= before + 1
    watch.close()
    await watch.release()


async def test_an_executor_that_got_another_task_meanwhile_is_not_blamed() -> None:
    """The reading belongs to the order that it was made for."""
    told: list[MemoryExceeded] = []
    watch: MemoryWatch

    def swap(subjects: Iterable[Subject]) -> list[Reading]:
        found = list(subjects)
        if [each.limit for each in found] == [20 * MB]:
            loop.call_soon_threadsafe(watch.add, order(1, 40, lease=2))
            return [Reading(0, 21 * MB)]
        return [Reading(0, 41 * MB) for _ in found]

    loop = asyncio.get_running_loop()
    watch = MemoryWatch(loop, told.append, swap)
    watch.add(order(1, 20, lease=1))
    await aeventually(lambda: bool(told))
    watch.close()
    await watch.release()
    assert told == [MemoryExceeded(1, 2, 0, 41 * MB, 40 * MB)]


class Kernel(MemoryGroups):
    """Control groups that note what they are asked for; the kernel kills whom the test says."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.killed: set[int] = set()

    def limit(self, executor_id: int, pid: int, limit: int) -> None:
        self.asked.append(("limit", executor_id, limit))
        if executor_id == 9:
            raise OSError(3, "No such process")

    def unlimit(self, executor_id: int) -> None:
        self.asked.append(("unlimit", executor_id))

    def has_killed(self, executor_id: int) -> bool:
        return executor_id in self.killed

    def remove(self, executor_id: int) -> None:
        self.asked.append(("remove", executor_id))

    def close(self) -> None:
        self.asked.append(("close",))


async def test_a_kill_by_the_kernel_within_its_group_is_known_for_what_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Only the executor whose group has a kill, only by SIGKILL, only while its task runs."""
    kernel = Kernel()
    watch = MemoryWatch(asyncio.get_running_loop(), lambda _: None, Scale(), kernel)
    for executor_id in (1, 2, 3, 9):
        watch.add(order(executor_id, lease=executor_id))
    kernel.killed = {1, 2, 3}
    watch.remove(3)
    assert watch.has_ended(1, 9) == MemoryExceeded(1, 1, 0, 100 * MB, 100 * MB)
    assert watch.has_ended(2, 11) is None
    assert watch.has_ended(3, 9) is None
    assert watch.has_ended(9, 9) is None
    watch.close()
    await watch.release()
    assert kernel.asked == [
        *(("limit", n, 100 * MB) for n in (1, 2, 3, 9)),
        ("unlimit", 3),
        *(("remove", n) for n in (1, 2, 3, 9)),
        ("close",),
    ]
    assert "no limit for executor" in caplog.text


async def test_that_the_kernel_does_not_help_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """At the first limit, with the reason, and never again."""
    watch = MemoryWatch(
        asyncio.get_running_loop(), lambda _: None, Scale(), lacking="it has no groups"
    )
    assert "it has no groups" not in caplog.text
    watch.add(order(1))
    watch.add(order(2))
    assert caplog.text.count("it has no groups") == 1
    assert watch.has_ended(1, 9) is None
    watch.close()
    await watch.release()


def test_what_has_room_is_looked_at_seldom() -> None:
    """Half a second at most, ten milliseconds at least, between them by the room that is left."""
    assert period_s(100_000 * MB) == MAX_PERIOD_S
    assert period_s(200 * MB) == pytest.approx(0.1)
    assert period_s(MB) == period_s(-5) == MIN_PERIOD_S
