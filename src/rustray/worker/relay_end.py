"""The agent's end of the channel of tasks that hand in tasks (`rustray.task.relay`)."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from rustray.common.messages import MessageSplitter
from rustray.task.relay import pack

MAX_UNREAD_BYTES: Final = 256 << 20
"""What may wait for an executor to be read: results of tasks that its task has asked for."""
MAX_MESSAGE_BYTES: Final = 64 << 20
_READ_BYTES: Final = 256 * 1024


class RelayEnd:
    """Reads and writes messages; what is broken closes it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fd: int,
        on_message: Callable[[int, int, bytes], None],
    ) -> None:
        """Take a descriptor over.

        Args:
            loop: Where all happens.
            fd: Of a stream socket.
            on_message: Told kind, channel and body of each message.
        """
        self._loop = loop
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._on_message = on_message
        self._splitter = MessageSplitter()
        self._unsent: deque[memoryview] = deque()
        self._waiting = 0
        self._is_closed = False
        loop.add_reader(self._socket, self._on_readable)

    def send(self, kind: int, channel: int, body: bytes = b"") -> bool:
        """Send a message; False if too much waits to be read."""
        if self._is_closed:
            return True
        message = memoryview(pack(kind, channel, body))
        if not self._unsent:
            message = self._write(message)
            if message:
                self._loop.add_writer(self._socket, self._on_writable)
        if message:
            self._unsent.append(message)
            self._waiting += len(message)
        return self._waiting <= MAX_UNREAD_BYTES

    def _write(self, message: memoryview) -> memoryview:
        """Write what there is room for, and return the rest."""
        try:
            return message[self._socket.send(message) :]
        except BlockingIOError:
            return message
        except OSError:  # the executor is gone, which the zygote reports
            self.close()
            return memoryview(b"")

    def _on_writable(self) -> None:
        while self._unsent:
            first = self._unsent[0]
            rest = self._write(first)
            self._waiting -= len(first) - len(rest)
            if rest:
                self._unsent[0] = rest
                return
            if self._unsent:
                self._unsent.popleft()
        if not self._is_closed:
            self._loop.remove_writer(self._socket)

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
        for kind, channel, message, start, stop in self._splitter.feed(data):
            self._on_message(kind, channel, message[start:stop])
        if self._splitter.missing > MAX_MESSAGE_BYTES:
            self.close()  # only user code that wrote to our descriptor can cause this

    def close(self) -> None:
        """Let go of the descriptor; idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._unsent.clear()
        self._waiting = 0
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()


class RelayPort:
    """Where such a channel of one executor comes in, once a task of it needs one.

    Attributes:
        on_message: Told executor, kind, channel and body of each message; ValueError: it makes no
            sense.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        executor_id: int,
        on_violation: Callable[[int, str], None],
    ) -> None:
        self.on_message: Callable[[int, int, int, bytes], None] | None = None
        self._loop = loop
        self._executor_id = executor_id
        self._on_violation = on_violation
        self._end: RelayEnd | None = None

    def open(self, fd: int | None) -> None:
        """Take the agent's end over."""
        self.close()
        if fd is not None:
            self._end = RelayEnd(self._loop, fd, self._take)

    def _take(self, kind: int, channel: int, body: bytes) -> None:
        try:
            if self.on_message is not None:
                self.on_message(self._executor_id, kind, channel, body)
        except ValueError as error:
            self._on_violation(self._executor_id, str(error))

    def send(self, kind: int, channel: int, body: bytes = b"") -> None:
        """Send a message; an executor that does not read is killed."""
        if self._end is not None and not self._end.send(kind, channel, body):
            self._on_violation(self._executor_id, "it does not read what its own tasks return")

    def close(self) -> None:
        """Let go of it."""
        if self._end is not None:
            self._end.close()
