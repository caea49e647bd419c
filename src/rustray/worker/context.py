"""What code that runs in a task may know of it: `rustray.context()`."""

from __future__ import annotations

import math
import os
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol

from rustray.common.errors import NotInTask, PayloadError
from rustray.common.ids import TaskId, task_id
from rustray.task.codec import encode_value
from rustray.task.frames import MAX_NEWS_TEXT, MAX_NEWS_VALUE
from rustray.task.names import check_name
from rustray.task.spec import Codec
from rustray.worker.wire import Chunk

if TYPE_CHECKING:
    from rustray.worker.calls import Calls
    from rustray.worker.news import News

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

    @property
    def news(self) -> News:
        """Takes what tasks say of themselves."""

    @property
    def calls(self) -> Calls:
        """Carries calls of tasks to the agent."""

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
        gpu_ids: The GPUs that are the task's own, as CUDA_VISIBLE_DEVICES names them; a fraction
            is of the last one. In a process executor the task sees no others: its first is
            device 0 there. Tasks in threads and coroutines share a process, and see all.
        alternative: Which of its requests for resources it got: 0 for its own, 1 for the first of
            its ``fallback_strategy``, and so on.
    """

    __slots__ = (
        "_chunk",
        "_host",
        "_index",
        "_pid",
        "alternative",
        "attempt",
        "deadline",
        "fence",
        "gpu_ids",
        "task_id",
    )

    def __init__(self, host: Host, chunk: Chunk, index: int) -> None:
        self._host = host
        self._chunk = chunk
        self._index = index
        self._pid = os.getpid()
        self.task_id: TaskId = task_id(chunk.prefix, chunk.first + index)
        self.attempt = chunk.attempt
        self.fence = chunk.lease & _FENCE_MASK
        self.deadline = chunk.deadline_unix_s or None
        self.gpu_ids: tuple[str, ...] = chunk.setup.gpu_ids
        self.alternative = chunk.setup.alternative

    def is_cancelled(self) -> bool:
        """Whether the task was asked to stop: by a cancel, or because its time is up.

        A task that has asked this before it is cancelled gets some seconds to end by itself
        (``[worker] cancel_notice_s``) before `TaskInterrupt` is raised in it.
        """
        return self._host.is_cancelled(self._chunk.number, self._index)

    def progress(self, fraction: float, message: str | None = None) -> None:
        """Say how far the task is, for whoever watches it; it never waits for them.

        Subscribers get the latest, ten times a second at most; the head shows it (``rustray
        tasks get``, `HeadNode.explain`) as long as the attempt runs. It is not kept: a restart of
        the head, or a broken connection, may lose it until it is said again.

        Args:
            fraction: 0 to 1; what is below or above counts as that. It may go back.
            message: What is being done, at most 256 characters (the rest is cut off).

        Raises:
            ValueError: `fraction` is NaN or not a number.
            NotInTask: in a process that the task has forked.
        """
        if isinstance(fraction, bool) or not isinstance(fraction, int | float):
            raise ValueError(f"progress must be a number from 0 to 1, not {fraction!r:.80}")
        if isinstance(fraction, float) and math.isnan(fraction):
            raise ValueError("progress must be a number from 0 to 1, not NaN")
        text = "" if message is None else str(message)[:MAX_NEWS_TEXT]
        self._news().progress(self._chunk, self._index, float(min(max(fraction, 0), 1)), text)

    def emit(self, name: str, value: Any = None) -> None:
        """Tell subscribers a value; it never waits for them.

        As `progress`, it is not kept. It comes after what the task has said before; up to 256
        may wait to be sent (200 a second are), and what is beyond that is dropped and counted
        (counted as ``news_dropped``).

        Args:
            name: What it is, at most 256 characters.
            value: Data that msgpack can carry, at most 4 KiB encoded.

        Raises:
            ValueError: the name is empty, too long, or cannot be printed.
            PayloadError: the value cannot travel, or is too big.
            NotInTask: in a process that the task has forked.
        """
        check_name("name", name)
        encoded = encode_value(Codec.MSGPACK, value, f"value of {name!r}")
        if len(encoded) > MAX_NEWS_VALUE:
            raise PayloadError(
                f"the value of {name!r} takes {len(encoded)} bytes, and what a task emits at most "
                f"{MAX_NEWS_VALUE}: return it, or write it to storage and emit where it is"
            )
        self._news().emit(self._chunk, self._index, name, encoded)

    def _news(self) -> News:
        if self._pid != os.getpid():
            raise NotInTask("a process that a task has forked cannot speak for the task")
        return self._host.news

    def __repr__(self) -> str:
        return f"<TaskContext {self.task_id}, attempt {self.attempt}>"


def calls_of(task: TaskContext) -> tuple[Calls, int, int]:
    """Return what carries a task's calls, and its lease and offset, under which it makes them.

    Raises:
        NotInTask: in a process that the task has forked.
    """
    if task._pid != os.getpid():
        raise NotInTask("a process that a task has forked cannot call for the task")
    return task._host.calls, task._chunk.lease, task._chunk.offset + task._index


shared_task: ContextVar[tuple[Chunk, int] | None] = ContextVar("rustray_task", default=None)
"""Set per task where several run at once (threads, coroutines)."""

_hosts: list[tuple[Host, int]] = []


def serve(host: Host) -> None:
    """Say which executor this process is."""
    _hosts[:] = [(host, os.getpid())]


def running_task() -> tuple[Chunk, int] | None:
    """Return chunk and index of the task that the calling code belongs to, None if to none.

    In a process that a task has forked: that task.
    """
    for host, _ in _hosts:
        return shared_task.get() or host.current()
    return None


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
