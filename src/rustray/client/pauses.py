"""A task that waits for tasks of its own gives back its cores until it goes on."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol

from rustray.client.waiters import SLICE_S, SlicedWaiter, ThreadWaiter
from rustray.task import relay
from rustray.task.relay import Seat


class Messenger(Protocol):
    """The way to the agent; all calls from any thread."""

    def tell(self, kind: int, seat: Seat) -> None:
        """Send a message about a task."""

    def when_resumed(self, seat: Seat, callback: Callable[[], None]) -> None:
        """Have this called, from another thread, when the agent lets the task go on."""


class Pauses:
    """Of one task. Its threads, or the coroutines of its event loop, may wait at once.

    The task counts as waiting while any of them waits for results. One whose results have come
    takes the cores back for all; when the event loop has nothing more to do for it, those that
    still wait give them back again.
    """

    def __init__(self, messenger: Messenger, seat: Seat) -> None:
        self._messenger = messenger
        self._seat = seat
        self._lock = threading.Lock()
        self._waiting = 0
        self._is_blocked = False
        self._resuming: list[Callable[[], None]] = []

    def _enter(self) -> None:
        with self._lock:
            self._waiting += 1
        self._block()

    def _block(self) -> None:
        with self._lock:
            if self._is_blocked or self._resuming or not self._waiting:
                return
            self._is_blocked = True
            relay.host().note_waiting(1)
            self._messenger.tell(relay.BLOCKED, self._seat)

    def _leave(self, resumed: Callable[[], None]) -> bool:
        """One waits no more; False if the task has its cores, and nobody will be called."""
        with self._lock:
            self._waiting -= 1
            if not (self._is_blocked or self._resuming):
                return False
            self._resuming.append(resumed)
            if self._is_blocked:
                self._is_blocked = False
                self._messenger.when_resumed(self._seat, self._on_resumed)
                self._messenger.tell(relay.WOKE, self._seat)
            return True

    def _on_resumed(self) -> None:
        relay.host().note_waiting(-1)
        with self._lock:
            callbacks, self._resuming = self._resuming, []
        for callback in callbacks:
            callback()

    def _give_up(self) -> None:
        """One waits no more for it is being stopped: its end frees what it holds."""
        with self._lock:
            self._waiting -= 1

    def end(self) -> None:
        """The task has ended, maybe in the middle of a wait."""
        with self._lock:
            if self._is_blocked:
                self._is_blocked = False
                relay.host().note_waiting(-1)

    @contextlib.contextmanager
    def blocking(self) -> Iterator[None]:
        """Wait within this in the task's own thread; another one keeps the task going."""
        if self._seat.thread_id not in (0, threading.get_ident()):
            yield
            return
        self._enter()
        try:
            yield
        except Exception:
            self._regain()
            raise
        except BaseException:  # it is interrupted
            self._give_up()
            raise
        self._regain()

    def _regain(self) -> None:
        gate = threading.Lock()
        gate.acquire()
        if self._leave(gate.release):
            while not gate.acquire(timeout=SLICE_S):
                pass  # what was thrown into the thread is raised here

    @contextlib.asynccontextmanager
    async def suspending(self) -> AsyncIterator[None]:
        """Wait within this in a coroutine of the task."""
        self._enter()
        try:
            yield
        except BaseException:  # also where only this wait is cancelled: the task goes on
            await self._regain_async()
            raise
        await self._regain_async()

    async def _regain_async(self) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def resumed() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits
                loop.call_soon_threadsafe(_resolve, future)

        if self._leave(resumed):
            await future
        # What waits beside this one gives the cores back once this one waits again, or has ended.
        loop.call_soon(loop.call_soon, self._block)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@contextlib.asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield


def pausing(pauses: Pauses | None) -> contextlib.AbstractAsyncContextManager[None]:
    """Let a task give back its cores while a coroutine of it waits; None: it belongs to none."""
    return _nothing() if pauses is None else pauses.suspending()


def blocking(pauses: Pauses | None) -> contextlib.AbstractContextManager[None]:
    """Let a task give back its cores while its thread waits; None: it belongs to none."""
    return contextlib.nullcontext() if pauses is None else pauses.blocking()


def waiter_of(pauses: Pauses | None) -> ThreadWaiter:
    """Return what blocks this thread; of a task that runs in a thread it looks up now and then."""
    is_main = threading.current_thread() is threading.main_thread()
    return ThreadWaiter() if pauses is None or is_main else SlicedWaiter()
