"""WorkerManager: a task that outgrows its memory is stopped, alone, and reported as that."""

from __future__ import annotations

import pytest

from helpers.worker_bench import WorkerBench, a_class
from rustray.task.codec import decode_failure
from rustray.task.spec import ExecutorKind, TaskClass
from rustray.task.state import TaskState
from rustray.worker import events as e

MB = 1_000_000


def bench(cpu: float = 2) -> WorkerBench:
    """Return a started worker with memory to offer."""
    return WorkerBench({"cpu_cores": cpu, "memory_mb": 1_000}).start()


def hungry(
    memory_mb: float = 100, kind: ExecutorKind = ExecutorKind.PROCESS, timeout_s: float = 0
) -> TaskClass:
    """Return a class with a memory limit."""
    return a_class("hungry", memory_mb=memory_mb, kind=kind, timeout_s=timeout_s)


def exceed(b: WorkerBench, executor_id: int, lease: int, peak: int = 150 * MB) -> list[e.Command]:
    """Tell the core that a task holds too much."""
    return b.feed(e.MemoryExceeded(executor_id, lease, 0, peak, 100 * MB))


def holder(b: WorkerBench, lease: int) -> int:
    """Return the executor that has a lease's first task."""
    [found] = [x.executor_id for x in b.executors.values() if (lease, 0) in x.tasks]
    return found


def test_it_is_killed_and_nothing_else_is_touched() -> None:
    """Its executor dies and is replaced, its neighbour and what waits are not disturbed."""
    b = bench()
    bad = b.grant(1, hungry())
    good = b.grant(1)
    waiting = b.grant(3)
    executor = holder(b, bad)
    commands = exceed(b, executor, bad)
    assert [one for one in commands if isinstance(one, e.KillExecutor)] == [
        e.KillExecutor(executor, 9)
    ]
    assert exceed(b, executor, bad) == []
    b.die(executor)
    b.finish_all()
    frames = b.collect()
    [outcome] = [o for f in frames for o in f.outcomes if o.lease == bad]
    info = decode_failure(outcome.payloads[0])
    assert outcome.state is TaskState.LEASED  # whether it runs again is for the head to say
    assert (info.code, info.memory_peak, info.memory_limit) == (
        "TASK_OUT_OF_MEMORY", 150 * MB, 100 * MB,
    )  # fmt: skip
    assert "150 MB" in info.message
    assert "memory_mb=100" in info.message
    others = {state for (lease, _), state in b.told.items() if lease in (good, waiting)}
    assert others == {TaskState.SUCCEEDED}
    assert len(b.executors) == 2
    assert b.manager.counters["tasks_out_of_memory"] == 1


def test_it_is_watched_exactly_while_it_runs() -> None:
    """The order to watch comes before the task, with its limit; the end of it at its end."""
    b = bench(cpu=1)
    seen: list[e.Command] = []
    feed = b.feed

    def note(event: e.Event) -> list[e.Command]:
        commands = feed(event)
        kinds = (e.WatchMemory, e.DispatchTasks, e.UnwatchMemory)
        seen.extend(one for one in commands if isinstance(one, kinds))
        return commands

    b.feed = note  # type: ignore[method-assign]
    lease = b.grant(2, hungry(64))
    b.grant(1)
    b.finish_all()
    watched = [e.WatchMemory(1, 1001, lease, n, 64 * MB) for n in (0, 1)]
    assert [one for one in seen if isinstance(one, e.WatchMemory)] == watched
    names = [type(one).__name__ for one in seen]
    assert names == ["WatchMemory", "DispatchTasks", "UnwatchMemory"] * 2 + ["DispatchTasks"]


def test_a_measurement_of_an_earlier_task_kills_nobody() -> None:
    """What was read while another task ran says nothing about the one that runs now."""
    b = bench(cpu=1)
    lease = b.grant(2, hungry())
    b.finish(1)
    assert exceed(b, 1, lease) == []
    assert exceed(b, 7, lease) == []
    b.finish_all()
    b.grant(1)
    assert exceed(b, 1, lease) == []
    b.finish_all()
    b.collect()
    assert set(b.told.values()) == {TaskState.SUCCEEDED}
    assert b.manager.counters["stale_measurements"] == 3


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_what_was_asked_to_stop_is_reported_as_stopped(how: str) -> None:
    """Being stopped came first; that it then grew as well changes nothing."""
    b = bench(cpu=1)
    lease = b.grant(1, hungry(timeout_s=1 if how == "timeout" else 0))
    if how == "cancel":
        b.cancel(lease)
    else:
        b.advance(1.0)
    exceed(b, 1, lease)
    b.die(1)
    b.collect()
    expected = TaskState.CANCELLED if how == "cancel" else TaskState.TIMED_OUT
    assert b.told[(lease, 0)] is expected


def test_a_task_that_ends_before_the_kill_has_succeeded() -> None:
    """The signal finds an executor without a task, and only that is replaced."""
    b = bench(cpu=1)
    lease = b.grant(1, hungry())
    exceed(b, 1, lease)
    b.finish(1)
    b.die(1)
    b.grant(1)
    b.finish_all()
    b.collect()
    assert set(b.told.values()) == {TaskState.SUCCEEDED}


def test_a_kill_from_outside_is_an_executor_that_died() -> None:
    """The kernel's own killer, or a person: no limit of ours was passed."""
    b = bench(cpu=1)
    lease = b.grant(1, hungry())
    b.executors[1].signal = 9
    b.die(1)
    [outcome] = [o for f in b.collect() for o in f.outcomes]
    info = decode_failure(outcome.payloads[0])
    assert (outcome.lease, info.code, info.signal) == (lease, "WORKER_LOST", 9)
    assert "memory" in info.message


@pytest.mark.parametrize("kind", [ExecutorKind.THREAD, ExecutorKind.ASYNC])
def test_tasks_that_share_a_process_are_not_watched(kind: ExecutorKind) -> None:
    """Their memory is reserved, so fewer of them run; none is killed for what all hold."""
    b = bench()
    b.grant(1, hungry(600, kind=kind))
    b.make_ready()
    commands = b.feed(e.TimePassed())
    b.grant(1, hungry(600, kind=kind))
    assert not any(isinstance(one, e.WatchMemory) for one in commands)
    running = [x for x in b.executors.values() if x.kind is kind]
    assert sum(len(x.tasks) for x in running) == 1
    b.finish_all()
    b.collect()
    assert set(b.told.values()) == {TaskState.SUCCEEDED}
