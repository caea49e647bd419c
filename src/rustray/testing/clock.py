"""Virtual time: one heap of timed calls, and an event loop for each simulated process."""

from __future__ import annotations

import asyncio
import heapq
import inspect
import weakref
from collections.abc import Callable, Coroutine
from contextvars import Context
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    _Loop = Any  # typeshed wants all of a loop's methods, and asyncio those that are used
else:
    _Loop = asyncio.AbstractEventLoop

T = TypeVar("T")

START_S = 1000.0
"""Virtual time at the start of a simulation."""
WALL_OFFSET_S = 1_893_456_000.0 - START_S
"""What all wall clocks show more than that: a simulation begins with the year 2030."""


class Timer:
    """A call arranged for a time; stands for asyncio's handles."""

    __slots__ = ("_args", "_call", "_context", "_is_cancelled", "_when", "loop")

    def __init__(
        self,
        loop: ProcessLoop,
        when: float,
        call: Callable[..., object],
        args: tuple[Any, ...],
        context: Context | None = None,
    ) -> None:
        self.loop = loop
        self._when = when
        self._call = call
        self._args = args
        self._context = context
        self._is_cancelled = False

    def cancel(self) -> None:
        """Do not make the call."""
        self._is_cancelled = True

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._is_cancelled

    def when(self) -> float:
        """Return the virtual time of the call."""
        return self._when

    def fire(self) -> None:
        """Make the call, unless it was cancelled."""
        if self._is_cancelled:
            return
        if self._context is not None:
            self._context.run(self._call, *self._args)
        else:
            self._call(*self._args)


class VirtualClock:
    """The time of a simulation, and all that is arranged to happen in it.

    Attributes:
        now: Virtual seconds.
        trouble: Errors that nobody could raise; the next step raises the first.
    """

    def __init__(self) -> None:
        self.now = START_S
        self.trouble: list[BaseException] = []
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = count()

    def push(self, when: float, timer: Timer) -> None:
        """Arrange a call; what is due at one time happens in the order of its arrangement."""
        heapq.heappush(self._heap, (max(when, self.now), next(self._order), timer))

    def step(self, limit: float) -> bool:
        """Make the next call that is due by ``limit``; False and ``now = limit`` if none is."""
        if not self._heap or self._heap[0][0] > limit:
            self.now = max(self.now, limit)
            return False
        self.now, _, timer = heapq.heappop(self._heap)
        timer.loop.run(timer)
        if self.trouble:
            raise self.trouble.pop(0)
        return True


class ProcessLoop(_Loop):  # type: ignore[misc]
    """The event loop of one simulated process: it can be frozen, and it dies with it.

    Attributes:
        clock: The simulation's.
    """

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self._deferred: list[Timer] = []
        self._tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self.is_dead = False
        self.is_paused = False

    # -- the process -----------------------------------------------------------------------

    def run(self, timer: Timer) -> None:
        """Make a call that is due: now, or when the process goes on; never if it is dead."""
        if self.is_dead:
            return
        if self.is_paused:
            self._deferred.append(timer)
        else:
            timer.fire()

    def deliver(self, call: Callable[..., object], *args: Any) -> None:
        """Make a call that comes from outside, e.g. for a message."""
        self.run(Timer(self, self.clock.now, call, args))

    def pause(self) -> None:
        """Freeze, as SIGSTOP does: nothing happens, and what comes waits."""
        self.is_paused = True

    def resume(self) -> None:
        """Go on: all that was due meanwhile happens now, in its order."""
        self.is_paused = False
        deferred, self._deferred = self._deferred, []
        for timer in deferred:
            self.clock.push(self.clock.now, timer)

    def kill(self) -> None:
        """End: nothing that was arranged happens any more."""
        self.is_dead = True
        self._deferred.clear()
        for task in self._tasks:
            coroutine = task.get_coro()
            if (
                inspect.iscoroutine(coroutine)
                and inspect.getcoroutinestate(coroutine) == "CORO_CREATED"
            ):
                coroutine.close()  # it never began, and Python would complain of that

    # -- what asyncio wants of a loop ------------------------------------------------------

    def time(self) -> float:
        """Return virtual seconds."""
        return self.clock.now

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> Timer:
        """Arrange a call."""
        timer = Timer(self, when, callback, args, context)
        self.clock.push(when, timer)
        return timer

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> Timer:
        """Arrange a call after a delay."""
        return self.call_at(self.clock.now + delay, callback, *args, context=context)

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Timer:
        """Arrange a call now, after this one."""
        return self.call_at(self.clock.now, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, T] | Any, **options: Any) -> asyncio.Task[T]:
        """Run a coroutine on this loop."""
        task: asyncio.Task[T] = asyncio.Task(coro, loop=self, **options)
        self._tasks.add(task)
        if self.is_dead:
            self.kill()
        return task

    def run_in_executor(self, *args: Any) -> Any:
        """Refuse: a thread would live in real time.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "threads do not run in virtual time: in a simulation call the function itself, or "
            "wait with asyncio.sleep()"
        )

    def is_running(self) -> bool:
        """Whether calls are made still."""
        return not self.is_dead

    def is_closed(self) -> bool:
        """Whether no call will be made any more."""
        return self.is_dead

    def get_debug(self) -> bool:
        """Say no: asyncio's debug mode looks at the wall clock."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Note an error that nobody waits for: in rustray's own code it is a bug."""
        error = context.get("exception")
        if isinstance(error, BaseException) and not self.is_dead:
            self.clock.trouble.append(error)
