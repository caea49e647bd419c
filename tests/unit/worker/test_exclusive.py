"""Exclusive tasks in the worker: stopped in time, whatever the network and the clock do."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from helpers.worker_bench import WorkerBench, a_class
from rustray.task.failures import decode_failure
from rustray.task.spec import ExecutorKind, TaskClass
from rustray.task.state import TaskState
from rustray.worker import events as e

TTL_S = 10.0
STOP_S = 7.0
"""A lease of 10 s, less 3 s."""
ALONE = replace(a_class(), exclusive=True)


def bench(cpu: float = 2, lease_ttl_s: float = TTL_S) -> WorkerBench:
    """Return a started worker whose registration was asked for just now."""
    b = WorkerBench({"cpu_cores": cpu})
    b.feed(e.PoolStarted())
    b.make_ready()
    b.open(asked_at=b.now, lease_ttl_s=lease_ttl_s)
    return b


def answer(b: WorkerBench, asked_at: float) -> None:
    """Let the head answer a heartbeat that was sent at this time."""
    assert b.session is not None
    b.feed(e.HeartbeatAnswered(b.session, asked_at))


def signals(b: WorkerBench) -> list[int | None]:
    """Return what each executor that has a task was sent, oldest executor first."""
    return [x.signal for x in b.executors.values() if x.tasks]


@pytest.mark.parametrize(("ttl_s", "after_s"), [(10.0, 7.0), (15.0, 12.0), (4.0, 2.0), (6.0, 3.0)])
def test_it_is_stopped_before_its_lease_ends(ttl_s: float, after_s: float) -> None:
    """Three seconds before, or at half of a lease that is shorter than six."""
    b = bench(cpu=1, lease_ttl_s=ttl_s)
    b.grant(1, ALONE)
    b.advance(after_s - 0.001)
    assert signals(b) == [None]
    b.advance(0.001)
    assert signals(b) == [9]


def test_what_became_of_it_is_told_once_it_has_really_ended() -> None:
    """Not before the process is gone; and the task is not blamed for it."""
    b = bench(cpu=1)
    lease = b.grant(1, ALONE)
    b.advance(STOP_S)
    assert b.collect()[-1].outcomes == []
    b.die(1)
    [frame] = b.collect()
    [outcome] = frame.outcomes
    assert (outcome.lease, outcome.state) == (lease, TaskState.LEASED)
    info = decode_failure(outcome.payloads[0])
    assert (info.code, info.phase) == ("WORKER_LOST", "contact")
    assert "lease_ttl_s=10" in info.message
    b.assert_all_told()


def test_answers_of_the_head_keep_it_running() -> None:
    """Each counts from when it was asked for; one that comes late, or twice, gains nothing."""
    b = bench(cpu=1)
    b.grant(1, ALONE)
    start = b.now
    for _ in range(20):
        b.advance(2.0)
        answer(b, b.now - 1.0)
    answer(b, start)
    assert signals(b) == [None]
    b.advance(STOP_S - 1.0 - 0.001)
    assert signals(b) == [None]
    b.advance(0.001)
    assert signals(b) == [9]


def test_an_answer_of_another_session_does_not_count() -> None:
    """It may be of a head that has given the task away since."""
    b = bench(cpu=1)
    b.grant(1, ALONE)
    assert b.session is not None
    b.advance(5.0)
    b.feed(e.HeartbeatAnswered(b.session + 1, b.now))
    b.advance(2.0)
    assert signals(b) == [9]


@pytest.mark.parametrize("is_open", [True, False])
def test_what_waits_is_given_back_and_never_starts(is_open: bool) -> None:
    """Also where the stream stands, and only heartbeats are not answered."""
    b = bench(cpu=1)
    lease = b.grant(3, ALONE)
    b.collect()
    if not is_open:
        b.close()
    b.advance(STOP_S)
    b.die(1)
    b.finish_all()
    if not is_open:
        b.open(asked_at=b.now, lease_ttl_s=TTL_S)
        assert b.held is not None
    b.collect()
    assert b.told == {(lease, 0): TaskState.LEASED, (lease, 1): None, (lease, 2): None}
    assert b.runs[(lease, 1)] == b.runs[(lease, 2)] == 0


def test_a_grant_that_comes_too_late_does_not_start() -> None:
    """The head may have waited for an answer in vain, and given it to another worker."""
    b = bench(cpu=1)
    b.advance(STOP_S)
    lease = b.grant(2, ALONE)
    b.collect()
    assert b.told == {(lease, 0): None, (lease, 1): None}
    answer(b, b.now)
    again = b.grant(1, ALONE)
    b.finish_all()
    b.collect()
    assert b.told[(again, 0)] is TaskState.SUCCEEDED


def test_a_worker_that_stood_still_stops_it_before_it_listens() -> None:
    """The first thing that it learns after a pause may be that it is registered again."""
    b = bench(cpu=1)
    b.grant(1, ALONE)
    b.close()
    b.now += 60.0
    b.open(asked_at=b.now - 0.1, lease_ttl_s=TTL_S)
    assert signals(b) == [9]
    b = bench(cpu=1)
    b.grant(1, ALONE)
    b.now += 60.0
    answer(b, b.now - 0.1)
    assert signals(b) == [9]


def test_a_registration_in_time_keeps_it() -> None:
    """The head knows the worker still: its leases run on."""
    b = bench(cpu=1)
    b.grant(1, ALONE)
    b.close()
    b.advance(6.0)
    b.open(asked_at=b.now, lease_ttl_s=TTL_S)
    b.advance(STOP_S - 0.001)
    assert signals(b) == [None]
    b.finish(1)
    b.advance(60.0)
    assert [x.signal for x in b.executors.values()] == [None]


def test_other_tasks_go_on() -> None:
    """Those that are not exclusive, and those that were asked for directly."""
    b = bench(cpu=3)
    b.grant(1)
    b.grant(1, ALONE)
    b.feed(e.DirectSubmitted(e.DIRECT_LEASES, ALONE, b"0123456789", 1, b"call"))
    b.advance(60.0)
    assert sorted(map(str, signals(b))) == ["9", "None", "None"]
    b.finish_all()
    assert [o.state for o in b.direct] == [TaskState.SUCCEEDED]


def test_the_zygote_knows_until_when() -> None:
    """It gets a deadline with the task, a new one with each answer, and none after the end."""
    b = bench(cpu=1)
    b.grant(1, ALONE)
    assert b.executors[1].guard == b.now + STOP_S + 0.5
    b.advance(2.0)
    answer(b, b.now)
    assert b.executors[1].guard == b.now + STOP_S + 0.5
    b.finish(1)
    assert b.executors[1].guard == math.inf
    b.grant(1)
    assert b.executors[1].guard == math.inf


def test_it_has_an_executor_for_itself() -> None:
    """Nothing waits behind it there, however short such tasks are."""
    b = bench(cpu=1)
    for _ in range(3):
        b.grant(1, ALONE)
        b.finish_all(5)
    b.grant(50, ALONE)
    assert {len(x.tasks) for x in b.executors.values()} == {1}


def test_at_the_end_of_a_drain_it_is_told_after_its_end() -> None:
    """What is killed is given to others only when it has really ended."""
    b = bench(cpu=1)
    lease = b.grant(1, ALONE)
    b.feed(e.DrainRequested(2.0))
    b.advance(2.0)
    b.collect()
    assert (signals(b), b.told) == ([9], {})
    b.die(1)
    b.collect()
    assert b.told == {(lease, 0): TaskState.LEASED}


def test_a_cancelled_one_that_is_cut_off_is_cancelled() -> None:
    """Its owner's wish comes first."""
    b = bench(cpu=1)
    lease = b.grant(1, ALONE)
    b.advance(6.9)
    b.cancel(lease)
    b.advance(0.1)
    b.die(1)
    b.collect()
    assert b.told == {(lease, 0): TaskState.CANCELLED}


@pytest.mark.parametrize("kind", [ExecutorKind.THREAD, ExecutorKind.ASYNC])
def test_only_processes_can_be_exclusive(kind: ExecutorKind) -> None:
    """A class that says otherwise is refused, as the head does."""
    with pytest.raises(ValueError, match="exclusive"):
        TaskClass("f", executor=kind, exclusive=True).validate()
    b = bench(cpu=1)
    bad = replace(a_class(kind=kind), exclusive=True)
    b.grant(1, bad)
    assert len(b.closed) == 1
