"""What an operator does with a journal: look whether it is sound, copy it, put a copy back."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from rustray.common.errors import ConfigError
from rustray.head.journal_store import FILE_NAME, read_state, refuse_foreign, unusable
from rustray.security.state_dir import StateDir
from rustray.task.columns import ENDS_TYPECODE

REPLACED: Final = f"{FILE_NAME}.replaced"
"""Where `restore` leaves the journal that was there."""
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
        read_state(db, 0.0, 0.0, 0)
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
            with target.open("rb") as file:
                os.fsync(file.fileno())
        except (sqlite3.Error, OSError) as error:
            target.unlink(missing_ok=True)
            raise ConfigError(f"cannot write the backup {target}: {error}") from error
    return check(target)


def restore(state: StateDir, source: Path) -> JournalSummary:
    """Put a backup in the place of a head's journal; the one that was there is kept beside it.

    Raises:
        ConfigError: a head is running, the backup is not sound, or a file cannot be written.
    """
    check(source)
    state.check()
    with state.lock():
        present = path_in(state)
        fresh = state.path / f"{FILE_NAME}.restoring"
        fresh.unlink(missing_ok=True)
        backup(source, fresh)
        try:
            for suffix in ("", *_SIDE_FILES):
                old = Path(f"{present}{suffix}")
                if old.exists():
                    old.replace(state.path / f"{REPLACED}{suffix}")
            fresh.replace(present)
            state.sync()
        except OSError as error:
            raise ConfigError(f"cannot put the backup in place of {present}: {error}") from error
    return check(present)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.is_file():
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

    width = array(ENDS_TYPECODE).itemsize
    sides = (Path(f"{path}{suffix}") for suffix in ("", *_SIDE_FILES))
    return JournalSummary(
        path=str(path),
        batches=one("SELECT count(*) FROM batch"),
        tasks=one("SELECT sum(length(ends)) FROM batch") // width,
        ended=one("SELECT sum(length(ends)) FROM outcome") // width,
        workers=one("SELECT count(*) FROM worker"),
        size=sum(side.stat().st_size for side in sides if side.exists()),
    )
