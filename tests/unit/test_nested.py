"""Tasks that hand in tasks, in an embedded cluster: what works within a task, and what does not."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rustray
from helpers.waiting import eventually


@rustray.remote
def square(x: int) -> int:
    """Square."""
    return x * x


@rustray.remote
def fan(n: int) -> int:
    """Add up squares."""
    return sum(rustray.get([square.remote(i) for i in range(n)]))


@rustray.remote
async def async_fan(n: int) -> int:
    """Add up squares, awaited one by one and together."""
    refs = [square.remote(i) for i in range(n)]
    first = await refs[0]
    some = await asyncio.gather(*(rustray.aget(ref) for ref in refs[1:3]))
    done, rest = await rustray.await_(refs[3:], num_returns=1)
    return first + sum(some) + sum(await rustray.aget(done + rest))


@rustray.remote
def fib(n: int) -> int:
    """Two calls deep in each other."""
    if n < 2:
        return n
    return sum(rustray.get([fib.remote(n - 1), fib.remote(n - 2)]))


@rustray.remote(executor="thread")
def thread_depth(n: int) -> int:
    """Go down in threads."""
    return 0 if n == 0 else 1 + rustray.get(thread_depth.remote(n - 1))


@rustray.remote
async def async_depth(n: int) -> int:
    """Go down in coroutines."""
    return 0 if n == 0 else 1 + await async_depth.remote(n - 1)


@rustray.remote
def fail(text: str) -> None:
    """Raise."""
    raise ValueError(text)


@rustray.remote
def lets_through(depth: int) -> None:
    """Let a child's error through."""
    if depth:
        rustray.get(lets_through.remote(depth - 1))
    rustray.get(fail.remote("from below"))


@rustray.remote
def catches() -> str:
    """Catch a child's error by its class."""
    try:
        rustray.get(fail.remote("no"))
    except ValueError as error:
        return str(error)
    return "nothing was raised"


@rustray.remote
def nap(seconds: float) -> float:
    """Sleep."""
    time.sleep(seconds)  # the task's work
    return seconds


@rustray.remote
def uses_all() -> dict[str, Any]:
    """Wait with a limit, look, cancel, and get what was cancelled."""
    slow, quick = nap.remote(60.0), square.remote(3)
    ready, rest = rustray.wait([slow, quick], num_returns=1)
    found: dict[str, Any] = {"ready": rustray.get(ready), "rest": len(rest)}
    found["looked"] = [len(part) for part in rustray.wait([slow], timeout=0)]
    try:
        rustray.get(slow, timeout=0.05)
    except rustray.GetTimeout:
        found["timeout"] = True
    rustray.cancel(slow)
    try:
        rustray.get(slow)
    except rustray.TaskCancelled:
        found["cancelled"] = True
    return found


@rustray.remote
async def blocks(folder: str) -> str:
    """Block the event loop, which is refused."""
    ref = until.remote(folder)
    try:
        rustray.get(ref)
    except rustray.BlockedLoop as error:
        await asyncio.to_thread(Path(folder, "over").touch)
        await ref
        return str(error)
    return "it blocked"


@rustray.remote
def inits() -> str:
    """Start a cluster in a task, which is refused."""
    try:
        rustray.init()
    except RuntimeError as error:
        return str(error)
    return "it started"


@rustray.remote
def modules() -> list[str]:
    """Say what of the cluster's a task has loaded that has handed in a task."""
    rustray.get(square.remote(1))
    roots = {name.partition(".")[0] for name in sys.modules}
    parts = {".".join(name.split(".")[:2]) for name in sys.modules if name.startswith("rustray.")}
    return sorted(roots | parts)


@rustray.remote
def maps(n: int) -> int:
    """Map over numbers within a task."""
    return sum(rustray.map(double, range(n)))


def double(x: int) -> int:
    """Double."""
    return 2 * x


@rustray.remote
def helper_thread() -> int:
    """Wait in a thread of the task while the task itself goes on."""
    found: list[int] = []
    ref = square.remote(5)
    thread = threading.Thread(target=lambda: found.append(rustray.get(ref)))
    thread.start()
    thread.join()
    return found[0]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two slots."""
    with rustray.init(num_cpus=2):
        yield


pytestmark = pytest.mark.usefixtures("cluster")


def test_tasks_hand_in_tasks_and_wait_for_them() -> None:
    """From processes and coroutines, many and one in the other, on two slots."""
    wide = [fan.remote(20) for _ in range(8)]
    assert rustray.get(wide, timeout=60) == [2470] * 8
    assert rustray.get(async_fan.remote(10), timeout=60) == 285
    assert rustray.get(fib.remote(7), timeout=60) == 13
    assert rustray.get([maps.remote(50) for _ in range(4)], timeout=60) == [2450] * 4


def test_threads_and_coroutines_give_back_their_cores() -> None:
    """Deeper than there are slots, where tasks share a process."""
    assert rustray.get(thread_depth.remote(12), timeout=60) == 12
    assert rustray.get(async_depth.remote(12), timeout=60) == 12


def test_errors_keep_their_class_on_the_way_up() -> None:
    """A parent catches a child's error by its class, and lets it through as what it is."""
    assert rustray.get(catches.remote(), timeout=60) == "no"
    with pytest.raises(ValueError, match="from below") as caught:
        rustray.get(lets_through.remote(2), timeout=60)
    assert isinstance(caught.value, rustray.TaskExecutionFailed)
    assert type(caught.value.cause) is ValueError
    assert caught.value.remote_traceback.count("in lets_through") >= 3


def test_waits_limits_and_cancels() -> None:
    """`wait`, `get` with a timeout, and `cancel` are the same within a task."""
    assert rustray.get(uses_all.remote(), timeout=60) == {
        "ready": [9], "rest": 1, "looked": [0, 1], "timeout": True, "cancelled": True,
    }  # fmt: skip


def test_what_a_task_may_not_do(tmp_path: Path) -> None:
    """Block its event loop, or start a cluster: errors that say what to do instead."""
    said = rustray.get(blocks.remote(str(tmp_path)), timeout=60)
    assert said.endswith("rustray.await_()")
    assert "nothing to start" in rustray.get(inits.remote(), timeout=60)


@rustray.remote
def inits_as_libraries_do() -> list[object]:
    """What a library does that may be used in a program and in a task."""
    was = rustray.is_initialized()
    with rustray.init(ignore_reinit_error=True) as cluster:
        found = rustray.get(modules.remote())
    return [was, rustray.is_initialized(), bool(found), cluster.address]


def test_in_a_task_the_cluster_is_there() -> None:
    """Bug: `is_initialized` was False there, and `init(ignore_reinit_error=True)` raised."""
    assert rustray.get(inits_as_libraries_do.remote(), timeout=60) == [True, True, True, ""]


def test_a_task_loads_no_grpc_and_no_credentials() -> None:
    """What a task loads to hand in tasks is the client's side alone."""
    loaded = set(rustray.get(modules.remote(), timeout=60))
    assert "rustray.client" in loaded
    forbidden = {"grpc", "cryptography", "jwt", "rustray.head", "rustray.scheduler"}
    assert loaded & (forbidden | {"rustray.security"}) == set()


def test_a_thread_of_a_task_is_the_task() -> None:
    """Its threads hand in and wait as it does; while they do the task keeps its core."""
    assert rustray.get(helper_thread.remote(), timeout=60) == 25


def test_a_thread_that_waits_is_stopped(tmp_path: Path) -> None:
    """A task in a thread notices that its time is up while it waits for another one."""
    top = waits_in_a_thread.options(timeout_s=1.5).remote(str(tmp_path))
    with pytest.raises(rustray.TaskTimeout):
        rustray.get(top, timeout=60)
    eventually(lambda: (tmp_path / "stopped").exists(), 5)
    assert not (tmp_path / "over").exists()
    rustray.cancel(top)
    (tmp_path / "over").touch()


@rustray.remote(executor="thread")
def waits_in_a_thread(folder: str) -> None:
    """Wait for what does not end, and say when that is broken off."""
    try:
        rustray.get(until.remote(folder))
    except rustray.TaskInterrupt:
        Path(folder, "stopped").touch()
        raise


@rustray.remote
def until(folder: str) -> None:
    """Return when a file is there."""
    while not Path(folder, "over").exists():
        time.sleep(0.01)  # the task's work


def test_children_inherit_the_deadline() -> None:
    """What a task hands in ends with the task's own limit, unless it says otherwise."""
    top = fan_of_naps.options(total_timeout_s=1.0).remote()
    with pytest.raises(rustray.TaskTimeout):
        rustray.get(top, timeout=60)
    from rustray.client import context

    runtime: Any = context.current_runtime()
    head = rustray.HeadNode.over(runtime._api)

    def states() -> set[str]:
        tasks = runtime._thread.call(head.list_tasks(function=f"{__name__}.long_nap"))
        return {task.state.name for task in tasks}

    eventually(lambda: states() == {"TIMED_OUT"}, 20)


@rustray.remote
def long_nap() -> None:
    """Sleep long."""
    time.sleep(60)  # the task's work


@rustray.remote
def fan_of_naps() -> None:
    """Wait for what lasts too long."""
    rustray.get([long_nap.remote(), long_nap.remote()])
