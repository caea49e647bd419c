"""Gives room in the journal's file that nothing needs any more back to the disk, piece by piece."""

from __future__ import annotations

import sqlite3
from typing import Final

SPARE_PAGES: Final = 16_000
"""Unused pages that the file keeps for what comes (64 MB), or a quarter of it."""
_PIECE_PAGES: Final = 500
_INCREMENTAL: Final = 2


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
