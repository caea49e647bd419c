"""Bounds the processes of executors, and looks now and then who was refused one more."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from rustray.worker.process_groups import Cleared, ProcessGroups

logger = logging.getLogger("rustray.worker")

PERIOD_S: Final = 1.0


class ProcessWatch:
    """Looks after the groups of one worker's executors; nothing happens where there are none.

    Args:
        loop: Where all calls come from.
        groups: In which the kernel holds the bound.
        period_s: Seconds between two looks.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        groups: ProcessGroups | None,
        period_s: float = PERIOD_S,
    ) -> None:
        self._loop = loop
        self._groups = groups
        self._period_s = period_s
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        # Killing a thousand processes takes a while.
        self._thread = ThreadPoolExecutor(1, "rustray-processes") if groups is not None else None
        self._plan()

    def add(self, executor_id: int, pid: int) -> None:
        """Bound an executor that is ready, before it gets a task."""
        if self._groups is None:
            return
        try:
            self._groups.enter(executor_id, pid)
        except OSError as error:
            # Most likely it has died meanwhile.
            logger.warning("the processes of executor %d are not bounded: %s", executor_id, error)

    def remove(self, executor_id: int, *, was_killed: bool) -> None:
        """Clear up after an executor that is gone.

        Args:
            executor_id: Which.
            was_killed: It did not end by itself: then all that it has started ends with it.
        """
        if self._groups is not None and self._thread is not None:
            self._thread.submit(self._groups.remove, executor_id, clear=was_killed)

    def close(self) -> None:
        """Look no more."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def release(self) -> None:
        """Let go of thread and groups, when the executors are gone."""
        self.close()
        if self._groups is not None and self._thread is not None:
            thread, self._thread = self._thread, None
            await self._loop.run_in_executor(thread, self._groups.close)
            thread.shutdown(wait=False)

    def _plan(self) -> None:
        if self._groups is not None and not self._is_closed:
            self._timer = self._loop.call_later(self._period_s, self._look)

    def _look(self) -> None:
        self._timer = None
        assert self._groups is not None
        looking = self._loop.run_in_executor(self._thread, self._groups.look)
        looking.add_done_callback(self._tell)

    def _tell(self, done: asyncio.Future[list[Cleared]]) -> None:
        if done.cancelled():
            return
        assert self._groups is not None
        for each in done.result():
            logger.warning(
                "a task in executor %d wanted more than the %d processes and threads that it may "
                "have ([worker] max_processes): %d that it had started were killed",
                each.executor_id, self._groups.limit, each.killed,
            )  # fmt: skip
        self._plan()
