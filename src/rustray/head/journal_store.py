"""The journal's database: one SQLite file in the state directory, one row a batch.

There is no log to replay and no snapshot to make: rows are there as long as what they say holds. A
batch is inserted when it is accepted, an outcome when it arrives, and both are deleted when the
outcome has expired. So the file stays as small as what the head holds, and a start reads each
row once.
"""

from __future__ import annotations

import os
import sqlite3
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from rustray.common.errors import ConfigError
from rustray.rpc.convert import decode_task_class, encode_task_class
from rustray.scheduler import commands as c
from rustray.scheduler.events import RecoveredBatch, RecoveredOutcome, StateRecovered
from rustray.task.columns import ENDS_TYPECODE, PayloadColumn
from rustray.task.frames import Outcome
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState

FILE_NAME: Final = "journal.db"
APPLICATION_ID: Final = 0x52525931
"""Marks the file as ours: "RRY1"."""
SCHEMA_VERSION: Final = 1
LEVELS: Final = {"full": "FULL", "process": "NORMAL"}
"""Durability level to SQLite's ``synchronous``: FULL syncs at each commit."""
_CHECKPOINT_PAGES: Final = 4_000

_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE code (hash BLOB PRIMARY KEY, code BLOB NOT NULL);
CREATE TABLE class (id INTEGER PRIMARY KEY, definition BLOB NOT NULL UNIQUE);
CREATE TABLE worker (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE batch (
  id INTEGER PRIMARY KEY, prefix BLOB NOT NULL, first INTEGER NOT NULL, class INTEGER NOT NULL,
  pushed INTEGER NOT NULL, accepted REAL NOT NULL, base INTEGER NOT NULL, ends BLOB NOT NULL,
  payloads BLOB NOT NULL
);
CREATE TABLE outcome (
  id INTEGER PRIMARY KEY, batch INTEGER NOT NULL, place INTEGER NOT NULL, state INTEGER NOT NULL,
  worker TEXT NOT NULL, attempts INTEGER NOT NULL, arrived REAL NOT NULL, base INTEGER NOT NULL,
  ends BLOB NOT NULL, payloads BLOB NOT NULL
);
CREATE TABLE cancel (batch INTEGER NOT NULL, place INTEGER NOT NULL, count INTEGER NOT NULL);
CREATE INDEX cancel_batch ON cancel (batch);
CREATE TABLE rerun (
  batch INTEGER NOT NULL, place INTEGER NOT NULL, attempt INTEGER NOT NULL, reruns INTEGER NOT NULL,
  PRIMARY KEY (batch, place)
) WITHOUT ROWID;
"""
_BATCH: Final = "INSERT INTO batch VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_OUTCOME: Final = "INSERT INTO outcome VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_STATEMENTS: Final[dict[type[Any], str]] = {
    c.PersistBatch: _BATCH,
    c.PersistOutcome: _OUTCOME,
    c.PersistCancel: "INSERT INTO cancel VALUES (?, ?, ?)",
    c.PersistRerun: "INSERT OR REPLACE INTO rerun VALUES (?, ?, ?, ?)",
    c.PersistCode: "INSERT OR IGNORE INTO code VALUES (?, ?)",
    c.PersistWorker: "INSERT OR IGNORE INTO worker VALUES (?)",
    c.ForgetOutcome: "DELETE FROM outcome WHERE id = ?",
    c.ForgetBatch: "DELETE FROM batch WHERE id = ?",
    c.ForgetCode: "DELETE FROM code WHERE hash = ?",
    c.ForgetWorker: "DELETE FROM worker WHERE id = ?",
}


class JournalStore:
    """The database; for one thread at a time.

    Attributes:
        level: "full" or "process".
    """

    def __init__(
        self, path: Path | str, level: str = "full", wall_clock: Callable[[], float] = time.time
    ) -> None:
        """Open it, or make it.

        Args:
            path: Of the file; ":memory:" for tests.
            level: "full" or "process".
            wall_clock: Unix seconds.

        Raises:
            ConfigError: the file is damaged, of something else, or of a newer rustray; says what
                to do. It is never replaced by itself.
        """
        self.level = level
        self._path = str(path)
        self._wall_clock = wall_clock
        self._classes: dict[TaskClass, int] = {}
        try:
            if path != ":memory:":
                make_private(Path(path))
            self._db = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False, timeout=5.0
            )
            self._prepare()
        except (sqlite3.Error, OSError, ValueError) as error:
            raise unusable(self._path, error) from error

    def _prepare(self) -> None:
        execute = self._db.execute
        is_empty = not refuse_foreign(self._db, self._path)
        execute("PRAGMA journal_mode = WAL")
        execute(f"PRAGMA synchronous = {LEVELS[self.level]}")
        execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        if is_empty:
            self._db.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA application_id = {APPLICATION_ID}; "
                f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        for number, definition in execute("SELECT id, definition FROM class"):
            self._classes[decode_task_class(definition)] = number

    # -- writing ----------------------------------------------------------------

    def commit(self, commands: Sequence[c.JournalCommand], revision: int) -> None:
        """Commit all or nothing, and return when it is as safe as the level promises.

        Raises:
            sqlite3.Error: it is not known whether it was committed; nothing may be acked.
        """
        now = self._wall_clock()
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            rows: list[tuple[Any, ...]] = []
            kind: type[Any] | None = None
            for command in commands:
                if type(command) is not kind:
                    self._write(kind, rows)
                    kind, rows = type(command), []
                rows.append(self._row(command, now))
            self._write(kind, rows)
            db.execute("INSERT OR REPLACE INTO meta VALUES ('revision', ?)", (revision,))
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _write(self, kind: type[Any] | None, rows: list[tuple[Any, ...]]) -> None:
        if kind is None:
            return
        self._db.executemany(_STATEMENTS[kind], rows)
        if kind is c.ForgetBatch:
            self._db.executemany("DELETE FROM cancel WHERE batch = ?", rows)
            self._db.executemany("DELETE FROM rerun WHERE batch = ?", rows)

    def _row(self, command: c.JournalCommand, now: float) -> tuple[Any, ...]:
        match command:
            case c.PersistBatch():
                payloads = command.payloads
                return (
                    command.batch, command.prefix, command.first,
                    self._class_number(command.task_class), command.is_pushed, now,
                    payloads.base, payloads.ends_bytes(), payloads.blob,
                )  # fmt: skip
            case c.PersistOutcome():
                outcome = command.outcome
                payloads = outcome.payloads
                return (
                    command.number, command.batch, command.offset, int(outcome.state),
                    outcome.worker_id, outcome.attempts, now,
                    payloads.base, payloads.ends_bytes(), payloads.blob,
                )  # fmt: skip
            case c.PersistCancel():
                return (command.batch, command.offset, command.count)
            case c.PersistRerun():
                return (command.batch, command.offset, command.attempt, command.reruns)
            case c.PersistCode():
                return (command.code_hash, command.code)
            case c.ForgetCode():
                return (command.code_hash,)
            case c.PersistWorker() | c.ForgetWorker():
                return (command.worker_id,)
            case c.ForgetOutcome():
                return (command.number,)
            case c.ForgetBatch():
                return (command.batch,)

    def _class_number(self, task_class: TaskClass) -> int:
        number = self._classes.get(task_class)
        if number is None:
            definition = encode_task_class(task_class)
            number = self._db.execute(
                "INSERT INTO class (definition) VALUES (?)", (definition,)
            ).lastrowid
            assert number is not None
            self._classes[task_class] = number
        return number

    # -- reading ----------------------------------------------------------------

    def load(self, grace_s: float) -> tuple[StateRecovered | None, int]:
        """Return what an earlier head has left, None if nothing, and its newest revision.

        Args:
            grace_s: How long its workers have to come back.

        Raises:
            ConfigError: the file is damaged.
        """
        db = self._db
        try:
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise ValueError(verdict)
            found = read_state(db, self._wall_clock(), grace_s, self._count_start())
            revision = db.execute("SELECT value FROM meta WHERE key = 'revision'").fetchone()
            if not found.batches:
                # Nobody holds anything of ours: who comes back registers anew.
                db.execute("DELETE FROM worker")
        except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
            raise unusable(self._path, error) from error
        return found if found.batches else None, int(revision[0]) if revision else 0

    def _count_start(self) -> int:
        found = self._db.execute("SELECT value FROM meta WHERE key = 'starts'").fetchone()
        starts = int(found[0]) + 1 if found else 1
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('starts', ?)", (starts,))
        return starts

    def close(self) -> None:
        """Let go of the files."""
        self._db.close()


def refuse_foreign(db: sqlite3.Connection, path: str) -> bool:
    """Return whether the database has anything in it.

    Raises:
        ConfigError: it is of something else, or of a newer rustray.
    """
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application != APPLICATION_ID:
        raise ConfigError(f"{path} is a database of something else than rustray's head")
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"{path} was written by a newer rustray (schema {version}, this one knows "
            f"{SCHEMA_VERSION}): start that one, or move the file away to start empty"
        )
    return bool(tables)


def read_state(db: sqlite3.Connection, now: float, grace_s: float, starts: int) -> StateRecovered:
    """Read and decode every row.

    Raises:
        sqlite3.Error, ValueError, KeyError, TypeError: a row is damaged.
    """
    classes = {
        number: decode_task_class(definition)
        for number, definition in db.execute("SELECT id, definition FROM class")
    }
    batches = tuple(
        RecoveredBatch(
            number, prefix, first, classes[class_number], _column(blob, ends, base),
            bool(pushed), max(now - accepted, 0.0),
        )
        for number, prefix, first, class_number, pushed, accepted, base, ends, blob
        in db.execute("SELECT * FROM batch ORDER BY id")
    )  # fmt: skip
    firsts = {batch.batch: batch.first for batch in batches}
    outcomes = tuple(
        RecoveredOutcome(
            number, batch, place,
            Outcome(firsts.get(batch, 0) + place, TaskState(state), _column(blob, ends, base),
                    worker, attempts),
            max(now - arrived, 0.0),
        )
        for number, batch, place, state, worker, attempts, arrived, base, ends, blob
        in db.execute("SELECT * FROM outcome ORDER BY id")
    )  # fmt: skip
    return StateRecovered(
        batches,
        outcomes,
        tuple(db.execute("SELECT batch, place, count FROM cancel")),
        tuple(db.execute("SELECT batch, place, attempt, reruns FROM rerun")),
        tuple(db.execute("SELECT hash, code FROM code")),
        tuple(name for (name,) in db.execute("SELECT id FROM worker ORDER BY id")),
        grace_s,
        starts,
    )


def make_private(path: Path) -> None:
    """Make the file, if it is absent, so that only its owner can read it.

    SQLite makes its side files with the same permissions.

    Raises:
        OSError: it cannot be made, or it is a symbolic link.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def unusable(path: str, error: Exception) -> ConfigError:
    """Return the error for a journal that cannot be used as it is."""
    return ConfigError(
        f"the journal {path} cannot be used: {error}. Put a backup in its place with 'rustray "
        "state restore FILE'; or move it away to start empty, and all tasks in it are lost"
    )


def _column(blob: bytes, ends: bytes, base: int) -> PayloadColumn:
    if not ends:
        return PayloadColumn(b"", array(ENDS_TYPECODE))
    return PayloadColumn.from_wire(blob, ends, base)
