"""Bounds on what is pending: over the head, of each principal, with a hint and a reason."""

from __future__ import annotations

import pytest

from helpers.scheduling import PREFIX, Bench
from rustray.common.errors import ResourceExhausted
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.task.columns import PayloadColumn
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState


def submit(bench: Bench, principal: str, count: int, size: int = 3) -> tuple[int, list[str]]:
    """Hand in tasks of a principal: (how many were accepted, reasons of refusals)."""
    first = bench.next_sequence
    bench.next_sequence += count
    payloads = PayloadColumn.of([b"x" * size] * count)
    bench.feed(e.TasksSubmitted(PREFIX, first, TaskClass("f"), payloads, True, principal=principal))
    accepted = sum(one.count for one in bench.commands if isinstance(one, c.AcceptTasks))
    return accepted, [one.reason for one in errors(bench)]


def errors(bench: Bench) -> list[ResourceExhausted]:
    """Return what tasks of the last event were refused with."""
    found = [one.error for one in bench.commands if isinstance(one, c.RejectTasks)]
    assert all(isinstance(one, ResourceExhausted) for one in found)
    return found  # type: ignore[return-value]


def test_one_principal_at_its_bound_does_not_hinder_others() -> None:
    """Ann is refused at hers, Bob goes on; when Ann's have ended she goes on too."""
    bench = Bench(principal_pending_tasks=5)
    assert submit(bench, "ann", 4) == (4, [])
    assert submit(bench, "ann", 4) == (1, ["PRINCIPAL_PENDING_TASKS"])
    assert submit(bench, "bob", 5) == (5, [])
    assert submit(bench, "ann", 1) == (0, ["PRINCIPAL_PENDING_TASKS"])
    bench.cancel(0, 3)
    assert submit(bench, "ann", 4) == (3, ["PRINCIPAL_PENDING_TASKS"])
    counters = bench.scheduler.state.counters
    assert counters["tasks_rejected_principal_pending_tasks"] == 3 + 1 + 1
    assert counters["tasks_rejected_resource_exhausted"] == counters["tasks_rejected"] == 5


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_pending_tasks": 4}, "PENDING_TASKS"),
        ({"principal_pending_tasks": 4}, "PRINCIPAL_PENDING_TASKS"),
        ({"max_pending_bytes": 49}, "PENDING_BYTES"),
        ({"principal_pending_bytes": 49}, "PRINCIPAL_PENDING_BYTES"),
    ],
)
def test_what_fits_is_accepted(settings: dict[str, int], reason: str) -> None:
    """From the first task on, however big the submit; the message names setting and hint."""
    bench = Bench(**settings)
    assert submit(bench, "ann", 10, 10) == (4, [reason])
    (error,) = errors(bench)
    assert error.retry_after_s > 0
    assert "[scheduler]" in str(error)
    assert submit(bench, "ann", 1, 10) == (0, [reason])
    assert [bench.state_of(number) for number in range(4)] == [TaskState.QUEUED] * 4


def test_the_hint_follows_the_pace() -> None:
    """At ten ends a second, the room for ten more takes a second; without a pace nobody knows."""
    bench = Bench(max_pending_tasks=40)
    worker = bench.join(cpus=1)
    submit(bench, "ann", 40)
    submit(bench, "ann", 10)
    assert errors(bench)[0].retry_after_s == 1.0
    for _ in range(20):
        bench.pass_time(0.1)
        bench.heartbeat(worker)
        bench.finish_one(worker)
    submit(bench, "ann", 30)
    assert errors(bench)[0].retry_after_s == pytest.approx(1.0)
    submit(bench, "ann", 20)
    assert errors(bench)[0].retry_after_s == pytest.approx(2.0)


def test_nothing_is_left_of_a_principal_whose_tasks_have_ended() -> None:
    """A head that a thousand tokens use remembers those that have something pending."""
    bench = Bench()
    bench.join(cpus=4)
    for number in range(20):
        submit(bench, f"user-{number}", 2)
    assert len(bench.scheduler.state.principals) == 20
    bench.run_all()
    assert bench.scheduler.state.principals == {}
