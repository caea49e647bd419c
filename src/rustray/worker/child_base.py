"""What all executor processes share: saying how tasks fail, obeying the control channel."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, Final, TypeVar

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
from rustray.worker.child_outbox import Sender
from rustray.worker.context import TaskInterrupt
from rustray.worker.news import News
from rustray.worker.sharing import (
    ArgumentMemory,
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
    what, done = ("item", "yielded") if callee.stream_window else ("result", "succeeded")
    try:
        encode_value(callee.codec, value, what)
    except PayloadError as found:
        return f"{callee.name!r} {done}, but {found}"
    except BaseException as other:
        exc = other
    return f"{callee.name!r} {done}, but encoding its {what} raised {type(exc).__name__}"


def check_size(size: int, limit: int, callee: Callee) -> None:
    """Raise `ResultTooBig` for an encoded result that is more than its function may return."""
    if size > max(limit, callee.may_return):
        raise too_big(size, max(limit, callee.may_return))


def too_big(size: int, limit: int) -> ResultTooBig:
    """Build the error for a result over the limit."""
    return ResultTooBig(
        f"is {size / 2**20:.1f} MiB when encoded, over the limit of {limit / 2**20:.1f} MiB; "
        "return less, or write it to storage and return where it is"
    )


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
            A chunk's number, and the place from which on its tasks never start; those of the chunks
            after it, up to ``upto``, never start either.
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

    def rule(self, upto: int, found: int, begun: int) -> None:  # noqa: B027
        """Learn what may still begin of what was taken; only from processes something is."""

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
            found, begun = self.reclaim(number)
            self.flush()
            self.control.send(wire.CONTROL.pack(wire.RECLAIMED, number, found, begun))
        elif kind == wire.INTERRUPT:
            self.interrupt(number, index, bool(more))
        elif kind == wire.FLUSH:
            self.flush()
        elif kind == wire.CREDIT:
            self.credit(number, index, more)
        elif kind == wire.RULING:
            self.rule(number, index, more)
        return True
