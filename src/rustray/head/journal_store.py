"""The journal's database: one SQLite file in the state directory, one row a batch.

There is no log to replay and no snapshot to make: rows are there as long as what they say holds. A
batch is inserted when it is accepted, an outcome when it arrives; arguments are dropped when all
tasks of their batch have ended, results when they expire, and the rows when all results of the
batch have. So the file grows no larger than what the head holds at most, and a start reads each
row once. Large results are files beside it (`rustray.head.result_files`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, Final

from rustray.common.errors import ConfigError
from rustray.head import event_rows, journal_room
from rustray.head.journal_clock import note_start
from rustray.head.journal_log import (
    COMMITS,
    OPEN,
    Seen,
    close_as_it_is,
    look_for_files,
    opened_at,
)
from rustray.head.journal_rows import (
    APPLICATION_ID,
    SCHEMA_VERSION,
    make_private,
    read_state,
    refuse_foreign,
    unusable,
)
from rustray.head.journal_schema import ADDING, COLUMNS, FOLLOWED_BY, MIGRATIONS, SCHEMA, STATEMENTS
from rustray.head.result_files import ResultFiles, name_of
from rustray.rpc.convert import decode_task_class, encode_task_class
from rustray.scheduler import commands as c
from rustray.scheduler import stream_commands as sc
from rustray.scheduler.events import StateRecovered
from rustray.task.columns import NO_PAYLOADS, PayloadColumn, PlacedColumn
from rustray.task.spec import TaskClass
from rustray.task.views import TokenInfo

logger = logging.getLogger("rustray.head")

FILE_NAME: Final = "journal.db"
LEVELS: Final = {"full": "FULL", "process": "NORMAL"}
"""Durability level to SQLite's ``synchronous``: FULL syncs the log at each commit."""
_CHECKPOINT_PAGES: Final = 4_000
_NAMES: Final = tuple(f"p{number}" for number in range(1, 17))
_LOG_LIMIT_BYTES: Final = 64 << 20
"""A log that has grown beyond this (a copy was made under load) is cut when it begins anew."""


def connect(path: str) -> sqlite3.Connection:
    """Open a database for whichever thread has it, with transactions that we begin ourselves."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)


class JournalStore:
    """The database; for one thread at a time.

    Attributes:
        level: "full" or "process".
        starts: How many heads have started with this journal; 0 before `load`.
        epoch_ms: Unix milliseconds of this start, above those of all earlier ones; 0 before `load`.
        events: What earlier heads have told, in order; empty before `load`.
        tokens: What is known of tokens that earlier heads made; empty before `load`.
        shared: What earlier heads have kept of locks, semaphores, events and queues; likewise.
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
        is_file = path != ":memory:"
        self._files = ResultFiles(path, is_synced=level == "full") if is_file else None
        self._is_syncing = level == "full"
        self._may_lag = not self._is_syncing
        self._has_written = self._has_failed = False
        self._has_freed = True  # an earlier head may have
        self._seen: Seen | None = None
        self._doomed: list[tuple[int, bytes]] = []
        self.starts = self.epoch_ms = 0
        self.events: list[c.PersistEvents] = []
        self.tokens: list[TokenInfo] = []
        self.shared: list[tuple[bytes, bytes]] = []
        try:
            if is_file:
                make_private(Path(path))
                journal_room.give_log_room_back(self._path)
            self._db: sqlite3.Connection = connect(self._path)
        except (sqlite3.Error, OSError) as error:
            raise unusable(self._path, error) from error
        try:
            self._prepare()
            if is_file:
                self._inode = os.stat(path).st_ino
        except (sqlite3.Error, OSError, ValueError, ConfigError) as error:
            self._has_failed = True
            self.close()
            raise unusable(self._path, error) from error

    def _prepare(self) -> None:
        execute = self._db.execute
        is_empty = not refuse_foreign(self._db, self._path)
        if is_empty:
            execute("PRAGMA auto_vacuum = INCREMENTAL")
        execute("PRAGMA journal_mode = WAL")
        execute(f"PRAGMA journal_size_limit = {_LOG_LIMIT_BYTES}")
        execute(f"PRAGMA synchronous = {LEVELS[self.level]}")
        execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        if is_empty:
            self._db.executescript(
                f"BEGIN; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; "
                f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        else:
            migrate(self._db)
        # So that the file by itself is a journal, not an empty one; nor is the log missed.
        self._is_doubtful = not is_empty and opened_at(self._db) == "process"
        self._note_open("")
        execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for number, definition in execute("SELECT id, definition FROM class"):
            self._classes[decode_task_class(definition)] = number

    # -- writing ----------------------------------------------------------------

    def commit(self, commands: Sequence[c.JournalCommand], is_synced: bool | None = None) -> None:
        """Commit all or nothing, and return when it is safe; None: as the level has it.

        Raises:
            sqlite3.Error, OSError: it is not known whether it was committed; nothing may be acked.
        """
        now, db = self._wall_clock(), self._db
        if is_synced is None:
            is_synced = self.level == "full"
        # The first commit without a sync comes after one that says so: a cut log is none that is
        # damaged from then on.
        is_last = not (is_synced or self._may_lag)
        self._sync_next(is_synced or is_last)
        self._doomed.clear()
        self._has_written = False
        db.execute("BEGIN IMMEDIATE")
        try:
            rows: list[tuple[Any, ...]] = []
            kind: type[Any] | None = None
            for command in commands:
                if type(command) is not kind:
                    _write(db, kind, rows)
                    kind, rows = type(command), []
                    self._has_freed = self._has_freed or kind not in ADDING
                rows.append(self._row(command, now))
            _write(db, kind, rows)
            self._end_group(is_last)
            db.execute("COMMIT")
        except BaseException:
            self._has_failed = True
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self._may_lag = self._may_lag or is_last
        if self._seen is not None:
            self._seen.one_more(is_synced=self._is_syncing)
        if self._inode:
            look_for_files(self._path, self._inode)
        if self._doomed and self._files is not None:
            _remove_files(self._files, self._doomed)

    def _end_group(self, is_last: bool) -> None:
        """Have the files safe that it refers to, and count it."""
        if self._files is not None and (self._has_written or self._files.has_unsynced):
            self._files.sync()
        if self._seen is not None:
            self._db.execute("UPDATE meta SET value = value + 1 WHERE key = ?", (COMMITS,))
            if is_last:
                self._note_open("process")

    def _sync_next(self, is_synced: bool) -> None:
        """Have the commits that follow synced, or not; SQLite allows no change within one."""
        if is_synced != self._is_syncing:
            level = LEVELS["full" if is_synced else "process"]
            self._db.execute(f"PRAGMA synchronous = {level}")
            self._is_syncing = is_synced
        if self._files is not None:
            self._files.is_synced = is_synced

    def tidy(self) -> bool:
        """Give some of the room that is not needed any more back; return whether there is more.

        Raises:
            sqlite3.Error: as `commit`.
        """
        self._has_freed = self._has_freed and journal_room.tidy(self._db)
        return self._has_freed

    def _row(self, command: c.JournalCommand, now: float) -> tuple[Any, ...]:
        match command:
            case c.PersistBatch():
                payloads = command.payloads
                return (
                    command.batch, command.prefix, command.first, len(payloads),
                    self._class_number(command.task_class), command.is_pushed, now,
                    payloads.base, payloads.ends_bytes(), payloads.blob,
                    command.deadline_unix_s, command.principal, command.durability,
                    *_values(command.inputs),
                )  # fmt: skip
            case c.PersistOutcome():
                outcome = command.outcome
                payloads = outcome.payloads
                if command.is_large:
                    self._put_away(command)
                blob = None if command.is_large else payloads.blob
                return (
                    command.number, command.batch, command.offset, len(payloads),
                    int(outcome.state),
                    outcome.worker_id, outcome.attempts, now,
                    payloads.base, payloads.ends_bytes(), blob,
                    command.fence, *_values(command.arguments or NO_PAYLOADS),
                    isinstance(payloads, PlacedColumn),
                )  # fmt: skip
            case sc.PersistItems():
                where = (command.batch, command.offset, command.first)
                return (*where, len(command.payloads), *_values(command.payloads))
            case c.ReplaceOutcome():
                return _replaced(command)
            case c.PersistRetry():
                return (
                    command.number, command.batch, command.offset, command.count,
                    command.attempts, command.fence, now, *_values(command.arguments),
                )  # fmt: skip
            case c.ForgetResults(is_large=True):
                self._doom(command.number)
            case c.PersistEvents() | c.ForgetEvents():
                return event_rows.row_of(command)
            case c.PersistToken():
                return astuple(command.token)
        return tuple(getattr(command, name) for name in COLUMNS[type(command)])

    def _put_away(self, command: c.PersistOutcome) -> None:
        """Write large results into a file of theirs."""
        if self._files is None:
            raise ValueError("a database in memory keeps no files")
        digest = self._files.write(command.number, command.outcome.payloads.blob)
        self._has_written = True
        self._db.execute("INSERT INTO large VALUES (?, ?)", (command.number, digest))

    def _doom(self, number: int) -> None:
        """Have the file of a result removed once it is committed that it has expired."""
        query = "SELECT id, digest FROM large WHERE id = ?"
        self._doomed += self._db.execute(query, (number,))
        self._db.execute("DELETE FROM large WHERE id = ?", (number,))

    def _class_number(self, task_class: TaskClass) -> int:
        number = self._classes.get(task_class)
        if number is None:
            row = (encode_task_class(task_class),)
            added = self._db.execute("INSERT INTO class (definition) VALUES (?)", row).lastrowid
            assert added is not None
            number = self._classes[task_class] = added
        return number

    # -- reading ----------------------------------------------------------------

    def load(self, grace_s: float) -> StateRecovered | None:
        """Return what an earlier head has left, None if nothing, and set the attributes.

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
            self.starts, self.epoch_ms, doubt_s = note_start(db, self._wall_clock())
            db.execute("INSERT OR IGNORE INTO meta VALUES (?, 0)", (COMMITS,))
            self._note_open(self.level)
            if self._files is not None:
                query = "SELECT value FROM meta WHERE key = ?"
                self._seen = Seen(self._path, int(db.execute(query, (COMMITS,)).fetchone()[0]))
            found = read_state(db, self._wall_clock(), grace_s, self.starts)
            found = replace(found, is_clock_sure=not doubt_s)
            self._sweep(found)
            # That this head has it open is in the file itself from now on.
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if self.level == "full" and self._inode:
                journal_room.make_log_room(self._path, _CHECKPOINT_PAGES)
            self.events = event_rows.load(db)
            self.tokens = [TokenInfo(*row) for row in db.execute("SELECT * FROM token")]
            self.shared = list(db.execute("SELECT key, value FROM shared"))
        except (sqlite3.Error, OSError, ValueError, KeyError, TypeError) as error:
            self._has_failed = True
            raise unusable(self._path, error) from error
        return found if found.batches or found.expired else None

    def _note_open(self, level: str) -> None:
        """Note at which level a head has the journal open; "": none has."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (OPEN, level))

    def _sweep(self, found: StateRecovered) -> None:
        """Delete what no batch needs any more."""
        db = self._db
        db.execute("DELETE FROM class WHERE id NOT IN (SELECT class FROM batch)")
        used = {batch.task_class for batch in found.batches}
        self._classes = {one: n for one, n in self._classes.items() if one in used}
        needed = {digest for one in used for digest in one.blobs}
        unused = [(code_hash,) for code_hash, _ in found.codes if code_hash not in needed]
        db.executemany("DELETE FROM code WHERE hash = ?", unused)
        if not found.batches:
            db.execute("DELETE FROM worker")  # nobody holds anything of ours
        if self._files is not None:
            _collect_files(db, self._files, self._is_doubtful)

    def _end_in_order(self) -> None:
        """Have all of it safe, whatever it was asked to be, and note that no head has it open."""
        self._sync_next(True)
        if self._files is not None and self._files.has_unsynced:
            self._files.sync()
        self._note_open("")

    def close(self) -> None:
        """Let go of the files, in order: the log goes into the file."""
        if self._seen is not None:
            self._seen.close()
            self._seen = None
        if self.starts and not self._has_failed:
            try:
                self._end_in_order()
            except (sqlite3.Error, OSError) as error:
                self._has_failed = True
                logger.warning("the journal is left as after a crash, with all it has: %s", error)
        if not self._has_failed or self._files is None:
            self._db.close()
            return
        close_as_it_is(self._db, Path(self._path))


def _write(db: sqlite3.Connection, kind: type[Any] | None, rows: list[tuple[Any, ...]]) -> None:
    if kind is None:
        return
    for statement in (STATEMENTS[kind], *FOLLOWED_BY.get(kind, ())):
        db.executemany(statement, _named(statement, rows))


def _named(statement: str, rows: list[tuple[Any, ...]]) -> Sequence[Any]:
    """Name the values for a statement that takes them by name, where it takes one twice or none."""
    if ":p" not in statement:
        return rows
    return [dict(zip(_NAMES, row, strict=False)) for row in rows]


def _remove_files(files: ResultFiles, doomed: Sequence[tuple[int, bytes]]) -> None:
    """Remove files that nothing refers to any more; what is left, the next start finds."""
    for number, digest in doomed:
        try:
            files.remove(number, digest)
        except OSError as error:
            logger.warning("cannot remove the file of an expired result: %s", error)


def _collect_files(db: sqlite3.Connection, files: ResultFiles, is_doubtful: bool) -> None:
    """Remove what a power cut has left over, and say what is missing."""
    known = list(db.execute("SELECT id, digest FROM large"))
    if is_doubtful:
        files.doubt(known)
    orphans = files.collect(known)
    if orphans:
        logger.info("removed %d files of results that were never committed", orphans)
    missing = {name_of(*one) for one in known} - files.names()
    if missing:
        logger.error(
            "%d large results are lost, e.g. %s: whoever asks for them gets an error; "
            "'rustray state check' lists what is damaged",
            len(missing), files.path / min(missing),
        )  # fmt: skip


@contextlib.contextmanager
def at_present_schema(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Give it, or an up-to-date copy in memory of an older one; the file stays as it is."""
    if db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,):
        yield db
        return
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as copy:
        db.backup(copy)
        migrate(copy)
        yield copy


def migrate(db: sqlite3.Connection) -> None:
    """Bring an older schema up to date, all or nothing."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    steps = "".join(MIGRATIONS[number] for number in range(version, SCHEMA_VERSION))
    if steps:
        db.executescript(f"BEGIN; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")


def _replaced(command: c.ReplaceOutcome) -> tuple[Any, ...]:
    payloads, is_placed = command.payloads, isinstance(command.payloads, PlacedColumn)
    return command.number, *_values(payloads), *_values(command.arguments), is_placed


def _values(column: PayloadColumn | None) -> tuple[int, bytes | None, bytes | None]:
    """Return a column's values; NULL where it has no items."""
    if column is None:
        return 0, None, None
    return column.base, column.ends_bytes() or None, column.blob if len(column) else None
