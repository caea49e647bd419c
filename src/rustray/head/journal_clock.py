"""What a starting head makes of the wall clock, beside the times that its journal has."""

from __future__ import annotations

import logging
import sqlite3
from typing import Final

logger = logging.getLogger("rustray.head")

_BACK_STEP_MS: Final = 3_600_000
"""So much of the epoch is left to an earlier head whose clock was ahead."""
_SOON_S: Final = 3600.0
_LONG_AGO_MS: Final = 86_400_000
_STAMPS: Final = (("batch", "accepted"), ("outcome", "arrived"), ("retry", "asked"))


def note_start(db: sqlite3.Connection, now_s: float) -> tuple[int, int, float]:
    """Count a start of a head, and note its times in the journal.

    Args:
        db: The journal.
        now_s: Wall clock.

    Returns:
        How many starts there were, this one's epoch in unix milliseconds, and since when the clock
        is in doubt (0.0 if it is not).
    """
    meta = dict(db.execute("SELECT key, value FROM meta"))
    starts = int(meta.get("starts", 0)) + 1
    epoch_ms = _next_epoch_ms(db, now_s, int(meta.get("epoch_ms", 0)))
    doubt_s = _doubt_since_s(db, now_s, float(meta.get("doubt_s", 0.0)))
    rows = (("starts", starts), ("epoch_ms", epoch_ms), ("doubt_s", doubt_s))
    db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)
    return starts, epoch_ms, doubt_s


def _next_epoch_ms(db: sqlite3.Connection, now_s: float, before_ms: int) -> int:
    """Return a time in unix milliseconds that no earlier head can have reached.

    Leases and revisions of a head count from it. So a clock that was set back must not be believed:
    it says nothing of how many of them the heads of before have given out.

    Args:
        db: The journal.
        now_s: Wall clock.
        before_ms: What the head before this one had; 0 if there was none.
    """
    now_ms, written_ms = int(now_s * 1000), int(_last_write_s(db) * 1000)
    if written_ms:  # not by the epoch, which is ahead of the clock since that was set back
        _warn_of_jump(written_ms - now_ms)
    last_ms = max(before_ms, written_ms)
    return now_ms if now_ms > last_ms else last_ms + _BACK_STEP_MS


def _doubt_since_s(db: sqlite3.Connection, now_s: float, before_s: float) -> float:
    """Return since when it is in doubt whether the wall clock is right; 0.0 if it must be.

    It must be if it is soon after the last time in the journal. But what a head writes whose clock
    is in doubt proves nothing: so is that of those that start in the hour after it.

    Args:
        db: The journal.
        now_s: Wall clock.
        before_s: What was returned to the head before this one.
    """
    if before_s and 0 <= now_s - before_s <= _SOON_S:
        return before_s
    written_s = _last_write_s(db)
    return now_s if written_s and not 0 <= now_s - written_s <= _SOON_S else 0.0


def _last_write_s(db: sqlite3.Connection) -> float:
    """Return when an earlier head has written last, by its clock; 0.0 if none has."""
    return max(
        (
            stamp
            for table, column in _STAMPS
            for (stamp,) in db.execute(
                f"SELECT {column} FROM {table} ORDER BY id DESC LIMIT 1"  # noqa: S608
            )
        ),
        default=0.0,
    )


def _warn_of_jump(ahead_ms: int) -> None:
    """Say that the journal is from the future, or from long ago."""
    if ahead_ms > 0:
        logger.warning(
            "the journal was last written %.0f s after what the wall clock says now: see that the "
            "clock is right",
            ahead_ms / 1000,
        )  # fmt: skip
    elif ahead_ms < -_LONG_AGO_MS:
        logger.warning(
            "the journal was last written %.1f days ago, says the wall clock. If that is wrong, "
            "set the clock and start the head again within the hour: then results are deleted "
            "that are older than [scheduler] result_ttl_s",
            -ahead_ms / 86_400_000,
        )  # fmt: skip
