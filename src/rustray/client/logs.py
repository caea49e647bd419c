"""Reading what tasks print, over lost connections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Literal

from rustray.client.submission import back_off
from rustray.common.errors import HeadUnavailable
from rustray.common.ids import split_task_id
from rustray.rpc.api import HeadApi, LogFilter
from rustray.task.output import LogRecord


def log_filter(task_id: str, attempt: int | None, follow: bool) -> LogFilter:
    """Make a filter of what a caller wrote.

    Raises:
        ValueError: it is no task id, or there can be no such attempt.
    """
    split_task_id(task_id)
    if attempt is not None and (isinstance(attempt, bool) or not isinstance(attempt, int)):
        raise ValueError(f"attempt must be a whole number from 1, not {attempt!r:.80}")
    if attempt is not None and not 1 <= attempt < 1 << 31:
        raise ValueError(f"attempts are numbered from 1, so {attempt} is none")
    return LogFilter(task_id, attempt or 0, follow=bool(follow))


async def read_logs(api: Callable[[], HeadApi], where: LogFilter) -> AsyncIterator[LogRecord]:
    """Yield a task's output; where it is followed, a head that is away is waited for.

    Args:
        api: The head, also after it was away.
        where: Which output.

    Raises:
        RustRayError: see `HeadApi.task_logs`.
    """
    tries = 0
    is_alone = where.attempt > 0
    while True:
        try:
            async for page in api().task_logs(where):
                tries = 0
                where = replace(
                    where, attempt=page.attempt, cursor=page.cursor, goes_on=not is_alone
                )
                for record in page.records:
                    yield record
            return
        except HeadUnavailable:
            if not where.follow:
                raise
            tries = await back_off(tries, None)


class LogCalls:
    """The part of `rustray.HeadNode` that is about what tasks print."""

    @property
    def _connected(self) -> HeadApi:
        raise NotImplementedError

    async def task_logs(
        self,
        task_id: str,
        *,
        attempt: int | None = None,
        stream: Literal["stdout", "stderr"] | None = None,
        follow: bool = False,
    ) -> AsyncIterator[LogRecord]:
        """Read what a task has printed, in order, as far as its worker still has it.

        Args:
            task_id: 32 hex digits.
            attempt: Of this attempt only, from 1; None means the newest one, and with ``follow``
                those that come after it too.
            stream: Only this one.
            follow: Go on until the task has ended, also while the head is away.

        Raises:
            TaskNotFound: no such task, or there was no such attempt.
            WorkerNotFound: the worker that ran it is gone, and its output with it.
            CommunicationError: that worker is cut off, or does not answer.
            ValueError: not a task id, or no number of an attempt.
        """
        if stream not in (None, "stdout", "stderr"):
            raise ValueError(f'stream must be "stdout", "stderr" or None, not {stream!r:.80}')
        where = log_filter(task_id, attempt, follow)
        async for record in read_logs(lambda: self._connected, where):
            if stream is None or record.stream == stream:
                yield record
