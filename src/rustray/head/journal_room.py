"""The journal's room on the disk: its log gets some ahead, what the file has too much goes back."""

from __future__ import annotations

import errno
import logging
import math
import os
import sqlite3
from typing import Final

SPARE_PAGES: Final = 16_000
"""Unused pages that the file keeps for what comes (64 MB), or a quarter of it."""
_PIECE_PAGES: Final = 500
_PAGE_BYTES: Final = 4096
"""SQLite's default; another size is only a little too much or too little room."""
_INCREMENTAL: Final = 2
_LOG_HEADER_BYTES: Final = 32
_PAGE_SIZE_AT: Final = 8
_LEAST_PAGE_BYTES: Final = 512
_FRAME_HEADER_BYTES: Final = 24
_PIECE_BYTES: Final = 1 << 20
_LEAST_FREE_BYTES: Final = 512 << 20
"""With less free on the disk, none of it is taken ahead."""

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

logger = logging.getLogger("rustray.head")


def make_log_room(path: str, pages: int) -> None:
    """Write zeros to the end of the log, as far as it will grow before it begins anew.

    A sync of what overwrites a part of a file is one of that part; a sync of what makes the file
    longer is one of the file system's own records too: 0.29 ms and 0.39 on ext4. SQLite and
    `rustray.head.journal_log` take zeros for the end of the log. Where room is scarce, the log
    grows as it needs to.

    Args:
        path: Of the journal, whose log nobody writes to meanwhile.
        pages: After how many the log is written into the file, and begins anew.
    """
    size = _LOG_HEADER_BYTES + pages * (_FRAME_HEADER_BYTES + _PAGE_BYTES)
    log = os.open(f"{path}-wal", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        at = used = os.fstat(log).st_size
        disk = os.fstatvfs(log)
        if disk.f_bavail * disk.f_frsize < _LEAST_FREE_BYTES:
            return
        try:
            while at < size:
                at += os.pwrite(log, bytes(min(_PIECE_BYTES, size - at)), at)
            os.fsync(log)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            logger.info("the journal's log gets no room ahead: %s", error)
            os.ftruncate(log, used)
    finally:
        os.close(log)


def give_log_room_back(path: str) -> None:
    """Cut the zeros off the log of a head that was killed: the disk may have become full since.

    What is in the log goes into the file next, and needs as much room there.

    Args:
        path: Of the journal, which nobody has open.
    """
    try:
        log = os.open(f"{path}-wal", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return  # there is none; or whoever opens it next says what is wrong
    try:
        page = int.from_bytes(os.pread(log, 4, _PAGE_SIZE_AT))
        if page < _LEAST_PAGE_BYTES or page & (page - 1):
            return
        # A frame's page may end with zeros; its header does not begin with them.
        frame = _FRAME_HEADER_BYTES + page
        frames = math.ceil((_end_of_content(log) - _LOG_HEADER_BYTES) / frame)
        end = _LOG_HEADER_BYTES + frames * frame
        if frames > 0 and end < os.fstat(log).st_size:
            os.ftruncate(log, end)
    finally:
        os.close(log)


def _end_of_content(log: int) -> int:
    """Return where the zeros at the end of a file begin."""
    end = os.fstat(log).st_size
    while end > 0:
        start = max(end - _PIECE_BYTES, 0)
        found = os.pread(log, end - start, start).rstrip(b"\0")
        if found:
            return start + len(found)
        end = start
    return 0


def tidy(db: sqlite3.Connection) -> bool:
    """Give one piece back.

    Returns:
        Whether there is more to give back.

    Raises:
        sqlite3.Error: it is not known what the disk has.
    """
    (unused,) = db.execute("PRAGMA freelist_count").fetchone()
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    if unused <= SPARE_PAGES or 4 * unused <= pages:
        return False
    (mode,) = db.execute("PRAGMA auto_vacuum").fetchone()
    if mode != _INCREMENTAL:
        return False  # a file of before: it stays as large as it is
    try:
        # Not `execute`, which would stop after the first page.
        db.executescript(f"PRAGMA incremental_vacuum({_PIECE_PAGES});")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
            raise
        return False
    return True
