"""What a program sees of its tasks: the same over the network and embedded."""

from __future__ import annotations

import asyncio
import ctypes
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rustray
from e2e import functions
from helpers.cluster import Cluster
from helpers.waiting import eventually

pytestmark = pytest.mark.slow

_WAIT_S = 30.0

add = rustray.remote(functions.add)
divide = rustray.remote(functions.divide)
fetch = rustray.remote(functions.fetch)
hold = rustray.remote(functions.hold)
mark = rustray.remote(functions.mark)
work = rustray.remote(functions.work)


@pytest.fixture(scope="module", params=["network", "embedded"])
def _session(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    if request.param == "embedded":
        with rustray.init(num_cpus=2):
            yield
        return
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.start_head()
        cluster.start_worker("a", cpus=2)
        eventually(lambda: cluster.json("workers", "list")["workers"], 20)
        with cluster.session():
            yield


@pytest.fixture(autouse=True)
def cluster(_session: None) -> None:
    """Head and worker with two cores: in processes of their own, and in this process."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A directory for `functions.hold`, whose tasks never outlive their test."""
    yield tmp_path
    (tmp_path / "go").touch()


def test_a_user_error_is_of_both_classes() -> None:
    """It is caught as the user's class and as ours, and has the remote traceback."""

    class Refused(ValueError):
        def __init__(self, code: int) -> None:
            super().__init__(f"code {code}")
            self.code = code

        def __reduce__(self) -> Any:
            return Refused, (self.code,)

    @rustray.remote
    def refuse(code: int) -> None:
        raise Refused(code)

    with pytest.raises(Refused) as caught:
        rustray.get(refuse.remote(7), timeout=_WAIT_S)
    error = caught.value
    assert isinstance(error, rustray.TaskExecutionFailed)
    assert isinstance(error, ValueError)
    assert isinstance(error.cause, Refused)
    assert error.cause.code == 7
    assert "in refuse" in error.remote_traceback
    assert error.attempt == 1
    assert error.worker_id


def test_an_error_that_cannot_travel_is_told_as_text() -> None:
    """An exception that cannot be pickled, or not be unpickled, fails its task and no more."""

    class Locked(Exception):
        def __init__(self) -> None:
            super().__init__("has a lock")
            self.lock = threading.Lock()

    class TwoArguments(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    @rustray.remote
    def refuse(kind: str) -> None:
        raise Locked if kind == "locked" else TwoArguments(1, 2)

    for kind, said in ("locked", "has a lock"), ("two", "1 and 2"):
        with pytest.raises(rustray.TaskExecutionFailed, match=said):
            rustray.get(refuse.remote(kind), timeout=_WAIT_S)


def test_an_argument_that_cannot_travel_is_named() -> None:
    """PayloadError says where in which argument the trouble lies; nothing is submitted."""
    with pytest.raises(rustray.PayloadError, match=r"args\[1\].*'lock'"):
        add.remote(1, {"lock": threading.Lock()})
    assert rustray.get(add.remote(1, 1), timeout=_WAIT_S) == 2


def test_a_result_that_cannot_travel_is_named() -> None:
    """PayloadError says where in the result the trouble lies."""

    @rustray.remote
    def make() -> Any:
        return [1, {"lock": threading.Lock()}]

    with pytest.raises(rustray.PayloadError, match=r"\[1\].*'lock'"):
        rustray.get(make.remote(), timeout=_WAIT_S)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_leaving_from_a_task_fails_the_task(kind: type[BaseException]) -> None:
    """SystemExit and its like end neither executor nor program."""

    @rustray.remote
    def leave(kind: Any) -> None:
        raise kind("bye")

    with pytest.raises(rustray.TaskExecutionFailed, match=kind.__name__):
        rustray.get(leave.remote(kind), timeout=_WAIT_S)


@pytest.mark.parametrize("how", ["exit", "segfault", "kill"])
def test_a_dead_executor_takes_only_its_own_task(how: str) -> None:
    """Exit code or signal is in the error; the tasks beside it and after it run."""

    @rustray.remote(max_retries=0)
    def die(how: str) -> None:
        if how == "exit":
            os._exit(23)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        ctypes.string_at(0)

    others = [work.remote(i, 0.005) for i in range(40)]
    bad = die.remote(how)
    others += [work.remote(i, 0.005) for i in range(40, 80)]
    said = {"exit": "23", "kill": "SIGKILL", "segfault": "SIGSEGV"}[how]
    with pytest.raises(rustray.TaskError, match=said):
        rustray.get(bad, timeout=_WAIT_S)
    assert rustray.get(others, timeout=_WAIT_S) == list(range(80))


def test_a_task_may_print_megabytes() -> None:
    """Output does not block a task, and does not end it."""

    @rustray.remote
    def chatter() -> int:
        for stream in (sys.stdout, sys.stderr):
            for _ in range(50):
                stream.write("x" * 99_999 + "\n")
        os.write(1, b"y" * 100_000)
        return 1

    assert rustray.get(chatter.remote(), timeout=_WAIT_S) == 1


def test_running_and_queued_tasks_are_cancelled(folder: Path) -> None:
    """TaskCancelled for each; what was queued never ran."""
    running = [hold.remote(str(folder), i) for i in range(2)]
    eventually(lambda: (folder / "runs-0").exists() and (folder / "runs-1").exists(), 20)
    queued = [hold.remote(str(folder), i) for i in range(2, 6)]
    rustray.cancel([*queued, *running])
    for ref in (*running, *queued):
        with pytest.raises(rustray.TaskCancelled):
            rustray.get(ref, timeout=_WAIT_S)
    assert {path.name for path in folder.iterdir()} == {"runs-0", "runs-1"}
    assert rustray.get(add.remote(1, 2), timeout=_WAIT_S) == 3


def test_time_limits_end_tasks(folder: Path) -> None:
    """TaskTimeout names the limit: of the run, of the queue, of all together."""
    with pytest.raises(rustray.TaskTimeout) as caught:
        rustray.get(hold.options(timeout_s=0.3).remote(str(folder), 0), timeout=_WAIT_S)
    assert caught.value.phase == "run"
    blocking = [hold.remote(str(folder), i) for i in (1, 2)]
    eventually(lambda: (folder / "runs-1").exists() and (folder / "runs-2").exists(), 20)
    with pytest.raises(rustray.TaskTimeout) as caught:
        rustray.get(add.options(queue_timeout_s=0.2, priority=-1).remote(1, 2), timeout=_WAIT_S)
    assert caught.value.phase == "queue"
    with pytest.raises(rustray.TaskTimeout) as caught:
        rustray.get(add.options(total_timeout_s=0.2).remote(1, 2), timeout=_WAIT_S)
    assert caught.value.phase == "total"
    (folder / "go").touch()
    assert rustray.get(blocking, timeout=_WAIT_S) == [1, 2]


def test_a_wait_may_end_before_its_task(folder: Path) -> None:
    """GetTimeout is a TimeoutError, and the task goes on."""
    ref = hold.remote(str(folder), 5)
    with pytest.raises(rustray.GetTimeout) as caught:
        rustray.get(ref, timeout=0.1)
    assert isinstance(caught.value, TimeoutError)
    assert rustray.wait([ref], timeout=0) == ([], [ref])
    (folder / "go").touch()
    assert rustray.get(ref, timeout=_WAIT_S) == 5


def test_higher_priority_runs_first(folder: Path) -> None:
    """What waits runs by priority, and within one priority in the order of the submits."""
    blocking = hold.options(num_cpus=2).remote(str(folder), 0)
    eventually(lambda: (folder / "runs-0").exists(), 20)
    order = folder / "order"

    @rustray.remote(num_cpus=2)
    def note(path: str, name: str) -> None:
        with open(path, "a", encoding="ascii") as file:
            file.write(name)

    refs = []
    for priority, name in (0, "c"), (-5, "e"), (9, "a"), (0, "d"), (9, "b"):
        refs.append(note.options(priority=priority).remote(str(order), name))
    # With this answer here, the head has them all.
    assert rustray.get(add.options(num_cpus=0).remote(1, 2), timeout=_WAIT_S) == 3
    (folder / "go").touch()
    rustray.get([blocking, *refs], timeout=_WAIT_S)
    assert order.read_text() == "abcde"


def test_a_task_of_two_cores_has_the_worker_to_itself(tmp_path: Path) -> None:
    """On two cores, tasks that need both never overlap, and nothing else runs beside them."""

    @rustray.remote
    def span(seconds: float) -> tuple[float, float]:
        began = time.monotonic()
        time.sleep(seconds)  # the task's work
        return began, time.monotonic()

    big = [span.options(num_cpus=2).remote(0.05) for _ in range(4)]
    small = [span.remote(0.02) for _ in range(6)]
    wide = rustray.get(big, timeout=_WAIT_S)
    narrow = rustray.get(small, timeout=_WAIT_S)
    for began, ended in wide:
        others = [other for other in (*wide, *narrow) if other != (began, ended)]
        assert all(other[1] <= began or ended <= other[0] for other in others)


def test_io_functions_share_an_executor() -> None:
    """Threads and coroutines wait side by side: fifty waits of 0.2 s take far less than 10 s."""
    for function, argument in (fetch, (0.2,)), (work.options(executor="thread"), (1, 0.2)):
        wanting_nothing = function.options(num_cpus=0)
        rustray.get(wanting_nothing.remote(*argument), timeout=_WAIT_S)
        began = time.monotonic()
        rustray.get([wanting_nothing.remote(*argument) for _ in range(50)], timeout=_WAIT_S)
        assert time.monotonic() - began < 5


def test_results_keep_their_types() -> None:
    """What the standard library pickles comes back as it was, also by the megabyte."""

    @rustray.remote
    def same(value: Any, *, also: Any = None) -> Any:
        return value, also

    values = [None, (1, 2), {"x": {3, 4}}, b"\x00" * 3_000_000, 1 << 200, float("inf"), "grüße"]
    for value in values:
        assert rustray.get(same.remote(value, also=[value]), timeout=_WAIT_S) == (value, [value])
    assert pickle.loads(pickle.dumps(rustray.TaskNotFound("x"))).args == ("x",)


def test_user_exceptions_are_retried_only_on_request(tmp_path: Path) -> None:
    """Without retry_exceptions a function that raises is run once; with it, until it succeeds."""

    @rustray.remote
    def third_time(folder: str) -> int:
        count = len(os.listdir(folder))
        with open(os.path.join(folder, str(count)), "wb"):
            pass
        if count < 2:
            raise ConnectionError(f"attempt {count}")
        return count

    with pytest.raises(ConnectionError, match="attempt 0"):
        rustray.get(third_time.remote(str(tmp_path)), timeout=_WAIT_S)
    assert len(list(tmp_path.iterdir())) == 1
    other = third_time.options(retry_exceptions=[KeyError, "builtins.ValueError"])
    with pytest.raises(ConnectionError, match="attempt 1"):
        rustray.get(other.remote(str(tmp_path)), timeout=_WAIT_S)
    (tmp_path / "1").unlink()
    eager = third_time.options(retry_exceptions=[OSError], max_retries=2, retry_delay_s=0)
    assert rustray.get(eager.remote(str(tmp_path)), timeout=_WAIT_S) == 2


def test_a_deadline_ends_queued_and_running_tasks(folder: Path) -> None:
    """At that moment, wherever they are; one that is over already does not start."""
    late = hold.options(deadline=time.time() + 1.0)
    refs = [late.remote(str(folder), n) for n in range(4)]
    for ref in refs:
        with pytest.raises(rustray.TaskTimeout) as caught:
            rustray.get(ref, timeout=_WAIT_S)
        assert caught.value.phase == "deadline"
    with pytest.raises(rustray.TaskTimeout):
        rustray.get(add.options(deadline=time.time() - 1.0).remote(1, 2), timeout=_WAIT_S)
    in_time = add.options(deadline=datetime.fromtimestamp(time.time() + _WAIT_S, UTC))
    assert rustray.get(in_time.remote(1, 2), timeout=_WAIT_S) == 3


def test_a_task_that_kills_its_executors_is_poisoned() -> None:
    """It ends with how they died and their last words; its neighbours do not notice."""

    @rustray.remote(max_retries=-1)
    def deadly() -> None:
        print("about to crash", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)

    bystanders = [add.remote(n, 1) for n in range(50)]
    with pytest.raises(rustray.TaskPoisoned, match="SIGSEGV") as caught:
        rustray.get(deadly.remote(), timeout=_WAIT_S)
    assert caught.value.signal == signal.SIGSEGV
    assert str(caught.value).count("about to crash") == 3
    assert rustray.get(bystanders, timeout=_WAIT_S) == [n + 1 for n in range(50)]


def test_an_impossible_request_names_the_nearest_miss() -> None:
    """ResourceNotAvailable at once, unless the task says that it can wait."""
    with pytest.raises(rustray.ResourceNotAvailable, match="2"):
        rustray.get(add.options(num_cpus=3).remote(1, 2), timeout=_WAIT_S)
    patient = add.options(num_cpus=3, wait_for_resources=True).remote(1, 2)
    assert rustray.wait([patient], timeout=0.2) == ([], [patient])
    rustray.cancel(patient)
    with pytest.raises(rustray.TaskCancelled):
        rustray.get(patient, timeout=_WAIT_S)


async def test_references_in_coroutines() -> None:
    """await, gather and asyncio.timeout do with a reference what they do with a task."""
    assert await asyncio.gather(*[add.remote(i, i) for i in range(20)]) == [
        2 * i for i in range(20)
    ]
    ready, rest = await rustray.await_([add.remote(1, 2) for _ in range(3)], num_returns=3)
    assert (len(ready), rest) == (3, [])
    ref = fetch.remote(600)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await ref
    with pytest.raises(rustray.TaskCancelled):
        await rustray.aget(ref, timeout=_WAIT_S)


def test_the_executor_keeps_the_contract_of_the_standard_library() -> None:
    """submit, map, exceptions and shutdown as in concurrent.futures, in the session at hand."""
    with rustray.Executor() as pool:
        assert pool.submit(pow, 2, 10).result(_WAIT_S) == 1024
        assert list(pool.map(functions.add, range(100), range(100), timeout=_WAIT_S)) == [
            2 * i for i in range(100)
        ]
        failed = pool.submit(functions.divide, 1, 0)
        assert isinstance(failed.exception(_WAIT_S), ZeroDivisionError)
    with pytest.raises(RuntimeError):
        pool.submit(pow, 2, 2)


def test_large_arrays_are_the_same_everywhere() -> None:
    """Read-only views, a copy of what was handed in, alive as long as somebody looks at them."""

    @rustray.remote
    def double(array: Any, note: str) -> Any:
        assert not array.flags.writeable
        assert array.ctypes.data % 16 == 0
        return {"twice": array * 2, "note": note}

    array = np.arange(300_000, dtype=np.float64)
    refs = [double.remote(array, note=str(i)) for i in range(4)]
    array[:] = -1  # what happens after the call does not reach the task
    for i, ref in enumerate(refs):
        found = rustray.get(ref, timeout=_WAIT_S)
        assert found["note"] == str(i)
        assert found["twice"][299_999] == 2 * 299_999
        assert not found["twice"].flags.writeable
        again = rustray.get(ref)
        assert np.shares_memory(again["twice"], found["twice"])
    del refs, ref, again
    part = found["twice"][-3:]
    del found
    assert part.tolist() == [599_994.0, 599_996.0, 599_998.0]
    assert not [name for name in os.listdir("/dev/shm") if "rustray" in name]


def test_a_large_result_of_a_task_whose_executor_dies_then_is_the_same(folder: Path) -> None:
    """Killed right after its result was told: the memory is the reader's by then."""

    @rustray.remote(max_retries=0)
    def make(size: int) -> Any:
        return os.getpid(), np.full(size, 7.0)

    pid, array = rustray.get(make.remote(500_000), timeout=_WAIT_S)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), 20)
    assert array.sum() == 3_500_000.0
    _, other = rustray.get(make.remote(10), timeout=_WAIT_S)
    assert other.flags.writeable


def test_a_program_asks_why_a_task_waits(folder: Path) -> None:
    """By reference or id, as soon as it is handed in; the text is for people."""
    holding = [hold.remote(str(folder), n) for n in range(2)]
    waiting = [add.options(priority=-1).remote(n, n) for n in range(2)]
    found = rustray.explain(waiting[1])
    assert found.state in (rustray.TaskState.QUEUED, rustray.TaskState.LEASED)
    with pytest.raises(rustray.GetTimeout, match=r"rustray\.explain"):
        rustray.get(holding, timeout=0.1)
    eventually(lambda: "RUNNING" in str(rustray.explain(holding[0].task_id)), _WAIT_S)
    (folder / "go").touch()
    rustray.get([*holding, *waiting], timeout=_WAIT_S)
    assert f"task {waiting[0].task_id} SUCCEEDED" in str(rustray.explain(waiting[0]))
    with pytest.raises(rustray.TaskNotFound):
        rustray.explain("0" * 32)
    with pytest.raises(ValueError, match="task id"):
        rustray.explain("soup")


def test_a_task_does_not_explain() -> None:
    """It is told where to look."""

    @rustray.remote
    def ask() -> None:
        rustray.explain("0" * 32)

    with pytest.raises(RuntimeError, match="rustray tasks explain"):
        rustray.get(ask.remote(), timeout=_WAIT_S)
