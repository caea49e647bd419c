"""What tasks print, by request: which attempt is meant, where its output is, when it is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from rustray.common import ids
from rustray.common.errors import CommunicationError, PayloadError, RustRayError, WorkerNotFound
from rustray.head.output import records_of
from rustray.rpc.api import LogFilter, LogPage
from rustray.scheduler.view import TaskSnapshot
from rustray.task.output import OutputAnswer

if TYPE_CHECKING:
    from rustray.head.core import HeadCore
    from rustray.security.roles import Caller

LOOK_S: Final = 1.0
"""How often is looked whether a task that is followed runs elsewhere now."""


class OutputService:
    """The part of `HeadService` that tells what tasks print."""

    _core: HeadCore
    _caller: Caller

    def _snapshot(self, prefix: bytes, sequence: int) -> TaskSnapshot:
        """Return a task as it stands."""
        raise NotImplementedError

    async def session_logs(self, prefix: bytes) -> AsyncIterator[LogPage]:
        """Stream what the tasks of one client session print."""
        self._core.sessions.check(prefix, self._caller)
        async for page in self._core.driver.output.session(prefix):
            yield page

    async def task_logs(self, where: LogFilter) -> AsyncIterator[LogPage]:
        """Stream what a task has printed, and goes on to print."""
        task = parse_id(where.task_id)
        reader = _Reader(self._core, task, where)
        while not reader.is_done:
            page = await reader.step(self._snapshot(*task))
            if page is not None:
                yield page


class _Reader:
    """Reads attempts one after the other, each from where it is.

    Attempt numbers are those that workers know: they grow, and may skip some.
    """

    def __init__(self, core: HeadCore, task: tuple[bytes, int], where: LogFilter) -> None:
        self._relay = core.driver.output
        self._state = core.driver.scheduler.state
        self._wait = core.waiters.wait
        self._task = task
        self._number = where.attempt
        self._cursor = where.cursor
        self._follows = where.follow
        self._is_alone = where.attempt > 0 and not where.goes_on
        self._is_read = False  # the attempt is over, and all of it was told
        self._has_some = where.cursor > 0
        self._place = ""  # the worker that has it
        self._seen: set[int] = set()
        self.is_done = False

    async def step(self, found: TaskSnapshot) -> LogPage | None:
        """Return what can be told now; None if there was nothing, perhaps after some time."""
        if found.state.is_terminal or not self._follows:
            return await self._finish(found)
        if self._number and found.attempt != self._number and not self._is_read:
            if self._is_alone and found.attempt < self._number:
                await self._wait(*self._task, LOOK_S)  # its time is to come
                return None
            page = await self._read(found)
            self._is_read = page is None
            return page
        if self._is_read and self._is_alone:
            self.is_done = True
            return None
        if not found.attempt:
            await self._wait(*self._task, LOOK_S)
            return None
        if found.attempt != self._number:
            self._begin(found.attempt)
        return await self._listen(found)

    def _begin(self, number: int) -> None:
        self._number, self._cursor, self._is_read, self._place = number, 0, False, ""

    async def _listen(self, found: TaskSnapshot) -> LogPage | None:
        """Wait for more of an attempt that runs, until it ends."""
        self._place = found.worker_id
        asking = asyncio.create_task(self._ask(found.worker_id, self._number, LOOK_S))
        ending = asyncio.create_task(self._wait(*self._task, LOOK_S))
        try:
            await asyncio.wait((asking, ending), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                return None
            answer = asking.result()
            if answer is None:
                await ending  # the worker is away: look again when it is back, or given up
        finally:
            for task in (asking, ending):
                task.cancel()
            await asyncio.gather(asking, ending, return_exceptions=True)
        return self._page(found.worker_id, answer)

    async def _finish(self, found: TaskSnapshot) -> LogPage | None:
        """Tell the rest of the attempt, then of those after it that are known here."""
        if not self._number:
            answer = await self._newest(found)
            if answer is None:
                self.is_done = True
                return None
            self._begin(answer.attempt)
        page = await self._read(found)
        if page is not None:
            return page
        if self._is_alone and not self._has_some:
            raise WorkerNotFound(self._nowhere())
        answer = None if self._is_alone else await self._newest(found)
        if answer is not None and answer.attempt > self._number:
            self._begin(answer.attempt)
        else:
            self.is_done = True
        return None

    async def _newest(self, found: TaskSnapshot) -> OutputAnswer | None:
        """Ask where the last attempt ran for the newest one with output.

        Raises:
            WorkerNotFound: that worker is gone.
            CommunicationError: it is cut off.
        """
        if not found.worker_id or not (found.state.is_terminal or found.attempt):
            return await self._search(0)
        answer = await self._ask(found.worker_id, 0, 0.0)
        if answer is None:
            raise self._away(found)
        return answer if answer.attempt else None

    async def _read(self, found: TaskSnapshot) -> LogPage | None:
        """Read on in the attempt; None at the end, or where nobody has it (any more)."""
        for worker_id in dict.fromkeys((self._place, found.worker_id)):
            answer = await self._ask(worker_id, self._number, 0.0) if worker_id else None
            if answer is not None and answer.attempt:
                return self._page(worker_id, answer)
        if await self._search(self._number) is None:
            return None
        return await self._read(found)

    async def _search(self, number: int) -> OutputAnswer | None:
        """Find an attempt at any worker: the head does not keep where earlier ones ran."""
        names = self._relay.connected()
        asking = (self._ask(name, number, 0.0) for name in names)
        answers = await asyncio.gather(*asking, return_exceptions=True)
        best: OutputAnswer | None = None
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, OutputAnswer):
                self._seen.update(answer.attempts)
                if answer.attempt and (best is None or answer.attempt > best.attempt):
                    best, self._place = answer, name
            elif isinstance(answer, BaseException) and not isinstance(answer, RustRayError):
                raise answer
        return best

    async def _ask(self, worker_id: str, number: int, wait_s: float) -> OutputAnswer | None:
        cursor = self._cursor if number else 0
        return await self._relay.ask(worker_id, *self._task, number, cursor, wait_s)

    def _page(self, worker_id: str, answer: OutputAnswer | None) -> LogPage | None:
        if answer is None or not answer.pieces:
            return None
        self._cursor, self._place, self._has_some = answer.next, worker_id, True
        return LogPage(records_of(worker_id, answer), self._number, self._cursor)

    def _away(self, found: TaskSnapshot) -> CommunicationError | WorkerNotFound:
        if found.worker_id in self._state.workers or found.worker_id in self._state.awaited:
            return CommunicationError(
                f"the output of task {found.task_id} is at worker {found.worker_id}, which is cut "
                "off from the head at the moment; ask again later"
            )
        return WorkerNotFound(
            f"task {found.task_id} ran on worker {found.worker_id}, which is gone, and what the "
            "task printed with it (of a task that failed, its error may have the last lines: "
            "rustray tasks get)"
        )

    def _nowhere(self) -> str:
        others = ", ".join(map(str, sorted(self._seen))) or "none"
        return (
            f"no worker that is connected has output of attempt {self._number} of task "
            f"{ids.task_id(*self._task)}: there was no such attempt, it printed nothing, its "
            f"output is not kept any more, or its worker is gone (attempts with output: {others})"
        )


def parse_id(text: str) -> tuple[bytes, int]:
    """Read a task's id, which nobody checked before.

    Raises:
        PayloadError: it is none.
    """
    try:
        return ids.split_task_id(text)
    except ValueError as error:
        raise PayloadError(str(error)) from error
