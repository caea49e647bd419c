"""The chaos checker goes red for broken promises of graphs and nested tasks, and only for those."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.checker import Verdict, check
from chaos.history import Record
from chaos.runs import LARGE_BYTES, Rules

_RULES = Rules(lease_ttl_s=4.0, heartbeat_s=0.5)
_MAKER, _TAKER, _LAST = ("aa" * 16, "bb" * 16, "cc" * 16)
_WORKER = "worker-1.1"
_LARGE: dict[str, Any] = {"size": LARGE_BYTES}


def _at(t: float, kind: str, **fields: Any) -> Record:
    return {"t": t, "k": kind, **fields}


def _handed_in(*ids: str) -> list[Record]:
    return [
        _at(0.0, "submit", ids=list(ids), retries=3, key=""),
        _at(0.1, "ack", ids=list(ids), key=""),
    ]


def _edges(**takes: list[list[Any]]) -> Record:
    names = {"taker": _TAKER, "last": _LAST}
    return _at(0.0, "edges", takes={names[name]: taken for name, taken in takes.items()})


def _start(name: str, t: float, took: list[str] | None = None, **more: Any) -> Record:
    given: dict[str, Any] = {} if took is None else {"took": took}
    lease = more.pop("lease", 100 + int(t))
    place = {"pid": 7, "w": more.pop("w", _WORKER)}
    return _at(t, "start", id=name, a=more.pop("a", 1), l=lease, **place, **given)


def _finish(name: str, t: float, value: str, lease: int, **more: Any) -> Record:
    return _at(t, "finish", id=name, a=more.pop("a", 1), l=lease, hash=value, **more)


def _final(name: str, state: str = "SUCCEEDED", value: str = "") -> Record:
    return _at(90.0, "final", id=name, state=state, hash=value, attempts=1)


def _run(name: str, t: float, value: str, took: list[str] | None = None) -> list[Record]:
    lease = 100 + int(t)
    return [_start(name, t, took, lease=lease), _finish(name, t + 0.5, value, lease)]


def _judge(*records: Record | list[Record]) -> Verdict:
    flat: list[Record] = []
    for one in records:
        flat += one if isinstance(one, list) else [one]
    return check(sorted(flat, key=lambda record: float(record["t"])), _RULES)


def _found(*records: Record | list[Record]) -> list[str]:
    return [violation.invariant for violation in _judge(*records).violations]


_MADE = _run(_MAKER, 1.0, "m")
_PAIR = [*_handed_in(_MAKER, _TAKER), _edges(taker=[[_MAKER, -1]])]
_ENDS = [_final(_MAKER, value="m"), _final(_TAKER, value="t")]


def test_a_good_graph_is_good() -> None:
    """It starts after what it takes, and sees exactly that: counted, and nothing to say."""
    verdict = _judge(_PAIR, _MADE, _run(_TAKER, 2.0, "t", ["m"]), _ENDS)
    assert verdict.violations == []
    assert verdict.figures["inputs seen"] == 1


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([*_MADE, *_run(_TAKER, 1.2, "t", ["m"])], id="began too early"),
        pytest.param([*_MADE, *_run(_TAKER, 2.0, "t", ["x"])], id="saw another value"),
        pytest.param([*_MADE, *_run(_TAKER, 2.0, "t", [])], id="saw nothing"),
        pytest.param([*_run(_TAKER, 2.0, "t", ["m"])], id="of a task that never ran"),
    ],
)
def test_a_task_that_sees_something_else_is_found(records: list[Record]) -> None:
    """I9: what a run of the producer has returned, and only when it has."""
    assert "I9" in _found(_PAIR, records, _ENDS)


def test_a_result_is_made_of_what_is_recorded() -> None:
    """I9: a producer that ran twice has one value, and that is what others were made of."""
    again = [
        _at(3.0, "down", w=_WORKER),
        _start(_MAKER, 9.0, a=2, lease=109, w="worker-2.1"),
        _finish(_MAKER, 9.5, "m2", 109, a=2),
    ]
    taker = [_start(_TAKER, 2.0, ["m"], w="worker-3.1"), _finish(_TAKER, 2.5, "t", 102)]
    ends = [_final(_MAKER, value="m2"), _final(_TAKER, value="t")]
    assert _found(_PAIR, _MADE, taker, again, ends) == ["I9"]
    late = [
        _at(3.0, "down", w="worker-3.1"),
        _start(_TAKER, 10.0, ["m2"], a=2, lease=110),
        _finish(_TAKER, 10.5, "t2", 110, a=2),
    ]
    ends = [_final(_MAKER, value="m2"), _final(_TAKER, value="t2")]
    assert _found(_PAIR, _MADE, taker, again, late, ends) == []


def test_a_value_that_was_put_is_what_it_was() -> None:
    """I4 and I9: nothing runs for it, and it is the same for everybody."""
    put = _at(0.0, "put", id=_MAKER, hash="m", size=10)
    assert _found(_PAIR, put, _run(_TAKER, 2.0, "t", ["m"]), _ENDS) == []
    assert _found(_PAIR, put, _run(_TAKER, 2.0, "t", ["x"]), _ENDS) == ["I9"]
    other = [_final(_MAKER, value="x"), _final(_TAKER, value="t")]
    assert "I4" in _found(_PAIR, put, _run(_TAKER, 2.0, "t", ["m"]), other)


def test_each_of_several_values_is_its_own() -> None:
    """I9: the second of two values is not the first one, for tasks and for clients."""
    edges = _edges(taker=[[_MAKER, 1]])
    made = [_start(_MAKER, 1.0), _finish(_MAKER, 1.5, "m", 101, parts=["p0", "p1"])]
    records = [*_handed_in(_MAKER, _TAKER), edges, *made, *_ENDS]
    assert _found(records, _run(_TAKER, 2.0, "t", ["p1"])) == []
    assert _found(records, _run(_TAKER, 2.0, "t", ["p0"])) == ["I9"]
    told = _at(5.0, "part", id=_MAKER, index=1, hash="p0")
    assert _found(records, _run(_TAKER, 2.0, "t", ["p1"]), told) == ["I9"]


# ---- I10 --------------------------------------------------------------------------------


_RAISED = [_start(_MAKER, 1.0), _at(1.5, "raised", id=_MAKER, a=1, l=101)]
_THREE = [
    *_handed_in(_MAKER, _TAKER, _LAST),
    _edges(taker=[[_MAKER, -1]], last=[[_TAKER, -1]]),
    *_RAISED,
]


def _cause(name: str, error: str, origin: str = "") -> Record:
    return _at(5.0, "cause", id=name, error=error, origin=origin)


def test_a_failure_goes_down_with_its_cause() -> None:
    """I10: all that waits ends as the first one did, and says so."""
    ends = [_final(name, "FAILED") for name in (_MAKER, _TAKER, _LAST)]
    told = [_cause(_MAKER, "LookupError")]
    told += [_cause(name, "LookupError", _MAKER) for name in (_TAKER, _LAST)]
    verdict = _judge(_THREE, ends, told)
    assert verdict.violations == []
    assert verdict.figures["ends that a failure has passed down"] == 2
    assert verdict.figures["causes told"] == 2


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([_final(_TAKER, "CANCELLED"), _final(_LAST, "CANCELLED")], id="other state"),
        pytest.param([_final(_TAKER, "FAILED"), _final(_LAST, value="l")], id="ran after all"),
        pytest.param(
            [_final(_TAKER, "FAILED"), _final(_LAST, "FAILED"), _cause(_LAST, "LookupError")],
            id="no cause",
        ),
        pytest.param(
            [
                *[_final(_TAKER, "FAILED"), _final(_LAST, "FAILED")],
                _cause(_LAST, "LookupError", _TAKER),
            ],
            id="not the first one",
        ),
        pytest.param(
            [
                *[_final(_TAKER, "FAILED"), _final(_LAST, "FAILED")],
                *[_cause(_MAKER, "LookupError"), _cause(_TAKER, "ValueError", _MAKER)],
            ],
            id="another error",
        ),
    ],
)
def test_a_failure_that_does_not_go_down_is_found(records: list[Record]) -> None:
    """I10: other states, lost causes, tasks that run all the same."""
    assert "I10" in _found(_THREE, _final(_MAKER, "FAILED"), records)


def test_a_cancel_goes_down_as_one() -> None:
    """I10: what takes the result of a cancelled task is cancelled."""
    ended = [_final(_MAKER, "CANCELLED"), _final(_TAKER, "CANCELLED"), _final(_LAST, "CANCELLED")]
    assert _found(_THREE, ended) == []
    assert _found(_THREE, ended[:2], _final(_LAST, "FAILED")) == ["I10"]


def test_who_is_cancelled_on_its_own_is_a_cause_too() -> None:
    """I10: what takes its result names it, though what it takes itself is cancelled later."""
    ended = [_final(name, "CANCELLED") for name in (_MAKER, _TAKER, _LAST)]
    told = _cause(_LAST, "TaskCancelled", _TAKER)
    cancel = _at(0.5, "cancel", id=_TAKER, state="CANCELLED")
    assert _found(_THREE, ended, told, cancel) == []
    assert _found(_THREE, ended, told) == ["I10"]


# ---- large values -----------------------------------------------------------------------


def _made_again(t: float) -> list[Record]:
    return [
        _start(_MAKER, 1.0),
        _finish(_MAKER, 1.5, "m", 101, **_LARGE),
        _at(2.0, "result", id=_MAKER, state="SUCCEEDED", hash="m", attempts=1),
        _at(2.1, "events", stream="s", ev=[[1, _MAKER, "SUCCEEDED", 1]]),
        _start(_MAKER, t, a=2, w="worker-2.1"),
        _at(t + 0.1, "events", stream="s", ev=[[2, _MAKER, "RUNNING", 2]]),
        _finish(_MAKER, t + 0.5, "m", 100 + int(t), a=2, **_LARGE),
        _at(t + 1, "events", stream="s", ev=[[3, _MAKER, "SUCCEEDED", 2]]),
        {**_final(_MAKER, value="m"), "attempts": 2},
    ]


def test_a_large_result_may_be_made_again_if_its_worker_died() -> None:
    """I2, I3, I5, I8: that is counted; without a death, or of another worker, it is for nothing."""
    records = [*_handed_in(_MAKER), *_made_again(9.0)]
    verdict = _judge(records, _at(3.0, "down", w=_WORKER))
    assert verdict.violations == []
    assert verdict.figures["re-runs: its result was lost with its worker"] == 1
    assert verdict.figures["runs for a value that was lost"] == 1
    for other in ([], [_at(3.0, "down", w="worker-9.1")], [_at(20.0, "down", w=_WORKER)]):
        assert {"I3", "I5"} <= set(_found(records, other))
    for end, bad in ((8.0, set[str]()), (4.0, {"I3", "I5"})):
        away = _at(3.0, "window", w=_WORKER, end=end, tail=0.5)
        assert {one for one in _found(records, away) if one in ("I3", "I5")} == bad
    left = _at(3.0, "down", w=_WORKER, clean=True)  # it hands its values over
    assert {"I3", "I5"} <= set(_found(records, left))
    for gone in (_at(5.0, "down", w="worker-3.1"), _at(2.5, "down", w="head")):
        assert not {"I3", "I5"} & set(_found(records, left, gone))
    away = _at(2.0, "window", w="worker-3.1", end=4.0, tail=0.5)
    assert not {"I3", "I5"} & set(_found(records, left, away))


def test_what_is_made_again_may_be_cancelled() -> None:
    """Bug: a task whose value was lost, and that was cancelled then, had ended in two ways."""
    again = [
        _start(_MAKER, 1.0),
        _finish(_MAKER, 1.5, "m", 101, **_LARGE),
        _at(2.0, "result", id=_MAKER, state="SUCCEEDED", hash="m", attempts=1),
        _at(2.1, "events", stream="s", ev=[[1, _MAKER, "SUCCEEDED", 1]]),
        _at(5.0, "events", stream="s", ev=[[2, _MAKER, "QUEUED", 1], [3, _MAKER, "CANCELLED", 2]]),
        _final(_MAKER, "CANCELLED"),
    ]
    cancel, gone = _at(4.0, "cancel", id=_MAKER, state="CANCELLING"), _at(3.0, "down", w=_WORKER)
    assert _found(_handed_in(_MAKER), again, cancel, gone) == []
    assert "I2" in _found(_handed_in(_MAKER), again, gone)
    assert "I2" in _found(_handed_in(_MAKER), again, cancel)
    took = _at(0.2, "edges", takes={_MAKER: [[_TAKER, -1]]})
    cancel = _at(4.0, "cancel", id=_TAKER, state="CANCELLED")
    assert "I2" not in _found(_handed_in(_MAKER), again, cancel, gone, took)
    assert "I2" in _found(_handed_in(_MAKER), again, cancel, gone)


def test_that_a_worker_leaves_may_be_noted_after_its_value_is_made_again() -> None:
    """Bug: the events of the new attempt, told before the worker's end, were judged too early."""
    records = [*_handed_in(_MAKER), *_made_again(9.0)]
    left, gone = _at(9.3, "down", w=_WORKER, clean=True), _at(8.9, "down", w="worker-3.1")
    assert _found(records, left, gone) == []
    assert "I8" in _found(records, _at(9.3, "down", w="worker-9.1", clean=True), gone)


def test_values_that_are_lost_cost_no_retries() -> None:
    """Bug: a task of 3 retries whose value five workers took along was counted as run too often."""
    records = [_start(_MAKER, 1.0), _finish(_MAKER, 1.5, "m", 101, **_LARGE)]
    for attempt in range(2, 7):
        worker, t = f"worker-{attempt}.1", 2.0 * attempt
        before = _WORKER if attempt == 2 else f"worker-{attempt - 1}.1"
        records += [
            _at(t - 0.3, "down", w=before),
            _start(_MAKER, t, a=attempt, w=worker),
            _at(t + 0.1, "events", stream="s", ev=[[attempt, _MAKER, "RUNNING", attempt]]),
            _finish(_MAKER, t + 0.5, "m", 100 + int(t), a=attempt, **_LARGE),
        ]
    records.append({**_final(_MAKER, value="m"), "attempts": 6})
    assert _found(_handed_in(_MAKER), records) == []
    small = [{**one, "size": 10} if "size" in one else one for one in records]
    assert "I3" in _found(_handed_in(_MAKER), small)


def test_a_small_result_is_not_made_again() -> None:
    """I5: it is with the head, whatever becomes of its worker."""
    records = [{**one, "size": 10} if "size" in one else one for one in _made_again(9.0)]
    assert "I5" in _found(_handed_in(_MAKER), records, _at(3.0, "down", w=_WORKER))


def test_a_large_value_may_be_let_go_once_it_is_told() -> None:
    """I1: its client has it and needs it no more; a small one, or one that was not told, stays."""
    made = [_start(_MAKER, 1.0), _finish(_MAKER, 1.5, "m", 101, **_LARGE)]
    told = [
        _at(2.0, "result", id=_MAKER, state="SUCCEEDED", hash="m", attempts=1),
        _at(2.0, "value", id=_MAKER, hash="m"),
    ]
    asked_again = _at(3.0, "result", id=_MAKER, state="", hash="", attempts=0)
    gone = [*_handed_in(_MAKER), _final(_MAKER, "")]
    assert _found(gone, made, told) == []
    assert _found(gone, made, [*told, asked_again]) == []
    assert set(_found(gone, made)) == {"I1"}
    assert set(_found(gone, _run(_MAKER, 1.0, "m"), told)) == {"I1"}


def test_a_value_is_lost_only_with_its_worker() -> None:
    """I10: ObjectLost is an answer where a worker died that had the value, and nowhere else."""
    made = [_start(_MAKER, 1.0), _finish(_MAKER, 1.5, "m", 101, **_LARGE)]
    records = [*_handed_in(_MAKER), *made, _final(_MAKER, value="m"), _cause(_MAKER, "ObjectLost")]
    assert _found(records, _at(3.0, "down", w=_WORKER)) == []
    assert _found(records) == ["I10"]


# ---- I11 --------------------------------------------------------------------------------


def _children(lease: int, a: int, *ids: str) -> Record:
    return _at(1.0 + a, "children", id=_MAKER, a=a, l=lease, ids=list(ids))


_PARENT = [
    *_handed_in(_MAKER),
    _start(_MAKER, 1.0),
    _at(2.5, "crash", id=_MAKER, a=1, l=101, pid=7, w=_WORKER),
    _start(_MAKER, 3.0, a=2),
    _finish(_MAKER, 8.0, "m", 103, a=2),
    _final(_MAKER, value="m"),
]


def test_children_are_found_again() -> None:
    """I11: an attempt that hands in the same gets the same tasks; they are nobody's strangers."""
    children = [_children(101, 1, _TAKER), _children(103, 2, _TAKER), *_run(_TAKER, 2.0, "t")]
    verdict = _judge(_PARENT, children, _final(_TAKER, value="t"))
    assert verdict.violations == []
    assert verdict.figures["children found again"] == 1


def test_doubled_children_are_found() -> None:
    """I11: another child in the place of one that has a value; one that failed has none."""
    children = [_children(101, 1, _TAKER), _children(103, 2, _LAST)]
    runs = [*_run(_TAKER, 2.0, "t"), *_run(_LAST, 4.0, "l")]
    assert _found(_PARENT, children, runs, _final(_TAKER, value="t"), _final(_LAST, value="l")) == [
        "I11"
    ]
    ends = [_final(_TAKER, "FAILED"), _final(_LAST, value="l")]
    assert _found(_PARENT, children, runs[2:], ends) == []
    ends = [_final(_TAKER, "CANCELLED"), _final(_LAST, value="l")]
    assert _found(_PARENT, children, runs[2:], ends) == ["I11"]
    cancel = _at(2.0, "cancel", id=_TAKER, state="CANCELLED")
    assert _found(_PARENT, children, runs[2:], ends, cancel) == []


def test_a_parent_gets_what_its_child_has() -> None:
    """I11: the value that `get` has given within a task is the recorded one."""
    records = [*_PARENT, _children(103, 2, _TAKER), *_run(_TAKER, 4.0, "t")]
    saw = _at(7.0, "saw", id=_MAKER, a=2, l=103, of=[[_TAKER, "t"]])
    assert _found(records, saw, _final(_TAKER, value="t")) == []
    other = _at(7.0, "saw", id=_MAKER, a=2, l=103, of=[[_TAKER, "x"]])
    assert _found(records, other, _final(_TAKER, value="t")) == ["I11"]
    assert _found(records, saw, _final(_TAKER, "FAILED")) == ["I11"]


def test_a_cancel_takes_children_along() -> None:
    """I11: a child goes on to its end only if somebody kept the cancel from its worker."""
    parent = [*_handed_in(_MAKER), _start(_MAKER, 1.0), _children(101, 1, _TAKER)]
    cancel = _at(5.0, "cancel", id=_MAKER, state="CANCELLING")
    records = [*parent, cancel, _start(_TAKER, 2.0), _final(_MAKER, "CANCELLED")]
    went_on = [_finish(_TAKER, 14.0, "t", 102), _final(_TAKER, value="t")]
    assert _found(records, went_on) == ["I11"]
    stopped = [_finish(_TAKER, 5.5, "t", 102, stopped=True), _final(_TAKER, "CANCELLED")]
    assert _found(records, stopped) == []
    cut_off = _at(4.0, "window", w=_WORKER, end=9.0, tail=1.0)
    assert _found(records, went_on, cut_off) == []
    assert _found(records, went_on, {**cut_off, "w": "worker-9.1"}) == ["I11"]
