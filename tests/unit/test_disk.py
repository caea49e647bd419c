"""A disk that is full, slow or broken: what is refused, what goes on, and what stops the head."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers.power_cut import Disk
from helpers.scheduling import PREFIX, Bench
from helpers.waiting import aeventually
from rustray.common.errors import ResourceExhausted
from rustray.head import journal as journal_module
from rustray.head.disk_watch import DiskWatch, free_bytes
from rustray.head.driver import HeadDriver
from rustray.head.journal import GroupCommitJournal
from rustray.head.journal_store import FILE_NAME, JournalStore
from rustray.head.notifications import NotificationManager
from rustray.rpc.status import from_detail, to_detail
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.scheduler import stream_commands as sc
from rustray.scheduler.scheduler import Scheduler
from rustray.task.columns import PayloadColumn
from rustray.task.frames import CancelRequest, Outcome
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState

FULL = e.StorageChanged(is_full=True, is_stalled=False)
STALLED = e.StorageChanged(is_full=False, is_stalled=True)
WELL = e.StorageChanged(is_full=False, is_stalled=False)


def test_a_full_disk_refuses_new_tasks_only() -> None:
    """What is accepted runs, ends and is cancelled; the same tasks handed in again are known."""
    bench = Bench()
    accepted = bench.submit(4)
    bench.feed(FULL)
    bench.submit(2)
    assert set(bench.rejected.values()) == {"RESOURCE_EXHAUSTED"}
    (refused,) = [one for one in bench.commands if isinstance(one, c.RejectTasks)]
    assert isinstance(refused.error, ResourceExhausted)
    assert refused.error.retry_after_s > 0
    assert "disk_reserve_mb" in str(refused.error)
    payloads = PayloadColumn.of([b"xxx"] * 4)
    again = bench.feed(e.TasksSubmitted(PREFIX, 0, TaskClass("f"), payloads, True))
    assert [one.deduplicated for one in again if isinstance(one, c.AcceptTasks)] == [True]
    bench.feed(e.CancelRequested(CancelRequest(PREFIX, accepted[0], 1, False)))
    bench.join()
    bench.run_all()
    assert [bench.ended[task][0] for task in accepted] == [TaskState.CANCELLED] + [
        TaskState.SUCCEEDED
    ] * 3
    counters = bench.scheduler.state.counters
    assert (counters["submits_refused_disk_full"], counters["tasks_rejected"]) == (1, 2)
    bench.feed(WELL)
    assert set(bench.submit(1)) <= bench.accepted


def test_a_full_disk_takes_no_code_either() -> None:
    """It would be kept for tasks that are refused."""
    bench = Bench()
    bench.feed(FULL)
    assert bench.feed(e.CodeReceived(b"h" * 32, b"code")) == []
    bench.feed(WELL)
    assert bench.feed(e.CodeReceived(b"h" * 32, b"code")) == [c.PersistCode(b"h" * 32, b"code")]


def test_a_stalled_disk_gives_out_no_work() -> None:
    """Its outcomes would wait too; when the disk is well again everything goes on."""
    bench = Bench()
    bench.join()
    bench.feed(STALLED)
    assert not [one for one in bench.commands if isinstance(one, c.GrantLease)]
    bench.submit(1)
    assert set(bench.rejected.values()) == {"RESOURCE_EXHAUSTED"}
    bench.feed(WELL)
    tasks = bench.submit(3)
    bench.feed(STALLED)
    bench.feed(WELL)
    bench.run_all()
    assert all(bench.ended[task] == [TaskState.SUCCEEDED] for task in tasks)


def test_the_retry_hint_survives_the_wire() -> None:
    """A client learns when to try again."""
    again = from_detail(to_detail(ResourceExhausted("full", retry_after_s=2.5)))
    assert isinstance(again, ResourceExhausted)
    assert again.retry_after_s == 2.5


async def test_the_watch_tells_of_a_full_disk_and_of_room(tmp_path: Path) -> None:
    """Once each, with a margin so that it does not flap; a disk that is mute changes nothing."""
    told: list[bool] = []
    room = [1000]

    def free(path: Path) -> int:
        assert path == tmp_path
        if room[0] < 0:
            raise OSError(5, "Input/output error")
        return room[0]

    watch = DiskWatch(tmp_path, 500, told.append, free)
    for room[0] in (1000, 499, 400, 520, -1, 549, 550, 501):
        await watch.look()
    assert told == [True, False]
    assert free_bytes(tmp_path) > 0


class StallingStore:
    """A disk whose commits end when they are let go."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.commands = 0

    def commit(self, commands: Sequence[c.JournalCommand], is_synced: bool) -> None:
        self.gate.acquire()
        self.commands += len(commands)

    def tidy(self) -> bool:
        return False

    def close(self) -> None:
        """There is nothing to close."""


class Told:
    """A client that counts what it is told."""

    def __init__(self) -> None:
        self.accepted = 0
        self.rejected: list[c.RejectTasks] = []

    def accept(self, command: c.AcceptTasks) -> None:
        self.accepted += command.count

    def reject(self, command: c.RejectTasks) -> None:
        self.rejected.append(command)

    def deliver(self, command: c.DeliverOutcome) -> None:
        raise AssertionError("nothing ran")

    def deliver_items(self, command: sc.DeliverItems) -> None:
        raise AssertionError("nothing was yielded")

    def unknown(self, command: c.ReportUnknown) -> None:
        raise AssertionError("nothing was asked")


async def test_what_waits_for_a_stalled_commit_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beyond the bound submits are refused at once, and taken again when the disk has caught up."""
    monkeypatch.setattr(journal_module, "MAX_WAITING", 20)
    loop = asyncio.get_running_loop()
    store = StallingStore()
    journal = GroupCommitJournal(store, "full", loop, on_failure=lambda error: None)
    driver = HeadDriver(Scheduler(), NotificationManager(), journal, loop)
    journal.on_stall = lambda is_stalled: driver.note_storage(is_stalled=is_stalled)
    client = driver.clients[PREFIX] = Told()

    def submit(task: int) -> None:
        payloads = PayloadColumn.of([b"x"])
        driver.handle(e.TasksSubmitted(PREFIX, task, TaskClass("f"), payloads, True))

    for task in range(500):
        submit(task)
        await asyncio.sleep(0)
    assert client.accepted == 0
    assert 450 < len(client.rejected) < 500, "refused ones wait for nothing"
    assert journal.appended <= 25
    assert len(driver._held) <= 50
    taken = 500 - len(client.rejected)
    store.gate.release(10)
    await driver.safe()
    await aeventually(lambda: not journal.is_stalled)
    assert client.accepted == taken
    submit(1000)
    await driver.safe()
    assert client.accepted == taken + 1
    driver.close()
    await journal.close()


async def test_results_that_wait_for_a_stalled_commit_are_bounded_in_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A few large ones count as many small ones do."""
    monkeypatch.setattr(journal_module, "MAX_WAITING_BYTES", 1_000)
    store = StallingStore()
    changes: list[bool] = []
    journal = GroupCommitJournal(
        store, "full", asyncio.get_running_loop(), on_failure=lambda error: None
    )
    journal.on_stall = changes.append
    outcome = Outcome(0, TaskState.SUCCEEDED, PayloadColumn.of([b"x" * 600]), "w", 1)
    journal.append(c.PersistOutcome(1, 1, 0, outcome))
    await asyncio.sleep(0)
    assert changes == []
    journal.append(c.PersistOutcome(2, 1, 1, outcome))
    assert changes == [True]
    store.gate.release(5)
    await aeventually(lambda: changes == [True, False])
    await journal.close()


async def test_a_sync_that_fails_stops_the_head_without_an_ack(tmp_path: Path) -> None:
    """The real store on a disk whose sync fails: nothing is told, and nothing is tried again."""
    disk = Disk()
    store = JournalStore(tmp_path / FILE_NAME, "full", connect=disk.connect)
    store.load(0.0)
    failures: list[BaseException] = []
    loop = asyncio.get_running_loop()
    journal = GroupCommitJournal(store, "full", loop, on_failure=failures.append)
    driver = HeadDriver(Scheduler(), NotificationManager(), journal, loop)
    client = driver.clients[PREFIX] = Told()
    payloads = PayloadColumn.of([b"x"])
    driver.handle(e.TasksSubmitted(PREFIX, 0, TaskClass("f"), payloads, True))
    await driver.safe()
    assert client.accepted == 1
    disk.fails_to_sync = True
    driver.handle(e.TasksSubmitted(PREFIX, 1, TaskClass("f"), payloads, True))
    await aeventually(lambda: failures)
    disk.fails_to_sync = False
    driver.handle(e.TasksSubmitted(PREFIX, 2, TaskClass("f"), payloads, True))
    await asyncio.sleep(0)
    assert (client.accepted, driver.is_safe, len(failures)) == (1, False, 1)
    driver.close()
    await journal.close()
