"""The results of a map, as an asynchronous iterator."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, Generic, Self, TypeVar

from rustray.client import context
from rustray.client.map_iterator import RESULT_KINDS, MapJob, resolve
from rustray.client.map_plan import MapPlan
from rustray.client.map_run import MapRun
from rustray.client.pauses import pausing
from rustray.client.waiters import LoopWaiter

T = TypeVar("T")

BUFFER_ITEMS: Final = 1 << 16
"""Most items of an asynchronous input that wait to be handed in."""


class AsyncMapIterator(Generic[T]):
    """The results of `rustray.amap`: an asynchronous iterator; otherwise as `MapIterator`.

    A synchronous input is read on the event loop, as little at a time as keeps the cluster busy; an
    asynchronous one by a task of its own.
    """

    def __init__(
        self,
        job: MapJob,
        source: Iterator[Any] | AsyncIterator[Any],
        *,
        return_exceptions: bool = False,
        runtime: context.Runtime | None = None,
    ) -> None:
        self._job = job
        self._source = source
        self._returns = return_exceptions
        self._runtime = runtime
        self._run: MapRun | None = None
        self._feed: _Feed | None = None
        self._values: list[Any] = []
        self._is_closed = False

    def __aiter__(self) -> Self:
        return self

    def __length_hint__(self) -> int:
        return self._job.hint(len(self._values))

    async def __anext__(self) -> T:
        run = self._run
        if run is None or run.mail.arrived or not self._values:
            await self._fill()
        value: Any = self._values.pop()
        if type(value) in RESULT_KINDS:
            return resolve(value, self._returns)  # type: ignore[no-any-return]
        return value  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        """Cancel what is under way and read no more; idempotent."""
        self._is_closed = True
        self._values = []
        if self._run is not None:
            self._run.cancel()
        if self._feed is not None:
            await self._feed.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if getattr(self, "_run", None) is not None and self._run is not None:
            self._run.abandon()
            if self._feed is not None:
                self._feed.abandon()

    async def _fill(self) -> None:
        if self._is_closed:
            raise StopAsyncIteration
        run = self._run or await self._begin()
        waiter = LoopWaiter()
        run.mail.wake = waiter.wake
        if self._feed is not None:
            self._feed.wake = waiter.wake
        while True:
            run.absorb()
            values = None if self._values else run.plan.take()
            if values is not None:
                values.reverse()
                self._values = values
            self._read(run)
            if self._values:
                return
            if run.plan.is_exhausted:
                self._end(run)
            if run.mail.arrived or run.plan.has_results():
                continue
            async with pausing(run.pauses):
                await waiter.sleep(run.plan.next_due_s())

    def _read(self, run: MapRun) -> None:
        slots = run.slots()
        feed = self._feed
        if feed is None:
            assert isinstance(self._source, Iterator)
            run.read(self._source, slots)
            return
        run.send(slots)
        while feed.items and (count := run.plan.wanted(slots)):
            run.plan.read(feed.take(count))
            run.send(slots)
        if feed.is_over and not feed.items and not run.plan.is_at_end:
            run.end_of_source(feed.error)

    async def _begin(self) -> MapRun:
        # Both may wait: for an embedded cluster to start, for the head to answer.
        run = await asyncio.to_thread(self._job.begin, self._runtime)
        if run.behind is not None:
            await asyncio.to_thread(run.behind.count_slots)
        self._run = run
        if isinstance(self._source, AsyncIterator):
            self._feed = _Feed(self._source, run.plan)
        return run

    def _end(self, run: MapRun) -> None:
        self._is_closed = True
        error, run.source_error = run.source_error, None
        if error is not None:
            raise error
        raise StopAsyncIteration


class _Feed:
    """Reads an asynchronous input into a bounded buffer, in a task of its own.

    Attributes:
        items: What was read and not taken.
        is_over: There will be no more.
        error: What the input raised, or None.
        wake: Called when there is something new.
    """

    def __init__(self, source: AsyncIterator[Any], plan: MapPlan) -> None:
        self.items: list[Any] = []
        self.is_over = False
        self.error: BaseException | None = None
        self.wake: Callable[[], None] = lambda: None
        self._plan = plan
        self._room = asyncio.Event()
        self._task = asyncio.create_task(self._read(source), name="rustray-map-input")

    def take(self, count: int) -> list[Any]:
        """Take the first items out."""
        taken, self.items = self.items[:count], self.items[count:]
        self._room.set()
        return taken

    async def stop(self) -> None:
        """End the task, and wait for its end."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def abandon(self) -> None:
        """End the task, from wherever the iterator's last reference went."""
        loop = self._task.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._task.cancel)

    async def _read(self, source: AsyncIterator[Any]) -> None:
        try:
            async for item in source:
                self.items.append(item)
                if len(self.items) == 1:
                    self.wake()
                # As much as the next part takes: the plan says when it is time for that.
                while len(self.items) >= min(self._plan.tuner.size, BUFFER_ITEMS):
                    self._room.clear()
                    await self._room.wait()
        except Exception as error:
            self.error = error
        finally:
            self.is_over = True
            self.wake()
