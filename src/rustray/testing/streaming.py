"""Simulated generators: the real window, in virtual time."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from rustray.worker.window import Window

Emit = Callable[[int, Any], int]
"""Takes an item's index and its value; returns how many bytes it has, encoded."""


class SimStream:
    """One generator that runs.

    Args:
        window: Of the attempt.
        emit: Where new items go.
    """

    def __init__(self, window: Window, emit: Emit) -> None:
        self.window = window
        self._emit = emit
        self._go_on: Callable[[], None] | None = None

    def credit(self, consumed: int) -> None:
        """So many items are consumed."""
        self.window.consumed = max(self.window.consumed, consumed)
        if not self.window.is_full and self._go_on is not None:
            go_on, self._go_on = self._go_on, None
            go_on()

    def take(self, value: Any) -> None:
        """Take the next item."""
        window = self.window
        window.count(0 if window.is_known else self._emit(window.index, value))

    def step(
        self,
        items: Iterator[Any],
        later: Callable[[Callable[[], None]], None],
        end: Callable[[Exception | None, int], None],
    ) -> None:
        """Take one item of a plain generator, and arrange the next step.

        Args:
            items: The generator.
            later: Calls after the time that an item takes.
            end: Takes what it raised, or None, and how many items there were.
        """

        def again() -> None:
            self.step(items, later, end)

        try:
            value = next(items)
        except StopIteration:
            end(None, self.window.index)
            return
        except Exception as error:
            end(error, self.window.index)
            return
        self.take(value)
        if self.window.is_full:
            self._go_on = lambda: later(again)
        else:
            later(again)

    async def drain(self, items: AsyncIterator[Any]) -> int:
        """Take all items of an async generator; returns how many there were."""
        async for value in items:
            self.take(value)
            if self.window.is_full:
                opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._go_on = functools.partial(_open, opened)
                await opened
        return self.window.index


def _open(opened: asyncio.Future[None]) -> None:
    if not opened.done():
        opened.set_result(None)
