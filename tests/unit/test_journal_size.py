"""How large a journal becomes, and how it gets small again."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from helpers.scheduling import PREFIX
from helpers.waiting import aeventually
from rustray.common.errors import ConfigError
from rustray.head import journal_files, journal_room, journal_store
from rustray.head.journal import GroupCommitJournal
from rustray.head.journal_store import FILE_NAME, JournalStore
from rustray.scheduler import commands as c
from rustray.scheduler.events import (
    CodeReceived,
    TasksSubmitted,
    TimePassed,
    WorkerJoined,
    WorkerReported,
)
from rustray.scheduler.scheduler import Scheduler
from rustray.scheduler.state import SchedulerSettings
from rustray.task.columns import PayloadColumn
from rustray.task.frames import LeaseOutcome, Outcome
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from rustray.task.views import WorkerInfo

PAYLOAD = b"x" * 400


def a_batch(number: int, count: int) -> c.PersistBatch:
    """A batch of so many tasks."""
    payloads = PayloadColumn.of([PAYLOAD] * count)
    return c.PersistBatch(number, PREFIX, 1000 * number, TaskClass("f"), payloads, True)


def an_outcome(number: int, count: int) -> c.PersistOutcome:
    """How all tasks of the batch of that number ended."""
    results = PayloadColumn.of([PAYLOAD] * count)
    return c.PersistOutcome(
        number, number, 0, Outcome(1000 * number, TaskState.SUCCEEDED, results, "w", 1)
    )


def size(path: Path) -> int:
    """Return what a journal takes on the disk."""
    return sum(one.stat().st_size for one in path.parent.glob(f"{path.name}*"))


def test_a_journal_is_as_large_as_what_it_holds_however_many_tasks_come(tmp_path: Path) -> None:
    """Of 300,000 tasks, 5,000 of which are there at a time, nothing piles up, nor in the log."""
    path = tmp_path / FILE_NAME
    store = JournalStore(path, "process")
    sizes = []
    for number in range(1, 301):
        store.commit([a_batch(number, 1000)])
        store.commit([an_outcome(number, 1000), c.ForgetArguments(number, b"")])
        if number > 5:
            store.commit([c.ForgetResults(number - 5), c.ForgetBatch(number - 5)])
        if number % 50 == 0:
            sizes.append(size(path))
    store.close()
    # 6 results and one batch's arguments of 400 kB, and a log of up to 4,000 pages.
    assert max(sizes) < 8 * 420_000 + 4_000 * 4_200 + (1 << 20)
    assert sizes[-1] <= sizes[1] * 1.1


def test_a_log_that_is_synced_has_its_room_from_the_start(tmp_path: Path) -> None:
    """Commits do not make it longer, round after round, but by the one that ends a round."""
    path = tmp_path / FILE_NAME
    log = Path(f"{path}-wal")
    store = JournalStore(path, "full")
    store.load(0.0)
    room = log.stat().st_size
    assert room == 32 + 4_000 * (24 + 4096)
    for number in range(1, 1_001):
        store.commit([a_batch(number, 100)])
        assert log.stat().st_size <= room + 20 * 4_120
    assert path.stat().st_size > 2 * room
    store.close()
    assert not log.exists()


def test_a_log_that_is_not_synced_grows_as_it_needs_to(tmp_path: Path) -> None:
    """Nothing is gained by room ahead where no commit waits for the disk."""
    store = JournalStore(tmp_path / FILE_NAME, "process")
    store.load(0.0)
    assert Path(f"{tmp_path / FILE_NAME}-wal").stat().st_size < 1 << 20
    store.close()


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_disk_without_room_ahead_for_the_log_is_no_reason_not_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    """What was written of it goes again, and commits work as far as the disk goes."""

    class Full:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def pwrite(self, descriptor: int, data: bytes, at: int) -> int:
            if at > 5 << 20:
                raise OSError(errno.ENOSPC, "no space left on device")
            return os.pwrite(descriptor, data, at)

    monkeypatch.setattr(journal_room, "os", Full())
    path = tmp_path / FILE_NAME
    store = JournalStore(path, "full")
    store.load(0.0)
    assert Path(f"{path}-wal").stat().st_size < 1 << 20
    store.commit([a_batch(1, 10)])
    if is_killed:
        copy = tmp_path / "copy"
        copy.mkdir()
        for suffix in ("", "-wal", "-seen"):
            (copy / f"{FILE_NAME}{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
        path = copy / FILE_NAME
    store.close()
    found = JournalStore(path).load(1.0)
    assert found is not None
    assert [one.batch for one in found.batches] == [1]


def test_where_room_is_scarce_the_log_takes_none_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: it took the last of it from what a head writes next, and did not start again."""
    monkeypatch.setattr(journal_room, "_LEAST_FREE_BYTES", 1 << 60)
    store = JournalStore(tmp_path / FILE_NAME, "full")
    store.load(0.0)
    assert Path(f"{tmp_path / FILE_NAME}-wal").stat().st_size < 1 << 20
    store.close()


@pytest.mark.parametrize("number", [0, 1, 300])
def test_a_head_that_was_killed_leaves_the_next_one_its_room(tmp_path: Path, number: int) -> None:
    """Regression: a disk that had become full had none for what the log holds."""
    path, copy = tmp_path / FILE_NAME, tmp_path / "copy" / FILE_NAME
    copy.parent.mkdir()
    store = JournalStore(path, "full")
    store.load(0.0)
    for one in range(1, number + 1):
        store.commit([a_batch(one, 1)])
    for suffix in ("", "-wal", "-seen"):
        Path(f"{copy}{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
    store.close()
    log = Path(f"{copy}-wal")
    used = len(log.read_bytes().rstrip(b"\0"))
    journal_room.give_log_room_back(str(copy))
    size = log.stat().st_size
    assert used <= size < used + 4_120
    assert (size - 32) % 4_120 == 0
    journal_files.expect_log(copy)
    found = JournalStore(copy).load(1.0)
    assert len(found.batches if found is not None else ()) == number


@pytest.mark.parametrize("content", [b"", bytes(5_000), b"x" * 5_000 + bytes(5_000)])
def test_what_is_no_log_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    """Whoever looks at it says what is wrong."""
    log = tmp_path / f"{FILE_NAME}-wal"
    journal_room.give_log_room_back(str(tmp_path / FILE_NAME))
    assert not log.exists()
    log.write_bytes(content)
    journal_room.give_log_room_back(str(tmp_path / FILE_NAME))
    assert log.read_bytes() == content


def test_a_disk_that_fails_is_not_taken_for_one_without_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync that fails stops the head, here as later."""

    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def fsync(self, descriptor: int) -> None:
            raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(journal_room, "os", Broken())
    store = JournalStore(tmp_path / FILE_NAME, "full")
    with pytest.raises(ConfigError, match="input/output error"):
        store.load(0.0)
    store.close()


def test_a_head_looks_for_room_to_give_back_only_when_something_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would do so after each commit, while that is told of."""
    looks: list[bool] = []

    def tidy(_: object) -> bool:
        looks.append(True)
        return False

    monkeypatch.setattr(journal_room, "tidy", tidy)
    store = JournalStore(tmp_path / FILE_NAME)
    store.load(0.0)
    cases: list[tuple[list[c.JournalCommand], bool]] = [
        ([], True),  # an earlier head may have left something
        ([a_batch(1, 10)], False),
        ([an_outcome(1, 10), c.ForgetArguments(1, b"")], True),
        ([a_batch(2, 10), a_batch(3, 10)], False),
        ([c.ForgetBatch(1), a_batch(4, 10)], True),
    ]
    for commands, are_looked_at in cases:
        store.commit(commands)
        looks.clear()
        assert store.tidy() is False
        assert bool(looks) is are_looked_at, commands
    store.close()


async def test_room_that_is_not_needed_any_more_goes_back_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a burst, while nothing else is to do, piece by piece; what is kept stays whole."""
    monkeypatch.setattr(journal_room, "SPARE_PAGES", 100)
    monkeypatch.setattr(journal_store, "_CHECKPOINT_PAGES", 100)
    path = tmp_path / FILE_NAME
    store = JournalStore(path, "process")
    loop = asyncio.get_running_loop()
    failures: list[BaseException] = []
    journal = GroupCommitJournal(store, "process", loop, on_failure=failures.append)
    for number in range(1, 41):
        journal.append(a_batch(number, 1000))
    await aeventually(lambda: journal.committed == journal.appended)
    for number in range(1, 40):
        journal.append(c.ForgetBatch(number))
    await aeventually(lambda: journal.committed == journal.appended)
    await aeventually(lambda: path.stat().st_size < 2_200_000)
    await journal.close()
    assert failures == []
    assert size(path) < 2_200_000
    found = JournalStore(path).load(1.0)
    assert found is not None
    assert [(one.batch, one.payloads) for one in found.batches] == [
        (40, PayloadColumn.of([PAYLOAD] * 1000))
    ]


def test_results_go_by_size_and_by_time_and_the_journal_with_them(tmp_path: Path) -> None:
    """The core's bounds are the journal's: what it evicts leaves no bytes, what expires no row."""
    core = Scheduler(SchedulerSettings(result_memory_bytes=50_000, result_ttl_s=60.0))
    store = JournalStore(tmp_path / FILE_NAME, "process")
    journaled: tuple[type[object], ...] = c.JournalCommand.__args__
    now = 0.0

    def feed(event: object) -> list[c.Command]:
        commands = core.handle(event, now)  # type: ignore[arg-type]
        kept = [one for one in commands if isinstance(one, journaled)]
        store.commit(kept)  # type: ignore[arg-type]
        return commands

    info = WorkerInfo("w", 1, "w", "", {"cpu_cores": 64})
    feed(WorkerJoined(info, 1))
    feed(WorkerReported("w", 1, (), (), (), (), False, False))
    feed(CodeReceived(b"h" * 32, b"code"))
    task_class = TaskClass("f", b"h" * 32)
    for number in range(500):
        payloads = PayloadColumn.of([b"a"] * 10)
        commands = feed(TasksSubmitted(PREFIX, 10 * number, task_class, payloads, True))
        for grant in [one for one in commands if isinstance(one, c.GrantLease)]:
            results = PayloadColumn.of([PAYLOAD] * len(grant.payloads))
            outcome = LeaseOutcome(grant.lease, 0, TaskState.SUCCEEDED, results, 1)
            feed(WorkerReported("w", 1, None, (outcome,), (), (), False, False))
    (kept,) = store._db.execute("SELECT sum(length(payloads)) FROM outcome").fetchone()
    kept_rows = "SELECT count(*) FROM outcome WHERE payloads IS NOT NULL"
    (rows,) = store._db.execute(kept_rows).fetchone()
    assert rows <= 50_000 // 400
    assert kept <= 50_000
    now = 100.0
    feed(TimePassed())
    for table in ("batch", "outcome", "code"):
        assert store._db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    store.close()
