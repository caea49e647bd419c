"""The directory in which a head keeps its secrets, and in which local commands find them.

Law: only its owner can read it, and nothing about it is repaired silently. A directory or a
file that others could have read or replaced is refused with the command that mends it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Self

from rustray.common.errors import ConfigError

CLUSTER_ID: Final = "cluster_id"
CA_CERTIFICATE: Final = "ca.pem"
CA_KEY: Final = "ca.key"
SERVER_CERTIFICATE: Final = "server.pem"
SERVER_KEY: Final = "server.key"
SIGNING_KEY: Final = "signing.key"
ADMIN_TOKEN: Final = "admin.token"  # noqa: S105 - a file name
WORKER_JOIN: Final = "worker.join"
HEAD_ADDRESS: Final = "head.address"

MAX_FILE_BYTES: Final = 1 << 20

_LOCK: Final = "lock"
_TEMPORARY: Final = ".new-"
_NAME: Final = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_READ_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CREATE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS: Final = 0o077


def default_state_dir(environ: Mapping[str, str], home: Path) -> Path:
    """Answer where the state directory is when no flag names one.

    ``RUSTRAY_STATE_DIR``, else ``rustray`` in the XDG state directory.

    Raises:
        ConfigError: ``RUSTRAY_STATE_DIR`` is set and empty.
    """
    chosen = environ.get("RUSTRAY_STATE_DIR")
    if chosen is not None:
        if not chosen.strip():
            raise ConfigError(
                "RUSTRAY_STATE_DIR is set but empty: unset it, or set it to a directory"
            )
        if chosen == "~" or chosen.startswith("~/"):
            return home / chosen[2:]
        return Path(chosen)
    base = environ.get("XDG_STATE_HOME", "")
    # The XDG specification: a relative path there is invalid and has to be ignored.
    root = Path(base) if base.startswith("/") else home / ".local" / "state"
    return root / "rustray"


class StateLock:
    """The exclusive claim on a state directory; it ends with `release` or with the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Give the directory free; idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class StateDir:
    """One state directory: 0700, its files 0600, all owned by this user.

    Attributes:
        path: Absolute.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(os.path.abspath(path))

    def __repr__(self) -> str:
        return f"StateDir({str(self.path)!r})"

    def create(self) -> None:
        """Make the directory if it is absent, and check it.

        Raises:
            ConfigError: it cannot be made, or `check` refuses it.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Two heads may start at once: that both see it absent is not an error.
            with contextlib.suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"cannot create the state directory {self.path}: {_why(error)}; "
                f"{_remedy(error)}choose another with --state-dir or RUSTRAY_STATE_DIR"
            ) from error
        self.check()

    def exists(self) -> bool:
        """Whether anything is at the path, good or not."""
        return os.path.lexists(self.path)

    def check(self) -> None:
        """Refuse a directory that somebody else could read or replace.

        Raises:
            ConfigError: absent, a symlink, no directory, a foreign owner's, or open to group
                or others; names the command that mends it.
        """
        try:
            found = os.lstat(self.path)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"cannot use the state directory {self.path}: {_why(error)}"
            ) from error
        if stat.S_ISLNK(found.st_mode):
            raise ConfigError(
                f"the state directory {self.path} is a symbolic link; name the directory itself"
            )
        if not stat.S_ISDIR(found.st_mode):
            raise ConfigError(
                f"the state directory {self.path} is not a directory; "
                "choose another with --state-dir or RUSTRAY_STATE_DIR"
            )
        _check_private(self.path, found, f"chmod 700 {self.path}")

    def find_secret(self, name: str) -> bytes | None:
        """Return a file's content, or None if there is no such file.

        Raises:
            ConfigError: a symlink, no regular file, a foreign owner's, open to group or others,
                over 1 MiB, or not readable.
        """
        path = self._file(name)
        try:
            descriptor = os.open(path, _READ_FLAGS)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ConfigError(
                    f"{path} is a symbolic link; put the file itself there"
                ) from error
            raise ConfigError(f"cannot read {path}: {_why(error)}") from error
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ConfigError(f"{path} is not a regular file; remove it")
            _check_private(path, found, f"chmod 600 {path}")
            content = read_up_to(descriptor, MAX_FILE_BYTES + 1)
        finally:
            os.close(descriptor)
        if len(content) > MAX_FILE_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes; it is not rustray's")
        return content

    def read_secret(self, name: str) -> bytes:
        """Return a file's content.

        Raises:
            ConfigError: absent, or as `find_secret`.
        """
        content = self.find_secret(name)
        if content is None:
            raise ConfigError(f"{self._file(name)} is missing")
        return content

    def write_secret(self, name: str, content: bytes) -> None:
        """Put the content in the file, whole or not at all; replaces what was there.

        Raises:
            ConfigError: it cannot be written.
        """
        self._install(name, content, os.replace)

    def create_secret(self, name: str, content: bytes) -> bool:
        """Put the content in a new file, whole or not at all.

        Returns:
            False, with nothing changed, if the file exists.

        Raises:
            ConfigError: it cannot be written.
        """
        try:
            self._install(name, content, os.link)
        except FileExistsError:
            return False
        return True

    def load_or_create(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Return the file's content; where it is absent, make it first.

        Of several processes that do this at once, one makes it and all return the same.

        Raises:
            ConfigError: it cannot be read or written.
        """
        content = self.find_secret(name)
        if content is None:
            self.create_secret(name, make())
            content = self.read_secret(name)
        return content

    def remove(self, name: str) -> None:
        """Remove a file if it is there.

        Raises:
            ConfigError: it cannot be removed.
        """
        path = self._file(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot remove {path}: {_why(error)}") from error

    def lock(self) -> StateLock:
        """Claim the directory for one head.

        Raises:
            ConfigError: another head holds it (its process id is named), or the file system
                has no locks.
        """
        path = self.path / _LOCK
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise ConfigError(
                f"cannot open the lock file {path}: {_why(error)}; a head has to be able to write "
                f"there: {_remedy(error)}choose another place with --state-dir"
            ) from error
        try:
            self._claim(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._remove_leftovers()
        return StateLock(descriptor)

    def _claim(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            who = f"process {holder}" if holder.isdigit() else "another process"
            raise ConfigError(
                f"a head is running already with the state directory {self.path} ({who}); "
                "stop it, or give this one a directory of its own with --state-dir"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"cannot lock the state directory {self.path}: {_why(error)}; "
                "choose one on a local disk with --state-dir"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)

    def _remove_leftovers(self) -> None:
        # A head that was killed in `_install` leaves its temporary file, maybe with a key in it.
        for leftover in self.path.glob(f"{_TEMPORARY}*"):
            leftover.unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        if _NAME.fullmatch(name) is None:
            raise ConfigError(f"{name!r} is not the name of a file in a state directory")
        return self.path / name

    def _install(self, name: str, content: bytes, place: Callable[[Path, Path], None]) -> None:
        path = self._file(name)
        temporary = self.path / f"{_TEMPORARY}{name}-{secrets.token_hex(8)}"
        try:
            try:
                with open(os.open(temporary, _CREATE_FLAGS, 0o600), "wb") as file:
                    os.fchmod(file.fileno(), 0o600)  # whatever the umask says
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                place(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            self.sync()
        except FileExistsError:
            raise
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {_why(error)}") from error

    def sync(self) -> None:
        """Make names that were added or replaced survive a power cut.

        Raises:
            OSError: they may not.
        """
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_up_to(descriptor: int, limit_bytes: int) -> bytes:
    """Read a regular file from where it stands, to its end or the limit."""
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(limit_bytes)


def _check_private(path: Path, found: os.stat_result, remedy: str) -> None:
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"{path} belongs to user id {found.st_uid}, and this process runs as user id "
            f"{os.geteuid()}; run as its owner, or choose another place with --state-dir"
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & _OTHERS:
        raise ConfigError(
            f"{path} is open to other users (mode {mode:04o}); look whether its secrets leaked, "
            f"then run: {remedy}"
        )


def is_read_only(path: Path) -> bool:
    """Whether the file system of a directory of ours takes no writes any more."""
    probe = path / f"{_TEMPORARY}{secrets.token_hex(8)}"
    try:
        os.close(os.open(probe, _CREATE_FLAGS, 0o600))
        probe.unlink()
    except OSError as error:
        return error.errno == errno.EROFS
    return False


def _remedy(error: OSError | ValueError) -> str:
    is_known = isinstance(error, OSError) and error.errno == errno.EROFS
    return "mount it for writing (mount -o remount,rw), or " if is_known else ""


def _why(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
