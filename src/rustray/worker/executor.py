"""TaskExecutor's engine: a pool of executor processes that one zygote forks.

Everything here runs on the event loop's thread and never blocks it. Payloads pass through as
they are: per chunk there are a few system calls and objects, per task nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from rustray.common.errors import ConfigError, InvariantError
from rustray.task import relay
from rustray.task.frames import LeaseNews, LeaseOutcome
from rustray.task.functions import FunctionInfo, Parameter
from rustray.task.output import OutputPiece
from rustray.task.spec import ExecutorKind, TaskClass
from rustray.task.streams import LeaseItems
from rustray.worker.calls_port import Handler
from rustray.worker.events import ExecutorReturned, Setting
from rustray.worker.executor_handle import FLUSH_FIRST_S, ExecutorHandle, spawn_request
from rustray.worker.given import Look, nowhere
from rustray.worker.output import OutputForwarder
from rustray.worker.output_reader import OutputSink
from rustray.worker.package_store import PackageStore
from rustray.worker.setups import setup_of
from rustray.worker.wire import Definition, RunChunk, pack_setup
from rustray.worker.zygote_client import ZygoteProcess, default_path, start_message

__all__ = ["ExecutorExit", "ExecutorPool", "PoolListener", "RunChunk"]

OUTPUT_ENV: Final = "RUSTRAY_EXECUTOR_OUTPUT"
"""0 keeps what tasks print from the agent's stderr, where it goes too."""
DEFAULT_MAX_RESULT_BYTES: Final = 16 * 1024 * 1024
_RESTART_FIRST_S: Final = 0.1
_RESTART_MAX_S: Final = 5.0
_STOP_S: Final = 5.0
_POLL_S: Final = 0.002

_log = logging.getLogger("rustray.worker")


@dataclass(frozen=True, slots=True)
class ExecutorExit:
    """How an executor process ended.

    Attributes:
        pid: Its process id; 0 if it never came to be.
        exit_code: What it passed to exit, None if a signal ended it or nobody knows.
        signal: Number of the signal that killed it, else None.
        running: (lease, offset) of the task it ran, None if it ran none, or several at once.
        log_tail: The last 8 KiB that it printed.
    """

    pid: int
    exit_code: int | None
    signal: int | None
    running: tuple[int, int] | None
    log_tail: str


class PoolListener(Protocol):
    """Whom the pool tells; all calls come from the event loop's thread."""

    def executor_ready(self, executor_id: int, pid: int) -> None:
        """The process exists; work may have been given to it before."""

    def executor_reported(self, executor_id: int, outcomes: list[LeaseOutcome]) -> None:
        """Tasks ended."""

    def executor_returned(self, event: ExecutorReturned) -> None:
        """Some tasks never start there: mostly the answer to `ExecutorPool.reclaim`."""

    def executor_told(self, executor_id: int, news: list[LeaseNews], dropped: int) -> None:
        """Running tasks said something of themselves; so much more was dropped."""

    def executor_relayed(self, executor_id: int, kind: int, channel: int, body: bytes) -> None:
        """A task that hands in tasks has sent a message (`rustray.task.relay`).

        Raises:
            ValueError: it makes no sense.
        """

    def executor_yielded(self, executor_id: int, items: list[LeaseItems]) -> None:
        """Generators yielded items."""

    def executor_exited(self, executor_id: int, exit: ExecutorExit) -> None:  # noqa: A002
        """The process is gone, and with it all that it was given and has not reported."""


class ExecutorPool:
    """Starts executors, gives them chunks, and reports what becomes of both.

    Args:
        listener: Whom to tell.
        function_modules: Modules to import for their registered functions.
        sys_path: Import path of the executors; default: this process's.
        env: Environment of the executors; default: this process's.
        max_result_bytes: Limit of one encoded result.
        keep_output: Takes what tasks print.
        shows_output: Whether stderr has it too (unless ``RUSTRAY_EXECUTOR_OUTPUT`` is 0).
        packages, object_port, looks: Of runtime environments; to objects; see `child_wait`.
    """

    def __init__(  # noqa: PLR0913 - settings, by name
        self,
        listener: PoolListener,
        *,
        function_modules: Sequence[str] = (),
        sys_path: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        max_result_bytes: int = DEFAULT_MAX_RESULT_BYTES,
        keep_output: Callable[[list[OutputPiece]], None] | None = None,
        shows_output: bool = True,
        packages: PackageStore | None = None,
        object_port: str = "",
        looks: bool = False,
    ) -> None:
        self.handlers: Mapping[int, Handler] = {}  # of tasks' calls, by method
        self.look: Look = nowhere  # for what tasks take
        self._listener, self._env = listener, env
        self.packages = packages or PackageStore("", "executors")
        path = default_path() if sys_path is None else list(sys_path)
        self._modules = modules = tuple(function_modules)
        self._start_message = start_message(path, modules, max_result_bytes, object_port, looks)
        self._handles: dict[int, ExecutorHandle] = {}
        self._zygote: ZygoteProcess | None = None
        self._restart: asyncio.TimerHandle | None = None
        self._flush_timer: asyncio.TimerHandle | None = None
        self._failures, self._is_closing = 0, False
        self._queued_spawns: list[tuple[bytes, ExecutorHandle]] = []
        self._functions: list[FunctionInfo] = []
        self._started: asyncio.Future[None] | None = None
        self._source = os.environ if env is None else env
        is_shown = shows_output and self._source.get(OUTPUT_ENV, "1") != "0"
        self._output = OutputSink(keep_output, OutputForwarder().write if is_shown else None)

    async def start(self) -> tuple[FunctionInfo, ...]:
        """Start the zygote and wait until it has imported the modules.

        Returns:
            What they registered.

        Raises:
            ConfigError: a module cannot be imported; names it and the cause.
        """
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.create_future()
        self._launch()
        try:
            await self._started
        except BaseException:
            await self.close(0.0)
            raise
        return tuple(self._functions)

    def spawn(self, executor_id: int, kind: ExecutorKind, concurrency: int) -> None:
        """Start an executor; it may be given work at once.

        Args:
            executor_id: A number that no living executor has.
            kind: How it runs tasks.
            concurrency: How many at once, for THREAD and ASYNC.
        """
        if executor_id in self._handles:
            raise InvariantError(f"executor {executor_id} exists already")
        try:
            handle = ExecutorHandle(
                self._loop, executor_id, kind, self._listener, self._on_violation, self._output
            )
            handle.relay.on_message = self._on_relayed
            handle.calls.handlers, handle.look = self.handlers, self.look
        except OSError as error:  # no descriptors left: as one that died at its birth
            _log.error("executor %d cannot be started: %s", executor_id, error)
            gone = ExecutorExit(0, None, None, None, f"its channels could not be opened: {error}")
            self._loop.call_soon(self._listener.executor_exited, executor_id, gone)
            return
        self._handles[executor_id] = handle
        packet = spawn_request(executor_id, kind, concurrency)
        if self._zygote is None:
            self._queued_spawns.append((packet, handle))
        else:
            self._zygote.send_packet(packet, handle.take_child_fds())

    def define(
        self, executor_id: int, class_number: int, task_class: TaskClass, code: bytes
    ) -> None:
        """Introduce a task class to an executor, before its first chunk."""
        definition = Definition.of(task_class, code)
        self._handle(executor_id).define(class_number, definition)

    def prepare(self, executor_id: int, setting: Setting) -> None:
        """Set an executor up for the tasks that follow."""
        setup = pack_setup(setup_of(setting, self._source, self.packages.path))
        self._handle(executor_id).tell(setup)

    def run(self, executor_id: int, chunk: RunChunk) -> None:
        """Give an executor tasks; it starts them in order, shared ones several at once."""
        self._handle(executor_id).run(chunk)
        if self._flush_timer is None and len(chunk.payloads) > 1:
            self._flush_timer = self._loop.call_later(FLUSH_FIRST_S, self._ask_flushes)

    def reclaim(self, executor_id: int) -> None:
        """Ask for all that has not started; `PoolListener.executor_returned` is the answer."""
        self._handle(executor_id).reclaim()

    def interrupt(
        self, executor_id: int, lease: int, offset: int, *, is_notice: bool = False
    ) -> None:
        """Cancel a task: it ends as CANCELLED, unless it ends otherwise before.

        Code that does not return to Python (a long C call) is not reached: see `kill`.

        Args:
            executor_id: Which.
            lease: The task's lease.
            offset: Its position there.
            is_notice: Do not interrupt a task that has asked `TaskContext.is_cancelled`.
        """
        self._handle(executor_id).interrupt(lease, offset, is_notice)

    def relay(self, executor_id: int, kind: int, channel: int, body: bytes) -> None:
        """Send a message to a task that hands in tasks (`rustray.task.relay`)."""
        if executor_id in self._handles:
            self._handles[executor_id].relay.send(kind, channel, body)

    def credit(self, executor_id: int, *where: int) -> None:
        """Tell a generator (lease, offset) that so many of its items are consumed."""
        self._handle(executor_id).credit(*where)

    def kill(self, executor_id: int, signum: int) -> None:
        """Signal an executor with all processes that it started."""
        _log.info("executor process %d is sent signal %d", self._handle(executor_id).pid, signum)
        if self._zygote is not None:
            self._zygote.send({"do": "kill", "id": executor_id, "signal": signum})

    def guard(self, executor_id: int, until: float) -> None:
        """Have the zygote kill an executor with all that it started at that time of the loop.

        It does so also if this process stands still; infinity takes it back.
        """
        self._handle(executor_id)
        if self._zygote is not None:
            at = until if until < math.inf else None
            self._zygote.send({"do": "guard", "id": executor_id, "until": at})

    def running(self, executor_id: int) -> tuple[int, int] | None:
        """Return (lease, offset) of what an executor runs; None if nothing, or several."""
        return self._handle(executor_id).cell.read()

    async def close(self, grace_s: float = 2.0) -> None:
        """End all processes; idempotent.

        Outcomes are reported until the end, exits are not.

        Args:
            grace_s: How long running tasks may take to end, in seconds; nothing new starts.
        """
        self._is_closing = True
        for timer in (self._restart, self._flush_timer):
            if timer is not None:
                timer.cancel()
        for handle in self._handles.values():
            handle.end_input()
        zygote = self._zygote
        if zygote is not None:
            deadline = self._loop.time() + grace_s
            # The loop must go on meanwhile: the last outcomes arrive through it.
            while self._handles and self._loop.time() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)
            self._zygote = None
            await zygote.stop(_STOP_S)
        for handle in list(self._handles.values()):
            handle.drain()
            self._remove(handle)
        self.packages.close()

    # ── The zygote ────────────────────────────────────────────────────────────────────────

    def _launch(self) -> None:
        self._restart = None
        self._functions.clear()
        self._zygote = ZygoteProcess(
            self._loop, self._env, self._start_message, self._on_message, self._on_gone
        )
        queued, self._queued_spawns = self._queued_spawns, []
        for packet, handle in queued:
            self._zygote.send_packet(packet, handle.take_child_fds())

    def _on_message(self, zygote: ZygoteProcess, message: dict[str, Any]) -> None:
        kind = message["do"]
        if kind == "spawned":
            handle = self._handles.get(message["id"])
            if handle is not None:
                handle.pid = message["pid"]
                self._listener.executor_ready(handle.executor_id, handle.pid)
        elif kind == "exited":
            self._on_exited(message)
        elif kind == "function":
            self._functions.append(_function_info(message["info"]))
        elif kind == "ready":
            zygote.is_ready = True
            self._failures = 0
            if self._started is not None and not self._started.done():
                self._started.set_result(None)
        elif kind == "failed":
            self._on_failed(f"cannot import {message['module']!r}: {message['cause']}")

    def _on_failed(self, reason: str) -> None:
        if self._started is not None and not self._started.done():
            self._started.set_exception(ConfigError(reason))
        else:
            _log.error("executors cannot be started: %s", reason)

    def _on_exited(self, message: dict[str, Any]) -> None:
        handle = self._handles.get(message["id"])
        if handle is None:
            return
        if "error" in message:
            handle.add_to_tail(message["error"].encode())
        self._report_exit(handle, message.get("code"), message.get("signal"))

    def _report_exit(self, handle: ExecutorHandle, code: int | None, signum: int | None) -> None:
        tail, running = handle.drain(), handle.unfinished_running()
        _note_exit(handle.pid, running, code, signum)
        self._remove(handle)
        if not self._is_closing:
            found = ExecutorExit(handle.pid, code, signum, running, tail)
            self._listener.executor_exited(handle.executor_id, found)

    def _remove(self, handle: ExecutorHandle) -> None:
        del self._handles[handle.executor_id]
        handle.close()

    def _on_gone(self, zygote: ZygoteProcess) -> None:
        """The zygote died: so do its executors, by the kernel; start another one."""
        status = zygote.bury()
        if zygote is not self._zygote:
            return
        self._zygote = None
        how = f"signal {-status}" if status < 0 else f"exit code {status}"
        if self._started is not None and not self._started.done():
            names = ", ".join(self._modules) or "no modules"
            reason = f"the process that imports the function modules ({names}) ended by {how}"
            self._started.set_exception(ConfigError(reason))
            return
        _log.warning("the zygote ended by %s; its executors are lost, starting another", how)
        self._plan_restart()
        for handle in list(self._handles.values()):
            if handle.pid:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(handle.pid, signal.SIGKILL)
            self._report_exit(handle, None, signal.SIGKILL)

    def _plan_restart(self) -> None:
        if self._is_closing:
            return
        delay = min(_RESTART_FIRST_S * 2**self._failures, _RESTART_MAX_S) if self._failures else 0.0
        self._failures += 1
        self._restart = self._loop.call_later(delay, self._launch)

    # ── Executors ─────────────────────────────────────────────────────────────────────────

    def _handle(self, executor_id: int) -> ExecutorHandle:
        handle = self._handles.get(executor_id)
        if handle is None:
            raise InvariantError(f"there is no executor {executor_id}")
        return handle

    def _on_relayed(self, executor_id: int, kind: int, channel: int, body: bytes) -> None:
        if kind == relay.OPEN and self._zygote is not None:
            self._zygote.preload()  # where one task hands in tasks others will
        self._listener.executor_relayed(executor_id, kind, channel, body)

    def _ask_flushes(self) -> None:
        """Have executors send what they hold while a long task of the same chunk runs."""
        self._flush_timer = None
        now = self._loop.time()
        is_needed = False
        for handle in self._handles.values():
            handle.ask_flush(now)
            is_needed = is_needed or handle.has_bundles
        if is_needed:
            self._flush_timer = self._loop.call_later(FLUSH_FIRST_S, self._ask_flushes)

    def _on_violation(self, executor_id: int, reason: str) -> None:
        """An executor sent what is no message: its user code wrote to our channel."""
        handle = self._handle(executor_id)
        handle.add_to_tail(f"\nkilled: it broke the executor protocol ({reason})\n".encode())
        self.kill(executor_id, signal.SIGKILL)


def _note_exit(
    pid: int, running: tuple[int, int] | None, exit_code: int | None, signum: int | None
) -> None:
    """Log the end of an executor process that took its task along."""
    if running is not None:
        how = f"exit code {exit_code}" if signum is None else f"signal {signum}"
        _log.info("executor process %d has ended while it ran a task: %s", pid, how)


def _function_info(fields: dict[str, Any]) -> FunctionInfo:
    parameters = tuple(Parameter(**each) for each in fields["parameters"])
    return FunctionInfo(
        **{**fields, "parameters": parameters, "executor": ExecutorKind(fields["executor"])}
    )
