"""Packages of runtime environments on disk: kept by the agent, unpacked by the executors.

A worker's packages are in a directory of its own, which ends with it: ``HASH.zip``, and ``HASH/``
once an executor has needed it.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO, Final

from rustray.objects.own_directory import CREATE, OwnDirectory
from rustray.task.runtime_env import MAX_FILES, MAX_UNPACKED_BYTES
from rustray.worker.events import DropPackage, KeepPackage

logger = logging.getLogger("rustray.worker")

_COPY_BYTES: Final = 1 << 20
_FILE_MODES: Final = (0o644, 0o755)


class PackageStore:
    """The agent's side.

    Args:
        root: Where the workers of this machine have their directories; "": a temporary place.
        worker_id: Names this worker's.
    """

    def __init__(self, root: Path | str, worker_id: str) -> None:
        self._root = Path(root) if root else None
        self._worker_id = worker_id
        self._temporary: Path | None = None
        self._own: OwnDirectory | None = None

    @property
    def path(self) -> str:
        """Where the packages are; "" as long as there were none."""
        return "" if self._own is None else str(self._own.path)

    def take(self, command: KeepPackage | DropPackage) -> None:
        """Do what the core says; where the disk refuses, who needs the package fails by that."""
        try:
            if isinstance(command, KeepPackage):
                self.keep(command.digest, command.content)
            else:
                self.drop(command.digest)
        except OSError as error:
            logger.error("a package of a runtime_env cannot be kept: %s", error)

    def keep(self, digest: bytes, content: bytes) -> None:
        """Write a package.

        Raises:
            OSError: the disk does not take it.
        """
        own = self._own or self._open()
        own.make()
        path = own.path / f"{digest.hex()}.zip"
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        with open(os.open(part, CREATE, 0o600), "wb") as file:
            file.write(content)
        part.rename(path)

    def _open(self) -> OwnDirectory:
        root = self._root
        if root is None:
            root = self._temporary = Path(tempfile.mkdtemp(prefix="rustray-packages-"))
        self._own = OwnDirectory(root, self._worker_id, "worker.package_dir")
        gone = self._own.sweep()
        if gone:
            logger.info("removed packages of workers that are dead: %s", ", ".join(gone))
        return self._own

    def drop(self, digest: bytes) -> None:
        """Remove a package, packed and unpacked."""
        if self._own is not None:
            (self._own.path / f"{digest.hex()}.zip").unlink(missing_ok=True)
            shutil.rmtree(self._own.path / digest.hex(), ignore_errors=True)

    def close(self) -> None:
        """Remove all of it; no executor lives any more."""
        if self._own is not None:
            self._own.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


class BadPackage(Exception):
    """What is in a package is not what a client of ours packs."""


def unpacked(root: Path, digest: str) -> Path:
    """Return the directory of a package, unpacked by whoever needs it first.

    Raises:
        BadPackage: a name leads out of it, or there is too much in it.
        OSError: the disk does not take it, or the package is not there.
    """
    target = root / digest
    if target.is_dir():
        return target
    own = Path(tempfile.mkdtemp(prefix=f"{digest[:16]}-", dir=root))
    try:
        _unpack(root / f"{digest}.zip", own)
        own.chmod(0o700)
        try:
            own.rename(target)
        except OSError:
            if not target.is_dir():  # else another executor was first
                raise
    finally:
        shutil.rmtree(own, ignore_errors=True)
    return target


def _unpack(path: Path, target: Path) -> None:
    left = MAX_UNPACKED_BYTES
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MAX_FILES:
                raise BadPackage(f"it has more than {MAX_FILES:,} files")
            for member in members:
                place = _place(target, member)
                place.parent.mkdir(parents=True, exist_ok=True)
                mode = _FILE_MODES[bool(member.external_attr >> 16 & stat.S_IXUSR)]
                with archive.open(member) as source, open(_create(place, mode), "wb") as sink:
                    left -= _copy(source, sink, left)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise BadPackage(f"it is no zip file that can be read: {error}") from error


def _create(path: Path, mode: int) -> int:
    return os.open(path, CREATE, mode)


def _place(target: Path, member: zipfile.ZipInfo) -> Path:
    """Return where a member goes, which is below the target and no link."""
    name = PurePosixPath(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)
    is_plain = member.filename == str(name) and kind in (0, stat.S_IFREG)
    if not is_plain or name.is_absolute() or not name.parts or ".." in name.parts:
        raise BadPackage(f"it has a file {member.filename!r:.200}")
    return target.joinpath(*name.parts)


def _copy(source: IO[bytes], sink: IO[bytes], limit: int) -> int:
    size = 0
    while part := source.read(_COPY_BYTES):
        size += len(part)
        if size > limit:
            raise BadPackage(f"it takes more than {MAX_UNPACKED_BYTES >> 20} MiB")
        sink.write(part)
    return size
