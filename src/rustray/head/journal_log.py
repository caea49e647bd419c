"""Looks whether the journal's log has lost commits, which SQLite itself passes over in silence.

The log (``-wal``) holds what was committed since it was last written into the file. After a frame
that is not sound SQLite ignores the rest, for that is what a power cut leaves of the last commit,
which nobody was told of. But a commit is synced before the next one is written: so more than one
commit behind a frame that is not sound means that the log was damaged, and that what was acked is
gone. So does a log that is missing though the head before did not end in order. Where not every
commit is synced (a level below "full", or tasks that asked for less), a file beside the journal
says how many are.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rustray.head.journal_rows import connect_reader

_HEADER: Final = struct.Struct(">8I")
_FRAME: Final = struct.Struct(">6I")
_MAGIC: Final = 0x377F0682
_WORD: Final = 0xFFFF_FFFF
OPEN: Final = "open"
"""Key in ``meta``: "full" if a head has the journal open and syncs every commit, "process" if it
does not, "" once it ended in order."""


@dataclass(frozen=True, slots=True)
class _Frame:
    page: int
    size: int
    salts: tuple[int, int]
    sums: tuple[int, int]
    data: bytes

    @property
    def is_commit(self) -> bool:
        """Whether it is the last one of a commit."""
        return self.size > 0


def has_log(path: Path) -> bool:
    """Whether a journal has a log; ask before it is opened, which makes an empty one."""
    try:
        return Path(f"{path}-wal").stat().st_size > 0
    except FileNotFoundError:
        return False


def damage_of(path: Path, db: sqlite3.Connection, had_log: bool) -> str:
    """Say what was lost of a journal's log, "" if nothing shows.

    Args:
        path: Of the journal.
        db: The journal, opened to be read.
        had_log: What `has_log` said before that.

    Raises:
        sqlite3.Error, OSError: it cannot be read.
    """
    log = Path(f"{path}-wal")
    level = opened_at(db)
    if not level:
        return ""
    if not had_log:
        if _has_all_that_was_seen(path, db):
            return ""  # whoever else had it open last has written the log into it
        return f"{log} is missing, though the last head did not end in order: its last commits"
    if level != "full":  # a power cut may leave any part of what came after the last sync
        lost = _seen_beside(path)[1] - max(_commits_of(db), 0)
        return f"{log} is damaged: at least {lost} commits" if lost > 0 else ""
    lost = commits_lost(log.read_bytes()) or _seen_beside(path)[1] - max(_commits_of(db), 0)
    return f"{log} is damaged: at least {lost} commits" if lost > 0 else ""


def opened_at(db: sqlite3.Connection) -> str:
    """Return the level at which a head has or had a journal open; "" if it ended in order."""
    found = db.execute("SELECT value FROM meta WHERE key = ?", (OPEN,)).fetchone()
    return str(found[0]) if found is not None else ""


SEEN: Final = "-seen"
"""Ends the name of the file beside a journal that says how many commits there were, and up to which
one they are synced.

It is written after each commit and not synced: of a process that is killed it has the last one, and
after a power cut it says less than is true at most.
"""
COMMITS: Final = "commits"
"""Key in ``meta``: how many commits there were, itself a part of each."""
_COUNTS: Final = struct.Struct(">2Q")
_COUNT: Final = struct.Struct(">Q")
"""What earlier releases have written: how many commits, and nothing of syncs."""


class Seen:
    """Notes outside of a journal how many commits it had."""

    def __init__(self, path: str, count: int) -> None:
        """Open or make the file; ``count`` is what the journal says."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(f"{path}{SEEN}", flags, 0o600)
        self._count = count
        self._synced = 0

    def one_more(self, *, is_synced: bool) -> None:
        """Note a commit, and whether it and all before it are synced."""
        self._count += 1
        if is_synced:
            self._synced = self._count
        os.pwrite(self._file, _COUNTS.pack(self._count, self._synced), 0)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def _has_all_that_was_seen(path: Path, db: sqlite3.Connection) -> bool:
    seen = _seen_beside(path)[0]
    return seen >= 0 and _commits_of(db) >= seen


def _seen_beside(path: Path) -> tuple[int, int]:
    """Return how many commits were seen (-1: nobody knows), and up to which they are synced."""
    try:
        content = Path(f"{path}{SEEN}").read_bytes()
    except FileNotFoundError:
        return -1, 0
    if len(content) == _COUNT.size:
        return _COUNT.unpack(content)[0], 0
    return _COUNTS.unpack(content) if len(content) == _COUNTS.size else (-1, 0)


def _commits_of(db: sqlite3.Connection) -> int:
    """Return how many commits a journal has had, -1 if it does not say."""
    found = db.execute("SELECT value FROM meta WHERE key = ?", (COMMITS,)).fetchone()
    return -1 if found is None else int(found[0])


def commits_lost(content: bytes) -> int:
    """Count commits behind a frame that is not sound; a torn last one is none."""
    if len(content) < _HEADER.size:
        return 0
    magic, _, page_size, _, salt1, salt2, sum1, sum2 = _HEADER.unpack_from(content)
    if not 512 <= page_size <= 65_536 or page_size & (page_size - 1):
        page_size = 4096
    frames = _frames(content, page_size)
    order = ">" if magic & 1 else "<"
    sums = _checksum(content[:24], order, (0, 0))
    good = 0
    if magic & ~1 == _MAGIC and sums == (sum1, sum2):
        for frame in frames:
            sums = _checksum(struct.pack(">2I", frame.page, frame.size) + frame.data, order, sums)
            if frame.salts != (salt1, salt2) or frame.sums != sums:
                break
            good += 1
        salts = (salt1, salt2)
    elif frames:
        salts = frames[0].salts
    rest = [frame for frame in frames[good:] if frame.page and frame.salts == salts and any(salts)]
    commits = sum(frame.is_commit for frame in rest)
    if commits == 1 and rest[-1].is_commit:
        return 0
    return commits


def _frames(content: bytes, page_size: int) -> list[_Frame]:
    frames: list[_Frame] = []
    step = _FRAME.size + page_size
    for start in range(_HEADER.size, len(content) - step + 1, step):
        page, size, salt1, salt2, sum1, sum2 = _FRAME.unpack_from(content, start)
        data = content[start + _FRAME.size : start + step]
        frames.append(_Frame(page, size, (salt1, salt2), (sum1, sum2), data))
    return frames


def _checksum(data: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    """Return SQLite's checksum of the log over more data."""
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    first, second = sums
    for at in range(0, len(words), 2):
        first = (first + words[at] + second) & _WORD
        second = (second + words[at + 1] + first) & _WORD
    return first, second


def close_as_it_is(db: sqlite3.Connection, path: Path) -> None:
    """Close a journal whose commit has failed, and leave its log where it is.

    The last one to close writes the log into the file and removes it: not now, when nobody knows
    what the disk has. So somebody else is there who only reads.
    """
    with contextlib.closing(connect_reader(path)) as other:
        with contextlib.suppress(sqlite3.Error):
            other.execute("SELECT count(*) FROM meta").fetchone()
        db.close()


def look_for_files(path: str, inode: int) -> None:
    """Notice that somebody has taken the files away: what is written to them is lost then.

    Args:
        path: Of the journal.
        inode: Number of the file that was opened.

    Raises:
        sqlite3.DatabaseError: they are not what was opened.
    """
    try:
        is_there = os.stat(path).st_ino == inode and os.stat(f"{path}-wal").st_size > 0
    except FileNotFoundError:
        is_there = False
    if not is_there:
        raise sqlite3.DatabaseError(f"{path} or its -wal was removed or replaced")
