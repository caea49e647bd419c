"""The chaos checker goes red for every invariant, each with a hand-made bad history."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from chaos.checker import Verdict, check
from chaos.history import Record, digest
from chaos.runs import Rules

_RULES = Rules(lease_ttl_s=4.0, heartbeat_s=0.5)
_ID = "00" * 16
_OTHER = "11" * 16
_GOOD = digest("good")


def _at(t: float, kind: str, **fields: Any) -> Record:
    return {"t": t, "k": kind, **fields}


def _submit(t: float = 0.0, *, retries: int = 3, **more: Any) -> Record:
    return _at(t, "submit", ids=[_ID], retries=retries, key="", **more)


def _ack(t: float = 0.1, *, key: str = "", task_id: str = _ID) -> Record:
    return _at(t, "ack", ids=[task_id], key=key)


def _start(t: float, attempt: int, worker: str = "worker-1.1", pid: int = 7) -> Record:
    return _at(t, "start", id=_ID, a=attempt, l=100 + attempt, pid=pid, w=worker)


def _finish(t: float, attempt: int, value: str = _GOOD) -> Record:
    return _at(t, "finish", id=_ID, a=attempt, l=100 + attempt, hash=value)


def _final(state: str = "SUCCEEDED", value: str = _GOOD, t: float = 90.0) -> Record:
    return _at(t, "final", id=_ID, state=state, hash=value, attempts=1)


def _result(t: float, state: str = "SUCCEEDED", value: str = _GOOD) -> Record:
    return _at(t, "result", id=_ID, state=state, hash=value, attempts=1)


def _events(t: float, *events: tuple[int, str, int], stream: str = "s") -> Record:
    return _at(t, "events", stream=stream, ev=[[r, _ID, state, a] for r, state, a in events])


def _window(begin: float, end: float, tail: float = 1.0) -> Record:
    return _at(begin, "window", w="worker-1.1", end=end, tail=tail)


def _judge(records: Iterable[Record]) -> Verdict:
    return check(sorted(records, key=lambda record: float(record["t"])), _RULES)


def _found(*records: Record) -> set[str]:
    return {violation.invariant for violation in _judge(records).violations}


_ONE_RUN = (_submit(), _ack(), _start(1.0, 1), _finish(2.0, 1))
_LOST = (_submit(), _ack(), _start(1.0, 1), _start(9.0, 2, "worker-2.1"), _finish(9.5, 2))


def test_a_good_history_is_good() -> None:
    """One run, one outcome, told to everybody: nothing to say, and the figures count it."""
    events = _events(3.0, (1, "QUEUED", 0), (2, "RUNNING", 1), (3, "SUCCEEDED", 1))
    verdict = _judge([*_ONE_RUN, _result(2.5), events, _final()])
    assert verdict.violations == []
    assert verdict.figures["tasks acked"] == verdict.figures["tasks ended"] == 1
    assert verdict.figures["re-runs"] == 0


def test_a_worker_that_dies_explains_a_second_run() -> None:
    """A re-run after a kill, a lost lease or a dead executor is as promised, and is counted."""
    for reason in (
        _at(3.0, "down", w="worker-1.1"),
        _at(3.0, "exec_down", w="worker-1.1", pid=7),
        _at(3.0, "crash", id=_ID, a=1, l=101, pid=7, w="worker-1.1"),
        _window(2.0, 8.0),
    ):
        verdict = _judge([*_LOST, reason, _final()])
        assert verdict.violations == []
        assert verdict.figures["re-runs"] == 1


@pytest.mark.parametrize(
    ("invariant", "records"),
    [
        pytest.param("I0", [_at(1.0, "problem", text="a traceback")], id="problem"),
        pytest.param("I1", [_submit(), _ack(), _final("", "")], id="acked and unknown"),
        pytest.param("I1", [*_ONE_RUN, _final("RUNNING", "")], id="never ends"),
        pytest.param("I1", [*_ONE_RUN], id="nobody asked"),
        pytest.param("I1", [*_ONE_RUN, _result(3.0), _final("", "")], id="ended, then unknown"),
        pytest.param("I1", [_start(1.0, 1), _finish(2.0, 1)], id="nobody handed it in"),
        pytest.param(
            "I1",
            [_submit(), _at(0.1, "refused", ids=[_ID], code="X"), _start(1.0, 1)],
            id="refused and run",
        ),
        pytest.param("I2", [*_ONE_RUN, _result(3.0, "FAILED"), _final()], id="two states"),
        pytest.param("I2", [*_ONE_RUN, _result(3.0, value="other"), _final()], id="two results"),
        pytest.param(
            "I2",
            [*_ONE_RUN, _events(3.0, (1, "SUCCEEDED", 1), (2, "SUCCEEDED", 1)), _final()],
            id="two ends",
        ),
        pytest.param(
            "I2", [*_ONE_RUN, _events(3.0, (1, "FAILED", 1)), _final()], id="event and answer"
        ),
        pytest.param(
            "I2", [*_ONE_RUN, _at(3.0, "value", id=_ID, hash="other"), _final()], id="reference"
        ),
        pytest.param("I3", [_submit(), _ack(), _final()], id="success without a run"),
        pytest.param("I3", [*_LOST, _final()], id="run again for nothing"),
        pytest.param("I3", [*_LOST, _window(2.0, 3.0), _final()], id="a short freeze is no reason"),
        pytest.param(
            "I3",
            [*_LOST, _at(30.0, "down", w="worker-1.1"), _final()],
            id="a death after the re-run is no reason",
        ),
        pytest.param(
            "I3",
            [*_LOST, _at(3.0, "down", w="worker-3.1"), _final()],
            id="another worker's death is no reason",
        ),
        pytest.param(
            "I3",
            [*_LOST, _at(3.0, "down", w="head"), _final()],
            id="a head's death after the ack is no reason",
        ),
        pytest.param(
            "I3",
            [*_ONE_RUN, _start(9.0, 2), _at(5.0, "down", w="worker-1.1", clean=True), _final()],
            id="finished before an orderly stop",
        ),
        pytest.param(
            "I3",
            [_submit(retries=0), *_LOST[1:], _at(3.0, "down", w="worker-1.1"), _final()],
            id="at most once, and run twice",
        ),
        pytest.param(
            "I3",
            [_submit(retries=1), _ack(), _at(99.0, "down", w="worker-1.1"), _final()]
            + [_start(20.0 * n, n) for n in range(1, 4)]
            + [
                _at(20.0 * n + 1, "crash", id=_ID, a=n, l=100 + n, pid=7, w="worker-1.1")
                for n in range(1, 3)
            ]
            + [_finish(61.0, 3)],
            id="more runs than retries",
        ),
        pytest.param(
            "I3",
            [*_ONE_RUN, _at(1.5, "start", id=_ID, a=1, l=101, pid=9, w="worker-1.1"), _final()],
            id="a lease run twice",
        ),
        pytest.param(
            "I3",
            [
                *_LOST,
                _at(3.0, "down", w="worker-1.1"),
                _at(10.0, "down", w="worker-2.1"),
                _at(12.0, "start", id=_ID, a=1, l=200, pid=9, w="worker-3.1"),
                _final(),
            ],
            id="attempts fall",
        ),
        pytest.param("I3", [_submit(), _ack(), _finish(2.0, 1), _final()], id="ended unbegun"),
        pytest.param("I4", [*_ONE_RUN, _final(value="forged")], id="a result of nobody"),
        pytest.param(
            "I5",
            [
                _submit(),
                _ack(),
                _at(0.5, "cancel", id=_ID, state="CANCELLED"),
                _start(1.0, 1),
                _final("CANCELLED", ""),
            ],
            id="start after a cancel",
        ),
        pytest.param(
            "I5",
            [
                _submit(),
                _ack(),
                _at(0.5, "cancel", id=_ID, state="CANCELLING"),
                _start(9.0, 1),
                _final("CANCELLED", ""),
            ],
            id="start long after a cancel was acked",
        ),
        pytest.param(
            "I5",
            [*_LOST, _result(5.0), _at(3.0, "down", w="worker-1.1"), _final()],
            id="start after the end was told",
        ),
        pytest.param("I6", [_ack(key="k"), _ack(key="k", task_id=_OTHER)], id="one key, two tasks"),
        pytest.param(
            "I7",
            [*_LOST, _finish(12.0, 1), _at(3.0, "exec_down", w="worker-9.1", pid=1), _final()],
            id="two at a time",
        ),
        pytest.param(
            "I7",
            [*_LOST, _finish(12.0, 1), _at(30.0, "down", w="worker-1.1"), _final()],
            id="the first one ran on",
        ),
        pytest.param(
            "I7",
            [
                _submit(exclusive=True),
                _ack(),
                _at(0.2, "down", w="head"),
                _start(1.0, 1),
                _start(3.0, 2, "worker-2.1"),
                _finish(6.0, 1),
                _finish(6.0, 2),
                _final(),
            ],
            id="exclusive, two at a time",
        ),
        pytest.param(
            "I8", [_events(1.0, (1, "QUEUED", 0), (3, "RUNNING", 1))], id="a gap in the events"
        ),
        pytest.param(
            "I8",
            [_events(1.0, (1, "QUEUED", 0)), _events(2.0, (1, "QUEUED", 0))],
            id="an event told twice",
        ),
        pytest.param(
            "I8",
            [_events(1.0, (1, "QUEUED", 0)), _events(2.0, (1, "RUNNING", 1), stream="t")],
            id="two subscribers, two stories",
        ),
        pytest.param(
            "I8",
            [*_ONE_RUN, _events(1.0, (1, "QUEUED", 0), (2, "RUNNING", 1)), _final()],
            id="an end that a subscriber was not told",
        ),
        pytest.param(
            "I8",
            [
                _at(0.5, "down", w="head"),
                _events(1.0, (1, "QUEUED", 0), (900, "RUNNING", 1), (990, "SUCCEEDED", 1)),
            ],
            id="more jumps than heads",
        ),
        pytest.param(
            "I8",
            [_events(1.0, (1, "SUCCEEDED", 1), (2, "RUNNING", 2))],
            id="an event after the end",
        ),
    ],
)
def test_a_broken_promise_is_found(invariant: str, records: list[Record]) -> None:
    """Each bad history is red, by the invariant that it breaks."""
    assert invariant in _found(*records)


def test_events_of_earlier_heads_may_be_told_again() -> None:
    """Regression: a subscriber that began late in a soak was told of tasks from before a kill."""
    events = _events(3.0, (1, "QUEUED", 0), (900, "RUNNING", 1), (901, "SUCCEEDED", 1))
    records = [*_ONE_RUN, _result(2.5), events, _final()]
    assert {one.invariant for one in check(records, _RULES).violations} == {"I8"}
    assert check(records, replace(_RULES, heads_before=1)).violations == []


def test_what_was_made_in_an_earlier_round_is_not_judged_again() -> None:
    """Regression: a subscriber that began anew was told of values that an earlier round remade."""
    states = ("RUNNING", "SUCCEEDED", "QUEUED", "RUNNING", "SUCCEEDED")
    events = _events(3.0, *((n, state, 1 + n // 3) for n, state in enumerate(states)))
    assert {one.invariant for one in check([events], _RULES).violations} >= {"I2", "I8"}
    later = replace(_RULES, is_later_round=True)
    assert check([events], later).violations == []


def test_an_exception_explains_a_second_run_only_where_that_was_asked_for() -> None:
    """A task that raises is run again with retry_exceptions, and is not without."""
    raised = _at(2.0, "raised", id=_ID, a=1, l=101)
    runs = [_start(1.0, 1), raised, _start(4.0, 2, "worker-2.1"), _finish(4.5, 2)]
    assert _found(_submit(again=True), _ack(), *runs, _final()) == set()
    assert _found(_submit(), _ack(), *runs, _final()) == {"I3"}


def test_a_key_whose_client_died_excuses_one_unknown_task() -> None:
    """The id of a key is known by its ack; without one, one task of nobody may be it."""
    untold = _at(0.0, "submit", ids=[], retries=3, key="k")
    assert _found(untold, _start(1.0, 1), _finish(2.0, 1)) == set()
    assert _found(untold, _ack(key="k", task_id=_OTHER), _start(1.0, 1)) >= {"I1"}


def test_what_was_never_acked_may_be_unknown() -> None:
    """A client that dies while it hands a task in knows nothing of it; nor need the head."""
    assert _found(_submit(), _final("", "")) == set()


def test_what_was_not_accepted_may_run_and_run_again() -> None:
    """A head that dies before its ack may have handed the task out; it comes again by its id."""
    runs = [_start(1.0, 1), _at(2.0, "down", w="head"), _start(4.0, 2, "worker-2.1")]
    rest = [_finish(4.5, 2), _final()]
    assert _found(_submit(), _ack(3.5), *runs, *rest) == set()
    assert _found(_submit(), _ack(0.1), *runs, *rest) == {"I3", "I7"}


def test_a_zombie_may_start_what_was_taken_from_it() -> None:
    """A worker that was frozen beyond its lease begins what it held, and the fence drops it."""
    frozen = [_window(2.0, 12.0), _start(12.1, 1), _finish(13.0, 1)]
    others = [_submit(), _ack(), _start(9.0, 2, "worker-2.1"), _finish(9.5, 2), _result(10.0)]
    verdict = _judge([*frozen, *others, _final()])
    assert verdict.violations == []
    assert verdict.figures["starts on a worker that had lost its lease"] == 1


def test_what_a_zombie_starts_is_none_of_the_retries() -> None:
    """Regression: an attempt that was taken back unbegun began on a worker that woke up again."""
    crash = _at(5.5, "crash", id=_ID, a=2, l=102, pid=8, w="worker-2.1")
    later = [_start(5.0, 2, "worker-2.1", 8), crash, _start(6.0, 3, "worker-2.1", 9)]
    ends = [_finish(6.5, 3), _final()]
    history = [_submit(retries=1), _ack(), _window(1.0, 8.0), *later, *ends]
    assert _found(*history, _start(8.5, 1)) == set()
    assert _found(*history, _start(4.0, 1), _events(4.1, (2, "RUNNING", 1))) == {"I3"}


def test_what_a_lost_worker_began_unheard_is_none_of_the_retries() -> None:
    """Bug: it was charged to a task that its worker held beyond its slots when it vanished."""
    crash = _at(9.2, "crash", id=_ID, a=2, l=102, pid=8, w="worker-2.1")
    later = [_start(9.0, 2, "worker-2.1", 8), crash, _start(9.3, 3, "worker-2.1", 9)]
    ends = [_finish(9.5, 3), _final()]
    history = [_submit(retries=1), _ack(), _start(1.0, 1), *later, *ends]
    for loss in (_window(0.9, 8.0), _at(1.5, "down", w="worker-1.1", clean=False)):
        assert _found(*history, loss) == set()
        assert _found(*history, loss, _events(1.2, (2, "RUNNING", 1))) == {"I3"}
    left = _at(5.0, "down", w="worker-1.1", clean=True)  # it gives back what it runs
    assert _found(*history, left, _events(1.2, (2, "RUNNING", 1))) == set()


def test_a_reset_excuses_a_jump_in_the_numbers() -> None:
    """A subscriber that was told so begins anew elsewhere."""
    records = [_events(1.0, (5, "QUEUED", 0)), _at(2.0, "reset", stream="s", reason="x")]
    assert _found(*records, _events(3.0, (9, "RUNNING", 1))) == set()


def test_an_exclusive_task_may_be_stopped_and_run_again() -> None:
    """A worker without an answer for half a lease stops it; what is not exclusive goes on."""
    runs = [_start(1.0, 1), _start(6.0, 2), _finish(6.5, 2), _final()]
    away = _at(1.5, "window", w="head", end=4.0, tail=1.0)
    assert _found(_submit(exclusive=True), _ack(), *runs, away) == set()
    assert _found(_submit(), _ack(), *runs, away) == {"I3", "I7"}
    assert "I7" in _found(_submit(exclusive=True), _ack(), *runs, away, _finish(7.0, 1))
    later = _at(30.0, "down", w="worker-1.1", clean=False)
    assert _found(_submit(exclusive=True), _ack(), *runs, away, later) == set()


def test_an_executor_goes_with_its_worker_a_moment_later() -> None:
    """Bug: a task that it began just after its worker's death was noted had no end at all."""
    runs = [_start(1.0, 1), _start(1.2, 2, "worker-2.1"), _finish(1.5, 2), _final()]
    before, late = _at(0.98, "down", w="worker-1.1"), _at(0.1, "down", w="worker-1.1")
    assert _found(_submit(), _ack(), *runs, before) == set()
    assert "I7" in _found(_submit(), _ack(), *runs, late)


def test_an_executor_that_its_draining_worker_ends_runs_no_longer() -> None:
    """Bug: with its head away it ended what ran on, 2 s before it left, and that overlapped."""
    runs = [_start(1.0, 1), _start(9.0, 2, "worker-2.1"), _finish(9.5, 2), _final()]
    left = _at(9.8, "down", w="worker-1.1", clean=True)
    away = _at(2.0, "window", w="head", end=8.9, tail=1.0)

    def gone(at: float) -> Record:
        return _at(at, "exec_gone", w="worker-1.1", pid=7)

    assert _found(_submit(), _ack(), *runs, left, away) == {"I7"}
    assert _found(_submit(), _ack(), *runs, left, away, gone(8.0)) == set()
    assert _found(_submit(), _ack(), *runs, left, away, gone(9.7)) == {"I7"}
    assert _found(_submit(), _ack(), *runs, away, gone(8.0)) == {"I3"}


def test_a_new_head_may_number_its_events_anew() -> None:
    """After each death of a head one jump of the numbers is right; all else is as before it."""
    events = _events(3.0, (1, "QUEUED", 0), (900, "RUNNING", 1), (901, "SUCCEEDED", 1))
    assert _found(*_ONE_RUN, _at(0.5, "down", w="head"), events, _final()) == set()


def test_a_worker_that_leaves_without_a_head_takes_its_results_along() -> None:
    """Told to end while the head is away, it can hand nothing in, and its tasks run again."""
    runs = [*_ONE_RUN, _start(9.0, 2, "worker-2.1"), _finish(9.5, 2), _final()]
    left = _at(5.0, "down", w="worker-1.1", clean=True)
    assert _found(*runs, left, _at(3.0, "down", w="head")) == set()
    assert _found(*runs, left) == {"I3"}


def test_late_words_may_stop_an_exclusive_task_and_nothing_else() -> None:
    """Latency takes half a lease's answers away for a while; no lease may end by it."""
    runs = [_start(1.0, 1), _start(4.0, 2), _finish(4.5, 2), _final()]
    late = {**_window(0.5, 3.5), "mild": True}
    assert _found(_submit(exclusive=True), _ack(), *runs, late) == set()
    assert "I3" in _found(_submit(), _ack(), *runs, late)


def test_an_old_attempt_that_begins_after_the_later_one_does_not_overlap_it() -> None:
    """Its worker stood still, and began what it held in the moment when it woke up."""
    runs = [_start(3.0, 2, "worker-2.1"), _finish(3.1, 2), _start(9.0, 1)]
    crash = _at(9.1, "crash", id=_ID, a=1, l=101, pid=7, w="worker-1.1")
    asleep = _at(0.5, "window", w="worker-1.1", end=8.9, tail=1.0, frozen=True)
    assert _found(_submit(), _ack(), *runs, crash, asleep, _final()) == set()


def test_a_head_that_never_heard_of_a_task_may_count_its_attempts_anew() -> None:
    """It had not accepted it, so that it ran is no promise; one that was acked goes on counting."""
    again = _at(6.0, "start", id=_ID, a=1, l=200, pid=8, w="worker-2.1")
    end = _at(6.5, "finish", id=_ID, a=1, l=200, hash=_GOOD)
    runs = [_start(1.0, 1), _finish(1.5, 1), _at(2.0, "down", w="head"), again, end, _final()]
    late = {**_ack(), "t": 7.0}
    assert _found(_submit(), late, *runs) == set()
    assert _found(_submit(), late, *runs, _at(2.1, "down", w="worker-1.1")) == set()
    assert "I3" in _found(_submit(), _ack(), *runs)
