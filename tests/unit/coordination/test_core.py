"""The coordination core, case by case."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rustray.common.errors import (
    AuthorizationError,
    CommunicationError,
    ConfigError,
    LeaseLost,
    PayloadError,
    ResourceExhausted,
)
from rustray.coordination.core import DOUBT_S, LATE_S
from rustray.coordination.messages import (
    Action,
    Answer,
    Asked,
    HolderEnded,
    HolderSeen,
    Kind,
    TimePassed,
    Verdict,
)
from rustray.coordination.state import Settings
from unit.coordination.bench import Bench, check, request

A, B, C = b"a", b"b", b"c"


@pytest.fixture
def bench() -> Bench:
    return Bench()


def acquire(bench: Bench, holder: bytes, number: int, **fields: Any) -> Any:
    return bench.ask(request(holder, number, Action.ACQUIRE, wait_s=None, **fields))


def release(bench: Bench, holder: bytes, number: int, fence: int, **fields: Any) -> Any:
    return bench.ask(request(holder, number, Action.RELEASE, fence=fence, **fields))


def put(bench: Bench, holder: bytes, number: int, *items: bytes, **fields: Any) -> Any:
    return bench.ask(request(holder, number, Action.PUT, Kind.QUEUE, items=items, **fields))


def get(bench: Bench, holder: bytes, number: int, count: int = 1, **fields: Any) -> Any:
    fields.setdefault("wait_s", None)
    return bench.ask(request(holder, number, Action.GET, Kind.QUEUE, count=count, **fields))


# ── Locks and semaphores ────────────────────────────────────────────────────────────────────────


def test_a_lock_has_one_holder_and_the_next_one_a_larger_fence(bench: Bench) -> None:
    """In the order in which they came."""
    first = acquire(bench, A, 1)
    assert acquire(bench, B, 1) is None
    assert acquire(bench, C, 1) is None
    release(bench, A, 2, first.fence)
    second = bench.replies[B, 1]
    assert isinstance(second, Answer)
    assert second.fence > first.fence
    assert (C, 1) not in bench.replies
    check(bench.state)


def test_a_lock_is_no_one_s_after_a_try_that_did_not_wait(bench: Bench) -> None:
    """And a try leaves nothing behind."""
    held = acquire(bench, A, 1)
    busy = bench.ask(request(B, 1, Action.ACQUIRE, wait_s=0.0))
    assert busy.verdict is Verdict.BUSY
    release(bench, A, 2, held.fence)
    assert not bench.state.things


def test_a_wait_ends_at_its_time_and_the_next_in_line_moves_up(bench: Bench) -> None:
    """A permit that was free for none but the first goes on to others."""
    held = acquire(bench, A, 1)
    bench.ask(request(B, 1, Action.ACQUIRE, wait_s=2.0))
    acquire(bench, C, 1)
    assert bench.core.next_deadline() == 2.0
    bench.now = 2.0
    bench.feed(TimePassed())
    assert bench.replies[B, 1] == Answer(Verdict.BUSY, lease_s=10.0)
    release(bench, A, 2, held.fence)
    assert bench.replies[C, 1].fence > held.fence  # type: ignore[union-attr]


def test_a_silent_holder_loses_all_and_is_told_when_it_is_back(bench: Bench) -> None:
    """Its old fence is good for nothing any more."""
    held = acquire(bench, A, 1)
    term = bench.state.holders[A].term
    acquire(bench, B, 1)
    bench.now = 9.9
    bench.ask(request(B, 2, Action.RENEW, apart=True))
    bench.now = 10.0
    bench.feed(TimePassed())
    assert bench.replies[B, 1].fence > held.fence  # type: ignore[union-attr]
    assert isinstance(release(bench, A, 2, held.fence), LeaseLost)
    assert isinstance(bench.ask(request(A, 3, Action.CHECK, fence=held.fence)), LeaseLost)
    assert isinstance(bench.ask(request(A, 4, Action.RENEW, term=term)), LeaseLost)


def test_a_renewal_keeps_everything_of_a_holder(bench: Bench) -> None:
    """One message, however much it holds."""
    fences = tuple(acquire(bench, A, n, name=f"n{n}").fence for n in range(1, 50))
    for step in range(1, 20):
        bench.now = step * 9.0
        answer = bench.ask(request(A, 50 + step, Action.RENEW, fences=fences))
        assert answer.verdict is Verdict.DONE
    assert len(bench.state.holders[A].grants) == 49


def test_a_hold_that_its_holder_does_not_know_of_is_freed_by_a_renewal(bench: Bench) -> None:
    """It had the answer, and has given up: nobody would ever release it."""
    acquire(bench, A, 1)
    acquire(bench, B, 1)
    bench.ask(request(A, 2, Action.RENEW, pending=(1,)))  # its answer may be on its way
    assert (B, 1) not in bench.replies
    bench.ask(request(A, 3, Action.RENEW))
    assert (B, 1) in bench.replies


def test_a_head_that_stood_still_waits_once_more_before_it_frees(bench: Bench) -> None:
    """What holders sent meanwhile may be unread."""
    held = acquire(bench, A, 1)
    bench.now = 10.0 + LATE_S + 50.0
    bench.feed(TimePassed())
    answer = bench.ask(request(A, 2, Action.CHECK, fence=held.fence))
    assert answer.verdict is Verdict.DONE
    bench.now += 10.0 + LATE_S + 1.0
    bench.feed(TimePassed())
    bench.now += DOUBT_S
    bench.feed(TimePassed())
    assert not bench.state.holders


def test_the_same_request_again_does_nothing_twice(bench: Bench) -> None:
    """Not for locks, releases, items put or items taken."""
    asked = request(A, 1, Action.ACQUIRE, Kind.SEMAPHORE, limit=3, wait_s=None, apart=True)
    assert bench.ask(asked) == bench.ask(asked)
    assert len(bench.state.holders[A].grants) == 1
    putting = request(A, 2, Action.PUT, Kind.QUEUE, items=(b"1",), apart=True)
    assert bench.ask(putting) == bench.ask(putting)
    taking = request(A, 3, Action.GET, Kind.QUEUE, count=5, apart=True)
    assert bench.ask(taking).items == (b"1",)
    assert bench.ask(taking).items == (b"1",)
    bench.ask(replace(putting, number=9, action=Action.COUNT))
    assert isinstance(bench.ask(putting), CommunicationError)  # it is one of before in its lane
    check(bench.state)


def test_a_request_that_was_taken_back_before_it_came_does_nothing(bench: Bench) -> None:
    """The abandon may overtake it."""
    bench.ask(request(A, 2, Action.ABANDON, fence=1, count=0, apart=True))
    late = bench.ask(request(A, 1, Action.ACQUIRE, wait_s=None))
    assert isinstance(late, CommunicationError)
    assert not bench.state.holders[A].grants


def test_taking_back_leaves_the_line_or_gives_back(bench: Bench) -> None:
    """A lock that came too late, and items, go to the next ones."""
    acquire(bench, A, 1)
    acquire(bench, B, 1)
    bench.ask(request(A, 2, Action.ABANDON, fence=1, count=0, apart=True))
    assert bench.replies[B, 1].verdict is Verdict.DONE  # type: ignore[union-attr]
    acquire(bench, C, 1)
    bench.ask(request(C, 2, Action.ABANDON, fence=1, count=0, apart=True))
    assert bench.replies[C, 1].verdict is Verdict.BUSY  # type: ignore[union-attr]
    put(bench, A, 3, b"1", b"2")
    get(bench, B, 2, apart=True)
    bench.ask(request(B, 3, Action.ABANDON, fence=2, count=2))
    assert get(bench, C, 3, 2).items == (b"1", b"2")
    check(bench.state)


def test_nothing_of_a_term_that_is_over_does_anything(bench: Bench) -> None:
    """However late it comes, and whether or not the holder has begun another one."""
    acquire(bench, A, 1)
    late = request(A, 2, Action.PUT, Kind.QUEUE, items=(b"1",), term=bench.state.holders[A].term)
    bench.now = 10.0
    assert isinstance(bench.ask(late), LeaseLost)
    assert not bench.state.holders
    acquire(bench, A, 3)
    assert isinstance(bench.ask(late), LeaseLost)
    assert not isinstance(bench.ask(replace(late, term=0)), LeaseLost)


def test_a_holder_with_a_lease_begins_with_a_renewal(bench: Bench) -> None:
    """Else what comes late of a term that is over would begin another one."""
    bench.feed(Asked(request(A, 1, Action.ACQUIRE), "user:a"))
    assert isinstance(bench.replies[A, 1], ConfigError)
    first = bench.ask(request(A, 2, Action.RENEW))
    assert first.term
    assert bench.ask(request(A, 3, Action.RENEW)).term == first.term


def test_a_semaphore_s_permits_are_agreed_on_while_it_is_in_use(bench: Bench) -> None:
    """Afterwards it may be another number."""
    held = acquire(bench, A, 1, kind=Kind.SEMAPHORE, limit=2)
    assert isinstance(acquire(bench, B, 1, kind=Kind.SEMAPHORE, limit=3), ConfigError)
    free = bench.ask(request(B, 2, Action.COUNT, Kind.SEMAPHORE, limit=9))
    assert free.count == 1
    release(bench, A, 2, held.fence, kind=Kind.SEMAPHORE)
    assert acquire(bench, B, 3, kind=Kind.SEMAPHORE, limit=3).verdict is Verdict.DONE


def test_names_of_owners_namespaces_and_kinds_are_apart(bench: Bench) -> None:
    """The same name is another thing there."""
    acquire(bench, A, 1)
    assert acquire(bench, B, 1, space="other").verdict is Verdict.DONE
    assert acquire(bench, C, 1, kind=Kind.SEMAPHORE, limit=1).verdict is Verdict.DONE
    other = bench.ask(request(b"d", 1, Action.ACQUIRE, wait_s=None), "user:b")
    assert other.verdict is Verdict.DONE


def test_a_holder_is_its_owner_s(bench: Bench) -> None:
    """Another token cannot speak for it, nor a task."""
    held = acquire(bench, A, 1)
    asked = request(A, 2, Action.RELEASE, fence=held.fence)
    assert isinstance(bench.ask(asked, "user:b"), AuthorizationError)
    assert isinstance(bench.ask(asked, has_lease=False), AuthorizationError)
    assert held.fence in bench.state.holders[A].grants


def test_a_task_holds_until_it_is_said_to_have_ended(bench: Bench) -> None:
    """It has no lease to renew."""
    bench.ask(request(A, 1, Action.ACQUIRE, wait_s=None), has_lease=False)
    acquire(bench, B, 1)
    bench.now = 5.0
    for step in range(20):
        bench.now += 9.0
        bench.ask(request(B, 2 + step, Action.RENEW, apart=True))
    assert (B, 1) not in bench.replies
    bench.feed(HolderEnded(A))
    assert bench.replies[B, 1].verdict is Verdict.DONE  # type: ignore[union-attr]


def test_an_end_frees_at_once(bench: Bench) -> None:
    """Locks, lines, and items that were never confirmed."""
    acquire(bench, A, 1)
    acquire(bench, B, 1)
    put(bench, A, 2, b"1", b"2")
    get(bench, A, 3, apart=True)
    get(bench, A, 4, apart=True)
    bench.ask(request(A, 5, Action.END, taken=(3,)))
    assert A not in bench.state.holders
    assert bench.replies[B, 1].verdict is Verdict.DONE  # type: ignore[union-attr]
    assert get(bench, C, 1, 5).items == (b"2",)
    check(bench.state)


# ── Events ──────────────────────────────────────────────────────────────────────────────────────


def test_an_event_wakes_all_and_stays_set_without_its_setter(bench: Bench) -> None:
    """Until somebody clears it."""
    for holder in (A, B):
        assert bench.ask(request(holder, 1, Action.AWAIT, Kind.EVENT, wait_s=None)) is None
    bench.ask(request(C, 1, Action.SET, Kind.EVENT))
    assert {bench.replies[h, 1].count for h in (A, B)} == {1}  # type: ignore[union-attr]
    bench.now = 100.0
    bench.feed(TimePassed())
    bench.now = 200.0
    bench.feed(TimePassed())
    assert not bench.state.holders
    assert bench.ask(request(A, 9, Action.COUNT, Kind.EVENT)).count == 1
    bench.ask(request(A, 10, Action.CLEAR, Kind.EVENT))
    assert not bench.state.things
    assert bench.ask(request(A, 11, Action.AWAIT, Kind.EVENT, wait_s=0.0)).verdict is Verdict.BUSY


# ── Queues ──────────────────────────────────────────────────────────────────────────────────────


def test_items_come_in_order_each_to_one(bench: Bench) -> None:
    """Over chunks, and as many as are asked for."""
    put(bench, A, 1, b"1", b"2", b"3")
    put(bench, A, 2, b"4")
    assert get(bench, B, 1, 2).items == (b"1", b"2")
    assert get(bench, C, 1, 10).items == (b"3", b"4")
    assert get(bench, C, 2) is None
    put(bench, A, 3, b"5", b"6")
    assert bench.replies[C, 2].items == (b"5",)  # type: ignore[union-attr]
    check(bench.state)


def test_a_full_queue_has_putters_wait_in_order(bench: Bench) -> None:
    """A small one does not overtake a large one that was there before."""
    put(bench, A, 1, b"1", b"2", limit=2)
    assert put(bench, B, 1, b"3", b"4", limit=2, wait_s=None) is None
    assert put(bench, C, 1, b"5", limit=2, wait_s=None) is None
    assert put(bench, A, 2, b"9", limit=2).verdict is Verdict.BUSY
    assert get(bench, A, 3).items == (b"1",)
    assert (B, 1) not in bench.replies
    assert get(bench, A, 4).items == (b"2",)
    assert bench.replies[B, 1].verdict is Verdict.DONE  # type: ignore[union-attr]
    assert get(bench, A, 5, 2).items == (b"3", b"4")
    assert bench.replies[C, 1].verdict is Verdict.DONE  # type: ignore[union-attr]
    check(bench.state)


def test_what_can_never_fit_is_refused(bench: Bench) -> None:
    """So is another maxsize while it is in use."""
    assert isinstance(put(bench, A, 1, b"1", b"2", limit=1), PayloadError)
    put(bench, A, 2, b"1", limit=1)
    assert isinstance(put(bench, B, 1, b"2", limit=5), ConfigError)


def test_items_of_a_taker_that_died_come_back_to_the_front(bench: Bench) -> None:
    """Those that it has confirmed do not."""
    put(bench, A, 1, *(b"%d" % n for n in range(6)))
    get(bench, B, 1, 2)
    get(bench, B, 2, 2)  # confirms those before
    bench.feed(HolderEnded(B))
    assert get(bench, C, 1, 10).items == (b"2", b"3", b"4", b"5")


def test_an_answer_is_bounded_but_for_one_large_item() -> None:
    """The rest comes with the next one."""
    bench = Bench(Settings(max_item_bytes=8 << 20))
    small, large = b"x" * (3 << 20), b"y" * (6 << 20)
    put(bench, A, 1, small, small)
    put(bench, A, 2, large)
    assert get(bench, B, 1, 10).items == (small,)
    assert get(bench, B, 2, 10).items == (small,)
    assert get(bench, B, 3, 10).items == (large,)


# ── Limits and nonsense ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (Settings(max_names=2), "COORDINATION_NAMES"),
        (Settings(max_held=2), "COORDINATION_HELD"),
        (Settings(max_holders=2), "COORDINATION_HOLDERS"),
    ],
)
def test_each_owner_has_its_bounds(settings: Settings, reason: str) -> None:
    """They are no other owner's."""
    bench = Bench(settings)
    outcomes = [acquire(bench, b"%d" % n, 1, name=f"n{n}") for n in range(4)]
    assert [type(each) for each in outcomes] == [Answer, Answer, *[ResourceExhausted] * 2]
    assert outcomes[2].reason == reason
    other = bench.ask(request(b"z", 1, Action.ACQUIRE, wait_s=None), "user:b")
    assert other.verdict is Verdict.DONE
    check(bench.state)


def test_waits_bytes_and_open_calls_are_bounded() -> None:
    """And a holder with too many calls can still renew and take them back."""
    bench = Bench(Settings(max_waits=2, max_bytes=10, max_lanes=3))
    acquire(bench, A, 1)
    waits = [acquire(bench, h, 1) for h in (B, C, b"d")]
    assert waits[:2] == [None, None]
    assert waits[2].reason == "COORDINATION_WAITS"
    assert put(bench, A, 2, b"123456").verdict is Verdict.DONE
    assert put(bench, A, 3, b"123456").reason == "COORDINATION_BYTES"
    for number in range(2, 4):
        assert put(bench, B, number, b"", apart=True, name="q").verdict is Verdict.DONE
    assert put(bench, B, 4, b"", apart=True).reason == "COORDINATION_LANES"
    assert put(bench, B, 5, b"", lane=3, name="q").verdict is Verdict.DONE  # a lane of before
    assert bench.ask(request(B, 6, Action.RENEW, apart=True)).verdict is Verdict.DONE
    bench.ask(request(B, 7, Action.ABANDON, fence=1, count=0, apart=True))
    assert bench.replies[B, 1].verdict is Verdict.BUSY  # type: ignore[union-attr]
    check(bench.state)


def test_a_call_that_waits_long_does_not_keep_the_answers_of_others(bench: Bench) -> None:
    """Each lane confirms by itself: nothing piles up, in memory or in the journal."""
    acquire(bench, A, 1)
    acquire(bench, B, 1)
    for number in range(2, 3_000):
        put(bench, B, number, b"x", lane=1)
        get(bench, B, number + 10_000, lane=2)
    assert len(bench.rows) < 10
    assert len(bench.state.holders[B].lanes) == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "x" * 257},
        {"name": "a\nb"},
        {"space": "\x00"},
        {"number": 0},
        {"lane": 1 << 63},
        {"number": 1 << 63},
        {"holder": b""},
        {"holder": b"x" * 65},
        {"wait_s": float("nan")},
        {"wait_s": float("inf")},
        {"wait_s": -1.0},
        {"kind": Kind.SEMAPHORE, "limit": 0},
        {"kind": Kind.SEMAPHORE, "limit": 1 << 40},
        {"kind": Kind.EVENT},
        {"kind": Kind.QUEUE},
        {"kind": Kind.QUEUE, "action": Action.PUT},
        {"kind": Kind.QUEUE, "action": Action.PUT, "items": (b"",) * 10_001},
        {"kind": Kind.QUEUE, "action": Action.PUT, "items": (b"x" * (9 << 20),)},
        {"kind": Kind.QUEUE, "action": Action.PUT, "items": (b"x" * (7 << 20),) * 3},
        {"kind": Kind.QUEUE, "action": Action.GET, "count": 0},
        {"kind": Kind.QUEUE, "action": Action.GET, "count": 10_001},
    ],
)
def test_nonsense_is_refused_and_changes_nothing(bench: Bench, fields: dict[str, Any]) -> None:
    """With words that say what."""
    asked = replace(request(A, 1, Action.ACQUIRE), **fields)
    outcome = bench.ask(asked)
    assert isinstance(outcome, ConfigError), outcome
    assert "not valid" in str(outcome)
    assert not bench.state.things
    assert not bench.rows


# ── Restarts ────────────────────────────────────────────────────────────────────────────────────


def test_what_is_held_and_queued_outlives_the_head(bench: Bench) -> None:
    """Fences go on above those of before; who does not come back loses its holds."""
    held = acquire(bench, A, 1)
    acquire(bench, B, 1, name="y")
    put(bench, A, 2, b"1", b"2", b"3", limit=7)
    get(bench, B, 2)
    bench.ask(request(A, 3, Action.SET, Kind.EVENT))
    bench.restart()
    assert acquire(bench, C, 1) is None
    assert bench.ask(request(A, 4, Action.CHECK, fence=held.fence)).fence == held.fence
    release(bench, A, 5, held.fence)
    assert bench.replies[C, 1].fence > held.fence  # type: ignore[union-attr]
    assert get(bench, C, 2, 9).items == (b"2", b"3")
    bench.now = 9.0
    fence = bench.replies[C, 1].fence  # type: ignore[union-attr]
    bench.ask(request(C, 3, Action.RENEW, fences=(fence,)))
    bench.now = 10.0
    assert get(bench, C, 4).items == (b"1",)  # of B, which did not come back
    check(bench.state)


def test_an_answer_that_got_lost_with_the_head_comes_from_the_next_one(bench: Bench) -> None:
    """So nothing is done twice over a restart either."""
    putting = request(A, 1, Action.PUT, Kind.QUEUE, items=(b"1",))
    bench.ask(putting)
    bench.restart()
    assert bench.ask(putting).verdict is Verdict.DONE
    assert get(bench, B, 1, 9).items == (b"1",)
    check(bench.state)


def test_a_queue_s_size_is_known_after_a_restart_also_if_items_came_back_to_it(
    bench: Bench,
) -> None:
    """Those that came back to an empty queue know of no size; those put since do."""
    put(bench, A, 1, b"1", limit=3)
    get(bench, B, 1)
    bench.feed(HolderEnded(B))
    put(bench, A, 2, b"2", limit=3)
    bench.restart()
    assert isinstance(put(bench, A, 3, b"3", limit=4), ConfigError)


def test_an_attempt_that_goes_on_over_a_restart_keeps_what_it_holds(bench: Bench) -> None:
    """One whose worker does not come back does not."""
    for holder, name in ((A, "x"), (B, "y")):
        bench.ask(request(holder, 1, Action.ACQUIRE, wait_s=None, name=name), has_lease=False)
    bench.restart()
    bench.feed(HolderSeen(A))
    bench.now = 10.0
    bench.feed(TimePassed())
    assert list(bench.state.holders) == [A]
    bench.now = 1e6
    bench.feed(TimePassed())
    assert list(bench.state.holders) == [A]
