"""Cancellation, crashes and the end: every way out of an executor, with real signals."""

# ruff: noqa: ASYNC240 - files of a few bytes in a temporary folder block nobody here

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest

from helpers.waiting import aeventually, eventually
from rustray.task.spec import ExecutorKind
from rustray.task.state import TaskState
from unit.worker.executor_harness import Bench, bench

cloudpickle.register_pickle_by_value(sys.modules[__name__])

KINDS = list(ExecutorKind)


def is_gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def double(x: int) -> int:
    """Return twice x."""
    return 2 * x


def spin(started: str, cleaned: str) -> None:
    """Run Python code until it is interrupted; leave a trace of the clean-up."""
    try:
        Path(started).touch()
        while True:
            time.sleep(0.001)  # the task's work
    except Exception:
        Path(cleaned).write_text("swallowed")
    finally:
        Path(cleaned).touch()


def sleep_long(started: str, cleaned: str) -> None:
    """Be in one blocking system call."""
    try:
        Path(started).touch()
        time.sleep(600)  # the task's work
    finally:
        Path(cleaned).touch()


async def sleep_async(started: str, cleaned: str) -> None:
    """Be in an await."""
    try:
        Path(started).touch()
        await asyncio.sleep(600)  # the task's work
    finally:
        Path(cleaned).touch()


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        (ExecutorKind.PROCESS, spin),
        (ExecutorKind.PROCESS, sleep_long),
        (ExecutorKind.PROCESS, sleep_async),
        (ExecutorKind.THREAD, spin),
        (ExecutorKind.THREAD, sleep_async),
        (ExecutorKind.ASYNC, sleep_async),
    ],
)
async def test_interrupt_ends_a_running_task(
    kind: ExecutorKind, function: Callable[..., Any], tmp_path: Path
) -> None:
    """It ends as CANCELLED, its ``finally`` ran, and its neighbours are not touched."""
    async with bench() as b:
        executor = b.spawn(kind, 2)
        number = b.define(executor, function)
        started, cleaned = tmp_path / "started", tmp_path / "cleaned"
        lease = b.run(executor, number, (str(started), str(cleaned)))
        await aeventually(started.exists)
        b.pool.interrupt(executor, lease, 100)
        state, info = await b.failure(lease)
        assert (state, info.code) == (TaskState.CANCELLED, "TASK_CANCELLED")
        assert cleaned.read_text() == ""
        assert await b.value(executor, double, 4) == 8
        assert not b.seen.exits


@pytest.mark.parametrize("kind", KINDS)
async def test_interrupt_drops_a_task_that_waits(kind: ExecutorKind, tmp_path: Path) -> None:
    """It never starts and ends as CANCELLED; those around it run."""
    async with bench() as b:
        executor = b.spawn(kind, 1)
        go = tmp_path / "go"

        def wait_then(path: str, x: int) -> int:
            while not os.path.exists(path):
                time.sleep(0.001)  # the task's work
            Path(f"{path}-{x}").touch()
            return x

        number = b.define(executor, wait_then)
        lease = b.run(executor, number, *[(str(go), i) for i in range(4)])
        behind = b.run(executor, number, *[(str(go), i + 10) for i in range(3)])
        await aeventually(lambda: b.pool.running(executor) == (lease, 100))
        b.pool.interrupt(executor, lease, 102)
        b.pool.interrupt(executor, behind, 101)
        b.pool.interrupt(executor, lease, 100)  # the one that runs: orders are obeyed in order
        await b.failure(lease, 0)
        go.touch()
        states = await b.ended(lease, 4)
        assert sorted(i for i, s in states.items() if s is TaskState.CANCELLED) == [0, 2]
        states = await b.ended(behind, 3)
        assert [i for i, s in states.items() if s is TaskState.CANCELLED] == [1]
        assert not Path(f"{go}-2").exists()
        assert not Path(f"{go}-11").exists()


@pytest.mark.parametrize("kind", KINDS)
async def test_interrupt_of_what_has_ended_hits_nobody(kind: ExecutorKind) -> None:
    """Late cancellations during a flow of tasks end only the tasks that they name."""
    async with bench() as b:
        executor = b.spawn(kind, 1)
        number = b.define(executor, double)
        leases = []
        for _ in range(40):
            lease = b.run(executor, number, *[(i,) for i in range(20)])
            leases.append(lease)
            for offset in (100, 107, 119):
                b.pool.interrupt(executor, lease, offset)
            b.pool.interrupt(executor, 99_999, 100)
            await asyncio.sleep(0)
        for lease in leases:
            states = await b.ended(lease, 20)
            cancelled = {i for i, s in states.items() if s is TaskState.CANCELLED}
            assert cancelled <= {0, 7, 19}
            assert set(states.values()) <= {TaskState.SUCCEEDED, TaskState.CANCELLED}
        assert not b.seen.exits


PACKAGE = {
    "__init__.py": "from .one import *\nfrom .two import *\ntotal = one.number + two.number\n"
    "def use(is_endless):\n    while is_endless: pass\n    return total\n",
    "one.py": "number = 1\n",
    "two.py": """
import os, pathlib, time
pathlib.Path(os.environ['IMPORT_STARTED']).touch()
while not os.path.exists(os.environ['IMPORT_GO']):
    time.sleep(0.001)  # the task's work
number = 2
""",
}


@pytest.mark.parametrize("kind", [ExecutorKind.PROCESS, ExecutorKind.THREAD])
@pytest.mark.parametrize("is_in_task", [True, False])
async def test_an_interrupt_never_leaves_a_half_imported_module(
    kind: ExecutorKind, is_in_task: bool, tmp_path: Path
) -> None:
    """It waits until the import has ended, so that the next task finds the module whole."""
    package = tmp_path / "executor_slow_package"
    package.mkdir()
    for name, source in PACKAGE.items():
        (package / name).write_text(source)
    started, go = tmp_path / "started", tmp_path / "go"
    env = {**os.environ, "IMPORT_STARTED": str(started), "IMPORT_GO": str(go)}

    def use(is_endless: bool) -> int:
        import executor_slow_package  # type: ignore[import-not-found]

        return int(executor_slow_package.use(is_endless))

    function = use if is_in_task else b"cexecutor_slow_package\nuse\n."
    async with bench(env=env, sys_path=[str(tmp_path), *sys.path]) as b:
        executor = b.spawn(kind, 1)
        first = b.run(executor, b.define(executor, function), (True,))
        await aeventually(started.exists)
        b.pool.interrupt(executor, first, 100)
        go.touch()
        state, _ = await b.failure(first)
        assert state is TaskState.CANCELLED
        assert await b.value(executor, use, False) == 3


def die(how: str) -> None:
    """End the process in one of several ways."""
    print("last words")
    if how == "segfault":
        ctypes.string_at(0)
    elif how.startswith("exit"):
        os._exit(int(how[4:]))
    else:
        os.kill(os.getpid(), int(how))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("how", "exit_code", "signum"),
    [
        ("exit0", 0, None),
        ("exit3", 3, None),
        ("9", None, signal.SIGKILL),
        ("15", None, signal.SIGTERM),
        ("segfault", None, signal.SIGSEGV),
    ],
)
async def test_a_crash_says_how_and_what_ran(
    kind: ExecutorKind, how: str, exit_code: int | None, signum: int | None
) -> None:
    """Exit code or signal, the running task and the last output; other executors go on."""
    async with bench() as b:
        executor, other = b.spawn(kind, 1), b.spawn()
        assert await b.value(executor, double, 1) == 2
        lease = b.run(executor, b.define(executor, die), (how,), (how,))
        found = await b.exit_of(executor)
        assert (found.exit_code, found.signal) == (exit_code, signum)
        assert found.pid == b.seen.pids[executor]
        assert found.running == (lease, 100)
        assert "last words" in found.log_tail
        if how == "segfault":
            assert "Segmentation fault" in found.log_tail
            assert "in die" in found.log_tail
        assert b.states(lease) == {}
        assert await b.value(other, double, 2) == 4
        assert await b.value(b.spawn(kind, 1), double, 3) == 6


async def test_a_task_that_ended_before_the_crash_is_reported_and_not_blamed() -> None:
    """Results of the chunk that were sent count, and the crash is that of the next task."""
    async with bench() as b:
        executor = b.spawn()

        def third_dies(x: int) -> int:
            time.sleep(0.002)  # the task's work
            if x == 2:
                os._exit(1)
            return x

        lease = b.run(executor, b.define(executor, third_dies), *[(i,) for i in range(5)])
        found = await b.exit_of(executor)
        assert sorted(b.states(lease)) == [0, 1]
        assert found.running == (lease, 102)


async def test_an_idle_executor_that_is_killed_blames_nobody() -> None:
    """`running` is None when nothing ran."""
    async with bench() as b:
        executor = b.spawn()
        assert await b.value(executor, double, 1) == 2
        os.kill(b.seen.pids[executor], signal.SIGKILL)
        found = await b.exit_of(executor)
        assert (found.running, found.signal) == (None, signal.SIGKILL)


def print_much(count: int) -> None:
    """Print numbered lines, then die."""
    for number in range(count):
        print(f"line {number}")
    os._exit(1)


async def test_the_log_tail_is_the_end_of_what_was_printed() -> None:
    """At most 8 KiB are kept, the last ones."""
    async with bench() as b:
        executor = b.spawn()
        b.run(executor, b.define(executor, print_much), (100_000,))
        tail = (await b.exit_of(executor)).log_tail
        assert tail.endswith("line 99999\n")
        assert len(tail) <= 8 * 1024


def say_and_return(text: str) -> None:
    """Print."""
    print(text, flush=True)


async def test_the_log_tail_has_nothing_of_earlier_tasks() -> None:
    """Regression: the last words of a task were those of somebody else's before it."""
    async with bench() as b:
        executor = b.spawn()
        assert await b.value(executor, say_and_return, "a secret") is None
        b.run(executor, b.define(executor, print_much), (3,))
        tail = (await b.exit_of(executor)).log_tail
        assert tail == "line 0\nline 1\nline 2\n"


def scribble() -> None:
    """Write nonsense into every socket that the process has."""
    for fd in range(3, 30):
        try:
            os.write(fd, b"\xff" * 4_000)
        except OSError:
            continue
    time.sleep(600)  # the task's work


async def test_a_task_that_writes_into_our_channels_is_killed() -> None:
    """The agent does not trust the bytes of an executor."""
    async with bench() as b:
        executor = b.spawn()
        b.run(executor, b.define(executor, scribble), ())
        found = await b.exit_of(executor)
        assert found.signal == signal.SIGKILL
        assert "protocol" in found.log_tail
        assert await b.value(b.spawn(), double, 2) == 4


def with_grandchild(path: str) -> None:
    """Start a process that would live on, write its id, and wait."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(path + ".part").write_text(str(child.pid))
    os.rename(path + ".part", path)
    time.sleep(600)  # the task's work


async def start_family(b: Bench, executor: int, path: Path) -> tuple[int, int]:
    """Run a task with a grandchild; return the process ids of both."""
    b.run(executor, b.define(executor, with_grandchild), (str(path),))
    await aeventually(path.exists)
    return await b.pid_of(executor), int(path.read_text())


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
async def test_kill_ends_an_executor_with_all_it_started(signum: int, tmp_path: Path) -> None:
    """The process group goes with it."""
    async with bench() as b:
        executor = b.spawn()
        _, grandchild = await start_family(b, executor, tmp_path / "pid")
        b.pool.kill(executor, signum)
        assert (await b.exit_of(executor)).signal == signum
        await aeventually(lambda: is_gone(grandchild))


async def test_a_crash_takes_the_grandchildren_along(tmp_path: Path) -> None:
    """Also when the executor itself is killed from outside."""
    async with bench() as b:
        executor = b.spawn()
        pid, grandchild = await start_family(b, executor, tmp_path / "pid")
        os.kill(pid, signal.SIGKILL)
        await b.exit_of(executor)
        await aeventually(lambda: is_gone(grandchild))


@pytest.mark.parametrize("grace_s", [0.0, 0.2])
async def test_close_leaves_no_process(grace_s: float, tmp_path: Path) -> None:
    """Idle and busy executors, grandchildren and the zygote are killed when it returns."""
    before = set(psutil.Process().children())
    async with bench(grace_s) as b:
        idle, busy = b.spawn(), b.spawn(ExecutorKind.THREAD, 4)
        assert await b.value(idle, double, 1) == 2
        pids = [await b.pid_of(idle), *await start_family(b, busy, tmp_path / "pid")]
    # The kernel is done with them in its own time.
    eventually(lambda: all(is_gone(pid) for pid in pids[:2]), 10.0)
    assert set(psutil.Process().children()) <= before
    eventually(lambda: is_gone(pids[2]))


@pytest.mark.parametrize("kind", KINDS)
async def test_close_lets_running_tasks_end_within_the_grace(
    kind: ExecutorKind, tmp_path: Path
) -> None:
    """Their outcome is reported; what has not started does not start."""

    def slow(path: str) -> str:
        Path(path).touch()
        while not os.path.exists(f"{path}-go"):
            time.sleep(0.001)  # the task's work
        return path

    async with bench(30.0) as b:
        executor = b.spawn(kind, 1)
        calls = [(str(tmp_path / str(i)),) for i in range(3)]
        lease = b.run(executor, b.define(executor, slow), *calls)
        await aeventually((tmp_path / "0").exists)
        closing = asyncio.create_task(b.pool.close(30.0))
        await aeventually(lambda: b.seen.returned)
        (tmp_path / "0-go").touch()
        await closing
    assert b.states(lease) == {0: TaskState.SUCCEEDED}
    assert not (tmp_path / "1").exists()
    assert not b.seen.exits


async def test_close_twice_and_before_start_is_harmless() -> None:
    """It is idempotent."""
    async with bench() as b:
        b.spawn()
        await b.pool.close(0.0)
        await b.pool.close(0.0)


async def test_the_pool_survives_the_death_of_the_zygote(tmp_path: Path) -> None:
    """All its executors are reported as killed, and new ones work."""
    async with bench() as b:
        executors = [b.spawn(), b.spawn(ExecutorKind.ASYNC, 2)]
        lease = b.run(executors[0], b.define(executors[0], sleep_long), ("/dev/null",) * 2)
        await aeventually(lambda: b.pool.running(executors[0]) == (lease, 100))
        pids = [await b.pid_of(each) for each in executors]
        zygote = psutil.Process(pids[0]).ppid()
        for _ in range(2):
            os.kill(zygote, signal.SIGKILL)
            for each in executors:
                assert (await b.exit_of(each)).signal == signal.SIGKILL
            assert b.seen.exits[executors[0]].running in ((lease, 100), None)
            executors = [b.spawn(), b.spawn()]
            assert await b.value(executors[0], double, 2) == 4
            assert await b.value(executors[1], double, 3) == 6
            zygote = psutil.Process(b.seen.pids[executors[0]]).ppid()
        await aeventually(lambda: all(is_gone(pid) for pid in pids))


async def test_ctrl_c_and_sigterm_are_not_for_the_zygote() -> None:
    """It ignores them: they are the agent's to answer."""
    async with bench() as b:
        executor = b.spawn()
        zygote = psutil.Process(await b.pid_of(executor)).ppid()
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(zygote, signum)
        assert await b.value(b.spawn(), double, 2) == 4
        assert not b.seen.exits


AGENT = """
import asyncio, sys
sys.path[:] = sys.argv[2].split(":")
from pathlib import Path
from unit.worker.executor_harness import bench
from unit.worker.test_executor_ends import start_family, double
from rustray.task.spec import ExecutorKind

async def main():
    async with bench() as b:
        one, two = b.spawn(), b.spawn(ExecutorKind.THREAD, 2)
        await b.value(one, double, 1)
        pids = [b.pool._zygote.pid, await b.pid_of(one)]
        pids += await start_family(b, two, Path(sys.argv[1]))
        print(*pids, flush=True)
        {end}

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "end",
    [
        "await asyncio.sleep(600)",
        "import os; os._exit(0)",
        "sys.exit(0)",
    ],
)
def test_nothing_outlives_the_agent(end: str, tmp_path: Path) -> None:
    """SIGKILL, a hard exit and a normal one all end zygote, executors and grandchildren."""
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT.replace("{end}", end), str(tmp_path / "pid"),
         ":".join(sys.path)],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert agent.stdout is not None
        pids = [int(word) for word in agent.stdout.readline().split()]
        assert len(pids) == 4
        if "sleep" in end:
            agent.kill()
        eventually(lambda: all(is_gone(pid) for pid in pids), 20.0)
    finally:
        agent.kill()
        agent.wait()
        if agent.stdout is not None:
            agent.stdout.close()


@pytest.mark.parametrize(("value", "is_shown"), [("1", True), ("0", False)])
def test_output_is_passed_on_unless_that_is_off(value: str, is_shown: bool, tmp_path: Path) -> None:
    """What tasks print goes to the agent's stderr as well; RUSTRAY_EXECUTOR_OUTPUT=0 ends that."""
    script = AGENT.replace("{end}", "await b.value(one, lambda: print('hello from a task'))")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "pid"), ":".join(sys.path)],
        env={**os.environ, "RUSTRAY_EXECUTOR_OUTPUT": value},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert (b"hello from a task" in done.stderr) is is_shown


def is_killed_by_itself(pid: int, now: Callable[[], float], until: float) -> None:
    """Wait for a process's end without giving the event loop a turn; not before its time."""
    eventually(lambda: is_gone(pid), 20.0)
    assert now() >= until


async def test_a_guarded_executor_ends_in_time_though_the_agent_stands_still(
    tmp_path: Path,
) -> None:
    """The zygote does it, with what the task has started; who is guarded no more lives on."""
    loop = asyncio.get_running_loop()
    async with bench() as b:
        first, second = b.spawn(), b.spawn()
        trace = tmp_path / "trace"
        for executor in (first, second):
            b.run(executor, b.define(executor, spin), (str(tmp_path / str(executor)), str(trace)))
        for executor in (first, second):
            await aeventually((tmp_path / str(executor)).exists, 20.0)
        until = loop.time() + 0.3
        b.pool.guard(first, until)
        b.pool.guard(second, until)
        b.pool.guard(second, float("inf"))
        is_killed_by_itself(b.seen.pids[first], loop.time, until)
        assert (await b.exit_of(first)).signal == signal.SIGKILL
        assert not is_gone(b.seen.pids[second])


def look(started: str, cleaned: str, looks: bool) -> str:
    """Look whether to stop, or not; end by itself if so."""
    import rustray

    task = rustray.context()
    if looks:
        task.is_cancelled()
    Path(started).touch()
    try:
        while not (looks and task.is_cancelled()):
            time.sleep(0.001)  # the task's work
    except rustray.TaskInterrupt:
        Path(cleaned).write_text("interrupted")
        raise
    return "saw it"


async def look_async(started: str, cleaned: str, looks: bool) -> str:
    """Do the same in a coroutine."""
    import rustray

    task = rustray.context()
    if looks:
        task.is_cancelled()
    Path(started).touch()
    try:
        while not (looks and task.is_cancelled()):  # noqa: ASYNC110 - the task looks itself
            await asyncio.sleep(0.001)  # the task's work
    except asyncio.CancelledError:
        Path(cleaned).write_text("interrupted")
        raise
    return "saw it"


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize(
    ("kind", "function"),
    [
        (ExecutorKind.PROCESS, look),
        (ExecutorKind.PROCESS, look_async),
        (ExecutorKind.THREAD, look),
        (ExecutorKind.THREAD, look_async),
        (ExecutorKind.ASYNC, look_async),
    ],
)
async def test_a_notice_interrupts_only_who_does_not_look(
    kind: ExecutorKind, function: Callable[..., Any], looks: bool, tmp_path: Path
) -> None:
    """A task that has asked whether it is cancelled sees it; the other one is interrupted."""
    async with bench() as b:
        executor = b.spawn(kind, 2)
        started, cleaned = tmp_path / "started", tmp_path / "cleaned"
        arguments = (str(started), str(cleaned), looks)
        lease = b.run(executor, b.define(executor, function), arguments)
        await aeventually(started.exists)
        b.pool.interrupt(executor, lease, 100, is_notice=True)
        if looks:
            assert await b.values(lease, 1) == ["saw it"]
        else:
            state, _ = await b.failure(lease)
            assert state is TaskState.CANCELLED
        assert cleaned.exists() is not looks


def look_once(started: str, cleaned: str) -> None:
    """Look once, and never again."""
    import rustray

    rustray.context().is_cancelled()
    spin(started, cleaned)


@pytest.mark.parametrize("kind", [ExecutorKind.PROCESS, ExecutorKind.THREAD])
async def test_who_does_not_heed_the_notice_is_interrupted_next(
    kind: ExecutorKind, tmp_path: Path
) -> None:
    """The firm order after the notice works as it does without one."""
    async with bench() as b:
        executor = b.spawn(kind, 2)
        started, cleaned = tmp_path / "started", tmp_path / "cleaned"
        lease = b.run(executor, b.define(executor, look_once), (str(started), str(cleaned)))
        await aeventually(started.exists)
        b.pool.interrupt(executor, lease, 100, is_notice=True)
        assert await b.value(b.spawn(), double, 4) == 8  # meanwhile orders have been obeyed
        assert not cleaned.exists()
        b.pool.interrupt(executor, lease, 100)
        state, _ = await b.failure(lease)
        assert state is TaskState.CANCELLED


def oom_score_adj() -> str:
    """Say how much the kernel prefers this process when memory runs out."""
    return Path("/proc/self/oom_score_adj").read_text().strip()


async def test_the_kernel_takes_an_executor_before_its_agent() -> None:
    """When the machine runs out of memory a task is lost, and not the worker with all of them."""
    before = oom_score_adj()
    async with bench() as b:
        assert await b.value(b.spawn(), oom_score_adj) == "1000"
        assert oom_score_adj() == before
