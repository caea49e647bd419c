"""The event loop of simulated coroutines."""

from __future__ import annotations

import asyncio
import contextvars
from asyncio.events import _get_running_loop, _set_running_loop
from collections.abc import Callable, Coroutine
from typing import Any

from rustray.testing.clock import ProcessLoop, Timer, VirtualClock


class TaskLoop(ProcessLoop):
    """The event loop that an ``async def`` task finds: asyncio's waits take virtual time.

    It shares the fate of its worker: what the worker's loop does not do, it does not do either.
    """

    def __init__(self, clock: VirtualClock, worker: ProcessLoop) -> None:
        super().__init__(clock)
        self._worker = worker
        self._first: list[Timer] | None = None

    def start(
        self, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context
    ) -> asyncio.Task[Any]:
        """Run a coroutine, up to its first wait at once."""
        first: list[Timer] = []
        self._first = first
        task: asyncio.Task[Any] = self.create_task(coroutine, context=context)
        self._first = None
        for timer in first:
            self._step(timer)
        return task

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Timer:
        """See `ProcessLoop.call_at`."""
        if self._first is None:
            return super().call_at(when, callback, *args, context=context)
        timer = Timer(self, when, callback, args, context)
        self._first.append(timer)
        return timer

    def run(self, timer: Timer) -> None:
        """See `ProcessLoop.run`."""
        if not self.is_dead:
            self._worker.deliver(self._step, timer)

    def _step(self, timer: Timer) -> None:
        if self.is_dead:
            return
        before = _get_running_loop()
        _set_running_loop(self)
        try:
            timer.fire()
        finally:
            _set_running_loop(before)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What user code leaves behind is no concern of the simulation."""
