"""The agent's part in sessions of tasks that hand in tasks: it carries their frames, unread.

They share one stream to the head, which is opened when the first of them begins. When it breaks
they are told so, and begin again, as any client does. What begins while there is no session with
the head waits for one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Final

from rustray.common.errors import HeadUnavailable, RustRayError
from rustray.rpc.api import FramePump, Link
from rustray.task import relay
from rustray.task.frames import NestedFrame, NestedItem
from rustray.worker.events import ResumeTask, TaskBlocked, TaskWoke

logger = logging.getLogger("rustray.worker")

FRAME_BYTES: Final = 1 << 20
FRAME_ITEMS: Final = 1_024
Place = tuple[int, int]
"""Executor, and its number of the channel."""
Send = Callable[[int, int, int, bytes], None]
"""Tells an executor (its number, kind, channel, body)."""
Dial = Callable[[FramePump], Awaitable[Link]]


class _Stream:
    """One stream to the head, with the sessions that have begun in it."""

    def __init__(self, send: Send) -> None:
        self.link: Link | None = None
        self.is_over = False
        self._send = send
        self._numbers: dict[Place, int] = {}
        self._places: dict[int, Place] = {}
        self._next = count(1)
        self._items: deque[NestedItem] = deque()

    def open(self, place: Place, task: tuple[int, int]) -> None:
        """Begin a session."""
        number = next(self._next)
        self._numbers[place] = number
        self._places[number] = place
        self._add(NestedItem(number, task))

    def carry(self, place: Place, data: bytes) -> None:
        """Take a frame of a session; one that has ended is told so anyway."""
        number = self._numbers.get(place)
        if number is not None:
            self._add(NestedItem(number, data=data))

    def end(self, place: Place) -> None:
        """End a session from below."""
        number = self._numbers.pop(place, None)
        if number is not None:
            del self._places[number]
            self._add(NestedItem(number, ends=True))

    def end_all_of(self, executor_id: int) -> None:
        """End the sessions of an executor that is gone."""
        for place in [place for place in self._numbers if place[0] == executor_id]:
            self.end(place)

    def _add(self, item: NestedItem) -> None:
        self._items.append(item)
        if self.link is not None:
            self.link.wake()

    # ── FramePump ─────────────────────────────────────────────────────────────────────────

    def next_frame(self) -> NestedFrame | None:
        """See `FramePump`."""
        items: list[NestedItem] = []
        size = 0
        while self._items and size < FRAME_BYTES and len(items) < FRAME_ITEMS:
            items.append(self._items.popleft())
            size += len(items[-1].data)
        return NestedFrame(items=items) if items else None

    def on_frame(self, frame: NestedFrame) -> None:
        """See `FramePump`."""
        for item in frame.items:
            place = self._places.get(item.channel)
            if place is None:
                continue
            if item.ends:
                del self._places[item.channel]
                del self._numbers[place]
                reason = relay.pack_code(item.code, item.message)
                self._send(place[0], relay.CLOSE, place[1], reason)
            else:
                self._send(place[0], relay.DATA, place[1], item.data)

    def on_closed(self, error: RustRayError | None) -> None:
        """See `FramePump`."""
        self.is_over = True
        self.link = None
        self._items.clear()
        places = list(self._numbers)
        self._numbers.clear()
        self._places.clear()
        body = relay.pack_reason(error or HeadUnavailable("the head has ended the stream"))
        for executor_id, channel in places:
            self._send(executor_id, relay.CLOSE, channel, body)


class NestedSessions:
    """Carries what executors and head say to each other.

    Args:
        send: Tells an executor.
        apply: Tells the core of a task that waits, or wants to go on.
    """

    def __init__(self, send: Send, apply: Callable[[TaskBlocked | TaskWoke], None]) -> None:
        self._send = send
        self._apply = apply
        self._dial: Dial | None = None
        self._stream: _Stream | None = None
        self._dialing: asyncio.Task[None] | None = None

    def connect(self, dial: Dial) -> None:
        """There is a session with the head, in which a stream can be opened."""
        self._dial = dial
        if self._stream is not None and not self._stream.is_over:  # it has waited for that
            self._start(self._stream, dial)

    def disconnect(self) -> asyncio.Task[None] | None:
        """There is none any more; returns what ends the stream, to be waited for."""
        self._dial = None
        stream, self._stream = self._stream, None
        if stream is None:
            return None
        return asyncio.get_running_loop().create_task(self._hang_up(stream, self._dialing))

    @staticmethod
    async def _hang_up(stream: _Stream, dialing: asyncio.Task[None] | None) -> None:
        link = stream.link
        if dialing is not None:
            dialing.cancel()
            await asyncio.wait([dialing])
            link = stream.link
        if not stream.is_over:
            stream.on_closed(HeadUnavailable("the worker has lost its head"))
        if link is not None:
            await link.close()

    def take(self, executor_id: int, kind: int, channel: int, body: bytes) -> None:
        """Take a message of an executor.

        Raises:
            ValueError: it makes no sense.
        """
        place = (executor_id, channel)
        if kind == relay.OPEN:
            self._open_stream().open(place, relay.unpack_task(body))
        elif kind == relay.BLOCKED:
            self._apply(TaskBlocked(executor_id, *relay.unpack_task(body)))
        elif kind == relay.WOKE:
            self._apply(TaskWoke(executor_id, *relay.unpack_task(body)))
        elif kind == relay.DATA:
            if self._stream is not None:
                self._stream.carry(place, body)
        elif kind == relay.CLOSE:
            if self._stream is not None:
                self._stream.end(place)
        else:
            raise ValueError(f"a message of unknown kind {kind}")

    def resume(self, command: ResumeTask) -> None:
        """Let a task go on that has waited."""
        task = relay.pack_task(command.lease, command.offset)
        self._send(command.executor_id, relay.RESUME, 0, task)

    def forget(self, executor_id: int) -> None:
        """An executor is gone."""
        if self._stream is not None:
            self._stream.end_all_of(executor_id)

    def _open_stream(self) -> _Stream:
        stream = self._stream
        if stream is None or stream.is_over:
            stream = self._stream = _Stream(self._send)
            if self._dial is not None:
                self._start(stream, self._dial)
        return stream

    def _start(self, stream: _Stream, dial: Dial) -> None:
        loop = asyncio.get_running_loop()
        self._dialing = loop.create_task(self._open(stream, dial), name="rustray-nested")

    async def _open(self, stream: _Stream, dial: Dial) -> None:
        try:
            stream.link = await dial(stream)
        except RustRayError as error:
            logger.debug("no stream for tasks that hand in tasks: %s", error)
            stream.on_closed(error)
            return
        stream.link.wake()
