"""Dead letters: what ended badly is kept with its arguments, retried under its id, or purged."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.scheduling import PREFIX, Bench
from rustray.common.errors import ResourceExhausted, TaskNotFound
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.scheduler.results import LETTER_BYTES
from rustray.task.columns import PayloadColumn
from rustray.task.failures import decode_failure
from rustray.task.frames import LeaseOutcome
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState

FAILED, OK = TaskState.FAILED, TaskState.SUCCEEDED


def submit(bench: Bench, arguments: Sequence[bytes], task_class: TaskClass | None = None) -> None:
    """Hand in tasks with these arguments."""
    first = bench.next_sequence
    bench.next_sequence += len(arguments)
    column = PayloadColumn.of(list(arguments))
    bench.feed(e.TasksSubmitted(PREFIX, first, task_class or TaskClass("f"), column, True))


def fail_all(bench: Bench, states: Sequence[TaskState] = ()) -> None:
    """Let the one worker end all that it holds, in the order of its leases, badly if not told."""
    (worker,) = bench.workers.values()
    position = 0
    while worker.held:
        lease = min(worker.held)
        offset = min(worker.held[lease])
        state = states[position] if position < len(states) else FAILED
        bench.end(worker, lease, offset, 1, state)
        position += 1


def granted(bench: Bench) -> list[tuple[int, int, bytes]]:
    """Return (sequence, attempt, argument) of what the last event granted."""
    return [
        (one.first + index, one.attempt, payload)
        for one in bench.commands
        if isinstance(one, c.GrantLease)
        for index, payload in enumerate(one.payloads)
    ]


def test_a_retried_task_runs_again_with_its_arguments_under_its_id() -> None:
    """All had ended and arguments were forgotten; the failed ones run again, and succeed."""
    bench = Bench()
    bench.join(cpus=8)
    submit(bench, [b"a", b"bb", b"ccc", b"d"])
    fail_all(bench, [FAILED, OK, TaskState.TIMED_OUT, TaskState.CANCELLED])
    assert bench.scheduler.state.pending_bytes == 0
    bench.retry(0, 4)
    assert granted(bench) == [(0, 2, b"a"), (2, 2, b"ccc")]
    fail_all(bench, [OK, OK])
    assert [bench.state_of(number) for number in range(4)] == [OK, OK, OK, TaskState.CANCELLED]
    found = bench.scheduler.task(PREFIX, 0)
    assert found is not None
    assert (found.attempts, found.payload) == (2, b"r")
    assert bench.scheduler.state.counters["tasks_retried_on_request"] == 2


def test_attempt_numbers_go_on_and_budgets_begin_anew() -> None:
    """A task that used up its re-runs has as many again, under ever higher attempt numbers."""
    bench = Bench()
    bench.join(cpus=1)
    submit(bench, [b"a"], TaskClass("f", max_retries=1))
    for _ in range(3):
        fail_all(bench, [TaskState.LEASED, TaskState.LEASED])
        assert bench.state_of(0) is FAILED
        bench.retry(0)
    assert bench.attempts[0] == [1, 2, 3, 4, 5, 6, 7]
    fail_all(bench, [OK])
    found = bench.scheduler.task(PREFIX, 0)
    assert found is not None
    assert found.attempts == 7


def test_a_request_that_comes_again_does_nothing_more() -> None:
    """A task under way is left alone; and so is one that has failed again, within the horizon."""
    bench = Bench()
    bench.join(cpus=1)
    submit(bench, [b"a"])
    fail_all(bench)
    horizon = bench.scheduler.state.next_outcome - 1
    bench.retry(0, horizon=horizon)
    bench.retry(0, horizon=horizon)
    assert bench.attempts[0] == [1, 2]
    fail_all(bench)
    bench.retry(0, horizon=horizon)
    assert bench.state_of(0) is FAILED
    bench.retry(0)
    assert bench.attempts[0] == [1, 2, 3]


def test_a_late_report_of_the_life_before_changes_nothing() -> None:
    """What was timed out at the head and retried is not ended by the worker's old report."""
    bench = Bench()
    worker = bench.join(cpus=2)
    submit(bench, [b"a", b"b"], TaskClass("f", total_timeout_s=5.0))
    old = min(worker.held)
    bench.pass_time(6.0)
    assert bench.state_of(0) is TaskState.TIMED_OUT
    bench.retry(0, 2)
    stale = LeaseOutcome(old, 0, OK, PayloadColumn.of([b"old", b"old"]), 1)
    bench.report(worker, outcomes=[stale])
    assert bench.state_of(0) is TaskState.LEASED
    assert bench.scheduler.state.counters["stale_reports"] >= 2


def test_limits_of_time_begin_with_the_retry() -> None:
    """Queue and total limits count from the request, not from the acceptance long ago."""
    bench = Bench()
    for limits in ({"queue_timeout_s": 5.0}, {"total_timeout_s": 5.0}):
        submit(bench, [b"a"], TaskClass("f", **limits))  # type: ignore[arg-type]
    bench.pass_time(6.0)
    assert [bench.state_of(0), bench.state_of(1)] == [TaskState.TIMED_OUT] * 2
    bench.pass_time(60.0)
    bench.retry(0, 2)
    bench.pass_time(4.0)
    assert [bench.state_of(0), bench.state_of(1)] == [TaskState.QUEUED] * 2
    bench.pass_time(2.0)
    assert [bench.state_of(0), bench.state_of(1)] == [TaskState.TIMED_OUT] * 2


def test_tasks_beside_a_retried_one_keep_their_own_limit() -> None:
    """A retry of one task of a batch neither prolongs nor shortens the limit of another."""
    bench = Bench()
    worker = bench.join(cpus=1)
    submit(bench, [b"a", b"b"], TaskClass("f", total_timeout_s=10.0, max_retries=-1))
    bench.end(worker, min(worker.held), 0, 1, FAILED)
    bench.pass_time(8.0)
    bench.retry(0)
    bench.pass_time(3.0)
    assert bench.state_of(0) is not TaskState.TIMED_OUT
    assert bench.state_of(1) is TaskState.TIMED_OUT
    bench.pass_time(8.0)
    assert bench.state_of(0) is TaskState.TIMED_OUT


def test_what_may_run_once_at_most_runs_again_if_somebody_says_so() -> None:
    """A retry on request is the explicit wish that max_retries=0 waits for."""
    bench = Bench()
    bench.join(cpus=1)
    submit(bench, [b"a"], TaskClass("f", max_retries=0))
    fail_all(bench)
    bench.retry(0)
    kinds = [type(one) for one in bench.commands]
    assert kinds.index(c.PersistRetry) < kinds.index(c.PersistGrant) < kinds.index(c.GrantLease)
    fail_all(bench, [OK])
    assert bench.state_of(0) is OK


def test_letters_are_bounded_and_results_do_not_push_them_out() -> None:
    """The oldest letters go first, by their own bound; then a retry says that it is too late."""
    probe = Bench()
    probe.join(cpus=1)
    submit(probe, [b"x" * 100])
    fail_all(probe)
    size = probe.scheduler.state.letters.bytes
    assert size > LETTER_BYTES + 100
    bench = Bench(letter_memory_bytes=3 * size, result_memory_bytes=10)
    bench.join(cpus=1)
    submit(bench, [b"x" * 100] * 5)
    fail_all(bench, [FAILED, FAILED, FAILED, FAILED, OK])
    submit(bench, [b"y"] * 100)
    fail_all(bench, [OK] * 100)
    assert bench.scheduler.state.letters.bytes == 3 * size
    bench.retry(0, 4)
    refused = [one for one in bench.commands if isinstance(one, c.RefuseLetters)]
    assert [(one.first, one.count) for one in refused] == [(0, 1)]
    assert isinstance(refused[0].error, TaskNotFound)
    assert bench.counts()[TaskState.QUEUED] + bench.counts()[TaskState.LEASED] == 3
    assert bench.scheduler.state.counters["retries_refused_task_not_found"] == 1


def test_letters_expire_with_their_time() -> None:
    """After their time to live nothing of them is left, and the batch is gone."""
    bench = Bench(result_ttl_s=50.0)
    bench.join(cpus=1)
    submit(bench, [b"a", b"b"])
    fail_all(bench, [FAILED, OK])
    bench.pass_time(51.0)
    assert bench.scheduler.task(PREFIX, 0) is None
    assert (bench.scheduler.state.letters.bytes, len(bench.scheduler.state.letters.queue)) == (0, 0)


def test_a_purge_forgets_bytes_and_keeps_that_it_has_ended() -> None:
    """One task of an outcome that others share: its error and arguments are gone, theirs stay."""
    bench = Bench()
    worker = bench.join(cpus=4)
    submit(bench, [b"secret-0", b"secret-1", b"secret-2"])
    lease = min(worker.held)
    worker.held.clear()
    bench.report(
        worker,
        outcomes=[LeaseOutcome(lease, 0, FAILED, PayloadColumn.of([b"e0", b"e1", b"e2"]), 1)],
    )
    bench.purge(1)
    written = [one for one in bench.commands if isinstance(one, c.ReplaceOutcome)]
    assert [list(one.payloads) for one in written] == [[b"e0", b"", b"e2"]]
    assert list(written[0].arguments) == [b"secret-0", b"", b"secret-2"]
    found = bench.scheduler.task(PREFIX, 1)
    assert found is not None
    assert (found.state, found.payload) == (FAILED, None)
    bench.retry(0, 3)
    assert [(number, text) for number, _, text in granted(bench)] == [
        (0, b"secret-0"), (2, b"secret-2"),
    ]  # fmt: skip
    bench.purge(0, 3)
    assert bench.scheduler.state.counters["tasks_purged"] == 1


@settings(max_examples=150, deadline=None)
@given(
    ranges=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 10)), min_size=1, max_size=6),
    together=st.lists(st.booleans(), min_size=9, max_size=9),
    is_retry=st.booleans(),
)
def test_ranges_that_overlap_name_each_task_once(
    ranges: list[tuple[int, int]], together: list[bool], is_retry: bool
) -> None:
    """Regression: a task in two ranges of one request hung the head, or took others' letters."""
    bench = Bench()
    worker = bench.join(cpus=16)
    for low, high in ((0, 4), (4, 6), (6, 9)):  # three batches, and nothing behind them
        submit(bench, [b"argument-%d" % number for number in range(low, high)])
    while worker.held:
        lease = min(worker.held)
        first, offset = worker.grants[lease].first, min(worker.held[lease])
        count = 1
        while offset + count in worker.held[lease] and together[first + offset + count]:
            count += 1
        bench.end(worker, lease, offset, count, FAILED)
    meant = {one for first, count in ranges for one in range(first, first + count) if one < 9}
    kind = e.RetryRequested if is_retry else e.PurgeRequested
    horizon = bench.scheduler.state.next_outcome - 1
    # `Bench.feed` checks every invariant.
    bench.feed(kind(tuple(e.LetterRange(PREFIX, *one) for one in ranges), horizon))
    if is_retry:
        again = sorted((number, text) for number, _, text in granted(bench))
        assert again == [(number, b"argument-%d" % number) for number in sorted(meant)]
    counted = "tasks_retried_on_request" if is_retry else "tasks_purged"
    assert bench.scheduler.state.counters[counted] == len(meant)
    bench.retry(0, 9)
    left = {number: text for number, _, text in granted(bench)}
    assert left == {number: b"argument-%d" % number for number in range(9) if number not in meant}


@pytest.mark.parametrize("is_pushed", [True, False])
def test_a_purged_batch_is_gone(is_pushed: bool) -> None:
    """When the last of a batch is purged that its client has, its id is free again.

    An id that a caller has chosen is free in any case.
    """
    bench = Bench()
    bench.join(cpus=4)
    column = PayloadColumn.of([b"a", b"b"])
    bench.feed(e.TasksSubmitted(PREFIX, 0, TaskClass("f"), column, is_pushed))
    fail_all(bench)
    if is_pushed:
        bench.feed(e.OutcomesDelivered(PREFIX, 0, 2))
    bench.purge(0, 2)
    assert bench.scheduler.task(PREFIX, 0) is None
    assert any(isinstance(one, c.ForgetBatch) for one in bench.commands)


def test_what_was_purged_unconfirmed_does_not_run_again() -> None:
    """A session whose stream broke before it heard of a failure hands its task in again."""
    bench = Bench(result_ttl_s=100.0, lease_ttl_s=1e6)
    bench.join(cpus=4)
    submit(bench, [b"a", b"b"])
    fail_all(bench)
    bench.purge(0, 2)
    told = bench.feed(
        e.TasksSubmitted(PREFIX, 0, TaskClass("f"), PayloadColumn.of([b"a", b"b"]), True)
    )
    assert {type(one) for one in told} == {c.AcceptTasks, c.ReportUnknown}
    bench.pass_time(101.0)
    assert bench.scheduler.task(PREFIX, 0) is None


def test_a_retry_is_refused_where_a_submit_would_be() -> None:
    """The bounds on what is pending hold for retries too; what fits is retried."""
    bench = Bench(max_pending_tasks=3)
    submit(bench, [b"a", b"b", b"c"], TaskClass("f", queue_timeout_s=1.0))
    bench.pass_time(2.0)
    submit(bench, [b"d"])
    for number in range(3):
        bench.retry(number)
    refused = [one for one in bench.commands if isinstance(one, c.RefuseLetters)]
    assert [one.first for one in refused] == [2]
    assert isinstance(refused[0].error, ResourceExhausted)


@pytest.mark.parametrize("bound", ["max_pending_bytes", "principal_pending_bytes"])
def test_one_retry_of_many_keeps_within_the_bytes_that_may_be_pending(bound: str) -> None:
    """Regression: letters that were taken earlier in a call did not count for those behind them."""
    bench = Bench(**{bound: 100})
    bench.join(cpus=1)
    submit(bench, [b"argument"] * 12)
    fail_all(bench)
    submit(bench, [b"argument"] * 10)
    bench.retry(0, 12)
    refused = [one for one in bench.commands if isinstance(one, c.RefuseLetters)]
    assert bench.scheduler.state.pending_bytes == 12 * 8
    assert {one.first + index for one in refused for index in range(one.count)} == {*range(2, 12)}
    assert {type(one.error) for one in refused} == {ResourceExhausted}


def test_arguments_that_are_there_still_are_counted_once() -> None:
    """A letter of a batch that goes on brings no bytes back, however often it is retried."""
    bench = Bench(max_pending_bytes=100)
    worker = bench.join(cpus=8)
    submit(bench, [b"argument"] * 6)
    for _ in range(3):
        lease, offset = next(
            (number, offset) for number, held in worker.held.items() for offset in held
            if worker.grants[number].first + offset == 0
        )  # fmt: skip
        bench.end(worker, lease, offset, 1, FAILED)
        bench.retry(0)
        assert bench.scheduler.state.pending_bytes == 6 * 8


def test_evicted_results_do_not_stay_in_memory_behind_an_old_one() -> None:
    """What its client has goes first, and goes at once: its bytes are not held by a queue."""
    bench = Bench(result_memory_bytes=4)
    worker = bench.join(cpus=3_000)
    submit(bench, [b"a"] * 3_000)
    lease = min(worker.grants)
    count = len(worker.grants[lease].payloads)
    handle = bench.scheduler.handle
    for number in range(count):
        ended = LeaseOutcome(lease, number, OK, PayloadColumn.of([b"r"]), 1)
        report = e.WorkerReported(
            worker.worker_id, worker.session, None, (ended,), (), (), False, False
        )
        handle(report, bench.now)
        if number >= 2:  # nobody has the first two yet
            handle(e.OutcomesDelivered(PREFIX, number, 1), bench.now)
    assert count > 1_500
    shelf = bench.scheduler.state.results
    assert sum(len(one.payloads.blob) for one in shelf.queue) <= 4
    assert len(shelf.queue) < count - 500


@pytest.mark.parametrize("first", [0, 7, 1 << 40])
def test_what_is_no_dead_letter_is_left_alone(first: int) -> None:
    """Unknown tasks, queued ones and those that succeeded: a retry or purge changes nothing."""
    bench = Bench()
    submit(bench, [b"a"] * 8)
    bench.retry(first, 3)
    bench.purge(first, 3)
    assert bench.commands == []
    assert bench.counts()[TaskState.QUEUED] == 8


def test_the_error_of_a_queue_timeout_is_kept_as_it_was_told() -> None:
    """A letter's error is what the client got."""
    bench = Bench()
    submit(bench, [b"a"], TaskClass("f", queue_timeout_s=1.0))
    bench.pass_time(2.0)
    found = bench.scheduler.task(PREFIX, 0)
    assert found is not None
    assert found.payload is not None
    assert decode_failure(found.payload).phase == "queue"


def test_a_client_that_comes_back_is_not_told_the_end_before_a_retry() -> None:
    """Of tasks that ended alike the one that runs again has not ended; the others have."""
    bench = Bench()
    submit(bench, [b"a", b"b", b"c"], TaskClass("f", queue_timeout_s=5.0))
    bench.pass_time(6.0)
    bench.retry(1)
    bench.feed(e.FollowRequested(PREFIX, 0, 3))
    told = [one.outcome for one in bench.commands if isinstance(one, c.DeliverOutcome)]
    assert [(one.first, len(one.payloads)) for one in told] == [(0, 1), (2, 1)]
    bench.join(cpus=1)
    bench.run_all()
    bench.feed(e.FollowRequested(PREFIX, 0, 3))
    told = [one.outcome for one in bench.commands if isinstance(one, c.DeliverOutcome)]
    late = TaskState.TIMED_OUT
    assert [(one.first, one.state) for one in told] == [(0, late), (1, OK), (2, late)]
