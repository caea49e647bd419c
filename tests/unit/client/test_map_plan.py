"""The plan of a map, driven by a cluster that does what an example says."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustray.client.map_plan import PIECES, Encoded, Failed, MapPlan, Part, Rules
from rustray.client.map_tuner import ChunkTuner
from rustray.common.errors import (
    PayloadError,
    ResourceExhausted,
    RustRayError,
    TaskExecutionFailed,
    WorkerLost,
)
from rustray.task.codec import encode_failure
from rustray.task.result import FailureInfo

OK, RAISES, KILLS, UNDECODABLE, UNENCODABLE = "ok", "raises", "kills", "undecodable", "unencodable"
_RAISED = encode_failure(FailureInfo("TASK_FAILED", "boom", error_type="builtins.ValueError"))
_KILLED = encode_failure(FailureInfo("TASK_POISONED", "killed"))
_LOST = encode_failure(FailureInfo("WORKER_LOST", "killed"))
_DECODE = encode_failure(FailureInfo("PAYLOAD", "the arguments cannot be unpickled"))


def _failure_of(payload: bytes) -> Callable[[], RustRayError]:
    return lambda: TaskExecutionFailed(payload.decode("latin-1"))


@dataclass
class Model:
    """Runs the parts of a plan; an item is (kind, how often it misbehaves).

    Attributes:
        runs: How often each item was begun.
        deaths: Executors that died.
    """

    plan: MapPlan
    items: list[tuple[str, int]]
    rules: Rules
    slots: int = 2
    gives_back: bool = False
    runs: list[int] = field(default_factory=list)
    deaths: int = 0
    now: float = 0.0
    out: list[Part] = field(default_factory=list)
    most_ahead: int = 0

    def __post_init__(self) -> None:
        self.runs = [0] * len(self.items)
        self._source = iter(range(len(self.items)))

    def feed(self) -> None:
        """Read and hand in what the plan wants."""
        self._send()
        while count := self.plan.wanted(self.slots):
            items = list(itertools.islice(self._source, count))
            if len(items) < count:
                self.plan.is_at_end = True
            self.plan.read(items)
            self._send()
        self.most_ahead = max(self.most_ahead, self.plan.items_read - self.plan.items_taken)

    def _send(self) -> None:
        while (part := self.plan.next_to_send(self.slots, self.now)) is not None:
            if any(self.items[item][0] == UNENCODABLE for item in part.items):
                self.plan.cannot_be_sent(lambda: PayloadError("no"))
                continue
            self.out.append(self.plan.sent(100, self.now))

    def end(self, place: int) -> None:
        """Let one part that is out end."""
        part = self.out.pop(place % len(self.out))
        self.now += 0.01
        if any(self._misbehaves(item, UNDECODABLE) for item in part.items):
            self.plan.failed(part, _DECODE, lambda: PayloadError("no"))
        elif part.is_alone:
            self._run_alone(part)
        else:
            self._run_chunk(part)

    def _misbehaves(self, item: int, kind: str) -> bool:
        what, times = self.items[item]
        return what == kind and self.runs[item] < times

    def _run_alone(self, part: Part) -> None:
        item = part.items[0]
        for _ in range(max(self.rules.max_retries, 1)):
            kills, raises = self._misbehaves(item, KILLS), self._misbehaves(item, RAISES)
            self.runs[item] += 1
            self.deaths += kills
            if not (kills or (raises and self.rules.retry_on)):
                break
        if kills:
            self.plan.failed(part, _KILLED, lambda: WorkerLost("killed"))
        elif raises:
            self.plan.failed(part, _RAISED, lambda: TaskExecutionFailed("boom"))
        else:
            self.plan.returned(part, b"%d" % item)

    def _run_chunk(self, part: Part) -> None:
        values: list[Any] = []
        failures = {}
        for place, item in enumerate(part.items):
            if self.gives_back and place == 3:
                break
            kills, raises = self._misbehaves(item, KILLS), self._misbehaves(item, RAISES)
            self.runs[item] += 1
            if kills:
                self.deaths += 1
                lost = _KILLED if self.rules.max_retries else _LOST
                self.plan.failed(part, lost, lambda: WorkerLost("killed"))
                return
            if raises:
                failures[place] = _RAISED
            values.append(None if raises else item)
        self.plan.ran(part, (0.0, values, {}, failures), 100, self.now, 0.5, _failure_of)

    def run(self, order: list[int]) -> list[Any]:
        """Run to the end; ``order`` says which part ends next."""
        taken: list[Any] = []
        picks = itertools.cycle(order or [0])
        for _ in range(100_000):
            while (values := self.plan.take()) is not None:
                taken.extend(values)
            self.feed()
            if self.plan.is_exhausted:
                return taken
            if self.plan.has_results():
                continue
            if self.out:
                self.end(next(picks))
            else:
                due_s = self.plan.next_due_s()
                assert due_s is not None, "nothing is under way and nothing is due"
                self.now = max(self.now, due_s)
        raise AssertionError("the map does not end")


def _model(items: list[tuple[str, int]], **changes: Any) -> Model:
    rules = changes.pop("rules", Rules(max_retries=3, crash_limit=3))
    chunk = changes.pop("chunk", None)
    gives_back = changes.pop("gives_back", False)
    changes.setdefault("is_ordered", True)
    plan = MapPlan(ChunkTuner(chunk), rules, **changes)
    return Model(plan, items, rules, gives_back=gives_back)


def _plain(values: list[Any]) -> list[Any]:
    """Results as item numbers, and ("failed", index) for items without one."""
    return [
        ("failed", value.index)
        if isinstance(value, Failed)
        else int(value.data)
        if isinstance(value, Encoded)
        else value
        for value in values
    ]


_KINDS = st.tuples(
    st.sampled_from([OK, OK, OK, OK, RAISES, KILLS, UNDECODABLE, UNENCODABLE]),
    st.sampled_from([1, 2, 100]),
)


@given(
    st.lists(_KINDS, max_size=60),
    st.lists(st.integers(0, 20), max_size=10),
    st.sampled_from([None, 1, 5, 16]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_every_item_has_its_own_outcome(
    items: list[tuple[str, int]],
    order: list[int],
    chunk: int | None,
    is_ordered: bool,
    gives_back: bool,
    retries_exceptions: bool,
) -> None:
    """Whatever its neighbours do and whichever part ends first; in order, where that was asked."""
    rules = Rules(3, 3, retry_on=retries_exceptions)
    model = _model(items, chunk=chunk, is_ordered=is_ordered, rules=rules, gives_back=gives_back)
    found = _plain(model.run(order))
    for item, (kind, times) in enumerate(items):
        if kind == UNENCODABLE:
            expected = False
        elif kind == UNDECODABLE:
            expected = times == 0
        elif kind == RAISES:
            expected = retries_exceptions and times < 100
        else:
            expected = kind == OK or times < 100
        assert (item in found) == expected, (item, kind, times)
        assert (("failed", item) in found) == (not expected)
    assert len(found) == len(items)
    assert model.plan._held == 0  # what bounds the reading has been given back
    if is_ordered:
        assert [v if isinstance(v, int) else v[1] for v in found] == list(range(len(items)))


@given(st.lists(_KINDS, max_size=60), st.lists(st.integers(0, 20), max_size=10))
@settings(max_examples=100, deadline=None)
def test_without_retries_nothing_is_begun_twice(
    items: list[tuple[str, int]], order: list[int]
) -> None:
    """`max_retries=0` holds for items: a chunk that died is not split."""
    model = _model(items, chunk=8, rules=Rules(0, 3, retry_on=True))
    assert len(model.run(order)) == len(items)
    assert max(model.runs, default=0) <= 1


@given(st.integers(1, 50), st.integers(1, 8), st.lists(st.integers(0, 20), max_size=10))
def test_read_ahead_is_kept(read_ahead: int, slots: int, order: list[int]) -> None:
    """There are never more items read and not taken than allowed, and all of them come."""
    model = _model([(OK, 0)] * 300, read_ahead=read_ahead)
    model.slots = slots
    assert _plain(model.run(order)) == list(range(300))
    assert model.most_ahead <= read_ahead


def test_one_poison_item_costs_few_executors() -> None:
    """Splitting by eight finds one of four thousand in four deaths, then its own limit counts."""
    items = [(OK, 0)] * 4096
    items[1234] = (KILLS, 100)
    model = _model(items, chunk=4096)
    found = _plain(model.run([0]))
    assert found.count(("failed", 1234)) == 1
    assert len(found) == 4096
    assert PIECES == 8
    assert model.deaths <= 4 + 4


def test_a_slow_consumer_stops_the_reading() -> None:
    """Parts that nobody takes are bounded, also done ones."""
    model = _model([(OK, 0)] * 10_000, chunk=10)
    for _ in range(1000):
        model.feed()
        if not model.out:
            break
        model.end(0)
    read = model.plan.items_read
    assert 0 < read <= 10 * 8 * 4 * model.slots
    model.feed()
    assert model.plan.items_read == read


def test_what_was_given_back_goes_before_what_has_not_begun() -> None:
    """In an ordered map everything waits for it."""
    plan = _model([(OK, 0)] * 16, chunk=8).plan
    plan.read(list(range(8)))
    plan.read(list(range(8, 16)))
    part = plan.sent(100, 0.0)
    plan.ran(part, (1.0, [0, 1, 2], {}, {}), 100, 1.0, 0.5, _failure_of)
    firsts = []
    while (following := plan.next_to_send(8, 1.0)) is not None:
        firsts.append(following.first)
        plan.sent(100, 1.0)
    assert firsts == [3, 4, 5, 6, 7, 8]


def test_an_unordered_map_yields_what_is_done() -> None:
    """A part that takes long holds up nobody; in an ordered one everybody."""
    for is_ordered in (True, False):
        model = _model([(OK, 0)] * 4, chunk=1, is_ordered=is_ordered)
        model.feed()
        model.end(1)
        assert (model.plan.take() is None) == is_ordered


def test_an_item_to_be_run_again_waits_for_its_pause() -> None:
    """`retry_delay_s` passes before it is handed in; its neighbours come at once."""
    rules = Rules(3, 3, retry_on=True, retry_delay_s=5.0)
    model = _model([(OK, 0), (RAISES, 1), (OK, 0)], chunk=3, rules=rules)
    model.feed()
    model.end(0)
    assert model.plan.take() == [0]
    assert model.plan.take() is None
    model.feed()
    assert model.out == []
    assert model.plan.next_due_s() == pytest.approx(model.now + 5.0)
    model.now += 5.0
    model.feed()
    assert [part.is_alone for part in model.out] == [True]


def test_exceptions_that_are_not_named_are_not_tried_again() -> None:
    """`retry_exceptions` names those that are."""
    rules = Rules(3, 3, retry_on=("KeyError",))
    model = _model([(RAISES, 1)], rules=rules)
    assert _plain(model.run([0])) == [("failed", 0)]
    assert model.runs == [1]


@pytest.mark.parametrize(
    ("error", "is_split"),
    [
        (ResourceExhausted("too big"), True),
        (PayloadError("too big"), True),
        (ResourceExhausted("later", reason="PENDING_TASKS"), False),
        (WorkerLost("closed"), False),
    ],
)
def test_a_refused_part_is_split_where_its_size_was_refused(
    error: RustRayError, is_split: bool
) -> None:
    """Any other refusal is that of each of its items."""
    model = _model([(OK, 0)] * 4, chunk=4)
    model.feed()
    model.plan.failed(model.out.pop(), None, lambda: error)
    values = model.plan.take()
    assert (values is None) == is_split
    if values is not None:
        assert [value.make() for value in values] == [error] * 4


def test_a_part_that_is_too_big_is_split_before_it_is_handed_in() -> None:
    """In as many as it takes; one item is as big as it is."""
    model = _model([(OK, 0)] * 10, chunk=10)
    plan = model.plan
    plan.read(list(range(10)))
    assert plan.next_to_send(2, 0.0) is not None
    assert plan.is_too_big(1000, 400)
    sizes = []
    while (part := plan.next_to_send(2, 0.0)) is not None:
        assert not plan.is_too_big(200, 400)
        sizes.append(len(part.items))
        plan.sent(200, 0.0)
    assert sum(sizes) <= 10
    assert max(sizes) == 2
    plan = _model([(OK, 0)], chunk=1).plan
    plan.read([0])
    assert not plan.is_too_big(1000, 400)


def test_a_function_that_cannot_be_loaded_fails_its_items_without_splitting() -> None:
    """Smaller parts would fare no better, and there would be ever more of them."""
    model = _model([(OK, 0)] * 8, chunk=8)
    model.feed()
    payload = encode_failure(FailureInfo("PAYLOAD", "no module", error_type="ImportError"))
    model.plan.failed(model.out.pop(), payload, lambda: PayloadError("no module"))
    values = model.plan.take()
    assert values is not None
    assert len(values) == 8
