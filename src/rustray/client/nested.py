"""What a task hands in itself: its session, and the way through the executor's channel to the head.

There is one of these per executor process, with a thread of its own, made when a task of that
process hands in its first. It has no credentials: the agent carries what it says, and the head lets
a session act for as long as its worker holds the task.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any, Final

from rustray.client.connection import Connection
from rustray.client.loop_thread import LoopThread
from rustray.client.nested_session import NestedSession
from rustray.client.pauses import Pauses
from rustray.client.refs import TaskRef
from rustray.client.throttle import Throttle
from rustray.common.errors import CommunicationError, HeadUnavailable, RustRayError
from rustray.common.messages import MessageSplitter
from rustray.rpc.api import FramePump, HeadApi, Link
from rustray.rpc.codec import decode_head_frame, encode_client_frame
from rustray.task import relay
from rustray.task.relay import Seat

FLUSH_S: Final = 5.0
"""How long a task's report waits until its cancels, and what it has let go of, have arrived."""
LINGER_S: Final = 0.005
"""How long a thread that has brought a value may still refer to it."""
_READ_BYTES: Final = 256 * 1024
_CLOSED: Final = "the task that handed this one in has ended"


class _Link:
    """One session's part of the channel (`rustray.rpc.api.Link`)."""

    def __init__(self, channel: Channel, number: int, pump: FramePump) -> None:
        self._channel = channel
        self._number = number
        self._pump = pump
        self.is_over = False

    def wake(self) -> None:
        """See `Link`."""
        if not self.is_over:
            self._channel.write_for(self)

    def wake_now(self) -> None:
        """See `Link`."""
        self.wake()

    def send_next(self) -> bool:
        """Send one frame; False if none waits."""
        frame = None if self.is_over else self._pump.next_frame()
        if frame is None:
            return False
        self._channel.send(relay.DATA, self._number, encode_client_frame(frame))
        return True

    def take(self, data: bytes) -> None:
        """Take a frame of the head."""
        try:
            self._pump.on_frame(decode_head_frame(data))
        except RustRayError as error:
            self._channel.send(relay.CLOSE, self._number)
            self.end(error)

    def end(self, error: RustRayError | None) -> None:
        """The stream is over; idempotent."""
        if not self.is_over:
            self.is_over = True
            self._channel.links.pop(self._number, None)
            self._pump.on_closed(error)

    async def close(self) -> None:
        """See `Link`."""
        while self.send_next():
            pass
        if not self.is_over:
            self._channel.send(relay.CLOSE, self._number)
            self.end(None)


class Channel:
    """This process's end of the channel to its agent; a `rustray.client.pauses.Messenger`.

    Attributes:
        links: The streams that are open, by number.
    """

    def __init__(self) -> None:
        self.thread = _masked(lambda: LoopThread("rustray-nested"))
        self.links: dict[int, _Link] = {}
        self._numbers = count(1)
        self._splitter = MessageSplitter()
        self._unsent: deque[memoryview] = deque()
        self._ready: dict[_Link, None] = {}
        self._resumed: dict[tuple[int, int], Callable[[], None]] = {}
        self._socket = socket.socket(fileno=relay.host().open_channel())
        self._socket.setblocking(False)
        self._loop = self.thread.loop
        self._loop.call_soon_threadsafe(self._loop.add_reader, self._socket, self._on_readable)

    # ---- any thread -------------------------------------------------------------------

    def tell(self, kind: int, seat: Seat) -> None:
        """See `Messenger`."""
        body = relay.pack_task(seat.lease, seat.offset)
        self._loop.call_soon_threadsafe(self.send, kind, 0, body)

    def when_resumed(self, seat: Seat, callback: Callable[[], None]) -> None:
        """See `Messenger`."""
        self._resumed[(seat.lease, seat.offset)] = callback

    # ---- its own thread ---------------------------------------------------------------

    def open(self, seat: Seat, pump: FramePump) -> Link:
        """Begin a stream for the session of a task."""
        number = next(self._numbers)
        link = self.links[number] = _Link(self, number, pump)
        self.send(relay.OPEN, number, relay.pack_task(seat.lease, seat.offset))
        return link

    def send(self, kind: int, number: int, body: bytes = b"") -> None:
        """Send a message, now or when there is room."""
        message = memoryview(relay.pack(kind, number, body))
        if not self._unsent:
            message = self._write(message)
            if message:
                self._loop.add_writer(self._socket, self._on_writable)
        if message:
            self._unsent.append(message)

    def write_for(self, link: _Link) -> None:
        """Send what waits for a stream: now, or when what was sent before has gone."""
        self._ready[link] = None
        self._write_ready()

    def _write_ready(self) -> None:
        while self._ready and not self._unsent:
            link = next(iter(self._ready))
            if not link.send_next():
                self._ready.pop(link, None)

    def _write(self, message: memoryview) -> memoryview:
        try:
            return message[self._socket.send(message) :]
        except BlockingIOError:
            return message
        except OSError:  # the agent is gone, and ends this process
            return memoryview(b"")

    def _on_writable(self) -> None:
        while self._unsent:
            rest = self._write(self._unsent[0])
            if rest:
                self._unsent[0] = rest
                return
            self._unsent.popleft()
        self._loop.remove_writer(self._socket)
        self._write_ready()

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._socket)
            for link in list(self.links.values()):
                link.end(HeadUnavailable("the worker is gone"))
            return
        for kind, number, message, start, stop in self._splitter.feed(data):
            self._take(kind, number, message[start:stop])

    def _take(self, kind: int, number: int, body: bytes) -> None:
        if kind == relay.RESUME:
            callback = self._resumed.pop(relay.unpack_task(body), None)
            if callback is not None:
                callback()
            return
        link = self.links.get(number)
        if link is None:
            return
        if kind == relay.DATA:
            link.take(body)
        elif kind == relay.CLOSE:
            link.end(relay.unpack_reason(body) or HeadUnavailable("the head has ended the stream"))


class _Api:
    """The part of `HeadApi` that a session's connection asks for."""

    def __init__(self, channel: Channel, seat: Seat) -> None:
        self._channel = channel
        self._seat = seat

    async def open_client_stream(self, prefix: bytes, pump: FramePump) -> Link:
        """See `HeadApi`."""
        return self._channel.open(self._seat, pump)


class _Attached(NestedSession):
    """A session with its connection."""

    def __init__(self, channel: Channel, connection: Connection, seat: Seat) -> None:
        throttle = Throttle(connection.rouse_after)
        super().__init__(connection.rouse, channel.thread.thread_id, throttle, seat)
        self.own_pauses = self.pauses = Pauses(channel, seat)
        self._thread = channel.thread
        self._connection = connection

    def wait_settled(self, ref: TaskRef[Any]) -> None:
        """See `NestedSession`."""
        self._thread.call(self.settled(ref))

    def leave(self, waits: bool) -> None:
        """The task's code has ended; see `Seat`."""
        self.own_pauses.end()
        self.drop_copies()
        loop = self._thread.loop
        try:
            if waits and (self.is_again or self.is_owed or self.has_let_go or len(self.holds)):
                self._thread.call(self._hand_in())
        finally:
            loop.call_soon_threadsafe(lambda: loop.create_task(self._finish()))

    async def _hand_in(self) -> None:
        """Return when the head has all that the attempt has handed in and cancelled."""
        self.end()
        self._connection.rouse()
        await self.settle()
        if self.refers:
            gc.collect()  # a cycle has them: an exception, and a frame that it has gone through
        if self.refers:
            await asyncio.sleep(LINGER_S)
        if self.is_again or self.has_let_go:
            await self._connection.flush(FLUSH_S)  # when the task is over the head takes no more

    async def _finish(self) -> None:
        self.close(CommunicationError(_CLOSED))
        await self._connection.close()


_channel: Channel | None = None
_lock = threading.Lock()


def session_of(seat: Seat) -> NestedSession:
    """Return the session of the task that the calling code belongs to, made at the first call."""
    session: NestedSession | None = seat.session
    if session is not None:
        return session
    global _channel
    with _lock:
        if _channel is None:
            _channel = Channel()
        if seat.session is None:
            channel = _channel
            seat.session = channel.thread.call(_open(channel, seat))
            seat.leave = seat.session.leave
        found: NestedSession = seat.session
    return found


async def _open(channel: Channel, seat: Seat) -> NestedSession:
    connection = Connection("the head", is_quiet=True)
    session = _Attached(channel, connection, seat)
    api: Any = _Api(channel, seat)
    head: HeadApi = api
    connection.begin(head, session)
    return session


def _masked(start: Callable[[], LoopThread]) -> LoopThread:
    """Start a thread that no signal reaches: only in the main thread they end what blocks."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        return start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _after_fork_in_child() -> None:
    """Leave all of it to the executor: its thread and its channel are not here."""
    global _channel, _lock
    _lock = threading.Lock()
    _channel = None


os.register_at_fork(after_in_child=_after_fork_in_child)
