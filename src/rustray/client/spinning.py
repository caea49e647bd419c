"""An event loop that looks for events a while before it sleeps: the embedded cluster's."""

from __future__ import annotations

import asyncio
import selectors
import time
from typing import Final

SPIN_S: Final = 30e-6
"""How long a loop that has run dry looks for events before it sleeps.

On a task's way through an embedded cluster the loop waits for an executor or for the program, some
20 us at a time. To be put to sleep and woken on another core costs as much CPU as to look for so
long, and 30 us of latency: one at a time, a task took 324 us without and 280 us with it, at the
same CPU time; longer than 30 us gained nothing. With gRPC in between, other threads need the core
more (head, worker and client measured 3 % slower), so their loops sleep at once.
"""


class _LookAgain(selectors.DefaultSelector):
    """Polls for `SPIN_S` before it waits; polling lets other threads run."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See `selectors.BaseSelector`."""
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        clock = time.perf_counter
        until = clock() + SPIN_S
        while True:
            ready = super().select(0)
            if ready:
                return ready
            if clock() >= until:
                return super().select(timeout)


def new_spinning_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop, not running."""
    return asyncio.SelectorEventLoop(_LookAgain())
