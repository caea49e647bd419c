"""What an operator does with a journal: look whether it is sound, copy it, put a copy back."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from rustray.common.errors import ConfigError
from rustray.head.journal_log import OPEN, SEEN, damage_of, has_log
from rustray.head.journal_rows import (
    connect_reader,
    make_private,
    read_state,
    refuse_foreign,
    unusable,
)
from rustray.head.journal_store import FILE_NAME, at_present_schema
from rustray.head.result_files import (
    SUFFIX,
    DamagedFile,
    ResultFiles,
    name_of,
    read_file,
    sync_directory,
)
from rustray.security.state_dir import StateDir
from rustray.task.columns import StoredColumn

T = TypeVar("T")

REMEDY: Final = (
    "Put a backup in the journal's place with 'rustray state restore FILE'; or go on with what is "
    "left: 'rustray state backup FILE', and restore that"
)
_MARK: Final = "journal.mark"
_RESTORING: Final = f"{FILE_NAME}.restoring"
_SIDE_FILES: Final = ("-wal", "-shm", SEEN)


@dataclass(frozen=True, slots=True)
class JournalSummary:
    """What a sound journal holds.

    Attributes:
        tasks: Accepted and not expired, ended or not.
        ended: Those of them that have ended, and have not been retried since.
        workers: Who had joined when it was last written.
        size: Bytes of the file, its side files and the files of large results.
        results: Large results, each in a file of its own.
        lost: Names of those files that are missing or damaged.
        orphans: Files that nothing refers to; the next start removes them.
        damage: What was lost of the log, in words; "" if nothing shows.
    """

    path: str
    batches: int
    tasks: int
    ended: int
    workers: int
    size: int
    results: int
    lost: tuple[str, ...]
    orphans: int
    damage: str = ""


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
    if not _holds_something(path):
        raise ConfigError(
            f"the journal {path} is missing or empty, and a head has kept one there: put a backup "
            f"in its place with 'rustray state restore FILE'; or remove {state.path / _MARK} to "
            "start empty, and all tasks in it are lost"
        )


def _holds_something(path: Path) -> bool:
    """Whether there is more than SQLite takes for an empty database; damage counts as more."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    try:
        with contextlib.closing(connect_reader(path)) as db:
            return refuse_foreign(db, str(path))
    except sqlite3.Error:
        return True


def expect_log(path: Path) -> None:
    """Refuse a journal whose log has lost what was acked; nobody else may be using it.

    Raises:
        ConfigError: says how to go on.
    """
    if path.stat().st_size == 0 or Path(f"{path}-journal").exists():
        return  # a head died while it made the journal: there was nothing to lose yet
    had_log = has_log(path)
    try:
        with contextlib.closing(connect_reader(path)) as db:
            damage = damage_of(path, db, had_log) if refuse_foreign(db, str(path)) else ""
    except (sqlite3.Error, OSError) as error:
        raise unusable(str(path), error) from error
    if damage:
        raise ConfigError(f"{damage} are lost. {REMEDY}")


def when_unlocked(use: Callable[[], T], within_s: float = 10.0) -> T:
    """Use a journal once whoever else has it locked has let go of it.

    Raises:
        ConfigError: what ``use`` raises; that it is locked only after so long.
    """
    deadline = time.monotonic() + within_s
    while True:
        try:
            return use()
        except ConfigError as error:
            cause = error.__cause__
            is_locked = isinstance(cause, sqlite3.OperationalError) and (
                cause.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            )
            if not is_locked or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def note_journal(state: StateDir) -> None:
    """Remember that there is a journal from now on."""
    state.create_secret(_MARK, b"There is a journal here; see rustray state --help.\n")


def path_in(state: StateDir) -> Path:
    """Return where a head keeps its journal."""
    return state.path / FILE_NAME


@contextlib.contextmanager
def claim(path: Path) -> Iterator[None]:
    """Hold a journal for one head, whatever becomes of the lock file; makes an absent file.

    It has to end after every connection of this process to the journal: closing a file ends
    SQLite's own locks on it.

    Raises:
        ConfigError: another head has it.
    """
    try:
        make_private(path)
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise unusable(str(path), error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"a head is running already with the journal {path}, though the lock file beside "
                "it is another one than it was: stop that head first"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _is_in_use(path: Path) -> bool:
    """Whether a head holds a journal; ask before it is opened, as `claim` says."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def check(path: Path) -> JournalSummary:
    """Read all of a journal; also while a head uses it. Nothing is changed.

    Raises:
        ConfigError: it is absent, damaged, foreign or of a newer rustray.
    """
    is_in_use, had_log = _is_in_use(path), has_log(path)
    with _reading(path) as db:
        (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise ValueError(verdict)
        with at_present_schema(db) as present:
            read_state(present, 0.0, 0.0, 0)
            found = _summary(path, present, _lost_results(path, db))
        return found if is_in_use else replace(found, damage=damage_of(path, db, had_log))


def backup(path: Path, target: Path) -> JournalSummary:
    """Copy a journal into a new file that only its owner can read; also while a head uses it.

    Raises:
        ConfigError: as `check`; or the target exists or cannot be written.
    """
    check(path)
    _make(target)
    try:
        with _reading(path) as db:
            try:
                _copy(path, db, target)
            except (sqlite3.Error, OSError) as error:
                raise ConfigError(f"cannot write the backup {target}: {error}") from error
        try:
            return check(target)
        except ConfigError as error:
            raise ConfigError(
                f"the journal {path} is sound, and what was written of it to {target} is not: see "
                f"to the disk there ({error})"
            ) from error
    except ConfigError:
        _remove(target)
        raise


def _copy(path: Path, db: sqlite3.Connection, target: Path) -> None:
    """Copy a database, then the files that the copy refers to.

    Raises:
        sqlite3.Error, OSError: the target cannot be written.
    """
    with contextlib.closing(sqlite3.connect(target, isolation_level=None)) as copy:
        db.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, also for read-only places
        copy.execute("DELETE FROM meta WHERE key = ?", (OPEN,))
        files = ResultFiles(target, is_synced=True)
        for number, digest, size in list(_large(copy)):
            try:
                content = read_file(results_of(path), number, digest, size)
            except (DamagedFile, OSError):
                if not _is_kept(db, number):  # it has expired since the copy was made
                    copy.execute("UPDATE outcome SET ends = NULL WHERE id = ?", (number,))
                    copy.execute("DELETE FROM large WHERE id = ?", (number,))
            else:
                files.write(number, content)
        if files.path.exists():
            files.sync()
    with target.open("rb") as file:
        os.fsync(file.fileno())
    sync_directory(target.absolute().parent)


def _remove(target: Path) -> None:
    with contextlib.suppress(OSError):
        target.unlink(missing_ok=True)
    shutil.rmtree(results_of(target), ignore_errors=True)


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
    present = path_in(state)
    with state.lock(), claim(present) if present.exists() else contextlib.nullcontext():
        present, fresh = path_in(state), state.path / _RESTORING
        _remove(fresh)
        for suffix in ("-wal", "-shm", "-journal"):
            Path(f"{fresh}{suffix}").unlink(missing_ok=True)
        kept = _keep(present)
        backup(source, fresh)
        try:
            # From here to the end a head would refuse to start; see `expect_journal`.
            for suffix in _SIDE_FILES:
                Path(f"{present}{suffix}").unlink(missing_ok=True)
            _move_results(fresh, present)
            fresh.replace(present)
            state.sync()
        except OSError as error:
            raise ConfigError(f"cannot put the backup in place of {present}: {error}") from error
    return check(present), kept


def _move_results(fresh: Path, present: Path) -> None:
    """Add a restored journal's files to those that are there: the same name is the same content.

    What only the journal of before referred to is removed by the next start.
    """
    source, target = results_of(fresh), results_of(present)
    if not source.exists():
        return
    target.mkdir(mode=0o700, exist_ok=True)
    for name in sorted(os.listdir(source)):
        (source / name).replace(target / name)
    sync_directory(target)
    source.rmdir()


def _keep(present: Path) -> Path | None:
    """Copy a journal, sound or not, with its side files, to a place where nothing is yet."""
    if not present.exists():
        return None
    number = 1
    while (kept := Path(f"{present}.replaced-{number}")).exists():
        number += 1
    try:
        # The side files first: the journal's own name says that the copy is whole.
        if results_of(present).exists():
            shutil.copytree(results_of(present), results_of(kept), copy_function=_link)
        for suffix in (*_SIDE_FILES, ""):
            old = Path(f"{present}{suffix}")
            if old.exists():
                shutil.copyfile(old, f"{kept}{suffix}")
                os.chmod(f"{kept}{suffix}", 0o600)
    except OSError as error:
        raise ConfigError(f"cannot keep the present journal as {kept}: {error}") from error
    return kept


def _link(source: str, target: str) -> None:
    """Give a file a second name, for it is never changed; copy it where that cannot be."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        is_there = path.is_file()
    except OSError as error:
        raise unusable(str(path), error) from error
    if not is_there:
        raise ConfigError(f"there is no journal at {path}: no head at that place has made one")
    try:
        with contextlib.closing(connect_reader(path)) as db:
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


def results_of(path: Path) -> Path:
    """Return where a journal's large results are."""
    return Path(f"{path}{SUFFIX}")


def _large_table(db: sqlite3.Connection) -> str:
    """Return where the large results stand; files of before schema 5 have none."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return "large" if version >= 5 else "(SELECT 0 AS id, x'' AS digest WHERE 0)"


def _large(db: sqlite3.Connection) -> Iterator[tuple[int, bytes, int]]:
    """Yield number, digest and size of every large result."""
    query = (
        f"SELECT large.id, digest, ends, base FROM {_large_table(db)} AS large "  # noqa: S608
        "JOIN outcome ON outcome.id = large.id"
    )
    for number, digest, ends, base in db.execute(query):
        yield number, digest, StoredColumn.found(number, ends, base).size_bytes


def _is_kept(db: sqlite3.Connection, number: int) -> bool:
    query = f"SELECT 1 FROM {_large_table(db)} AS large WHERE id = ?"  # noqa: S608
    return db.execute(query, (number,)).fetchone() is not None


def _lost_results(path: Path, db: sqlite3.Connection) -> list[str]:
    """Read every large result, and return the names of the files that are not what they were."""
    lost: list[str] = []
    for number, digest, size in list(_large(db)):
        try:
            read_file(results_of(path), number, digest, size)
        except (DamagedFile, OSError):
            if _is_kept(db, number):
                lost.append(name_of(number, digest))
    return lost


def _summary(path: Path, db: sqlite3.Connection, lost: list[str]) -> JournalSummary:
    def one(query: str) -> int:
        return int(db.execute(query).fetchone()[0] or 0)

    known = {name_of(number, digest) for number, digest, _ in _large(db)}
    names = ResultFiles(path, is_synced=False).names()
    sides = [Path(f"{path}{suffix}") for suffix in ("", *_SIDE_FILES)]
    sides += [results_of(path) / name for name in names]
    return JournalSummary(
        path=str(path),
        batches=one("SELECT count(*) FROM batch"),
        tasks=one("SELECT sum(count) FROM batch"),
        # A dead letter that is tried again has an outcome still, and begins anew.
        ended=one("SELECT sum(count) FROM outcome") - one("SELECT sum(count) FROM retry"),
        workers=one("SELECT count(*) FROM worker"),
        size=sum(map(_size_of, sides)),
        results=len(known),
        lost=tuple(lost),
        orphans=len(names - known),
    )


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # a head is at work beside us
        return 0
