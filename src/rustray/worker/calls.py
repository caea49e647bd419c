"""Calls of tasks to the world outside of their executor: the executor's end.

A task asks, the agent does, the answer comes back; many at once, from any thread. The channel for
it is made at the first call of an executor, and costs those that never call nothing. Like a whole
request, an answer is one message: a 16-byte head as on the data channel, and its body.

Methods are small numbers. What a call's bytes mean is between the caller and the agent's handler
for its method (`rustray.worker.calls_port`).
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import struct
import threading
from concurrent.futures import Future
from typing import Final

from rustray.common.errors import CommunicationError, NotInTask
from rustray.common.messages import HEAD, MessageSplitter
from rustray.coordination.packing import unpack_error
from rustray.worker import wire

CALL: Final = 1
"""Task's lease, offset, the method, and what it is to do."""
CANCEL: Final = 2
"""The caller of the call with this number has gone."""
ANSWER: Final = 3
FAILURE: Final = 4
"""An error instead of an answer (`rustray.coordination.packing.pack_error`)."""

COORDINATE: Final = 1
"""Method: a request for a lock, semaphore, event or queue."""

TARGET: Final = struct.Struct("=QII")
"""Lease, offset, method."""
SLICE_S: Final = 0.1
"""In a thread beside the main one, an interrupt is noticed after this time."""
_RECEIVE_BYTES: Final = 256 * 1024


class Calls:
    """One executor's calls."""

    def __init__(self, control: socket.socket) -> None:
        """Make the channel, and give the agent its end.

        Args:
            control: The packet socket to the agent.
        """
        self._socket, theirs = socket.socketpair()
        with theirs:
            packet = wire.CONTROL.pack(wire.CALLS, 0, 0, 0)
            socket.send_fds(control, [packet], [theirs.fileno()])
        self._pid = os.getpid()
        self._numbers = itertools.count(1)
        self._pending: dict[int, Future[bytes]] = {}
        self._send_lock = threading.Lock()
        self._is_gone = False
        threading.Thread(target=self._receive, name="rustray-calls", daemon=True).start()

    def start(self, method: int, lease: int, offset: int, body: bytes) -> tuple[int, Future[bytes]]:
        """Send a call; returns its number, and what its answer comes to.

        Raises:
            NotInTask: this process was forked by the task.
            CommunicationError: the agent is gone.
        """
        if self._pid != os.getpid():
            raise NotInTask("a process that a task has forked cannot call for the task")
        number = next(self._numbers) & 0xFFFF_FFFF
        future: Future[bytes] = Future()
        self._pending[number] = future
        self._send(CALL, number, TARGET.pack(lease, offset, method) + body)
        if self._is_gone:
            self._fail_all()
        return number, future

    def call(self, method: int, lease: int, offset: int, body: bytes) -> bytes:
        """Call, and block until the answer is here.

        Raises:
            RustRayError: what the agent says instead.
            BaseException: the caller is interrupted; the call is taken back.
        """
        number, future = self.start(method, lease, offset, body)
        # Only in the main thread does an interrupt end a wait for a lock.
        is_main = threading.current_thread() is threading.main_thread()
        try:
            while True:
                try:
                    return future.result(None if is_main else SLICE_S)
                except TimeoutError:
                    if future.done():
                        raise
        except BaseException:
            if not future.done():
                self.cancel(number)
            raise

    def cancel(self, number: int) -> None:
        """Take a call back; its answer is thrown away."""
        if self._pending.pop(number, None) is not None:
            self._send(CANCEL, number, b"")

    def _send(self, kind: int, number: int, body: bytes) -> None:
        try:
            with self._send_lock:
                self._socket.sendall(HEAD.pack(kind, number, len(body)) + body)
        except OSError as error:
            raise CommunicationError(f"the worker's agent cannot be reached: {error}") from None

    def _receive(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        splitter = MessageSplitter()
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except OSError:
                data = b""
            if not data:
                break
            for kind, number, whole, start, stop in splitter.feed(data):
                future = self._pending.pop(number, None)
                if future is None:
                    continue
                if kind == ANSWER:
                    future.set_result(whole[start:stop])
                else:
                    future.set_exception(unpack_error(whole[start:stop]))
        self._is_gone = True
        with self._send_lock:
            self._socket.close()
        self._fail_all()

    def _fail_all(self) -> None:
        for number in list(self._pending):
            future = self._pending.pop(number, None)
            if future is not None:
                future.set_exception(CommunicationError("the worker's agent has closed the call"))
