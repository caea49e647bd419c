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


def next_epoch_ms(db: sqlite3.Connection, now_s: float, before_ms: int) -> int:
    """Return a time in unix milliseconds that no earlier head can have reached.

    Leases and revisions of a head count from it. So a clock that was set back must not be believed:
    it says nothing of how many of them the heads of before have given out.

    Args:
        db: The journal.
        now_s: Wall clock.
        before_ms: What the head before this one had; 0 if there was none.
    """
    now_ms, written_ms = int(now_s * 1000), int(last_write_s(db) * 1000)
    if written_ms:  # not by the epoch, which is ahead of the clock since that was set back
        _warn_of_jump(written_ms - now_ms)
    last_ms = max(before_ms, written_ms)
    return now_ms if now_ms > last_ms else last_ms + _BACK_STEP_MS


def goes_on(db: sqlite3.Connection, now_s: float) -> bool:
    """Whether the wall clock is so near to the last time in the journal that it must be right."""
    return 0 <= now_s - last_write_s(db) <= _SOON_S


def last_write_s(db: sqlite3.Connection) -> float:
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
