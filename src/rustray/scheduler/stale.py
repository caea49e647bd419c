"""Reports that do not fit what the head knows: counted by reason and dropped.

They are normal after a lost connection, and all that a worker reaches that lies.
"""

from __future__ import annotations

from typing import Final

from rustray.scheduler.records import Lease, WorkerRecord
from rustray.scheduler.state import SchedulerState

OLD_SESSION: Final = "old_session"
"""The worker has registered again since, or is not known any more."""
UNKNOWN_LEASE: Final = "unknown_lease"
"""The lease never was, or has ended."""
FOREIGN_LEASE: Final = "foreign_lease"
"""Another worker has that lease."""
OUT_OF_RANGE: Final = "out_of_range"
"""The lease has not so many tasks."""
ENDED: Final = "ended"
"""The task has ended already: a report that came twice, or after a cancel or a deadline."""
MOVED: Final = "moved"
"""The task is queued again, or under another lease."""
REASONS: Final = (OLD_SESSION, UNKNOWN_LEASE, FOREIGN_LEASE, OUT_OF_RANGE, ENDED, MOVED)


def count_stale(state: SchedulerState, why: str, count: int = 1, what: str = "reports") -> None:
    """Count what was dropped: all of its kind, and by reason."""
    state.counters[f"stale_{what}"] += count
    state.counters[f"stale_{what}_{why}"] += count


def lease_of(
    state: SchedulerState, worker: WorkerRecord, number: int, count: int, what: str = "reports"
) -> Lease | None:
    """Return a worker's own lease; what is said of any other one is counted as stale."""
    lease = worker.leases.get(number)
    if lease is None:
        why = FOREIGN_LEASE if number in state.leases else UNKNOWN_LEASE
        count_stale(state, why, max(count, 1), what)
    return lease
