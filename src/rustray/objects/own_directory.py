"""A directory of one process's own, below a root that the processes of a user share.

What is in it ends with the process: a file lock says that it lives, and who comes later removes
the directories of the dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOCK: Final = "lock"
_OTHERS: Final = 0o077


class OwnDirectory:
    """One directory; for one thread at a time.

    Attributes:
        path: Where it is, or will be.
        is_made: Whether it is there.
    """

    def __init__(self, root: Path, name: str, setting: str) -> None:
        """Know it; it is made when it is needed.

        Args:
            root: Where such processes have their directories.
            name: Names this one's.
            setting: What to set to have the root elsewhere, for error messages.
        """
        self._root = root
        self._setting = setting
        self.path = root / name
        self._lock: int | None = None

    @property
    def is_made(self) -> bool:
        """Whether it is there."""
        return self._lock is not None

    def sweep(self) -> list[str]:
        """Remove what processes have left behind that are dead; returns their names.

        Raises:
            OSError: the root cannot be read.
        """
        if not self._root.is_dir():
            return []
        gone = []
        with self._locked_root():
            for each in sorted(self._root.iterdir()):
                if each.is_dir() and not each.is_symlink() and _is_dead(each):
                    shutil.rmtree(each, ignore_errors=True)
                    gone.append(each.name)
        return gone

    def make(self) -> None:
        """Make it, unless it is there.

        Raises:
            OSError: it cannot be made, or others may look into its root.
        """
        if self._lock is not None:
            return
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self._root.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(f"{self._root} is not a directory of this user")
        if found.st_mode & _OTHERS:
            raise PermissionError(
                f"{self._root} is open to other users (mode {stat.S_IMODE(found.st_mode):o}); "
                f"chmod 700 it, or set {self._setting}"
            )
        with self._locked_root():
            self.path.mkdir(mode=0o700)
            lock = os.open(self.path / _LOCK, CREATE, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
        self._lock = lock

    def close(self) -> None:
        """Remove it with all that is in it; idempotent."""
        if self._lock is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = None

    @contextlib.contextmanager
    def _locked_root(self) -> Iterator[None]:
        # One at a time, so that nobody takes a directory for a dead one that is being made.
        root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(root, fcntl.LOCK_EX)
            yield
        finally:
            os.close(root)


def _is_dead(directory: Path) -> bool:
    """Whether nobody holds the lock that its process holds as long as it lives."""
    try:
        lock = os.open(directory / _LOCK, READ)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True
