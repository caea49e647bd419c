"""An executor process: the only place where user code runs.

The zygote forks it; `main` never returns. This module has the runner for one task at a time,
which is also the hot path: what its loop does per task is what a no-op task costs.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import CoroutineType, FrameType
from typing import Any, Final

from rustray.objects.recycling import EXECUTOR_BUDGET, POOL
from rustray.task.spec import ExecutorKind
from rustray.task.state import TaskState
from rustray.worker import context, wire
from rustray.worker.callee import Callee
from rustray.worker.cell import IDLE, INDEX, STOP, Cell
from rustray.worker.child_base import (
    CALL,
    DECODE,
    ENCODE,
    Runner,
    check_size,
    describe_failure,
    is_importing,
    own_frame,
)
from rustray.worker.child_outbox import Outbox
from rustray.worker.child_output import RawMarks, redirect
from rustray.worker.child_stream import Streams
from rustray.worker.child_todo import Refused, Todo
from rustray.worker.child_wait import Mailbox
from rustray.worker.context import TaskInterrupt
from rustray.worker.given import GIVEN
from rustray.worker.nest import Nest

FLUSH_AFTER_S: Final = 0.000_5
FLUSH_BYTES: Final = 64 * 1024
RECEIVE_BYTES: Final = 256 * 1024
_NOBODY: Final = (0, IDLE)
is_executor = False
"""Whether this process is one; asked by name, for the client's side knows nothing of workers."""
INTERRUPT_SIGNAL: Final = signal.SIGRTMIN + 3 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR1


class ProcessRunner(Runner):
    """Runs one task at a time, in the main thread."""

    def __init__(
        self,
        data: socket.socket,
        control: socket.socket,
        cell: Cell,
        max_result_bytes: int,
        marks: RawMarks,
    ) -> None:
        super().__init__(data, control, cell, max_result_bytes)
        self._outbox = Outbox(self.sender, self.results, marks.end)
        self._lock = threading.Lock()
        self._chunk: wire.Chunk | None = None
        self._todo = Todo(cell)
        self._running = [IDLE]
        self._cancelled: set[tuple[int, int]] = set()
        self._target = _NOBODY
        self._asked = _NOBODY
        self._driver: Any = None
        self._streams = Streams(max_result_bytes, self._outbox.send_item)

    def run(self) -> None:
        """Run what arrives until the agent closes the data channel."""
        signal.signal(INTERRUPT_SIGNAL, self._on_interrupt)
        context.serve(self)
        self._main_thread = threading.get_ident()
        self.nest = Nest(self.control, self.current, self._main_thread, self.limit)
        self.start_control()
        mailbox, feed = Mailbox(self.data, RECEIVE_BYTES), wire.MessageSplitter().feed
        receive, buffer = mailbox.receive, mailbox.buffer
        while True:
            count, beside = receive()
            if not count:
                return
            GIVEN.receive(beside)
            for kind, number, data, start, stop in feed(bytes(buffer[:count])):
                if kind == wire.RUN:
                    self._run_chunk(wire.unpack_run(number, data, start))
                elif kind == wire.RUN_SHARED:
                    self._run_chunk(self.take_shared(number, data, start))
                elif kind == wire.DEFINE:
                    self.functions.define(number, wire.unpack_definition(data, start, stop))
                elif kind == wire.SETUP:
                    self.take_setup(wire.unpack_setup(data, start, stop))
                    os.environ.update(self.setup.variables)
                elif kind == wire.GIVEN:
                    GIVEN.name(data, start, stop)
                    continue
                if GIVEN.found:
                    GIVEN.drop()

    def _run_chunk(self, chunk: wire.Chunk) -> None:
        try:
            self._todo.look(chunk.number, 0)
        except Refused:
            return
        callee = self.functions.callees[chunk.class_number]
        is_able = not chunk.follows[0] or self._outbox.join_last(chunk, callee.codec)
        chunk.setup = self.setup
        with self._lock:
            self._chunk = chunk
        todo = self._todo.enter(chunk.number, chunk.ends, is_able=is_able)
        if todo is None:
            return
        if not is_able:
            chunk.data = b""
            self._outbox.send_unrun(chunk)
            return
        self.cell.begin(chunk.lease, chunk.offset)
        self._outbox.begin(chunk)
        if not callee.is_ready:
            self.cell.words[INDEX] = 0  # if that kills the process, it is the first task's doing
            callee.resolve()
            self.cell.words[INDEX] = IDLE
        while True:
            try:
                if callee.stream_window:
                    self._run_streams(chunk, callee, todo)
                else:
                    self._run_items(chunk, callee, todo)
                break
            except TaskInterrupt as stray:
                # It hit between two statements of ours: its task may lack an outcome.
                self.nest.leave((chunk.number, self.cell.words[INDEX]), waits=False)
                if self._outbox.unreported() <= self.cell.words[INDEX]:
                    self._outbox.send_other(*describe_failure(stray, CALL, callee, None))
        self.cell.words[INDEX] = IDLE
        self._outbox.flush_ended()
        chunk.data = b""  # what the arguments were in goes when nothing of them is left
        if self._cancelled:
            self._cancelled = {key for key in self._cancelled if key[0] > chunk.number}

    @own_frame
    def _run_items(self, chunk: wire.Chunk, callee: Callee, todo: deque[int]) -> None:
        """Run the chunk's tasks in order; whoever takes them out of ``todo`` owns them."""
        popleft, words, running, number = todo.popleft, self.cell.words, self._running, chunk.number
        decode, call, encode = callee.decoder_of(chunk.data), callee.call, callee.encode
        outbox, clock, coroutine_type = self._outbox, time.perf_counter, CoroutineType
        append, done, flush = outbox.items.append, outbox.done, outbox.flush_ended
        seats, leave, index = self.nest.seats, self.nest.leave, words[INDEX]
        data, shift = chunk.data, chunk.shift
        start = chunk.start if index < 0 else chunk.ends[index] + shift
        flush_at, size = done[0] + FLUSH_AFTER_S, 0
        while True:
            try:
                stop = popleft() + shift
            except IndexError:
                return
            index += 1
            words[INDEX] = index
            begin, start, stage, value = start, stop, DECODE, None
            try:
                if self._cancelled or words[STOP] >= number:
                    self._look_up(number, index)
                running[0] = index
                args, kwargs = decode(data[begin:stop])
                stage = CALL
                value = call(*args, **kwargs)
                is_coroutine = type(value) is coroutine_type
                value = self._drive(value, (number, index)) if is_coroutine else value
                stage = ENCODE
                item = encode(value)
                if seats:
                    args, kwargs = (), {}
                    leave((number, index), waits=True)
                size += len(item)
                if size >= FLUSH_BYTES:
                    check_size(len(item), self.limit, callee)
                running[0] = IDLE
            except Refused:
                return
            except BaseException as exc:
                running[0] = IDLE
                failure = describe_failure(exc, stage, callee, value)
            else:
                append(item)
                done[0] = now = clock()
                if now >= flush_at or size >= FLUSH_BYTES:
                    flush()
                    flush_at, size = now + FLUSH_AFTER_S, 0
                continue
            value, args, kwargs = None, (), {}
            self._fail((number, index), failure)
            flush_at, size = done[0] + FLUSH_AFTER_S, 0

    @own_frame
    def _run_streams(self, chunk: wire.Chunk, callee: Callee, todo: deque[int]) -> None:
        """Run the chunk's generators in order; each tells in the end how many items it had."""
        words, running, number, outbox = self.cell.words, self._running, chunk.number, self._outbox
        index = words[INDEX]
        start = chunk.start if index < 0 else chunk.ends[index] + chunk.shift
        while True:
            try:
                stop = todo.popleft() + chunk.shift
            except IndexError:
                return
            index += 1
            words[INDEX] = index
            key = (number, index)
            yielding = self._streams.begin(chunk, callee, index)
            stage, value = DECODE, None
            failure: tuple[TaskState, bytes] | None = None
            try:
                self._look_up(number, index)
                running[0] = index
                args, kwargs = callee.decode(chunk.data[start:stop])
                stage = CALL
                drive = functools.partial(self._drive, key=key)
                count = yielding.run(callee.call(*args, **kwargs), drive)
                stage, value = ENCODE, count
                item = callee.encode_item(count)
                if self.nest.seats:
                    args, kwargs = (), {}
                    self.nest.leave(key, waits=True)
                running[0] = IDLE
            except Refused:
                return
            except BaseException as exc:
                running[0] = IDLE
                if stage == CALL:
                    stage, value = yielding.stage, yielding.value
                failure = describe_failure(exc, stage, callee, value)
            value, args, kwargs, yielding.value = None, (), {}, None
            self._streams.end()
            if failure is not None:
                self._fail(key, failure)
            else:
                outbox.items.append(item)
                outbox.done[0] = time.perf_counter()
                outbox.flush()
            start = stop

    def _look_up(self, number: int, index: int) -> None:
        """Look whether a task may begin, before it is the running one.

        Raises:
            Refused: it was taken back, and all behind it.
            TaskInterrupt: it was cancelled.
        """
        self._todo.look(number, index)
        if (number, index) in self._cancelled:
            raise TaskInterrupt

    def _fail(self, key: tuple[int, int], failure: tuple[TaskState, bytes]) -> None:
        """Report it; what its frames referred to has gone with them, while its session was open."""
        if self.nest.seats:
            self.nest.leave(key, waits=failure[0] is not TaskState.CANCELLED)
        self._outbox.send_other(*failure)

    @own_frame
    def _drive(self, coroutine: Any, key: tuple[int, int]) -> Any:
        """Run a coroutine on this process's event loop, made at the first one."""
        if self._driver is None:
            from rustray.worker.child_async import CoroutineDriver

            self._driver = CoroutineDriver()
        return self._driver.run(coroutine, lambda: key in self._cancelled)

    def current(self) -> tuple[wire.Chunk, int] | None:
        """See `Host.current`."""
        chunk, index = self._chunk, self._running[0]
        return (chunk, index) if chunk is not None and index != IDLE else None

    def is_cancelled(self, number: int, index: int) -> bool:
        """See `Host.is_cancelled`."""
        self._asked = (number, index)
        return (number, index) in self._cancelled

    # ── Called by the control thread ──────────────────────────────────────────────────────

    def reclaim(self, upto: int) -> tuple[int, int]:
        """See `Runner.reclaim`."""
        return self._todo.reclaim(upto)

    def rule(self, upto: int, found: int, begun: int) -> None:
        """See `Runner.rule`."""
        self._todo.rule(upto, found, begun)

    def interrupt(self, number: int, index: int, is_notice: bool) -> None:
        """See `Runner.interrupt`."""
        with self._lock:
            current = self._chunk.number if self._chunk is not None else 0
            if number < current:
                return
            # Marked first: a task that starts right now sees either the mark or the signal.
            self._cancelled.add((number, index))
            if number > current or (is_notice and self._asked == (number, index)):
                return
            self._target = (number, index)
        self.repeat_interrupt()

    def is_interrupt_pending(self) -> bool:
        """See `Runner.is_interrupt_pending`."""
        chunk = self._chunk
        return chunk is not None and self._target == (chunk.number, self._running[0])

    def repeat_interrupt(self) -> None:
        """See `Runner.repeat_interrupt`."""
        signal.pthread_kill(self._main_thread, INTERRUPT_SIGNAL)

    def credit(self, number: int, index: int, consumed: int) -> None:
        """See `Runner.credit`."""
        self._streams.credit((number, index), consumed)

    def flush(self) -> None:
        """See `Runner.flush`."""
        self._outbox.flush()

    def news_begins(self, take: Callable[[], bytes]) -> None:
        """See `Runner.news_begins`."""
        self._outbox.news = take

    def send_news(self) -> None:
        """See `Runner.send_news`."""
        self._outbox.send_news()

    def _on_interrupt(self, _signum: int, frame: FrameType | None) -> None:
        """Raise in the task that is meant, if it still runs (main thread)."""
        chunk, index = self._chunk, self._running[0]
        if chunk is None or index == IDLE or self._target != (chunk.number, index):
            return
        if self._streams.is_sending:
            return  # the control thread tries again
        if self._driver is not None and self._driver.cancel():
            self._target = _NOBODY
            return
        if is_importing(frame):
            return  # the control thread tries again
        self._target = _NOBODY
        self._running[0] = IDLE
        raise TaskInterrupt


def main(fds: Sequence[int], kind: ExecutorKind, concurrency: int, max_result_bytes: int) -> None:
    """Be an executor until the agent closes the data channel.

    Args:
        fds: Stream socket for chunks and outcomes, packet socket for orders, memory of the
            `Cell`, where stdout goes, and where stderr goes.
        kind: How tasks run.
        concurrency: How many at once, for THREAD and ASYNC.
        max_result_bytes: Limit of one encoded result.
    """
    global is_executor
    is_executor = True
    data_fd, control_fd, cell_fd, output_fd, error_fd = fds
    POOL.budget = EXECUTOR_BUDGET
    cell = Cell(cell_fd)
    os.close(cell_fd)
    marks = redirect(output_fd, error_fd, cell, context.running_task)
    faulthandler.enable(sys.stderr)
    _reset_randomness()
    for fd in (data_fd, control_fd):
        os.set_inheritable(fd, False)
    data, control = socket.socket(fileno=data_fd), socket.socket(fileno=control_fd)
    runner = _make_runner(kind, concurrency, data, control, cell, max_result_bytes, marks)
    runner.run()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _make_runner(
    kind: ExecutorKind,
    concurrency: int,
    data: socket.socket,
    control: socket.socket,
    cell: Cell,
    max_result_bytes: int,
    marks: RawMarks,
) -> Runner:
    if kind == ExecutorKind.THREAD:
        from rustray.worker.child_thread import ThreadRunner

        return ThreadRunner(data, control, cell, max_result_bytes, concurrency)
    if kind == ExecutorKind.ASYNC:
        from rustray.worker.child_async import AsyncRunner

        return AsyncRunner(data, control, cell, max_result_bytes, concurrency)
    return ProcessRunner(data, control, cell, max_result_bytes, marks)


def _reset_randomness() -> None:
    """Give each executor numbers of its own (`random` re-seeds itself when it is forked)."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
