"""Measures executors whose tasks have a memory limit, and tells of those that hold too much.

It costs nothing while no such task runs. What has room left is looked at seldom, what is near its
limit often; the reading happens in a thread, and takes at most a twentieth of the time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from rustray.worker.events import MemoryExceeded, WatchMemory
from rustray.worker.footprint import Reading, Subject, boot_ticks, held_bytes, measure
from rustray.worker.leases import SIGKILL
from rustray.worker.memory_groups import MemoryGroups

logger = logging.getLogger("rustray.worker")

GROWTH_BYTES_PER_S: Final = 2e9
"""So fast one thread takes new memory: what has room for a second is not looked at before."""
MIN_PERIOD_S: Final = 0.01
MAX_PERIOD_S: Final = 0.5
PAUSE_TO_WORK: Final = 19.0
"""A measurement is followed by a pause of so many times its duration."""

Measure = Callable[[Iterable[Subject]], list[Reading]]


@dataclass(slots=True, eq=False)
class _Watched:
    """One executor: what is watched for, what it held before, and when it is due."""

    order: WatchMemory
    base: int
    since: int
    due: float

    def subject(self) -> Subject:
        """Return what to measure."""
        return Subject(self.order.pid, self.base, self.order.limit, self.since)


class MemoryWatch:
    """Watches executors on one event loop.

    Args:
        loop: Where all calls come from and go to.
        on_exceeded: Told once for each order whose task holds too much.
        measure: What measures; another one in tests.
        groups: Control groups in which the kernel holds the limits as well, if there are any.
        lacking: Why there are none; said once, when a limit is to be held.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_exceeded: Callable[[MemoryExceeded], None],
        measure: Measure = measure,
        groups: MemoryGroups | None = None,
        lacking: str = "",
    ) -> None:
        self._loop = loop
        self._on_exceeded = on_exceeded
        self._measure = measure
        self._watched: dict[int, _Watched] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._is_measuring = False
        self._groups = groups
        self._lacking = lacking

    def add(self, order: WatchMemory) -> None:
        """Watch an executor that is about to get a task; what it holds now is not the task's."""
        base = held_bytes(order.pid)
        due = self._loop.time() + period_s(order.limit)
        self._watched[order.executor_id] = _Watched(order, base, boot_ticks(), due)
        if self._groups is not None:
            self._beside().submit(self._limit, self._groups, order)
        elif self._lacking:
            logger.warning(
                "memory limits are held by looking every 10 to 500 ms, not by the kernel: %s",
                self._lacking,
            )
            self._lacking = ""
        self._plan()

    def remove(self, executor_id: int) -> None:
        """Watch it no longer."""
        self._watched.pop(executor_id, None)
        if self._groups is not None:
            self._beside().submit(self._groups.unlimit, executor_id)

    def has_ended(self, executor_id: int, signal: int | None) -> MemoryExceeded | None:
        """Say whether the kernel ended an executor because its task held too much."""
        groups, watched = self._groups, self._watched.get(executor_id)
        if groups is None:
            return None
        was_killed = signal == SIGKILL and watched is not None and groups.has_killed(executor_id)
        self._beside().submit(groups.remove, executor_id)
        if watched is None or not was_killed:
            return None
        order = watched.order
        return MemoryExceeded(executor_id, order.lease, order.offset, order.limit, order.limit)

    def close(self) -> None:
        """Stop; nobody is told of anything any more."""
        self._watched.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def release(self) -> None:
        """Let go of thread and groups, when the executors are gone."""
        if self._groups is not None:
            await self._loop.run_in_executor(self._beside(), self._groups.close)
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _beside(self) -> ThreadPoolExecutor:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="rustray-memory")
        return self._thread

    def _limit(self, groups: MemoryGroups, order: WatchMemory) -> None:
        try:
            groups.limit(order.executor_id, order.pid, order.limit)
        except OSError as error:
            # Most likely the executor has died meanwhile; else the watch alone has to do.
            logger.warning(
                "the kernel holds no limit for executor %d: %s", order.executor_id, error
            )

    def _plan(self) -> None:
        if self._is_measuring or not self._watched:
            return
        due = min(each.due for each in self._watched.values())
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._begin)

    def _begin(self) -> None:
        self._timer = None
        now = self._loop.time()
        found = [each for each in self._watched.values() if each.due <= now]
        if not found:
            self._plan()
            return
        self._is_measuring = True
        subjects = [each.subject() for each in found]
        future = self._loop.run_in_executor(self._beside(), self._measure, subjects)
        future.add_done_callback(lambda done: self._take(found, now, done))

    def _take(
        self, found: list[_Watched], began: float, done: asyncio.Future[list[Reading]]
    ) -> None:
        self._is_measuring = False
        if done.cancelled():
            return
        now = self._loop.time()
        pause_s = (now - began) * PAUSE_TO_WORK
        for each, reading in zip(found, done.result(), strict=True):
            order = each.order
            if self._watched.get(order.executor_id) is not each:
                continue  # its task has ended meanwhile
            each.base = min(each.base, reading.own)
            room = order.limit - reading.grown
            each.due = now + max(period_s(room), pause_s)
            if room < 0:
                del self._watched[order.executor_id]
                self._on_exceeded(
                    MemoryExceeded(
                        order.executor_id, order.lease, order.offset, reading.grown, order.limit
                    )
                )
        self._plan()


def period_s(room: int) -> float:
    """Return how long what has so many bytes of room need not be looked at."""
    return min(max(room / GROWTH_BYTES_PER_S, MIN_PERIOD_S), MAX_PERIOD_S)
