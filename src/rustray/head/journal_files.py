"""What an operator does with a journal: look whether it is sound, copy it, put a copy back."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from rustray.common.errors import ConfigError
from rustray.head.journal_store import (
    FILE_NAME,
    at_present_schema,
    read_state,
    refuse_foreign,
    unusable,
)
from rustray.security.state_dir import StateDir

_MARK: Final = "journal.mark"
_RESTORING: Final = f"{FILE_NAME}.restoring"
_SIDE_FILES: Final = ("-wal", "-shm")


@dataclass(frozen=True, slots=True)
class JournalSummary:
    """What a sound journal holds.

    Attributes:
        tasks: Accepted and not expired, ended or not.
        ended: Those of them whose outcome is there.
        workers: Who had joined when it was last written.
        size: Bytes of the file and its side files.
    """

    path: str
    batches: int
    tasks: int
    ended: int
    workers: int
    size: int


def expect_journal(state: StateDir) -> None:
    """Refuse a directory that has lost its journal: it is never replaced by an empty one.

    Raises:
        ConfigError: says how to go on.
    """
    path = path_in(state)
    if (state.path / _RESTORING).exists():
        raise ConfigError(
            f"a restore into {state.path} was interrupted: run 'rustray state restore FILE' again, "
            f"or remove {_RESTORING} there to go on with what was there before"
        )
    if state.find_secret(_MARK) is None:
        return
    if not path.exists() or path.stat().st_size == 0:
        raise ConfigError(
            f"the journal {path} is missing or empty, and a head has kept one there: put a backup "
            f"in its place with 'rustray state restore FILE'; or remove {state.path / _MARK} to "
            "start empty, and all tasks in it are lost"
        )


def note_journal(state: StateDir) -> None:
    """Remember that there is a journal from now on."""
    state.create_secret(_MARK, b"There is a journal here; see rustray state --help.\n")


def path_in(state: StateDir) -> Path:
    """Return where a head keeps its journal."""
    return state.path / FILE_NAME


def check(path: Path) -> JournalSummary:
    """Read all of a journal; also while a head uses it. Nothing is changed.

    Raises:
        ConfigError: it is absent, damaged, foreign or of a newer rustray.
    """
    with _reading(path) as db:
        (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise ValueError(verdict)
        read_state(at_present_schema(db), 0.0, 0.0, 0)
        return _summary(path, db)


def backup(path: Path, target: Path) -> JournalSummary:
    """Copy a journal into a new file that only its owner can read; also while a head uses it.

    Raises:
        ConfigError: as `check`; or the target exists or cannot be written.
    """
    check(path)
    with _reading(path) as db:
        _make(target)
        try:
            with contextlib.closing(sqlite3.connect(target)) as copy:
                db.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")  # one file, also for read-only places
            with target.open("rb") as file:
                os.fsync(file.fileno())
        except (sqlite3.Error, OSError) as error:
            target.unlink(missing_ok=True)
            raise ConfigError(f"cannot write the backup {target}: {error}") from error
    return check(target)


def restore(state: StateDir, source: Path) -> tuple[JournalSummary, Path | None]:
    """Put a backup in the place of a head's journal; the one that was there is kept beside it.

    Returns:
        What is in place now, and where the journal is that was there.

    Raises:
        ConfigError: a head is running, the backup is not sound, or a file cannot be written. Then
            the journal is as it was, or no head starts before the restore is repeated.
    """
    if not source.is_file():
        raise ConfigError(f"there is no backup at {source}")
    try:
        check(source)
    except ConfigError as error:
        raise ConfigError(f"{source} is no sound backup, nothing was changed: {error}") from error
    state.check()
    with state.lock():
        present, fresh = path_in(state), state.path / _RESTORING
        for leftover in state.path.glob(f"{_RESTORING}*"):
            leftover.unlink()
        kept = _keep(present)
        backup(source, fresh)
        try:
            # From here to the end a head would refuse to start; see `expect_journal`.
            for suffix in _SIDE_FILES:
                Path(f"{present}{suffix}").unlink(missing_ok=True)
            fresh.replace(present)
            state.sync()
        except OSError as error:
            raise ConfigError(f"cannot put the backup in place of {present}: {error}") from error
    return check(present), kept


def _keep(present: Path) -> Path | None:
    """Copy a journal, sound or not, with its side files, to a place where nothing is yet."""
    if not present.exists():
        return None
    number = 1
    while (kept := Path(f"{present}.replaced-{number}")).exists():
        number += 1
    try:
        # The side files first: the journal's own name says that the copy is whole.
        for suffix in (*_SIDE_FILES, ""):
            old = Path(f"{present}{suffix}")
            if old.exists():
                shutil.copyfile(old, f"{kept}{suffix}")
                os.chmod(f"{kept}{suffix}", 0o600)
    except OSError as error:
        raise ConfigError(f"cannot keep the present journal as {kept}: {error}") from error
    return kept


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        is_there = path.is_file()
    except OSError as error:
        raise unusable(str(path), error) from error
    if not is_there:
        raise ConfigError(f"there is no journal at {path}: no head at that place has made one")
    try:
        uri = f"file:{quote(os.path.abspath(path))}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=5.0)) as db:
            if not refuse_foreign(db, str(path)):
                raise ValueError("it is empty")
            yield db
    except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
        raise unusable(str(path), error) from error


def _make(target: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.close(os.open(target, flags, 0o600))
    except FileExistsError as error:
        raise ConfigError(f"{target} is there already: name a new file") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot make the file {target}: {error}") from error


def _summary(path: Path, db: sqlite3.Connection) -> JournalSummary:
    def one(query: str) -> int:
        return int(db.execute(query).fetchone()[0] or 0)

    sides = (Path(f"{path}{suffix}") for suffix in ("", *_SIDE_FILES))
    return JournalSummary(
        path=str(path),
        batches=one("SELECT count(*) FROM batch"),
        tasks=one("SELECT sum(count) FROM batch"),
        ended=one("SELECT sum(count) FROM outcome"),
        workers=one("SELECT count(*) FROM worker"),
        size=sum(side.stat().st_size for side in sides if side.exists()),
    )
