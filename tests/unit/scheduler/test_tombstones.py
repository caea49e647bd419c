"""What is known of tasks whose outcomes had to go before their client confirmed them."""

from __future__ import annotations

import pytest

from helpers.scheduling import PREFIX, Bench
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.scheduler import tombstones
from rustray.task.columns import NO_PAYLOADS, PayloadColumn
from rustray.task.frames import Outcome
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
    bench.scheduler.state.keep_until_s = 1e6  # as after a start with a clock that is in doubt
    bench.join(cpus=1)
    for number in range(10):
        bench.submit(1)
        bench.run_all()
        bench.feed(e.OutcomesDelivered(PREFIX, number, 1))
    assert bench.scheduler.task(PREFIX, 0) is None
    assert bench.scheduler.state.tombstones == []
    assert bench.scheduler.has_expired(PREFIX, 0)


def test_what_has_expired_is_told_from_what_never_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """P15: as long as there is room for that."""
    bench = Bench(result_ttl_s=TTL_S, lease_ttl_s=1e6)
    bench.join(cpus=1)
    for _ in range(3):
        bench.submit(1)
        bench.run_all()
    bench.pass_time(TTL_S + 1)
    scheduler = bench.scheduler
    assert scheduler.task(PREFIX, 2) is None
    assert [scheduler.has_expired(PREFIX, number) for number in range(4)] == [True] * 3 + [False]
    assert not scheduler.has_expired(b"another se", 0)
    monkeypatch.setattr(tombstones, "MAX_EXPIRED", 1)
    payloads, other = PayloadColumn.of([b"x"]), b"another se"
    bench.feed(e.TasksSubmitted(other, 5, TaskClass("f"), payloads, is_pushed=False))
    bench.run_all()
    bench.pass_time(TTL_S + 1)
    assert scheduler.has_expired(other, 5)
    assert not scheduler.has_expired(PREFIX, 2)


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


def test_code_that_only_they_would_need_goes() -> None:
    """Regression (review): it filled the room for code, and new functions were refused."""
    bench = Bench(result_memory_bytes=4, result_ttl_s=TTL_S, lease_ttl_s=1e6)
    bench.join(cpus=1)
    for number in range(10):
        digest = bytes([number]) * 32
        bench.feed(e.CodeReceived(digest, b"code"))
        bench.submit(1, TaskClass("f", digest))
        bench.run_all()
    state = bench.scheduler.state
    assert len(state.tombstones) == 6
    assert len(state.code) == len(state.queues) == 4
    assert state.code_bytes == 4 * len(b"code")
    assert hand_in_again(bench, 0) == [c.RejectTasks]  # (of another class)
    again = PayloadColumn.of([b"xxx"])
    told = bench.feed(e.TasksSubmitted(PREFIX, 0, TaskClass("f", bytes(32)), again, True))
    assert [type(one) for one in told] == [c.AcceptTasks, c.ReportUnknown]
    bench.pass_time(TTL_S + 1)
    assert (state.code, state.queues, state.tombstones) == ({}, {}, [])
    assert not +state.code_uses


def test_one_that_has_only_a_part_of_an_outcome_may_hand_in_the_rest() -> None:
    """Regression (review): with one task of four confirmed, all four counted as confirmed."""
    bench = Bench(result_memory_bytes=6, result_ttl_s=TTL_S, lease_ttl_s=1e6)
    worker = bench.join(cpus=4)
    for _ in range(2):
        bench.submit(4)
        for lease, held in list(worker.held.items()):
            bench.end(worker, lease, 0, len(held))
        bench.feed(e.OutcomesDelivered(PREFIX, 0, 1))
    assert hand_in_again(bench, 1) == [c.AcceptTasks, c.ReportUnknown]


def recovered(bench: Bench, number: int, *, age_s: float, is_expired: bool) -> None:
    """Start on the journal of a head whose clock was another one: batches of one ended task."""
    payloads = NO_PAYLOADS if is_expired else PayloadColumn.of([b"r"])
    batches = [
        e.RecoveredBatch(n + 1, PREFIX, n, 1, TaskClass("f"), None, None, True, age_s)
        for n in range(number)
    ]
    outcomes = [
        e.RecoveredOutcome(
            n + 1, n + 1, 0, 1, Outcome(n, TaskState.SUCCEEDED, payloads, "w", 1), is_expired, age_s
        )
        for n in range(number)
    ]  # fmt: skip
    none: tuple[()] = ()
    bench.feed(
        e.StateRecovered(
            tuple(batches), tuple(outcomes), none, none, none, none, none, none, none, 0.0, 2,
            is_clock_sure=False,
        )
    )  # fmt: skip


@pytest.mark.parametrize("is_expired", [True, False])
def test_while_the_clock_is_in_doubt_all_is_remembered(is_expired: bool) -> None:
    """Regression (review): what had no result left was forgotten at once, and ran again."""
    bench = Bench(result_memory_bytes=1, result_ttl_s=TTL_S, lease_ttl_s=1e6)
    recovered(bench, 4, age_s=10 * TTL_S, is_expired=is_expired)
    bench.next_sequence = 100
    bench.join(cpus=1)
    bench.submit(1)
    bench.run_all()
    assert all(bench.scheduler.task(PREFIX, n) is not None for n in range(4))
    bench.pass_time(TTL_S + 1)
    assert all(bench.scheduler.task(PREFIX, n) is None for n in range(4))


def test_what_takes_such_a_value_fails() -> None:
    """The task that made it is known, and its value cannot be had."""
    bench = crowded()
    inputs = PayloadColumn.of([pack_inputs([InputId(PREFIX, 0)])])
    takes = TaskClass("f", has_inputs=True)
    bench.feed(e.TasksSubmitted(PREFIX, 50, takes, PayloadColumn.of([b"x"]), True, inputs=inputs))
    bench.run_all()
    assert bench.ended[50] == [TaskState.FAILED]
    assert 50 not in bench.attempts
