"""rustray's head and worker as processes of their own, as users start them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

_READY_WITHIN_S: Final = 20.0
_GRACE_S: Final = 5.0
_ADDRESS: Final = re.compile(r"rustray://[0-9.]+:\d+")


class Cluster:
    """A head, and a worker that joins it with no flags: TLS and JWT are on.

    Attributes:
        address: Of the head, once started.
        head_pid: Its process.
        worker_pid: The worker's, 0 without one.
    """

    def __init__(self, directory: Path, durability: str = "memory") -> None:
        """Prepare.

        Args:
            directory: For the logs.
            durability: Level of the head: the peers, too, keep what they accepted in memory.
        """
        self._directory = directory
        self._durability = durability
        self._processes: list[subprocess.Popen[bytes]] = []
        self.address = ""
        self.head_pid = 0
        self.worker_pid = 0

    def start(self, *, executors: int) -> None:
        """Start the head, wait until it serves, and start a worker if it is to have executors.

        Raises:
            RuntimeError: the head did not start; carries its log.
        """
        head = self._start("head", "--port", "0", "--durability", self._durability)
        self.head_pid = head.pid
        self.address = self._wait_for_address(head)
        if executors:
            worker = self._start("worker", "--port", "0", "--cpus", str(executors))
            self.worker_pid = worker.pid

    def kill_head(self) -> None:
        """End the head as a crash would."""
        head = next(one for one in self._processes if one.pid == self.head_pid)
        head.kill()
        head.wait()

    def replace_head(self) -> None:
        """End the head as a crash would, and start another one at its address; it is not awaited.

        One with a million tasks in its journal takes a while to read them.
        """
        self.kill_head()
        port = self.address.rpartition(":")[2]
        head = self._start("head", "--port", port, "--durability", self._durability)
        self.head_pid = head.pid

    def stop(self) -> None:
        """End both, the worker first; idempotent."""
        while self._processes:
            process = self._processes.pop()
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _wait_for_address(self, head: subprocess.Popen[bytes]) -> str:
        deadline = time.monotonic() + _READY_WITHIN_S
        while True:
            log = self._log("head").read_text(errors="replace")
            found = _ADDRESS.search(log)
            if found is not None:
                return found.group()
            if head.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the head did not start:\n{log[-2000:]}")
            time.sleep(0.005)

    def _log(self, command: str) -> Path:
        return self._directory / f"{command}.log"

    def _start(self, command: str, *flags: str) -> subprocess.Popen[bytes]:
        with self._log(command).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "rustray", command, *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "RUSTRAY_LOG_LEVEL": "WARNING"},
            )
        self._processes.append(process)
        return process
