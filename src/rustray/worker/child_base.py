"""What all executor processes have in common: sending outcomes, obeying the control channel."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, Final, TypeVar, cast

from rustray.common.errors import (
    PayloadError,
    ResourceExhausted,
    TaskCancelled,
    TaskExecutionFailed,
)
from rustray.task.codec import encode_value, explain_decode_error
from rustray.task.failures import (
    encode_failure,
    failure_from_exception,
    frames_of,
    lacked,
)
from rustray.task.inputs import InputLost, WrongReturn
from rustray.task.result import FailureInfo, qualified_name
from rustray.task.state import TaskState
from rustray.worker import wire
from rustray.worker.callee import Callee, FunctionTable, Unresolvable
from rustray.worker.calls import Calls
from rustray.worker.cell import Cell
from rustray.worker.context import TaskInterrupt
from rustray.worker.news import News
from rustray.worker.sharing import (
    SHARED_BYTES,
    ArgumentMemory,
    Item,
    ResultSender,
    are_aligned,
    receive_packet,
)
from rustray.worker.wire import Chunk

INTERRUPT_RETRY_MS: Final = 10
_NO_ENVIRONMENT: Final = 71
"""Exit code of an executor that cannot become what its tasks want; EX_OSERR."""

DECODE: Final = 0
CALL: Final = 1
ENCODE: Final = 2

SUCCEEDED: Final = int(TaskState.SUCCEEDED)
FAILED: Final = int(TaskState.FAILED)
MAX_COPIED_BYTES: Final = 28 << 20
"""What has found no shared memory is copied through the socket up to this size."""
F = TypeVar("F", bound=Callable[..., Any])
_OWN_CODE: Final[set[CodeType]] = set()


def own_frame(function: F) -> F:
    """Mark a function of ours whose frame is not shown in users' tracebacks."""
    _OWN_CODE.add(function.__code__)
    return function


def own_frames(exc: BaseException) -> int:
    """Count the outermost traceback frames that are ours."""
    count, frames = 0, frames_of(exc)
    while frames is not None and frames.tb_frame.f_code in _OWN_CODE:
        count, frames = count + 1, frames.tb_next
    return count


def is_importing(frame: FrameType | None) -> bool:
    """Whether this stack is inside an import.

    An exception thrown into an import leaves modules behind that are half made, and every
    later task of the process would stumble over them. So interrupts wait for its end.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


class ResultTooBig(Exception):
    """An encoded result is over the limit."""


def describe_failure(
    exc: BaseException, stage: int, callee: Callee, value: Any
) -> tuple[TaskState, bytes]:
    """Turn what ended a task into its state and its encoded `FailureInfo`.

    Args:
        exc: What was raised.
        stage: `DECODE`, `CALL` or `ENCODE`: what was being done.
        callee: The task's function.
        value: What the function returned, for `ENCODE`.
    """
    try:
        return _describe(exc, stage, callee, value)
    except BaseException as broken:
        # Methods of the user's own classes ran in there: what they raise is the task's failure too,
        # and must not take the executor along.
        name = type(exc).__name__
        text = f"{name} was raised, and to describe it raised {type(broken).__name__}"
        return TaskState.FAILED, encode_failure(
            FailureInfo(TaskExecutionFailed.code, text, error_type=qualified_name(type(exc)))
        )


def _describe(
    exc: BaseException, stage: int, callee: Callee, value: Any
) -> tuple[TaskState, bytes]:
    state = TaskState.FAILED
    if isinstance(exc, TaskInterrupt):
        state = TaskState.CANCELLED
        info = FailureInfo(TaskCancelled.code, "the task was cancelled")
    elif isinstance(exc, Unresolvable):
        info = exc.info
    elif isinstance(exc, InputLost):
        # The head decides what to do about it; the task was not begun.
        state = TaskState.LEASED
        info = lacked(callee.name, exc)
    elif isinstance(exc, ResultTooBig):
        info = FailureInfo(ResourceExhausted.code, f"the result of {callee.name!r} {exc}")
    elif isinstance(exc, WrongReturn):
        info = FailureInfo(PayloadError.code, str(exc))
    elif stage == CALL:
        info = failure_from_exception(exc, callee.codec, skip_frames=own_frames(exc))
    elif stage == DECODE:
        text = explain_decode_error(callee.codec, exc, "arguments")
        info = FailureInfo(PayloadError.code, f"{callee.name!r} was not called: {text}")
    else:
        info = FailureInfo(PayloadError.code, _explain_result(callee, value, exc))
    return state, encode_failure(info)


def _explain_result(callee: Callee, value: Any, exc: BaseException) -> str:
    try:
        encode_value(callee.codec, value, "result")
    except PayloadError as found:
        return f"{callee.name!r} succeeded, but {found}"
    except BaseException as other:
        exc = other
    return f"{callee.name!r} succeeded, but encoding its result raised {type(exc).__name__}"


def check_size(size: int, limit: int, callee: Callee) -> None:
    """Raise `ResultTooBig` for an encoded result that is more than its function may return."""
    if size > max(limit, callee.may_return):
        raise too_big(size, max(limit, callee.may_return))


def no_memory(size: int) -> str:
    """Say of a result that is too large to be copied that there is no memory for it."""
    return f"takes {size} bytes, for which the machine has no (shared) memory left"


def too_big(size: int, limit: int) -> ResultTooBig:
    """Build the error for a result over the limit."""
    return ResultTooBig(
        f"is {size / 2**20:.1f} MiB when encoded, over the limit of {limit / 2**20:.1f} MiB; "
        "return less, or write it to storage and return where it is"
    )


class Sender:
    """Writes to the agent, blocking; in a forked copy of the executor it ends that copy.

    User code may fork and let the copy return from the task: it must never speak in the
    executor's name.
    """

    def __init__(self, data: socket.socket) -> None:
        self._write = data.sendall
        self._is_forked = False
        os.register_at_fork(after_in_child=self._note_fork)

    def _note_fork(self) -> None:
        self._is_forked = True

    def send(self, message: bytes) -> None:
        """Write bytes; blocks while the channel is full."""
        if self._is_forked:
            os._exit(0)
        self._write(message)


class Outbox:
    """Sends outcomes; the results of one chunk that wait are in `items`.

    The main thread appends to `items` without a lock; taking from its front happens under
    `lock` only, so that the control thread may flush while a task runs.

    Attributes:
        items: Encoded results of consecutive tasks of the chunk, not sent yet; of large ones
            only the last may be one.
        done: ``done[0]``: when the last of them ended (`time.perf_counter`).
        last: Lease, offset and result of the task that ended last, if it succeeded and the result
            is a small one: what follows it takes that.
        lock: Held while something is taken or sent.
        news: Returns what goes before the next outcome; None as long as no task says anything.
    """

    def __init__(
        self, sender: Sender, results: ResultSender, mark_end: Callable[[int, int], None]
    ) -> None:
        """Send over a sender.

        Args:
            sender: Writes to the agent.
            results: Sends large results.
            mark_end: Says of a task (lease, offset) that it prints no more.
        """
        self._send = sender.send
        self._results = results
        self._mark_end = mark_end
        self._chunk: Chunk | None = None
        self._base = 0
        self._since = 0.0
        self.items: list[Item] = []
        self.done = [0.0]
        self.last: tuple[int, int, bytes] | None = None
        self.news: Callable[[], bytes] | None = None
        self.lock = threading.Lock()
        os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        self.lock = threading.Lock()

    def begin(self, chunk: Chunk) -> None:
        """Enter a chunk; that of before is flushed."""
        with self.lock:
            self._chunk = chunk
            self._base = 0
            self._since = self.done[0] = time.perf_counter()

    def flush(self) -> None:
        """Send the results that wait, as one outcome."""
        with self.lock:
            self._flush_locked()

    def flush_ended(self) -> None:
        """`flush` in the thread that runs the tasks, where none runs right now."""
        with self.lock:
            if self.items and self._chunk is not None:
                last = self._chunk.offset + self._base + len(self.items) - 1
                self._mark_end(self._chunk.lease, last)
            self._flush_locked()

    def send_news(self) -> None:
        """Send what tasks say of themselves."""
        with self.lock:
            self._send_news_locked()

    def _send_news_locked(self) -> None:
        if self.news is not None and (message := self.news()):
            self._send(message)

    def _flush_locked(self) -> None:
        count = len(self.items)
        if not count or self._chunk is None:
            return
        if self.news is not None:
            self._send_news_locked()
        taken = self.items[:count]
        del self.items[:count]
        done = self.done[0]
        chunk, base = self._chunk, self._base
        self._base = base + count
        run_us = int((done - self._since) * 1e6)
        self._since = done
        offset = chunk.offset + base
        item = taken[-1]
        self.last = None
        if type(item) is bytes and len(item) < SHARED_BYTES:
            self.last = chunk.lease, offset + count - 1, item
        memory = self._results.send(item)
        if memory is None and len(taken[-1]) > MAX_COPIED_BYTES:
            self._send_without_last(taken, offset, run_us)
            return
        if memory is None:
            small = [bytes(each) for each in taken] if len(taken[-1]) >= SHARED_BYTES else taken
        else:
            small = taken[:-1]
        small_us = run_us * len(small) // count
        message = b""
        if small:
            message = wire.pack_outcome(
                chunk.number, chunk.lease, offset, SUCCEEDED, small_us, cast("list[bytes]", small)
            )
        if memory is not None:
            message += wire.pack_outcome_shared(
                chunk.number, chunk.lease, offset + count - 1, SUCCEEDED, run_us - small_us, *memory
            )
        self._send(message)

    def _send_without_last(self, taken: list[Item], offset: int, run_us: int) -> None:
        """Send results, of which the last, a large one, has found no memory: it is a failure."""
        chunk = self._chunk
        assert chunk is not None
        small, at = cast("list[bytes]", taken[:-1]), offset + len(taken) - 1
        if small:
            self._send(
                wire.pack_outcome(chunk.number, chunk.lease, offset, SUCCEEDED, run_us, small)
            )
        text = f"the result {no_memory(len(taken[-1]))}"
        failure = encode_failure(FailureInfo(ResourceExhausted.code, text))
        self._send(wire.pack_outcome(chunk.number, chunk.lease, at, FAILED, 0, [failure]))

    def send_item(self, offset: int, index: int, item: bytes) -> None:
        """Send an item that a generator of the chunk has yielded.

        Args:
            offset: The task's place in the chunk.
            index: The item's.
            item: Its encoded value.
        """
        with self.lock:
            self._send_news_locked()
            chunk = self._chunk
            assert chunk is not None
            self._send(
                wire.pack_item(chunk.number, chunk.lease, chunk.offset + offset, index, item)
            )

    def send_other(self, state: TaskState, payload: bytes) -> None:
        """Send how the task after the results that wait ended, and those before it."""
        with self.lock:
            self._flush_locked()
            self._send_news_locked()
            chunk, base = self._chunk, self._base
            assert chunk is not None
            self._mark_end(chunk.lease, chunk.offset + base)
            now = time.perf_counter()
            run_us = int((now - self._since) * 1e6)
            self._since = self.done[0] = now
            self._base = base + 1
            self.last = None
            self._send(
                wire.pack_outcome(
                    chunk.number, chunk.lease, chunk.offset + base, state, run_us, [payload]
                )
            )

    def send_unrun(self, chunk: Chunk) -> None:
        """Say that a chunk of one task is not run."""
        with self.lock:
            self._send(wire.pack_unrun(chunk.number))

    def unreported(self) -> int:
        """Return the index of the first task of the chunk without an outcome or result."""
        with self.lock:
            return self._base + len(self.items)


class Runner(ABC):
    """One way of running chunks; the control thread calls what is below `run`."""

    def __init__(
        self, data: socket.socket, control: socket.socket, cell: Cell, max_result_bytes: int
    ) -> None:
        self.data = data
        self.sender = Sender(data)
        self.control = control
        self.cell = cell
        self.limit = max_result_bytes
        self.functions = FunctionTable()
        self.arguments = ArgumentMemory()
        self.results = ResultSender(control)
        self.setup = wire.NO_SETUP
        self._news: News | None = None
        self._calls: Calls | None = None
        self._news_lock = threading.Lock()

    @property
    def news(self) -> News:
        """What tasks say of themselves; made when the first one does."""
        with self._news_lock:
            if self._news is None:
                self._news = News(self.send_news)
                self.news_begins(self._news.take)
            return self._news

    def take_shared(self, number: int, data: bytes, start: int) -> Chunk:
        """Decode a chunk whose arguments are in memory of their own, and map that."""
        chunk = wire.unpack_run_shared(number, data, start, self.arguments.take)
        if not are_aligned(chunk):
            chunk.data = bytes(chunk.data)  # what is cut from it is copied to where it is aligned
        return chunk

    @property
    def calls(self) -> Calls:
        """Carries calls of tasks to the agent; made at the first one."""
        with self._news_lock:
            if self._calls is None:
                self._calls = Calls(self.control)
            return self._calls

    def take_setup(self, setup: wire.Setup) -> None:
        """Note the environment of what follows, and make the process what it is to be for good.

        Where that cannot be done the process ends: another one, or another worker, tries again.
        """
        if setup.environment is not None and self.setup.environment is None:
            from rustray.worker.environment import enter

            failure = enter(setup.environment)
            if failure:
                sys.stderr.write(f"rustray: its runtime_env cannot be made: {failure}\n")
                sys.stderr.flush()
                os._exit(_NO_ENVIRONMENT)
        self.setup = setup

    @abstractmethod
    def run(self) -> None:
        """Run what arrives until the agent closes the data channel."""

    @abstractmethod
    def reclaim(self, upto: int) -> tuple[int, int]:
        """Give up all unstarted tasks of the chunks up to a number.

        Returns:
            A chunk's number and how many of its last tasks never start; those of the
            chunks after it, up to ``upto``, never start either.
        """

    @abstractmethod
    def interrupt(self, number: int, index: int, is_notice: bool) -> None:
        """Cancel a task, whether it runs or waits; one that has ended is left alone.

        Args:
            number: Its chunk.
            index: Its place there.
            is_notice: Do no more than tell it, if it asks.
        """

    @abstractmethod
    def flush(self) -> None:
        """Send results that wait."""

    @abstractmethod
    def news_begins(self, take: Callable[[], bytes]) -> None:
        """From now on there may be news to send before outcomes."""

    @abstractmethod
    def send_news(self) -> None:
        """Send what tasks say of themselves."""

    def credit(self, number: int, index: int, consumed: int) -> None:  # noqa: B027
        """Note how many items of a generator are consumed; only processes run generators."""

    def is_interrupt_pending(self) -> bool:
        """Whether a task that is to be interrupted still runs, untouched as yet."""
        return False

    def repeat_interrupt(self) -> None:  # noqa: B027 - nothing is ever pending by default
        """Try again what is pending."""

    def start_control(self) -> None:
        """Start the thread that obeys the control channel."""
        threading.Thread(target=self._obey, name="rustray-control", daemon=True).start()

    def _obey(self) -> None:
        # Signals are for the main thread: only there they end a blocking system call.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        try:
            while True:
                if self.is_interrupt_pending() and not poll.poll(INTERRUPT_RETRY_MS):
                    self.repeat_interrupt()
                elif not self._obey_packet(*receive_packet(self.control)):
                    return
        except OSError:  # the agent is gone, or closes
            return
        finally:
            self.arguments.end()

    def _obey_packet(self, packet: bytes, descriptor: int | None) -> bool:
        if len(packet) != wire.CONTROL.size:
            return False
        kind, number, index, more = wire.CONTROL.unpack(packet)
        if kind == wire.OBJECT:
            self.arguments.put(number, descriptor)
        elif kind == wire.RECLAIM:
            found, taken = self.reclaim(number)
            self.flush()
            self.control.send(wire.CONTROL.pack(wire.RECLAIMED, number, found, taken))
        elif kind == wire.INTERRUPT:
            self.interrupt(number, index, bool(more))
        elif kind == wire.FLUSH:
            self.flush()
        elif kind == wire.CREDIT:
            self.credit(number, index, more)
        return True
