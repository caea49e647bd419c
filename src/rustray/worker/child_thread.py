"""An executor that runs tasks in threads, for functions that wait for I/O."""

from __future__ import annotations

import ctypes
import sys
import threading
from types import CoroutineType
from typing import Any

from rustray.worker import wire
from rustray.worker.callee import Callee
from rustray.worker.child_base import (
    CALL,
    DECODE,
    ENCODE,
    describe_failure,
    is_importing,
    own_frame,
)
from rustray.worker.child_shared import Entry, Key, Outcome, SharedRunner, cancelled_outcome
from rustray.worker.context import TaskInterrupt, shared_task

_RECEIVE_BYTES = 256 * 1024


class _Slot:
    """A thread that runs a task: may it be hit, was it hit."""

    __slots__ = ("driver", "is_armed", "is_hit", "thread_id")

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.thread_id = threading.get_ident()
        self.is_armed = False
        self.is_hit = False


def _throw_into(thread_id: int, exception: type[BaseException] | None) -> None:
    """Have a thread raise at its next bytecode; None takes back what it has not raised yet."""
    target = None if exception is None else ctypes.py_object(exception)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), target)


class ThreadRunner(SharedRunner):
    """Up to ``concurrency`` threads, started when they are needed."""

    _threads = 0
    _idle = 0
    _is_closing = False

    def run(self) -> None:
        """Run what arrives until the agent closes the data channel."""
        self._changed = threading.Condition(self.lock)
        self._local = threading.local()
        self._postponed: set[Key] = set()
        self.start_control()
        buffer = memoryview(bytearray(_RECEIVE_BYTES))
        splitter = wire.MessageSplitter()
        while count := self.data.recv_into(buffer):
            self.accept(splitter.feed(bytes(buffer[:count])))
            self._wake_threads()
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            while self.active or self.backlog:
                self._changed.wait()

    def _wake_threads(self) -> None:
        with self._changed:
            places = self.concurrency + self.nest.waiting
            wanted = min(len(self.backlog) - self._idle, places - self._threads)
            for _ in range(wanted):
                self._threads += 1
                number = self._threads
                threading.Thread(
                    target=self._serve, name=f"rustray-task-{number}", daemon=True
                ).start()
            self._changed.notify(len(self.backlog))

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                while not self.backlog:
                    if self._is_closing:
                        return
                    self._changed.wait()
                self._idle -= 1
                entry = self.backlog.popleft()
                slot = _Slot(self._driver())
                self.begin(entry, slot)
            self._execute(entry, slot)
            del entry, slot

    def _execute(self, entry: Entry, slot: _Slot) -> None:
        token = shared_task.set((entry.chunk, entry.index))
        outcome: Outcome | None = None
        try:
            outcome = self._attempt(entry, slot)
            with self.lock:
                slot.is_armed = False
            if slot.is_hit:
                _throw_into(slot.thread_id, None)
        except TaskInterrupt:  # hit between two statements of ours; never twice
            with self.lock:
                slot.is_armed = False
        if self.nest.seats:
            self.nest.leave(entry.key, waits=outcome is not None)
        shared_task.reset(token)
        self.queue_report(entry, outcome or cancelled_outcome(entry))
        self.finish(entry)
        self.flush()
        if self._is_closing:
            with self._changed:
                self._changed.notify_all()

    @own_frame
    def _attempt(self, entry: Entry, slot: _Slot) -> Outcome:
        callee: Callee = entry.callee
        stage, value = DECODE, None
        try:
            if not callee.is_ready:
                callee.resolve()
            with self.lock:
                slot.is_armed = True
                self.check_cancelled(entry)
            args, kwargs = callee.decode(entry.payload)
            stage = CALL
            value = callee.call(*args, **kwargs)
            if type(value) is CoroutineType:
                value = slot.driver.run(value, lambda: entry.key in self.cancelled)
            stage = ENCODE
            return self.succeed(entry, value)
        except BaseException as exc:
            return describe_failure(exc, stage, callee, value)

    def _driver(self) -> Any:
        """Return this thread's runner of coroutines; its event loop is made when needed."""
        driver = getattr(self._local, "driver", None)
        if driver is None:
            from rustray.worker.child_async import CoroutineDriver

            driver = self._local.driver = CoroutineDriver()
        return driver

    def stop_active(self, key: Key) -> None:
        """See `SharedRunner.stop_active`."""
        slot: _Slot = self.active[key]
        if not slot.is_armed or slot.is_hit:
            return
        if slot.driver.cancel():
            slot.is_hit = True
        elif is_importing(sys._current_frames().get(slot.thread_id)):
            self._postponed.add(key)
        else:
            slot.is_hit = True
            _throw_into(slot.thread_id, TaskInterrupt)

    def is_interrupt_pending(self) -> bool:
        """See `Runner.is_interrupt_pending`."""
        return bool(self._postponed)

    def repeat_interrupt(self) -> None:
        """See `Runner.repeat_interrupt`."""
        with self.lock:
            keys, self._postponed = self._postponed, set()
            for key in keys:
                if key in self.active:
                    self.stop_active(key)
