"""A real cluster for a test: head and workers as processes of the installed command.

Every process is started in a directory of the test's own, with its output in a log file, and is
ended by its id. What goes wrong is reported together with the ends of the logs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import psutil
import pytest

import rustray
from helpers.sources import ROOT
from helpers.waiting import eventually

READY_WITHIN_S: Final = 30.0
COMMAND_TIMEOUT_S: Final = 60.0
FUNCTIONS: Final = "e2e.functions"
_END_WITHIN_S: Final = 8.0
_HEAD_READY: Final = re.compile(r"^head ready at (rustray://(\S+):(\d+)) ", re.MULTILINE)
_WORKER_READY: Final = re.compile(r"^worker (\S+) works for rustray://", re.MULTILINE)


def environment(state_dir: Path | str, **more: str) -> dict[str, str]:
    """Return the environment for a program of the test's own cluster."""
    env = {name: text for name, text in os.environ.items() if not name.startswith("RUSTRAY_")}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    env["PYTHONUNBUFFERED"] = "1"
    env["RUSTRAY_STATE_DIR"] = str(state_dir)
    return {**env, **more}


@dataclass
class Node:
    """One process of a cluster.

    Attributes:
        name: What the test calls it.
        process: The command itself; a worker's executors are its descendants.
        log: File with its standard output and error.
        node_id: A worker's id at the head, once it is ready.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    node_id: str = ""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self.process.poll() is None

    def text(self) -> str:
        """Return what it has printed up to now."""
        return self.log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, within_s: float = 30.0) -> int:
        """Wait for its end and return the exit code (negative: the signal)."""
        return self.process.wait(within_s)

    def kill(self) -> None:
        """End it with SIGKILL, as a power cut would."""
        self.process.kill()
        self.process.wait()

    def executor_pids(self) -> list[int]:
        """Return the processes that run user code: children of the worker's zygote."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [
                executor.pid
                for zygote in psutil.Process(self.pid).children()
                for executor in zygote.children()
            ]
        return []

    def end(self) -> None:
        """End it, politely at first."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)  # a stopped process cannot end
            self.process.terminate()
            try:
                self.process.wait(_END_WITHIN_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


@dataclass
class Cluster:
    """A head and its workers; use it as ``with Cluster(tmp_path) as cluster``.

    Attributes:
        directory: Holds the state directory and the logs.
        settings: ``SECTION__KEY`` to text, for all of its processes.
        workers: Those that were started, by name.
    """

    directory: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    head: Node | None = None
    host: str = ""
    port: int = 0
    workers: dict[str, Node] = field(default_factory=dict)
    _nodes: list[Node] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            error.add_note(self.logs())
        self.stop()

    # ---- what it is -------------------------------------------------------------------

    @property
    def state_dir(self) -> Path:
        """The head's state directory."""
        return self.directory / "state"

    @property
    def address(self) -> str:
        """The head's address: ``rustray://host:port``."""
        return f"rustray://{self.host}:{self.port}"

    def environment(self, state_dir: Path | None = None, **more: str) -> dict[str, str]:
        """Return the environment of its programs."""
        own = {f"RUSTRAY_{name}": text for name, text in self.settings.items()}
        return environment(state_dir or self.state_dir, **{**own, **more})

    def logs(self, lines: int = 25) -> str:
        """Return the end of each process's log."""
        parts = []
        for node in self._nodes:
            state = "running" if node.is_running else f"ended with {node.process.returncode}"
            tail = "\n".join(node.text().splitlines()[-lines:])
            parts.append(f"---- {node.name} (pid {node.pid}, {state}) ----\n{tail}")
        return "\n".join(parts)

    # ---- its processes ----------------------------------------------------------------

    def start_head(self, *flags: str, port: int = 0) -> Node:
        """Start the head and wait until it serves."""
        node = self.launch("head", ["-m", "rustray", "head", "--port", str(port), *flags])
        return self.adopt_head(node)

    def adopt_head(self, node: Node) -> Node:
        """Wait until a launched process says that it serves as the head."""
        found = self._wait_for_line(node, _HEAD_READY)
        self.host, self.port = found[2], int(found[3])
        self.head = node
        return node

    def restart_head(self) -> Node:
        """Kill the head with SIGKILL and start another one on the same port."""
        assert self.head is not None
        self.head.kill()
        return self.start_head(port=self.port)

    def start_worker(
        self,
        name: str,
        *flags: str,
        cpus: float = 2,
        functions: str = FUNCTIONS,
        state_dir: Path | None = None,
        **env: str,
    ) -> Node:
        """Start a worker and wait for its ready line; see `wait_joined` for more."""
        argv = ["-m", "rustray", "worker", "--port", "0", "--name", name, "--cpus", str(cpus)]
        argv += ["--functions", functions] if functions else []
        node = self.launch(name, [*argv, *flags], state_dir=state_dir, **env)
        node.node_id = self._wait_for_line(node, _WORKER_READY)[1]
        self.workers[name] = node
        return node

    def launch(
        self,
        name: str,
        argv: Sequence[str],
        *,
        state_dir: Path | None = None,
        through: Sequence[str] = (),
        **env: str,
    ) -> Node:
        """Start a Python program of this cluster without waiting for anything.

        Args:
            name: For messages and the log's name.
            argv: What follows the interpreter.
            state_dir: Where it looks for credentials; None: the head's directory.
            through: A command that starts it, such as ``ip netns exec NAME``.
            **env: Added to its environment.
        """
        log = self.directory / f"{name}-{len(self._nodes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*through, sys.executable, *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=self.environment(state_dir, **env),
                start_new_session=True,
            )
        node = Node(name, process, log)
        self._nodes.append(node)
        return node

    def stop(self) -> None:
        """End all processes, the head last; idempotent."""
        for node in reversed(self._nodes):
            node.end()

    # ---- talking to it ----------------------------------------------------------------

    def run(
        self, *arguments: str, state_dir: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run ``rustray ARGUMENTS`` to its end."""
        return subprocess.run(
            [sys.executable, "-m", "rustray", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            cwd=self.directory,
            env=self.environment(state_dir, **env),
            check=False,
        )

    def json(self, *arguments: str) -> Any:
        """Run ``rustray ARGUMENTS --json``, which must succeed, and return its answer."""
        answer = self.run(*arguments, "--json")
        assert answer.returncode == 0, answer.stderr + self.logs()
        return json.loads(answer.stdout)

    @contextlib.contextmanager
    def as_own(self) -> Iterator[None]:
        """Let this process find the cluster's credentials, as programs on the same machine do."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RUSTRAY_STATE_DIR", str(self.state_dir))
            yield

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Run ``rustray.init(address)`` around a block."""
        with self.as_own(), rustray.init(self.address):
            yield

    def head_node(self, token: str | None = None, **options: Any) -> rustray.HeadNode:
        """Make a client; enter it within `as_own` unless it brings a token and a CA file."""
        return rustray.HeadNode(self.host, self.port, token, **options)

    def _wait_for_line(self, node: Node, line: re.Pattern[str]) -> re.Match[str]:
        def look() -> re.Match[str] | None:
            found = line.search(node.text())
            if found is None and not node.is_running:
                raise AssertionError(f"{node.name} ended before it was ready\n{self.logs()}")
            return found

        found = eventually(look, READY_WITHIN_S, what=f"{node.name} is ready")
        assert found is not None
        return found


async def joined(head: rustray.HeadNode, count: int) -> bool:
    """Say whether ``count`` workers are ready for work."""
    return sum(worker.state == "ready" for worker in await head.list_workers()) == count
