"""Directories and modules of the client's disk, packed to travel.

The same content gives the same bytes: names in order, no times, no owners. What cannot be packed is
refused here, before anything is sent.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from rustray.common.errors import PayloadError
from rustray.task.runtime_env import (
    MAX_FILES,
    MAX_PACKAGE_BYTES,
    MAX_UNPACKED_BYTES,
    Package,
)

IGNORE_FILE: Final = ".rustrayignore"
ALWAYS_IGNORED: Final = (".git/", "__pycache__/", "*.pyc")
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_KINDS: Final = (
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)
_MB: Final = 1 << 20


def pack_directory(option: str, root: Path, excludes: Sequence[str] = ()) -> Package:
    """Pack what is in a directory, but for what is to be left out.

    Args:
        option: What the user called it.
        root: The directory.
        excludes: Patterns beside those of its `IGNORE_FILE`.

    Raises:
        PayloadError: it is not there, too large, or holds what cannot travel; says what to do.
    """
    try:
        if not root.is_dir():
            what = "is no directory" if root.exists() else "does not exist"
            raise PayloadError(f"{option}: {str(root)!r} {what}")
        ignored = (*ALWAYS_IGNORED, *_ignore_file(option, root), *excludes)
        return _pack(option, _files(option, root, root, ignored))
    except OSError as error:
        raise _unreadable(option, error) from error


def pack_module(option: str, path: Path, excludes: Sequence[str] = ()) -> Package:
    """Pack a module: a ``.py`` file, or a directory under its own name.

    Raises:
        PayloadError: as `pack_directory`.
    """
    try:
        if path.is_file() and path.suffix == ".py":
            return _pack(option, iter([(path.name, path)]))
        if not path.is_dir():
            what = "is neither a directory nor a .py file" if path.exists() else "does not exist"
            raise PayloadError(f"{option}: {str(path)!r} {what}")
        ignored = (*ALWAYS_IGNORED, *_ignore_file(option, path), *excludes)
        name = path.resolve().name
        found = _files(option, path, path, ignored)
        return _pack(option, ((f"{name}/{inner}", file) for inner, file in found))
    except OSError as error:
        raise _unreadable(option, error) from error


def check_patterns(option: str, patterns: Sequence[str]) -> None:
    """Verify patterns of what is left out.

    Raises:
        PayloadError: one is empty, or of a kind that is not known here.
    """
    for each in patterns:
        if not isinstance(each, str) or not each.strip("/") or each.startswith("!"):
            raise PayloadError(
                f"{option}: {each!r:.80} is no pattern; write 'name', '*.ending', 'dir/' or "
                "'/path/from/the/top' (patterns with '!' are not known here)"
            )


def _ignore_file(option: str, root: Path) -> list[str]:
    try:
        text = (root / IGNORE_FILE).read_text("utf-8")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise PayloadError(f"{option}: {IGNORE_FILE} is no UTF-8: {error}") from error
    lines = (line.strip() for line in text.splitlines())
    patterns = [line for line in lines if line and not line.startswith("#")]
    check_patterns(f"{option}: {IGNORE_FILE}", patterns)
    return patterns


def is_ignored(path: str, is_directory: bool, patterns: Sequence[str]) -> bool:
    """Whether a path from the top is to be left out.

    A pattern that ends with ``/`` is for directories only. One with another ``/`` is for paths from
    the top, any other for names wherever they are. ``*`` and ``?`` stand for any characters.
    """
    name = path.rpartition("/")[2]
    for each in patterns:
        if each.endswith("/") and not is_directory:
            continue
        pattern = each.rstrip("/")
        is_found = (
            fnmatch.fnmatchcase(path, pattern.lstrip("/"))
            if "/" in pattern
            else fnmatch.fnmatchcase(name, pattern)
        )
        if is_found:
            return True
    return False


def _files(
    option: str, root: Path, directory: Path, ignored: Sequence[str]
) -> Iterator[tuple[str, Path]]:
    """Walk over what is to be packed: (path from the top, file)."""
    with os.scandir(directory) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        path = Path(entry.path)
        inner = path.relative_to(root).as_posix()
        try:
            inner.encode()
        except UnicodeEncodeError:
            raise _refused(option, path, "has a name that is no UTF-8") from None
        is_directory = entry.is_dir(follow_symlinks=False)
        if is_ignored(inner, is_directory, ignored):
            continue
        if entry.is_symlink():
            _check_link(option, root, path)
        elif is_directory:
            yield from _files(option, root, path, ignored)
            continue
        elif not entry.is_file(follow_symlinks=False):
            mode = entry.stat(follow_symlinks=False).st_mode
            kind = next((text for is_kind, text in _KINDS if is_kind(mode)), "no file")
            raise _refused(option, path, f"is {kind}")
        yield inner, path


def _check_link(option: str, root: Path, path: Path) -> None:
    """Let only links to files below the root pass; they travel as what they point to."""
    target = Path(os.path.realpath(path))
    if not target.is_relative_to(root.resolve()):
        raise _refused(option, path, f"is a link that points out of it, to {str(target)!r:.200}")
    if not target.is_file():
        raise _refused(option, path, "is a link to no file")


def _pack(option: str, found: Iterator[tuple[str, Path]]) -> Package:
    files = list(islice(found, MAX_FILES + 1))
    if len(files) > MAX_FILES:
        raise _too_much(option, f"has more than {MAX_FILES:,} files")
    if sum(path.stat().st_size for _, path in files) > MAX_UNPACKED_BYTES:
        raise _too_much(option, f"takes more than {MAX_UNPACKED_BYTES // _MB} MiB")
    buffer = io.BytesIO()
    size = 0
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, path in files:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                content = file.read(MAX_UNPACKED_BYTES - size + 1)
            size += len(content)
            if size > MAX_UNPACKED_BYTES:
                raise _too_much(option, f"takes more than {MAX_UNPACKED_BYTES // _MB} MiB")
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = (0o755 if mode & stat.S_IXUSR else 0o644) << 16
            info.create_system = 3
            archive.writestr(info, content, zipfile.ZIP_DEFLATED, 6)
            if buffer.tell() > MAX_PACKAGE_BYTES:
                raise _too_much(option, f"takes over {MAX_PACKAGE_BYTES // _MB} MiB compressed")
    content = buffer.getvalue()
    return Package(hashlib.sha256(content).digest(), content)


def _refused(option: str, path: Path, why: str) -> PayloadError:
    return PayloadError(
        f"{option}: {str(path)!r:.300} {why}, and cannot travel; leave it out by a line in "
        f"{IGNORE_FILE} or by excludes"
    )


def _too_much(option: str, why: str) -> PayloadError:
    return PayloadError(
        f"{option} {why}: it is for code and small files. Leave the rest out by a line in "
        f"{IGNORE_FILE} or by excludes, and put data where the workers can read it"
    )


def _unreadable(option: str, error: OSError) -> PayloadError:
    return PayloadError(f"{option}: {error.filename or ''!r} cannot be read: {error.strerror}")
