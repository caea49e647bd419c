"""Objects on disk: one file each, in a directory of this node's own.

The files are no record that anybody could start from: they end with the process that wrote them.
So nothing is synced, and the digests stay in memory.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from rustray.objects.digest import digest_of
from rustray.objects.mapping import map_readable
from rustray.objects.own_directory import CREATE, READ, OwnDirectory
from rustray.objects.segment import Segment

_PIECE_BYTES: Final = 1 << 30


class DamagedFile(Exception):
    """A file is gone, or is not what was written; the message names it."""


class SpillFiles:
    """The files; for one thread at a time.

    Args:
        root: Where the nodes of this machine have their directories; made when it is needed.
        name: Names this node's.
    """

    def __init__(self, root: Path, name: str) -> None:
        self._own = OwnDirectory(root, name, "worker.spool_dir")
        self._known: dict[str, tuple[int, int, bytes]] = {}  # file number, size, digest
        self._last_number = 0

    def sweep(self) -> list[str]:
        """Remove what dead nodes have left; see `OwnDirectory.sweep`."""
        return self._own.sweep()

    def write(self, object_id: str, segment: Segment) -> None:
        """Write an object.

        Raises:
            OSError: the directory or the file cannot be written, or the disk is full.
        """
        self._own.make()
        digest = digest_of(segment.view())
        self._last_number += 1
        path = self._path(self._last_number)
        target = os.open(path, CREATE, 0o600)
        try:
            _copy(segment.fileno(), target, segment.size)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(target)
        self._known[object_id] = (self._last_number, segment.size, digest)

    def read(self, object_id: str) -> Segment:
        """Read an object back; its file stays.

        Raises:
            DamagedFile: it is gone, or not what was written.
            OSError: it cannot be read, or there is no memory.
        """
        number, size, digest = self._known[object_id]
        path = self._path(number)
        try:
            source = os.open(path, READ)
        except FileNotFoundError:
            raise DamagedFile(f"{path} is missing") from None
        try:
            found = os.fstat(source).st_size
            if found != size:
                raise DamagedFile(f"{path} has {found} bytes instead of {size}")
            # What is copied is what is checked: the file may change under us, the copy cannot.
            segment = Segment.fill(size, lambda target: _copy(source, target, size))
        finally:
            os.close(source)
        if digest_of(map_readable(segment.fileno(), size)) != digest:
            segment.close()
            raise DamagedFile(f"{path} is damaged: its digest is not that of what was written")
        return segment

    def drop(self, object_id: str) -> None:
        """Remove an object's file, if there is one."""
        known = self._known.pop(object_id, None)
        if known is not None:
            with contextlib.suppress(OSError):
                self._path(known[0]).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove all of it."""
        self._known.clear()
        self._own.close()

    def _path(self, number: int) -> Path:
        return self._own.path / f"{number}.object"


def _copy(source: int, target: int, size: int) -> None:
    """Copy a file from its start within the kernel."""
    offset = 0
    while offset < size:
        sent = os.sendfile(target, source, offset, min(size - offset, _PIECE_BYTES))
        if not sent:
            raise OSError(f"only {offset} of {size} bytes could be copied")
        offset += sent
