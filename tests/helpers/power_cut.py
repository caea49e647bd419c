"""A disk that remembers every write and every sync, and what is left of them after a power cut.

SQLite's own writes go through a VFS, so the code under test is the real one, statement by
statement. What a cut leaves of a file is what was synced, and any part of what was written since:
none of it, all of it, or some of it with the last write torn at a sector.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import apsw

SECTOR = 512


@dataclass(frozen=True)
class Step:
    """One thing that was done to a file.

    Attributes:
        kind: "write", "truncate", "sync", "delete", "create" (its name is not safe before the next
            "names") or "names" (directories were synced).
        name: Of the file, below the directory; "" for "names".
        at: Where a write begins, or the size that a truncation leaves.
    """

    kind: str
    name: str = ""
    at: int = 0
    data: bytes = b""


def applied(content: bytes, step: Step) -> bytes:
    """Return a file's content after a write or a truncation."""
    if step.kind == "truncate":
        return content[: step.at].ljust(step.at, b"\0")
    return (
        content[: step.at].ljust(step.at, b"\0") + step.data + content[step.at + len(step.data) :]
    )


@dataclass
class Disk:
    """The history of a directory, and every state in which a power cut may leave it.

    Attributes:
        steps: In order.
        fails_to_sync: Every sync from now on is an error.
    """

    steps: list[Step] = field(default_factory=list)
    fails_to_sync: bool = False

    def __post_init__(self) -> None:
        self._vfs = _Vfs(self, f"disk-{id(self):x}")

    def note(self, step: Step) -> None:
        """Remember a step."""
        self.steps.append(step)

    def connect(self, path: str) -> Connection:
        """Open a database whose writes are remembered."""
        return Connection(apsw.Connection(path, vfs=self._vfs.name))

    def cuts(self) -> Iterator[int]:
        """Yield after how many steps to cut: around every sync."""
        for number, step in enumerate(self.steps):
            if step.kind in ("sync", "names"):
                yield number
                yield number + 1

    def at(self, cuts: Sequence[int]) -> Iterator[tuple[int, Files]]:
        """Yield what there is of the files after so many steps each, in order."""
        files, taken = Files(), 0
        for cut in sorted(cuts):
            for step in self.steps[taken:cut]:
                files.take(step)
            taken = cut
            yield cut, files


class Files:
    """What is synced, and what is not yet."""

    def __init__(self) -> None:
        self._synced: dict[str, bytes] = {}
        self._pending: dict[str, list[Step]] = {}
        self._deleted: dict[str, bytes] = {}
        self._unnamed: set[str] = set()

    def take(self, step: Step) -> None:
        """Do one step."""
        name = step.name
        if step.kind == "names":
            self._deleted.clear()
            self._unnamed.clear()
        elif step.kind == "create":
            self._unnamed.add(name)
            self._synced[name] = b""
        elif step.kind == "sync":
            # A file's first sync keeps its name too where SQLite has made it: it syncs the
            # directory with that, behind our back.
            content = self._synced.get(name, b"")
            for pending in self._pending.pop(name, ()):
                content = applied(content, pending)
            self._synced[name] = content
            self._deleted.pop(name, None)
        elif step.kind == "delete":
            self._pending.pop(name, None)
            content = self._synced.pop(name, b"")
            if name not in self._unnamed:
                self._deleted[name] = content
            self._unnamed.discard(name)
        else:
            self._pending.setdefault(name, []).append(step)

    def after_cut(self, how: str, random: Random) -> dict[str, bytes]:
        """Return what the files hold when the power fails now.

        Args:
            how: What is left of writes that were not synced: "none", "all" or "some".
            random: For "some".
        """
        left = dict(self._synced)
        for name in sorted(self._unnamed):
            if how == "none" or (how == "some" and random.random() < 0.5):
                left.pop(name, None)
        for name in sorted(self._deleted):
            if name not in left and (how == "none" or (how == "some" and random.random() < 0.5)):
                left[name] = self._deleted[name]
        for name in sorted(self._pending):
            if name in self._unnamed and name not in left:
                continue
            content = left.get(name, b"")
            for step in _survivors(self._pending[name], how, random):
                content = applied(content, step)
            if content or name in left:
                left[name] = content
        return left


def _survivors(pending: Sequence[Step], how: str, random: Random) -> list[Step]:
    if how == "none":
        return []
    if how == "all":
        return list(pending)
    kept = [step for step in pending if random.random() < 0.6]
    if kept and kept[-1].kind == "write":
        last = kept.pop()
        # Sectors are whole: a write that begins in the middle of one ends at a border of them.
        borders = range(SECTOR - last.at % SECTOR, len(last.data), SECTOR)
        torn = random.choice([0, *borders])
        kept.append(Step("write", last.name, last.at, last.data[:torn]))
    return kept


def write_files(directory: Path, files: dict[str, bytes]) -> None:
    """Put files into an empty directory."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(content)


class RecordingOs:
    """The module ``os`` as the files beside a journal use it; writes and syncs are remembered."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._names: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Path | str, flags: int, mode: int = 0o777) -> int:
        """Open, and note a file that is made."""
        is_new = flags & os.O_CREAT and not os.path.lexists(path)
        descriptor = os.open(path, flags, mode)
        self._names.pop(descriptor, None)
        if not flags & os.O_DIRECTORY:
            self._names[descriptor] = _name_of(path)
        if is_new:
            self._disk.note(Step("create", self._names[descriptor]))
        return descriptor

    def write(self, descriptor: int, data: bytes) -> int:
        """Write, half of it at first, as a system may."""
        at = os.lseek(descriptor, 0, os.SEEK_CUR)
        half = bytes(data[: (len(data) + 1) // 2])
        self._disk.note(Step("write", self._names[descriptor], at, half))
        return os.write(descriptor, half)

    def pwrite(self, descriptor: int, data: bytes, at: int) -> int:
        """Write at a place."""
        self._disk.note(Step("write", self._names[descriptor], at, bytes(data)))
        return os.pwrite(descriptor, data, at)

    def ftruncate(self, descriptor: int, size: int) -> None:
        """Cut a file."""
        self._disk.note(Step("truncate", self._names[descriptor], size))
        os.ftruncate(descriptor, size)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        os.unlink(path)
        self._disk.note(Step("delete", _name_of(path)))

    def fsync(self, descriptor: int) -> None:
        """Sync a file or a directory."""
        os.fsync(descriptor)
        name = self._names.get(descriptor)
        self._disk.note(Step("names") if name is None else Step("sync", name))


def _name_of(path: Path | str) -> str:
    """Return a file's name below the directory of the journal."""
    file = Path(path)
    return f"{file.parent.name}/{file.name}" if file.parent.suffix == ".results" else file.name


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, filename: Any, flags: list[int]) -> None:
        super().__init__("", filename, flags)
        path = filename.filename() if isinstance(filename, apsw.URIFilename) else filename
        self._disk, self._name = disk, Path(path).name

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - SQLite's name
        self._disk.note(Step("write", self._name, offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self._disk.note(Step("truncate", self._name, newsize))
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802
        if self._disk.fails_to_sync:
            raise apsw.IOError("the disk says no")
        super().xSync(flags)
        self._disk.note(Step("sync", self._name))


class _Vfs(apsw.VFS):
    def __init__(self, disk: Disk, name: str) -> None:
        super().__init__(name, "")
        self.name = name
        self._disk = disk

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return _File(self._disk, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        super().xDelete(filename, syncdir)
        self._disk.note(Step("delete", Path(filename).name))
        if syncdir:
            self._disk.note(Step("names"))


@dataclass
class Rows:
    """What a statement returned."""

    rows: list[tuple[Any, ...]]
    lastrowid: int

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.rows)

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the first row."""
        return self.rows[0] if self.rows else None


class Connection:
    """As much of `sqlite3.Connection` as the journal uses, on apsw."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        db.set_busy_timeout(5000)

    def execute(self, statement: str, bindings: Sequence[Any] = ()) -> Rows:
        """Run one statement to its end."""
        rows = self._db.execute(statement, tuple(bindings)).fetchall()
        return Rows(rows, self._db.last_insert_rowid())

    def executemany(self, statement: str, bindings: Sequence[Any]) -> None:
        """Run a statement once for each set of values."""
        rows = [row if isinstance(row, dict) else tuple(row) for row in bindings]
        self._db.executemany(statement, rows)

    def executescript(self, script: str) -> None:
        """Run several statements."""
        self._db.execute(script).fetchall()

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self._db.in_transaction

    def close(self) -> None:
        """End as an orderly head does: the log goes into the file."""
        self._db.close()

    def abandon(self) -> None:
        """End as a head does that is killed: the log stays beside the file."""
        self._db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self._db.close()
