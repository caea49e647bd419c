"""An event loop that looks for events a while before it sleeps: the embedded cluster's."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable
from contextvars import Context
from typing import Final, TypeVarTuple

SPIN_S: Final = 60e-6
"""How long a loop that has run dry looks for events before it sleeps.

On a task's way through an embedded cluster the loop waits for the program some 20 us, and for an
executor some 70 us. To be put to sleep and woken on another core costs as much CPU as to look for
so long, and 30 us of latency: one at a time, with executors that slept, a task took 398 us with
30 us, 358 with 60, and 362 with 80, at less CPU time (on a busy machine, medians of interleaved
runs). Executors look as well (`rustray.worker.child_wait`). With gRPC in between,
other threads need the core more (head, worker and client measured 3 % slower), so their loops sleep
at once.
"""

_Ts = TypeVarTuple("_Ts")


class _LookAgain(selectors.DefaultSelector):
    """Polls for `SPIN_S` before it waits; polling lets other threads run.

    Attributes:
        is_called: Whether another thread has given the loop something to do. Set after that was
            done, and unset before the loop looks for what there is to do.
        is_asleep: Whether only an event ends the waiting. Set before ``is_called`` is looked at for
            the last time, and looked at after that was set: one of the two sees the other.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_called = False
        self.is_asleep = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See `selectors.BaseSelector`."""
        ready = self._look(timeout)
        self.is_called = False  # what was set before is seen to in this turn of the loop
        return ready

    def _look(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        look, clock = super().select, time.perf_counter
        if timeout is not None and timeout <= 0:
            return look(0)
        until = clock() + SPIN_S
        while True:
            ready = look(0)
            if ready or self.is_called:
                return ready
            if clock() >= until:
                break
        self.is_asleep = True
        try:
            return look(0 if self.is_called else timeout)
        finally:
            self.is_asleep = False


class SpinningLoop(asyncio.SelectorEventLoop):
    """The event loop; other threads reach it without a system call unless it sleeps."""

    def __init__(self) -> None:
        self._looker = _LookAgain()
        super().__init__(self._looker)

    def call_soon_threadsafe(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """See `asyncio.loop`. A pipe is written to where that is needed: it costs some 15 us."""
        if self.get_debug():
            return super().call_soon_threadsafe(callback, *args, context=context)
        # All that this lacks to be called by other threads is that the loop be woken.
        handle = self.call_soon(callback, *args, context=context)
        looker = self._looker
        looker.is_called = True
        if looker.is_asleep:
            super().call_soon_threadsafe(_nothing)
        return handle


def _nothing() -> None:
    """Be what the loop wakes up for."""
