"""The scheduler's decisions, one fact a test."""

from __future__ import annotations

import pytest

from helpers.scheduling import ANYTHING, PREFIX, Bench, NaiveWorker
from rustray.common.durability import Durability
from rustray.common.errors import WorkerNotFound
from rustray.common.resources import ResourceSet
from rustray.scheduler import commands as c
from rustray.scheduler import deadlines
from rustray.scheduler import events as e
from rustray.scheduler.placement import RECALL_AGAIN_S
from rustray.task.columns import PayloadColumn
from rustray.task.failures import decode_failure
from rustray.task.frames import LeaseOutcome, LeaseRange
from rustray.task.functions import FunctionInfo, Parameter
from rustray.task.spec import ExecutorKind, TaskClass
from rustray.task.state import TaskState


def grants(bench: Bench) -> list[c.GrantLease]:
    """Return the grants among the last event's commands."""
    return [command for command in bench.commands if isinstance(command, c.GrantLease)]


def test_a_task_runs_once_from_submit_to_result() -> None:
    """One task goes to the one worker and ends once."""
    bench = Bench()
    worker = bench.join()
    bench.submit(1)
    bench.run_all()
    assert bench.ended == {0: [TaskState.SUCCEEDED]}
    assert worker.held == {}


def test_the_ack_follows_the_commit() -> None:
    """PersistBatch precedes AcceptTasks, and PersistOutcome precedes DeliverOutcome."""
    bench = Bench()
    bench.join()
    bench.submit(3)
    kinds = [type(command) for command in bench.commands]
    assert kinds.index(c.PersistBatch) < kinds.index(c.AcceptTasks)
    worker = bench.workers["w-1"]
    bench.end(worker, min(worker.held), 0)
    kinds = [type(command) for command in bench.commands]
    assert kinds.index(c.PersistOutcome) < kinds.index(c.DeliverOutcome)


def test_tasks_wait_for_a_worker_that_comes_later() -> None:
    """Work submitted to an empty cluster is given to the first worker that joins."""
    bench = Bench()
    bench.submit(10)
    assert not grants(bench)
    bench.join()
    bench.run_all()
    assert len(bench.ended) == 10


def test_short_tasks_are_prefetched_and_long_ones_are_not() -> None:
    """The window grows with measured speed: thousands of microseconds, or just the slots."""
    bench = Bench()
    worker = bench.join(cpus=2)
    bench.submit(10_000)
    bench.end(worker, min(worker.held), 0, 1, run_us=5)
    assert sum(map(len, worker.held.values())) > 1_000
    slow = Bench()
    worker = slow.join(cpus=2)
    slow.submit(100)
    lease = min(worker.held)
    slow.end(worker, lease, 0, 1, run_us=3_000_000)
    slow.end(worker, lease, 1, 1, run_us=3_000_000)
    slow.end(worker, lease, 2, 1, run_us=3_000_000)
    assert sum(map(len, worker.held.values())) == 2


def test_higher_priority_goes_first_and_equal_priority_in_order() -> None:
    """Grants follow priority, then acceptance."""
    bench = Bench()
    low = bench.submit(3, TaskClass("f", priority=-1))
    normal = bench.submit(3, TaskClass("f"))
    high = bench.submit(3, TaskClass("f", priority=7))
    bench.join(cpus=1)
    bench.run_all()
    assert bench.grant_order == [*high, *normal, *low]


def test_a_high_priority_task_does_not_wait_behind_prefetched_low_ones() -> None:
    """Prefetched work of lower priority does not fill the window of a higher one."""
    bench = Bench()
    worker = bench.join(cpus=1)
    bench.submit(10_000)
    bench.end(worker, min(worker.held), 0, 1, run_us=5)
    urgent = bench.submit(1, TaskClass("f", priority=5))
    assert [grant.first for grant in grants(bench)] == [urgent.start]


def test_classes_of_equal_priority_share_in_order_of_acceptance() -> None:
    """Two functions of equal speed at one priority are served first come first served."""
    bench = Bench(prefetch_s=0.0011)
    order: list[int] = []
    for index in range(6):
        order += bench.submit(1, TaskClass("f" if index % 2 else "g", wait_for_resources=True))
    bench.join(cpus=1, functions=(ANYTHING, FunctionInfo("g", (Parameter("a", "args", False),))))
    bench.run_all()
    assert bench.grant_order == order


def test_a_dead_workers_tasks_run_elsewhere_once() -> None:
    """After a death every task ends once, and only what may have run pays a retry."""
    bench = Bench()
    first = bench.join("w-1", cpus=2)
    bench.submit(4)
    assert len(first.held) == 1
    bench.join("w-2", cpus=2)
    bench.die(first)
    bench.run_all()
    assert all(states == [TaskState.SUCCEEDED] for states in bench.ended.values())
    assert len(bench.ended) == 4
    attempts = [bench.scheduler.task(PREFIX, number).attempts for number in range(4)]  # type: ignore[union-attr]
    assert sorted(attempts) == [1, 1, 2, 2]


def test_all_that_a_lost_worker_had_is_suspect_where_it_runs_at_most_once() -> None:
    """Regression: a worker that was cut off ran what it had in store, and another one again."""
    bench = Bench()
    first = bench.join("w-1", cpus=2)
    given = set(bench.submit(8, TaskClass("f", max_retries=0)))
    bench.run_all()
    given = set(bench.submit(8, TaskClass("f", max_retries=0)))
    held = {first.grants[n].first + o for n, offsets in first.held.items() for o in offsets}
    assert 2 < len(held) <= len(given)
    bench.join("w-2", cpus=2)
    bench.die(first)
    bench.run_all()
    assert all(len(bench.attempts[number]) == 1 for number in given)
    assert {n for n in given if bench.state_of(n) is TaskState.FAILED} == held


def test_a_lost_worker_is_given_up_only_when_its_lease_ends() -> None:
    """A broken stream changes nothing; silence for the lease's time does."""
    bench = Bench(lease_ttl_s=10.0)
    first = bench.join("w-1")
    bench.submit(2)
    bench.disconnect(first)
    bench.join("w-2")
    bench.pass_time(9.9)
    assert not bench.workers["w-2"].held
    bench.heartbeat(bench.workers["w-2"])
    bench.pass_time(0.2)
    assert sum(map(len, bench.workers["w-2"].held.values())) == 2


def test_a_worker_that_reports_is_not_lost_for_want_of_heartbeats() -> None:
    """Regression: in the midst of reporting a worker lost its lease, and 59 tasks ran twice.

    Heartbeats are calls of their own, and may be stuck while the stream goes on.
    """
    bench = Bench(lease_ttl_s=10.0)
    worker = bench.join("w-1")
    bench.submit(1)
    bench.join("w-2")
    for _ in range(3):
        bench.pass_time(6.0)
        bench.report(worker)
        bench.heartbeat(bench.workers["w-2"])
    assert sum(map(len, worker.held.values())) == 1
    assert not bench.workers["w-2"].held


def test_a_head_that_was_frozen_hears_its_workers_before_it_judges_them() -> None:
    """Its timers are due before it has read the heartbeats that arrived meanwhile."""
    bench = Bench(lease_ttl_s=10.0)
    worker = bench.join("w-1")
    bench.submit(2)
    bench.now += 25.0
    bench.feed(e.TimePassed())
    bench.pass_time(14.9)
    bench.heartbeat(worker)
    bench.pass_time(9.9)
    assert sum(map(len, worker.held.values())) == 2
    assert bench.attempts == {0: [1], 1: [1]}
    bench.pass_time(0.2)
    assert bench.scheduler.state.workers == {}


def test_a_head_that_was_frozen_does_not_wait_for_ever() -> None:
    """A worker that stays silent is given up after the second look."""
    bench = Bench(lease_ttl_s=10.0)
    bench.join("w-1")
    bench.now += 25.0
    bench.feed(e.TimePassed())
    bench.pass_time(14.9)
    assert list(bench.scheduler.state.workers) == ["w-1"]
    bench.pass_time(0.2)
    assert bench.scheduler.state.workers == {}


def test_a_head_that_is_frozen_twice_listens_twice() -> None:
    """Regression: frozen again before the second look, it judged everybody when that came late."""
    bench = Bench(lease_ttl_s=10.0)
    worker = bench.join("w-1")
    bench.submit(2)
    bench.now += 25.0
    bench.feed(e.TimePassed())
    bench.pass_time(5.0)
    bench.heartbeat(worker)
    bench.now += 21.0
    bench.feed(e.TimePassed())
    bench.pass_time(14.0)
    bench.heartbeat(worker)
    bench.pass_time(2.0)
    assert list(bench.scheduler.state.workers) == ["w-1"]
    assert sum(map(len, worker.held.values())) == 2
    assert bench.attempts == {0: [1], 1: [1]}
    bench.pass_time(8.1)
    assert bench.scheduler.state.workers == {}


def test_a_worker_that_comes_back_keeps_its_work() -> None:
    """After a reconnect nothing that the worker still holds is given to anybody."""
    bench = Bench()
    worker = bench.join("w-1")
    bench.submit(4)
    bench.disconnect(worker)
    bench.join("w-1")
    assert not grants(bench)
    bench.run_all()
    assert bench.scheduler.state.counters["tasks_retried"] == 0


def test_what_never_reached_the_worker_is_given_again_at_no_cost() -> None:
    """Leased tasks that the worker does not list on its return are leased anew, for free."""
    bench = Bench()
    worker = bench.join("w-1")
    bench.submit(4, TaskClass("f", max_retries=0))
    bench.disconnect(worker)
    worker.held.clear()
    bench.join("w-1")
    bench.run_all()
    assert all(states == [TaskState.SUCCEEDED] for states in bench.ended.values())


def test_a_late_result_of_a_task_given_to_another_is_dropped() -> None:
    """The fence: a zombie's report under an old lease changes nothing."""
    bench = Bench()
    zombie = bench.join("w-1", cpus=1)
    bench.submit(1)
    (lease,) = zombie.held
    bench.disconnect(zombie)
    bench.join("w-2", cpus=1)
    bench.heartbeat(bench.workers["w-2"])
    bench.pass_time(10.1)
    zombie.held.clear()
    bench.join("w-1", cpus=1)
    stale = bench.scheduler.state.counters["stale_reports"]
    outcome = LeaseOutcome(lease, 0, TaskState.SUCCEEDED, PayloadColumn.of([b"late"]), 1)
    bench.report(bench.workers["w-1"], outcomes=[outcome])
    assert bench.scheduler.state.counters["stale_reports"] == stale + 1
    assert bench.ended == {}


def test_a_result_under_a_lease_that_has_lost_the_task_is_dropped() -> None:
    """The fence is the lease of the task, and not whether the worker has that lease still."""
    bench = Bench()
    first = bench.join("w-1", cpus=2)
    bench.submit(2)
    [(lease, offsets)] = first.held.items()
    assert offsets == {0, 1}
    second = bench.join("w-2", cpus=1)
    bench.give_back(first, lease, 1, 1)
    [other] = second.held
    stale = bench.scheduler.state.counters["stale_reports"]
    for state in (TaskState.SUCCEEDED, TaskState.LEASED):
        outcome = LeaseOutcome(lease, 1, state, PayloadColumn.of([b"\x80"]), 1)
        bench.report(first, outcomes=[outcome])
    assert bench.scheduler.state.counters["stale_reports"] == stale + 2
    assert bench.ended == {}
    bench.end(second, other, 0)
    assert bench.ended == {1: [TaskState.SUCCEEDED]}


def test_a_result_that_comes_twice_counts_once() -> None:
    """A repeated report is stale, whatever it says the second time."""
    bench = Bench()
    worker = bench.join()
    bench.submit(2)
    (lease,) = worker.held
    bench.end(worker, lease, 0)
    bench.end(worker, lease, 0, state=TaskState.FAILED)
    assert bench.ended[0] == [TaskState.SUCCEEDED]


@pytest.mark.parametrize(
    "report",
    [
        LeaseOutcome(999, 0, TaskState.SUCCEEDED, PayloadColumn.of([b""]), 0),
        LeaseOutcome(1, 7, TaskState.SUCCEEDED, PayloadColumn.of([b""]), 0),
        LeaseOutcome(1, -1, TaskState.SUCCEEDED, PayloadColumn.of([b""]), 0),
        LeaseOutcome(1, 0, TaskState.SUCCEEDED, PayloadColumn.of([b""] * 9), 0),
        LeaseOutcome(1, 0, TaskState.QUEUED, PayloadColumn.of([b""]), 0),
        LeaseOutcome(1, 0, TaskState.RUNNING, PayloadColumn.of([b""]), 0),
        LeaseOutcome(1, 0, TaskState.SUCCEEDED, PayloadColumn.of([]), 0),
    ],
)
def test_a_lying_worker_changes_nothing(report: LeaseOutcome) -> None:
    """Reports for leases, offsets or states that do not fit are counted and dropped."""
    bench = Bench()
    worker = bench.join()
    bench.submit(2)
    bench.report(worker, outcomes=[report], returned=[LeaseRange(5, 0, 1), LeaseRange(1, 5, 99)])
    assert bench.ended == {}
    assert bench.scheduler.state.counters["stale_reports"] >= 3


def test_another_workers_lease_is_out_of_reach() -> None:
    """A worker cannot end a task that a different worker holds."""
    bench = Bench()
    bench.join("w-1", cpus=1)
    bench.submit(1)
    thief = bench.join("w-2", cpus=1)
    outcome = LeaseOutcome(1, 0, TaskState.SUCCEEDED, PayloadColumn.of([b"evil"]), 1)
    bench.report(thief, outcomes=[outcome])
    assert bench.ended == {}


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), -1.0, 1e9, 1e300])
def test_a_worker_with_impossible_resources_is_refused(amount: float) -> None:
    """A million cores, NaN or a negative amount never enter the books."""
    bench = Bench()
    from rustray.task.views import WorkerInfo

    info = WorkerInfo("w-x", 1, "x", "", {"cpu_cores": amount})
    commands = bench.feed(e.WorkerJoined(info, 1))
    assert isinstance(commands[0], c.RefuseWorker)
    assert bench.scheduler.state.workers == {}


def test_an_executor_death_is_retried_up_to_the_budget() -> None:
    """max_retries re-runs, then the task fails with its evidence."""
    bench = Bench()
    worker = bench.join(cpus=1)
    bench.submit(1, TaskClass("f", max_retries=2, crash_limit=-1))
    for _ in range(3):
        assert bench.ended == {}
        bench.end(worker, min(worker.held), 0, state=TaskState.LEASED)
    assert bench.ended == {0: [TaskState.FAILED]}
    assert bench.attempts[0] == [1, 2, 3]


def test_user_exceptions_are_retried_only_when_asked() -> None:
    """A failed task ends at once, unless its class says retry_exceptions."""
    bench = Bench()
    worker = bench.join(cpus=1)
    bench.submit(1)
    bench.end(worker, min(worker.held), 0, state=TaskState.FAILED)
    assert bench.ended == {0: [TaskState.FAILED]}
    bench.submit(1, TaskClass("f", retry_exceptions=True, max_retries=1))
    bench.end(worker, min(worker.held), 0, state=TaskState.FAILED)
    assert 1 not in bench.ended
    bench.pass_time(1.0)
    bench.run_all()
    assert bench.ended[1] == [TaskState.SUCCEEDED]


def test_a_cancelled_queued_task_never_starts() -> None:
    """Cancel in the queue is immediate and final."""
    bench = Bench()
    bench.submit(5)
    bench.cancel(1, 3)
    bench.join()
    bench.run_all()
    assert [bench.state_of(n).name for n in range(5)] == [
        "SUCCEEDED", "CANCELLED", "CANCELLED", "CANCELLED", "SUCCEEDED",
    ]  # fmt: skip


def test_a_cancelled_running_task_waits_for_the_worker() -> None:
    """CANCELLING until confirmed; a result that comes first stands."""
    bench = Bench()
    worker = bench.join()
    bench.submit(2)
    bench.cancel(0, 2, force=True)
    assert bench.state_of(0) is TaskState.CANCELLING
    cancels = [x for x in bench.commands if isinstance(x, c.CancelLease)]
    assert [(x.offset, x.force) for x in cancels] == [(0, True), (1, True)]
    (lease,) = worker.held
    bench.end(worker, lease, 0, state=TaskState.CANCELLED)
    bench.end(worker, lease, 1, state=TaskState.SUCCEEDED)
    assert bench.ended == {0: [TaskState.CANCELLED], 1: [TaskState.SUCCEEDED]}


def test_cancel_is_idempotent_and_harmless_after_the_end() -> None:
    """Cancelling what has ended, or what never was, changes nothing."""
    bench = Bench()
    bench.join()
    bench.submit(1)
    bench.run_all()
    bench.cancel(0)
    bench.cancel(55, 10)
    assert bench.ended == {0: [TaskState.SUCCEEDED]}


def test_queue_timeout_ends_what_no_worker_took() -> None:
    """queue_timeout_s counts until a worker takes the task."""
    bench = Bench()
    bench.submit(2, TaskClass("f", queue_timeout_s=5.0))
    bench.pass_time(4.9)
    assert bench.ended == {}
    bench.pass_time(0.2)
    assert bench.ended == {0: [TaskState.TIMED_OUT], 1: [TaskState.TIMED_OUT]}


def test_queue_timeout_counts_for_prefetched_work() -> None:
    """What a worker only has in stock is called back at the limit, and ends when it returns."""
    bench = Bench(lease_ttl_s=1e6)
    worker = bench.join(cpus=1)
    bench.submit(2, TaskClass("f", queue_timeout_s=5.0))
    (lease,) = worker.held
    bench.report(worker, started=[LeaseRange(lease, 0, 1)])
    bench.pass_time(5.1)
    assert bench.ended == {}
    bench.give_back(worker, lease, 1, 1)
    assert bench.ended == {1: [TaskState.TIMED_OUT]}
    bench.end(worker, lease, 0)
    assert bench.ended[0] == [TaskState.SUCCEEDED]


@pytest.mark.parametrize("force", [False, True])
def test_a_cancel_that_got_lost_is_told_again(force: bool) -> None:
    """Regression: a worker whose stream broke before it heard of a cancel was never told."""
    bench = Bench()
    worker = bench.join(cpus=1)
    bench.submit(2)
    bench.disconnect(worker)
    bench.cancel(0)
    if force:
        bench.cancel(0, force=True)
    bench.join(cpus=1)
    told = [x for x in bench.commands if isinstance(x, c.CancelLease)]
    assert [(x.offset, x.count, x.force) for x in told] == [(0, 1, force)]


def test_what_was_cancelled_by_force_stays_so() -> None:
    """Each step that is firmer than the one before is committed, and nothing twice."""
    bench = Bench()
    bench.join(cpus=1)
    bench.submit(1)
    kept = []
    for force in (False, False, True, True, False):
        bench.cancel(0, force=force)
        kept.append([x.force for x in bench.commands if isinstance(x, c.PersistCancel)])
        [told] = [x for x in bench.commands if isinstance(x, c.CancelLease)]
        assert told.force is (len(kept) > 2)
    assert kept == [[False], [], [True], [], []]


def test_a_grant_says_when_its_tasks_are_ended() -> None:
    """The limit from acceptance on goes with every attempt, counted from acceptance."""
    bench = Bench()
    worker = bench.join(cpus=1)
    bench.submit(1, TaskClass("f", total_timeout_s=60.0))
    accepted_at = bench.now
    [first] = grants(bench)
    bench.now += 7.0
    bench.die(worker)
    bench.join("w-2", cpus=1)
    [second] = grants(bench)
    assert first.due_s == second.due_s == accepted_at + 60.0
    bench.submit(1)
    assert [grant.due_s for grant in grants(bench)] in ([], [None])


@pytest.mark.parametrize("why", ["no journal", "known id"])
def test_the_code_of_refused_tasks_is_not_kept(why: str) -> None:
    """Else whoever is refused again and again, with other code each time, fills the head."""
    level = Durability.MEMORY if why == "no journal" else Durability.FULL
    bench = Bench(durability=level)
    if why == "known id":
        bench.submit(1)
    for number in range(3):
        code_hash = bytes([number]) * 32
        bench.feed(e.CodeReceived(code_hash, b"code"))
        task_class = TaskClass("f", code_hash)
        payloads = PayloadColumn.of([b"other"])
        bench.feed(
            e.TasksSubmitted(PREFIX, 0, task_class, payloads, True, durability=Durability.FULL)
        )
        assert c.ForgetCode(code_hash) in bench.commands
    assert not bench.scheduler.state.code


def submit_until(bench: Bench, time_left_s: float, first: int, count: int = 1) -> None:
    """Hand in tasks that are to have ended by then."""
    payloads = PayloadColumn.of([b"x"] * count)
    deadline = 5e9 + time_left_s
    bench.feed(
        e.TasksSubmitted(
            PREFIX, first, TaskClass("f"), payloads, True, False, deadline, time_left_s
        )
    )


def test_a_deadline_ends_a_task_wherever_it_is() -> None:
    """Queued or running; the worker is told to stop it, and when, and later reports are stale."""
    bench = Bench(lease_ttl_s=1e6)
    worker = bench.join(cpus=1)
    submit_until(bench, 5.0, 0, 4)
    [grant] = grants(bench)
    assert grant.due_s == bench.now + 5.0
    (lease,) = worker.held
    bench.report(worker, started=[LeaseRange(lease, 0, 1)])
    bench.pass_time(5.1)
    assert bench.ended == {number: [TaskState.TIMED_OUT] for number in range(4)}
    bench.end(worker, lease, 0)
    assert bench.ended[0] == [TaskState.TIMED_OUT]
    found = bench.scheduler.task(PREFIX, 0)
    assert found is not None
    assert found.payload is not None
    assert decode_failure(found.payload).phase == "deadline"


@pytest.mark.parametrize("time_left_s", [0.0, -3.0])
def test_a_task_whose_deadline_is_over_never_starts(time_left_s: float) -> None:
    """It is accepted, so that handing it in again is answered alike, and ends at once."""
    bench = Bench()
    worker = bench.join()
    submit_until(bench, time_left_s, 0)
    assert (bench.accepted, bench.ended, worker.held) == ({0}, {0: [TaskState.TIMED_OUT]}, {})


def test_known_tasks_can_be_refused() -> None:
    """rejects_known: the same content is no excuse; the task itself goes on."""
    bench = Bench()
    bench.submit(1)
    payloads = PayloadColumn.of([b"xxx"])
    bench.feed(e.TasksSubmitted(PREFIX, 0, TaskClass("f"), payloads, False, rejects_known=True))
    assert bench.rejected == {0: "DUPLICATE_TASK"}
    bench.join()
    bench.run_all()
    assert bench.ended == {0: [TaskState.SUCCEEDED]}


def test_total_timeout_ends_a_running_task_and_tells_the_worker() -> None:
    """total_timeout_s ends a task wherever it is; its later result is stale."""
    bench = Bench(lease_ttl_s=1e6)
    worker = bench.join(cpus=1)
    bench.submit(1, TaskClass("f", total_timeout_s=5.0))
    (lease,) = worker.held
    bench.pass_time(5.1)
    assert bench.ended == {0: [TaskState.TIMED_OUT]}
    bench.end(worker, lease, 0)
    assert bench.ended == {0: [TaskState.TIMED_OUT]}


def test_run_timeout_is_backed_by_the_head() -> None:
    """If the worker does not enforce timeout_s, the head does some seconds later."""
    bench = Bench(lease_ttl_s=1e6)
    worker = bench.join(cpus=1)
    bench.submit(1, TaskClass("f", timeout_s=2.0))
    (lease,) = worker.held
    bench.report(worker, started=[LeaseRange(lease, 0, 1)])
    assert bench.state_of(0) is TaskState.RUNNING
    bench.pass_time(6.9)
    assert bench.ended == {}
    bench.pass_time(0.2)
    assert bench.ended == {0: [TaskState.TIMED_OUT]}


def test_an_impossible_request_is_refused_with_the_nearest_miss() -> None:
    """What no worker can ever run fails at submit, naming who comes nearest and why."""
    bench = Bench()
    bench.join("small", cpus=2)
    bench.join("big", cpus=8)
    bench.submit(1, TaskClass("f", resources=ResourceSet.of({"cpu_cores": 16})))
    (reject,) = [x for x in bench.commands if isinstance(x, c.RejectTasks)]
    assert reject.error.code == "RESOURCE_NOT_AVAILABLE"
    assert "big comes nearest" in str(reject.error)
    assert "cpu_cores=8" in str(reject.error)


def test_an_impossible_request_may_wait() -> None:
    """wait_for_resources queues it until a worker that fits joins."""
    bench = Bench()
    bench.join("small", cpus=2)
    needs = ResourceSet.of({"cpu_cores": 16})
    bench.submit(1, TaskClass("f", resources=needs, wait_for_resources=True))
    assert bench.state_of(0) is TaskState.QUEUED
    bench.join("huge", cpus=16)
    bench.run_all()
    assert bench.ended == {0: [TaskState.SUCCEEDED]}


def test_labels_choose_the_worker() -> None:
    """A task with labels runs only where they are carried with these values."""
    bench = Bench()
    bench.join("a", cpus=4, labels={"zone": "x"})
    right = bench.join("b", cpus=1, labels={"zone": "y"})
    bench.submit(5, TaskClass("f", labels=(("zone", "y"),)))
    assert not bench.workers["a"].held
    assert right.held
    bench.run_all()
    assert len(bench.ended) == 5


def test_an_unknown_function_is_refused_with_near_names() -> None:
    """A misspelt name fails at submit and lists what looks like it."""
    bench = Bench()
    bench.join(functions=(FunctionInfo("matrix_multiply", ()),))
    bench.submit(1, TaskClass("matrix_multipy"))
    (reject,) = [x for x in bench.commands if isinstance(x, c.RejectTasks)]
    assert reject.error.code == "FUNCTION_NOT_FOUND"
    assert "'matrix_multiply'" in str(reject.error)


def test_arguments_that_do_not_bind_are_refused() -> None:
    """Arity and keyword names are checked against the announced signature."""
    bench = Bench()
    info = FunctionInfo("f", (Parameter("a", "either", True), Parameter("b", "either", False)))
    bench.join(functions=(info,))
    bench.submit(1, TaskClass("f", nargs=3))
    bench.submit(1, TaskClass("f", nargs=0, kwarg_names=("b",)))
    bench.submit(1, TaskClass("f", nargs=1, kwarg_names=("c",)))
    bench.submit(1, TaskClass("f", nargs=1, kwarg_names=("b",)))
    assert bench.rejected == {0: "PAYLOAD", 1: "PAYLOAD", 2: "PAYLOAD"}
    assert bench.accepted == {3}


def test_the_same_id_with_the_same_content_is_the_same_task() -> None:
    """A repeated submission is accepted and does not run twice; other content is refused."""
    bench = Bench()
    payloads = PayloadColumn.of([b"a", b"b", b"c"])
    bench.feed(e.TasksSubmitted(PREFIX, 0, TaskClass("f"), payloads, True))
    bench.feed(e.TasksSubmitted(PREFIX, 0, TaskClass("f"), payloads, True))
    assert [x.deduplicated for x in bench.commands if isinstance(x, c.AcceptTasks)] == [True]
    more = PayloadColumn.of([b"c", b"d"])
    bench.feed(e.TasksSubmitted(PREFIX, 2, TaskClass("f"), more, True))
    other = PayloadColumn.of([b"z"])
    bench.feed(e.TasksSubmitted(PREFIX, 1, TaskClass("f"), other, True))
    assert bench.rejected == {1: "DUPLICATE_TASK"}
    bench.join()
    bench.run_all()
    assert sorted(bench.ended) == [0, 1, 2, 3]
    assert all(len(states) == 1 for states in bench.ended.values())


def test_tasks_handed_in_again_bring_their_outcomes_again() -> None:
    """A session that lost its stream before the ack gets what has ended meanwhile, with the ack.

    Regression: it got the ack alone, and waited for ever.
    """
    bench = Bench()
    bench.join()
    payloads = PayloadColumn.of([b"a", b"b"])
    bench.feed(e.TasksSubmitted(PREFIX, 0, TaskClass("f"), payloads, True))
    bench.run_all()
    bench.feed(e.TasksSubmitted(PREFIX, 0, TaskClass("f"), payloads, True))
    assert isinstance(bench.commands[0], c.AcceptTasks)
    again = [x.outcome for x in bench.commands if isinstance(x, c.DeliverOutcome)]
    assert [outcome.first + n for outcome in again for n in range(len(outcome.payloads))] == [0, 1]


def test_a_chosen_id_stands_for_its_arguments_also_after_the_end() -> None:
    """Other arguments under the id of a task that has ended are an error, the same are the task."""
    bench = Bench()
    bench.join()
    for argument, is_known in ((b"a", False), (b"a", True), (b"b", False)):
        payloads = PayloadColumn.of([argument])
        bench.feed(e.TasksSubmitted(PREFIX, 0, TaskClass("f"), payloads, False))
        accepts = [x for x in bench.commands if isinstance(x, c.AcceptTasks)]
        assert [x.deduplicated for x in accepts] == ([is_known] if argument == b"a" else [])
        bench.run_all()
    assert bench.rejected == {0: "DUPLICATE_TASK"}


def test_what_the_head_filled_in_does_not_make_a_task_another_one() -> None:
    """The same call is the same task although its function's worker has joined meanwhile."""
    bench = Bench()
    payloads = PayloadColumn.of([b"a"])
    bench.feed(e.TasksSubmitted(PREFIX, 0, TaskClass("f"), payloads, False, True))
    declared = TaskClass(
        "f", resources=ResourceSet.of({"cpu_cores": 2}), executor=ExecutorKind.ASYNC
    )
    bench.feed(e.TasksSubmitted(PREFIX, 0, declared, payloads, False, True))
    assert [x.deduplicated for x in bench.commands if isinstance(x, c.AcceptTasks)] == [True]


def test_functions_are_what_the_present_workers_say() -> None:
    """Regression: a worker that joined and left redefined a function for the whole cluster."""
    bench = Bench()
    wide = FunctionInfo("f", (Parameter("args", "args", False),), signature="f(*args)")
    narrow = FunctionInfo("f", (), signature="f()")
    bench.join("new", functions=(wide,))
    bench.join("old", functions=(narrow,))
    assert bench.scheduler.state.functions["f"] is narrow
    bench.feed(e.WorkerDied("old", bench.workers["old"].session))
    assert bench.scheduler.state.functions["f"] is wide
    bench.feed(e.WorkerDied("new", bench.workers["new"].session))
    assert bench.scheduler.state.functions["f"] is wide


def test_limits_on_pending_work_are_backpressure() -> None:
    """Beyond max_pending_tasks, _bytes or _payload_bytes a submit is refused, and nothing else."""
    bench = Bench(max_pending_tasks=5, max_pending_bytes=100, max_payload_bytes=60)
    bench.submit(5, size=1)
    bench.submit(1, size=1)
    assert bench.rejected == {5: "RESOURCE_EXHAUSTED"}
    bench.join()
    bench.run_all()
    bench.submit(1, size=61)
    assert bench.rejected[6] == "PAYLOAD"
    bench.submit(2, size=55)
    assert 7 in bench.accepted, "what fits is accepted"
    assert bench.rejected[8] == "RESOURCE_EXHAUSTED"
    bench.run_all()
    bench.submit(1, size=55)
    assert 9 in bench.accepted


def test_results_expire_after_their_time_to_live() -> None:
    """After result_ttl_s a task is forgotten, and its memory with it."""
    bench = Bench(result_ttl_s=100.0)
    bench.join()
    bench.submit(3)
    bench.run_all()
    bench.pass_time(99.0)
    assert bench.scheduler.task(PREFIX, 0) is not None
    bench.pass_time(2.0)
    assert bench.scheduler.task(PREFIX, 0) is None
    assert bench.scheduler.state.results.bytes == 0
    assert bench.scheduler.state.queues == {}


def test_when_memory_is_short_delivered_results_go_first() -> None:
    """The budget drops what clients have before what they still want."""
    bench = Bench(result_memory_bytes=4)
    bench.join(cpus=1)
    for _ in range(4):
        bench.submit(1)
        bench.run_all()
    bench.feed(e.OutcomesDelivered(PREFIX, 2, 2))
    bench.submit(2)
    bench.run_all()
    assert [bench.scheduler.task(PREFIX, n) is None for n in range(6)] == [
        False, False, True, True, False, False,
    ]  # fmt: skip


def test_the_results_of_detached_tasks_do_not_go_first() -> None:
    """Somebody else may still want what their client has."""
    bench = Bench(result_memory_bytes=4)
    bench.join(cpus=1)
    for is_detached in (False, True, False, False):
        bench.submit(1, TaskClass("f", is_detached=is_detached))
        bench.run_all()
    bench.feed(e.OutcomesDelivered(PREFIX, 1, 2))
    bench.submit(1)
    bench.run_all()
    assert [bench.scheduler.task(PREFIX, n) is None for n in range(4)] == [
        False, False, True, False,
    ]  # fmt: skip


def test_a_client_that_comes_back_gets_what_ended_meanwhile() -> None:
    """Follow answers with outcomes, and names what this head does not know."""
    bench = Bench()
    bench.join()
    bench.submit(3)
    bench.run_all()
    bench.feed(e.FollowRequested(PREFIX, 0, 5))
    again = [x.outcome.first for x in bench.commands if isinstance(x, c.DeliverOutcome)]
    unknown = [(x.first, x.count) for x in bench.commands if isinstance(x, c.ReportUnknown)]
    assert again == [0, 1, 2]
    assert unknown == [(3, 2)]


def test_an_idle_newcomer_takes_back_prefetched_work() -> None:
    """A worker that joins an empty queue gets work that another holds unstarted."""
    bench = Bench()
    worker = bench.join("w-1", cpus=1)
    bench.submit(2)
    bench.join("w-2", cpus=1)
    recalls = [x for x in bench.commands if isinstance(x, c.RecallLease)]
    assert [(x.worker_id, x.offset, x.count) for x in recalls] == [("w-1", 1, 1)]
    bench.give_back(worker, recalls[0].lease, 1, 1)
    assert bench.workers["w-2"].held
    bench.run_all()
    assert [bench.scheduler.task(PREFIX, n).attempts for n in (0, 1)] == [1, 1]  # type: ignore[union-attr]


def recalls_of(bench: Bench) -> list[tuple[str, int, int]]:
    """What the last event asks back: worker, offset in its lease, number."""
    return [
        (x.worker_id, x.offset, x.count) for x in bench.commands if isinstance(x, c.RecallLease)
    ]


def hold_ten(bench: Bench) -> tuple[NaiveWorker, int]:
    """Have a worker of one core hold ten tasks that are known as quick, under one lease."""
    worker = bench.join("w-1", cpus=1)
    bench.submit(1)
    bench.run_all()
    bench.submit(10)
    (lease,) = worker.held
    assert len(worker.held[lease]) == 10
    return worker, lease


def test_what_is_taken_back_need_not_be_the_end_of_a_lease() -> None:
    """Bug: the end of a lease was asked for, also where that had ended and its middle waited."""
    bench = Bench()
    worker, lease = hold_ten(bench)
    for offset in (1, 4, 5, 9):
        bench.end(worker, lease, offset, 1)
    bench.join("w-2", cpus=1)
    assert recalls_of(bench) == [("w-1", 7, 2)]
    bench.give_back(worker, lease, 7, 2)
    assert sum(map(len, bench.workers["w-2"].held.values())) == 2


def test_an_idle_worker_is_thought_of_again() -> None:
    """Bug: one that found nothing at once sat idle as long as the other ran its slow tasks."""
    bench = Bench(lease_ttl_s=1e6)
    worker, lease = hold_ten(bench)
    bench.join("w-2", cpus=1)
    assert recalls_of(bench), "it asks at once"
    bench.commands = []
    bench.pass_time(RECALL_AGAIN_S - 0.05)
    assert not recalls_of(bench)
    bench.pass_time(0.1)
    asked = recalls_of(bench)
    assert asked, "what has been asked for has not come"
    _, offset, count = asked[0]
    bench.give_back(worker, lease, offset, count)
    bench.run_all()
    bench.commands = []
    bench.pass_time(60.0)
    assert not recalls_of(bench)
    assert not any(kind == "recall" for _, _, kind, _ in bench.scheduler.state.timers)


def test_a_draining_worker_gets_nothing_and_leaves() -> None:
    """Drain: no new work, unstarted work comes back, the rest ends, the worker goes."""
    bench = Bench()
    worker = bench.join("w-1", cpus=1)
    bench.submit(3)
    bench.feed(e.DrainRequested("w-1"))
    assert any(isinstance(x, c.DrainWorker) for x in bench.commands)
    worker.is_draining = True
    (lease,) = worker.held
    bench.give_back(worker, lease, 1, 1)
    assert not grants(bench)
    bench.end(worker, lease, 0)
    bench.report(worker, has_drained=True)
    assert bench.scheduler.state.workers == {}
    bench.join("w-2", cpus=1)
    bench.run_all()
    assert sorted(bench.ended) == [0, 1, 2]


def test_draining_a_worker_that_is_not_there_is_the_operators_mistake() -> None:
    """The error lists the workers that there are."""
    bench = Bench()
    bench.join("w-1")
    with pytest.raises(WorkerNotFound, match="w-1"):
        bench.feed(e.DrainRequested("w-7"))


def test_a_session_out_of_step_is_closed() -> None:
    """When both sides are quiet and the lists of held tasks differ, the session restarts."""
    bench = Bench()
    worker = bench.join("w-1", cpus=1)
    bench.submit(1)
    bench.feed(e.HeartbeatReceived("w-1", worker.session, (), 0))
    assert any(isinstance(x, c.CloseSession) for x in bench.commands)


def test_a_restarted_worker_fences_its_former_self() -> None:
    """A higher incarnation loses the old one's tasks at once; a lower one is refused."""
    bench = Bench()
    bench.join("w-1", cpus=1)
    bench.submit(1)
    bench.join("w-1", cpus=1, incarnation=2)
    bench.run_all()
    assert bench.ended == {0: [TaskState.SUCCEEDED]}
    from rustray.task.views import WorkerInfo

    old = WorkerInfo("w-1", 1, "w-1", "", {"cpu_cores": 1})
    assert isinstance(bench.feed(e.WorkerJoined(old, 99))[0], c.RefuseWorker)


def test_explain_always_has_an_answer() -> None:
    """Queued, leased, running, ended: each has a sentence, and workers their reasons."""
    bench = Bench()
    bench.submit(2)
    first = bench.scheduler.explain(PREFIX, 1, bench.now)
    assert first is not None
    assert "no worker is connected" in first.summary
    assert first.position == 1
    bench.join("w-1", cpus=1, functions=())
    second = bench.scheduler.explain(PREFIX, 0, bench.now)
    assert second is not None
    assert "does not offer" in second.workers[0].reason
    worker = bench.join("w-2", cpus=1)
    third = bench.scheduler.explain(PREFIX, 0, bench.now)
    assert third is not None
    assert "w-2" in third.summary
    bench.end(worker, min(worker.held), 0)
    last = bench.scheduler.explain(PREFIX, 0, bench.now)
    assert last is not None
    assert "SUCCEEDED" in last.summary


def test_fractional_cores_add_up_exactly() -> None:
    """Ten tasks of 0.1 core and no more fill one core."""
    bench = Bench(prefetch_s=0.0)
    worker = bench.join(cpus=1)
    bench.submit(50, TaskClass("f", resources=ResourceSet.of({"cpu_cores": 0.1})))
    bench.end(worker, min(worker.held), 0, run_us=1_000_000)
    while sum(map(len, worker.held.values())) > 10:
        bench.end(worker, min(worker.held), min(worker.held[min(worker.held)]), run_us=1_000_000)
    assert worker.held
    assert bench.scheduler.state.workers["w-1"].load.load == 1.0


def test_the_same_events_give_the_same_commands() -> None:
    """The core is deterministic: replaying a history yields equal commands."""

    def play() -> list[str]:
        bench = Bench()
        log: list[str] = []
        for index in range(4):
            bench.join(f"w-{index}", cpus=2)
            log += map(repr, bench.commands)
        for index in range(20):
            bench.submit(index + 1, TaskClass("f", priority=index % 3))
            log += map(repr, bench.commands)
        bench.run_all()
        return log

    assert play() == play()


def test_the_events_of_a_task_tell_one_number_of_its_attempt() -> None:
    """Regression: its end told how often it was started, and its run the number of the lease."""
    bench = Bench()
    worker = bench.join(cpus=1)
    bench.submit(2)
    [lease] = worker.held
    bench.give_back(worker, lease, 0, 2)
    [lease] = worker.held
    told: list[c.PublishEvents] = []
    bench.report(worker, started=[LeaseRange(lease, 0, 1)])
    told += [one for one in bench.commands if isinstance(one, c.PublishEvents)]
    bench.end(worker, lease, 0)
    told += [one for one in bench.commands if isinstance(one, c.PublishEvents)]
    assert [(one.state.name, one.attempt) for one in told] == [("RUNNING", 2), ("SUCCEEDED", 2)]
    found = bench.scheduler.task(PREFIX, 0)
    assert found is not None
    assert found.attempts == 1


def test_timers_of_what_is_gone_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: a far deadline kept its ended and expired task in memory until then."""
    monkeypatch.setattr(deadlines, "FEW_TIMERS", 16)
    bench = Bench(result_ttl_s=5.0, lease_ttl_s=1e9)
    bench.scheduler.state.compact_timers_at = 16
    bench.join()
    for number in range(300):
        submit_until(bench, 1e6, number)
        bench.run_all()
        bench.pass_time(1.0)
    assert len(bench.scheduler.state.timers) < 60
    submit_until(bench, 2.0, 300)
    for worker in bench.workers.values():
        bench.disconnect(worker)
    bench.pass_time(4.0)
    assert bench.ended[300] == [TaskState.TIMED_OUT]
