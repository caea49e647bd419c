"""Frame streams inside one process: frames pass as objects, without gRPC."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final
from weakref import WeakKeyDictionary, ref

from rustray.common.errors import InvariantError, RustRayError
from rustray.rpc.api import FramePump, Link

logger = logging.getLogger("rustray.rpc")

MAX_TURNS: Final = 16
MAX_LAST_FRAMES: Final = 10_000
"""Frames that a closing end still delivers; more would mean a pump that never runs dry."""


def memory_link_pair(
    loop: asyncio.AbstractEventLoop, left: FramePump, right: FramePump
) -> tuple[Link, Link]:
    """Join two pumps of this process.

    Frames are handed over later, never from within `Link.wake`, one frame a turn: what a
    pump collects meanwhile goes together in the next. `Link.wake_now` does not wait. All links
    of a loop take turns within one of its callbacks, so that a task's way through client, head
    and worker costs one pass of the loop and not one a hop.

    Args:
        loop: The loop in whose thread both pumps live.
        left: One end.
        right: The other.

    Returns:
        The link of ``left`` and the link of ``right``.
    """
    turns = _TURNS.setdefault(loop, _Turns(loop))
    first, second = _MemoryLink(turns, left), _MemoryLink(turns, right)
    first.peer, second.peer = second, first
    return first, second


class _Turns:
    """The links of one loop that have something to hand over, in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Weak, or the entry in `_TURNS` would keep its own key alive.
        self._loop = ref(loop)
        self._waiting: deque[_MemoryLink] = deque()
        self._is_arranged = False
        self._is_running = False

    def arrange(self, link: _MemoryLink) -> None:
        """Give a link a turn."""
        self._waiting.append(link)
        if not (self._is_arranged or self._is_running):
            self._arrange_run()

    def give(self, link: _MemoryLink) -> None:
        """Give a link its turn, and all that follow from it, at once."""
        self._waiting.append(link)
        if not self._is_running:
            self._run()

    def _arrange_run(self) -> None:
        loop = self._loop()
        if loop is not None:
            self._is_arranged = True
            loop.call_soon(self._run_arranged)

    def _run_arranged(self) -> None:
        self._is_arranged = False
        self._run()

    def _run(self) -> None:
        waiting = self._waiting
        self._is_running = True
        try:
            for _ in range(MAX_TURNS):
                if not waiting:
                    break
                link = waiting.popleft()
                if link.hand_over():
                    waiting.append(link)  # it may have more
                else:
                    link.is_busy = False
        finally:
            self._is_running = False
        if waiting and not self._is_arranged:
            self._arrange_run()  # Let the loop look at its sockets and timers.


_TURNS: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = WeakKeyDictionary()


class _MemoryLink:
    """One end; `peer` is the other.

    Attributes:
        is_busy: It has asked for a turn, and not yet found its pump dry.
    """

    peer: _MemoryLink

    def __init__(self, turns: _Turns, pump: FramePump) -> None:
        self._turns = turns
        self._pump = pump
        self.is_busy = False
        self._is_closed = False

    def wake(self) -> None:
        if not self.is_busy and not self._is_closed:
            self.is_busy = True
            self._turns.arrange(self)

    def wake_now(self) -> None:
        if not self.is_busy and not self._is_closed:
            self.is_busy = True
            self._turns.give(self)

    def hand_over(self) -> bool:
        """Deliver one frame; False if none waited or the link is closed."""
        if self._is_closed:
            return False
        try:
            frame = self._pump.next_frame()
            if frame is None:
                return False
            self.peer._pump.on_frame(frame)
        except RustRayError as error:
            self._end(error)
        except Exception:
            logger.exception("a frame pump failed")
            self._end(InvariantError("a frame could not be handled; the log has the details"))
        return not self._is_closed

    async def close(self) -> None:
        """End the stream once all that waits at this end is delivered."""
        for _ in range(MAX_LAST_FRAMES):
            if not self.hand_over():
                break
        self._end(None)

    def _end(self, error: RustRayError | None) -> None:
        for end in (self, self.peer):
            if not end._is_closed:
                end._is_closed = True
                try:
                    end._pump.on_closed(error)
                except Exception:
                    logger.exception("a frame pump failed at its end")
