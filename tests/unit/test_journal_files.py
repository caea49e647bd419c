"""What an operator does with a journal: check, backup, restore."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from rustray.common.errors import ConfigError
from rustray.head import journal_files
from rustray.head.journal_store import FILE_NAME, JournalStore
from rustray.scheduler import commands as c
from rustray.security.state_dir import StateDir
from rustray.task.columns import PayloadColumn
from rustray.task.frames import Outcome
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState

PREFIX = b"0123456789"


def a_batch(number: int, count: int) -> c.PersistBatch:
    """A batch of so many tasks."""
    payloads = PayloadColumn.of([b"x" * 2000] * count)
    return c.PersistBatch(number, PREFIX, 1000 * number, TaskClass("f"), payloads, True)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    """A state directory with a journal of 15 tasks, 2 of which have ended."""
    directory = StateDir(tmp_path / "state")
    directory.create()
    store = JournalStore(directory.path / FILE_NAME)
    outcome = Outcome(1000, TaskState.SUCCEEDED, PayloadColumn.of([b"a", b"b"]), "w", 1)
    store.commit(
        [a_batch(1, 10), a_batch(2, 5), c.PersistOutcome(1, 1, 0, outcome), c.PersistWorker("w")]
    )
    store.close()
    return directory


def counts(found: journal_files.JournalSummary) -> tuple[int, int, int, int]:
    """Return batches, tasks, ended tasks and workers."""
    return (found.batches, found.tasks, found.ended, found.workers)


def test_a_sound_journal_is_counted_and_not_changed(state: StateDir) -> None:
    """The check reads everything, and a start afterwards is the first one still."""
    path = state.path / FILE_NAME
    assert counts(journal_files.check(path)) == (2, 15, 2, 1)
    found = JournalStore(path).load(1.0)
    assert found is not None
    assert found.starts == 1


def test_a_retried_dead_letter_counts_once(state: StateDir) -> None:
    """Regression: each of its outcomes counted, and more tasks had ended than there were."""
    path = state.path / FILE_NAME
    store = JournalStore(path)
    failed = Outcome(2000, TaskState.FAILED, PayloadColumn.of([b"e"] * 5), "w", 1)
    again = c.PersistRetry(3, 2, 0, 5, 1, 1, PayloadColumn.of([b"x"] * 5))
    store.commit([c.PersistOutcome(2, 2, 0, failed), again])
    assert counts(journal_files.check(path)) == (2, 15, 2, 1)
    done = Outcome(2000, TaskState.SUCCEEDED, PayloadColumn.of([b"r"] * 5), "w", 2)
    store.commit([c.PersistOutcome(4, 2, 0, done)])
    store.close()
    assert counts(journal_files.check(path)) == (2, 15, 7, 1)


def test_a_backup_of_a_journal_in_use_is_whole(state: StateDir, tmp_path: Path) -> None:
    """What a running head has committed is in the copy; what comes later is not."""
    store = JournalStore(state.path / FILE_NAME)
    store.commit([a_batch(3, 4)])
    copy = tmp_path / "copy.db"
    assert counts(journal_files.backup(state.path / FILE_NAME, copy)) == (3, 19, 2, 1)
    assert copy.stat().st_mode & 0o777 == 0o600
    store.commit([a_batch(4, 1)])
    assert journal_files.check(copy).tasks == 19
    with pytest.raises(ConfigError, match="there already"):
        journal_files.backup(state.path / FILE_NAME, copy)
    store.close()


def test_a_restored_journal_is_the_copy_and_the_old_one_is_kept(
    state: StateDir, tmp_path: Path
) -> None:
    """Also when the present one is damaged, which is when it is needed."""
    path, copy = state.path / FILE_NAME, tmp_path / "copy.db"
    journal_files.backup(path, copy)
    path.write_bytes(b"garbage" * 5000)
    with pytest.raises(ConfigError, match="state restore FILE"):
        journal_files.check(path)
    restored, kept = journal_files.restore(state, copy)
    assert counts(restored) == (2, 15, 2, 1)
    assert kept is not None
    assert kept.read_bytes() == b"garbage" * 5000
    assert copy.exists()


def test_every_restore_keeps_what_was_there_under_a_name_of_its_own(
    state: StateDir, tmp_path: Path
) -> None:
    """Regression: the second overwrote what the first had kept, and mixed in its side file."""
    path, copy = state.path / FILE_NAME, tmp_path / "copy.db"
    journal_files.backup(path, copy)
    store = JournalStore(path)
    store.commit([a_batch(3, 4)])
    (state.path / f"{FILE_NAME}-wal").stat()
    _, first = journal_files.restore(state, copy)
    _, second = journal_files.restore(state, copy)
    store.close()
    assert first is not None
    assert second is not None
    assert [journal_files.check(one).tasks for one in (first, second, path)] == [19, 15, 15]


def test_a_lost_journal_or_half_a_restore_stops_the_head(state: StateDir) -> None:
    """Regression: the next head started empty without a word."""
    journal_files.expect_journal(state)
    journal_files.note_journal(state)
    journal_files.expect_journal(state)
    half = state.path / f"{FILE_NAME}.restoring"
    half.touch()
    with pytest.raises(ConfigError, match="interrupted"):
        journal_files.expect_journal(state)
    half.unlink()
    (state.path / FILE_NAME).write_bytes(b"")
    with pytest.raises(ConfigError, match="missing or empty"):
        journal_files.expect_journal(state)


@pytest.mark.parametrize("change", ["removed", "replaced", "wal"])
def test_a_journal_that_is_taken_away_fails_the_commit(state: StateDir, change: str) -> None:
    """Regression: the head acked into a file that no longer had a name."""
    path = state.path / FILE_NAME
    store = JournalStore(path)
    store.commit([a_batch(3, 4)])
    if change == "wal":
        Path(f"{path}-wal").unlink()
    else:
        path.unlink()
    if change == "replaced":
        path.write_bytes(b"")
    with pytest.raises(sqlite3.DatabaseError, match="removed or replaced"):
        store.commit([a_batch(4, 1)])
    store.close()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE outcome SET attempts = 'x'",
        "UPDATE outcome SET batch = 9999",
        "UPDATE outcome SET place = 50",
        "UPDATE outcome SET state = 1",
        "UPDATE batch SET prefix = x'00'",
        "UPDATE batch SET count = 3 WHERE id = 1",
        "DELETE FROM batch",
    ],
)
def test_rows_that_do_not_fit_together_are_found(state: StateDir, change: str) -> None:
    """Regression: the check called them sound, and the head started with them."""
    store = JournalStore(state.path / FILE_NAME)
    store._db.execute(change)
    store.close()
    with pytest.raises(ConfigError, match=r"journal\.db"):
        journal_files.check(state.path / FILE_NAME)
    with pytest.raises(ConfigError, match=r"journal\.db"):
        JournalStore(state.path / FILE_NAME).load(1.0)


def test_nothing_is_restored_under_a_running_head(state: StateDir, tmp_path: Path) -> None:
    """The lock that heads take keeps the journal in place."""
    path, copy = state.path / FILE_NAME, tmp_path / "copy.db"
    journal_files.backup(path, copy)
    before = path.read_bytes()
    with state.lock(), pytest.raises(ConfigError):
        journal_files.restore(state, copy)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["absent", "empty", "garbage", "class"])
def test_what_is_not_sound_is_neither_copied_nor_restored(
    state: StateDir, tmp_path: Path, kind: str
) -> None:
    """Each gives an error that names the file, and nothing is left behind."""
    bad = tmp_path / "bad.db"
    if kind == "empty":
        bad.touch()
    elif kind == "garbage":
        bad.write_bytes(b"no database" * 1000)
    elif kind == "class":
        store = JournalStore(bad)
        store.commit([a_batch(1, 1)])
        store._db.execute("UPDATE class SET definition = x'ffff'")
        store.close()
    before = (state.path / FILE_NAME).read_bytes()
    with pytest.raises(ConfigError, match=r"bad\.db"):
        journal_files.restore(state, bad)
    with pytest.raises(ConfigError, match=r"bad\.db"):
        journal_files.backup(bad, tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()
    assert (state.path / FILE_NAME).read_bytes() == before


def test_a_directory_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    """G12: for the journal, and a file in the place of its directory of results likewise."""
    (tmp_path / "is-a-directory.db").mkdir()
    with pytest.raises(ConfigError, match=r"is-a-directory\.db cannot be used now"):
        JournalStore(tmp_path / "is-a-directory.db")
    with pytest.raises(ConfigError, match=r"is-a-directory\.db"):
        journal_files.check(tmp_path / "is-a-directory.db")
    store = JournalStore(tmp_path / FILE_NAME)
    store.commit([a_batch(1, 1)])
    (tmp_path / f"{FILE_NAME}.results").write_bytes(b"a file")
    with pytest.raises(ConfigError, match=r"journal\.db cannot be used now"):
        store.load(1.0)
    store.close()


@pytest.mark.parametrize("content", ["one byte", "no tables"])
def test_what_sqlite_takes_for_empty_does_not_replace_a_journal(
    state: StateDir, content: str
) -> None:
    """Regression: a head began with an empty journal though its mark said that there was one."""
    journal_files.note_journal(state)
    path = journal_files.path_in(state)
    path.unlink()
    if content == "one byte":
        path.write_bytes(b"x")
    else:
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.executescript("CREATE TABLE t (x); DROP TABLE t; VACUUM;")
    with pytest.raises(ConfigError, match="missing or empty"):
        journal_files.expect_journal(state)
