"""How large a journal becomes, and how it gets small again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from helpers.scheduling import PREFIX
from helpers.waiting import aeventually
from rustray.head import journal_room, journal_store
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
