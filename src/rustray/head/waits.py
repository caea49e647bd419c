"""Unary calls that wait for a task to end."""

from __future__ import annotations

import asyncio

from rustray.scheduler.commands import DeliverOutcome
from rustray.scheduler.stream_commands import DeliverItems


class ResultWaiters:
    """Futures of calls that wait, by task; costs nothing where nobody waits."""

    def __init__(self) -> None:
        self._by_prefix: dict[bytes, dict[int, list[asyncio.Future[None]]]] = {}

    def on_outcome(self, command: DeliverOutcome) -> None:
        """Wake whoever waits for one of these tasks."""
        waiting = self._by_prefix.get(command.prefix)
        if not waiting:
            return
        first = command.outcome.first
        count = len(command.outcome.payloads)
        if len(waiting) < count:
            ended = [number for number in waiting if first <= number < first + count]
        else:
            ended = [number for number in range(first, first + count) if number in waiting]
        for number in ended:
            for future in waiting[number]:
                if not future.done():
                    future.set_result(None)

    def on_items(self, command: DeliverItems) -> None:
        """Wake whoever waits for this stream."""
        waiting = self._by_prefix.get(command.prefix)
        for future in waiting.get(command.sequence, ()) if waiting else ():
            if not future.done():
                future.set_result(None)

    async def wait(self, prefix: bytes, sequence: int, timeout_s: float) -> None:
        """Wait until the task has ended, or yielded something, or the time is up."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._by_prefix.setdefault(prefix, {})
        waiting.setdefault(sequence, []).append(future)
        try:
            await asyncio.wait((future,), timeout=timeout_s)
        finally:
            mine = waiting[sequence]
            mine.remove(future)
            if not mine:
                del waiting[sequence]
            if not waiting:
                self._by_prefix.pop(prefix, None)
