"""How much may be pending, over the whole head and of each principal, and when to come back.

A submit that is over a bound is accepted as far as it fits, from its first task on; the rest is
refused with a reason and a hint. The hint is the time in which, at the pace of late, as many tasks
end as were refused.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

from rustray.common.errors import ResourceExhausted
from rustray.scheduler.records import Pending
from rustray.scheduler.state import SchedulerState
from rustray.task.columns import PayloadColumn

LEAST_HINT_S: Final = 0.1
MOST_HINT_S: Final = 5.0
UNKNOWN_HINT_S: Final = 1.0
"""Hint while nothing has ended for long enough to know a pace."""
PACE_S: Final = 1.0
"""Over how long the pace is measured, at least."""
_ROUND_TASKS: Final = 4_096
"""A hint is for so many tasks at most: who has more comes back for them bit by bit."""


def fitting(
    state: SchedulerState, principal: str, payloads: PayloadColumn
) -> tuple[int, ResourceExhausted | None]:
    """Return how many tasks are within all bounds, from the first, and why no more are.

    Complexity: O(log tasks).
    """
    settings = state.settings
    mine = state.principals.get(principal) or Pending()
    total, count, size = state.pending, len(payloads), payloads.size_bytes
    if (
        total.tasks + count <= settings.max_pending_tasks
        and total.bytes + size <= settings.max_pending_bytes
        and mine.tasks + count <= settings.principal_pending_tasks
        and mine.bytes + size <= settings.principal_pending_bytes
    ):
        return count, None  # nearly always
    bounds = (
        ("PENDING_TASKS", total, settings.max_pending_tasks, ""),
        ("PENDING_BYTES", total, settings.max_pending_bytes, ""),
        ("PRINCIPAL_PENDING_TASKS", mine, settings.principal_pending_tasks, principal),
        ("PRINCIPAL_PENDING_BYTES", mine, settings.principal_pending_bytes, principal),
    )
    fit, tightest = count, None
    for bound in bounds:
        reason, used, limit, _ = bound
        if reason.endswith("_TASKS"):
            room = max(limit - used.tasks, 0)
        else:
            left = limit - used.bytes
            room = bisect_right(payloads.ends, left + payloads.base) if left >= 0 else 0
        if room < fit:
            fit, tightest = room, bound
    if tightest is None:
        return count, None
    return fit, _error(state, tightest, count - fit)


def _error(
    state: SchedulerState, bound: tuple[str, Pending, int, str], refused: int
) -> ResourceExhausted:
    reason, used, limit, principal = bound
    whose = f"of {principal} " if principal else ""
    keys = {
        "PENDING_TASKS": "max_pending_tasks",
        "PENDING_BYTES": "max_pending_mb",
        "PRINCIPAL_PENDING_TASKS": "principal_pending_tasks",
        "PRINCIPAL_PENDING_BYTES": "principal_pending_mb",
    }
    hint_s = _hint(state, used, refused)
    if reason.endswith("_TASKS"):
        text = f"{used.tasks} tasks {whose}are pending, and at most {limit} may be"
    else:
        text = f"the arguments of pending tasks {whose}take {used.bytes} bytes of at most {limit}"
    return ResourceExhausted(
        f"{text} ([scheduler] {keys[reason]}); hand it in again when some have ended, "
        f"in {hint_s:.1f} s or later",
        retry_after_s=hint_s,
        reason=reason,
    )


def _hint(state: SchedulerState, used: Pending, refused: int) -> float:
    elapsed_s = state.now - used.marked_at_s
    if elapsed_s >= PACE_S:
        used.pace = (used.ended - used.marked_ended) / elapsed_s if used.marked_at_s else 0.0
        used.marked_at_s, used.marked_ended = state.now, used.ended
    if used.pace <= 0:
        return UNKNOWN_HINT_S
    # Who waits until more than half has ended leaves workers idle before it is back.
    wanted = min(refused, _ROUND_TASKS, max(used.tasks // 2, 1))
    return min(max(wanted / used.pace, LEAST_HINT_S), MOST_HINT_S)
