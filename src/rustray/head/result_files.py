"""Large results: one file each, beside the database, which has their SHA-256.

A file is written and synced, and its name too, before the commit that refers to it (or, if that is
not synced either, before the next one that is); it is removed after the commit that lets go of it.
So a power cut may leave a file that nobody refers to, which
the next start removes, and never a reference to a file that is not whole.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Final

SUFFIX: Final = ".results"
_NAME_DIGITS: Final = 16
_CREATE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class DamagedFile(Exception):
    """A file is not there, or is not what was written; the message names it."""


class ResultFiles:
    """The files of one database; for one thread at a time.

    Attributes:
        path: The directory; absent until there is a first file.
        is_synced: Have the disk confirm every file before it is referred to.
    """

    def __init__(self, database: Path | str, *, is_synced: bool) -> None:
        """Know the directory.

        Args:
            database: Path of the database that the files belong to.
            is_synced: Have the disk confirm every file before it is referred to.
        """
        self.path = Path(f"{database}{SUFFIX}")
        self.is_synced = is_synced
        self._is_made = False
        self._unsynced: dict[str, None] = {}

    def write(self, number: int, content: bytes) -> bytes:
        """Write one file, and return its digest; call `sync` before a commit refers to it.

        Raises:
            OSError: it cannot be written.
        """
        digest = sha256(content).digest()
        self._make()
        path = self.path / name_of(number, digest)
        _unlink(path)  # of a commit that failed: nobody refers to it
        descriptor = os.open(path, _CREATE_FLAGS, 0o600)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if self.is_synced:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if not self.is_synced:
            self._unsynced[path.name] = None
        return digest

    def doubt(self, known: Iterable[tuple[int, bytes]]) -> None:
        """Count files as not confirmed: a head that did not sync them has ended out of order."""
        there = self.names()
        names = (name_of(*one) for one in known)
        self._unsynced.update(dict.fromkeys(name for name in names if name in there))

    @property
    def has_unsynced(self) -> bool:
        """Whether files were written that the disk has not confirmed."""
        return bool(self._unsynced)

    def sync(self) -> None:
        """Have the disk confirm the names of all files written, and what it has not confirmed.

        Raises:
            OSError: it does not.
        """
        if not self.is_synced:
            return
        if self._unsynced:
            for name in self._unsynced:
                with contextlib.suppress(FileNotFoundError):  # lost before: its reader is told
                    sync_path(self.path / name, _READ_FLAGS)
            sync_directory(self.path.parent)
        sync_directory(self.path)
        self._unsynced.clear()

    def remove(self, number: int, digest: bytes) -> None:
        """Remove a file that nothing refers to any more; it may be gone already.

        Raises:
            OSError: it cannot be removed.
        """
        name = name_of(number, digest)
        self._unsynced.pop(name, None)
        _unlink(self.path / name)

    def collect(self, known: Iterable[tuple[int, bytes]]) -> int:
        """Remove all files but those that the database refers to, and return how many.

        Raises:
            OSError: one cannot be removed.
        """
        orphans = self.names() - {name_of(number, digest) for number, digest in known}
        for name in orphans:
            _unlink(self.path / name)
        return len(orphans)

    def names(self) -> set[str]:
        """Return the names of all files that are there.

        Raises:
            OSError: the directory cannot be read.
        """
        with contextlib.suppress(FileNotFoundError):
            return set(os.listdir(self.path))
        return set()

    def _make(self) -> None:
        if self._is_made:
            return
        self.path.mkdir(mode=0o700, exist_ok=True)
        if self.is_synced:
            sync_directory(self.path.parent)
        self._is_made = True


def _unlink(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def name_of(number: int, digest: bytes) -> str:
    """Return a file's name: the same name means the same content."""
    return f"{number}-{digest.hex()[:_NAME_DIGITS]}"


def read_file(directory: Path, number: int, digest: bytes, size: int) -> bytes:
    """Read a file whole, and look whether it is what was written.

    Raises:
        DamagedFile: it is not, or it is not there.
        OSError: it cannot be read.
    """
    path = directory / name_of(number, digest)
    try:
        with open(os.open(path, _READ_FLAGS), "rb") as file:
            content = file.read(size + 1)
    except FileNotFoundError as error:
        raise DamagedFile(f"{path} is missing") from error
    if len(content) != size or sha256(content).digest() != digest:
        raise DamagedFile(f"{path} is damaged: its SHA-256 is not the one of the result")
    return content


def sync_directory(path: Path) -> None:
    """Make names that were added survive a power cut.

    Raises:
        OSError: they may not.
    """
    sync_path(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def sync_path(path: Path, flags: int) -> None:
    """Have the disk confirm what a path names.

    Raises:
        OSError: it does not, or there is nothing.
    """
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
