"""The journal's room on the disk: its log gets some ahead, what the file has too much goes back."""

from __future__ import annotations

import logging
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
_FRAME_HEADER_BYTES: Final = 24
_PIECE_BYTES: Final = 1 << 20

logger = logging.getLogger("rustray.head")


def make_log_room(path: str, pages: int) -> None:
    """Write zeros to the end of the log, as far as it will grow before it begins anew.

    A sync of what overwrites a part of a file is one of that part; a sync of what makes the file
    longer is one of the file system's own records too: 0.29 ms and 0.39 on ext4. SQLite and
    `rustray.head.journal_log` take zeros for the end of the log. Where there is no room, the log
    grows as it needs to.

    Args:
        path: Of the journal, whose log nobody writes to meanwhile.
        pages: After how many the log is written into the file, and begins anew.
    """
    size = _LOG_HEADER_BYTES + pages * (_FRAME_HEADER_BYTES + _PAGE_BYTES)
    log = os.open(f"{path}-wal", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        at = used = os.fstat(log).st_size
        try:
            while at < size:
                at += os.pwrite(log, bytes(min(_PIECE_BYTES, size - at)), at)
            os.fsync(log)
        except OSError as error:
            logger.info("the journal's log gets no room ahead: %s", error)
            os.ftruncate(log, used)
    finally:
        os.close(log)


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
