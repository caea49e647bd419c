"""A task that outgrows the memory it asked for: it is stopped, alone, and the head is told.

Where such a task runs, nothing is queued behind it, and its executor is measured while it runs
(`rustray.worker.memory_watch`). Threads and coroutines share a process, whose end would take their
neighbours along, so their ``memory_mb`` is reserved and not enforced.
"""

from __future__ import annotations

from typing import Final

from rustray.common.errors import TaskOutOfMemory
from rustray.task.result import FailureInfo
from rustray.worker.events import MemoryExceeded
from rustray.worker.leases import SIGKILL, kill
from rustray.worker.records import Phase
from rustray.worker.state import WorkerState

_MB: Final = 1_000_000


def exceeded(state: WorkerState, event: MemoryExceeded) -> None:
    """Kill the executor whose task holds too much, if it still is that task's."""
    executor = state.executors.get(event.executor_id)
    if executor is None or executor.phase is Phase.KILLED or not executor.is_weighed:
        state.counters["stale_measurements"] += 1
        return
    first = executor.segments[0]
    if (first.lease.number, first.low) != (event.lease, event.offset):
        state.counters["stale_measurements"] += 1
        return
    executor.outgrown = event
    state.counters["tasks_out_of_memory"] += 1
    # No warning and no grace: what still grows has none to give.
    kill(state, executor, SIGKILL)


def describe_outgrown(event: MemoryExceeded) -> FailureInfo:
    """Say what a task held and what it had asked for, for its user."""
    peak, limit = event.peak / _MB, event.limit / _MB
    return FailureInfo(
        TaskOutOfMemory.code,
        f"the task held {peak:.0f} MB when it was stopped, and had asked for memory_mb={limit:g}: "
        "ask for more, or have it hold less at a time; oom_retries=N runs it again up to N times",
        memory_peak=event.peak,
        memory_limit=event.limit,
    )
