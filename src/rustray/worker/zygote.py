"""The zygote: a small process that imports the users' modules once and forks executors.

It is started afresh (not forked from the agent, whose gRPC does not survive a fork), has one
thread, and talks with the agent in JSON packets; file descriptors travel along:

* agent: ``start`` (path, modules), ``spawn`` (five descriptors), ``kill``, and ``guard``: kill an
  executor at a time of the monotonic clock, though nobody should ask for it again; ``preload``:
  import a module for the executors to come;
* zygote: ``function`` for each registered one, ``ready`` or ``failed``, then ``spawned`` and
  ``exited`` per executor.

When the agent's end closes, it kills all executors with their process groups and ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import math
import os
import select
import signal
import socket
import sys
import time
import traceback
from dataclasses import asdict
from typing import Any, Final, NoReturn

from rustray.objects import own_port
from rustray.task import pickling  # noqa: F401 - so that each executor has it from the start
from rustray.task.functions import registry
from rustray.task.spec import ExecutorKind
from rustray.worker import child, child_wait, family, wire

MAX_PACKET: Final = 192 * 1024
_PR_SET_PDEATHSIG: Final = 1
_CRASH_EXIT_CODE: Final = 70
_OOM_SCORE_ADJ: Final = 1000
_IOLBF: Final = 1
"""As glibc and musl number it."""


def die_with_parent(signum: int) -> None:
    """Have the kernel send this signal when the parent ends; 0 takes it back."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)


def send_lines_at_once() -> None:
    """Have C code's standard output leave with each line, as Python's does.

    Into a pipe it would be held back until 4 KiB have come together, and be lost with the process.
    """
    libc = ctypes.CDLL(None)
    with contextlib.suppress(ValueError):  # a C library that has no such symbol
        libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, _IOLBF, 0)


def offer_to_the_kernel() -> None:
    """Be killed before all others when the machine runs out of memory: a task can be run again."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(_OOM_SCORE_ADJ))


class Zygote:
    """Forks executors and tells the agent how they end."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._pids: dict[int, int] = {}  # pid to executor id
        self._guards: dict[int, float] = {}  # executor id to when it is killed
        self._strays: dict[int, set[tuple[int, str]]] = {}  # executor id to what has left its group
        self._max_result_bytes = 0

    def serve(self) -> None:
        """Do what the agent asks until it is gone."""
        woken, waker = socket.socketpair()
        for each in (woken, waker):
            each.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _signum, _frame: None)
        self._own_fds = [self._control.fileno(), woken.fileno(), waker.fileno()]
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(woken, select.POLLIN)
        try:
            while True:
                ready = [fd for fd, _ in poll.poll(self._rest_ms())]
                self._kill_overdue()
                if woken.fileno() in ready:
                    with contextlib.suppress(BlockingIOError):
                        woken.recv(4096)
                    self._reap()
                if self._control.fileno() in ready and not self._take_packet():
                    return
        except OSError:  # the agent is gone
            return
        finally:
            signal.set_wakeup_fd(-1)  # before its socket: children that die now wake nobody
            self._kill_all()
            woken.close()
            waker.close()

    def _take_packet(self) -> bool:
        packet, fds, _, _ = socket.recv_fds(self._control, MAX_PACKET, wire.CHILD_FDS)
        if not packet:
            return False
        message = wire.from_json(packet)
        if message["do"] == "spawn":
            self._spawn(message, fds)
        elif message["do"] == "kill":
            self._kill(message["id"], message["signal"])
        elif message["do"] == "guard":
            self._guard(message["id"], message["until"])
        elif message["do"] == "preload":
            self._preload(message["module"])
        elif message["do"] == "start":
            self._start(message)
        return True

    # ── Start ─────────────────────────────────────────────────────────────────────────────

    def _start(self, message: dict[str, Any]) -> None:
        """Import what the users registered, tell the agent, and get ready to be forked."""
        self._max_result_bytes = message["max_result_bytes"]
        own_port.use(message["object_port"])
        child_wait.look(is_wanted=message["looks"])
        sys.path[:] = message["path"]
        sys.argv[:] = ["rustray-executor"]
        for module in message["modules"]:
            try:
                importlib.import_module(module)
            except BaseException as exc:
                self._tell(do="failed", module=module, cause=_describe_import(exc))
                return
        for info in registry.infos():
            self._tell(do="function", info={**asdict(info), "executor": int(info.executor)})
        # Now nothing of the users' runs here any more: the end of the control channel is
        # enough to end this process, and it may then clean up.
        die_with_parent(0)
        gc.collect()
        gc.freeze()
        self._tell(do="ready")

    def _preload(self, module: str) -> None:
        """Import what executors will want, once for all that are forked from now on."""
        with contextlib.suppress(Exception):  # they try it themselves, and say what is wrong
            importlib.import_module(module)
        gc.collect()
        gc.freeze()

    # ── Executors ─────────────────────────────────────────────────────────────────────────

    def _spawn(self, message: dict[str, Any], fds: list[int]) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        try:
            pid = os.fork()
        except OSError as exc:
            self._tell(do="exited", id=message["id"], error=f"fork failed: {exc.strerror}")
        else:
            if pid == 0:
                self._become_executor(message, fds)
            self._pids[pid] = message["id"]
            self._tell(do="spawned", id=message["id"], pid=pid)
        finally:
            for fd in fds:
                os.close(fd)

    def _become_executor(self, message: dict[str, Any], fds: list[int]) -> NoReturn:
        code = _CRASH_EXIT_CODE
        try:
            die_with_parent(signal.SIGKILL)
            os.setsid()
            signal.set_wakeup_fd(-1)
            for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
                signal.signal(signum, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for fd in self._own_fds:
                os.close(fd)
            offer_to_the_kernel()
            kind = ExecutorKind(message["kind"])
            child.main(fds, kind, message["concurrency"], self._max_result_bytes)
            code = 0
        except BaseException:
            with contextlib.suppress(BaseException):
                traceback.print_exc()
        finally:
            os._exit(code)

    def _kill(self, executor_id: int, signum: int) -> None:
        for pid, known in self._pids.items():
            if known == executor_id:
                # Who has its own session is found only as long as its parents live.
                strays = self._strays.setdefault(executor_id, set())
                strays |= family.strays(pid)
                family.kill(strays, signum)
                _kill_group(pid, signum)

    def _guard(self, executor_id: int, until: float | None) -> None:
        if until is None:
            self._guards.pop(executor_id, None)
        elif executor_id in self._pids.values():
            self._guards[executor_id] = until

    def _rest_ms(self) -> int | None:
        """Return how long nothing is to be done; None: until somebody asks."""
        if not self._guards:
            return None
        return max(0, math.ceil((min(self._guards.values()) - time.monotonic()) * 1000))

    def _kill_overdue(self) -> None:
        if not self._guards:
            return
        now = time.monotonic()
        for executor_id in [each for each, until in self._guards.items() if until <= now]:
            del self._guards[executor_id]
            self._kill(executor_id, signal.SIGKILL)

    def _reap(self) -> None:
        while True:
            try:
                # First look, then kill what the executor left, then let its pid go: as long
                # as it is a zombie, no other process can get its number.
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            pid = found.si_pid
            executor_id = self._pids.pop(pid, None)
            if executor_id is not None:
                self._guards.pop(executor_id, None)
                _kill_group(pid, signal.SIGKILL)
                family.kill(self._strays.pop(executor_id, set()), signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if executor_id is None:
                continue
            if os.WIFSIGNALED(status):
                self._tell(do="exited", id=executor_id, signal=os.WTERMSIG(status))
            else:
                self._tell(do="exited", id=executor_id, code=os.WEXITSTATUS(status))

    def _kill_all(self) -> None:
        for pid in self._pids:
            _kill_group(pid, signal.SIGKILL)

    def _tell(self, **message: Any) -> None:
        self._control.send(wire.to_json(message))


def _kill_group(pid: int, signum: int) -> None:
    """Signal an executor with everything it started; it may not have its group yet."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        try:
            os.killpg(pid, signum)
        except ProcessLookupError:
            os.kill(pid, signum)


def _describe_import(exc: BaseException) -> str:
    """Name an import's failure and the line that caused it."""
    text = f"{type(exc).__name__}: {exc}"[:2_000]
    frames = traceback.extract_tb(exc.__traceback__)
    for frame in reversed(frames):
        if "importlib" not in frame.filename and frame.filename != __file__:
            return f"{text} ({frame.filename}, line {frame.lineno})"
    return text


def main(control_fd: int) -> None:
    """Be the zygote on this end of a packet socket."""
    # Until the users' modules are imported they may hang, and then only the kernel can help.
    die_with_parent(signal.SIGKILL)
    # Ctrl-C and the service manager's SIGTERM are the agent's to answer.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    os.set_inheritable(control_fd, False)
    send_lines_at_once()
    os.dup2(2, 1)  # what modules print while they are imported is no output of the agent's
    Zygote(socket.socket(fileno=control_fd)).serve()
