"""Celery with Redis that syncs each write (``appendonly yes``, ``appendfsync always``).

The nearest that Celery has to a durable queue. Both run on loopback without encryption or password,
as their manuals start them; the worker has two processes, settings are at their defaults but for
``task_acks_late``, without which a task is lost with the worker that took it.
"""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

_READY_WITHIN_S: Final = 60.0
_GRACE_S: Final = 10.0
_URL: Final = "RUSTRAY_BENCH_REDIS_URL"

app: Any = None
if _URL in os.environ:  # in Celery's worker, which imports this module by its name
    from celery import Celery

    app = Celery("peer", broker=os.environ[_URL], backend=os.environ[_URL])
    app.conf.task_acks_late = True

    @app.task(name="noop")  # type: ignore[untyped-decorator]
    def noop(_number: int = 0) -> None:
        """Do nothing."""


class CeleryPeer:
    """Redis and a Celery worker, as processes of their own in a directory.

    Raises:
        RuntimeError: Redis is not installed, or one of the two does not start.
    """

    def __init__(self, directory: Path, *, executors: int) -> None:
        if shutil.which("redis-server") is None:
            raise RuntimeError("redis-server is not there: install your system's package of it")
        self._directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ[_URL] = f"redis://127.0.0.1:{port}/0"
        self._start(
            "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory),
            "--appendonly", "yes", "--appendfsync", "always", "--save", "",
        )  # fmt: skip
        self._wait_for(lambda: _answers(port), "Redis")
        self._start(
            sys.executable, "-m", "celery", "-A", "suite.celery_peer", "worker",
            "--concurrency", str(executors), "--loglevel", "ERROR",
        )  # fmt: skip
        module = importlib.reload(sys.modules[__name__])
        self.app = module.app
        self.noop = module.noop
        self._wait_for(lambda: bool(self.app.control.ping(timeout=0.5)), "the Celery worker")

    def stop(self) -> None:
        """End both, the worker first."""
        while self._processes:
            process = self._processes.pop()
            process.terminate()
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, *command: str) -> None:
        with (self._directory / f"{Path(command[0]).name}.log").open("ab") as log:
            here = str(Path(__file__).resolve().parents[1])
            self._processes.append(
                subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=log,
                    cwd=self._directory,
                    env={**os.environ, "PYTHONPATH": here},
                )
            )

    def _wait_for(self, is_ready: Any, what: str) -> None:
        deadline = time.monotonic() + _READY_WITHIN_S
        while not is_ready():
            if time.monotonic() > deadline or self._processes[-1].poll() is not None:
                self.stop()
                raise RuntimeError(f"{what} did not start; see the logs in {self._directory}")
            time.sleep(0.1)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
