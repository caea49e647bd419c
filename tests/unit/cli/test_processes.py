"""The installed commands as processes: a head, a worker, and clients that talk to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rustray.cli
from helpers.waiting import eventually

pytestmark = pytest.mark.slow


class Shell:
    """Runs commands in one working directory under one environment."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        source = str(Path(rustray.cli.__file__).parents[2])
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "PYTHONPATH": source,
            "RUSTRAY_STATE_DIR": str(directory / "state"),
        }
        self.started: list[subprocess.Popen[str]] = []

    def run(self, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "rustray", *argv],
            cwd=self.directory,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """Start a command that goes on, and wait for its first line."""
        with (self.directory / f"{argv[0]}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "rustray", *argv],
                cwd=self.directory,
                env=self.env,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.started.append(process)
        return process

    def stop(self) -> None:
        """End what was started, last first."""
        for process in reversed(self.started):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """Return a shell whose processes end with the test."""
    found = Shell(tmp_path)
    yield found
    found.stop()


def first_line(process: subprocess.Popen[str]) -> str:
    """Read the line with which a node says that it is ready."""
    assert process.stdout is not None
    return process.stdout.readline()


def test_nodes_that_are_ready_say_so_in_one_json_value(shell: Shell):
    """It is all that they print; a mistake in the line is one value too."""
    (shell.directory / "mytasks.py").write_text(
        "import rustray\n\n@rustray.function\ndef greet() -> str:\n    return 'hello'\n"
    )
    head = shell.start("head", "--port", "0", "--json")
    ready = json.loads(first_line(head))
    assert ready["address"].startswith("127.0.0.1:")
    assert ready["state_dir"] == str(shell.directory / "state")
    argv = ("--port", "0", "--cpus", "1", "--name", "one", "--functions", "mytasks")
    worker = shell.start("worker", *argv, "--json")
    joined = json.loads(first_line(worker))
    assert (joined["name"], joined["head"]) == ("one", ready["address"])
    assert (joined["cpus"], joined["functions"]) == (1, ["greet"])

    def listed() -> list[str]:
        answer = json.loads(shell.run("workers", "list", "--json").stdout)
        return [each["worker_id"] for each in answer["workers"]]

    eventually(lambda: listed() == [joined["worker_id"]], 20)
    for process in (worker, head):
        process.terminate()
        assert process.wait(20) == 0
        assert process.stdout is not None
        assert process.stdout.read() == ""
    wrong = shell.run("head", "--json", "--prot", "1")
    assert wrong.returncode == 2
    assert json.loads(wrong.stdout)["error"]["code"] == "USAGE"


def test_head_worker_and_clients_find_each_other_without_flags(shell: Shell):
    """On one machine a head, a worker and commands need no addresses and no tokens."""
    (shell.directory / "mytasks.py").write_text(
        "import rustray\n\n@rustray.function\ndef greet(name: str, times: int = 1) -> str:\n"
        "    return f'hello {name}' * times\n"
    )
    head = shell.start("head", "--port", "0")
    assert first_line(head).startswith("head ready at rustray://127.0.0.1:")
    worker = shell.start("worker", "--port", "0", "--cpus", "1", "--functions", "mytasks")
    assert "works for rustray://127.0.0.1:" in first_line(worker)
    eventually(lambda: json.loads(shell.run("workers", "list", "--json").stdout)["workers"], 20)

    done = shell.run("submit", "greet", "you", "--kwarg", "times=2", "--wait", "--timeout", "30")
    assert (done.returncode, done.stdout) == (0, "hello youhello you\n"), done.stderr
    failed = shell.run("submit", "greet", "you", "[]", "--wait", "--json")
    assert failed.returncode == 1
    assert json.loads(failed.stdout)["error"]
    unknown = shell.run("submit", "gret", "you")
    assert unknown.returncode == 5
    assert "greet" in unknown.stderr
    assert shell.run("tasks", "get", "f" * 32).returncode == 5
    bad = shell.run("status", RUSTRAY_TOKEN="eyJhbGciOiJub25lIn0.e30.")
    assert bad.returncode == 4
    assert "Traceback" not in bad.stderr
    second = shell.run("head", "--port", "0")
    assert second.returncode == 2
    assert "running already" in second.stderr

    joined = shell.run("token", "create", "--role", "worker", "--ttl", "5m")
    assert joined.stdout.startswith("rrj1.")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    head.send_signal(signal.SIGINT)
    assert head.wait(20) == 0


def test_a_worker_elsewhere_joins_by_string_alone(shell: Shell):
    """With --join a worker needs no state directory of the head."""
    first_line(shell.start("head", "--port", "0"))
    (shell.directory / "join").write_text(shell.run("token", "create", "--role", "worker").stdout)
    there = shell.env["RUSTRAY_STATE_DIR"]
    shell.env["RUSTRAY_STATE_DIR"] = str(shell.directory / "empty")
    worker = shell.start("worker", "--join", "@join", "--port", "0", "--cpus", "1")
    assert "works for" in first_line(worker)
    shell.env["RUSTRAY_STATE_DIR"] = there
    eventually(lambda: json.loads(shell.run("workers", "list", "--json").stdout)["workers"], 20)


def test_a_head_that_is_not_there_is_exit_code_3(shell: Shell):
    """F4: nothing to connect to is said plainly, also as JSON."""
    done = shell.run("status", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["code"] == "HEAD_UNAVAILABLE"
    assert shell.run("status", "--head", "127.0.0.1:1").returncode == 3


def test_a_reader_that_leaves_is_no_error(shell: Shell):
    """F7: `rustray ... | head -1` ends without a word on stderr, also with stdout closed."""
    command = f"{sys.executable} -m rustray"
    for line in (
        f"{command} config show | true",
        f"{command} config show >&-",
        f"{command} config show <&-",
    ):
        done = subprocess.run(
            ["/bin/sh", "-c", line], env=shell.env, capture_output=True, text=True, check=False
        )
        assert done.stderr == ""
