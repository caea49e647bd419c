"""Coroutines in executors: many at once on one event loop, or one at a time elsewhere."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import socket
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import CoroutineType
from typing import Any

from rustray.worker import wire
from rustray.worker.callee import Callee
from rustray.worker.child_base import CALL, DECODE, ENCODE, describe_failure, own_frame
from rustray.worker.child_shared import Entry, Key, Outcome, SharedRunner
from rustray.worker.context import TaskInterrupt, shared_task

MAX_THREADS = 100_000
"""No more than there are tasks, and the agent bounds these; those that wait for others hold one."""
_RECEIVE_BYTES = 256 * 1024


class CoroutineDriver:
    """Runs one coroutine at a time to its end, on one event loop that is kept."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    @own_frame
    def run(self, coroutine: Coroutine[Any, Any, Any], is_cancelled: Callable[[], bool]) -> Any:
        """Return what the coroutine returns, raise what it raises.

        Raises:
            TaskInterrupt: it ended by the cancellation that `is_cancelled` confirms.
        """
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(_caught(coroutine))
        try:
            value, exc = self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            value, exc = None, TaskInterrupt()  # cancelled before its first step
        finally:
            self._task = None
        if exc is None:
            return value
        if isinstance(exc, asyncio.CancelledError) and is_cancelled():
            raise TaskInterrupt from None
        raise exc

    def cancel(self) -> bool:
        """Cancel the coroutine that runs, from any thread or signal handler; False if none does."""
        loop, task = self._loop, self._task
        if loop is None or task is None:
            return False
        loop.call_soon_threadsafe(task.cancel)
        return True


@own_frame
async def _caught(coroutine: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None]:
    """Await; SystemExit and its like must not leave through the event loop."""
    try:
        return await coroutine, None
    except BaseException as exc:
        return None, exc


class AsyncRunner(SharedRunner):
    """Runs up to ``concurrency`` coroutines on one event loop; plain functions in threads."""

    _is_closing = False
    _is_flush_due = False
    _pool: ThreadPoolExecutor | None = None

    def run(self) -> None:
        """Run what arrives until the agent closes the data channel."""
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._buffer = memoryview(bytearray(_RECEIVE_BYTES))
        self._splitter = wire.MessageSplitter()
        self._tasks: set[asyncio.Task[None]] = set()
        self.start_control()
        self._loop.add_reader(self.data, self._on_readable)
        self._loop.run_forever()

    def _on_readable(self) -> None:
        try:
            # The socket stays blocking: writes to it may wait, for the agent always reads.
            count = self.data.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if count:
            self.accept(self._splitter.feed(bytes(self._buffer[:count])))
        else:
            self._loop.remove_reader(self.data)
            self._is_closing = True
        self._start_tasks()

    def _start_tasks(self) -> None:
        while len(self.active) < self.concurrency + self.nest.waiting:
            with self.lock:
                if not self.backlog:
                    break
                entry = self.backlog.popleft()
                self.begin(entry, None)
            task = self._loop.create_task(self._execute(entry))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._is_closing and not self.active:
            self.flush()
            self._loop.stop()

    async def _execute(self, entry: Entry) -> None:
        # Only from here on may the task be cancelled: before its first step it would vanish.
        self.active[entry.key] = asyncio.current_task()
        shared_task.set((entry.chunk, entry.index))
        outcome = await self._attempt(entry)
        if self.nest.seats:
            self.active[entry.key] = None  # the report is not to be cancelled
            leave = functools.partial(self.nest.leave, entry.key, waits=True)
            await self._loop.run_in_executor(None, leave)
        self.queue_report(entry, outcome)
        self.finish(entry)
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        """Send what this round of the loop finished, then fill the free places."""
        self._is_flush_due = False
        self.flush()
        self._start_tasks()

    @own_frame
    async def _attempt(self, entry: Entry) -> Outcome:
        callee = entry.callee
        stage, value = DECODE, None
        try:
            self.check_cancelled(entry)
            if not callee.is_ready:
                callee.resolve()
            if callee.must_fetch(entry.payload):  # the other coroutines go on meanwhile
                call, exc = await self._in_thread(functools.partial(callee.decode, entry.payload))
                if exc is not None:
                    raise exc
                args, kwargs = call
            else:
                args, kwargs = callee.decode(entry.payload)
            stage = CALL
            if _is_coroutine_function(callee):
                value = await callee.call(*args, **kwargs)
            else:
                call = functools.partial(callee.call, *args, **kwargs)
                value, exc = await self._in_thread(call)
                if exc is not None:
                    raise exc
                if type(value) is CoroutineType:
                    value = await value
            stage = ENCODE
            return self.succeed(entry, value)
        except BaseException as raised:
            if isinstance(raised, asyncio.CancelledError) and entry.key in self.cancelled:
                raised = TaskInterrupt()
            return describe_failure(raised, stage, callee, value)

    async def _in_thread(self, call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
        """Run a plain function where it does not hold up the coroutines."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(MAX_THREADS, "rustray-task")
        run = contextvars.copy_context().run
        return await self._loop.run_in_executor(self._pool, run, _caught_call, call)

    def reclaim(self, upto: int) -> tuple[int, int]:
        """See `Runner.reclaim`; a loop that a coroutine holds up does not answer."""
        turned = threading.Event()
        self._loop.call_soon_threadsafe(turned.set)
        turned.wait()
        return super().reclaim(upto)

    def stop_active(self, key: Key) -> None:
        """See `SharedRunner.stop_active`."""
        self._loop.call_soon_threadsafe(self._cancel, key)

    def _cancel(self, key: Key) -> None:
        task = self.active.get(key)
        if task is not None:
            task.cancel()


@own_frame
def _caught_call(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Call; StopIteration and SystemExit cannot pass through a future."""
    try:
        return call(), None
    except BaseException as exc:
        return None, exc


def _is_coroutine_function(callee: Callee) -> bool:
    call = callee.call
    if inspect.iscoroutinefunction(call):
        return True
    # The class form wraps its class; what it runs is the class's `execute`.
    wrapped = getattr(call, "_cls", None)
    return inspect.iscoroutinefunction(getattr(wrapped, "execute", None))
