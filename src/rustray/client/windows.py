"""How many calls of an `Executor` may be with the cluster at once."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Hashable
from typing import Any, Final

_MAX_WINDOW: Final = 8_192
_BUSY_S: Final = 0.05
_MAX_KINDS: Final = 1_024
FULL: Final = 1 << 29
"""Load of a cluster that has enough to do; a whole number, so that sums of parts stay exact."""


class Window:
    """How many calls of one function keep the cluster busy.

    Grows while a windowful ends within 50 ms, shrinks while it takes over 200 ms: about as
    much work as hides the round trip, and never less than twice the slots. After 200 ms
    without calls it begins anew, for the next ones may be different.

    Attributes:
        size: That number.
        weight: Load of one call.
        in_flight: Calls that the cluster has.
    """

    def __init__(self, slots: int, is_strict: bool) -> None:
        self._floor = slots if is_strict else 2 * slots
        self._is_strict = is_strict
        self._last = 0.0
        self._measure_from(0.0)
        self.in_flight = 0
        self._resize(self._floor)

    def ended(self, now: float) -> None:
        """Count one ended call."""
        self._done += 1
        self._last = now
        if self._done < self.size and now <= self._slow_from:
            return  # most calls: nothing is known that was not known before
        took_s = now - self._since
        if self._is_strict:
            pass
        elif took_s > 4 * _BUSY_S:
            # Not only once all of them have ended: the rest would be with the cluster by then.
            self._resize(max(min(self._done, self.size // 2), self._floor))
        elif took_s < _BUSY_S:
            self._resize(min(self.size * 2, max(_MAX_WINDOW, self._floor)))
        self._measure_from(now)

    def restart(self, now: float) -> None:
        """Begin to measure: the window is about to be used after idling."""
        self._measure_from(now)
        if now - self._last > 4 * _BUSY_S:
            self._resize(self._floor)

    def _measure_from(self, now: float) -> None:
        self._done = 0
        self._since = now
        self._slow_from = now + 4 * _BUSY_S

    def _resize(self, size: int) -> None:
        self.size = size
        self.weight = -(-FULL // size)  # rounded up: so many calls are full, and not one more


class Windows:
    """The windows of all functions of an `Executor`, which share its cluster.

    How long a call takes is known only of its own function: quick ones must not open the
    window for slow ones, which could not be cancelled any more.

    Attributes:
        load: Of all calls that the cluster has; below `FULL` another may be handed over.

    Args:
        slots: Calls that can run at once.
        is_strict: No more than that are handed over.
    """

    def __init__(self, slots: int, is_strict: bool) -> None:
        self._slots = slots
        self._is_strict = is_strict
        self._by_kind: dict[Hashable, Window] = {}
        self.load = 0

    def window_of(self, kind: Hashable) -> Window:
        """Return the window of what calls of one function have in common."""
        found = self._by_kind.get(kind)
        if found is None:
            if len(self._by_kind) >= _MAX_KINDS:  # a program that makes functions without end
                self._by_kind = {k: w for k, w in self._by_kind.items() if w.in_flight}
            found = self._by_kind[kind] = Window(self._slots, self._is_strict)
        return found

    def begin(self, window: Window) -> None:
        """Take note that a call is being handed over; the first one also takes a `restart`."""
        window.in_flight += 1
        self.load += window.weight

    def end(self, window: Window, now: float) -> None:
        """Take note that a call has ended."""
        weight = window.weight
        window.in_flight -= 1
        self.load -= weight
        window.ended(now)
        if window.weight != weight:
            self.load += window.in_flight * (window.weight - weight)


def kind_of(fn: Callable[..., Any]) -> Hashable:
    """Return what the function's calls have in common, however often it is made anew.

    Lambdas of one line of the program are of one kind, as are methods of many objects.
    """
    while isinstance(fn, functools.partial | types.MethodType):
        fn = fn.func if isinstance(fn, functools.partial) else fn.__func__
    if isinstance(fn, types.FunctionType):
        return fn.__code__
    return fn.__qualname__ if isinstance(fn, types.BuiltinFunctionType) else id(type(fn))
