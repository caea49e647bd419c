"""A log that has lost commits is noticed; one that a power cut has torn is not taken for that."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.scheduling import PREFIX
from rustray.common.errors import ConfigError
from rustray.head import journal_files
from rustray.head.journal_log import commits_lost
from rustray.head.journal_room import give_log_room_back
from rustray.head.journal_store import FILE_NAME, JournalStore
from rustray.scheduler import commands as c
from rustray.security.state_dir import StateDir
from rustray.task.columns import PayloadColumn
from rustray.task.spec import TaskClass

FRAME = 24 + 4096
COMMITS = 12


def a_batch(number: int) -> c.PersistBatch:
    """A batch whose commit takes some pages of the log."""
    payloads = PayloadColumn.of([bytes([number]) * 2000] * 5)
    return c.PersistBatch(number, PREFIX, 1000 * number, TaskClass("f"), payloads, True)


def a_crash(directory: Path, level: str = "full") -> Path:
    """Return a journal as a head leaves it that is killed: a dozen commits are in the log only."""
    work = directory / "work"
    work.mkdir()
    store = JournalStore(work / FILE_NAME, level)
    store.load(1.0)
    for number in range(1, COMMITS + 1):
        store.commit([a_batch(number)])
    state = StateDir(directory / "state")
    state.create()
    for name in (FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-seen"):
        shutil.copyfile(work / name, state.path / name)
        (state.path / name).chmod(0o600)
    store.close()
    return state.path / FILE_NAME


def the_log(path: Path) -> Path:
    """Return a journal's log."""
    return Path(f"{path}-wal")


def tasks(path: Path) -> int:
    """Return how many batches a start finds."""
    store = JournalStore(path)
    found = store.load(1.0)
    store.close()
    return 0 if found is None else len(found.batches)


class FailingDisk(sqlite3.Connection):
    """A connection whose disk fails once so much has been asked of it."""

    left = 0

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        """Fail as SQLite does, within a commit."""
        if sql.startswith(("INSERT OR REPLACE INTO meta", "PRAGMA wal_checkpoint")):
            FailingDisk.left -= 1
            if FailingDisk.left < 0:
                raise sqlite3.OperationalError("disk I/O error")
        return super().execute(sql, *args)


@pytest.mark.parametrize("good", range(4))
def test_a_start_that_fails_leaves_the_log_where_it_is(tmp_path: Path, good: int) -> None:
    """Regression: its end took the log away, and the next start missed it and refused."""
    path = a_crash(tmp_path)
    FailingDisk.left = good

    def connect(name: str) -> sqlite3.Connection:
        return sqlite3.connect(name, isolation_level=None, factory=FailingDisk)

    with pytest.raises(ConfigError, match="disk I/O error"):
        a_start(path, connect)
    journal_files.expect_journal(StateDir(path.parent))
    assert tasks(path) == COMMITS


def a_start(path: Path, connect: Callable[[str], Any]) -> None:
    """Start with a journal as the head does."""
    store = JournalStore(path, connect=connect)
    try:
        store.load(1.0)
    except BaseException:
        store.close()
        raise


def test_a_log_as_a_crash_leaves_it_is_whole(tmp_path: Path) -> None:
    """Nothing is lost, and the start takes all of it."""
    path = a_crash(tmp_path)
    assert commits_lost(the_log(path).read_bytes()) == 0
    assert journal_files.check(path).damage == ""
    journal_files.expect_log(path)
    assert tasks(path) == COMMITS


@pytest.mark.parametrize("place", ["header", "salt", "page", "first frame"])
def test_damage_in_the_middle_is_refused_with_a_way_out(tmp_path: Path, place: str) -> None:
    """SQLite passes over it in silence; the copy of what is left can be put in place."""
    path = a_crash(tmp_path)
    content = bytearray(the_log(path).read_bytes())
    at = {"header": 20, "salt": 32 + 20 * FRAME + 8, "page": 32 + 20 * FRAME + 900}
    content[at.get(place, 32 + 30)] ^= 0x10
    the_log(path).write_bytes(content)
    assert commits_lost(bytes(content)) >= 2
    with pytest.raises(
        ConfigError, match=r"-wal is damaged: at least \d+ commits are lost.*backup"
    ):
        journal_files.expect_log(path)
    assert the_log(path).read_bytes() == content
    assert journal_files.check(path).damage
    copy = tmp_path / "copy.db"
    left = journal_files.backup(path, copy)
    assert left.batches < COMMITS
    assert left.damage == ""
    journal_files.restore(StateDir(path.parent), copy)
    journal_files.expect_log(path)
    assert tasks(path) == left.batches


@pytest.mark.parametrize("how", ["cut in half", "all zeros", "zeros at its begin", "empty"])
def test_a_log_that_ends_early_is_refused_where_it_is_known_to_have_been_longer(
    tmp_path: Path, how: str
) -> None:
    """Regression: to SQLite its end is where it ends, and what was acked behind that was gone."""
    path = a_crash(tmp_path)
    content = the_log(path).read_bytes()
    used = len(content.rstrip(b"\0"))
    harmed = {
        "cut in half": content[: used // 2],
        "all zeros": bytes(len(content)),
        "zeros at its begin": bytes(FRAME) + content[FRAME:],
        "empty": b"",
    }[how]
    the_log(path).write_bytes(harmed)
    with pytest.raises(ConfigError, match=r"is damaged: at least|is missing"):
        journal_files.expect_log(path)
    assert journal_files.check(path).damage


def test_a_log_that_was_taken_away_is_refused(tmp_path: Path) -> None:
    """Only a head that ends in order leaves no log; after such an end there is none to miss."""
    path = a_crash(tmp_path)
    the_log(path).unlink()
    for _ in range(2):  # to look makes an empty one
        with pytest.raises(ConfigError, match="-wal is missing"):
            journal_files.expect_log(path)
    orderly = tmp_path / "work" / FILE_NAME
    assert not the_log(orderly).exists()
    journal_files.expect_log(orderly)
    assert tasks(orderly) == COMMITS


def test_a_log_that_somebody_else_has_written_into_the_journal_is_not_missed(
    tmp_path: Path,
) -> None:
    """Regression: SQLite's shell, opened after a crash, ended the log, and no head started."""
    path = a_crash(tmp_path)
    with contextlib.closing(sqlite3.connect(path)) as shell:
        shell.execute("SELECT count(*) FROM batch").fetchone()
    assert not the_log(path).exists()
    journal_files.expect_log(path)
    assert tasks(path) == COMMITS


def test_a_journal_that_somebody_has_locked_is_waited_for(tmp_path: Path) -> None:
    """Regression: a head that started in such a moment refused."""
    path = a_crash(tmp_path)
    tries: list[int] = []

    def use() -> int:
        tries.append(1)
        try:
            with contextlib.closing(sqlite3.connect(path, timeout=0)) as other:
                other.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            stranger.rollback()
            raise ConfigError("locked") from error
        return len(tries)

    with contextlib.closing(sqlite3.connect(path)) as stranger:
        stranger.execute("BEGIN IMMEDIATE")
        assert journal_files.when_unlocked(use) == 2
        stranger.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConfigError, match="locked"):
            journal_files.when_unlocked(use, within_s=-1.0)


def test_a_torn_last_commit_is_no_damage(tmp_path: Path) -> None:
    """A power cut leaves that, and nobody was told of it: any part of it may be missing."""
    path = a_crash(tmp_path)
    give_log_room_back(str(path))
    whole = the_log(path).read_bytes()
    frames = (len(whole) - 32) // FRAME
    for missing in (1, 2):
        torn = bytearray(whole)
        start = 32 + (frames - missing) * FRAME
        torn[start : start + FRAME] = bytes(FRAME)
        assert commits_lost(bytes(torn)) == 0
    assert commits_lost(whole[: len(whole) - 1000]) == 0
    assert commits_lost(b"") == commits_lost(whole[:20]) == commits_lost(bytes(40_000)) == 0


def test_at_level_process_nothing_was_synced_so_nothing_is_said(tmp_path: Path) -> None:
    """A power cut may leave any part of the log there: what is whole is taken."""
    path = a_crash(tmp_path, "process")
    content = bytearray(the_log(path).read_bytes())
    content[32 + 20 * FRAME + 900] ^= 1
    the_log(path).write_bytes(content)
    journal_files.expect_log(path)
    assert 0 < tasks(path) < COMMITS


def test_without_its_lock_file_a_journal_still_has_one_head(tmp_path: Path) -> None:
    """Regression: who removed the file ``lock`` could start a second head beside the first."""
    state = StateDir(tmp_path / "state")
    state.create()
    path = state.path / FILE_NAME
    with state.lock(), journal_files.claim(path):
        JournalStore(path).close()
        (state.path / "lock").unlink()
        with (
            state.lock(),
            pytest.raises(ConfigError, match="running already"),
            journal_files.claim(path),
        ):
            raise AssertionError("two heads have one journal")
        copy = tmp_path / "copy.db"
        journal_files.backup(path, copy)
        (state.path / "lock").unlink()
        with pytest.raises(ConfigError, match="running already"):
            journal_files.restore(state, copy)
    with journal_files.claim(path):
        assert path.stat().st_mode & 0o777 == 0o600
