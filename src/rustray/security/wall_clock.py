"""Unix time that a jump of this machine's wall clock does not move at once.

Tokens say when they end in unix time, and whoever renews a lease shows one. So a node that judged
them by the bare wall clock would turn all its peers away when somebody sets that by an hour, and
their leases would end. Here steps of a few seconds are followed at once, as a time server makes
them. A greater one is followed only when it has lasted: until then time goes on as if nothing had
been. (A machine's sleep is no jump.)

Nobody can know which of two times is right: a clock may be set wrong, or right at last. So while
they differ, and for a while after a jump was followed, what is good by either of them is good.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

logger = logging.getLogger("rustray")

FOLLOWED_S: Final = 10.0
"""Steps up to this are followed at once: less than tokens allow two clocks to differ."""
LASTING_S: Final = 3600.0
"""A greater jump that has lasted for so long is no mistake."""


def _elapsed_s() -> float:
    """Return seconds that no setting of a clock changes, and in which a machine's sleep counts."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


class WallClock:
    """Unix time, steady over jumps; one for each process is enough (`unix_s`)."""

    def __init__(
        self, wall: Callable[[], float] = time.time, elapsed: Callable[[], float] = _elapsed_s
    ) -> None:
        """Start with what the wall clock says now.

        Args:
            wall: Unix seconds, may jump.
            elapsed: Seconds from any moment on, never jumps.
        """
        self._wall = wall
        self._elapsed = elapsed
        self._offset_s = wall() - elapsed()
        self._jumped_to_s = self._former_s = self._offset_s
        self._since_s = self._followed_s = 0.0

    def __call__(self) -> float:
        """Return unix seconds."""
        elapsed_s = self._elapsed()
        found_s = self._wall() - elapsed_s
        if abs(found_s - self._offset_s) <= FOLLOWED_S:
            if self._former_s == self._offset_s:
                self._former_s = found_s
            self._offset_s = self._jumped_to_s = found_s
        elif abs(found_s - self._jumped_to_s) > FOLLOWED_S:
            self._jumped_to_s, self._since_s = found_s, elapsed_s
            logger.warning(
                "the wall clock of this machine has jumped by %+.0f s. Tokens and certificates go "
                "by the time of before, for %.0f minutes; set the clock right",
                found_s - self._offset_s, LASTING_S / 60,
            )  # fmt: skip
        elif elapsed_s - self._since_s >= LASTING_S:
            logger.warning(
                "the wall clock has been %+.0f s away for %.0f minutes: that is the time now",
                found_s - self._offset_s, LASTING_S / 60,
            )  # fmt: skip
            self._former_s, self._followed_s = self._offset_s, elapsed_s
            self._offset_s = found_s
        return elapsed_s + self._offset_s

    def moments(self) -> tuple[float, ...]:
        """Return the times that it may be, as unix seconds; that of `__call__` first."""
        found = [self()]
        elapsed_s = self._elapsed()
        if self._jumped_to_s != self._offset_s:
            found.append(elapsed_s + self._jumped_to_s)
        if self._former_s != self._offset_s and elapsed_s - self._followed_s < LASTING_S:
            found.append(elapsed_s + self._former_s)
        return tuple(found)


unix_s: Final = WallClock()
"""The time of this process, for whatever is compared with times that other nodes have written."""
