"""What is known of tasks whose outcomes had to go before their client confirmed them."""

from __future__ import annotations

import pytest

from helpers.scheduling import PREFIX, Bench
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.scheduler import tombstones
from rustray.task.columns import PayloadColumn
from rustray.task.inputs import InputId, pack_inputs
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState

TTL_S = 100.0


def crowded() -> Bench:
    """Return a bench that has run ten tasks, with room for the results of a few."""
    bench = Bench(result_memory_bytes=4, result_ttl_s=TTL_S, lease_ttl_s=1e6)
    bench.join(cpus=1)
    for _ in range(10):
        bench.submit(1)
        bench.run_all()
    return bench


def hand_in_again(
    bench: Bench, number: int, argument: bytes = b"xxx", *, is_pushed: bool = True
) -> list[type]:
    """Hand a task in as before; returns what the head answers and does."""
    payloads = PayloadColumn.of([argument])
    told = bench.feed(e.TasksSubmitted(PREFIX, number, TaskClass("f"), payloads, is_pushed))
    return [type(one) for one in told]


def test_what_went_unconfirmed_does_not_run_again() -> None:
    """Regression (simulation, seed 4114): its batch was forgotten, and it was taken for new."""
    bench = crowded()
    assert hand_in_again(bench, 0) == [c.AcceptTasks, c.ReportUnknown]
    bench.run_all()
    assert len(bench.ended[0]) == 1


def test_what_its_client_has_is_forgotten_at_once() -> None:
    """Nobody hands in again what they have confirmed the outcome of."""
    bench = Bench(result_memory_bytes=4, result_ttl_s=TTL_S)
    bench.join(cpus=1)
    for number in range(10):
        bench.submit(1)
        bench.run_all()
        bench.feed(e.OutcomesDelivered(PREFIX, number, 1))
    assert bench.scheduler.task(PREFIX, 0) is None
    assert bench.scheduler.state.tombstones == []


def test_an_idempotency_key_holds_though_its_result_had_to_go() -> None:
    """Other arguments under it are refused, the same do not run twice."""
    bench = Bench(result_memory_bytes=4, result_ttl_s=TTL_S, lease_ttl_s=1e6)
    bench.join(cpus=1)
    for number in range(10):
        hand_in_again(bench, number, is_pushed=False)
        bench.run_all()
    assert hand_in_again(bench, 0, is_pushed=False) == [c.AcceptTasks]
    assert hand_in_again(bench, 0, b"another", is_pushed=False) == [c.RejectTasks]


def test_after_their_time_they_are_forgotten() -> None:
    """A tombstone goes when its outcome would have gone, and wakes the head for it."""
    bench = crowded()
    bench.pass_time(TTL_S - 1)
    assert bench.scheduler.task(PREFIX, 0) is not None
    bench.pass_time(2.0)
    assert bench.scheduler.task(PREFIX, 0) is None
    state = bench.scheduler.state
    assert (state.sessions, state.tombstones, state.tombstone_bytes) == ({}, [], 0)
    assert bench.scheduler.next_deadline() is None or state.timers


def test_there_is_room_for_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it those go whose time would be up first."""
    monkeypatch.setattr(tombstones, "TOMBSTONE_BYTES", 3_500)
    bench = crowded()
    known = [n for n in range(10) if bench.scheduler.task(PREFIX, n) is not None]
    assert known == [3, 4, 5, 6, 7, 8, 9]
    assert bench.scheduler.state.tombstone_bytes <= 3_500


def test_what_takes_such_a_value_fails() -> None:
    """The task that made it is known, and its value cannot be had."""
    bench = crowded()
    inputs = PayloadColumn.of([pack_inputs([InputId(PREFIX, 0)])])
    takes = TaskClass("f", has_inputs=True)
    bench.feed(e.TasksSubmitted(PREFIX, 50, takes, PayloadColumn.of([b"x"]), True, inputs=inputs))
    bench.run_all()
    assert bench.ended[50] == [TaskState.FAILED]
    assert 50 not in bench.attempts
