"""The heartbeats of one session, each on its own: one that is stuck holds up no other.

A heartbeat is a unary call beside the stream. It may be lost on the way or take long; were the next
one to wait for it, a single lost call would cost the worker its lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from rustray.common.errors import CommunicationError, InvariantError, RustRayError
from rustray.task.views import Heartbeat, HeartbeatReply, Registered
from rustray.worker.session import HeadSession

logger = logging.getLogger("rustray.worker")

MAX_ASKED: Final = 8
"""Heartbeats without an answer; a link that swallows them is not given more."""


class Pulse:
    """Sends heartbeats while a session lasts, and ends it when the head is not heard."""

    def __init__(
        self,
        session: HeadSession,
        registered: Registered,
        beat: Callable[[int], Heartbeat],
        ask: Callable[[Heartbeat], Awaitable[HeartbeatReply]],
        on_answer: Callable[[float, HeartbeatReply], None],
    ) -> None:
        """Prepare.

        Args:
            session: Which to keep.
            registered: Interval, and the lease's time.
            beat: Says what the worker holds, for a session's number.
            ask: Sends a heartbeat and returns the answer.
            on_answer: Called with the loop time at which one was sent, and the answer to it.
        """
        self._session = session
        self._registered = registered
        self._beat = beat
        self._ask = ask
        self._on_answer = on_answer
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._error: RustRayError | None = None
        self._asked: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Beat until cancelled, or until the session is over."""
        ttl_s, interval_s = self._registered.lease_ttl_s, self._registered.heartbeat_interval_s
        try:
            while not self._session.ended.done():
                left_s = self._heard_at + ttl_s - self._loop.time()
                if left_s <= 0:
                    text = f"no heartbeat was answered for {ttl_s:g} s"
                    self._session.end(self._error or CommunicationError(text))
                    return
                # The first at once: what is exclusive runs on the time since the session was asked
                # for, and a head that could not write had let that wait.
                if len(self._asked) < MAX_ASKED:
                    task = self._loop.create_task(self._once(ttl_s), name="rustray-heartbeat")
                    self._asked.add(task)
                    task.add_done_callback(self._asked.discard)
                await asyncio.sleep(min(interval_s, left_s))
        finally:
            for task in self._asked:
                task.cancel()
            if self._asked:
                await asyncio.wait(self._asked)

    async def _once(self, ttl_s: float) -> None:
        asked_at = self._loop.time()
        try:
            async with asyncio.timeout(ttl_s):
                reply = await self._ask(self._beat(self._session.number))
        except (RustRayError, TimeoutError) as error:
            if isinstance(error, RustRayError):
                self._error = error
            logger.debug("a heartbeat failed: %r", error)
            return
        except Exception as error:
            # A bug of ours. To join anew is better than to fall silent while the stream goes on.
            logger.exception("a heartbeat could not be made")
            self._session.end(InvariantError(f"a heartbeat could not be made: {error!r}"))
            return
        self._heard_at = max(self._heard_at, self._loop.time())
        self._error = None
        if not reply.is_known:
            self._session.end(CommunicationError("the head does not know this session any more"))
            return
        self._on_answer(asked_at, reply)
