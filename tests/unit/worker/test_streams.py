"""Generators in real executors, and their items on the way through the worker's core."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from helpers.waiting import aeventually
from rustray.task import codec as codecs
from rustray.task.columns import PayloadColumn
from rustray.task.spec import Codec, TaskClass
from rustray.task.state import TaskState
from rustray.task.streams import WINDOW_BYTES, ItemQueue, LeaseItems
from rustray.worker.outbox import Outbox
from rustray.worker.window import Window
from rustray.worker.wire import RunChunk
from unit.worker.executor_harness import PREFIX, Bench, bench

cloudpickle.register_pickle_by_value(sys.modules[__name__])

LEASE = 7


def start(
    made: Bench, function: Callable[..., Any], *args: Any, window: int = 100, have: int = 0,
    consumed: int = 0,
) -> int:  # fmt: skip
    """Run one generator in a new executor; returns the executor's number."""
    executor: int = made.spawn()
    code = cloudpickle.dumps(function)
    task_class = TaskClass(
        "job", code_hash=code[:32].ljust(32), codec=Codec.PICKLE, stream_window=window
    )
    number = made.define_class(executor, task_class, code)
    column = PayloadColumn.of([codecs.encode_call(Codec.PICKLE, args, {})])
    made._leases[LEASE] = Codec.PICKLE
    chunk = RunChunk(number, LEASE, 100, 2, PREFIX, 0, column, 0.0, have, consumed)
    made.pool.run(executor, chunk)
    return executor


def items(made: Bench) -> dict[int, Any]:
    """Return what the generator has sent, by index; each once."""
    found: dict[int, Any] = {}
    for one in made.seen.items:
        assert (one.lease, one.offset) == (LEASE, 100)
        for step, payload in enumerate(one.payloads):
            assert one.first + step not in found
            found[one.first + step] = codecs.decode_value(Codec.PICKLE, payload)
    return found


async def has_items(made: Bench, count: int) -> None:
    """Wait until so many items are there."""
    await aeventually(lambda: len(items(made)) >= count, 60.0)


def count_to(number: int) -> Iterator[int]:
    """Yield numbers."""
    yield from range(number)


async def acount_to(number: int) -> AsyncIterator[int]:
    """Yield numbers, and let others run in between."""
    for index in range(number):
        await asyncio.sleep(0)
        yield index


@pytest.mark.parametrize("function", [count_to, acount_to])
async def test_items_arrive_before_the_end_which_counts_them(function: Any) -> None:
    """Of a generator and of an async one."""
    async with bench() as made:
        start(made, function, 20)
        assert await made.values(LEASE, 1) == [20]
        assert items(made) == {index: index for index in range(20)}


@pytest.mark.parametrize("function", [count_to, acount_to])
async def test_a_full_window_stops_the_generator_until_items_are_consumed(function: Any) -> None:
    """It never runs ahead by more."""
    async with bench() as made:
        executor = start(made, function, 10, window=3)
        await has_items(made, 3)
        made.pool.credit(executor, LEASE, 100, 2)
        await has_items(made, 5)
        assert len(items(made)) == 5
        made.pool.credit(executor, LEASE, 100, 1)  # an old word
        made.pool.credit(executor, LEASE, 100, 100)
        assert await made.values(LEASE, 1) == [10]
        assert len(items(made)) == 10


async def test_a_new_attempt_passes_over_what_the_head_has() -> None:
    """These items are not sent, and the window begins where the consumer is."""
    async with bench() as made:
        executor = start(made, count_to, 10, window=3, have=5, consumed=4)
        await has_items(made, 2)
        assert list(items(made)) == [5, 6]
        made.pool.credit(executor, LEASE, 100, 10)
        assert await made.values(LEASE, 1) == [10]
        assert list(items(made)) == [5, 6, 7, 8, 9]


async def test_many_bytes_fill_the_window_too() -> None:
    """However many items it has."""

    def large() -> Iterator[bytes]:
        for _ in range(4):
            yield bytes(WINDOW_BYTES // 2 + 1)

    async with bench() as made:
        executor = start(made, large)
        await has_items(made, 2)
        assert len(items(made)) == 2
        made.pool.credit(executor, LEASE, 100, 4)
        assert await made.values(LEASE, 1) == [4]


async def test_what_a_generator_raises_comes_after_its_items() -> None:
    """With the user's traceback."""

    def breaks() -> Iterator[int]:
        yield 1
        raise ValueError("half-way")

    async with bench() as made:
        start(made, breaks)
        state, info = await made.failure(LEASE)
        assert (state, info.message) == (TaskState.FAILED, "half-way")
        assert "in breaks" in info.traceback
        assert "child_stream" not in info.traceback
        assert items(made) == {0: 1}


async def test_an_item_that_cannot_travel_ends_the_generator(tmp_path: Path) -> None:
    """Its ``finally`` has run, and the error says what is wrong."""

    def odd(path: Path) -> Iterator[Any]:
        try:
            yield 1
            yield (number for number in range(3))
        finally:
            path.touch()

    path = tmp_path / "cleaned"
    async with bench() as made:
        start(made, odd, path)
        _, info = await made.failure(LEASE)
    assert info.code == "PAYLOAD"
    assert "generator" in info.message
    assert path.exists()


async def test_a_function_that_does_not_yield_is_told_so() -> None:
    """A mistake of the caller's."""
    async with bench() as made:
        start(made, len, "text")
        _, info = await made.failure(LEASE)
        assert (info.code, "yields its items" in info.message) == ("PAYLOAD", True)


@pytest.mark.parametrize("function", [count_to, acount_to])
async def test_a_generator_that_waits_can_be_cancelled(function: Any) -> None:
    """At its ``yield``, with a full window; the executor goes on to the next task."""
    async with bench() as made:
        executor = start(made, function, 10**9, window=2)
        await has_items(made, 2)
        made.pool.interrupt(executor, LEASE, 100)
        assert await made.ended(LEASE, 1) == {0: TaskState.CANCELLED}
        assert await made.value(executor, abs, -3) == 3


async def test_a_busy_generator_can_be_cancelled_and_cleans_up() -> None:
    """No message is cut in two: what came before is whole, and so is what comes after."""

    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1000)

    async with bench() as made:
        executor = start(made, endless, window=60_000)
        await has_items(made, 100)
        made.pool.interrupt(executor, LEASE, 100)
        assert await made.ended(LEASE, 1) == {0: TaskState.CANCELLED}
        assert await made.value(executor, abs, -3) == 3


async def test_items_of_an_executor_that_dies_are_kept() -> None:
    """What it has sent is read to the end."""

    def dies() -> Iterator[int]:
        yield from range(50)
        os.kill(os.getpid(), signal.SIGKILL)

    async with bench() as made:
        executor = start(made, dies)
        await made.exit_of(executor)
        assert list(items(made)) == list(range(50))


# ── Without processes ─────────────────────────────────────────────────────────────────────────


def column(*texts: str) -> PayloadColumn:
    """Items."""
    return PayloadColumn.of([text.encode() for text in texts])


def an_outbox() -> Outbox:
    """One with an open session."""
    outbox = Outbox()
    outbox.open(1)
    outbox.take(0, [])
    return outbox


def test_items_wait_for_their_ack_and_travel_again() -> None:
    """In the next session, before what came later."""
    outbox = an_outbox()
    outbox.items.add((1, 0), 0, column("a", "b"))
    outbox.items.add((1, 0), 2, column("c"))
    assert outbox.take(0, None).items == [LeaseItems(1, 0, 0, column("a", "b", "c"))]
    assert outbox.memory_weight > 0
    outbox.items.add((1, 0), 3, column("d"))
    outbox.open(2)
    again = outbox.take(0, [])
    assert again.items == [LeaseItems(1, 0, 0, column("a", "b", "c")), LeaseItems(1, 0, 3, column("d"))]  # fmt: skip  # noqa: E501
    assert outbox.acked(again.number)
    assert outbox.is_settled
    assert outbox.memory_weight == 0


def test_an_outcome_does_not_overtake_items() -> None:
    """A frame that cannot take all items takes no outcomes."""
    from rustray.task.frames import LeaseOutcome

    outbox = an_outbox()
    large = PayloadColumn.of([bytes(1 << 20)])
    outbox.items.add((1, 0), 0, large)
    outbox.items.add((1, 0), 1, large)
    done = LeaseOutcome(1, 0, TaskState.SUCCEEDED, column("2"), 1)
    outbox.waiting.add(done)
    first, second = outbox.take(0, None), outbox.take(0, None)
    assert (len(first.items), first.outcomes) == (1, [])
    assert (len(second.items), second.outcomes) == (1, [done])


def test_neighbours_travel_together_and_streams_stay_apart() -> None:
    """The queue joins what follows on each other, and weighs what it has."""
    queue: ItemQueue[int] = ItemQueue()
    for key, first in ((1, 0), (1, 1), (2, 0), (1, 2), (1, 4)):
        queue.add(key, first, column("x"))
    found = [(key, first, len(items)) for key, first, items in queue.take(1 << 20)]
    assert found == [(1, 0, 2), (2, 0, 1), (1, 2, 1), (1, 4, 1)]
    assert (queue.weight, bool(queue)) == (0, False)


def test_a_window_counts_from_what_is_consumed() -> None:
    """And never holds a generator within what is known already."""
    window = Window(2, have=4, consumed=1)
    for _ in range(4):
        assert window.is_known
        assert not window.is_full
        window.count(0)
    assert window.is_full  # three are there and not consumed
    window.consumed = 3
    assert not window.is_full
    window.count(10)
    assert window.is_full
