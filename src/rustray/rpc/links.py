"""A `FramePump` over a gRPC stream; client and server share it.

The writer pulls: `wake` writes at once if nothing is in flight, else the pump is asked again when
the write has completed. So batches grow with the load, and there are no timers. The write is
started from within `wake`, without a task of its own: its coroutine is stepped by hand, which
saves a turn of the event loop on each message.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from rustray.common.errors import CommunicationError, RustRayError
from rustray.rpc.api import FramePump
from rustray.rpc.grpcio import EOF
from rustray.rpc.status import for_peer

logger = logging.getLogger("rustray.rpc")

DRAIN_S: Final = 5.0
"""How long an orderly end waits for what is still to be written, and for the other side."""


class WireStream(Protocol):
    """Either side of a bidirectional gRPC call, messages as bytes."""

    async def read(self) -> Any:
        """Return the next message, or `EOF`."""

    async def write(self, message: bytes, /) -> None:
        """Send a message; returns when there is room for the next one."""


class FrameLink:
    """Reads and writes one stream for one pump (`rustray.rpc.api.Link`).

    Attributes:
        ended: Set when the stream is over; its result is the error, or None.
    """

    def __init__(
        self,
        pump: FramePump,
        stream: WireStream,
        encode: Callable[[Any], bytes],
        decode: Callable[[bytes], Any],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._pump = pump
        self._stream = stream
        self._encode = encode
        self._decode = decode
        self._is_writing = False
        self._is_broken = False
        self._control: list[bytes] = []
        self._dry: asyncio.Future[None] | None = None
        self.ended: asyncio.Future[RustRayError | None] = self._loop.create_future()

    # -- writing --------------------------------------------------------------

    def wake(self) -> None:
        """Write what waits: now, or when the write in flight has completed."""
        if not (self._is_writing or self._is_broken or self.ended.done()):
            self._write_on()

    def wake_now(self) -> None:
        """See `Link`; here it is the same."""
        self.wake()

    def send_control(self, message: bytes) -> None:
        """Send a message of the link's own, before the pump's next frame."""
        self._control.append(message)
        self.wake()

    def _write_on(self) -> None:
        """Start writes until one stays in flight or nothing waits."""
        self._is_writing = True
        while not (self._is_broken or self.ended.done()):
            try:
                message = self._next_message()
            except Exception as error:
                self.fail(error)
                break
            if message is None:
                break
            if not self._step(self._stream.write(message)):
                return
        self._is_writing = False
        if self._dry is not None and not self._dry.done():
            self._dry.set_result(None)

    def _next_message(self) -> bytes | None:
        if self._control:
            return self._control.pop(0)
        frame = self._pump.next_frame()
        return None if frame is None else self._encode(frame)

    def _step(self, write: Coroutine[Any, Any, None]) -> bool:
        """Run a write as far as it goes; False while it waits for a future."""
        try:
            awaited = write.send(None)
        except StopIteration:
            return True
        except (Exception, asyncio.CancelledError) as error:
            self._is_broken = True
            self.at_write_error(error)
            return True
        if awaited is None:  # it only gave way to others
            self._loop.call_soon(self._resume, write)
        else:
            awaited._asyncio_future_blocking = False  # as a task does with what it waits for
            awaited.add_done_callback(lambda _: self._resume(write))
        return False

    def _resume(self, write: Coroutine[Any, Any, None]) -> None:
        if self._step(write):
            self._write_on()

    # -- reading --------------------------------------------------------------

    async def read_on(self) -> None:
        """Hand messages on until the stream is over."""
        read, take, ended = self._stream.read, self.take, self.ended
        while not ended.done():
            try:
                message = await read()
            except (Exception, asyncio.CancelledError) as error:
                self.lose(error)
                return
            if ended.done():
                return
            if message is EOF:
                self.at_eof()
                return
            try:
                take(message)
            except Exception as error:
                self.fail(error)

    def take(self, message: bytes) -> None:
        """Handle a message of the other side.

        Raises:
            RustRayError: it is malformed, or breaks the rules; the stream ends.
        """
        self._pump.on_frame(self._decode(message))

    # -- the end --------------------------------------------------------------

    def at_eof(self) -> None:
        """The other side has ended the stream."""
        self.finish(None)

    def at_write_error(self, error: BaseException) -> None:
        """A message could not be sent."""
        self.lose(error)

    def fail(self, error: BaseException) -> None:
        """End the stream for something that was wrong at this end, or in what came."""
        if not self.ended.done():
            told = for_peer(error, f"a stream of {type(self._pump).__name__}")
            # Kept as long as the stream's call: without the frames of its traceback, for they hold
            # the message, up to 32 MB, and what was made of it.
            told.__cause__ = told.__context__ = told.__traceback__ = None
            self.note_fault(told)
            self.finish(told)

    def note_fault(self, error: RustRayError) -> None:
        """The stream is about to end with this error of `fail`; a server counts it."""

    def lose(self, error: BaseException | None) -> None:
        """End the stream because the connection under it is gone."""
        if not self.ended.done():
            self.finish(self.explain_loss(error))

    def explain_loss(self, error: BaseException | None) -> RustRayError:
        """Return the error for `lose`."""
        return CommunicationError("the connection is lost")

    def finish(self, error: RustRayError | None) -> None:
        """End the stream now; the pump learns of it once."""
        if self.ended.done():
            return
        self.ended.set_result(error)
        if self._dry is not None and not self._dry.done():
            self._dry.set_result(None)
        try:
            self._pump.on_closed(error)
        except Exception:
            logger.exception("a frame pump failed at its end")

    async def drain(self) -> None:
        """Wait until the pump has nothing more to send, `DRAIN_S` at most."""
        if self.ended.done():
            return
        self.wake()
        if self._is_writing:
            self._dry = self._loop.create_future()
            await asyncio.wait({self._dry}, timeout=DRAIN_S)
            self._dry = None
