"""The journal: what is committed comes back, and nothing is told before."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rustray
from helpers.power_cut import Disk
from helpers.waiting import aeventually
from rustray.client.options import check_options
from rustray.common.errors import CommunicationError, ConfigError, PayloadError
from rustray.common.resources import ResourceSet
from rustray.head import journal_files
from rustray.head.driver import HeadDriver
from rustray.head.journal import GroupCommitJournal
from rustray.head.journal_rows import SCHEMA_VERSION
from rustray.head.journal_store import JournalStore
from rustray.head.notifications import NotificationManager
from rustray.proto.rustray.v1 import common_pb2 as common
from rustray.rpc.api import SubmitItem
from rustray.rpc.codec import (
    decode_assign_frame,
    decode_client_frame,
    encode_assign_frame,
    encode_client_frame,
)
from rustray.rpc.request_codec import get_item, put_item
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.scheduler import stream_commands as sc
from rustray.scheduler.scheduler import Scheduler
from rustray.task.columns import PayloadColumn
from rustray.task.frames import AssignFrame, ClassDefinition, ClientFrame, Outcome
from rustray.task.spec import Codec, TaskClass
from rustray.task.state import TaskState

PREFIX = b"0123456789"
CALL = TaskClass(
    "f",
    b"h" * 32,
    resources=ResourceSet.of({"cpu_cores": 0.5, "gpus": 1}),
    labels=(("zone", "a"),),
    priority=-3,
    max_retries=7,
    timeout_s=1.5,
    codec=Codec.PICKLE,
)


def a_batch(number: int, *items: bytes, task_class: TaskClass = CALL) -> c.PersistBatch:
    """A batch whose first sequence is ten times its number."""
    return c.PersistBatch(number, PREFIX, 10 * number, task_class, PayloadColumn.of(items), True)


def an_outcome(number: int, batch: int, offset: int, *items: bytes) -> c.PersistOutcome:
    """An outcome of consecutive tasks."""
    payloads = PayloadColumn.of(items)
    outcome = Outcome(10 * batch + offset, TaskState.SUCCEEDED, payloads, "w-1", 1)
    return c.PersistOutcome(number, batch, offset, outcome)


def test_an_id_is_committed_with_its_task(tmp_path: Path) -> None:
    """There is no moment at which the file has a task that is not found by its id."""
    path = tmp_path / "journal.db"
    store = JournalStore(path)
    store.commit([a_batch(1, b"a", b"b")])
    with contextlib.closing(sqlite3.connect(path)) as reader:
        rows = reader.execute("SELECT prefix, first, count, payloads FROM batch").fetchall()
    assert rows == [(PREFIX, 10, 2, b"ab")]
    store.close()


@pytest.mark.parametrize(("level", "is_synced"), [("full", True), ("process", False)])
def test_a_commit_at_level_full_is_synced(tmp_path: Path, level: str, is_synced: bool) -> None:
    """The log is written, and its sync comes before the commit returns; "process" does without."""
    disk = Disk()
    store = JournalStore(tmp_path / "journal.db", level, connect=disk.connect)
    before = len(disk.steps)
    store.commit([a_batch(1, b"a")])
    steps = [step.kind for step in disk.steps[before:] if step.name.endswith("-wal")]
    assert "write" in steps
    assert (steps[-1] == "sync") is is_synced
    store.close()


def test_what_was_committed_comes_back(tmp_path: Path) -> None:
    """Batches, outcomes, cancels, budgets, code and workers, as they were, and how old they are."""
    path = tmp_path / "journal.db"
    now = [1000.0]
    store = JournalStore(path, "full", lambda: now[0])
    batch = replace(a_batch(1, b"a", b"b", b""), deadline_unix_s=1100.0)
    store.commit([c.PersistCode(b"h" * 32, b"code"), batch])
    now[0] = 1010.0
    store.commit(
        [
            an_outcome(5, 1, 1, b"B"),
            c.PersistCancel(1, 2, 1, force=True),
            c.PersistGrant(1, 0, 2, True),
            c.PersistGrant(1, 1, 1, False),
            c.PersistRerun(1, 0, 1, 1),
            c.PersistRerun(1, 0, 2, 2),
            c.PersistOomRerun(1, 0, 1),
            c.PersistOomRerun(1, 0, 2),
            c.PersistCrash(1, 0, "killed by signal 11"),
            c.PersistCrash(1, 0, "killed by signal 6"),
            c.PersistWorker("w-1"),
            c.PersistWorker("w-2"),
            c.ForgetWorker("w-2"),
        ]
    )
    store.close()
    now[0] = 1030.0
    found = JournalStore(path, "full", lambda: now[0]).load(20.0)
    assert found == e.StateRecovered(
        (
            e.RecoveredBatch(
                1,
                PREFIX,
                10,
                3,
                CALL,
                PayloadColumn.of([b"a", b"b", b""]),
                None,
                True,
                30.0,
                1100.0,
                70.0,
            ),
        ),
        (e.RecoveredOutcome(5, 1, 1, 1, an_outcome(5, 1, 1, b"B").outcome, False, 20.0),),
        ((1, 2, 1, 1),),
        ((1, 0, 2, 2),),
        ((1, 0, 2),),
        ((1, 0, "killed by signal 11"), (1, 0, "killed by signal 6")),
        ((1, 0, 2, 1), (1, 1, 1, 0)),
        ((b"h" * 32, b"code"),),
        ("w-1",),
        20.0,
        1,
        is_clock_sure=True,
    )


def test_slices_come_back_as_what_they_are(tmp_path: Path) -> None:
    """A column that is a part of another one is stored with its own base."""
    path = tmp_path / "journal.db"
    column = PayloadColumn.of([b"aa", b"bbb", b"c"]).slice(1, 3)
    store = JournalStore(path)
    store.commit([c.PersistBatch(1, PREFIX, 0, CALL, column, False)])
    store.close()
    found = JournalStore(path).load(1.0)
    assert found is not None
    assert found.batches[0].payloads is not None
    assert list(found.batches[0].payloads) == [b"bbb", b"c"]


def test_what_is_forgotten_leaves_nothing(tmp_path: Path) -> None:
    """The file holds what the head holds: no rows are left of what has expired."""
    store = JournalStore(tmp_path / "journal.db")
    store.commit([a_batch(1, b"a"), c.PersistCancel(1, 0, 1), c.PersistRerun(1, 0, 1, 1)])
    store.commit([c.PersistOomRerun(1, 0, 1)])
    store.commit([an_outcome(1, 1, 0, b"A"), c.PersistCode(b"h", b"x")])
    store.commit([c.ForgetResults(1), c.ForgetBatch(1), c.ForgetCode(b"h")])
    assert store.load(1.0) is None
    store.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.db")) as db:
        for table in ("batch", "outcome", "cancel", "rerun", "oom_rerun", "code", "class"):
            assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_what_is_shared_comes_back_as_it_was_last(tmp_path: Path) -> None:
    """Rows of locks and queues: the last value under each key, and none that was dropped."""
    store = JournalStore(tmp_path / "journal.db")
    store.commit([c.PersistShared(b"a", b"1"), c.PersistShared(b"b", b"2")])
    store.commit([c.PersistShared(b"a", b"3"), c.ForgetShared(b"b"), c.ForgetShared(b"c")])
    store.close()
    store = JournalStore(tmp_path / "journal.db")
    assert store.load(1.0) is None
    assert store.shared == [(b"a", b"3")]
    store.close()


_LATER = {
    2: "DROP TABLE crash;",
    3: "DROP TABLE oom_rerun;",
    4: "ALTER TABLE batch DROP COLUMN deadline;",
    5: "DROP TABLE large;",
    6: "DROP TABLE event;",
    7: "DROP TABLE retry; DROP TABLE purge;"
    + "".join(
        f"ALTER TABLE outcome DROP COLUMN {name};"
        for name in ("fence", "argument_base", "argument_ends", "arguments")
    ),
    8: "ALTER TABLE cancel DROP COLUMN force;",
    9: "ALTER TABLE batch DROP COLUMN principal;",
    10: "DROP TABLE token;",
    11: "ALTER TABLE batch DROP COLUMN durability;",
    12: "".join(
        f"ALTER TABLE batch DROP COLUMN {name};" for name in ("input_base", "input_ends", "inputs")
    ),
    13: "DROP TABLE shared;",
    14: "DROP TABLE item; DROP TABLE item_read;",
    15: "ALTER TABLE outcome DROP COLUMN placed;",
    16: "DROP TABLE expired;",
}
"""Schema version to what takes its novelty away."""


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_a_journal_of_an_older_schema_is_brought_up_to_date(tmp_path: Path, version: int) -> None:
    """A check reads an older file as it is, and the next start migrates it with all it holds."""
    path = tmp_path / "journal.db"
    store = JournalStore(path)
    store.commit([a_batch(1, b"a"), c.PersistRerun(1, 0, 1, 1), c.PersistCancel(1, 0, 1)])
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        drops = "".join(_LATER[later] for later in range(version + 1, SCHEMA_VERSION + 1))
        db.executescript(f"{drops} PRAGMA user_version = {version};")
    assert journal_files.check(path).tasks == 1
    assert journal_files.backup(path, tmp_path / "copy.db").tasks == 1
    store = JournalStore(path)
    store.commit([c.PersistOomRerun(1, 0, 1), c.PersistCrash(1, 0, "boom")])
    found = store.load(1.0)
    assert found is not None
    assert (found.reruns, found.oom_reruns, found.crashes, found.cancels) == (
        ((1, 0, 1, 1),), ((1, 0, 1),), ((1, 0, "boom"),), ((1, 0, 1, 0),),
    )  # fmt: skip
    store.close()
    assert journal_files.check(path).tasks == 1


def test_a_task_that_an_earlier_head_accepted_is_taken_up_whatever_its_labels_are() -> None:
    """They are judged where they come in: a worker takes them as they are, a new client may not."""
    store = JournalStore(":memory:")
    odd = TaskClass("f", labels=(("note", "two\nlines"), ("x" * 300, "y")))
    batch = c.PersistBatch(1, PREFIX, 0, odd, PayloadColumn.of([b"a"]), True)
    store.commit([batch])
    found = store.load(1.0)
    assert found is not None
    assert found.batches[0].task_class == odd
    frame = AssignFrame(number=1, classes=[ClassDefinition(1, odd)])
    assert decode_assign_frame(encode_assign_frame(frame)) == frame
    asked = encode_client_frame(ClientFrame(number=1, classes=frame.classes))
    with pytest.raises(CommunicationError, match="the value of label 'note'"):
        decode_client_frame(asked)
    item = common.TaskRequest()
    put_item(item, SubmitItem(PREFIX, 0, odd, b""))
    with pytest.raises(PayloadError, match="the value of label 'note'"):
        get_item(item, PREFIX, 0)
    with pytest.raises(ValueError, match="the value of label 'note'"):
        rustray.ResourceRequirements(labels=dict(odd.labels))
    with pytest.raises(ValueError, match="the value of label 'note'"):
        check_options({"labels": dict(odd.labels)})


def test_events_come_back_until_they_are_forgotten(tmp_path: Path) -> None:
    """Under their numbers, in order."""
    told = [
        c.PersistEvents(
            first, 12.5, c.PublishEvents(PREFIX, first, 3, TaskState.RUNNING, 2, "w", "f")
        )
        for first in (1, 4, 1000)
    ]
    path = tmp_path / "journal.db"
    store = JournalStore(path)
    store.commit([*told, c.ForgetEvents(4)])
    store.close()
    store = JournalStore(path)
    store.load(1.0)
    assert store.events == told[1:]


def test_a_commit_is_all_or_nothing(tmp_path: Path) -> None:
    """A group that fails half-way leaves no trace."""
    store = JournalStore(tmp_path / "journal.db")
    store.commit([a_batch(1, b"a")])
    with pytest.raises(sqlite3.Error):
        store.commit([a_batch(2, b"b"), a_batch(1, b"again")])
    found = store.load(1.0)
    assert found is not None
    assert [batch.batch for batch in found.batches] == [1]


@pytest.mark.parametrize("kind", ["garbage", "foreign", "newer", "torn"])
def test_a_file_that_is_not_right_is_refused(tmp_path: Path, kind: str) -> None:
    """It is named, the remedy too, and it is never replaced."""
    path = tmp_path / "journal.db"
    if kind == "garbage":
        path.write_bytes(b"not a database at all" * 300)
    elif kind == "foreign":
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE t (x)")
    else:
        store = JournalStore(path)
        store.commit([a_batch(n, bytes(3000)) for n in range(1, 40)])
        store.close()
        if kind == "newer":
            with contextlib.closing(sqlite3.connect(path)) as db:
                db.execute("PRAGMA user_version = 99")
        else:
            content = bytearray(path.read_bytes())
            content[4096 * 4 :] = bytes(len(content) - 4096 * 4)
            path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"journal\.db"):
        JournalStore(path).load(1.0)
    assert path.read_bytes() == before


class SlowStore:
    """A store whose commits wait until they are let go, or fail."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.error: BaseException | None = None
        self.groups: list[list[c.JournalCommand]] = []
        self.syncs: list[bool] = []

    def commit(self, commands: Sequence[c.JournalCommand], is_synced: bool) -> None:
        self.gate.acquire()
        if self.error is not None:
            raise self.error
        self.groups.append(list(commands))
        self.syncs.append(is_synced)

    def tidy(self) -> bool:
        return False

    def close(self) -> None:
        self.gate.release()


class Heard:
    """A client that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def accept(self, command: c.AcceptTasks) -> None:
        self.told.append(f"accepted {command.count}")

    def reject(self, command: c.RejectTasks) -> None:
        self.told.append("rejected")

    def deliver(self, command: c.DeliverOutcome) -> None:
        self.told.append("delivered")

    def deliver_items(self, command: sc.DeliverItems) -> None:
        self.told.append("items")

    def unknown(self, command: c.ReportUnknown) -> None:
        self.told.append("unknown")


async def test_nothing_is_told_before_it_is_committed() -> None:
    """An ack waits for its commit, those behind it wait together, and go in order."""
    store = SlowStore()
    failures: list[BaseException] = []
    loop = asyncio.get_running_loop()
    journal = GroupCommitJournal(store, "full", loop, on_failure=failures.append)
    driver = HeadDriver(Scheduler(), NotificationManager(), journal, loop)
    client = driver.clients[PREFIX] = Heard()
    plain = TaskClass("f")
    for first, count in ((0, 1), (1, 2)):
        payloads = PayloadColumn.of([b"x"] * count)
        driver.handle(e.TasksSubmitted(PREFIX, first, plain, payloads, True))
        await asyncio.sleep(0)
    driver.handle(e.TasksSubmitted(PREFIX, 9, plain, PayloadColumn.of([b"x"] * 3), True))
    waiting = asyncio.create_task(driver.safe())
    assert (client.told, driver.is_safe) == ([], False)
    store.gate.release()
    await aeventually(lambda: client.told)
    assert (client.told, waiting.done()) == (["accepted 1"], False)
    store.gate.release()
    await waiting
    assert client.told == ["accepted 1", "accepted 2", "accepted 3"]
    batches = [[one for one in g if isinstance(one, c.PersistBatch)] for g in store.groups]
    assert list(map(len, batches)) == [1, 2]
    await journal.close()


async def test_a_commit_that_fails_stops_everything() -> None:
    """Nothing is told, nothing is tried again, and the head learns of it once."""
    store = SlowStore()
    failures: list[BaseException] = []
    loop = asyncio.get_running_loop()
    store.error = OSError(5, "Input/output error")
    journal = GroupCommitJournal(store, "full", loop, on_failure=failures.append)
    driver = HeadDriver(Scheduler(), NotificationManager(), journal, loop)
    client = driver.clients[PREFIX] = Heard()
    payloads = PayloadColumn.of([b"x"])
    driver.handle(e.TasksSubmitted(PREFIX, 0, TaskClass("f"), payloads, True))
    store.gate.release()
    await aeventually(lambda: failures)
    driver.handle(e.TasksSubmitted(PREFIX, 1, TaskClass("f"), payloads, True))
    await journal.close()
    assert (client.told, failures, store.groups) == ([], [store.error], [])


class Counting(JournalStore):
    """A store that counts what it commits."""

    commands = 0

    def commit(self, commands: Sequence[c.JournalCommand], is_synced: bool | None = None) -> None:
        super().commit(commands, is_synced)
        self.commands += len(commands)


async def test_closing_commits_what_waits_and_tells_of_it() -> None:
    """An orderly end loses nothing: the last group goes, however many were before it."""
    store = Counting(":memory:")
    told: list[int] = []
    journal = GroupCommitJournal(
        store, "full", asyncio.get_running_loop(), on_failure=lambda error: told.append(-1)
    )
    journal.on_commit = lambda: told.append(journal.committed)
    for number in range(1, 6):
        journal.append(a_batch(number, b"a"))
    await journal.close()
    assert (store.commands, journal.committed, told[-1]) == (5, 5, 5)


async def test_nothing_is_committed_after_a_commit_that_failed() -> None:
    """Also not while closing: nobody knows what the disk has."""
    store = SlowStore()
    store.error = OSError(5, "Input/output error")
    failures: list[BaseException] = []
    journal = GroupCommitJournal(
        store, "full", asyncio.get_running_loop(), on_failure=failures.append
    )
    journal.append(a_batch(1, b"a"))
    await asyncio.sleep(0)
    journal.append(a_batch(2, b"b"))
    store.gate.release(5)
    await journal.close()
    assert (store.groups, failures, journal.committed) == ([], [store.error], 0)


@pytest.mark.parametrize("pragma", ["user_version = 99", "application_id = 1"])
def test_a_file_of_somebody_else_is_let_go(tmp_path: Path, pragma: str) -> None:
    """Bug: it stayed open until the garbage collector came by."""
    opened: list[sqlite3.Connection] = []

    def connect(path: str) -> sqlite3.Connection:
        opened.append(sqlite3.connect(path, isolation_level=None))
        return opened[-1]

    path = tmp_path / "journal.db"
    with contextlib.closing(connect(str(path))) as db:
        db.executescript(f"CREATE TABLE t (x); PRAGMA {pragma}")
    with pytest.raises(ConfigError):
        JournalStore(path, connect=connect)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[-1].execute("SELECT 1")


class _Filling:
    """A database whose disk fills up."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self.is_full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def execute(self, statement: str, *values: Any) -> Any:
        if self.is_full and not statement.startswith("SELECT"):
            raise sqlite3.OperationalError("database or disk is full")
        return self._db.execute(statement, *values)


def test_a_disk_that_is_full_at_the_end_is_no_bug(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A head that was told to stop stops; the next one finds all that was committed."""
    made: list[_Filling] = []

    def connect(path: str) -> _Filling:
        made.append(_Filling(path))
        return made[-1]

    path = tmp_path / "journal.db"
    store = JournalStore(path, connect=connect)
    store.load(1.0)
    store.commit([a_batch(1, b"a")])
    made[0].is_full = True
    store.close()
    assert "left as after a crash" in caplog.text
    assert (tmp_path / "journal.db-wal").stat().st_size > 0
    journal_files.expect_log(path)
    found = JournalStore(path).load(1.0)
    assert found is not None
    assert [batch.batch for batch in found.batches] == [1]
