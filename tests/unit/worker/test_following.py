"""Tasks that follow others at their worker, and begin without the head."""

from __future__ import annotations

from dataclasses import replace

from helpers.worker_bench import WorkerBench, a_class
from rustray.task.columns import PayloadColumn
from rustray.task.frames import LeaseOutcome
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


def finish_running(
    b: WorkerBench, end: TaskState = TaskState.SUCCEEDED, run_us: int = 50_000
) -> None:
    """Let the only task that runs end."""
    (executor_id,) = [x.executor_id for x in b.executors.values() if x.tasks]
    b.finish(executor_id, state=end, run_us=run_us)


def quick() -> WorkerBench:
    """Return a worker that knows the links to be quick."""
    b = bench()
    b.grant(1, LINK)
    b.finish_all()
    b.collect()
    return b


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
    held = {part.lease: part.follows for part in b.held}
    assert held == {leases[0]: 0, leases[1]: leases[0]}  # one has ended, one runs
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


def test_the_links_of_a_quick_chain_go_to_an_executor_together() -> None:
    """Each takes the result of the one before there; no more than two milliseconds of work."""
    b = quick()
    leases = chain(b, 4)
    assert held(b) == [(leases[0], 0)]  # the others came when it had begun
    b.finish_all()
    b.collect()
    leases = chain(b, 300)
    finish_running(b, run_us=10)
    (executor,) = [x for x in b.executors.values() if x.tasks]
    assert list(executor.tasks) == [(lease, 0) for lease in leases[1 : 1 + 200]]
    takes = [executor.along[key] for key in list(executor.tasks)[1:]]
    assert takes == [(lease, 0) for lease in leases[1:200]]
    b.finish_all()
    b.deliver_all()
    assert {b.told[(lease, 0)] for lease in leases} == {TaskState.SUCCEEDED}


def quick_chain(links: int) -> tuple[WorkerBench, list[int], int]:
    """Return a worker, a chain of which one executor has all but the first, and that executor."""
    b = quick()
    leases = chain(b, links)
    finish_running(b, run_us=10)
    (executor,) = [x for x in b.executors.values() if x.tasks]
    assert len(executor.tasks) == links - 1
    return b, leases, executor.executor_id


def test_what_follows_a_failure_comes_back_from_the_executor() -> None:
    """It goes to the head from there."""
    for end in (TaskState.FAILED, TaskState.CANCELLED):
        b, leases, executor_id = quick_chain(5)
        b.finish(executor_id)
        b.finish(executor_id, state=end)
        b.deliver_all()
        done = TaskState.SUCCEEDED
        assert [b.told[(lease, 0)] for lease in leases] == [done, done, end, None, None]


def test_a_crash_leaves_what_follows_to_the_head() -> None:
    """The link that ran is blamed, those after it have not run."""
    b, leases, executor_id = quick_chain(4)
    b.finish(executor_id)
    b.die(executor_id)
    b.deliver_all()
    told = [b.told[(lease, 0)] for lease in leases]
    assert told == [TaskState.SUCCEEDED, TaskState.SUCCEEDED, TaskState.LEASED, None]


def test_what_an_executor_gives_back_of_a_chain_waits_here_again() -> None:
    """It has not got what it takes; it begins when that is made."""
    b, leases, executor_id = quick_chain(5)
    b.advance(0.1)  # the other executor has nothing, and this one several
    assert b.executors[executor_id].owes_answer
    b.answer(executor_id)
    assert held(b) == [(leases[1], 0)]
    finish_running(b)
    assert held(b) == [(leases[2], 0)]
    b.finish_all()
    b.deliver_all()
    assert {b.told[(lease, 0)] for lease in leases} == {TaskState.SUCCEEDED}


def test_cancels_and_recalls_reach_links_in_an_executor() -> None:
    """What was not begun is back with the head at once; what follows it too."""
    for is_recall in (False, True):
        b, leases, executor_id = quick_chain(5)
        if is_recall:
            b.recall(leases[3], 0, 1)
        else:
            b.cancel(leases[3])
        b.answer(executor_id)
        b.finish_all()
        b.deliver_all()
        end = None if is_recall else TaskState.CANCELLED
        told = [b.told[(lease, 0)] for lease in leases]
        assert told == [TaskState.SUCCEEDED] * 3 + [end, None]


def test_links_in_an_executor_go_back_when_the_worker_leaves_or_meets_a_head() -> None:
    """A head that meets them is told of them, for they may begin meanwhile."""
    b, leases, executor_id = quick_chain(4)
    b.feed(e.DrainRequested())
    b.answer(executor_id)
    b.finish_all()
    b.deliver_all()
    done = TaskState.SUCCEEDED
    assert [b.told[(lease, 0)] for lease in leases] == [done, done, None, None]
    b, leases, executor_id = quick_chain(4)
    b.collect()
    b.close()
    b.open()
    b.collect()
    assert b.held is not None
    held = {part.lease: part.follows for part in b.held}
    assert held == dict(zip(leases, [0, *leases], strict=False))
    b.answer(executor_id)
    b.finish_all()
    b.deliver_all()
    assert [b.told[(lease, 0)] for lease in leases] == [done, done, None, None]


def test_what_follows_a_large_result_comes_back_bit_by_bit() -> None:
    """Bug: what was still on its way back was given to an executor once more, and ran twice."""
    for pause_s in (0.0, 2.0):
        b, leases, executor_id = quick_chain(6)
        b.finish(executor_id, is_large=True)
        b.feed(e.StoreChanged(pause_s > 0))
        b.tell_unrun(executor_id, 1)
        b.now += pause_s
        b.feed(e.StoreChanged(is_paused=False))
        for _ in leases[3:]:
            b.tell_unrun(executor_id, 1)
        b.finish_all()
        b.deliver_all()
        assert {b.told[(lease, 0)] for lease in leases} == {TaskState.SUCCEEDED}


def test_links_with_large_results_go_one_by_one() -> None:
    """Else each was sent with all that follow, and these came back, for each link; for a second."""
    b, leases, executor_id = quick_chain(6)
    b.finish(executor_id, is_large=True)
    b.tell_unrun(executor_id)
    assert held(b) == [(leases[2], 0)]
    finish_running(b, run_us=10)
    assert held(b) == [(leases[3], 0)]
    b.now += 1.0
    finish_running(b, run_us=10)
    assert held(b) == [(leases[4], 0), (leases[5], 0)]


def test_many_chains_are_no_more_work_at_once_than_one() -> None:
    """Bug: an executor was given two milliseconds for each of them."""
    b = quick()
    for _ in range(40):
        chain(b, 21)
    b.finish_all(run_us=100)
    b.feed(e.StoreChanged(is_paused=True))  # so that nothing begins before all are there
    for _ in range(40):
        chain(b, 21)
    b.feed(e.StoreChanged(is_paused=False))
    assert max(len(x.tasks) for x in b.executors.values()) <= 45
    b.finish_all()


def test_the_head_hears_at_once_of_a_link_that_fails_in_an_executor() -> None:
    """What follows it does not begin, though it is there."""
    b, leases, executor_id = quick_chain(4)
    b.finish(executor_id)
    assert b.manager.may_wait
    executor = b.executors[executor_id]
    del executor.tasks[(leases[2], 0)]
    outcome = LeaseOutcome(leases[2], 0, TaskState.FAILED, PayloadColumn.of([b"x"]), 10)
    b.feed(e.ExecutorReported(executor_id, [outcome]))
    assert not b.manager.may_wait


def test_a_cancel_is_not_lost_behind_an_answer_that_comes_late() -> None:
    """Bug: an executor that had ended all when it was asked took the next request for the same."""
    b, _, executor_id = quick_chain(5)
    b.advance(0.1)
    assert b.executors[executor_id].owes_answer
    b.finish(executor_id, 4)
    b.finish(next(n for n in b.executors if n != executor_id), 0)
    leases = [b.grant(1, LINK)]
    for _ in range(3):
        leases.append(b.grant(1, LINK, follows=(leases[-1], 0)))
    while (leases[1], 0) not in b.executors[executor_id].tasks:
        finish_running(b, run_us=10)
    assert len(b.executors[executor_id].tasks) == 3
    b.cancel(leases[2])
    executor = b.executors[executor_id]
    executor.owes_answer = False
    b.feed(e.ExecutorReturned(executor_id, []))
    assert executor.owes_answer
    b.answer(executor_id)
    b.finish_all()
    b.deliver_all()
    told = [b.told[(lease, 0)] for lease in leases]
    assert told == [TaskState.SUCCEEDED, TaskState.SUCCEEDED, TaskState.CANCELLED, None]
