"""All sessions of tasks on one worker that hand in tasks themselves, in one stream."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from rustray.common.errors import (
    CommunicationError,
    InvariantError,
    ResourceExhausted,
    RustRayError,
)
from rustray.head.nested_peer import NestedPeer
from rustray.head.peer import FRAME_BYTES
from rustray.rpc.api import Link
from rustray.rpc.codec import decode_client_frame, encode_head_frame
from rustray.task.frames import NestedFrame, NestedItem

logger = logging.getLogger("rustray.head")

MAX_CHANNELS: Final = 65_536
FRAME_ITEMS: Final = 1_024


class _Channel:
    """One session's part of the stream: the `Link` under its peer."""

    def __init__(self, stream: NestedStream, number: int, peer: NestedPeer) -> None:
        self.number = number
        self.peer = peer
        self._stream = stream

    def wake(self) -> None:
        """See `Link`."""
        self._stream.wake(self)

    def wake_now(self) -> None:
        """See `Link`."""
        self._stream.wake(self)

    async def close(self) -> None:
        """See `Link`."""
        self._stream.end(self, None)


class NestedStream:
    """The head's end (`rustray.rpc.server.AttachablePump`).

    Args:
        open_peer: Makes the peer of the session of the task at (lease, offset), or raises why not.
    """

    def __init__(self, open_peer: Callable[[int, int], NestedPeer]) -> None:
        self._open_peer = open_peer
        self._link: Link | None = None
        self._channels: dict[int, _Channel] = {}
        self._ready: dict[_Channel, None] = {}
        self._ends: list[NestedItem] = []

    def attach(self, link: Link) -> None:
        """Learn the link under it."""
        self._link = link
        link.wake()

    def wake(self, channel: _Channel) -> None:
        """A session has something to say."""
        if self._channels.get(channel.number) is channel:
            self._ready[channel] = None
            self._wake()

    def _wake(self) -> None:
        if self._link is not None:
            self._link.wake()

    # -- FramePump ------------------------------------------------------------

    def next_frame(self) -> NestedFrame | None:
        """Return what waits of all sessions, in turn, bounded in items and bytes."""
        items: list[NestedItem] = []
        size = 0
        while self._ready and size < FRAME_BYTES and len(items) < FRAME_ITEMS:
            channel = next(iter(self._ready))
            del self._ready[channel]
            data = self._next_data(channel)
            if data is not None:
                size += len(data)
                items.append(NestedItem(channel.number, data=data))
                self._ready[channel] = None  # behind the others
        if not self._ready or len(items) < FRAME_ITEMS:
            items += self._ends
            self._ends = []
        return NestedFrame(items=items) if items else None

    def _next_data(self, channel: _Channel) -> bytes | None:
        try:
            frame = channel.peer.next_frame()
            return None if frame is None else encode_head_frame(frame)
        except RustRayError as error:
            self.end(channel, error)
        except Exception:
            self.end(channel, _bug(channel))
        return None

    def on_frame(self, frame: NestedFrame) -> None:
        """Take what sessions say; what is wrong with one ends that one."""
        for item in frame.items:
            channel = self._channels.get(item.channel)
            if item.opens is not None:
                if channel is not None:
                    raise CommunicationError(f"channel {item.channel} is opened twice")
                self._open(item.channel, *item.opens)
            elif channel is None:
                continue  # it has ended, which the other side has not heard yet
            elif item.ends:
                del self._channels[item.channel]
                self._ready.pop(channel, None)
                channel.peer.on_closed(None)
            else:
                self._take(channel, item.data)

    def _open(self, number: int, lease: int, offset: int) -> None:
        try:
            if len(self._channels) >= MAX_CHANNELS:
                raise ResourceExhausted(
                    f"more than {MAX_CHANNELS} tasks of one worker hand in tasks at once",
                    reason="NESTED_SESSIONS",
                )
            peer = self._open_peer(lease, offset)
        except RustRayError as error:
            self._ends.append(NestedItem(number, ends=True, code=error.code, message=str(error)))
            self._wake()
            return
        channel = self._channels[number] = _Channel(self, number, peer)
        peer.attach(channel)

    def _take(self, channel: _Channel, data: bytes) -> None:
        try:
            channel.peer.on_frame(decode_client_frame(data))
        except RustRayError as error:
            self.end(channel, error)
        except Exception:
            self.end(channel, _bug(channel))

    def end(self, channel: _Channel, error: RustRayError | None) -> None:
        """End one session from this side."""
        if self._channels.get(channel.number) is not channel:
            return
        del self._channels[channel.number]
        self._ready.pop(channel, None)
        code, text = (error.code, str(error)) if error is not None else ("", "")
        self._ends.append(NestedItem(channel.number, ends=True, code=code, message=text))
        channel.peer.on_closed(error)
        self._wake()

    def on_closed(self, error: RustRayError | None) -> None:
        """The stream is over, and with it all sessions: they come back, as any client's."""
        channels, self._channels = self._channels, {}
        self._ready.clear()
        self._link = None
        for channel in channels.values():
            channel.peer.on_closed(error)


def _bug(channel: _Channel) -> InvariantError:
    logger.exception("a session of a task failed (channel %d)", channel.number)
    return InvariantError("the head could not handle a frame; its log has the details")
