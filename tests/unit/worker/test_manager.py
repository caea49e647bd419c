"""WorkerManager: order, resources, chunks, cancels, limits, death, drain, and the spool."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from helpers.worker_bench import PREFIX, FakeExecutor, WorkerBench, a_class
from rustray.task.codec import decode_failure
from rustray.task.columns import PayloadColumn
from rustray.task.frames import (
    AssignFrame,
    ClassDefinition,
    LeaseCancel,
    LeaseGrant,
    LeaseNews,
    LeaseOutcome,
    LeaseRange,
)
from rustray.task.spec import ExecutorKind, TaskClass
from rustray.task.state import TaskState
from rustray.worker import events as e
from rustray.worker import leaving
from rustray.worker.leases import SIGKILL, SIGTERM
from rustray.worker.manager import WorkerManager


def bench(cpu: float = 2, **resources: float) -> WorkerBench:
    """Return a started worker with two executors."""
    return WorkerBench({"cpu_cores": cpu, **resources}).start()


def learn(b: WorkerBench, task_class: TaskClass, run_us: int) -> None:
    """Let the worker measure how long tasks of a class run."""
    b.grant(1, task_class)
    b.finish_all(run_us)


def signals(b: WorkerBench) -> list[int | None]:
    """Return what each executor was sent, oldest executor first."""
    return [x.signal for x in b.executors.values()]


# ── Executors and chunks ──────────────────────────────────────────────────────────────────


def test_one_executor_per_core_is_started_at_once() -> None:
    """Two and a half cores give three process executors, before any task has come."""
    b = WorkerBench({"cpu_cores": 2.5})
    assert b.executors == {}
    b.feed(e.PoolStarted())
    assert [x.kind for x in b.executors.values()] == [ExecutorKind.PROCESS] * 3


def test_tasks_of_unknown_length_go_out_one_by_one() -> None:
    """Until one task has been measured, each executor holds a single one."""
    b = bench()
    b.grant(100)
    assert [len(x.tasks) for x in b.executors.values()] == [1, 1]


def test_short_tasks_travel_in_chunks_and_executors_stay_stocked() -> None:
    """Tasks of 10 µs go out by the hundred, at most about four milliseconds an executor."""
    b = bench()
    learn(b, a_class(), run_us=10)
    b.grant(4000)
    counts = [len(x.tasks) for x in b.executors.values()]
    assert all(200 <= count <= 512 for count in counts)
    b.finish(1, counts[0] - 1)
    assert len(b.executors[1].tasks) > 100


def test_who_had_a_task_last_gets_the_next_one() -> None:
    """It is awake, and its caches are warm; one that never had any waits."""
    b = bench()
    for _ in range(5):
        b.grant(1)
        assert [len(x.tasks) for x in b.executors.values()] == [1, 0]
        b.finish_all(50_000)
    b.grant(2)
    b.finish(1, 1)
    b.finish(2, 1)
    b.grant(1)
    assert [len(x.tasks) for x in b.executors.values()] == [0, 1]


def test_few_short_tasks_are_shared_out() -> None:
    """Ten tiny tasks for two executors are not all given to one."""
    b = bench()
    learn(b, a_class(), run_us=10)
    b.grant(10)
    assert sorted(len(x.tasks) for x in b.executors.values()) == [5, 5]


def test_long_tasks_wait_in_the_worker_not_in_the_executor() -> None:
    """Behind a task of 50 ms nothing is queued where it could not be overtaken."""
    b = bench()
    learn(b, a_class(), run_us=50_000)
    b.grant(10)
    assert [len(x.tasks) for x in b.executors.values()] == [1, 1]


def test_tasks_with_a_run_limit_get_an_executor_for_themselves() -> None:
    """A class with timeout_s is handed out one task at a time, with nothing behind it."""
    b = bench()
    learn(b, a_class(timeout_s=5), run_us=10)
    b.grant(10, a_class(timeout_s=5))
    learned = a_class("g")
    b.grant(10, learned)
    assert [len(x.tasks) for x in b.executors.values()] == [1, 1]


def test_a_big_payload_is_not_handed_out_by_the_hundred() -> None:
    """A chunk stays near 256 KiB of arguments."""
    b = bench()
    learn(b, a_class(), run_us=10)
    number = b.numbers[a_class()]
    payloads = PayloadColumn.of([b"%d" % i + b"x" * 50_000 for i in range(100)])
    b.granted[50] = (100, a_class())
    frame = AssignFrame(leases=[LeaseGrant(50, number, 1, PREFIX, 0, payloads)])
    sizes = []
    frame.number = b.sent + 1
    for command in b.manager.handle(e.FrameReceived(b.last_session, frame), b.now):
        if isinstance(command, e.DispatchTasks):
            sizes.append(len(command.payloads))
    assert sizes
    assert max(sizes) <= 5


# ── Order and resources ───────────────────────────────────────────────────────────────────


def test_higher_priority_goes_first_and_equals_by_arrival() -> None:
    """The queue is ordered by priority, then by arrival, across leases."""
    b = bench(cpu=1)
    b.grant(1)
    low, high, low2 = (b.grant(2, a_class(priority=p)) for p in (-1, 5, -1))
    b.finish_all(50_000)
    assert b.order[1:] == [(high, 0), (high, 1), (low, 0), (low, 1), (low2, 0), (low2, 1)]


def test_four_cores_take_four_slots() -> None:
    """On four cores a task of four runs alone."""
    b = bench(cpu=4)
    b.grant(1, a_class(cpu=4))
    b.grant(1)
    assert sum(len(x.tasks) for x in b.executors.values()) == 1
    b.finish_all()
    assert len(b.order) == 2


def test_half_cores_run_two_a_core_in_more_executors() -> None:
    """Tasks of half a core get executors beyond the slots, as many as fit."""
    b = bench(cpu=1)
    b.grant(8, a_class(cpu=0.5))
    for _ in range(4):
        b.make_ready()
    assert sum(len(x.tasks) for x in b.executors.values()) == 2
    assert len(b.executors) == 2


def test_idle_extra_executors_end_after_a_minute() -> None:
    """An executor beyond the slots that has nothing for a minute is let go, and for certain.

    Regression: it got SIGTERM once; one in which a task had set a handler stayed for ever.
    """
    b = bench(cpu=1)
    b.grant(8, a_class(cpu=0.5))
    b.make_ready()
    b.finish_all(50_000)
    b.advance(61)
    assert signals(b) == [None, 9]
    b.die(2)
    assert len(b.executors) == 1


def test_a_custom_resource_limits_what_runs() -> None:
    """Two licences let two of four tasks run although there are cores."""
    b = bench(cpu=4, licence=2)
    b.grant(4, a_class(licence=1))
    assert sum(len(x.tasks) for x in b.executors.values()) == 2


def test_a_big_task_is_overtaken_for_one_second_only() -> None:
    """What needs all cores is passed by small tasks at first; then the cores are kept for it."""
    b = bench()
    b.grant(1)
    big = b.grant(1, a_class(cpu=2))
    small = b.grant(50)
    assert (small, 0) in b.order
    b.advance(0.5)
    b.finish(2, run_us=50_000)
    assert (small, 1) in b.order
    b.advance(0.6)
    b.finish(2, run_us=50_000)
    assert b.executors[2].tasks == {}
    b.finish(1, run_us=50_000)
    assert list(b.executors[1].tasks) + list(b.executors[2].tasks) == [(big, 0)]


def test_a_task_that_needs_an_executor_alone_is_not_starved_by_tiny_ones() -> None:
    """An urgent task with a run limit starts as soon as an executor has run empty."""
    b = bench()
    learn(b, a_class(), run_us=10)
    b.grant(4000)
    urgent = b.grant(1, a_class("urgent", priority=9, timeout_s=60))
    b.finish(1, len(b.executors[1].tasks))
    assert list(b.executors[1].tasks) == [(urgent, 0)]


def test_what_can_never_run_here_fails_with_the_shortage_named() -> None:
    """A lease for more than the worker owns is answered, not kept."""
    b = bench()
    b.grant(1, a_class(gpus=2))
    [frame] = [f for f in b.collect() if f.outcomes]
    info = decode_failure(frame.outcomes[0].payloads[0])
    assert (info.code, "gpus: needs 2, has 0" in info.message) == ("RESOURCE_NOT_AVAILABLE", True)


# ── Shared executors ──────────────────────────────────────────────────────────────────────


def test_async_tasks_share_one_executor_up_to_its_concurrency() -> None:
    """Coroutines that need no core all go to one executor, at most its concurrency at once."""
    b = bench()
    b.grant(20, a_class(cpu=0, kind=ExecutorKind.ASYNC))
    b.make_ready()
    shared = [x for x in b.executors.values() if x.kind is ExecutorKind.ASYNC]
    assert [len(x.tasks) for x in shared] == [8]
    b.finish_all()
    assert len(b.order) == 20


def test_shared_executors_are_bounded_by_resources_too() -> None:
    """Threads that need a core each run two at a time on two cores."""
    b = bench()
    b.grant(20, a_class(kind=ExecutorKind.THREAD))
    b.make_ready()
    assert sum(len(x.tasks) for x in b.executors.values()) == 2


def test_a_thread_that_does_not_stop_is_abandoned_and_its_neighbours_live() -> None:
    """After the grace the task is settled, the executor retires and ends with its last task."""
    b = bench()
    lease = b.grant(3, a_class(cpu=0, kind=ExecutorKind.THREAD))
    b.make_ready()
    shared = next(x for x in b.executors.values() if x.kind is ExecutorKind.THREAD)
    b.cancel(lease, 0, 1)
    assert (shared.notices, shared.interrupts) == ([(lease, 0)], [])
    b.advance(5.1)
    assert shared.interrupts == [(lease, 0)]
    b.advance(5.0)
    b.collect()
    assert b.told == {(lease, 0): TaskState.CANCELLED}
    assert signals(b)[-1] is None
    del shared.tasks[(lease, 0)]
    b.finish(shared.executor_id, 2)
    assert signals(b)[-1] == 9
    again = b.grant(1, a_class(cpu=0, kind=ExecutorKind.THREAD))
    b.make_ready()
    assert any((again, 0) in x.tasks for x in b.executors.values())


def abandon_one(max_retries: int = 3) -> tuple[WorkerBench, FakeExecutor, int]:
    """Have a thread of three cancelled by force that does not stop."""
    b = bench()
    lease = b.grant(3, a_class(cpu=0, kind=ExecutorKind.THREAD, max_retries=max_retries))
    b.make_ready()
    shared = next(x for x in b.executors.values() if x.kind is ExecutorKind.THREAD)
    b.cancel(lease, 0, 1, force=True)
    b.advance(0.1)
    b.collect()
    assert b.told == {(lease, 0): TaskState.CANCELLED}
    assert shared.owes_answer
    del shared.tasks[(lease, 0)]
    return b, shared, lease


def test_a_shared_process_that_answers_lives_as_long_as_its_other_tasks() -> None:
    """One of its threads does not obey; the others go on."""
    b, shared, _ = abandon_one()
    b.advance(4.0)
    shared.owes_answer = False
    b.feed(e.ExecutorReturned(shared.executor_id, []))
    b.advance(60.0)
    assert shared.signal is None
    b.finish(shared.executor_id, 2)
    assert shared.signal == SIGKILL


@pytest.mark.parametrize("max_retries", [0, 3])
def test_a_shared_process_in_which_nothing_goes_on_is_ended(max_retries: int) -> None:
    """Bug: a thread that held the interpreter's lock held up its neighbours, cancelled or not."""
    b, shared, lease = abandon_one(max_retries)
    b.advance(5.1)
    assert shared.signal == SIGKILL
    b.die(shared.executor_id, knows_task=False)
    if max_retries:
        b.make_ready()
        (other,) = [x for x in b.executors.values() if x.kind is ExecutorKind.THREAD]
        assert set(other.tasks) == {(lease, 1), (lease, 2)}
        b.finish(other.executor_id, 2)
        b.deliver_all()
    b.collect()
    end = TaskState.SUCCEEDED if max_retries else TaskState.LEASED
    assert [b.told[(lease, offset)] for offset in (1, 2)] == [end, end]


def test_all_that_a_dead_shared_executor_ran_is_reported() -> None:
    """Whatever ran in it has started, so the head decides on each."""
    b = bench()
    b.grant(3, a_class(cpu=0, kind=ExecutorKind.ASYNC))
    b.make_ready()
    b.die(3)
    b.collect()
    assert set(b.told.values()) == {TaskState.LEASED}
    b.assert_all_told()


# ── Cancel, recall, limits ────────────────────────────────────────────────────────────────


def test_queued_tasks_are_cancelled_at_once() -> None:
    """A cancel of what has not started is answered in the next frame."""
    b = bench()
    lease = b.grant(10)
    b.cancel(lease, 2, 8)
    b.collect()
    assert b.told == {(lease, i): TaskState.CANCELLED for i in range(2, 10)}


def test_a_running_task_is_asked_to_stop_more_and_more_firmly() -> None:
    """Told, interrupted after 5 s, SIGTERM after 10, SIGKILL after 15; its end is its exit."""
    b = bench()
    lease = b.grant(1)
    b.cancel(lease)
    executor = b.executors[1]
    assert (executor.notices, executor.interrupts) == ([(lease, 0)], [])
    for after_s, interrupts, signal in ((5, 0, None), (5, 1, None), (5, 1, 15)):
        b.advance(after_s - 0.1)
        assert (len(executor.interrupts), executor.signal) == (interrupts, signal)
        b.advance(0.1)
    assert (len(executor.interrupts), executor.signal) == (1, 9)
    b.collect()
    assert b.told == {}
    b.die(1)
    b.collect()
    assert b.told == {(lease, 0): TaskState.CANCELLED}


def test_the_graces_of_a_cancel_can_be_set() -> None:
    """Without a notice it is interrupted at once; without graces it is killed at once."""
    b = WorkerBench({"cpu_cores": 1})
    b.limits = replace(b.limits, cancel_notice_s=0.0, cancel_grace_s=1.0, kill_grace_s=0.5)
    b.manager = WorkerManager(b.limits)
    b.start()
    lease = b.grant(1)
    b.cancel(lease)
    assert (b.executors[1].notices, b.executors[1].interrupts) == ([], [(lease, 0)])
    b.advance(1.0)
    assert signals(b)[0] == 15
    b.advance(0.5)
    assert signals(b)[0] == 9


@pytest.mark.parametrize("state", [TaskState.CANCELLED, TaskState.FAILED])
def test_a_process_that_was_stopped_is_not_used_again(state: TaskState) -> None:
    """What it started dies with it, and the task has ended only then."""
    b = bench(cpu=1)
    lease = b.grant(2)
    b.cancel(lease)
    b.finish(1, 1, state)
    assert signals(b)[0] == 9
    b.collect()
    assert (lease, 0) not in b.told
    b.die(1)
    b.make_ready()
    b.finish_all()
    b.collect()
    assert b.told == {(lease, 0): TaskState.CANCELLED, (lease, 1): TaskState.SUCCEEDED}


def test_a_forced_cancel_kills_at_once() -> None:
    """``force`` does not ask."""
    b = bench()
    lease = b.grant(1)
    b.cancel(lease, force=True)
    assert signals(b)[0] == 9
    b.die(1)
    b.collect()
    assert b.told == {(lease, 0): TaskState.CANCELLED}
    assert len(b.executors) == 2


def test_a_cancel_reaches_what_waits_in_an_executor() -> None:
    """The chunk is called back: its cancelled part ends, the rest runs elsewhere."""
    b = bench()
    learn(b, a_class(), run_us=100)
    lease = b.grant(40)
    b.cancel(lease, 0, 10)
    first = next(x for x in b.executors.values() if (lease, 0) in x.tasks)
    assert first.owes_answer
    b.answer(first.executor_id)
    assert first.notices == [(lease, 0)]
    b.obey(first.executor_id)
    b.finish_all()
    b.collect()
    states = [b.told[(lease, i)] for i in range(40)]
    assert states[:10] == [TaskState.CANCELLED] * 10
    assert states[10:] == [TaskState.SUCCEEDED] * 30


def test_a_task_that_ends_well_despite_the_cancel_has_succeeded() -> None:
    """The result was there first; it is not thrown away."""
    b = bench()
    lease = b.grant(1)
    b.cancel(lease)
    b.finish(1)
    b.collect()
    assert b.told == {(lease, 0): TaskState.SUCCEEDED}
    b.advance(10)
    assert signals(b)[0] is None


def test_the_run_limit_ends_an_attempt() -> None:
    """After timeout_s it is interrupted, 1 s later SIGTERM, 2 s later SIGKILL: before the head."""
    b = bench()
    lease = b.grant(1, a_class(timeout_s=3))
    b.advance(2.9)
    assert b.executors[1].interrupts == []
    b.advance(0.2)
    assert b.executors[1].interrupts == [(lease, 0)]
    b.advance(1.0)
    assert signals(b)[0] == 15
    b.advance(2.0)
    assert signals(b)[0] == 9
    b.die(1)
    [frame] = [f for f in b.collect() if f.outcomes]
    info = decode_failure(frame.outcomes[0].payloads[0])
    assert (info.code, info.phase) == ("TASK_TIMEOUT", "run")
    assert b.told == {(lease, 0): TaskState.TIMED_OUT}


def test_a_task_that_obeys_its_run_limit_ends_with_its_executor() -> None:
    """The interrupt is enough, and nothing of it is left."""
    b = bench()
    lease = b.grant(1, a_class(timeout_s=3))
    b.advance(3.1)
    b.obey(1)
    assert signals(b)[0] == 9
    b.die(1)
    b.advance(5)
    b.collect()
    assert b.told == {(lease, 0): TaskState.TIMED_OUT}


def test_coroutines_have_run_limits_each() -> None:
    """In a shared executor each task's own limit holds."""
    b = bench()
    kind = ExecutorKind.ASYNC
    early = b.grant(1, a_class(cpu=0, kind=kind, timeout_s=1))
    late = b.grant(1, a_class(cpu=0, kind=kind, timeout_s=9))
    b.make_ready()
    b.advance(1.5)
    assert b.executors[3].interrupts == [(early, 0)]
    b.obey(3)
    b.finish_all()
    b.collect()
    assert b.told == {(early, 0): TaskState.TIMED_OUT, (late, 0): TaskState.SUCCEEDED}


def test_a_recall_gives_back_what_has_not_started() -> None:
    """Queued tasks and those in an executor's chunk go back, the running ones stay."""
    b = bench()
    learn(b, a_class(), run_us=100)
    lease = b.grant(100)
    b.recall(lease, 0, 100)
    for executor_id in (1, 2):
        b.answer(executor_id)
    b.finish_all()
    b.collect()
    b.assert_all_told()
    states = [b.told[(lease, i)] for i in range(100)]
    assert states.count(None) == 98
    assert states.count(TaskState.SUCCEEDED) == 2


def test_stale_requests_are_counted_and_dropped() -> None:
    """Cancels and recalls for leases that are not here do nothing."""
    b = bench()
    b.cancel(77)
    b.recall(77, 0, 5)
    b.send(AssignFrame(cancels=[LeaseCancel(b.grant(1), 5, 9)]))
    assert b.manager.counters["stale_requests"] == 2
    assert b.closed == []


# ── Long tasks ────────────────────────────────────────────────────────────────────────────


def test_the_head_learns_of_tasks_that_run_for_a_while() -> None:
    """A task is told as started after 20 ms, once a session."""
    b = bench()
    lease = b.grant(1)
    b.advance(0.019)
    b.collect()
    assert b.started == []
    b.advance(0.1)
    b.collect()
    assert b.started == [LeaseRange(lease, 0, 1)]
    b.close()
    b.open()
    b.collect()
    assert b.started == [LeaseRange(lease, 0, 1)] * 2


def test_tasks_behind_a_stuck_one_move_to_a_free_executor() -> None:
    """What waits behind a task that turned out long is taken back and runs elsewhere."""
    b = bench()
    learn(b, a_class(), run_us=100)
    lease = b.grant(10)
    b.finish(2, len(b.executors[2].tasks))
    stuck = list(b.executors[1].tasks)
    b.advance(0.02)
    assert b.executors[1].owes_answer
    b.answer(1)
    b.finish_all()
    assert set(b.order) >= {(lease, i) for i in range(10)}
    assert stuck


# ── Death ─────────────────────────────────────────────────────────────────────────────────


def test_only_the_running_task_pays_for_a_dead_executor() -> None:
    """The task that ran is reported with the signal and last output; the others run again."""
    b = bench(cpu=1)
    learn(b, a_class(), run_us=100)
    b.collect()
    lease = b.grant(10)
    b.finish(1, 3, run_us=100)
    b.die(1)
    [outcome] = [o for f in b.collect() for o in f.outcomes if o.state is TaskState.LEASED]
    info = decode_failure(outcome.payloads[0])
    assert (outcome.lease, outcome.offset) == (lease, 3)
    assert (info.code, info.signal) == ("WORKER_LOST", 11)
    assert "SIGSEGV" in info.message
    assert "tail" in info.message
    b.finish_all()
    b.collect()
    b.assert_all_told()
    assert all(b.runs[(lease, i)] == 1 for i in range(10))


def test_an_executor_that_cannot_say_what_it_ran_blames_the_first_task() -> None:
    """A task that kills before it is noted is not tried for ever."""
    b = bench(cpu=1)
    lease = b.grant(1)
    b.die(1, knows_task=False)
    b.collect()
    assert b.told == {(lease, 0): TaskState.LEASED}


def test_tasks_that_ran_unreported_and_may_not_run_twice_go_to_the_head() -> None:
    """With max_retries=0, results lost with the executor are not made again in silence."""
    b = bench(cpu=1)
    once = a_class(max_retries=0)
    learn(b, once, run_us=100)
    lease = b.grant(5, once)
    executor = b.executors.pop(1)
    assert len(executor.tasks) == 5
    b.feed(e.ExecutorExited(1, 3, None, (lease, 2), ""))
    b.collect()
    lost = {o for (n, o), state in b.told.items() if n == lease and state is TaskState.LEASED}
    assert lost == {0, 1, 2}


def test_the_pool_heals_with_a_pause_that_grows() -> None:
    """Executors that die young and unused are replaced later and later."""
    b = WorkerBench({"cpu_cores": 1})
    b.feed(e.PoolStarted())
    pauses = []
    for _ in range(5):
        [executor_id] = b.executors
        b.die(executor_id)
        assert b.executors == {}
        due = b.manager.next_deadline()
        assert due is not None
        pauses.append(round(due - b.now, 3))
        b.advance(due - b.now)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert len(b.executors) == 1


def test_a_death_under_a_task_is_healed_at_once() -> None:
    """A task that kills its executor does not slow the others down."""
    b = bench(cpu=1)
    b.grant(2)
    b.die(1)
    assert len(b.executors) == 1
    b.finish_all()
    b.collect()
    b.assert_all_told()


# ── The stream ────────────────────────────────────────────────────────────────────────────


def test_results_survive_a_broken_session() -> None:
    """What was sent and not acked, and what came meanwhile, arrives in the next session, once."""
    b = bench()
    lease = b.grant(4)
    b.finish(1)
    assert b.lose_frame()
    b.close()
    b.finish(2)
    b.open()
    [first, *_] = b.collect()
    assert first.held is not None
    assert [(h.lease, h.offset, h.count) for h in first.held] == [(lease, 0, 4)]
    b.finish_all()
    b.collect()
    b.assert_all_told()
    assert not b.repeats


def test_acked_results_are_not_sent_again() -> None:
    """An ack frees the spool."""
    b = bench()
    b.grant(1)
    b.finish(1)
    b.collect()
    b.send(AssignFrame())
    b.close()
    b.open()
    [frame] = b.collect()
    assert (frame.held, frame.outcomes) == ([], [])


def test_unacked_results_are_repeated_unchanged() -> None:
    """Without an ack the same outcome comes again; the head's fence knows it."""
    b = bench()
    lease = b.grant(1)
    b.finish(1)
    b.collect()
    b.close()
    b.open()
    b.collect()
    assert b.repeats == {(lease, 0): 1}


def test_work_goes_on_without_a_session() -> None:
    """While the head is away queued tasks still start and end."""
    b = bench()
    b.grant(20)
    b.close()
    b.finish_all()
    b.open()
    b.collect()
    b.assert_all_told()


def test_frames_are_bounded() -> None:
    """A frame has at most 4,096 tasks and a mebibyte; a bigger item goes alone."""
    b = bench()
    lease = b.grant(3)
    b.collect()
    big = PayloadColumn.of([b"x" * (2 << 20)])
    for executor_id in (1, 2, 1):
        executor = b.executors[executor_id]
        [key] = executor.tasks
        executor.tasks.clear()
        b.feed(
            e.ExecutorReported(executor_id, [LeaseOutcome(*key, TaskState.SUCCEEDED, big, 900_000)])
        )
    frames = b.collect()
    assert [len(f.outcomes) for f in frames] == [1, 1, 1]
    learn(b, a_class("g"), run_us=1)
    b.grant(10_000, a_class("g"))
    b.finish_all(run_us=1)
    sizes = [sum(len(o.payloads) for o in f.outcomes) for f in b.collect()]
    assert sum(sizes) == 10_001
    assert max(sizes) <= 4096
    assert lease in {n for n, _ in b.told}


def test_one_outcome_that_is_too_big_is_split() -> None:
    """Many values of one outcome are spread over frames without a loss."""
    b = bench(cpu=1)
    learn(b, a_class(), run_us=10)
    b.collect()
    lease = b.grant(100)
    executor = b.executors[1]
    count = len(executor.tasks)
    executor.tasks.clear()
    payloads = PayloadColumn.of([b"x" * 30_000] * count)
    outcome = LeaseOutcome(lease, 0, TaskState.SUCCEEDED, payloads, 1000)
    b.feed(e.ExecutorReported(1, [outcome]))
    frames = b.collect()
    assert len(frames) > 1
    assert all(sum(len(o.payloads.blob) for o in f.outcomes) <= 1 << 20 for f in frames)
    assert len([k for k in b.told if k[0] == lease]) == count


def test_a_repeated_frame_is_dropped() -> None:
    """The same frame number twice changes nothing."""
    b = bench()
    b.grant(3)
    assert b.last_frame is not None
    before = list(b.order)
    b.feed(e.FrameReceived(b.last_session, b.last_frame))
    assert b.order == before
    assert b.manager.counters["duplicate_frames"] == 1


def test_a_repeated_grant_is_ignored_even_after_its_end() -> None:
    """A lease number counts once, running or settled."""
    b = bench()
    lease = b.grant(1)
    assert b.last_frame is not None
    again = b.last_frame.leases
    b.send(AssignFrame(leases=again))
    b.finish_all()
    b.send(AssignFrame(leases=again))
    b.finish_all()
    assert b.order == [(lease, 0)]
    assert b.manager.counters["duplicate_grants"] == 2


def test_a_gap_ends_the_session() -> None:
    """A frame number that skips one closes the session, and the work stays."""
    b = bench()
    b.grant(1)
    b.feed(e.FrameReceived(b.last_session, AssignFrame(number=9)))
    assert "came after" in b.closed[0].reason
    b.open()
    b.finish_all()
    b.collect()
    b.assert_all_told()


def test_nonsense_ends_the_session() -> None:
    """Unknown classes, empty leases, bad classes and acks of nothing are refused, never raised."""
    column = PayloadColumn.of([b"x"])
    cases = [
        AssignFrame(leases=[LeaseGrant(1, 99, 1, PREFIX, 0, column)]),
        AssignFrame(
            classes=[ClassDefinition(1, a_class())],
            leases=[LeaseGrant(1, 1, 1, PREFIX, 0, PayloadColumn.of([]))],
        ),
        AssignFrame(
            classes=[ClassDefinition(1, a_class())],
            leases=[LeaseGrant(e.DIRECT_LEASES, 1, 1, PREFIX, 0, column)],
        ),
        AssignFrame(classes=[ClassDefinition(1, TaskClass("f", code_hash=b"x" * 32))]),
        AssignFrame(classes=[ClassDefinition(1, TaskClass(""))]),
    ]
    for frame in cases:
        b = bench()
        b.send(frame)
        assert len(b.closed) == 1
        assert b.session is None
    b = bench()
    b.feed(e.FrameReceived(b.last_session, AssignFrame(number=1, ack=5)))
    assert "never sent" in b.closed[0].reason


def test_frames_of_an_old_session_do_nothing() -> None:
    """A late frame of a session that is over is counted and dropped."""
    b = bench()
    b.grant(1)
    late = b.last_frame
    assert late is not None
    b.close()
    b.open()
    b.feed(e.FrameReceived(b.last_session - 1, late))
    assert b.manager.counters["stale_frames"] == 1


def test_code_is_remembered_over_sessions() -> None:
    """A class sent as code once may be defined again without it."""
    b = bench()
    by_code = TaskClass("f", code_hash=b"h" * 32, resources=a_class().resources)
    b.send(AssignFrame(classes=[ClassDefinition(7, by_code, b"code")]))
    b.close()
    b.open()
    column = PayloadColumn.of([b"0"])
    b.granted[1] = (1, by_code)
    b.send(
        AssignFrame(
            classes=[ClassDefinition(3, by_code)],
            leases=[LeaseGrant(1, 3, 1, PREFIX, 0, column)],
        )
    )
    assert b.closed == []
    assert b.order == [(1, 0)]


def test_the_heartbeat_counts_what_no_frame_has_told() -> None:
    """Per lease: unfinished tasks and outcomes that wait for a frame."""
    b = bench()
    lease = b.grant(5)
    b.finish(1)
    assert b.manager.heartbeat() == (0, 1, ((lease, 5),), 2)
    b.collect()
    assert b.manager.heartbeat() == (1, 1, ((lease, 4),), 2)


def test_outcomes_that_nobody_asked_for_are_dropped() -> None:
    """An executor that reports what it does not hold changes nothing."""
    b = bench()
    lease = b.grant(1)
    column = PayloadColumn.of([b"x"])
    b.feed(e.ExecutorReported(2, [LeaseOutcome(lease, 0, TaskState.SUCCEEDED, column, 1)]))
    b.feed(e.ExecutorReported(99, [LeaseOutcome(lease, 0, TaskState.SUCCEEDED, column, 1)]))
    assert b.manager.counters["stale_outcomes"] == 2
    b.finish_all()
    b.collect()
    b.assert_all_told()


# ── Drain ─────────────────────────────────────────────────────────────────────────────────


def test_a_drain_gives_back_the_queue_and_finishes_what_runs() -> None:
    """Unstarted tasks go back, running ones end, then the last frame says so."""
    b = bench()
    learn(b, a_class(), run_us=100)
    lease = b.grant(50)
    b.feed(e.DrainRequested())
    for executor_id in (1, 2):
        b.answer(executor_id)
    assert not any(f.drained for f in b.collect())
    b.finish(1)
    b.finish(2)
    frames = b.collect()
    assert b.has_drained
    assert [f.drained for f in frames[:-1]] == [False] * (len(frames) - 1)
    assert all(f.draining for f in frames)
    assert [b.told[(lease, i)] for i in range(50)].count(None) == 48
    b.send(AssignFrame())
    assert b.has_left


def test_new_grants_are_returned_while_draining() -> None:
    """What crosses the drain on the wire goes straight back."""
    b = bench()
    b.grant(1)
    b.feed(e.DrainRequested())
    late = b.grant(3)
    b.finish_all()
    b.collect()
    assert [b.told[(late, i)] for i in range(3)] == [None] * 3


def test_a_drain_ends_at_its_limit() -> None:
    """What still runs then is killed and given back; what may not run twice is reported."""
    b = bench()
    lease = b.grant(1)
    once = b.grant(1, a_class(max_retries=0))
    b.feed(e.DrainRequested(5.0))
    b.advance(5.1)
    assert signals(b) == [9, 9]
    b.collect()
    assert b.told == {(lease, 0): None, (once, 0): TaskState.LEASED}
    assert b.has_drained
    b.close(is_orderly=True)
    assert b.has_left


def test_a_worker_nobody_talks_to_leaves_by_itself() -> None:
    """Drained without a session: at once if nothing is owed, else when the time is up."""
    b = bench()
    b.collect()
    b.send(AssignFrame())
    b.close()
    b.feed(e.DrainRequested())
    assert b.has_left
    b = bench()
    b.grant(1)
    b.finish_all()
    b.close()
    b.feed(e.DrainRequested(2.0))
    assert not b.has_left
    b.advance(5.1)
    assert b.has_left


def test_a_worker_that_keeps_values_waits_until_they_are_taken() -> None:
    """It says at once that it leaves, and goodbye when it keeps nothing any more."""
    b = bench()
    b.collect()
    b.feed(e.KeepingChanged(True))
    b.feed(e.DrainRequested(5.0))
    (frame,) = b.collect()
    assert (frame.draining, frame.drained) == (True, False)
    b.advance(4.9)
    assert not b.manager.has_frame
    b.feed(e.KeepingChanged(False))
    b.collect()
    assert b.has_drained


def test_a_worker_waits_no_longer_than_its_limit_for_values_to_be_taken() -> None:
    """Nor for a head that is not there: then nobody comes for them."""
    b = bench()
    b.collect()
    b.feed(e.KeepingChanged(True))
    b.feed(e.DrainRequested(5.0))
    b.collect()
    b.advance(5.0 + leaving.KEEP_GRACE_S + 0.1)
    b.collect()
    assert b.has_drained
    b = bench()
    b.collect()
    b.send(AssignFrame())
    b.feed(e.KeepingChanged(True))
    b.close()
    b.feed(e.DrainRequested(5.0))
    assert b.has_left


def test_the_head_can_order_a_drain() -> None:
    """``drain`` in a frame is the same as a signal to the worker."""
    b = bench()
    b.send(AssignFrame(drain=True))
    b.collect()
    assert b.has_drained


# ── Direct tasks ──────────────────────────────────────────────────────────────────────────


def test_a_direct_task_runs_and_the_head_hears_nothing() -> None:
    """It uses the same queue and resources, and stays out of frames and heartbeats."""
    b = bench()
    direct = e.DirectSubmitted(e.DIRECT_LEASES, a_class(), b"abcdefghij", 7, b"call")
    [sent] = [x for x in b.feed(direct) if isinstance(x, e.DispatchTasks)]
    assert (sent.prefix, sent.first, sent.attempt) == (b"abcdefghij", 7, 1)  # as its context says
    assert b.manager.heartbeat()[2:] == ((), 1)
    b.advance(0.1)
    b.finish(1)
    assert [o.state for o in b.direct] == [TaskState.SUCCEEDED]
    [frame] = b.collect()
    assert (frame.held, frame.outcomes, frame.started) == ([], [], [])


def test_a_direct_task_can_be_cancelled() -> None:
    """Whoever does not wait any more frees the slot."""
    b = bench(cpu=1)
    b.grant(1)
    b.feed(e.DirectSubmitted(e.DIRECT_LEASES, a_class(), b"0123456789", 7, b"call"))
    b.feed(e.DirectCancelled(e.DIRECT_LEASES))
    assert [o.state for o in b.direct] == [TaskState.CANCELLED]


@pytest.mark.parametrize("kind", list(ExecutorKind))
def test_a_task_is_told_its_earliest_limit(kind: ExecutorKind) -> None:
    """An executor is told the run limit from the start, or the limit of all if that is earlier."""
    b = bench()
    seen: list[float] = []
    carry_out = b._carry_out

    def note(command: e.Command) -> None:
        if isinstance(command, e.DispatchTasks):
            seen.append(command.due)
        carry_out(command)

    b._carry_out = note  # type: ignore[method-assign]
    for timeout_s, left_s in ((0.0, 0.0), (5.0, 0.0), (0.0, 9.0), (5.0, 9.0), (9.0, 5.0)):
        b.grant(1, a_class(kind=kind, timeout_s=timeout_s), time_left_s=left_s)
        b.finish_all()
    assert [due - b.now for due in seen] == [math.inf, 5.0, 9.0, 5.0, 5.0]


# ── What tasks say ────────────────────────────────────────────────────────────────────────


def say(b: WorkerBench, lease: int, offset: int, fraction: float | None, text: str = "x") -> None:
    """Let the first executor pass on what one of its tasks says."""
    b.feed(e.ExecutorTold(1, [LeaseNews(lease, offset, fraction, text)]))


@pytest.mark.parametrize("kind", list(ExecutorKind))
def test_news_travel_once_and_only_the_latest_progress(kind: ExecutorKind) -> None:
    """They go with the next frame, the order of what a task says kept, and are not repeated."""
    b = bench()
    lease = b.grant(1, a_class(kind=kind))
    b.make_ready()
    executor = next(x.executor_id for x in b.executors.values() if x.tasks)
    b.collect()
    for fraction, text in ((0.1, ""), (None, "first"), (0.2, ""), (None, "second"), (0.3, "")):
        b.feed(e.ExecutorTold(executor, [LeaseNews(lease, 0, fraction, text)]))
    [frame] = b.collect()
    said = [(each.fraction, each.text) for each in frame.news]
    assert said == [(None, "first"), (None, "second"), (0.3, "")]
    b.feed(e.ExecutorTold(executor, [LeaseNews(lease, 0, 0.4, "")]))
    assert b.lose_frame()
    b.close()
    b.open()
    assert [frame.news for frame in b.collect()] == [[]]


def test_news_of_tasks_that_are_not_here_are_dropped() -> None:
    """Of what has ended, of another executor, of nobody: counted, and the head hears nothing."""
    b = bench(cpu=1)
    lease = b.grant(1)
    b.finish_all()
    b.collect()
    say(b, lease, 0, 0.5)
    say(b, 99, 0, 0.5)
    b.feed(e.ExecutorTold(77, [LeaseNews(lease, 0, 0.5, "")], 3))
    assert b.manager.counters["stale_news"] == 3
    assert b.manager.counters["news_dropped"] == 3
    assert b.collect() == []


def test_news_wait_for_a_session_within_bounds() -> None:
    """Without a head nothing grows for ever, and progress that is newer goes before older."""
    b = bench(cpu=1)
    lease = b.grant(1)
    b.close()
    for number in range(10_000):
        say(b, lease, 0, None, f"value {number}")
    say(b, lease, 0, 0.5)
    assert len(b.manager._state.outbox.news) == 4_096
    assert b.manager.counters["news_dropped"] == 10_001 - 4_096
    b.open()
    frames = b.collect()
    assert sum(len(frame.news) for frame in frames) == 4_096
    assert max(len(frame.news) for frame in frames) <= 256


def test_news_do_not_hold_up_a_drain() -> None:
    """A worker leaves although there is something left that nobody has heard."""
    b = bench(cpu=1)
    lease = b.grant(1)
    b.close()
    say(b, lease, 0, 0.5)
    b.feed(e.DrainRequested(5.0))
    b.finish(1)
    b.advance(9.0)
    assert b.has_left


def test_a_lease_is_named_as_long_as_its_outcome_is_owed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: of many closed leases the first were not, and a new head ran them again."""
    monkeypatch.setattr("rustray.worker.state.MAX_CLOSED_LEASES", 2)
    monkeypatch.setattr("rustray.worker.state.FORGET_TOGETHER", 1)
    b = bench()
    leases = []
    for _ in range(8):
        leases.append(b.grant(1))
        b.finish_all()
    assert b.lose_frame()
    b.close()
    b.open()
    [first, *_] = b.collect()
    assert first.held is not None
    assert sorted(h.lease for h in first.held) == leases


def ten_in_one_executor() -> tuple[WorkerBench, int, FakeExecutor]:
    """Return a worker whose only executor has ten quick tasks of one lease."""
    b = WorkerBench({"cpu_cores": 1}).start()
    b.grant(2)
    b.finish_all()
    lease = b.grant(10)
    (executor,) = [x for x in b.executors.values() if x.tasks]
    return b, lease, executor


@pytest.mark.parametrize("force", [True, False])
def test_a_cancel_reaches_a_task_whose_executor_does_not_answer(force: bool) -> None:
    """Bug: with others beside it, it was waited for for ever, and these with it."""
    b, lease, executor = ten_in_one_executor()
    b.cancel(lease, 2, 1, force=force)
    b.take_back(executor.executor_id, 3)  # the first two may have ended: nobody knows
    b.advance(0.0 if force else 15.1)
    assert executor.signal == SIGKILL
    b.die(executor.executor_id)
    b.finish_all()
    b.deliver_all()
    ends = [b.told[(lease, offset)] for offset in range(10)]
    assert ends == [*[TaskState.SUCCEEDED] * 2, TaskState.CANCELLED, *[TaskState.SUCCEEDED] * 7]


@pytest.mark.parametrize("force", [True, False])
def test_a_cancel_reaches_a_task_whose_executor_stands_still_between_two(force: bool) -> None:
    """There nothing is taken from it: it is killed, and what was beside the task runs elsewhere."""
    b, lease, executor = ten_in_one_executor()
    b.cancel(lease, 5, 1, force=force)
    b.advance(0.9 if force else 14.9)
    assert executor.signal is None
    b.advance(0.2)
    assert executor.signal == SIGKILL
    b.die(executor.executor_id)
    b.runs[(lease, 0)] -= 1  # what it ran is run again
    b.finish_all()
    b.deliver_all()
    ends = [b.told[(lease, offset)] for offset in range(10)]
    assert ends == [*[TaskState.SUCCEEDED] * 5, TaskState.CANCELLED, *[TaskState.SUCCEEDED] * 4]


def test_a_task_that_is_in_the_way_of_a_cancel_goes_on() -> None:
    """What is cancelled is taken back from behind it."""
    b, lease, executor = ten_in_one_executor()
    b.cancel(lease, 5, 1, force=True)
    b.take_back(executor.executor_id, 1)
    b.advance(20.0)
    assert executor.signal is None
    b.finish_all()
    b.deliver_all()
    ends = [b.told[(lease, offset)] for offset in range(10)]
    assert ends == [*[TaskState.SUCCEEDED] * 5, TaskState.CANCELLED, *[TaskState.SUCCEEDED] * 4]


def test_an_executor_that_does_not_answer_gets_nothing_more() -> None:
    """Bug: what waited behind a task that holds the interpreter's lock waited as long as that.

    It is not asked again, the head is told what runs, and once it reports it is as any other.
    """
    b = WorkerBench({"cpu_cores": 2}).start()
    b.grant(4)
    b.finish_all()
    lease = b.grant(10)
    stuck = next(x for x in b.executors.values() if x.tasks)
    b.advance(0.2)
    for other in [x for x in b.executors.values() if x is not stuck and x.tasks]:
        b.finish(other.executor_id, len(other.tasks))
    b.advance(0.2)
    assert stuck.owes_answer
    b.take_back(stuck.executor_id, 2)
    held = dict(stuck.tasks)
    b.collect()
    assert LeaseRange(*list(held)[-1], 1) in b.started
    for _ in range(3):
        b.grant(20)
        others = [x for x in b.executors.values() if x is not stuck and x.tasks]
        assert others
        for other in others:
            b.finish(other.executor_id, len(other.tasks))
        b.advance(1.0)
    assert stuck.tasks == held
    b.finish(stuck.executor_id, len(held))
    b.finish_all()
    b.deliver_all()
    assert [b.told[(lease, offset)] for offset in range(10)] == [TaskState.SUCCEEDED] * 10
    b.grant(20)
    assert stuck.tasks


def test_a_late_answer_does_not_save_a_process_that_stands_still() -> None:
    """Regression (review): an answer to what was asked before took the cancel's limit."""
    b = WorkerBench({"cpu_cores": 1}).start()
    for _ in range(2):
        b.grant(4)
        b.finish_all()
    (executor,) = b.executors.values()
    before = b.grant(2)
    b.recall(before, 1, 1)
    assert executor.owes_answer
    b.finish(executor.executor_id, 2)
    b.cancel(b.grant(3), 0, 3, force=True)
    executor.owes_answer = False
    b.feed(e.ExecutorReturned(executor.executor_id, []))
    assert executor.owes_answer, "it is asked again"
    for _ in range(4):
        b.advance(0.5)
    assert executor.signal == SIGKILL


def test_a_process_is_not_killed_for_a_task_that_has_ended() -> None:
    """Regression (review): the limit of a cancel outlived its task, and others died for it."""
    b = WorkerBench({"cpu_cores": 1}).start()
    for _ in range(2):
        b.grant(4)
        b.finish_all()
    (executor,) = b.executors.values()
    b.cancel(b.grant(2), 1, 1, force=True)
    assert executor.owes_answer
    b.finish(executor.executor_id, 2)
    b.grant(3)
    for _ in range(4):
        b.advance(0.5)
    assert not executor.signal


def test_a_process_that_was_sent_a_signal_gets_nothing_more() -> None:
    """Bug: a task that ended in spite of its SIGTERM left its process to the next one."""
    b = WorkerBench({"cpu_cores": 1}).start()
    lease = b.grant(2, TaskClass("f", timeout_s=0.5))
    (executor,) = [x for x in b.executors.values() if x.tasks]
    b.advance(1.6)
    assert executor.signal == SIGTERM
    b.finish(executor.executor_id)
    assert executor.signal == SIGKILL
    assert not executor.tasks
    b.die(executor.executor_id)
    b.finish_all()
    b.deliver_all()
    assert [b.told[(lease, offset)] for offset in range(2)] == [TaskState.SUCCEEDED] * 2
