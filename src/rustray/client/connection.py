"""Keeps a session connected: the stream's frame numbers, and the way back after a loss."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from typing import Final

from rustray.client.session import ClientSession
from rustray.common.errors import (
    AuthenticationError,
    AuthorizationError,
    CommunicationError,
    ConfigError,
    RustRayError,
    VersionMismatch,
)
from rustray.rpc.api import HeadApi, Link
from rustray.task.frames import ClientFrame, HeadFrame

logger = logging.getLogger("rustray.client")

BACKOFF_FIRST_S: Final = 0.2
BACKOFF_CAP_S: Final = 2.0
"""A program waits for it: it comes back sooner than a worker, which has work meanwhile."""
ACK_DELAY_S: Final = 0.05
"""An ack that no submission carries goes alone after this time: the head then frees results."""
MAX_UNCONFIRMED: Final = 8
"""Frames that the head has not confirmed, before the next one waits until it does.

The transport takes a frame in 100 us, the head needs longer. Without this bound a program that
hands in one task after the other made frames of 60 tasks, at three times the cost of large ones.
(A frame with 1,024 tasks or a sealed batch does not wait where the link asks for one.)
"""


class _Stream:
    """The pump of one stream; a new connection has a new one.

    Frames count from 1 in each direction. A duplicate is dropped; a gap means that the
    stream lost something, so it is closed and the next one asks again.
    """

    def __init__(self, session: ClientSession) -> None:
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[RustRayError | None] = self._loop.create_future()
        self.link: Link | None = None
        self._session = session
        self._defined: set[int | bytes] = set()
        self._sent = 0
        self._unconfirmed: deque[int] = deque()
        self._is_closing = False
        self._flushed: asyncio.Future[None] | None = None
        self._received = 0
        self._acked = 0
        self._is_ack_ripe = False
        self._ack_timer: asyncio.TimerHandle | None = None

    def next_frame(self) -> ClientFrame | None:
        if not self._is_ack_ripe and (
            self._session.rest() or (self._is_ahead and not self._session.has_full_frame())
        ):
            return None
        frame = ClientFrame()
        while not (has_content := self._session.fill(frame, self._defined)):
            if self._session.rest():
                if not self._is_ack_ripe:
                    return None
                break
        self._sent += 1
        if has_content:
            self._unconfirmed.append(self._sent)
        self._acked = self._received
        self._is_ack_ripe = False
        frame.number = self._sent
        frame.ack = self._received
        return frame

    def on_frame(self, frame: HeadFrame) -> None:
        if self.lost.done() or frame.number <= self._received:
            return
        if frame.number != self._received + 1:
            self._lose(CommunicationError("the head's stream lost a frame"))
            return
        self._received = frame.number
        was_ahead = self._is_ahead
        while self._unconfirmed and self._unconfirmed[0] <= frame.ack:
            self._unconfirmed.popleft()
        self._session.apply(frame)
        if was_ahead and self.link is not None:
            self.link.wake()
        self._look_if_flushed()
        if self._ack_timer is None and frame.has_content:
            self._ack_timer = self._loop.call_later(ACK_DELAY_S, self._ripen)

    @property
    def _is_ahead(self) -> bool:
        return len(self._unconfirmed) >= MAX_UNCONFIRMED and not self._is_closing

    async def flush(self, within_s: float) -> None:
        """Send all that was handed in, and wait until the head has it, or the stream is lost."""
        if self.link is None or self.lost.done():
            return
        self._is_closing = True
        self._flushed = self._loop.create_future()
        self.link.wake()
        self._look_if_flushed()
        await asyncio.wait(
            (self._flushed, self.lost), timeout=within_s, return_when=asyncio.FIRST_COMPLETED
        )

    def _look_if_flushed(self) -> None:
        flushed = self._flushed
        if flushed is not None and not (flushed.done() or self._unconfirmed):
            if self._session.rest():
                flushed.set_result(None)
            elif self.link is not None:
                self.link.wake()

    def on_closed(self, error: RustRayError | None) -> None:
        self._lose(error)

    def _lose(self, error: RustRayError | None) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
        if not self.lost.done():
            self.lost.set_result(error)

    def _ripen(self) -> None:
        self._ack_timer = None
        if self._acked < self._received and self.link is not None and not self.lost.done():
            self._is_ack_ripe = True
            self.link.wake()


class Connection:
    """Connects a session to a head, again and again, until it is closed.

    All methods but `rouse` belong to the loop thread.
    """

    def __init__(self, where: str = "the head", *, is_quiet: bool = False) -> None:
        """Prepare; `open` connects.

        Args:
            where: Names the head in what people read.
            is_quiet: Say nothing of a head that is away: somebody else does.
        """
        self._level = logging.DEBUG if is_quiet else logging.WARNING
        self._loop = asyncio.get_running_loop()
        self._where = where
        self._stream: _Stream | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._is_closed = False

    def rouse(self) -> None:
        """Say, from any thread, that the session has something to send."""
        self._loop.call_soon_threadsafe(self._wake)

    def rouse_after(self, seconds: float) -> None:
        """Have the session asked for frames again later; loop thread only."""
        self._loop.call_later(seconds, self._wake)

    async def open(self, api: HeadApi, session: ClientSession) -> None:
        """Connect for the first time, and keep connected from then on.

        Raises:
            RustRayError: the head is not there, or does not let us in.
        """
        stream = await self._dial(api, session)
        self._keeper = self._loop.create_task(self._keep(api, session, stream))

    def begin(self, api: HeadApi, session: ClientSession) -> None:
        """`open` without waiting for the head: it is tried again and again from the start."""
        self._keeper = self._loop.create_task(self._begin(api, session))

    async def _begin(self, api: HeadApi, session: ClientSession) -> None:
        stream = _Stream(session)
        try:
            stream = await self._dial(api, session)
        except RustRayError as error:
            stream.on_closed(error)
        await self._keep(api, session, stream)

    async def close(self) -> None:
        """End the stream; the session itself is closed by its owner."""
        self._is_closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        stream, self._stream = self._stream, None
        if stream is not None and stream.link is not None:
            await stream.link.close()

    async def flush(self, within_s: float) -> None:
        """Bring to the head what the session was handed, if it can be reached in time."""
        if self._stream is not None:
            await self._stream.flush(within_s)

    def _wake(self) -> None:
        if self._stream is not None and self._stream.link is not None:
            self._stream.link.wake_now()

    async def _dial(self, api: HeadApi, session: ClientSession) -> _Stream:
        session.restart()
        stream = _Stream(session)
        self._stream = stream
        stream.link = await api.open_client_stream(session.prefix, stream)
        stream.link.wake()
        return stream

    async def _keep(self, api: HeadApi, session: ClientSession, stream: _Stream) -> None:
        while True:
            error = await stream.lost
            attempt = 0
            lost_at_s = session.offline_since_s = time.monotonic()
            why = error or "it left"
            logger.log(self._level, "lost %s (%s); trying again and again", self._where, why)
            while True:
                if _is_final(error):
                    assert error is not None
                    session.close(error)
                    return
                cap = min(BACKOFF_CAP_S, BACKOFF_FIRST_S * 2**attempt)
                await asyncio.sleep(random.uniform(0, cap))  # noqa: S311 - jitter, no secret
                attempt = min(attempt + 1, 16)
                if stream.link is not None:
                    await stream.link.close()
                try:
                    stream = await self._dial(api, session)
                    away_s = time.monotonic() - lost_at_s
                    session.offline_since_s = None
                    logger.log(self._level, "%s is back after %.1f s", self._where, away_s)
                    break
                except RustRayError as refused:
                    error = refused


def _is_final(error: RustRayError | None) -> bool:
    """Say whether coming back cannot help: the head is there and refuses us."""
    final = (AuthenticationError, AuthorizationError, ConfigError, VersionMismatch)
    return isinstance(error, final)
