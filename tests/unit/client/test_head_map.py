"""`HeadNode.map` over a fake head."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import rustray
from helpers.fake_head import FakeHead
from helpers.waiting import aeventually
from rustray import HeadNode
from rustray.common.errors import CommunicationError, ResourceExhausted, RustRayError
from rustray.rpc.api import RawResult, SubmitItem, SubmitVerdict
from rustray.task.spec import Codec


@rustray.function("head_map_tests.divide")
def divide(a: int, b: int = 1) -> float:
    """Divide."""
    return a / b


class Recording(FakeHead):
    """Keeps what is submitted and cancelled; refuses once, if told so; holds some results."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[SubmitItem] = []
        self.calls: list[int] = []
        self.cancelled: list[str] = []
        self.refuse_from: int | None = None
        self.slow: set[str] = set()
        self.go = asyncio.Event()

    async def submit(self, items: Any) -> Any:
        """Keep, then run."""
        self.items.extend(items)
        self.calls.append(len(items))
        verdicts: list[SubmitVerdict] = await super().submit(items)
        first, self.refuse_from = self.refuse_from, None
        if first is None:
            return verdicts
        later = ResourceExhausted("later", retry_after_s=0.01, reason="PENDING_TASKS")
        return [v if i < first else SubmitVerdict("", later, False) for i, v in enumerate(verdicts)]

    async def get_result(self, task_id: str, timeout_s: float | None) -> RawResult:
        """Wait for `go` where it is to be slow."""
        if task_id in self.slow or self.hold:
            await self.go.wait()
        return await super().get_result(task_id, timeout_s)

    async def cancel(self, task_ids: Any, force: bool) -> Any:
        """Keep, then cancel."""
        self.cancelled.extend(task_ids)
        return await super().cancel(task_ids, force)


@pytest.fixture
async def fake() -> Recording:
    """The head."""
    return Recording()


@pytest.fixture
def head(fake: Recording) -> HeadNode:
    """A client of it."""
    return HeadNode.over(fake)  # type: ignore[arg-type]


async def _next(results: AsyncIterator[Any]) -> Any:
    return await anext(results)


async def test_results_come_in_order_by_few_calls(fake: Recording, head: HeadNode) -> None:
    """Without pickle: the codec is msgpack; and the window bounds what is out."""
    found = [x async for x in head.map("head_map_tests.divide", range(100), at_once=20)]
    assert found == [float(x) for x in range(100)]
    assert max(fake.calls) <= 20
    assert len(fake.calls) <= 11
    assert {item.task_class.codec for item in fake.items} == {Codec.MSGPACK}
    name = "head_map_tests.divide"
    assert [x async for x in head.map(name, [6, 8], itertools.repeat(2))] == [3.0, 4.0]
    assert [x async for x in head.map(name, [])] == []


async def test_an_endless_input_is_read_as_far_as_its_consumer_needs(
    fake: Recording, head: HeadNode
) -> None:
    """And leaving cancels what is out."""
    results = head.map("head_map_tests.divide", itertools.count(), at_once=8)
    assert [await anext(results) for _ in range(3)] == [0.0, 1.0, 2.0]
    fake.hold = True
    pending = asyncio.create_task(_next(results))
    fake.go.set()
    fake.hold = False
    assert await pending == 3.0
    fake.go.clear()
    fake.hold = True
    for _ in range(4):
        await anext(results)
    assert len(fake.items) <= 24
    await results.aclose()  # type: ignore[attr-defined]
    assert len(fake.items) <= 24


async def test_what_is_out_is_cancelled_when_an_item_fails(fake: Recording, head: HeadNode) -> None:
    """The error is the user's, and knows its item."""
    results = head.map("head_map_tests.divide", [1, 2, 3, 4], [1, 0, 1, 1])
    assert await anext(results) == 1.0
    fake.slow = set(fake.results)
    with pytest.raises(ZeroDivisionError) as caught:
        await anext(results)
    assert caught.value.item_index == 1  # type: ignore[attr-defined]


async def test_leaving_cancels_tasks_that_have_not_ended(fake: Recording, head: HeadNode) -> None:
    """All of them by one call."""
    fake.hold = True
    results = head.map("head_map_tests.divide", range(5))
    pending = asyncio.create_task(_next(results))
    await aeventually(lambda: len(fake.results) == 5)
    pending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pending
    assert sorted(fake.cancelled) == sorted(fake.results)


async def test_errors_may_be_returned(fake: Recording, head: HeadNode) -> None:
    """Those of items that failed and of items that were refused."""
    name = "head_map_tests.divide"
    results = head.map(name, [1, 1, 1], [1, 0, 2], return_exceptions=True)
    found = [x async for x in results]
    assert [found[0], found[2]] == [1.0, 0.5]
    assert isinstance(found[1], ZeroDivisionError)
    fake.refuse = lambda _class: CommunicationError("no")
    found = [x async for x in head.map(name, [1, 2], return_exceptions=True)]
    assert [(type(x), x.item_index) for x in found] == [
        (CommunicationError, 0),
        (CommunicationError, 1),
    ]


async def test_what_is_refused_for_now_is_handed_in_again(fake: Recording, head: HeadNode) -> None:
    """When the head says so, and only that."""
    fake.refuse_from = 3
    found = [x async for x in head.map("head_map_tests.divide", range(6))]
    assert found == [float(x) for x in range(6)]
    assert fake.calls == [6, 3]


async def test_unordered_results_come_as_they_end(fake: Recording, head: HeadNode) -> None:
    """A slow one holds up nobody."""
    results = head.map("head_map_tests.divide", range(4), ordered=False, at_once=4)
    submit = fake.submit

    async def slow_first(items: Any) -> Any:
        verdicts = await submit(items)
        fake.slow.add(verdicts[0].task_id)
        return verdicts

    fake.submit = slow_first  # type: ignore[method-assign]
    assert sorted([await anext(results) for _ in range(3)]) == [1.0, 2.0, 3.0]
    fake.go.set()
    assert [x async for x in results] == [0.0]


async def test_what_the_input_raises_comes_last(head: HeadNode) -> None:
    """After the results of what came before."""

    def source() -> Iterator[int]:
        yield from range(3)
        raise LookupError("cut")

    results = head.map("head_map_tests.divide", source())
    assert [await anext(results) for _ in range(3)] == [0.0, 1.0, 2.0]
    with pytest.raises(LookupError, match="cut"):
        await anext(results)


def test_bad_settings_fail_at_the_call(head: HeadNode) -> None:
    """Before anything is handed in."""
    for settings in ({"at_once": 0}, {"priority": "high"}, {"args": [1]}):
        with pytest.raises((ValueError, TypeError)):
            head.map("x", [1], **settings)
    with pytest.raises(TypeError):
        head.map("x", [1], no_such_option=1)
    assert issubclass(RustRayError, Exception)
