"""Calls of tasks to the world outside of their executor: the agent's end.

What comes from an executor is user code's word: it is checked that the task it speaks for is one of
its own, and sizes and numbers are bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from rustray.common.errors import (
    AuthorizationError,
    CommunicationError,
    InvariantError,
    ResourceExhausted,
    RustRayError,
)
from rustray.common.messages import HEAD, MessageSplitter
from rustray.coordination.packing import pack_error
from rustray.worker import calls

logger = logging.getLogger("rustray.worker")

MAX_CALLS: Final = 1_024
"""Of one executor at a time."""
MAX_MESSAGE_BYTES: Final = 24 << 20
_READ_BYTES: Final = 64 * 1024

Handler = Callable[[int, int, bytes], Awaitable[bytes]]
"""Does what a task asks: lease, offset, body. Cancelled when the caller has gone; what it raises of
`RustRayError` is raised in the task."""


class CallPorts:
    """What an executor's handle has for calls: nothing, until the executor opens a port.

    Attributes:
        handlers: What is done for its tasks, by method (`rustray.worker.calls`).
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, is_out: Callable[[int, int], bool]) -> None:
        self.handlers: Mapping[int, Handler] = {}
        self._loop = loop
        self._is_out = is_out
        self._port: CallPort | None = None
        self._is_closed = False

    def open(self, descriptor: int) -> None:
        """Take the agent's end over; there is one an executor, and what else it sends is closed."""
        if self._port is None and not self._is_closed:
            with contextlib.suppress(OSError):  # user code sent something else than a socket
                sock = socket.socket(fileno=descriptor)
                self._port = CallPort(self._loop, sock, self.handlers, self._is_out)
                return
        os.close(descriptor)

    def close(self) -> None:
        """Take back all calls."""
        self._is_closed = True
        if self._port is not None:
            self._port.close()


class CallPort:
    """One executor's calls, as its agent sees them."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        handlers: Mapping[int, Handler],
        is_out: Callable[[int, int], bool],
    ) -> None:
        """Begin to listen.

        Args:
            loop: On which all happens.
            sock: From the executor.
            handlers: Method to what does it.
            is_out: Whether the task with this lease and offset is with this executor.
        """
        self._loop = loop
        self._socket = sock
        self._handlers = handlers
        self._is_out = is_out
        self._splitter = MessageSplitter()
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._unsent: deque[memoryview] = deque()
        self._is_open = True
        sock.setblocking(False)
        loop.add_reader(sock, self._on_readable)

    def close(self) -> None:
        """Take back all calls, and let go of the socket; idempotent."""
        if not self._is_open:
            return
        self._is_open = False
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        for call in list(self._calls.values()):
            call.cancel()

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        messages = self._splitter.feed(data)
        if self._splitter.missing > MAX_MESSAGE_BYTES:
            logger.warning("an executor sent a call of %d bytes", self._splitter.missing)
            self.close()
            return
        for kind, number, whole, start, stop in messages:
            if kind == calls.CALL:
                self._begin(number, whole[start:stop])
            elif (call := self._calls.get(number)) is not None:
                call.cancel()

    def _begin(self, number: int, message: bytes) -> None:
        if number in self._calls or len(message) < calls.TARGET.size:
            self.close()  # only user code that wrote to our descriptor does that
            return
        if len(self._calls) >= MAX_CALLS:
            text = f"{MAX_CALLS} calls of one executor are under way"
            error = ResourceExhausted(text, reason="COORDINATION_LANES")
            self._send(calls.FAILURE, number, pack_error(error))
            return
        self._calls[number] = self._loop.create_task(self._run(number, message))

    async def _run(self, number: int, message: bytes) -> None:
        try:
            answer = await self._carry_out(message)
        except RustRayError as error:
            self._send(calls.FAILURE, number, pack_error(error))
        except Exception:  # a bug of ours: the task must not wait for ever
            logger.exception("a call of a task failed")
            bug = InvariantError("a bug in rustray; the worker's log has the details")
            self._send(calls.FAILURE, number, pack_error(bug))
        else:
            self._send(calls.ANSWER, number, answer)
        finally:
            self._calls.pop(number, None)

    async def _carry_out(self, message: bytes) -> bytes:
        lease, offset, method = calls.TARGET.unpack_from(message)
        handler = self._handlers.get(method)
        if handler is None:
            raise CommunicationError(f"this worker has no method {method} for tasks")
        if not self._is_out(lease, offset):
            raise AuthorizationError("this task is none of the executor's (any more)")
        return await handler(lease, offset, message[calls.TARGET.size :])

    def _send(self, kind: int, number: int, body: bytes) -> None:
        if not self._is_open:
            return
        self._unsent.append(memoryview(HEAD.pack(kind, number, len(body)) + body))
        if len(self._unsent) == 1:
            self._on_writable()

    def _on_writable(self) -> None:
        try:
            while self._unsent:
                sent = self._socket.send(self._unsent[0])
                if sent < len(self._unsent[0]):
                    self._unsent[0] = self._unsent[0][sent:]
                else:
                    self._unsent.popleft()
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._on_writable)
            return
        except OSError:  # it is dead; its reader finds out
            self._unsent.clear()
        self._loop.remove_writer(self._socket)
