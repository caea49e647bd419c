"""The journal's database: one SQLite file in the state directory, one row a batch.

There is no log to replay and no snapshot to make: rows are there as long as what they say holds. A
batch is inserted when it is accepted, an outcome when it arrives; arguments are dropped when all
tasks of their batch have ended, results when they expire, and the rows when all results of the
batch have. So the file grows no larger than what the head holds at most, and a start reads each
row once.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from rustray.common.errors import ConfigError
from rustray.common.ids import PREFIX_BYTES
from rustray.rpc.convert import decode_task_class, encode_task_class
from rustray.scheduler import commands as c
from rustray.scheduler.admission import DIGEST_BYTES
from rustray.scheduler.admission import digests as digests_of
from rustray.scheduler.events import RecoveredBatch, RecoveredOutcome, StateRecovered
from rustray.task.columns import NO_PAYLOADS, PayloadColumn
from rustray.task.frames import Outcome
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState

FILE_NAME: Final = "journal.db"
APPLICATION_ID: Final = 0x52525931
"""Marks the file as ours: "RRY1"."""
SCHEMA_VERSION: Final = 4
LEVELS: Final = {"full": "FULL", "process": "NORMAL"}
"""Durability level to SQLite's ``synchronous``: FULL syncs at each commit."""
_CHECKPOINT_PAGES: Final = 4_000

_CRASHES: Final = """
CREATE TABLE crash (
  id INTEGER PRIMARY KEY, batch INTEGER NOT NULL, place INTEGER NOT NULL, text TEXT NOT NULL
);
CREATE INDEX crash_batch ON crash (batch);
"""
_OOM_RERUNS: Final = """
CREATE TABLE oom_rerun (
  batch INTEGER NOT NULL, place INTEGER NOT NULL, reruns INTEGER NOT NULL,
  PRIMARY KEY (batch, place)
) WITHOUT ROWID;
"""
_DEADLINE: Final = "ALTER TABLE batch ADD COLUMN deadline REAL NOT NULL DEFAULT 0;"
_MIGRATIONS: Final = {1: _CRASHES, 2: _OOM_RERUNS, 3: _DEADLINE}
"""Schema version to what makes the next one of it."""
_SCHEMA: Final = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE code (hash BLOB PRIMARY KEY, code BLOB NOT NULL);
CREATE TABLE class (id INTEGER PRIMARY KEY, definition BLOB NOT NULL UNIQUE);
CREATE TABLE worker (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE batch (
  id INTEGER PRIMARY KEY, prefix BLOB NOT NULL, first INTEGER NOT NULL, count INTEGER NOT NULL,
  class INTEGER NOT NULL, pushed INTEGER NOT NULL, accepted REAL NOT NULL,
  digests BLOB, base INTEGER NOT NULL, ends BLOB, payloads BLOB
);
{_DEADLINE}
CREATE TABLE outcome (
  id INTEGER PRIMARY KEY, batch INTEGER NOT NULL, place INTEGER NOT NULL, count INTEGER NOT NULL,
  state INTEGER NOT NULL, worker TEXT NOT NULL, attempts INTEGER NOT NULL, arrived REAL NOT NULL,
  base INTEGER NOT NULL, ends BLOB, payloads BLOB
);
CREATE INDEX outcome_batch ON outcome (batch);
CREATE TABLE cancel (batch INTEGER NOT NULL, place INTEGER NOT NULL, count INTEGER NOT NULL);
CREATE INDEX cancel_batch ON cancel (batch);
CREATE TABLE granted (
  id INTEGER PRIMARY KEY, batch INTEGER NOT NULL, place INTEGER NOT NULL, count INTEGER NOT NULL,
  granted INTEGER NOT NULL
);
CREATE INDEX granted_batch ON granted (batch);
{_CRASHES}{_OOM_RERUNS}CREATE TABLE rerun (
  batch INTEGER NOT NULL, place INTEGER NOT NULL, attempt INTEGER NOT NULL, reruns INTEGER NOT NULL,
  PRIMARY KEY (batch, place)
) WITHOUT ROWID;
"""
_BATCH: Final = "INSERT INTO batch VALUES (?, ?, ?, ?, ?, ?, ?, NULL, ?, ?, ?, ?)"
_OUTCOME: Final = "INSERT INTO outcome VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_STATEMENTS: Final[dict[type[Any], str]] = {
    c.PersistBatch: _BATCH,
    c.PersistOutcome: _OUTCOME,
    c.PersistCancel: "INSERT INTO cancel VALUES (?, ?, ?)",
    c.PersistRerun: "INSERT OR REPLACE INTO rerun VALUES (?, ?, ?, ?)",
    c.PersistOomRerun: "INSERT OR REPLACE INTO oom_rerun VALUES (?, ?, ?)",
    c.PersistCrash: "INSERT INTO crash (batch, place, text) VALUES (?, ?, ?)",
    c.PersistGrant: "INSERT INTO granted (batch, place, count, granted) VALUES (?, ?, ?, ?)",
    c.PersistCode: "INSERT OR IGNORE INTO code VALUES (?, ?)",
    c.PersistWorker: "INSERT OR IGNORE INTO worker VALUES (?)",
    c.ForgetResults: "UPDATE outcome SET ends = NULL, payloads = NULL WHERE id = ?",
    c.ForgetArguments: (
        "UPDATE batch SET digests = ?2, ends = NULL, payloads = NULL WHERE id = ?1"
    ),
    c.ForgetBatch: "DELETE FROM batch WHERE id = ?",
    c.ForgetCode: "DELETE FROM code WHERE hash = ?",
    c.ForgetWorker: "DELETE FROM worker WHERE id = ?",
}
_COLUMNS: Final[dict[type[Any], tuple[str, ...]]] = {
    c.PersistCancel: ("batch", "offset", "count"),
    c.PersistRerun: ("batch", "offset", "attempt", "reruns"),
    c.PersistOomRerun: ("batch", "offset", "reruns"),
    c.PersistCrash: ("batch", "offset", "text"),
    c.PersistGrant: ("batch", "offset", "count", "is_granted"),
    c.PersistCode: ("code_hash", "code"),
    c.PersistWorker: ("worker_id",),
    c.ForgetResults: ("number",),
    c.ForgetArguments: ("batch", "digests"),
    c.ForgetBatch: ("batch",),
    c.ForgetCode: ("code_hash",),
    c.ForgetWorker: ("worker_id",),
}
"""What of a command goes into its statement, in order, where that is a value as it is."""


def connect(path: str) -> sqlite3.Connection:
    """Open a database for whichever thread has it, with transactions that we begin ourselves."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)


class JournalStore:
    """The database; for one thread at a time.

    Attributes:
        level: "full" or "process".
        starts: How many heads have started with this journal; 0 before `load`.
        epoch_ms: Unix milliseconds of this start, above those of all earlier ones; 0 before `load`.
    """

    def __init__(
        self,
        path: Path | str,
        level: str = "full",
        wall_clock: Callable[[], float] = time.time,
        connect: Callable[[str], Any] = connect,
    ) -> None:
        """Open it, or make it.

        Args:
            path: Of the file; ":memory:" for tests.
            level: "full" or "process".
            wall_clock: Unix seconds.
            connect: Opens the database; tests watch what it writes.

        Raises:
            ConfigError: the file is damaged, of something else, or of a newer rustray; says what
                to do. It is never replaced by itself.
        """
        self.level = level
        self._path = str(path)
        self._wall_clock = wall_clock
        self._classes: dict[TaskClass, int] = {}
        self._inode = 0
        self.starts = self.epoch_ms = 0
        try:
            if path != ":memory:":
                make_private(Path(path))
            self._db: sqlite3.Connection = connect(self._path)
            self._prepare()
            if path != ":memory:":
                self._inode = os.stat(path).st_ino
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
        else:
            migrate(self._db)
        # So that the file by itself is a journal, and is not taken for an empty one.
        execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for number, definition in execute("SELECT id, definition FROM class"):
            self._classes[decode_task_class(definition)] = number

    # -- writing ----------------------------------------------------------------

    def commit(self, commands: Sequence[c.JournalCommand]) -> None:
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
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self._look_for_files()

    def _look_for_files(self) -> None:
        """Notice that somebody has taken the files away: what is written to them is lost then.

        Raises:
            sqlite3.DatabaseError: they are not what was opened.
        """
        if self._path == ":memory:":
            return
        try:
            is_there = os.stat(self._path).st_ino == self._inode
            is_there = is_there and os.stat(f"{self._path}-wal").st_size > 0
        except FileNotFoundError:
            is_there = False
        if not is_there:
            raise sqlite3.DatabaseError(f"{self._path} or its -wal was removed or replaced")

    def _write(self, kind: type[Any] | None, rows: list[tuple[Any, ...]]) -> None:
        if kind is None:
            return
        self._db.executemany(_STATEMENTS[kind], rows)
        if kind is c.ForgetBatch:
            for table in ("outcome", "cancel", "rerun", "oom_rerun", "crash", "granted"):
                self._db.executemany(f"DELETE FROM {table} WHERE batch = ?", rows)  # noqa: S608

    def _row(self, command: c.JournalCommand, now: float) -> tuple[Any, ...]:
        match command:
            case c.PersistBatch():
                payloads = command.payloads
                return (
                    command.batch, command.prefix, command.first, len(payloads),
                    self._class_number(command.task_class), command.is_pushed, now,
                    payloads.base, payloads.ends_bytes(), payloads.blob,
                    command.deadline_unix_s,
                )  # fmt: skip
            case c.PersistOutcome():
                outcome = command.outcome
                payloads = outcome.payloads
                return (
                    command.number, command.batch, command.offset, len(payloads),
                    int(outcome.state),
                    outcome.worker_id, outcome.attempts, now,
                    payloads.base, payloads.ends_bytes(), payloads.blob,
                )  # fmt: skip
        return tuple(getattr(command, name) for name in _COLUMNS[type(command)])

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

    def load(self, grace_s: float) -> StateRecovered | None:
        """Return what an earlier head has left, None if nothing, and set `starts` and `epoch_ms`.

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
            self._begin()
            found = read_state(db, self._wall_clock(), grace_s, self.starts)
            self._sweep(found)
        except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
            raise unusable(self._path, error) from error
        return found if found.batches else None

    def _begin(self) -> None:
        """Count this start, and take a time that no earlier head had, whatever the clock says."""
        meta = dict(self._db.execute("SELECT key, value FROM meta"))
        self.starts = int(meta.get("starts", 0)) + 1
        self.epoch_ms = max(int(self._wall_clock() * 1000), int(meta.get("epoch_ms", 0)) + 1)
        rows = (("starts", self.starts), ("epoch_ms", self.epoch_ms))
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)

    def _sweep(self, found: StateRecovered) -> None:
        """Delete what no batch needs any more."""
        db = self._db
        db.execute("DELETE FROM class WHERE id NOT IN (SELECT class FROM batch)")
        used = {batch.task_class for batch in found.batches}
        self._classes = {one: n for one, n in self._classes.items() if one in used}
        needed = {one.code_hash for one in used}
        unused = [(code_hash,) for code_hash, _ in found.codes if code_hash not in needed]
        db.executemany("DELETE FROM code WHERE hash = ?", unused)
        if not found.batches:
            db.execute("DELETE FROM worker")  # nobody holds anything of ours

    def close(self) -> None:
        """Let go of the files."""
        self._db.close()


def at_present_schema(db: sqlite3.Connection) -> sqlite3.Connection:
    """Return it, or an up-to-date copy in memory of an older one; the file stays as it is."""
    if db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,):
        return db
    copy = sqlite3.connect(":memory:", isolation_level=None)
    db.backup(copy)
    migrate(copy)
    return copy


def migrate(db: sqlite3.Connection) -> None:
    """Bring an older schema up to date, all or nothing."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    steps = "".join(_MIGRATIONS[number] for number in range(version, SCHEMA_VERSION))
    if steps:
        db.executescript(f"BEGIN; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")


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
            number, prefix, first, count, classes[class_number],
            payloads := _column(blob, ends, base), _digests(digests, payloads, bool(pushed)),
            bool(pushed), max(now - accepted, 0.0),
            deadline, deadline - now if deadline else None,
        )
        for number, prefix, first, count, class_number, pushed, accepted, digests, base, ends, blob,
            deadline in db.execute("SELECT * FROM batch ORDER BY id")
    )  # fmt: skip
    firsts = {batch.batch: batch.first for batch in batches}
    outcomes = tuple(
        RecoveredOutcome(
            number, batch, place, count,
            Outcome(firsts.get(batch, 0) + place, TaskState(state),
                    _column(blob, ends, base) or NO_PAYLOADS, worker, attempts),
            ends is None, max(now - arrived, 0.0),
        )
        for number, batch, place, count, state, worker, attempts, arrived, base, ends, blob
        in db.execute("SELECT * FROM outcome ORDER BY id")
    )  # fmt: skip
    _verify(batches, outcomes)
    return StateRecovered(
        batches,
        outcomes,
        tuple(db.execute("SELECT batch, place, count FROM cancel")),
        tuple(db.execute("SELECT batch, place, attempt, reruns FROM rerun")),
        tuple(db.execute("SELECT batch, place, reruns FROM oom_rerun")),
        tuple(db.execute("SELECT batch, place, text FROM crash ORDER BY id")),
        tuple(db.execute("SELECT batch, place, count, granted FROM granted ORDER BY id")),
        tuple(db.execute("SELECT hash, code FROM code")),
        tuple(name for (name,) in db.execute("SELECT id FROM worker ORDER BY id")),
        grace_s,
        starts,
    )


def _verify(batches: Sequence[RecoveredBatch], outcomes: Sequence[RecoveredOutcome]) -> None:
    """Look whether the rows fit together.

    Raises:
        ValueError: they do not.
    """
    counts: dict[int, int] = {}
    for batch in batches:
        numbers = (batch.first, batch.count)
        if len(batch.prefix) != PREFIX_BYTES or not all(isinstance(n, int) for n in numbers):
            raise ValueError(f"batch {batch.batch} has a false id")
        if batch.payloads is not None and len(batch.payloads) != batch.count:
            raise ValueError(f"batch {batch.batch} miscounts its tasks")
        counts[batch.batch] = batch.count
    for one in outcomes:
        if not 0 <= one.offset < one.offset + one.count <= counts.get(one.batch, -1):
            raise ValueError(f"outcome {one.number} belongs to no tasks")
        if not isinstance(one.outcome.attempts, int) or not one.outcome.state.is_terminal:
            raise ValueError(f"outcome {one.number} says nonsense")
        if not one.is_expired and len(one.outcome.payloads) != one.count:
            raise ValueError(f"outcome {one.number} miscounts its tasks")


def make_private(path: Path) -> None:
    """Make the file, if it is absent, so that only its owner can read it.

    SQLite makes its side files with the same permissions.

    Raises:
        OSError: it cannot be made, or it is a symbolic link.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def unusable(path: str, error: Exception) -> ConfigError:
    """Return the error for a journal that cannot be used as it is."""
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return ConfigError(f"the journal {path} is a symbolic link; put the file itself there")
    if isinstance(error, OSError | sqlite3.OperationalError):
        return ConfigError(
            f"the journal {path} cannot be used now: {error}. See to the disk, and to "
            "who else uses the file; nothing of it was changed"
        )
    return ConfigError(
        f"the journal {path} cannot be used: {error}. Put a backup in its place with 'rustray "
        "state restore FILE'; or move it away to start empty, and all tasks in it are lost"
    )


def _column(blob: bytes | None, ends: bytes | None, base: int) -> PayloadColumn | None:
    return None if ends is None else PayloadColumn.from_wire(blob or b"", ends, base)


def _digests(
    known: bytes | None, payloads: PayloadColumn | None, is_pushed: bool
) -> list[bytes] | None:
    if is_pushed:
        return None
    if payloads is not None:
        return digests_of(payloads)
    joined = known or b""
    return [joined[at : at + DIGEST_BYTES] for at in range(0, len(joined), DIGEST_BYTES)]
