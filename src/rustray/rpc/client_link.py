"""The client's side of a frame stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from rustray.common.errors import CommunicationError, HeadUnavailable, RustRayError
from rustray.rpc.api import FramePump
from rustray.rpc.codec import BYE, OPEN_KEY, encode_token
from rustray.rpc.grpcio import aio
from rustray.rpc.links import DRAIN_S, FrameLink
from rustray.rpc.versions import check_answer

OPEN_S: Final = 10.0
"""How long a head may take to let a stream in."""


class _CallStream:
    """A call's messages, without what grpc.aio puts around a write.

    Its own `write` replaces the head's status by INTERNAL where it fails because the head has just
    ended the stream; here the status stays, and the reader gets it.
    """

    def __init__(self, call: Any) -> None:
        self.read = call.read
        core = getattr(call, "_cython_call", None)
        self.write = getattr(core, "send_serialized_message", call.write)


class ClientLink(FrameLink):
    """A stream that this side has opened."""

    def __init__(
        self,
        pump: FramePump,
        call: Any,
        codec: tuple[Callable[[Any], bytes], Callable[[bytes], Any]],
        translate: Callable[[aio.AioRpcError], RustRayError],
    ) -> None:
        super().__init__(pump, _CallStream(call), *codec)
        self._call = call
        self._translate = translate
        self._reader: asyncio.Task[None] | None = None
        self._is_closing = False

    async def open(self) -> None:
        """Wait until the head lets the stream in.

        Raises:
            RustRayError: it does not.
        """
        try:
            found = await self._call.initial_metadata()
            answers = [value for key, value in found or () if key == OPEN_KEY]
            if not answers:
                await self._call.read()  # raises what the head said
                raise CommunicationError("what answers there is not a head of rustray")
            check_answer(str(answers[0]))
        except aio.AioRpcError as error:
            raise self._translate(error) from None

    def start(self) -> None:
        """Exchange frames from now on."""
        self._reader = self._loop.create_task(self.read_on())
        self.wake()

    def abandon(self) -> None:
        """Give up a stream that was never opened; its pump is not told."""
        self.ended.set_result(None)
        self._call.cancel()

    def renew_token(self, token: str) -> None:
        """Send a renewed token on the stream."""
        if not self._is_closing:
            self.send_control(encode_token(token))

    def explain_loss(self, error: BaseException | None) -> RustRayError:
        """Return what the head said at the end, or that it is gone."""
        if isinstance(error, aio.AioRpcError):
            return self._translate(error)
        return HeadUnavailable("the connection to the head is lost")

    def at_write_error(self, error: BaseException) -> None:
        """Leave the reason to the reader, which gets the stream's status."""

    def finish(self, error: RustRayError | None) -> None:
        """End the stream now."""
        super().finish(error)
        if not self._call.done():
            self._call.cancel()

    async def close(self) -> None:
        """End the stream in an orderly way: what waits is written, then both sides stop."""
        if self._is_closing or self.ended.done():
            await asyncio.wait({self.ended}, timeout=DRAIN_S)
            return
        self._is_closing = True
        await self.drain()
        self.send_control(BYE)
        await self.drain()
        if not self.ended.done():
            try:
                await self._call.done_writing()
            except (aio.AioRpcError, aio.BaseError, asyncio.InvalidStateError):
                self._call.cancel()
            await asyncio.wait({self.ended}, timeout=DRAIN_S)
        self.finish(None)
        if self._reader is not None and self._reader is not asyncio.current_task():
            await asyncio.wait({self._reader}, timeout=DRAIN_S)


async def open_link(link: ClientLink, shown: str) -> None:
    """Open a link's stream and start it.

    Raises:
        RustRayError: the head refused it, or does not answer.
    """
    try:
        async with asyncio.timeout(OPEN_S):
            await link.open()
    except TimeoutError:
        link.abandon()
        raise HeadUnavailable(f"the head at {shown} did not let the stream in in time") from None
    except BaseException:
        link.abandon()
        raise
    link.start()
