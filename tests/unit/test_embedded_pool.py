"""`rustray.Pool` keeps the contract of ``multiprocessing.Pool``: the same assertions on both."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import rustray
from helpers import pool_contract
from helpers.sources import ROOT
from helpers.waiting import eventually


@pytest.fixture(scope="module")
def _pool() -> Iterator[rustray.Pool]:
    with rustray.init(num_cpus=2), rustray.Pool() as pool:
        yield pool
        pool.terminate()
        pool.join()


@pytest.fixture
def pool(_pool: rustray.Pool) -> rustray.Pool:
    """A pool on an embedded cluster of two slots, shared by the tests of this module."""
    return _pool


def _run(arguments: list[str]) -> str:
    """Run a program of its own; return what it printed."""
    env = {key: text for key, text in os.environ.items() if not key.startswith("RUSTRAY_")}
    answer = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        env={**env, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_the_standard_library_keeps_the_contract() -> None:
    """What is asserted of ours is true of the original."""
    tried = [check.__name__ for check in (*pool_contract.SHARED, *pool_contract.OWN)]
    assert _run([pool_contract.__file__]).split()[1::2] == tried


@pytest.mark.parametrize("check", pool_contract.SHARED, ids=lambda check: check.__name__)
def test_a_pool_keeps_the_contract(pool: rustray.Pool, check: Callable[[Any], None]) -> None:
    """Calls and maps, their results, exceptions, callbacks and timeouts."""
    check(pool)


@pytest.mark.usefixtures("pool")
@pytest.mark.parametrize("check", pool_contract.OWN, ids=lambda check: check.__name__)
def test_the_end_of_a_pool_keeps_the_contract(check: Callable[[Any], None]) -> None:
    """Starting, closing, terminating and joining."""
    check(rustray.Pool)


def test_a_process_that_dies_is_an_error_and_no_hang(pool: rustray.Pool) -> None:
    """Where the standard library waits for ever; the pool goes on."""

    def die(x: int) -> int:
        if x == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    with pytest.raises(rustray.WorkerLost):
        pool.map(die, range(5), chunksize=1)
    with pytest.raises(Exception, match="killed by signal 9"):
        pool.apply(die, (3,))
    assert pool.map(die, range(3)) == [0, 1, 2]


@pytest.mark.usefixtures("pool")
def test_processes_bounds_calls_at_once(tmp_path: Path) -> None:
    """A pool of one on a cluster of two runs one at a time, calls and maps."""

    def alone(_x: int) -> bool:
        try:
            (tmp_path / "running").mkdir()
        except FileExistsError:
            return False
        time.sleep(0.01)  # the task's work
        (tmp_path / "running").rmdir()
        return True

    with rustray.Pool(1) as one:
        assert all(one.map(alone, range(10), chunksize=1))
        assert all(result.get(30) for result in [one.apply_async(alone, (1,)) for _ in range(5)])
    one.join()


def test_a_callback_that_raises_is_logged(
    pool: rustray.Pool, caplog: pytest.LogCaptureFixture
) -> None:
    """The result is there all the same, and later callbacks run."""

    def bad(_value: int) -> None:
        raise ValueError("in callback")

    assert pool.apply_async(abs, (-1,), callback=bad).get(30) == 1
    seen: list[int] = []
    assert pool.apply_async(abs, (-2,), callback=seen.append).get(30) == 2
    assert seen == [2]
    assert "in callback" in caplog.text


@pytest.mark.usefixtures("pool")
def test_terminate_wakes_who_waits() -> None:
    """Results of what was cut off say so."""
    with rustray.Pool(1) as own:
        several = own.map_async(pool_contract.nap, [300, 300])
        iterated = own.imap(pool_contract.nap, [300])
        single = own.apply_async(pool_contract.nap, (300,))
        threading.Timer(0.1, own.terminate).start()
        for ask in (several.get, iterated.next, single.get):
            with pytest.raises((RuntimeError, rustray.RustRayError)):
                ask(60)
    own.join()


def test_a_pool_without_a_session_has_a_cluster_of_its_own() -> None:
    """With so many slots, and it goes with the pool."""
    text = (
        "import os, rustray\n"
        "with rustray.Pool(2) as pool:\n"
        "    pids = pool.map(lambda _: os.getpid(), [1])\n"
        "    print(pool.map(abs, range(-3, 0)), os.getpid() in pids)\n"
        "pool.join()\n"
        "print(rustray.is_initialized())\n"
    )
    assert _run(["-c", text]).splitlines() == ["[3, 2, 1] False", "False"]


def test_what_it_does_not_have_is_refused() -> None:
    """In words."""
    with pytest.raises(ValueError, match="maxtasksperchild is not supported"):
        rustray.Pool(maxtasksperchild=3)


def test_many_small_calls(pool: rustray.Pool) -> None:
    """A map of many items is a matter of chunks."""
    assert pool.map(pool_contract.square, range(50_000)) == [x * x for x in range(50_000)]
    eventually(lambda: all(job.has_ended for job in pool._jobs))


def test_the_programs_of_the_guide_run(tmp_path: Path) -> None:
    """Those of docs/map.md that have a name."""
    page = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
    programs = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", page, re.M | re.S))
    printed = {}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        printed[name] = _run([str(tmp_path / name)]).splitlines()
    assert printed == {
        "squares.py": [str(sum(x * x for x in range(1000)))],
        "pool.py": [str([x**3 for x in range(10)]), "27"],
    }


def test_the_example_runs() -> None:
    """examples/many_items.py prints what it says."""
    lines = _run([str(ROOT / "examples" / "many_items.py")]).splitlines()
    assert lines == [
        "pi is about 3.14",
        "2.0",
        "line 1: division by zero",
        "line 2: not enough values to unpack (expected 2, got 1)",
        "3.0",
        "the first prime above a million is 1000003",
        "[6, 7, 1]",
    ]
