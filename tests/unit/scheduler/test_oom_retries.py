"""A task that outgrew its memory has a budget of its own, which survives the head."""

from __future__ import annotations

import pytest

from helpers.scheduling import PREFIX, Bench
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.task.columns import PayloadColumn
from rustray.task.failures import decode_failure, encode_failure
from rustray.task.frames import LeaseOutcome
from rustray.task.result import FailureInfo
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from unit.scheduler.test_recovery import Head

OUT_OF_MEMORY = encode_failure(
    FailureInfo("TASK_OUT_OF_MEMORY", "it grew", memory_peak=2_000_000, memory_limit=1_000_000)
)
DAMAGED = encode_failure(FailureInfo("OBJECT_LOST", "its result was damaged on disk"))
DIED = encode_failure(FailureInfo("WORKER_LOST", "it died", signal=9))


def outgrow(bench: Bench, number: int, failure: bytes = OUT_OF_MEMORY) -> None:
    """Let the one worker of a bench report that its task's executor is gone."""
    worker = bench.workers["w-1"]
    assert number not in bench.ended
    bench.end(worker, min(worker.held), 0, state=TaskState.LEASED, payload=failure)


@pytest.mark.parametrize("budget", [0, 1, 3])
def test_each_rerun_is_a_new_attempt_until_the_budget_is_spent(budget: int) -> None:
    """oom_retries re-runs, then FAILED with the very error that the worker reported."""
    bench = Bench()
    bench.join(cpus=1)
    bench.submit(1, TaskClass("f", oom_retries=budget, max_retries=0))
    for _ in range(budget + 1):
        outgrow(bench, 0)
    assert bench.ended == {0: [TaskState.FAILED]}
    assert bench.attempts[0] == list(range(1, budget + 2))
    [told] = [one.outcome for one in bench.commands if isinstance(one, c.DeliverOutcome)]
    assert told.attempts == budget + 1
    info = decode_failure(told.payloads[0])
    assert (info.code, info.memory_peak) == ("TASK_OUT_OF_MEMORY", 2_000_000)


def test_a_task_that_is_stopped_for_its_memory_has_not_killed_its_executor() -> None:
    """We did: it counts for no crash limit, however often it happens."""
    bench = Bench()
    bench.join(cpus=1)
    bench.submit(1, TaskClass("f", oom_retries=5, max_retries=3, crash_limit=1))
    for _ in range(6):
        outgrow(bench, 0)
    assert bench.ended == {0: [TaskState.FAILED]}


def test_a_result_that_was_damaged_on_its_workers_disk_is_made_again() -> None:
    """Out of max_retries, and not as a death of an executor; without any it ends as ObjectLost."""
    bench = Bench()
    bench.join(cpus=1)
    bench.submit(1, TaskClass("f", max_retries=2, crash_limit=1))
    for _ in range(3):
        outgrow(bench, 0, DAMAGED)
    assert bench.ended == {0: [TaskState.FAILED]}
    bench.submit(1, TaskClass("f", max_retries=0))
    outgrow(bench, 1, DAMAGED)
    [told] = [one.outcome for one in bench.commands if isinstance(one, c.DeliverOutcome)]
    assert decode_failure(told.payloads[0]).code == "OBJECT_LOST"


def test_explain_says_that_a_worker_is_full() -> None:
    """A task that waits in a worker which starts nothing is told why, and what would help."""
    bench = Bench()
    worker = bench.join(cpus=1)
    bench.submit(1, TaskClass("f"))
    bench.feed(e.HeartbeatReceived("w-1", worker.session, None, 0, is_full=True))
    found = bench.scheduler.explain(PREFIX, 0, bench.now)
    assert found is not None
    assert "starts nothing now" in found.summary
    assert "spool_disk_mb" in found.advice
    bench.feed(e.HeartbeatReceived("w-1", worker.session, None, 0))
    found = bench.scheduler.explain(PREFIX, 0, bench.now)
    assert found is not None
    assert "starts nothing" not in found.summary


def test_without_a_limit_it_is_tried_for_ever() -> None:
    """-1 means so, as it does for max_retries."""
    bench = Bench()
    bench.join(cpus=1)
    bench.submit(1, TaskClass("f", oom_retries=-1, max_retries=0))
    for _ in range(20):
        outgrow(bench, 0)
    assert bench.attempts[0] == list(range(1, 22))


def test_neither_budget_takes_from_the_other() -> None:
    """Two executors that died and two that outgrew their memory: each budget of two is enough."""
    bench = Bench()
    bench.join(cpus=1)
    bench.submit(1, TaskClass("f", oom_retries=2, max_retries=2, crash_limit=9))
    for failure in (OUT_OF_MEMORY, DIED, OUT_OF_MEMORY, DIED):
        outgrow(bench, 0, failure)
    assert 0 not in bench.ended
    outgrow(bench, 0, DIED)
    assert bench.ended == {0: [TaskState.FAILED]}
    bench.submit(1, TaskClass("f", oom_retries=2, max_retries=2, crash_limit=9))
    for failure in (DIED, OUT_OF_MEMORY, DIED, OUT_OF_MEMORY, OUT_OF_MEMORY):
        outgrow(bench, 1, failure)
    assert bench.ended[1] == [TaskState.FAILED]


def test_a_cancelled_task_that_outgrew_its_memory_is_cancelled() -> None:
    """It is not run again for the sake of a budget."""
    bench = Bench()
    worker = bench.join(cpus=1)
    bench.submit(1, TaskClass("f", oom_retries=5))
    bench.cancel(0)
    bench.end(worker, min(worker.held), 0, state=TaskState.LEASED, payload=OUT_OF_MEMORY)
    assert bench.ended == {0: [TaskState.CANCELLED]}


def test_a_function_cannot_claim_that_it_ran_out_of_memory() -> None:
    """Only an executor's end is that: what user code raises is a failure like any other."""
    bench = Bench()
    worker = bench.join(cpus=1)
    bench.submit(1, TaskClass("f", oom_retries=5))
    bench.end(worker, min(worker.held), 0, state=TaskState.FAILED, payload=OUT_OF_MEMORY)
    assert bench.ended == {0: [TaskState.FAILED]}


def test_the_budget_survives_the_head() -> None:
    """What was spent before a restart is spent after it, and the other budget is whole."""
    head = Head()
    head.join("w", 1)
    head.greet("w", 1)
    head.submit(0, 1, oom_retries=2, max_retries=1)

    def outgrow_on_head(failure: bytes) -> None:
        outcome = LeaseOutcome(
            head.grants[-1].lease, 0, TaskState.LEASED, PayloadColumn.of([failure]), 1
        )
        head.feed(e.WorkerReported("w", head.starts, None, (outcome,), (), (), False, False))

    for _ in range(2):
        outgrow_on_head(OUT_OF_MEMORY)
    held = head.grants[-1]
    head.restart()
    head.join("w", 2)
    head.greet("w", 2, held)
    head.grants.append(held)
    outgrow_on_head(DIED)
    assert head.state_of(0) is TaskState.LEASED
    outgrow_on_head(OUT_OF_MEMORY)
    assert head.state_of(0) is TaskState.FAILED
