"""What code that runs in a task may know of it: `rustray.context()`."""

from __future__ import annotations

import os
from contextvars import ContextVar
from typing import Final, Protocol

from rustray.common.errors import NotInTask
from rustray.common.ids import TaskId, task_id
from rustray.worker.wire import Chunk

_FENCE_MASK: Final = (1 << 63) - 1


class TaskInterrupt(BaseException):
    """Raised in the code of a task that is cancelled or out of time.

    Like KeyboardInterrupt it is no `Exception`: ``except Exception`` does not swallow it, and
    ``finally`` and ``with`` clean up.
    """


class Host(Protocol):
    """What the context of a task asks of the executor that runs it."""

    def current(self) -> tuple[Chunk, int] | None:
        """Return chunk and index of the task that runs, where only one does at a time."""

    def is_cancelled(self, number: int, index: int) -> bool:
        """Whether this task was asked to stop; notes that it looks by itself."""


class TaskContext:
    """The task that runs, seen from within.

    Any thread of the task may use it; hand it to threads that the task starts.

    Attributes:
        task_id: 32 hex digits, the same in every attempt.
        attempt: Number of this attempt, from 1.
        fence: A whole number below 2**63 that is larger in every later attempt of the task, also
            after a restart of the head. Give it to systems outside that keep the largest
            they have seen and refuse smaller ones: so an attempt that was given up, and does not
            know it, changes nothing any more. (It is the number of the lease that the attempt
            runs under; tasks of one lease share it.)
        deadline: Unix time, by this machine's clock, at which the attempt will be stopped: the
            earliest of its limits (run and total). None if it has none.
    """

    __slots__ = ("_host", "_key", "attempt", "deadline", "fence", "task_id")

    def __init__(self, host: Host, chunk: Chunk, index: int) -> None:
        self._host = host
        self._key = (chunk.number, index)
        self.task_id: TaskId = task_id(chunk.prefix, chunk.first + index)
        self.attempt = chunk.attempt
        self.fence = chunk.lease & _FENCE_MASK
        self.deadline = chunk.deadline_unix_s or None

    def is_cancelled(self) -> bool:
        """Whether the task was asked to stop: by a cancel, or because its time is up.

        A task that has asked this before it is cancelled gets some seconds to end by itself
        (``[worker] cancel_notice_s``) before `TaskInterrupt` is raised in it.
        """
        return self._host.is_cancelled(*self._key)

    def __repr__(self) -> str:
        return f"<TaskContext {self.task_id}, attempt {self.attempt}>"


shared_task: ContextVar[tuple[Chunk, int] | None] = ContextVar("rustray_task", default=None)
"""Set per task where several run at once (threads, coroutines)."""

_hosts: list[tuple[Host, int]] = []


def serve(host: Host) -> None:
    """Say which executor this process is."""
    _hosts[:] = [(host, os.getpid())]


def context() -> TaskContext:
    """Return the context of the task that the calling code belongs to.

    Costs tasks that do not ask nothing.

    Raises:
        NotInTask: it belongs to none: a program of yours, a process that a task has started, or
            a thread that a task of a thread or async executor has started.
    """
    for host, pid in _hosts:
        found = shared_task.get() or host.current()
        if found is not None and pid == os.getpid():
            return TaskContext(host, *found)
    raise NotInTask(
        "rustray.context() was called outside of a task: it works in the code of a task, in the "
        "executor that runs it; a thread or process that the task starts is to be given what it "
        "needs of it"
    )
