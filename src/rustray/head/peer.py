"""What the head's ends of all frame streams share.

A peer numbers frames, drops duplicates, ends a session in which a frame is missing, and collects
what waits until the link asks for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Final

from rustray.rpc.api import Link

logger = logging.getLogger("rustray.head")

FRAME_TASKS: Final = 4_096
FRAME_BYTES: Final = 1 << 20
ACK_DELAY_S: Final = 0.02
"""An ack that nothing carries goes alone after this time; data never waits."""


class Peer:
    """What both kinds of peers share: numbers, acks, and the link.

    Attributes:
        sent: Number of the last frame given to the link.
        received: Number of the last frame taken from it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, counters: Counter[str]) -> None:
        self.sent = 0
        self.received = 0
        self.is_closed = False
        self._loop = loop
        self._counters = counters
        self._link: Link | None = None
        self._owed = 0
        self._ack_timer: asyncio.TimerHandle | None = None
        self._is_ack_ripe = False
        self._closing: asyncio.Task[None] | None = None
        self._is_corked = False

    def attach(self, link: Link) -> None:
        """Learn the link under this peer."""
        self._link = link
        link.wake()

    def wake(self) -> None:
        """Have the link ask for a frame; not as long as more is about to come."""
        if self._link is not None and not (self.is_closed or self._is_corked):
            self._link.wake()

    def is_fresh(self, number: int) -> bool:
        """Judge a frame by its number: the next one is fresh, an old one a duplicate.

        A gap ends the session: what is missing is found out when the peer comes back.
        """
        if number == self.received + 1:
            self.received = number
            return True
        if number > self.received:
            self.shut(f"frame {number} came after frame {self.received}", "frame_gap")
        return False

    def need_ack(self) -> None:
        """Owe an ack for a frame with content: it goes soon, unless data carries it before.

        A frame without content is an ack itself. To ack it would go on for ever.
        """
        self._owed += 1
        self._arm_ack()

    def _arm_ack(self) -> None:
        if self._ack_timer is None and not self.is_closed:
            self._ack_timer = self._loop.call_later(ACK_DELAY_S, self._ripen)

    def _ripen(self) -> None:
        self._ack_timer = None
        if self._owed:
            self._is_ack_ripe = True
            self.wake()

    def stamp(self) -> tuple[int, int]:
        """Return the next frame's (number, ack)."""
        self.sent += 1
        self._owed = 0
        self._is_ack_ripe = False
        ack = self._safe_received()
        if ack < self.received:
            self.need_ack()
        return self.sent, ack

    def _safe_received(self) -> int:
        """Return the last frame that may be acked."""
        return self.received

    def shut(self, reason: str, why: str) -> None:
        """Close the link in order; the other side will come back.

        Args:
            reason: In words, for the log.
            why: Stable name, for the counters.
        """
        if self.is_closed or self._link is None or self._closing is not None:
            return
        self._counters["streams_closed"] += 1
        self._counters[f"streams_closed_{why}"] += 1
        logger.info("closing a stream: %s", reason)
        self._closing = self._loop.create_task(self._link.close())

    def mark_closed(self) -> None:
        """Forget the link."""
        self.is_closed = True
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
