"""The states of a task, and which may follow which."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class TaskState(IntEnum):
    """Where a task stands; the value is its byte in the scheduler's state column."""

    QUEUED = 0
    """Accepted, and waiting in the head for a worker."""
    LEASED = 1
    """Given to a worker, which has not reported its start."""
    RUNNING = 2
    """The worker reported that it runs (only for tasks that last a while)."""
    CANCELLING = 3
    """Cancelled while with a worker, which has not confirmed yet."""
    SUCCEEDED = 4
    FAILED = 5
    CANCELLED = 6
    TIMED_OUT = 7
    POISONED = 8

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        return format(self.name, spec)

    @property
    def is_terminal(self) -> bool:
        """Whether nothing follows by itself."""
        return self >= TaskState.SUCCEEDED


DEAD_STATES: Final = frozenset({TaskState.FAILED, TaskState.TIMED_OUT, TaskState.POISONED})
"""How a task ends that stays as a dead letter, and can be retried on request."""

TRANSITIONS: Final[dict[TaskState, frozenset[TaskState]]] = {
    TaskState.QUEUED: frozenset(
        {TaskState.LEASED, TaskState.CANCELLED, TaskState.TIMED_OUT, TaskState.FAILED}
    ),
    TaskState.LEASED: frozenset(
        {
            TaskState.QUEUED,
            TaskState.RUNNING,
            TaskState.CANCELLING,
            TaskState.SUCCEEDED,
            TaskState.FAILED,
            TaskState.CANCELLED,
            TaskState.TIMED_OUT,
            TaskState.POISONED,
        }
    ),
    TaskState.RUNNING: frozenset(
        {
            TaskState.QUEUED,
            TaskState.CANCELLING,
            TaskState.SUCCEEDED,
            TaskState.FAILED,
            TaskState.CANCELLED,
            TaskState.TIMED_OUT,
            TaskState.POISONED,
        }
    ),
    TaskState.CANCELLING: frozenset(
        {TaskState.CANCELLED, TaskState.SUCCEEDED, TaskState.FAILED, TaskState.TIMED_OUT}
    ),
    TaskState.SUCCEEDED: frozenset(),
    TaskState.FAILED: frozenset({TaskState.QUEUED}),
    TaskState.CANCELLED: frozenset(),
    TaskState.TIMED_OUT: frozenset({TaskState.QUEUED}),
    TaskState.POISONED: frozenset({TaskState.QUEUED}),
}
"""The state machine as data; `scheduler.invariants` checks every step against it.

A dead letter goes back into the queue on request only.
"""
