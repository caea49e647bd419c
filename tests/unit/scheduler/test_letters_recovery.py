"""Dead letters over a restart of the head: kept, retried and purged ones are what they were."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from helpers.scheduling import PREFIX
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.scheduler.invariants import check
from rustray.task.columns import PayloadColumn
from rustray.task.frames import CancelRequest
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from unit.scheduler.test_recovery import Head, rows

FAILED, OK = TaskState.FAILED, TaskState.SUCCEEDED


def retry(head: Head, first: int, count: int, *, committed: bool = True) -> None:
    """Retry dead letters on request."""
    horizon = head.scheduler.state.next_outcome - 1
    event = e.RetryRequested((e.LetterRange(PREFIX, first, count),), horizon)
    head.feed(event, committed=committed)


def purge(head: Head, first: int, count: int) -> None:
    """Purge dead letters."""
    horizon = head.scheduler.state.next_outcome - 1
    head.feed(e.PurgeRequested((e.LetterRange(PREFIX, first, count),), horizon))


def failed(count: int = 4, max_retries: int = 3) -> Head:
    """Return a head of whose one batch all tasks have failed on a worker."""
    head = Head()
    head.join("w", 1, cpus=8)
    head.greet("w", 1)
    head.submit(0, count, max_retries=max_retries)
    (grant,) = head.grants
    head.end("w", 1, grant, FAILED, count)
    return head


def come_back(head: Head) -> None:
    """Restart the head, and let its worker come back without anything."""
    head.restart()
    head.join("w", head.starts, cpus=8)
    head.greet("w", head.starts)


def attempts(head: Head) -> dict[int, int]:
    """Return the newest attempt number that this head gave to each task."""
    return {
        one.first + index: one.attempt for one in head.grants for index in range(len(one.payloads))
    }


def test_letters_keep_arguments_over_a_restart() -> None:
    """All tasks had ended, the head is restarted, and a retry has the arguments."""
    head = failed()
    come_back(head)
    assert head.scheduler.state.letters.bytes > 0
    retry(head, 1, 2)
    assert [list(one.payloads) for one in head.grants] == [[b"argument", b"argument"]]
    assert min(attempts(head).values()) > 1
    head.end("w", head.starts, head.grants[0], OK, 2)
    assert [head.state_of(n) for n in range(4)] == [FAILED, OK, OK, FAILED]


def test_a_retry_that_was_committed_is_not_lost() -> None:
    """The head dies right after the ack: the task is queued again, the others stay letters."""
    head = failed()
    retry(head, 1, 2)
    come_back(head)
    assert sorted(attempts(head)) == [1, 2]
    head.end("w", head.starts, head.grants[0], OK, 2)
    come_back(head)
    assert head.grants == []
    assert [head.state_of(n) for n in range(4)] == [FAILED, OK, OK, FAILED]
    retry(head, 0, 4)
    assert sorted(attempts(head)) == [0, 3]


def test_a_retry_that_was_not_committed_did_not_happen() -> None:
    """The head dies before the commit: the task is the dead letter that it was."""
    head = failed()
    retry(head, 1, 2, committed=False)
    come_back(head)
    assert [head.state_of(n) for n in range(4)] == [FAILED] * 4
    retry(head, 0, 4)
    assert sorted(attempts(head)) == [0, 1, 2, 3]


def test_attempt_numbers_go_on_over_lives_and_restarts() -> None:
    """Each attempt of a task has a higher number, through retries and restarts."""
    head = failed(1, max_retries=0)
    history = [1]
    for _ in range(3):
        come_back(head)
        retry(head, 0, 1)
        history.append(attempts(head)[0])
        head.end("w", head.starts, head.grants[-1], FAILED)
    assert history == sorted(set(history))
    found = head.scheduler.task(PREFIX, 0)
    assert found is not None
    assert found.attempts == 4


def test_an_attempt_of_the_life_before_is_not_adopted() -> None:
    """A worker that comes back with a task that was timed out and retried has to let it go."""
    head = Head()
    head.join("w", 1)
    head.greet("w", 1)
    head.submit(0, 1, total_timeout_s=5.0)
    (old,) = head.grants
    head.pass_time(6.0)
    assert head.state_of(0) is TaskState.TIMED_OUT
    retry(head, 0, 1)
    head.restart()
    head.join("w", 2)
    head.greet("w", 2, old)
    assert head.dropped() == {("w", 0)}
    assert attempts(head)[0] > old.attempt
    head.end("w", 2, old, OK)
    assert head.state_of(0) is TaskState.LEASED


def test_a_cancel_of_the_life_before_does_not_reach_the_next() -> None:
    """A task that was to be cancelled and timed out meanwhile runs when it is retried."""
    head = Head()
    head.join("w", 1, cpus=3)
    head.greet("w", 1)
    head.submit(0, 3, total_timeout_s=5.0)
    head.feed(e.CancelRequested(CancelRequest(PREFIX, 0, 3, False)))
    head.pass_time(6.0)
    retry(head, 1, 1)
    assert rows(head, "SELECT place, count FROM cancel ORDER BY place") == [(0, 1), (2, 1)]
    come_back(head)
    assert head.state_of(1) is TaskState.LEASED


def test_budgets_that_were_used_up_do_not_come_back() -> None:
    """Re-runs and crashes of before a retry are forgotten in the journal as well."""
    head = Head()
    head.join("w", 1)
    head.greet("w", 1)
    head.submit(0, 1, max_retries=1)
    for _ in range(2):
        head.end("w", 1, head.grants[-1], TaskState.LEASED)
    assert head.state_of(0) is FAILED
    retry(head, 0, 1)
    assert rows(head, "SELECT * FROM rerun") == rows(head, "SELECT * FROM crash") == []
    come_back(head)
    head.end("w", head.starts, head.grants[-1], TaskState.LEASED)
    assert head.state_of(0) is TaskState.LEASED


def test_purged_bytes_are_not_in_the_journal() -> None:
    """After a purge of one of several, neither its error nor its arguments are in the file."""
    head = failed()
    purge(head, 1, 1)
    ((payloads, arguments),) = rows(head, "SELECT payloads, arguments FROM outcome")
    assert isinstance(payloads, bytes)
    assert (payloads.count(b"ValueError"), arguments) == (3, b"argument" * 3)
    come_back(head)
    retry(head, 0, 4)
    assert sorted(attempts(head)) == [0, 2, 3]
    purged = head.scheduler.task(PREFIX, 1)
    assert purged is not None
    assert (purged.state, purged.payload) == (FAILED, None)


def test_nothing_is_left_of_a_batch_that_is_purged() -> None:
    """Purged whole, also after a retry, a batch that its client has heard of leaves no row."""
    head = failed()
    retry(head, 0, 2)
    head.end("w", 1, head.grants[-1], FAILED, 2)
    head.feed(e.OutcomesDelivered(PREFIX, 0, 4))
    purge(head, 0, 4)
    for table in ("batch", "outcome", "retry", "purge", "rerun", "cancel"):
        assert rows(head, f"SELECT * FROM {table}") == []
    head.restart()
    check(head.scheduler.state)
    assert head.scheduler.task(PREFIX, 0) is None


def test_limits_of_time_that_began_with_a_retry_go_on_over_a_restart() -> None:
    """What has 5 s from its retry is ended 5 s after it, restart or not, and not before."""
    head = Head()
    head.submit(0, 2, queue_timeout_s=5.0)
    head.pass_time(100.0)
    retry(head, 0, 1)
    head.pass_time(3.0)
    head.restart()
    head.pass_time(1.0)
    assert head.state_of(0) is TaskState.QUEUED
    head.pass_time(1.5)
    assert head.state_of(0) is TaskState.TIMED_OUT


def test_arguments_of_ended_lives_are_dropped() -> None:
    """When all of a batch have ended again, the journal keeps arguments with letters only."""
    head = failed()
    retry(head, 0, 4)
    head.end("w", 1, head.grants[-1], OK, 4)
    kept = rows(head, "SELECT payloads FROM batch UNION ALL SELECT payloads FROM retry")
    kept += rows(head, "SELECT arguments FROM outcome")
    assert [blob for (blob,) in kept if blob] == []


@pytest.mark.parametrize("count", [10, 60])
def test_a_start_after_many_single_retries_is_one_pass(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: each retry that the journal had cost a pass over its batch, and timers."""
    head = Head()
    head.submit(0, count, queue_timeout_s=5.0, total_timeout_s=900.0)
    head.pass_time(6.0)
    for number in range(count):
        retry(head, number, 1)
    assert rows(head, "SELECT COUNT(*) FROM retry") == [(count,)]
    packed = 0
    pack = PayloadColumn.of

    def count_items(items: Sequence[bytes]) -> PayloadColumn:
        nonlocal packed
        packed += len(items)
        return pack(items)

    monkeypatch.setattr(PayloadColumn, "of", count_items)
    head.restart()
    assert packed == count
    # Two limits from the acceptance, and from the one time of all retries.
    assert len(head.scheduler.state.timers) == 4
    monkeypatch.undo()
    head.join("w", 1, cpus=count)
    head.greet("w", 1)
    given = [bytes(one) for grant in head.grants for one in grant.payloads]
    assert given == [b"argument"] * count


def hand_in(head: Head, first: int, *arguments: bytes, is_pushed: bool) -> list[tuple[str, int]]:
    """Hand in tasks (again), and return what the head says of how many."""
    column = PayloadColumn.of(arguments)
    head.feed(e.TasksSubmitted(PREFIX, first, TaskClass("f", max_retries=3), column, is_pushed))
    answers = (one for one in head.told if isinstance(one, c.AcceptTasks | c.RejectTasks))
    return [(type(one).__name__, one.count) for one in answers]


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("is_pushed", [False, True])
def test_handing_in_again_while_a_letter_is_retried(is_pushed: bool, restarts: bool) -> None:
    """Regression: the same tasks were refused as others while one of their batch was retried."""
    head = Head()
    head.join("w", 1, cpus=8)
    head.greet("w", 1)
    head.submit(0, 3, is_pushed=is_pushed, max_retries=3)
    head.end("w", 1, head.grants[-1], FAILED, 3)
    retry(head, 1, 1)
    if restarts:
        come_back(head)
    same = b"argument"
    assert hand_in(head, 0, same, same, same, is_pushed=is_pushed) == [("AcceptTasks", 3)]
    assert hand_in(head, 2, same, is_pushed=is_pushed) == [("AcceptTasks", 1)]
    assert hand_in(head, 0, same, b"", is_pushed=is_pushed) == [("RejectTasks", 2)]
    # Of a session's letter there is nothing to compare with; an id that was chosen is compared.
    verdict = "AcceptTasks" if is_pushed else "RejectTasks"
    assert hand_in(head, 0, b"", is_pushed=is_pushed) == [(verdict, 1)]


def test_the_horizon_of_a_request_holds_over_a_restart() -> None:
    """A request that is made again after a restart does nothing twice."""
    head = failed(1)
    horizon = head.scheduler.state.next_outcome - 1
    event = e.RetryRequested((e.LetterRange(PREFIX, 0, 1),), horizon)
    head.feed(event)
    head.end("w", 1, head.grants[-1], FAILED)
    come_back(head)
    head.feed(event)
    assert head.state_of(0) is FAILED
    assert not any(isinstance(one, c.PersistRetry) for one in head.told)
