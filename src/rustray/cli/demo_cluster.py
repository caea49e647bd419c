"""The demo's processes: a head and workers, started, watched, and always ended by their ids."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import IO, Any, Final, Self, TypeVar

from rustray.common.errors import CommunicationError

T = TypeVar("T")

READY_WITHIN_S: Final = 20.0
_ADDRESS: Final = re.compile(r"rustray://(\S+?):(\d+)")
_GRACE_S: Final = 5.0
_FUNCTIONS: Final = "rustray.cli.demo_functions"


class DemoCluster:
    """A head and workers as processes of their own, in a directory of their own.

    Attributes:
        directory: State directory's parent; also has the logs.
        workers: Name to process.
        host: Where the head listens.
        port: And its port.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state_dir = directory / "state"
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.host = ""
        self.port = 0
        self._head: subprocess.Popen[bytes] | None = None
        self._logs: list[IO[Any]] = []
        self._runner: asyncio.Runner

    def __enter__(self) -> Self:
        self._runner = asyncio.Runner()
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.stop()
        finally:
            self._runner.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the demo's one event loop, which gRPC likes to keep."""
        return self._runner.run(work)

    @property
    def address(self) -> str:
        """The head's address as ``rustray.init`` takes it."""
        return f"rustray://{self.host}:{self.port}"

    @property
    def head_pid(self) -> int:
        """Process id of the head."""
        assert self._head is not None
        return self._head.pid

    def start_head(self) -> None:
        """Start the head on a free port, and wait until it serves.

        Raises:
            CommunicationError: it did not get ready; carries the end of its log.
        """
        self._head = self._start("head", ["head", "--port", "0"])
        log = self.directory / "head.log"
        deadline = time.monotonic() + READY_WITHIN_S
        while True:
            match = _ADDRESS.search(log.read_text(errors="replace"))
            if match is not None:
                self.host, self.port = match.group(1), int(match.group(2))
                return
            if self._head.poll() is not None or time.monotonic() > deadline:
                raise CommunicationError(f"the head did not start:\n{self.log_tail('head')}")
            time.sleep(0.02)

    def start_worker(self, name: str, cpus: int) -> None:
        """Start a worker; it joins by itself, as the state directory tells it how."""
        self.workers[name] = self._start(
            name,
            ["worker", "--port", "0", "--name", name, "--cpus", str(cpus),
             "--functions", _FUNCTIONS],
        )  # fmt: skip

    def kill_worker(self, name: str) -> int:
        """Kill a worker with SIGKILL; return the process id it had."""
        process = self.workers.pop(name)
        process.kill()
        process.wait()
        return process.pid

    def check(self) -> None:
        """Notice a process that has ended by itself.

        Raises:
            CommunicationError: one has; carries the end of its log.
        """
        for name, process in [("head", self._head), *self.workers.items()]:
            if process is not None and process.poll() is not None:
                raise CommunicationError(
                    f"{name} ended with code {process.returncode}:\n{self.log_tail(name)}"
                )

    def log_tail(self, name: str, lines: int = 15) -> str:
        """Return the last lines of a process's log."""
        with contextlib.suppress(OSError):
            text = (self.directory / f"{name}.log").read_text(errors="replace")
            return "\n".join(text.splitlines()[-lines:])
        return ""

    def stop(self) -> None:
        """End all processes, workers first; idempotent."""
        self._end(list(self.workers.values()))
        self.workers.clear()
        if self._head is not None:
            self._end([self._head])
            self._head = None
        for log in self._logs:
            log.close()
        self._logs.clear()

    def _start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        log = (self.directory / f"{name}.log").open("wb")
        self._logs.append(log)
        return subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "rustray", *command, "--state-dir", str(self.state_dir)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            env=self._environment(),
            # Ctrl-C reaches the demo alone, which then stops them in order.
            start_new_session=True,
        )

    def _environment(self) -> dict[str, str]:
        env = {key: text for key, text in os.environ.items() if not key.startswith("RUSTRAY_")}
        source = str(Path(__file__).resolve().parents[2])
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [source, env.get("PYTHONPATH", "")]))
        env["PYTHONUNBUFFERED"] = "1"
        # The user's own settings are for the user's own cluster.
        env["XDG_CONFIG_HOME"] = str(self.directory)
        # Each executor has one core: numpy's own threads would only get in each other's way.
        env.setdefault("OPENBLAS_NUM_THREADS", "1")
        env.setdefault("OMP_NUM_THREADS", "1")
        return env

    @staticmethod
    def _end(processes: list[subprocess.Popen[bytes]]) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_S
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
