"""Simulated executors: they call the user's functions, in virtual time."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Protocol

from rustray.common.errors import InvariantError
from rustray.task import relay
from rustray.task.codec import decode_call, encode_value, value_decoder
from rustray.task.columns import PayloadColumn, SharedColumn
from rustray.task.failures import encode_failure, failure_from_exception, lacked
from rustray.task.frames import LeaseOutcome, LeaseRange
from rustray.task.functions import FunctionInfo
from rustray.task.inputs import WHOLE, Call, InputLost, InputValue, Load, filling, join_call
from rustray.task.result import FailureInfo
from rustray.task.spec import Codec, ExecutorKind, TaskClass
from rustray.task.state import TaskState
from rustray.task.streams import LeaseItems
from rustray.testing.clock import ProcessLoop, Timer, VirtualClock
from rustray.testing.history import History, Run
from rustray.testing.host import SimHost
from rustray.testing.streaming import SimStream
from rustray.testing.task_loop import TaskLoop
from rustray.testing.values import SimSegment, resolved
from rustray.worker.context import shared_task
from rustray.worker.events import (
    DropPackage,
    ExecutorExited,
    ExecutorReady,
    ExecutorReported,
    ExecutorReturned,
    ExecutorYielded,
    KeepPackage,
    Setting,
    TaskBlocked,
    TaskWoke,
)
from rustray.worker.window import Window
from rustray.worker.wire import NO_SETUP, Chunk, RunChunk, Setup

SPAWN_S = 0.005
CANCELLED = encode_failure(FailureInfo("TASK_CANCELLED", "the task was cancelled"))


class ExecutorCrash(BaseException):
    """Raise it in a simulated task: the task kills its executor process, as a segfault does."""

    def __init__(self, signum: int = 11) -> None:
        super().__init__(f"the task kills its executor with signal {signum}")
        self.signum = signum


class Functions(Protocol):
    """What executors need of the cluster."""

    history: History
    host: SimHost
    stay_bytes: int

    def function_of(self, code: bytes) -> Callable[..., Any]:
        """Return the function behind a class's code."""

    def waits(self, number: int) -> bool:
        """Whether this task waits, half-way, for tasks of its own."""


class Execution:
    """One task that runs."""

    def __init__(self, chunk: Chunk, index: int, run: Run) -> None:
        self.chunk, self.index, self.run = chunk, index, run
        self.since = run.started_at_s
        self.loop: TaskLoop | None = None
        self.task: asyncio.Task[Any] | None = None
        self.stream: SimStream | None = None

    @property
    def key(self) -> tuple[int, int]:
        """Return (lease, offset)."""
        return self.chunk.lease, self.chunk.offset + self.index


class SimExecutor:
    """An executor process: runs what it is given, one after the other or several at once."""

    def __init__(self, pool: SimPool, executor_id: int, concurrency: int) -> None:
        self.executor_id = executor_id
        self.is_gone = False
        self.setup = NO_SETUP
        self.classes: dict[int, tuple[TaskClass, Callable[..., Any]]] = {}
        self._pool = pool
        self._concurrency = concurrency
        self._queue: deque[tuple[Chunk, int, bytes]] = deque()
        self._running: dict[tuple[int, int], Execution] = {}
        self._blocked: dict[tuple[int, int], Callable[[], None]] = {}
        self._last: tuple[int, int, PayloadColumn] | None = None
        # What a killed process leaves behind is kept: no ``finally`` of it may run.
        self._frozen: list[Execution] = []

    @property
    def is_busy(self) -> bool:
        """Whether it runs a task."""
        return bool(self._running) and not self.is_gone

    def give(self, chunk: RunChunk) -> None:
        """Take tasks."""
        seen = self._pool.functions.host.chunk_of(chunk)
        seen.setup = self.setup
        self._queue.extend((seen, index, item) for index, item in enumerate(chunk.payloads))
        self._run_next()

    def _run_next(self) -> None:
        while self._queue and not self.is_gone and len(self._running) < self._concurrency:
            self._begin(*self._queue.popleft())

    def _begin(self, chunk: Chunk, index: int, payload: bytes) -> None:
        pool = self._pool
        number = chunk.first + index
        history = pool.functions.history
        task_class, function = self.classes[chunk.class_number]
        if chunk.follows[0]:
            last = self._last
            if last is None or last[:2] != chunk.follows:
                ranges = [LeaseRange(chunk.lease, chunk.offset, 1)]
                pool.loop.call_soon(self._tell_unrun, ranges)
                return
            payload = join_call(payload, [InputValue(int(task_class.codec), last[2], WHOLE)])
        if task_class.has_inputs:
            try:
                payload = resolved(payload, pool.load)
            except InputLost as lost:
                self._lack(chunk, index, lost, task_class.function)
                return
        one = Execution(chunk, index, history.started(number, pool.worker, chunk.attempt, payload))
        self._running[one.key] = one
        context = contextvars.copy_context()
        context.run(shared_task.set, (chunk, index))
        try:
            args, kwargs = _decoder_of(task_class)(payload)
            value = context.run(function, *args, **kwargs)
        except ExecutorCrash as crash:
            self.exit(crash.signum, one.key)
            return
        except Exception as error:
            self._end_later(one, error, None)
            return
        if task_class.stream_window:
            value = self._begin_stream(one, task_class, value)
        if value is None and one.stream is not None:
            return
        if inspect.iscoroutine(value):
            one.loop = TaskLoop(pool.clock, pool.loop)
            one.task = one.loop.start(value, context)
            one.task.add_done_callback(lambda task: self._awaited(one, task))
        else:
            self._end_later(one, None, value)

    def _lack(self, chunk: Chunk, index: int, lost: InputLost, function: str) -> None:
        """Report a task that could not have what it takes: it has not begun."""
        pool, number = self._pool, chunk.first + index
        pool.functions.history.note("lacks", pool.worker, number, lost.object_id)
        column = PayloadColumn.of([encode_failure(lacked(function, lost))])
        outcome = LeaseOutcome(chunk.lease, chunk.offset + index, TaskState.LEASED, column, 0)
        pool.loop.call_soon(pool.tell, ExecutorReported(self.executor_id, [outcome]))

    def _tell_unrun(self, ranges: list[LeaseRange]) -> None:
        if not self.is_gone:
            self._pool.tell(ExecutorReturned(self.executor_id, ranges, is_asked=False))

    def _begin_stream(self, one: Execution, task_class: TaskClass, value: Any) -> Any:
        """Begin to iterate over what a function returned; returns what is to be awaited, or None.

        ``takes_s`` is the time of each item of a plain generator.
        """
        pool, number = self._pool, one.chunk.first + one.index
        history = pool.functions.history
        window = Window(task_class.stream_window, one.chunk.have, one.chunk.consumed)

        def emit(index: int, item: Any) -> int:
            payload = encode_value(task_class.codec, item, "item")
            if not self.is_gone and self._running.get(one.key) is one:
                history.yielded(number, one.run, index, payload)
                items = LeaseItems(*one.key, index, PayloadColumn.of([payload]))
                pool.loop.call_soon(self._tell_items, items)
            return len(payload)

        one.stream = stream = SimStream(window, emit)
        if isinstance(value, AsyncIterator):
            return stream.drain(value)
        takes_s = history.tasks[number].takes_s or 0.0

        def later(step: Callable[[], None]) -> None:
            pool.loop.call_later(takes_s, self._step, one, step)

        def end(error: Exception | None, count: int) -> None:
            pool.loop.call_soon(self._end, one, error, count)

        later(lambda: stream.step(iter(value), later, end))
        return None

    def _step(self, one: Execution, step: Callable[[], None]) -> None:
        if not self.is_gone and self._running.get(one.key) is one:
            step()

    def _tell_items(self, items: LeaseItems) -> None:
        if not self.is_gone:
            self._pool.tell(ExecutorYielded(self.executor_id, [items]))

    def credit(self, lease: int, offset: int, consumed: int) -> None:
        """Tell a generator how many of its items are consumed."""
        one = self._running.get((lease, offset))
        if one is not None and one.stream is not None and not self.is_gone:
            one.stream.credit(consumed)

    def _end_later(self, one: Execution, error: Exception | None, value: Any) -> None:
        number, pool = one.chunk.first + one.index, self._pool
        takes_s = pool.functions.history.tasks[number].takes_s or 0.0
        if not pool.functions.waits(number):
            pool.loop.call_later(takes_s, self._end, one, error, value)
            return
        # It gives back its core for half of the time, and ends as soon as it has it again.
        self._blocked[one.key] = partial(self._end, one, error, value)
        pool.loop.call_soon(pool.tell, TaskBlocked(self.executor_id, *one.key))
        pool.loop.call_later(takes_s, self._wake, one)

    def _wake(self, one: Execution) -> None:
        if not self.is_gone and self._running.get(one.key) is one:
            self._pool.tell(TaskWoke(self.executor_id, *one.key))

    def _awaited(self, one: Execution, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self._stopped(one)
            return
        error = task.exception()
        if isinstance(error, ExecutorCrash):
            self.exit(error.signum, one.key)
        elif error is None or isinstance(error, Exception):
            self._end(one, error, None if error else task.result())

    def _end(self, one: Execution, error: Exception | None, value: Any) -> None:
        if self.is_gone or self._running.get(one.key) is not one:
            return
        codec = self.classes[one.chunk.class_number][0].codec
        number = one.chunk.first + one.index
        history = self._pool.functions.history
        if error is None:
            try:
                payload = encode_value(codec, value, "result")
                history.tasks[number].produced.add(payload)
            except Exception as unencodable:
                error = unencodable
        if error is not None:
            payload = encode_failure(failure_from_exception(error, codec, skip_frames=1))
        history.stopped(number, one.run, "returned" if error is None else "raised")
        state = TaskState.SUCCEEDED if error is None else TaskState.FAILED
        self._report(one, state, payload)

    def _stop(self, one: Execution) -> None:
        if one.task is not None:
            one.task.cancel()
        else:
            self._stopped(one)

    def _stopped(self, one: Execution) -> None:
        if self.is_gone or self._running.get(one.key) is not one:
            return
        self._pool.functions.history.stopped(one.chunk.first + one.index, one.run, "stopped")
        self._report(one, TaskState.CANCELLED, CANCELLED)

    def _report(self, one: Execution, state: TaskState, payload: bytes) -> None:
        del self._running[one.key]
        run_us = int((self._pool.functions.history.now - one.since) * 1e6)
        column = PayloadColumn.of([payload])
        self._last = (*one.key, column) if state is TaskState.SUCCEEDED else None
        if state is TaskState.SUCCEEDED and len(payload) >= self._pool.functions.stay_bytes:
            column = SharedColumn(memoryview(payload), SimSegment(payload))
            self._last = None
        self._run_next()
        outcome = LeaseOutcome(*one.key, state, column, run_us)
        self._pool.tell(ExecutorReported(self.executor_id, [outcome]))

    def interrupt(self, lease: int, offset: int, is_notice: bool) -> None:
        """Stop a task, unless it is told first and looks by itself."""
        one = self._running.get((lease, offset))
        if one is not None:
            looks = self._pool.functions.host.cancel(one.chunk, one.index)
            if not (is_notice and looks):
                self._pool.loop.call_soon(self._stop, one)
            return
        for item in self._queue:
            if (item[0].lease, item[0].offset + item[1]) == (lease, offset):
                self._queue.remove(item)
                outcome = LeaseOutcome(
                    lease, offset, TaskState.CANCELLED, PayloadColumn.of([CANCELLED]), 0
                )
                report = ExecutorReported(self.executor_id, [outcome])
                self._pool.loop.call_soon(self._pool.tell, report)
                return

    def resume(self, lease: int, offset: int) -> None:
        """Let a task go on that has waited."""
        end = self._blocked.pop((lease, offset), None)
        if end is not None:
            end()

    def reclaim(self) -> None:
        """Give back what has not begun."""
        if not self.is_gone:
            ranges = [LeaseRange(c.lease, c.offset + index, 1) for c, index, _ in self._queue]
            self._queue.clear()
            self._pool.tell(ExecutorReturned(self.executor_id, ranges))

    def die(self) -> None:
        """End without a word; its worker is gone too, or tells of it itself."""
        self.freeze()
        for one in self._running.values():
            self._pool.functions.history.stopped(one.chunk.first + one.index, one.run, "lost")

    def freeze(self) -> None:
        """Let nothing of it happen any more."""
        self.is_gone = True
        for one in self._running.values():
            if one.loop is not None:
                one.loop.kill()
        self._frozen.extend(self._running.values())

    def exit(self, signum: int, running: tuple[int, int] | None = None) -> None:
        """Die of a signal; the worker notices."""
        if self.is_gone:
            return
        key = running or next(iter(self._running), None)
        self.die()
        event = ExecutorExited(self.executor_id, None, signum, key, "")
        self._pool.loop.call_soon(self._pool.tell, event)


class SimPool:
    """The executors of one worker (`rustray.worker.driver.Pool`)."""

    def __init__(
        self,
        worker: str,
        clock: VirtualClock,
        loop: ProcessLoop,
        functions: Functions,
        tell: Callable[[Any], None],
        load: Load,
    ) -> None:
        self.worker, self.clock, self.loop = worker, clock, loop
        self.functions = functions
        self.tell, self.load = tell, load
        self.executors: dict[int, SimExecutor] = {}
        self._guards: dict[int, Timer] = {}

    async def start(self) -> tuple[FunctionInfo, ...]:
        """See `Pool`."""
        return ()

    def spawn(self, executor_id: int, kind: ExecutorKind, concurrency: int) -> None:
        """See `Pool`."""
        count = 1 if kind is ExecutorKind.PROCESS else concurrency
        self.executors[executor_id] = SimExecutor(self, executor_id, count)
        self.loop.call_later(SPAWN_S, self._ready, executor_id)

    def _ready(self, executor_id: int) -> None:
        if not self.executors[executor_id].is_gone:
            self.tell(ExecutorReady(executor_id, executor_id))

    def define(
        self, executor_id: int, class_number: int, task_class: TaskClass, code: bytes
    ) -> None:
        """See `Pool`."""
        function = self.functions.function_of(code)
        self._at(executor_id).classes[class_number] = (task_class, function)

    def prepare(self, executor_id: int, setting: Setting) -> None:
        """See `Pool`."""
        setup = Setup(gpu_ids=setting.gpu_ids or (), alternative=setting.alternative)
        self.loop.call_soon(setattr, self._at(executor_id), "setup", setup)

    @property
    def packages(self) -> SimPool:
        """See `Pool`."""
        return self

    def take(self, command: KeepPackage | DropPackage) -> None:
        """See `Packages`; what is simulated has no files."""

    def run(self, executor_id: int, chunk: RunChunk) -> None:
        """See `Pool`."""
        # Later: an executor is another process, and never answers from within a command.
        self.loop.call_soon(self._at(executor_id).give, chunk)

    def reclaim(self, executor_id: int) -> None:
        """See `Pool`."""
        self.loop.call_later(0.0005, self._at(executor_id).reclaim)

    def interrupt(
        self, executor_id: int, lease: int, offset: int, *, is_notice: bool = False
    ) -> None:
        """See `Pool`."""
        self.loop.call_soon(self._at(executor_id).interrupt, lease, offset, is_notice)

    def credit(self, executor_id: int, lease: int, offset: int, consumed: int) -> None:
        """See `Pool`."""
        self.loop.call_soon(self._at(executor_id).credit, lease, offset, consumed)

    def kill(self, executor_id: int, signum: int) -> None:
        """See `Pool`."""
        self._at(executor_id).exit(signum)

    def relay(self, executor_id: int, kind: int, channel: int, body: bytes) -> None:
        """See `Pool`; simulated tasks hand in none, and are told only that they may go on."""
        if kind == relay.RESUME:
            self.loop.call_soon(self._at(executor_id).resume, *relay.unpack_task(body))

    def guard(self, executor_id: int, until: float) -> None:
        """See `Pool`."""
        guard = self._guards.pop(executor_id, None)
        if guard is not None:
            guard.cancel()
        if until < float("inf"):
            exit_ = self._at(executor_id).exit
            self._guards[executor_id] = self.loop.call_at(until, exit_, signal.SIGKILL)

    async def close(self, grace_s: float = 2.0) -> None:
        """See `Pool`."""
        self.die()

    def end(self) -> None:
        """The simulation is over."""
        for executor in self.executors.values():
            executor.freeze()

    def die(self) -> None:
        """All of them end without a word."""
        for executor in self.executors.values():
            if not executor.is_gone:
                executor.die()

    def _at(self, executor_id: int) -> SimExecutor:
        executor = self.executors.get(executor_id)
        if executor is None:
            raise InvariantError(f"executor {executor_id} was never started")
        return executor


def _decoder_of(task_class: TaskClass) -> Callable[[bytes], Call]:
    decode = partial(decode_call, task_class.codec)
    if not task_class.has_inputs:
        return decode
    return filling(decode, lambda codec: value_decoder(Codec(codec)))
