"""Ways to the head for locks, semaphores, events and queues: a session's, a `HeadNode`'s, a task's.

The classes of `rustray.client.coordination` hold a name and no connection: each call takes the
channel of where it is made, so that they can be pickled and work in programs and tasks alike.
"""

from __future__ import annotations

import asyncio
import secrets
from concurrent import futures
from typing import TYPE_CHECKING, Final, Protocol

from rustray.common.errors import LeaseLost, UsageProblem
from rustray.coordination.messages import Answer, Request
from rustray.rpc.coordination_calls import ENDED, Coordinator

if TYPE_CHECKING:
    from rustray.client.loop_thread import LoopThread
    from rustray.rpc.api import HeadApi

HOLDER_BYTES: Final = 16


class Channel(Protocol):
    """Carries requests; a `RustRayError` is what the head says instead of an answer."""

    def call(self, request: Request) -> Answer:
        """Ask, and block until the answer is here."""

    async def acall(self, request: Request) -> Answer:
        """`call` for coroutines."""


def new_coordinator(api: HeadApi) -> Coordinator:
    """Make a holder with a lease."""
    return Coordinator(
        lambda request: api.coordinate(request), secrets.token_bytes(HOLDER_BYTES), renews=True
    )


class SessionChannel:
    """The channel of a session on a loop thread."""

    def __init__(self, thread: LoopThread, api: HeadApi) -> None:
        self._thread = thread
        self._coordinator = new_coordinator(api)
        self._is_foreign = False

    def call(self, request: Request) -> Answer:
        """See `Channel.call`; Ctrl-C takes the request back."""
        self._check()
        try:
            return self._thread.call(self._coordinator.call(request))
        except futures.CancelledError:  # rustray.shutdown(), by another thread
            raise LeaseLost(ENDED) from None

    async def acall(self, request: Request) -> Answer:
        """See `Channel.acall`; being cancelled takes the request back."""
        self._check()
        work = self._coordinator.call(request)
        future = asyncio.run_coroutine_threadsafe(work, self._thread.loop)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if self._thread.is_running:
                raise
            raise LeaseLost(ENDED) from None

    def _check(self) -> None:
        if self._is_foreign:
            raise LeaseLost(
                "this is held by the process that this one was forked from; call rustray.init() "
                "here, and acquire it again"
            )
        if not self._thread.is_running:
            raise LeaseLost(ENDED)

    async def close(self) -> None:
        """End all waits, and free what is held (loop thread)."""
        await self._coordinator.close()

    def after_fork(self) -> None:
        """Refuse work in a forked child: thread and sockets are not there."""
        self._is_foreign = True


class NodeChannel:
    """The channel of a `HeadNode`, for coroutines only."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def call(self, request: Request) -> Answer:
        """Refuse: it would block the event loop that the answer comes through.

        Raises:
            UsageProblem: always.
        """
        raise UsageProblem(
            "what a HeadNode makes is for coroutines: `async with lock`, `await lock.aacquire()`, "
            "`await queue.aget()`, ..."
        )

    async def acall(self, request: Request) -> Answer:
        """See `Channel.acall`."""
        return await self._coordinator.call(request)
