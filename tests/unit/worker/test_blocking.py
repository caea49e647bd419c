"""Tasks that wait for tasks of their own: the worker's core gives their cores to others."""

from __future__ import annotations

import pytest

from helpers.worker_bench import WorkerBench, a_class
from rustray.task.frames import LeaseRange
from rustray.task.spec import ExecutorKind
from rustray.task.state import TaskState
from rustray.worker import events as e

ROOT = a_class("root")
CHILD = a_class("child", depth=1)


def a_bench(**total: float) -> WorkerBench:
    """A worker with a session and its executors up."""
    return WorkerBench({"cpu_cores": 1, **total}).start()


def runs(bench: WorkerBench, lease: int) -> int:
    """Return which executor has a lease's first task, 0 for none."""
    return next((n for n, x in bench.executors.items() if (lease, 0) in x.tasks), 0)


def test_a_chain_on_one_slot() -> None:
    """Each waits for the next one; the last ends, and all go on, one after the other."""
    bench = a_bench()
    leases = []
    for depth in range(12):
        leases.append(bench.grant(1, a_class("deep", depth=depth)))
        bench.make_ready()
        assert runs(bench, leases[-1])
        bench.block(runs(bench, leases[-1]))
    assert bench.manager.used["cpu_cores"] == 0
    for lease in reversed(leases):
        bench.wake(runs(bench, lease))
        executor = runs(bench, lease)
        assert not bench.executors[executor].waiting
        bench.finish(executor)
    bench.collect()
    bench.assert_all_told()


def test_the_head_is_told_and_told_again() -> None:
    """What waits, and what goes on; in a new session what waits then."""
    bench = a_bench()
    lease = bench.grant(1)
    bench.collect()
    bench.block(runs(bench, lease))
    assert bench.collect()[-1].blocked == [LeaseRange(lease, 0, 1)]
    bench.close()
    bench.open()
    [hello] = bench.collect()
    assert hello.blocked == [LeaseRange(lease, 0, 1)]
    bench.wake(runs(bench, lease))
    assert bench.collect()[-1].resumed == [LeaseRange(lease, 0, 1)]
    bench.close()
    bench.open()
    assert bench.collect()[0].blocked == []


def test_who_has_waited_goes_before_what_is_new() -> None:
    """Cores that come free are for those that want to go on, in their order."""
    bench = a_bench()
    first, second = bench.grant(1), 0
    bench.block(runs(bench, first))
    bench.make_ready()
    second = bench.grant(1)
    bench.block(runs(bench, second))
    bench.make_ready()
    running, later = bench.grant(1), bench.grant(1)
    assert runs(bench, running)
    for lease in (second, first):
        bench.wake(runs(bench, lease))
        assert bench.executors[runs(bench, lease)].waiting
    bench.finish(runs(bench, running))
    assert not bench.executors[runs(bench, second)].waiting
    assert bench.executors[runs(bench, first)].waiting
    assert not runs(bench, later)
    bench.finish(runs(bench, second))
    assert not bench.executors[runs(bench, first)].waiting
    assert not runs(bench, later)
    bench.finish(runs(bench, first))
    assert runs(bench, later)


def test_only_cores_are_given_back() -> None:
    """What a task holds beside them stays its own: its memory is still in use."""
    bench = a_bench(memory_mb=100, licence=1)
    lease = bench.grant(1, a_class("big", licence=1))
    bench.block(runs(bench, lease))
    bench.make_ready()
    other = bench.grant(1, a_class("big", licence=1))
    assert not runs(bench, other)
    assert runs(bench, bench.grant(1, CHILD))


def test_what_waits_behind_it_finds_another_place() -> None:
    """Tasks that were handed to the same executor are taken back when the first one waits."""
    bench = a_bench()
    quick = a_class("quick")
    bench.grant(3, quick)
    bench.finish_all()
    lease = bench.grant(20, quick)
    executor = runs(bench, lease)
    assert len(bench.executors[executor].tasks) > 1
    bench.block(executor)
    assert bench.executors[executor].owes_answer
    bench.answer(executor)
    bench.make_ready()
    busy = [x for x in bench.executors.values() if x.tasks and x.executor_id != executor]
    assert busy


def test_the_number_of_those_that_wait_is_bounded_by_depth() -> None:
    """When many tasks wait no more of their depth start, and what they wait for still does."""
    bench = a_bench()
    limit = bench.limits.max_executors
    leases = []
    for _ in range(limit):
        leases.append(bench.grant(1, ROOT))
        bench.make_ready()
        bench.block(runs(bench, leases[-1]))
    bench.make_ready()
    late, child = bench.grant(1, ROOT), bench.grant(1, CHILD)
    bench.make_ready()
    assert not runs(bench, late)
    assert runs(bench, child)
    bench.finish(runs(bench, child))
    bench.wake(runs(bench, leases[0]))
    bench.finish(runs(bench, leases[0]))
    assert runs(bench, late)


def test_executors_that_stood_in_end_after_an_idle_minute() -> None:
    """Those beyond the slots; a slot's own stays."""
    bench = a_bench()
    leases = [bench.grant(1, a_class("deep", depth=0))]
    for depth in range(1, 4):
        bench.block(runs(bench, leases[-1]))
        bench.make_ready()
        leases.append(bench.grant(1, a_class("deep", depth=depth)))
    for lease in reversed(leases):
        executor = runs(bench, lease)
        if bench.executors[executor].waiting:
            bench.wake(executor)
        bench.finish(executor)
    assert len(bench.executors) == 4
    bench.advance(61.0)
    killed = [x for x in bench.executors.values() if x.signal is not None]
    assert len(killed) == 3


@pytest.mark.parametrize("kind", [ExecutorKind.PROCESS, ExecutorKind.THREAD])
@pytest.mark.parametrize("wakes", [False, True])
def test_a_death_in_the_middle_of_a_wait(kind: ExecutorKind, wakes: bool) -> None:
    """An executor that dies while its task waits, or wants to go on, leaves nothing behind."""
    bench = a_bench()
    lease = bench.grant(1, a_class("dies", kind=kind))
    bench.make_ready()
    executor = runs(bench, lease)
    bench.block(executor)
    bench.make_ready()
    other = bench.grant(1, CHILD)
    bench.make_ready()
    if wakes:
        bench.wake(executor)
    bench.die(executor)
    bench.finish(runs(bench, other))
    bench.collect()
    assert bench.told[(lease, 0)] is TaskState.LEASED
    assert bench.manager.used["cpu_cores"] == 0


def test_threads_that_wait_make_room_for_others() -> None:
    """The place that a waiting task has in its process counts for one more."""
    bench = a_bench()
    wide = a_class("wide", cpu=0, kind=ExecutorKind.THREAD)
    lease = bench.grant(bench.limits.thread_concurrency + 1, wide)
    bench.make_ready()
    [executor] = [n for n, x in bench.executors.items() if x.kind is ExecutorKind.THREAD]
    assert len(bench.executors[executor].tasks) == bench.limits.thread_concurrency
    bench.block(executor)
    assert (lease, bench.limits.thread_concurrency) in bench.executors[executor].tasks
    bench.wake(executor)
    assert bench.executors[executor].waiting
    bench.finish(executor, 2)
    assert not bench.executors[executor].waiting


def test_a_thread_that_is_given_up_while_it_waits_has_no_cores() -> None:
    """Bug: those that it had given back were counted as its own again, and others had them."""
    bench = a_bench(cpu_cores=1)
    kind = ExecutorKind.THREAD
    waits = bench.grant(1, a_class("one", cpu=1, kind=kind))
    bench.make_ready()
    [executor] = [n for n, x in bench.executors.items() if x.kind is kind]
    bench.block(executor)
    other = bench.grant(1, a_class("two", cpu=1, kind=kind))
    assert runs(bench, other) == executor
    bench.cancel(waits)
    bench.advance(60.0)  # it takes no notice
    bench.collect()
    assert bench.told[(waits, 0)] is TaskState.CANCELLED
    assert bench.manager.used["cpu_cores"] == 10_000
    bench.finish_all()
    assert bench.manager.used["cpu_cores"] == 0


def test_messages_of_what_is_not_there_are_counted() -> None:
    """Late, repeated or false: nothing comes of it; one that never waited goes on at once."""
    bench = a_bench()
    lease = bench.grant(1)
    executor = runs(bench, lease)
    bench.feed(e.TaskBlocked(99, lease, 0))
    bench.feed(e.TaskBlocked(executor, lease, 5))
    bench.feed(e.TaskWoke(99, lease, 0))
    bench.block(executor)
    bench.feed(e.TaskBlocked(executor, lease, 0))
    assert bench.manager.counters["stale_waits"] == 4
    bench.wake(executor)
    assert e.ResumeTask(executor, lease, 0) in bench.feed(e.TaskWoke(executor, lease, 0))
