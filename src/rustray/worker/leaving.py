"""How a worker leaves in good order.

It starts nothing more, gives back what has not begun, lets what runs end within a limit, and waits
until others have taken over the values that it keeps. Then it says goodbye.
"""

from __future__ import annotations

from typing import Final

from rustray.task.state import TaskState
from rustray.worker import following
from rustray.worker.events import ExecutorExited, Leave
from rustray.worker.leases import SIGKILL, kill, reclaim
from rustray.worker.records import NEVER
from rustray.worker.reports import describe_death
from rustray.worker.state import WorkerState

LEAVE_GRACE_S: Final = 3.0
"""How long after the drain limit the head has to confirm what it was told."""
KEEP_GRACE_S: Final = 1.5
"""How long after it others have to take over what the last tasks have made."""
GOODBYE_S: Final = 1.0
"""How long after the last frame."""


def start(state: WorkerState, timeout_s: float | None, now: float) -> None:
    """Give back what has not started and let the rest finish; a repetition shortens at most."""
    limit_s = state.limits.drain_timeout_s if timeout_s is None else timeout_s
    state.drain_at = min(state.drain_at, now + limit_s)
    state.keep_until = min(state.keep_until, now + limit_s + KEEP_GRACE_S)
    state.leave_at = min(state.leave_at, now + limit_s + LEAVE_GRACE_S)
    if state.is_draining:
        return
    state.is_draining = True
    for segment in state.backlog.clear():
        state.give_back(segment.lease, segment.low, segment.high)
    following.part(state)
    for executor in state.executors.values():
        if executor.count > 1 and not executor.is_shared:
            reclaim(state, executor)


def look(state: WorkerState, now: float) -> None:
    """Do what is due by now."""
    if now >= state.drain_at:
        _end_tasks(state, now)
    if state.keeps_values and now >= state.keep_until:
        state.keeps_values = False  # whoever needs them has them made again
    _leave_when_done(state, now)


def next_deadline(state: WorkerState) -> float:
    """Return when something is due."""
    if not state.is_draining or state.has_left:
        return NEVER
    due = min(state.drain_at, state.leave_at, state.goodbye_at)
    return min(due, state.keep_until) if state.keeps_values else due


def has_nothing_left(state: WorkerState) -> bool:
    """Whether the worker leaves, and holds nothing that it would take along."""
    return state.is_draining and not (state.leases or state.keeps_values)


def has_news(state: WorkerState) -> bool:
    """Whether there is something to tell the head of it that comes along with nothing else."""
    if not state.is_draining:
        return False
    is_last = has_nothing_left(state) and not state.drained_number and state.outbox.is_empty
    return is_last or not state.is_leaving_told


def _end_tasks(state: WorkerState, now: float) -> None:
    """The drain limit has passed: kill what still runs, and give it back."""
    state.drain_at = NEVER
    info = describe_death(ExecutorExited(0, None, SIGKILL, None))
    for executor in list(state.executors.values()):
        if not executor.count:
            continue
        if executor.is_guarded:
            # Nobody may be given it before it has really ended: its exit is the report.
            kill(state, executor, SIGKILL)
            continue
        for piece in executor.pieces():
            for lease, low, high in state.take_out(
                executor, piece.lease.number, piece.low, piece.high, now
            ):
                if lease.work.task_class.max_retries == 0:
                    # It has started, and may not be started twice without its owner's word.
                    state.settle_failed(lease, low, high, TaskState.LEASED, info)
                else:
                    state.give_back(lease, low, high)
        kill(state, executor, SIGKILL)


def _leave_when_done(state: WorkerState, now: float) -> None:
    outbox = state.outbox
    is_over = now >= min(state.leave_at, state.goodbye_at)
    if not state.leases and outbox.is_settled:
        # Either the goodbye was acked, or nobody is there and nothing is owed.
        is_over = is_over or state.drained_number > 0 or outbox.session is None
    if is_over and not state.has_left:
        state.has_left = True
        state.commands.append(Leave())
