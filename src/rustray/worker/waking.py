"""When a worker's stream is asked to send: at once, or with what comes in the next moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

PAUSE_S: Final = 0.002
"""How long the head may wait to hear of a task whose follower has begun: so the links of a quick
chain are told together, which costs less than each by itself."""


class LinkWaker:
    """See the module; for one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        """Prepare; ``wake`` asks the stream."""
        self._loop, self._wake = loop, wake
        self._timer: asyncio.TimerHandle | None = None

    def wake(self, may_wait: bool) -> None:
        """There is something to send, which may wait a moment or not."""
        if not may_wait:
            self._wake()
        elif self._timer is None:
            self._timer = self._loop.call_later(PAUSE_S, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._wake()

    def close(self) -> None:
        """Wake it no more."""
        if self._timer is not None:
            self._timer.cancel()
