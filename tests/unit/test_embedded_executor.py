"""`rustray.Executor` on an embedded cluster of its own: the cases that need real processes."""

from __future__ import annotations

import concurrent.futures as cf
import concurrent.futures.process
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

import rustray
from helpers.waiting import eventually

_state: list[Any] = []


def set_state(value: Any) -> None:
    """Remember in this process."""
    _state.append(value)


def get_state() -> list[Any]:
    """Return what this process remembers."""
    return list(_state)


def fail_to_start() -> None:
    """Be an initializer that raises."""
    raise ValueError("no licence here")


def crash() -> None:
    """Kill the executor process."""
    os.kill(os.getpid(), signal.SIGKILL)


def slow(seconds: float) -> int:
    """Sleep, then say where."""
    time.sleep(seconds)  # the task's work
    return os.getpid()


class EndsTheProgram:
    """Calls `sys.exit` where it is unpickled."""

    def __reduce__(self) -> Any:
        return sys.exit, (3,)


def end_the_program() -> EndsTheProgram:
    """Return what nobody should unpickle."""
    return EndsTheProgram()


@pytest.fixture(scope="module")
def executor() -> Iterator[rustray.Executor]:
    """An executor with two slots, shared by the tests of this module."""
    rustray.shutdown()
    with rustray.Executor(max_workers=2) as ex:
        yield ex


def test_calls_run_in_other_processes(executor: rustray.Executor) -> None:
    """The design's example, and another pid."""
    assert executor.submit(pow, 2, 10).result(30) == 1024
    assert list(executor.map(abs, range(-1_000, 0))) == list(range(1_000, 0, -1))
    assert list(executor.map(pow, range(50), range(50), chunksize=7)) == [
        pow(i, i) for i in range(50)
    ]
    assert executor.submit(os.getpid).result(30) != os.getpid()
    assert executor._max_workers == 2


def test_a_crash_breaks_only_its_own_future(executor: rustray.Executor) -> None:
    """At once, without running again; the others go on and the pool heals."""
    before = executor.submit(slow, 0.05)
    broken = executor.submit(crash)
    after = [executor.submit(abs, -i) for i in range(50)]
    error = broken.exception(30)
    assert isinstance(error, concurrent.futures.process.BrokenProcessPool)
    assert [f.result(30) for f in after] == list(range(50))
    assert before.result(30)


def test_more_than_twenty_of_fifty_waiting_calls_are_cancelled() -> None:
    """CPython's test_cancel_futures, with its numbers."""
    executor = rustray.Executor(max_workers=2)
    futures = [executor.submit(time.sleep, 0.1) for _ in range(50)]
    executor.shutdown(cancel_futures=True)
    assert sum(f.cancelled() for f in futures) > 20
    done = [f for f in futures if not f.cancelled()]
    assert done
    assert all(f.done() for f in done)
    assert all(f.exception() is None for f in done)


def test_a_burst_of_quick_calls_leaves_later_ones_cancellable() -> None:
    """The cluster has been shown to take thousands at once; slow calls wait here all the same."""
    executor = rustray.Executor(max_workers=2)
    for future in [executor.submit(abs, i) for i in range(20_000)]:
        future.result(60)
    futures = [executor.submit(slow, 0.1) for _ in range(50)]
    assert sum(f.running() for f in futures) <= 4
    executor.shutdown(cancel_futures=True)
    assert sum(f.cancelled() for f in futures) > 40
    assert all(f.result(0) for f in futures if not f.cancelled())


def test_the_initializer_runs_once_in_each_process() -> None:
    """Before the first call, with its arguments."""
    with rustray.Executor(max_workers=2, initializer=set_state, initargs=("ready",)) as executor:
        states = [executor.submit(get_state) for _ in range(100)]
        assert all(f.result(30) == ["ready"] for f in states)


def test_a_failing_initializer_breaks_the_executor() -> None:
    """All calls get BrokenExecutor; submit refuses."""
    with rustray.Executor(max_workers=1, initializer=fail_to_start) as executor:
        future = executor.submit(abs, -1)
        with pytest.raises(cf.BrokenExecutor, match="no licence here"):
            future.result(30)
        with pytest.raises(cf.BrokenExecutor):
            executor.submit(abs, -1)


def test_an_executor_that_is_dropped_ends_its_processes() -> None:
    """Without shutdown: calls end, then the processes go."""
    before = set(psutil.Process().children(recursive=True))
    future = rustray.Executor(max_workers=1).submit(abs, -5)
    assert future.result(30) == 5
    del future
    eventually(lambda: set(psutil.Process().children(recursive=True)) <= before, 30)


def test_pending_work_finishes_at_interpreter_exit() -> None:
    """As with the standard library, without shutdown and without a main guard."""
    program = """
    import rustray

    def say(i):
        import time
        time.sleep(0.05)
        print("ran", i, flush=True)
        return i

    done = []
    executor = rustray.Executor(max_workers=1)
    for i in range(8):
        executor.submit(say, i).add_done_callback(
            # One write: what tasks print is shown between two.
            lambda f: print(f"done {f.result()}\\n", end="", flush=True)
        )
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert [line for line in found.stdout.splitlines() if line.startswith("done")] == [
        f"done {i}" for i in range(8)
    ]


def test_a_value_that_would_end_the_program_is_an_error(executor: rustray.Executor) -> None:
    """Regression: a SystemExit while a result was unpickled ended the thread of all results."""
    with pytest.raises(rustray.PayloadError, match="SystemExit"):
        executor.submit(end_the_program).result(20)
    assert executor.submit(pow, 2, 5).result(20) == 32


def test_a_future_that_the_program_set_itself_counts_as_ended() -> None:
    """It is its own fault, and no reason to hang at the end."""
    with rustray.Executor(max_workers=1) as ex:
        future = ex.submit(slow, 0.05)
        future.set_result(7)
        assert ex.submit(pow, 2, 3).result(20) == 8
    assert future.result() == 7


def test_shutdown_in_a_callback_does_not_wait_for_itself() -> None:
    """Regression: it waited for the very callback that it was called in."""
    ex = rustray.Executor(max_workers=1)
    future = ex.submit(slow, 0.05)
    future.add_done_callback(lambda _: ex.shutdown())
    future.result(20)
    ex.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        ex.submit(pow, 2, 3)
