"""Chains that go to one worker together, as the scheduler sees them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.scheduling import PREFIX, Bench, NaiveWorker
from rustray.common.ids import SessionPrefix, task_id
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.scheduler import following
from rustray.scheduler.following import LINKS
from rustray.task.columns import PayloadColumn
from rustray.task.inputs import InputId, join_parts, pack_inputs
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState

OK = TaskState.SUCCEEDED


def submit_chain(bench: Bench, links: int, task_class: TaskClass | None = None) -> list[int]:
    """Hand in tasks of which each takes the one before; returns their numbers."""
    task_class = task_class or TaskClass("f")
    numbers = list(bench.submit(1, task_class))
    while len(numbers) < links:
        numbers += bench.submit_taking([[numbers[-1]]], task_class)
    return numbers


def grants(bench: Bench) -> list[c.GrantLease]:
    """Return what the last event has leased."""
    return [one for one in bench.commands if isinstance(one, c.GrantLease)]


def end_first(bench: Bench, worker: NaiveWorker, state: TaskState = OK) -> None:
    """End the first task of all that a worker has, which is what it would run."""
    lease = min(worker.held)
    bench.end(worker, lease, min(worker.held[lease]), 1, state)


def test_a_chain_is_leased_as_a_whole() -> None:
    """From the first task on that takes a value; each says which one it follows."""
    bench = Bench()
    worker = bench.join(cpus=1)
    numbers = submit_chain(bench, 10)
    assert len(worker.held) == 1
    end_first(bench, worker)
    given = grants(bench)
    assert [one.first for one in given] == numbers[1:]
    assert [one.follows for one in given] == [(0, 0), *((one.lease, 0) for one in given[:-1])]
    assert (len(given[0].inputs), given[1].inputs) == (1, ())
    assert worker.worker_id in bench.scheduler.state.workers
    assert bench.scheduler.state.workers[worker.worker_id].load.tasks == 1
    while worker.held:
        end_first(bench, worker)
    assert all(bench.ended[number] == [OK] for number in numbers)


def test_what_follows_says_what_it_waits_for() -> None:
    """Its worker has it, and does not run it."""
    bench = Bench()
    worker = bench.join(cpus=1)
    numbers = submit_chain(bench, 4)
    end_first(bench, worker)
    before = task_id(SessionPrefix(PREFIX), numbers[2])
    found = bench.scheduler.explain(PREFIX, numbers[3], bench.now)
    assert found is not None
    assert f"worker w-1 has it, and begins it as soon as {before} ends" in found.summary
    first = bench.scheduler.explain(PREFIX, numbers[1], bench.now)
    assert first is not None
    assert "as one of the next to run" in first.summary


def test_more_of_a_long_chain_follows_when_half_is_done() -> None:
    """So that its worker never waits for the head."""
    bench = Bench()
    worker = bench.join(cpus=1)
    numbers = submit_chain(bench, 4 * LINKS)
    least = LINKS
    end_first(bench, worker)
    while bench.grant_order[-1] != numbers[-1]:
        end_first(bench, worker)
        least = min(least, len(worker.held))
    assert least >= LINKS // 4


def test_nothing_follows_while_other_work_waits_for_a_worker() -> None:
    """Then the way to the head is hidden by it, and the order of age holds."""
    bench = Bench()
    worker = bench.join(cpus=1)
    (number, *_) = submit_chain(bench, 5)
    bench.submit(10_000, TaskClass("f", timeout_s=60.0))  # more than may be prefetched
    bench.end(worker, min(worker.held), 0, 1, OK)
    assert bench.ended[number] == [OK]
    assert all(one.follows == (0, 0) for one in grants(bench))


@pytest.mark.parametrize(
    "task_class",
    [
        TaskClass("f", max_retries=0),
        TaskClass("f", exclusive=True),
        TaskClass("f", stream_window=4),
    ],
)
def test_what_must_not_begin_unheard_of_does_not_follow(task_class: TaskClass) -> None:
    """What may run once at most, or not beside itself, or has a consumer."""
    bench = Bench()
    worker = bench.join(cpus=4)
    submit_chain(bench, 4, task_class)
    end_first(bench, worker)
    assert [one.follows for one in grants(bench)] == [(0, 0)]


def test_where_several_take_a_value_none_of_them_follows() -> None:
    """Other workers may run them at once. Nor does what takes more than that value."""
    bench = Bench()
    worker = bench.join(cpus=1)
    (first,) = bench.submit(1)
    (second,) = bench.submit_taking([[first]])
    fan = list(bench.submit_taking([[second], [second]]))
    (other,) = bench.submit(1, TaskClass("f", timeout_s=60.0))
    bench.submit_taking([[second, other]])
    while worker.held:
        end_first(bench, worker)
        assert all(one.follows == (0, 0) for one in grants(bench))
    assert all(bench.ended[number] == [OK] for number in fan)


def test_what_follows_a_failure_fails_with_its_cause() -> None:
    """Though its worker had it: it is told to stop, and what it says of it is stale."""
    bench = Bench()
    worker = bench.join(cpus=1)
    numbers = submit_chain(bench, 6)
    end_first(bench, worker)
    end_first(bench, worker, TaskState.FAILED)
    assert all(bench.ended[number] == [TaskState.FAILED] for number in numbers[1:])
    stopped = {one.lease for one in bench.commands if isinstance(one, c.CancelLease)}
    assert set(worker.held) <= stopped
    while worker.held:
        end_first(bench, worker)
    assert all(bench.ended[number] == [TaskState.FAILED] for number in numbers[1:])


def test_a_lost_worker_costs_a_chain_nothing_but_its_runs() -> None:
    """It goes on with another one from where it was."""
    bench = Bench()
    first = bench.join("w-1", cpus=1)
    numbers = submit_chain(bench, 8)
    for _ in range(3):
        end_first(bench, first)
    bench.die(first)
    second = bench.join("w-2", cpus=1)
    while second.held:
        end_first(bench, second)
    assert all(bench.ended[number] == [OK] for number in numbers)
    assert all(bench.attempts[number] == [1] for number in numbers[:3])
    assert bench.scheduler.state.counters["tasks_retried"] == 1


def test_one_of_several_values_cannot_be_followed() -> None:
    """An input that is a part of a result is taken out of it by the head."""
    bench = Bench()
    worker = bench.join(cpus=1)
    pair = TaskClass("f", has_inputs=True, num_returns=2)
    (first,) = bench.submit(1, replace(pair, has_inputs=False))
    for number in range(first + 1, first + 4):
        taken = PayloadColumn.of([pack_inputs([InputId(PREFIX, number - 1, 0)])])
        call = PayloadColumn.of([b"xxx"])
        bench.feed(e.TasksSubmitted(PREFIX, number, pair, call, True, inputs=taken))
    bench.end(worker, min(worker.held), 0, payload=join_parts([b"one", b"two"]))
    assert [one.follows for one in grants(bench)] == [(0, 0)]


def test_a_worker_that_idles_takes_links_from_one_that_has_too_many() -> None:
    """Bug: what had followed once was never given to another worker, to the end of its chain."""
    bench = Bench()
    worker = bench.join("w-1", cpus=2)
    for _ in range(4):
        submit_chain(bench, 30)
    state = bench.scheduler.state
    leases = state.workers["w-1"].leases
    while plain := [lease for lease in leases.values() if not lease.is_behind]:
        number = plain[0].number
        bench.end(worker, number, min(worker.held[number]), 1, OK, run_us=1_000)
    assert state.workers["w-1"].load.load > 1.0
    bench.join("w-2", cpus=2)
    recalled = [one for one in bench.commands if isinstance(one, c.RecallLease)]
    assert recalled
    assert not any(leases[one.lease].is_idle for one in recalled)


def test_a_worker_has_only_so_many_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """It lists each of them when it comes back."""
    monkeypatch.setattr(following, "MOST", 100)
    bench = Bench()
    worker = bench.join(cpus=8)
    for _ in range(4):
        submit_chain(bench, LINKS)
    known, most = bench.scheduler.state.workers["w-1"], 0
    while worker.held:
        end_first(bench, worker)
        most = max(most, known.followers)
    assert most == 100


def test_a_worker_that_was_given_up_does_not_bring_back_what_it_made_of_a_lost_try() -> None:
    """Bug: the second link's result was taken, though another worker has the first one by now."""
    bench = Bench(lease_ttl_s=10.0)
    first = bench.join("w-1", cpus=1)
    numbers = submit_chain(bench, 3)
    end_first(bench, first)
    second = bench.join("w-2", cpus=1)
    bench.submit(10_000, TaskClass("f", timeout_s=60.0))  # so that nothing follows there
    for _ in range(4):
        bench.pass_time(4.0)
        bench.heartbeat(second)
    end_first(bench, second)
    assert bench.state_of(numbers[2]) is TaskState.QUEUED
    assert "w-1" not in bench.scheduler.state.workers
    assert bench.state_of(numbers[1]) is TaskState.LEASED
    bench.join("w-1", cpus=1)
    stopped = {one.lease for one in bench.commands if isinstance(one, c.CancelLease)}
    assert stopped >= {2, 3}
    assert bench.state_of(numbers[2]) is TaskState.QUEUED
