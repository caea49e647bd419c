"""Tasks that follow others at their worker, and begin without the head."""

from __future__ import annotations

from dataclasses import replace

from helpers.worker_bench import WorkerBench, a_class
from rustray.task.state import TaskState
from rustray.worker import events as e

LINK = replace(a_class(), has_inputs=True)


def chain(b: WorkerBench, links: int) -> list[int]:
    """Lease a chain; returns the numbers of its leases."""
    leases = [b.grant(1, LINK)]
    while len(leases) < links:
        leases.append(b.grant(1, LINK, follows=(leases[-1], 0)))
    return leases


def bench() -> WorkerBench:
    """Return a started worker with two executors."""
    return WorkerBench({"cpu_cores": 2}).start()


def held(b: WorkerBench) -> list[tuple[int, int]]:
    """Return what the executors hold."""
    return [key for executor in b.executors.values() for key in executor.tasks]


def finish_running(b: WorkerBench, end: TaskState = TaskState.SUCCEEDED) -> None:
    """Let the only task that runs end."""
    (executor_id,) = [x.executor_id for x in b.executors.values() if x.tasks]
    b.finish(executor_id, state=end)


def test_each_begins_with_what_the_one_before_has_made() -> None:
    """One at a time, in order, though there are two executors."""
    b = bench()
    leases = chain(b, 5)
    for lease in leases:
        assert held(b) == [(lease, 0)]
        finish_running(b)
    b.deliver_all()
    assert [b.told[(lease, 0)] for lease in leases] == [TaskState.SUCCEEDED] * 5


def test_the_head_hears_at_once_of_the_end_of_a_chain_alone() -> None:
    """And of what has ended badly: of a link before the last, the next one has begun here."""
    b = bench()
    leases = chain(b, 3)
    waits = []
    for _ in leases:
        finish_running(b)
        waits.append(b.manager.may_wait)
        assert b.manager.has_frame
    assert waits == [True, True, False]
    chain(b, 3)
    finish_running(b, TaskState.FAILED)
    assert not b.manager.may_wait
    b.feed(e.TimePassed())
    assert not b.manager.may_wait


def test_what_follows_a_failure_is_given_back() -> None:
    """Also what follows that: the head knows what becomes of it."""
    for end in (TaskState.FAILED, TaskState.CANCELLED):
        b = bench()
        leases = chain(b, 4)
        finish_running(b)
        finish_running(b, end)
        b.deliver_all()
        assert [b.told[(lease, 0)] for lease in leases] == [TaskState.SUCCEEDED, end, None, None]


def test_what_follows_a_crash_is_given_back() -> None:
    """The head decides whether the task is tried again."""
    b = bench()
    leases = chain(b, 3)
    b.die(1)
    b.deliver_all()
    assert [b.told[(lease, 0)] for lease in leases] == [TaskState.LEASED, None, None]


def test_what_follows_nothing_that_is_here_is_given_back() -> None:
    """An unknown lease, one that has ended, one of which a part has ended, and itself."""
    b = bench()
    ended, many = b.grant(1, LINK), b.grant(2, LINK)
    b.finish(1)
    b.finish(2)
    for follows in ((99, 0), (ended, 0), (many, 0), (many, 7), (b.next_lease, 0)):
        lease = b.grant(1, LINK, follows=follows)
        b.collect()
        assert b.told[(lease, 0)] is None


def test_a_cancel_a_recall_and_a_drain_reach_what_waits() -> None:
    """What follows it in turn goes back."""
    b = bench()
    first, second, third = chain(b, 3)
    b.cancel(second)
    b.collect()
    assert (b.told[(second, 0)], b.told[(third, 0)]) == (TaskState.CANCELLED, None)
    b = bench()
    first, second, third = chain(b, 3)
    b.recall(second, 0, 1)
    b.collect()
    assert (b.told[(second, 0)], b.told[(third, 0)]) == (None, None)
    b = bench()
    first, second, third = chain(b, 3)
    b.feed(e.DrainRequested())
    b.collect()
    assert (b.told[(second, 0)], b.told[(third, 0)]) == (None, None)
    b.finish(1)
    b.collect()
    assert b.told[(first, 0)] is TaskState.SUCCEEDED
    assert b.has_drained


def test_what_waits_goes_on_without_the_head_and_goes_back_when_one_is_there_again() -> None:
    """Another head would take what it is told of for running."""
    b = bench()
    leases = chain(b, 4)
    b.collect()
    b.close()
    finish_running(b)
    b.open()
    b.collect()
    assert b.held is not None
    assert {part.lease for part in b.held} == set(leases[:2])
    finish_running(b)
    b.deliver_all()
    done = TaskState.SUCCEEDED
    assert [b.told[(lease, 0)] for lease in leases] == [done, done, None, None]


def test_a_head_that_has_what_cannot_follow_follow_is_wrong() -> None:
    """Several tasks at once, or of a class that takes nothing: the session ends."""
    b = bench()
    first = b.grant(1, LINK)
    b.grant(2, LINK, follows=(first, 0))
    assert len(b.closed) == 1
    b = bench()
    first = b.grant(1)
    b.grant(1, follows=(first, 0))
    assert len(b.closed) == 1
