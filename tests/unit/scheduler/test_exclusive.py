"""Exclusive tasks at the head: given away only when no earlier attempt can run any more."""

from __future__ import annotations

import pytest

from helpers.scheduling import PREFIX, Bench
from rustray.scheduler import commands as c
from rustray.scheduler.events import HeartbeatReceived, WorkerDied
from rustray.task.columns import PayloadColumn
from rustray.task.failures import encode_failure
from rustray.task.frames import LeaseOutcome
from rustray.task.result import FailureInfo
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState

from .test_recovery import GRACE_S, Head

ALONE = TaskClass("f", exclusive=True)
TTL_S = 10.0


def grants(bench: Bench) -> list[int]:
    """Return the tasks that the last event gave away."""
    return [one.first for one in bench.commands if isinstance(one, c.GrantLease)]


def test_a_dead_worker_keeps_it_until_its_lease_ends() -> None:
    """Its agent is gone for certain; what that has started may live for a moment longer."""
    bench = Bench()
    first = bench.join("w-1", cpus=1)
    bench.submit(1, ALONE)
    bench.pass_time(4.0)
    bench.heartbeat(first)
    other = bench.join("w-2", cpus=1)
    bench.pass_time(3.0)
    bench.heartbeat(other)
    bench.die(first)
    assert bench.state_of(0) is TaskState.QUEUED
    found = bench.scheduler.explain(PREFIX, 0, bench.now)
    assert found is not None
    assert "an earlier attempt may still run" in found.summary
    assert "7.0 s" in found.summary
    bench.pass_time(TTL_S - 3.0 - 0.01)
    assert bench.state_of(0) is TaskState.QUEUED
    bench.pass_time(0.02)
    assert bench.state_of(0) is TaskState.LEASED
    bench.run_all()
    assert bench.ended == {0: [TaskState.SUCCEEDED]}


def test_other_tasks_of_a_dead_worker_need_not_wait() -> None:
    """They may overlap, and are given away at once."""
    bench = Bench()
    first = bench.join("w-1", cpus=1)
    bench.submit(1)
    bench.join("w-2", cpus=1)
    bench.die(first)
    assert grants(bench) == [0]


def test_a_new_start_of_the_worker_waits_too() -> None:
    """The processes of the one before may still be there."""
    bench = Bench()
    bench.join("w-1", cpus=1)
    bench.submit(1, ALONE)
    bench.pass_time(1.0)
    bench.join("w-1", cpus=1, incarnation=2)
    assert bench.state_of(0) is TaskState.QUEUED
    bench.pass_time(TTL_S - 1.0)
    assert bench.state_of(0) is TaskState.LEASED


def test_a_silent_worker_loses_it_when_its_lease_ends() -> None:
    """By then it has stopped it itself; nobody waits longer than for other tasks."""
    bench = Bench()
    bench.join("w-1", cpus=1)
    bench.submit(1, ALONE)
    other = bench.join("w-2", cpus=1)
    for _ in range(4):
        bench.pass_time(2.5)
        bench.heartbeat(other)
    assert bench.state_of(0) is TaskState.LEASED
    assert other.held


def test_cancelled_while_it_waits_it_never_starts() -> None:
    """The pause is no way around a cancel, and leaves nothing behind."""
    bench = Bench()
    first = bench.join("w-1", cpus=1)
    bench.submit(1, ALONE)
    bench.die(first)
    bench.cancel(0)
    bench.join("w-2", cpus=1)
    bench.pass_time(60.0)
    assert bench.ended == {0: [TaskState.CANCELLED]}


def test_being_cut_off_is_no_crash_of_the_task() -> None:
    """It costs a re-run, and does not make it a poisonous one."""
    bench = Bench()
    worker = bench.join("w-1", cpus=1)
    bench.submit(1, TaskClass("f", exclusive=True, max_retries=5, crash_limit=2))
    info = FailureInfo("WORKER_LOST", "stopped", phase="contact")
    column = PayloadColumn.of([encode_failure(info)])
    for _ in range(6):
        [lease] = worker.held
        del worker.held[lease]
        bench.report(worker, outcomes=[LeaseOutcome(lease, 0, TaskState.LEASED, column, 1)])
    assert bench.ended == {0: [TaskState.FAILED]}
    assert len(bench.attempts[0]) == 6


@pytest.mark.parametrize("is_known", [True, False])
def test_after_a_restart_it_waits_for_every_lease_of_before(is_known: bool) -> None:
    """Also of a worker that was lost just before, of which the journal knows nothing any more."""
    head = Head()
    head.join("w-1", 1)
    head.submit(0, 1, exclusive=True)
    head.greet("w-1", 1)
    if not is_known:
        head.feed(WorkerDied("w-1", 1))
    head.restart()
    head.join("w-2", 2, cpus=4)
    head.greet("w-2", 2)
    wait_s = GRACE_S if is_known else TTL_S
    until = head.now + wait_s
    while head.now + 4.0 < until:
        head.pass_time(3.9)
        head.feed(HeartbeatReceived("w-2", 2, None, 0))
    head.pass_time(until - head.now - 0.01)
    assert head.grants == []
    head.pass_time(0.02)
    assert [grant.first for grant in head.grants] == [0]


def test_after_a_restart_its_worker_takes_it_up_again() -> None:
    """What still runs goes on under its old lease, and nobody else gets it."""
    head = Head()
    head.join("w-1", 1)
    head.submit(0, 1, exclusive=True)
    head.greet("w-1", 1)
    [grant] = head.grants
    head.restart()
    head.join("w-1", 2)
    head.greet("w-1", 2, grant)
    head.join("w-2", 3)
    head.greet("w-2", 3)
    assert head.grants == []
    head.end("w-1", 2, grant, TaskState.SUCCEEDED)
    assert head.state_of(0) is TaskState.SUCCEEDED


def test_one_that_comes_back_unstarted_is_not_given_away_again_at_once() -> None:
    """A worker that cannot hear the head gives back whatever comes: that must not go in circles."""
    bench = Bench()
    worker = bench.join("w-1", cpus=1)
    bench.submit(1, ALONE)
    bench.give_back(worker, next(iter(worker.held)), 0, 1)
    assert grants(bench) == []
    bench.pass_time(0.4)
    assert grants(bench) == []
    bench.pass_time(0.2)
    assert grants(bench) == [0]
    bench.run_all()
    assert bench.ended == {0: [TaskState.SUCCEEDED]}
