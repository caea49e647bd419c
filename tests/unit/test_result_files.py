"""Large results in files: written before they are referred to, checked when they are read."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
import threading
from pathlib import Path

import pytest

from helpers.scheduling import ANYTHING, PREFIX
from helpers.waiting import aeventually
from rustray.common.errors import HeadUnavailable, ObjectLost, TaskNotFound
from rustray.head import journal_files, result_reader
from rustray.head.client_peer import ClientPeer
from rustray.head.driver import HeadDriver
from rustray.head.journal import GroupCommitJournal
from rustray.head.journal_store import FILE_NAME, JournalStore
from rustray.head.notifications import NotificationManager
from rustray.head.result_files import ResultFiles, name_of
from rustray.head.result_reader import ResultReader
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.scheduler.scheduler import Scheduler
from rustray.scheduler.state import SchedulerSettings
from rustray.security.state_dir import StateDir
from rustray.task.columns import PayloadColumn, StoredColumn
from rustray.task.failures import decode_failure
from rustray.task.frames import ClientFrame, LeaseOutcome, Outcome, TaskRange
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from rustray.task.views import WorkerInfo

BIG = b"0123456789abcdef" * 20_000


def a_batch(number: int, count: int) -> c.PersistBatch:
    """A batch of so many tasks."""
    return c.PersistBatch(
        number, PREFIX, 100 * number, TaskClass("f"), PayloadColumn.of([b"x"] * count), True
    )


def an_outcome(number: int, batch: int, *items: bytes) -> c.PersistOutcome:
    """A large outcome of a batch's first tasks."""
    outcome = Outcome(100 * batch, TaskState.SUCCEEDED, PayloadColumn.of(items), "w", 1)
    return c.PersistOutcome(number, batch, 0, outcome, is_large=True)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    """A state directory whose journal has a large result, of the middle one of three tasks."""
    directory = StateDir(tmp_path / "state")
    directory.create()
    store = JournalStore(directory.path / FILE_NAME)
    store.commit([a_batch(1, 3), an_outcome(7, 1, b"first", BIG, b"last")])
    store.close()
    return directory


def the_file(state: StateDir) -> Path:
    """Return the file of the large result."""
    (path,) = journal_files.results_of(state.path / FILE_NAME).iterdir()
    return path


def the_column(state: StateDir) -> StoredColumn:
    """Return what a start finds in the result's place."""
    store = JournalStore(state.path / FILE_NAME)
    found = store.load(1.0)
    store.close()
    assert found is not None
    column = found.outcomes[0].outcome.payloads
    assert isinstance(column, StoredColumn)
    return column


async def read(state: StateDir, column: StoredColumn) -> list[bytes]:
    """Read it as the head does."""
    reader = ResultReader(state.path / FILE_NAME)
    try:
        return list(await reader.read(column))
    finally:
        await reader.close()


async def test_a_large_result_is_a_file_and_comes_back(state: StateDir) -> None:
    """Only its owner can read the file, the database does not hold it, any slice can be had."""
    assert the_file(state).stat().st_mode & 0o777 == 0o600
    assert the_file(state).parent.stat().st_mode & 0o777 == 0o700
    assert (state.path / FILE_NAME).stat().st_size < len(BIG)
    column = the_column(state)
    assert (len(column), column.size_bytes) == (3, len(BIG) + 9)
    assert await read(state, column) == [b"first", BIG, b"last"]
    assert await read(state, column.slice(1, 3)) == [BIG, b"last"]


@pytest.mark.parametrize("damage", ["flipped", "short", "long", "missing", "link"])
async def test_what_is_not_what_was_written_is_never_handed_out(
    state: StateDir, damage: str, tmp_path: Path
) -> None:
    """A file that was changed gives an error that says what to do, and the check names it."""
    column, path = the_column(state), the_file(state)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[1000] ^= 1
    elif damage == "short":
        del content[-1]
    else:
        content += b"x"
    path.unlink()
    if damage == "link":
        (tmp_path / "elsewhere").write_bytes(content[:-1])
        path.symlink_to(tmp_path / "elsewhere")
    elif damage != "missing":
        path.write_bytes(content)
    with pytest.raises(ObjectLost, match="run the task again"):
        await read(state, column)
    found = journal_files.check(state.path / FILE_NAME)
    assert (found.results, found.lost) == (1, (path.name,))


async def test_a_machine_that_is_short_of_descriptors_has_lost_no_result(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: a result that could not be opened for a while was told to be lost."""
    monkeypatch.setattr(result_reader, "PAUSES_S", (0.0,) * 3)
    no_file = sqlite3.OperationalError("unable to open database file")
    no_file.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
    errors = [OSError(errno.EMFILE, "too many open files"), no_file] * 10
    reader = ResultReader(state.path / FILE_NAME)
    whole = reader._read_whole

    def scarce(number: int) -> PayloadColumn | None:
        if errors:
            raise errors.pop()
        return whole(number)

    monkeypatch.setattr(reader, "_read_whole", scarce)
    assert list(await reader.read(the_column(state))) == [b"first", BIG, b"last"]
    await reader.close()


async def test_a_disk_that_cannot_read_loses_the_result(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is no shortage which passes, so whoever asks is told at once."""
    reader = ResultReader(state.path / FILE_NAME)

    def broken(_: int) -> PayloadColumn | None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(reader, "_read_whole", broken)
    with pytest.raises(ObjectLost):
        await reader.read(the_column(state))
    await reader.close()


async def test_a_head_that_stops_does_not_wait_for_descriptors(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one who asked is told to ask again, and not that anything is lost."""
    reader = ResultReader(state.path / FILE_NAME)
    has_tried = threading.Event()

    def scarce(_: int) -> PayloadColumn | None:
        has_tried.set()
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(reader, "_read_whole", scarce)
    reading = asyncio.create_task(reader.read(the_column(state)))
    await asyncio.to_thread(has_tried.wait)
    await reader.close()
    with pytest.raises(HeadUnavailable):
        await reading


async def test_an_expired_result_takes_its_file_along(state: StateDir) -> None:
    """After the commit, so that whoever reads meanwhile finds it or is told that it expired."""
    column = the_column(state)
    store = JournalStore(state.path / FILE_NAME)
    store.commit([c.ForgetResults(7, is_large=True)])
    assert list(journal_files.results_of(state.path / FILE_NAME).iterdir()) == []
    with pytest.raises(TaskNotFound, match="expired"):
        await read(state, column)
    store.close()
    assert journal_files.check(state.path / FILE_NAME).lost == ()


def test_one_commit_may_write_and_expire_a_result(tmp_path: Path) -> None:
    """The file is gone after it, and no other."""
    store = JournalStore(tmp_path / FILE_NAME)
    store.commit([a_batch(1, 1), a_batch(2, 1), an_outcome(2, 2, BIG)])
    store.commit([an_outcome(1, 1, BIG), c.ForgetResults(1, is_large=True)])
    assert len(ResultFiles(tmp_path / FILE_NAME, is_synced=True).names()) == 1
    store.close()


def test_a_start_removes_files_that_nobody_refers_to(state: StateDir) -> None:
    """They are of commits that never were; the check counts them, and the right one stays."""
    kept = the_file(state)
    for name in ("8-0123456789abcdef", name_of(7, b"q" * 32)):
        (kept.parent / name).write_bytes(b"half")
    assert journal_files.check(state.path / FILE_NAME).orphans == 2
    the_column(state)
    assert the_file(state) == kept


def test_a_number_that_is_used_again_replaces_what_a_failed_commit_left(tmp_path: Path) -> None:
    """A file of before, whole or not, is no obstacle."""
    files = ResultFiles(tmp_path / FILE_NAME, is_synced=True)
    digest = files.write(5, BIG)
    (files.path / name_of(5, digest)).write_bytes(b"half")
    files.write(5, BIG)
    assert (files.path / name_of(5, digest)).read_bytes() == BIG


def test_a_file_that_cannot_be_written_fails_the_commit(tmp_path: Path) -> None:
    """So nothing refers to it, and the head stops without an ack."""
    store = JournalStore(tmp_path / FILE_NAME)
    journal_files.results_of(tmp_path / FILE_NAME).write_bytes(b"in the way")
    with pytest.raises(OSError, match="results"):
        store.commit([a_batch(1, 1), an_outcome(1, 1, BIG)])
    journal_files.results_of(tmp_path / FILE_NAME).unlink()
    assert store.load(1.0) is None
    store.close()


async def test_backup_and_restore_carry_the_files(state: StateDir, tmp_path: Path) -> None:
    """The copy is whole; what was replaced keeps its files; a file's damage does not spread."""
    journal, copy = state.path / FILE_NAME, tmp_path / "copy.db"
    assert journal_files.backup(journal, copy).results == 1
    store = JournalStore(journal)
    store.commit([c.ForgetResults(7, is_large=True), a_batch(2, 1), an_outcome(8, 2, BIG + b"!")])
    store.close()
    restored, kept = journal_files.restore(state, copy)
    assert (restored.results, restored.lost, restored.orphans) == (1, (), 1)
    assert kept is not None
    assert journal_files.check(kept).lost == ()
    assert await read(state, the_column(state)) == [b"first", BIG, b"last"]
    assert journal_files.check(kept).lost == ()
    assert sorted(one.name for one in state.path.iterdir() if "restoring" in one.name) == []
    again, _ = journal_files.restore(state, kept)
    assert (again.results, again.lost) == (1, ())


def test_a_lost_file_does_not_stop_a_backup(state: StateDir, tmp_path: Path) -> None:
    """Everything else is saved, and the copy says what it lacks."""
    the_file(state).unlink()
    found = journal_files.backup(state.path / FILE_NAME, tmp_path / "copy.db")
    assert (found.tasks, len(found.lost)) == (3, 1)


class Client:
    """A link that keeps the frames of a peer."""

    def __init__(self, peer: ClientPeer) -> None:
        self.peer = peer
        self.outcomes: dict[int, Outcome] = {}
        self.unknown: list[TaskRange] = []
        self.most = 0

    def wake(self) -> None:
        asyncio.get_running_loop().call_soon(self._take)

    wake_now = wake

    def _take(self) -> None:
        while (frame := self.peer.next_frame()) is not None:
            self.most = max(self.most, sum(len(o.payloads.blob) for o in frame.outcomes))
            self.outcomes.update({one.first: one for one in frame.outcomes})
            self.unknown += frame.unknown

    async def close(self) -> None:
        self.peer.on_closed(None)


async def test_a_client_that_comes_back_is_sent_large_results_one_by_one(state: StateDir) -> None:
    """From the files, without the bytes of all in memory; a damaged one is a typed failure."""
    journal_path = state.path / FILE_NAME
    store = JournalStore(journal_path)
    loop = asyncio.get_running_loop()
    recovered = store.load(0.0)
    assert recovered is not None
    journal = GroupCommitJournal(store, "full", loop, on_failure=lambda error: None)
    settings = SchedulerSettings(result_disk_bytes=1 << 30, first_lease=1 << 20)
    driver = HeadDriver(Scheduler(settings), NotificationManager(), journal, loop)
    driver.results = reader = ResultReader(journal_path)
    driver.handle(recovered)
    info = WorkerInfo("w", 1, "w", "", {"cpu_cores": 64}, functions=(ANYTHING,))
    driver.handle(e.WorkerJoined(info, 1))
    grants: list[c.GrantLease] = []
    driver.handle(e.WorkerReported("w", 1, (), (), (), (), False, False))
    for task in range(5):
        event = e.TasksSubmitted(
            PREFIX, 1000 + task, TaskClass("f"), PayloadColumn.of([b"a"]), True
        )
        grants += [one for one in driver.handle(event) if isinstance(one, c.GrantLease)]
    for number, grant in enumerate(grants):
        column = PayloadColumn.of([BIG + b"%d" % number])
        outcome = LeaseOutcome(grant.lease, 0, TaskState.SUCCEEDED, column, 1)
        driver.handle(e.WorkerReported("w", 1, None, (outcome,), (), (), False, False))
    await driver.safe()
    assert driver.scheduler.state.unstored == {}
    assert driver.scheduler.state.results.bytes == 0
    the_oldest = next(
        one for one in journal_files.results_of(journal_path).iterdir() if one.name.startswith("7-")
    )
    the_oldest.write_bytes(b"garbage")
    peer = ClientPeer(driver, PREFIX, True, lambda prefix: True)
    driver.clients[PREFIX] = peer
    client = Client(peer)
    peer.attach(client)
    peer.on_frame(ClientFrame(1, 0, follow=[TaskRange(100, 3), TaskRange(1000, 5)]))
    await aeventually(lambda: len(client.outcomes) == 6)
    assert [list(client.outcomes[1000 + n].payloads) for n in range(5)] == [
        [BIG + b"%d" % n] for n in range(5)
    ]
    lost = client.outcomes[100]
    assert lost.state is TaskState.FAILED
    assert {decode_failure(one).code for one in lost.payloads} == {"OBJECT_LOST"}
    assert client.most <= len(BIG) + 1
    assert driver.scheduler.state.counters["results_lost"] == 3
    await client.close()
    await reader.close()
    driver.close()
    await journal.close()
