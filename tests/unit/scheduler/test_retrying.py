"""Other attempts: which failures lead to one, after which pause, and where it ends."""

from __future__ import annotations

import pytest

from helpers.builders import a_death, a_failure
from helpers.scheduling import PREFIX, Bench
from rustray.scheduler import commands as c
from rustray.scheduler.ordering import Lots
from rustray.task.failures import decode_failure
from rustray.task.retries import LONGEST_PAUSE_S, pause_s
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState

FAILED, LEASED = TaskState.FAILED, TaskState.LEASED


def raise_in(bench: Bench, payload: bytes) -> None:
    """Let the one task that a worker holds raise."""
    [worker] = bench.workers.values()
    bench.end(worker, min(worker.held), 0, state=FAILED, payload=payload)


def kill_in(bench: Bench, payload: bytes) -> None:
    """Let the one task that a worker holds kill its executor."""
    [worker] = bench.workers.values()
    bench.end(worker, min(worker.held), 0, state=LEASED, payload=payload)


def a_bench(**options: object) -> Bench:
    """One worker of one core, which holds one task of such a class."""
    bench = Bench()
    bench.join(cpus=1)
    bench.submit(1, TaskClass("f", **options))  # type: ignore[arg-type]
    return bench


@pytest.mark.parametrize(
    ("wanted", "raised", "bases", "is_retried"),
    [
        (("builtins.ValueError",), "builtins.ValueError", (), True),
        (("ValueError",), "builtins.ValueError", (), True),
        (("OSError",), "builtins.ConnectionError", ("builtins.OSError",), True),
        (("app.Busy",), "app.Busy", (), True),
        (("app.Busy",), "other.Busy", (), False),
        (("Busy",), "other.Busy", (), True),
        (("Error",), "builtins.ValueError", (), False),
        (("KeyError",), "builtins.ValueError", ("builtins.Exception",), False),
        (True, "app.Anything", (), True),
        (False, "builtins.ValueError", (), False),
    ],
)
def test_an_exception_is_retried_if_an_except_clause_would_catch_it(
    wanted: bool | tuple[str, ...], raised: str, bases: tuple[str, ...], is_retried: bool
) -> None:
    """By the name of its class or of a base, with or without the module."""
    bench = a_bench(retry_exceptions=wanted, retry_delay_s=0.0)
    raise_in(bench, a_failure(raised, "no", *bases))
    assert (bench.ended == {}) is is_retried
    assert bench.attempts[0] == ([1, 2] if is_retried else [1])


def test_what_user_code_did_not_raise_is_not_retried() -> None:
    """A result that cannot travel would not travel the next time either."""
    bench = a_bench(retry_exceptions=True)
    raise_in(bench, b"\x81\xa4code\xa7PAYLOAD")
    assert bench.ended == {0: [FAILED]}


def test_a_retry_of_an_exception_waits() -> None:
    """The task is queued meanwhile, in no queue, and starts when its pause is over."""
    bench = a_bench(retry_exceptions=True, retry_delay_s=5.0)
    bench.submit(1)
    raise_in(bench, a_failure(message="busy"))
    assert bench.state_of(0) is TaskState.QUEUED
    told = bench.scheduler.explain(PREFIX, 0, bench.now)
    assert told is not None
    assert told.summary == (
        "it raised 'ValueError: busy', and retry 1 starts in 5.0 s; 2 more may follow."
    )
    bench.run_all()
    assert bench.ended == {1: [TaskState.SUCCEEDED]}
    bench.pass_time(4.9)
    assert bench.attempts[0] == [1]
    bench.pass_time(0.2)
    assert bench.attempts[0] == [1, 2]
    bench.run_all()
    assert bench.ended[0] == [TaskState.SUCCEEDED]


def test_pauses_double_with_full_jitter_up_to_ten_minutes() -> None:
    """Each is drawn from zero to the doubled bound; what the user gave is taken as it is."""
    lots = Lots(7)
    for rerun, bound in ((1, 1), (2, 2), (5, 16), (10, 512), (11, 600), (10_000, 600)):
        drawn = [pause_s(None, rerun, lots.fraction()) for _ in range(300)]
        assert all(0 <= pause <= bound for pause in drawn)
        assert max(drawn) > 0.9 * bound
        assert min(drawn) < 0.1 * bound
    assert LONGEST_PAUSE_S == 600
    assert pause_s(3.5, 8, lots.fraction()) == 3.5


@pytest.mark.parametrize("after_s", [0.0, 60.0])
def test_a_failure_whose_ack_was_lost_is_charged_once(after_s: float) -> None:
    """Regression: the worker came back, reported it again, and it was charged twice."""
    bench = a_bench(retry_exceptions=True, retry_delay_s=1000.0, max_retries=1)
    worker = bench.workers["w-1"]
    [lease] = worker.held
    raise_in(bench, a_failure())
    bench.disconnect(worker)
    bench.pass_time(after_s)
    worker.held[lease] = {0}  # as it lists what it has told and the head has not acked
    bench.join("w-1")
    bench.end(worker, lease, 0, state=FAILED, payload=a_failure())
    assert bench.ended == {}
    bench.pass_time(1000.0)
    bench.join("w-2")
    bench.run_all()
    assert bench.ended == {0: [TaskState.SUCCEEDED]}
    assert bench.attempts[0] == [1, 2]


def test_retries_of_exceptions_end_with_the_budget() -> None:
    """max_retries bounds them; the last exception is what the task ends with."""
    bench = a_bench(retry_exceptions=True, retry_delay_s=1.0, max_retries=2)
    for number in range(3):
        raise_in(bench, a_failure(message=f"time {number}"))
        bench.pass_time(1.0)
    assert bench.ended == {0: [FAILED]}
    found = bench.scheduler.task(PREFIX, 0)
    assert found is not None
    assert found.payload is not None
    assert (found.attempts, decode_failure(found.payload).message) == (3, "time 2")


@pytest.mark.parametrize("how", ["cancel", "total"])
def test_a_task_can_end_while_it_pauses(how: str) -> None:
    """Cancelled or out of time, it does not start again when its pause is over."""
    bench = a_bench(retry_exceptions=True, retry_delay_s=20.0, total_timeout_s=9.0)
    bench.pass_time(2.0)
    raise_in(bench, a_failure())
    if how == "cancel":
        bench.cancel(0)
    bench.pass_time(60.0)
    end = TaskState.CANCELLED if how == "cancel" else TaskState.TIMED_OUT
    assert bench.ended == {0: [end]}
    assert bench.attempts[0] == [1]
    assert bench.scheduler.state.delayed == 0


def test_a_pause_does_not_count_as_waiting_for_a_worker() -> None:
    """The queue limit is for tasks that have never started."""
    bench = a_bench(retry_exceptions=True, retry_delay_s=8.0, queue_timeout_s=4.0)
    raise_in(bench, a_failure())
    bench.pass_time(8.0)
    bench.run_all()
    assert bench.ended == {0: [TaskState.SUCCEEDED]}


def test_a_task_that_kills_its_executors_is_poisoned() -> None:
    """After crash_limit deaths, whatever its budget; the error tells of each."""
    bench = a_bench(max_retries=-1)
    for number, signal in enumerate((11, 9, 6)):
        assert bench.ended == {}
        kill_in(bench, a_death(signal, f"last words {number}"))
    assert bench.ended == {0: [TaskState.POISONED]}
    found = bench.scheduler.task(PREFIX, 0)
    assert found is not None
    assert found.payload is not None
    info = decode_failure(found.payload)
    assert (info.code, info.signal) == ("TASK_POISONED", 6)
    for part in ("signal 11", "signal 9", "last words 0", "last words 2", "on w-1", "crash_limit"):
        assert part in info.message
    assert bench.scheduler.state.counters["tasks_poisoned"] == 1


def test_a_task_that_may_run_once_fails_at_its_first_crash() -> None:
    """max_retries=0: one death is no proof of poison."""
    bench = a_bench(max_retries=0, crash_limit=1)
    kill_in(bench, a_death())
    assert bench.ended == {0: [FAILED]}


def test_crashes_and_lost_workers_are_counted_apart() -> None:
    """A worker that is lost is no crash of the task."""
    bench = a_bench(max_retries=-1, crash_limit=2)
    for incarnation in (2, 3, 4):
        bench.die(bench.workers["w-1"])
        bench.join(cpus=1, incarnation=incarnation)
    kill_in(bench, a_death())
    assert bench.ended == {}
    assert [type(one) for one in bench.commands].count(c.PersistCrash) == 1
    kill_in(bench, a_death())
    assert bench.ended == {0: [TaskState.POISONED]}
