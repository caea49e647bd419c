"""The embedded cluster: head and worker in this process, executors as children."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import rustray
from helpers.waiting import eventually
from rustray.common.errors import (
    PayloadError,
    ResourceNotAvailable,
    TaskCancelled,
    TaskExecutionFailed,
    TaskTimeout,
)


class Scale:
    """Has a state, and can be called."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, x: int) -> int:
        """Multiply."""
        return self.factor * x


class LaterScale(Scale):
    """The same as a coroutine function."""

    async def __call__(self, x: int) -> int:  # type: ignore[override]
        """Multiply."""
        return self.factor * x


class CountTo(Scale):
    """The same as a generator function."""

    def __call__(self, x: int) -> Iterator[int]:  # type: ignore[override]
        """Count from there, so many."""
        yield from range(x, x + self.factor)


@rustray.remote
def square(x: int) -> int:
    """Square."""
    return x * x


@rustray.remote
def pid() -> int:
    """Say which process runs this."""
    return os.getpid()


@rustray.remote
def nap(seconds: float) -> float:
    """Sleep."""
    time.sleep(seconds)  # the task's work
    return seconds


@rustray.remote(max_retries=0)
def die(how: str) -> None:
    """End the executor process."""
    if how == "exit":
        os._exit(17)
    os.kill(os.getpid(), signal.SIGKILL)


@rustray.remote
async def fetch(x: int) -> int:
    """Wait on an event loop."""
    await asyncio.sleep(0.001)  # the task's work
    return x + 1


def script(text: str, *, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run a program of its own and return how it ended."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        check=False,
    )


def test_tasks_run_in_other_processes(cluster: None) -> None:
    """Results come in order, from child processes."""
    assert rustray.get([square.remote(i) for i in range(2_000)]) == [i * i for i in range(2_000)]
    assert rustray.get(pid.remote()) != os.getpid()


def test_whatever_can_be_called_runs_as_tasks(cluster: None) -> None:
    """Partials and objects with ``__call__``; plain, async and generators, with their state."""
    assert rustray.get(rustray.remote(functools.partial(divmod, 7)).remote(2)) == (3, 1)
    assert rustray.get(rustray.remote(functools.partial(Scale(2), 4)).remote()) == 8
    assert rustray.get(rustray.remote(Scale(3)).remote(4)) == 12
    assert rustray.get(rustray.remote(LaterScale(3)).remote(4)) == 12
    assert rustray.get(list(rustray.remote(CountTo(2)).remote(7))) == [7, 8]


def test_both_slots_work_at_once(cluster: None) -> None:
    """Two tasks that last run side by side."""
    rustray.get([nap.remote(0.001) for _ in range(4)])
    began = time.monotonic()
    rustray.get([nap.remote(0.5), nap.remote(0.5)])
    assert time.monotonic() - began < 0.95


def test_async_and_thread_functions_run(cluster: None) -> None:
    """`async def` on a loop, executor="thread" in threads."""
    assert rustray.get([fetch.remote(i) for i in range(20)]) == list(range(1, 21))
    assert rustray.get(square.options(executor="thread").remote(5)) == 25


def test_user_errors_arrive_typed(cluster: None) -> None:
    """The user's class, the remote traceback, task id and worker."""

    @rustray.remote
    def broken(x: int) -> float:
        return 1 / x

    ref = broken.remote(0)
    with pytest.raises(ZeroDivisionError) as caught:
        rustray.get(ref)
    error = caught.value
    assert isinstance(error, TaskExecutionFailed)
    assert error.task_id == ref.task_id
    assert error.worker_id.startswith("embedded-")
    assert "in broken" in error.remote_traceback


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_dead_executor_fails_only_its_own_task(cluster: None, how: str) -> None:
    """The others run, and the pool heals."""
    bad = die.remote(how)
    good = [square.remote(i) for i in range(200)]
    with pytest.raises(rustray.TaskError) as caught:
        rustray.get(bad, timeout=30)
    assert ("17" if how == "exit" else "SIGKILL") in str(caught.value)
    assert rustray.get(good, timeout=30) == [i * i for i in range(200)]


def test_system_exit_in_a_task_is_an_error_of_the_task(cluster: None) -> None:
    """And the program that asks goes on."""

    @rustray.remote
    def leave() -> None:
        sys.exit("bye")

    with pytest.raises(TaskExecutionFailed):
        rustray.get(leave.remote(), timeout=30)


def test_running_and_queued_tasks_can_be_cancelled(cluster: None) -> None:
    """TaskCancelled for each, soon; later tasks run."""
    running = [nap.remote(30) for _ in range(2)]
    queued = [nap.remote(30) for _ in range(3)]
    rustray.cancel([*running, *queued])
    for ref in (*running, *queued):
        with pytest.raises(TaskCancelled):
            rustray.get(ref, timeout=20)
    assert rustray.get(square.remote(3), timeout=20) == 9


def test_force_cancel_ends_a_task_that_does_not_listen(cluster: None) -> None:
    """Its executor is killed, and the error is TaskCancelled as well."""

    @rustray.remote
    def deaf() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        while True:
            try:
                time.sleep(30)  # the task's work
            except BaseException:
                continue

    ref = deaf.remote()
    assert rustray.wait([ref], timeout=0.2) == ([], [ref])
    rustray.cancel(ref, force=True)
    with pytest.raises(TaskCancelled):
        rustray.get(ref, timeout=20)


def test_a_run_timeout_ends_the_task(cluster: None) -> None:
    """TaskTimeout names the phase."""
    with pytest.raises(TaskTimeout) as caught:
        rustray.get(nap.options(timeout_s=0.2, max_retries=0).remote(30), timeout=20)
    assert caught.value.phase == "run"


def test_an_impossible_request_fails_at_submit(cluster: None) -> None:
    """ResourceNotAvailable names what is missing."""
    with pytest.raises(ResourceNotAvailable):
        rustray.get(square.options(num_cpus=1_000).remote(1), timeout=20)


class NoAttributes(Exception):
    """Raises when it is looked at."""

    def __getattribute__(self, name: str) -> Any:
        raise ValueError("do not look")


class NoText(Exception):
    """Interrupts whoever wants to print it."""

    def __str__(self) -> str:
        raise KeyboardInterrupt


class NoPickle(Exception):
    """Wants to end the process that pickles it."""

    def __reduce__(self) -> Any:
        raise SystemExit(3)


class NoCopy(Exception):
    """Ends the process that unpickles it."""

    def __reduce__(self) -> Any:
        return sys.exit, (3,)


@rustray.remote
def misbehave(kind: str, log: str) -> Any:
    """Raise or return something whose methods raise, and note that it ran."""
    with Path(log).open("a") as runs:
        runs.write("x")
    if kind == "result":
        return NoPickle()
    raise {"attributes": NoAttributes, "text": NoText, "pickle": NoPickle, "copy": NoCopy}[kind]()


@pytest.mark.parametrize("kind", ["attributes", "text", "pickle", "copy", "result"])
def test_methods_that_raise_are_the_tasks_failure(cluster: None, kind: str, tmp_path: Path) -> None:
    """Regression: they killed the executor, and the task ran four times."""
    log = tmp_path / "runs"
    expected = PayloadError if kind == "result" else TaskExecutionFailed
    with pytest.raises(expected):
        rustray.get(misbehave.remote(kind, str(log)), timeout=30)
    assert log.read_text() == "x"


def test_more_slots_than_descriptors_are_refused() -> None:
    """Regression: it hung, or ended with an OSError of its insides."""
    text = """
        import resource, rustray
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))
        try:
            rustray.init(num_cpus=300)
        except rustray.ConfigError as error:
            print(error)
    """
    done = script(text)
    assert "ulimit -n" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr


def test_a_result_that_cannot_travel_is_named(cluster: None) -> None:
    """PayloadError says which part of the result."""

    @rustray.remote
    def locked() -> dict[str, object]:
        return {"x": threading.Lock()}

    with pytest.raises(PayloadError, match="'x'"):
        rustray.get(locked.remote(), timeout=20)


async def test_references_are_awaitable(cluster: None) -> None:
    """On the test's own event loop."""
    assert await asyncio.gather(*[square.remote(i) for i in range(50)]) == [
        i * i for i in range(50)
    ]


def test_it_starts_fast_loads_no_grpc_and_leaves_nothing() -> None:
    """A script without a main guard: result, no grpc, no child left, exit code 0."""
    found = script(
        """
        import sys, time
        began = time.monotonic()
        import rustray

        @rustray.remote
        def double(x):
            return 2 * x

        print(rustray.get(double.remote(21)))
        print(time.monotonic() - began)
        print(any(name == "grpc" or name.startswith("grpc.") for name in sys.modules))
        import psutil
        print(*[child.pid for child in psutil.Process().children(recursive=True)])
        """
    )
    assert found.returncode == 0, found.stderr
    result, took_s, has_grpc, pids = found.stdout.splitlines()
    assert result == "42"
    assert float(took_s) < 20
    assert has_grpc == "False"
    assert pids
    eventually(lambda: not any(psutil.pid_exists(int(p)) for p in pids.split()))
    assert found.stderr == ""


def test_exit_with_unfinished_tasks_does_not_hang() -> None:
    """A program that ends without waiting takes its tasks with it."""
    began = time.monotonic()
    found = script(
        """
        import time
        import rustray

        @rustray.remote
        def long():
            time.sleep(600)

        rustray.init(num_cpus=2)
        refs = [long.remote() for _ in range(10)]
        rustray.wait(refs, timeout=0.3)
        """
    )
    assert found.returncode == 0, found.stderr
    assert time.monotonic() - began < 40


def test_ctrl_c_ends_a_program_that_waits(tmp_path: Path) -> None:
    """SIGINT raises KeyboardInterrupt in get, and no process stays behind."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import time
            import psutil
            import rustray

            @rustray.remote
            def long():
                time.sleep(600)

            ref = long.remote()
            rustray.wait([ref], timeout=0.3)
            print(*[c.pid for c in psutil.Process().children(recursive=True)], flush=True)
            rustray.get(ref)
            """
        )
    )
    process = subprocess.Popen(
        [sys.executable, str(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert process.stdout is not None
    pids = [int(p) for p in process.stdout.readline().split()]
    assert pids
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=40)
    assert process.returncode not in (0, None)
    assert "KeyboardInterrupt" in errors
    eventually(lambda: not any(psutil.pid_exists(p) for p in pids))


def test_a_forked_child_may_have_a_cluster_of_its_own() -> None:
    """The parent's cluster goes on; the child's ends with it."""
    found = script(
        """
        import os
        import rustray

        @rustray.remote
        def double(x):
            return 2 * x

        rustray.init(num_cpus=1)
        assert rustray.get(double.remote(1)) == 2
        pid = os.fork()
        if pid == 0:
            try:
                double.remote(2)
            except RuntimeError as error:
                assert "forked" in str(error)
            with rustray.init(num_cpus=1):
                assert rustray.get(double.remote(3)) == 6
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert rustray.get(double.remote(4)) == 8
        print("fine")
        """
    )
    assert found.stdout == "fine\n", found.stderr
