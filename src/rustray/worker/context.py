"""Which task the calling code belongs to, inside an executor."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from rustray.common.ids import TaskId, task_id
from rustray.worker.wire import Chunk


@dataclass(frozen=True, slots=True)
class TaskContext:
    """The task that runs.

    Attributes:
        task_id: 32 hex digits.
        attempt: Number of this attempt, from 1.
        lease: Number of the lease it runs under.
        offset: Its position in that lease.
    """

    task_id: TaskId
    attempt: int
    lease: int
    offset: int


class TaskInterrupt(BaseException):
    """Raised in the code of a task that is cancelled.

    Like KeyboardInterrupt it is no `Exception`: ``except Exception`` does not swallow it, and
    ``finally`` and ``with`` clean up.
    """


shared_task: ContextVar[tuple[Chunk, int] | None] = ContextVar("rustray_task", default=None)
"""Set per task where several run at once (threads, coroutines)."""

_sources: list[Callable[[], tuple[Chunk, int] | None]] = []


def set_source(source: Callable[[], tuple[Chunk, int] | None]) -> None:
    """Say how to find the task of a process that runs one at a time."""
    _sources[:] = [source]


def current_task() -> TaskContext | None:
    """Return the task that the caller belongs to; None outside a task."""
    found = shared_task.get()
    if found is None and _sources:
        found = _sources[0]()
    if found is None:
        return None
    chunk, index = found
    return TaskContext(
        task_id(chunk.prefix, chunk.first + index), chunk.attempt, chunk.lease, chunk.offset + index
    )
