"""`rustray.map` and `rustray.amap` on a fake head that runs tasks inline."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import rustray
from helpers.client_session import on_loop
from helpers.fake_head import FakeHead
from helpers.waiting import aeventually, eventually
from rustray.client.map_iterator import MapIterator
from rustray.common.errors import (
    AuthorizationError,
    CommunicationError,
    GetTimeout,
    PayloadError,
    TaskExecutionFailed,
)
from rustray.common.resources import CPU, ResourceSet
from rustray.task.spec import TaskClass

pytestmark = pytest.mark.usefixtures("head")


def square(x: int) -> int:
    """Square."""
    return x * x


def invert(x: int) -> float:
    """Divide."""
    return 1 / x


def add(x: int, y: int) -> int:
    """Add."""
    return x + y


class Counted:
    """An endless input that knows how far it was read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[int]:
        while True:
            self.read += 1
            yield self.read - 1


async def ticks(count: int, error: Exception | None = None) -> AsyncIterator[int]:
    """Yield numbers, and give way in between."""
    for i in range(count):
        await asyncio.sleep(0)
        yield i
    if error is not None:
        raise error


def test_results_come_in_the_order_of_the_items() -> None:
    """As the built-in map gives them."""
    assert list(rustray.map(square, range(5000))) == [x * x for x in range(5000)]
    assert list(rustray.map(square, [])) == []


def test_several_inputs_end_with_the_shortest() -> None:
    """An item is one of each."""
    assert list(rustray.map(add, range(100), itertools.count(1))) == [2 * x + 1 for x in range(100)]


def test_many_items_travel_in_few_tasks(head: FakeHead) -> None:
    """A chunk is one task, and they grow."""
    assert sum(rustray.map(abs, range(20_000))) == sum(range(20_000))
    assert len(head.ran) < 200


def test_the_function_travels_once(head: FakeHead) -> None:
    """Each later map of the same function defines no further class."""
    for _ in range(3):
        assert list(rustray.map(square, range(100))) == [x * x for x in range(100)]
    assert sum(len(frame.classes) for frame in head.frames) == 1


def test_a_remote_function_brings_its_options(head: FakeHead) -> None:
    """`options` goes over what it was decorated with."""
    remote = rustray.remote(num_cpus=2, priority=3)(square)
    assert list(rustray.map(remote, range(3), options={"priority": 5})) == [0, 1, 4]
    (task_class,) = _classes(head)
    assert task_class.priority == 5
    assert task_class.resources == ResourceSet.of({CPU: 2})


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"options": {"num_cpu": 1}}, ValueError, "did you mean 'num_cpus'"),
        ({"chunk_size": 0}, ValueError, "chunk_size"),
        ({"options": {"num_returns": 2}}, ValueError, "num_returns must be 1"),
        ({"read_ahead": 0}, ValueError, "read_ahead"),
    ],
)
def test_bad_settings_fail_at_the_call(
    settings: dict[str, Any], error: type[Exception], match: str
) -> None:
    """And not at the first result."""
    with pytest.raises(error, match=match):
        rustray.map(square, [1], **settings)


def test_what_is_no_function_or_input_fails_at_the_call() -> None:
    """A TypeError names it."""
    with pytest.raises(TypeError, match="map takes a function"):
        rustray.map(3, [1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="int"):
        rustray.map(square, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="function name"):
        rustray.map("", [1])


def test_a_function_that_cannot_travel_is_named() -> None:
    """At the first result, for it is pickled then."""
    lock = threading.Lock()

    def hold(_x: int) -> bool:
        return lock.locked()

    with pytest.raises(PayloadError, match="hold cannot be pickled"):
        next(rustray.map(hold, [1]))


def test_nothing_is_read_before_the_first_result_is_asked_for(head: FakeHead) -> None:
    """And an endless input is read a little ahead, then no further."""
    source = Counted()
    results = rustray.map(square, source)
    assert source.read == 0
    assert not head.ran
    assert [next(results) for _ in range(100)] == [x * x for x in range(100)]
    eventually(lambda: len(head.ran) > 1)
    read = source.read
    assert read < 1_000_000
    assert next(results) == 100 * 100
    results.close()
    assert list(results) == []


def test_read_ahead_bounds_what_is_read() -> None:
    """In items."""
    source = Counted()
    results = rustray.map(square, source, read_ahead=10)
    for taken, value in enumerate(itertools.islice(results, 500)):
        assert value == taken * taken
        assert source.read <= taken + 1 + 10 + 10  # what it holds of the present part included


@pytest.mark.parametrize("leave", ["close", "with", "drop", "break"])
def test_a_consumer_that_leaves_cancels_what_is_under_way(head: FakeHead, leave: str) -> None:
    """However it leaves; and nothing more is read."""
    head.hold = True
    source = Counted()
    results = rustray.map(square, source, chunk_size=1)
    with pytest.raises(GetTimeout):
        results.next(timeout=0.01)
    eventually(lambda: len(head.held) >= 3)
    on_loop(lambda: head.release(1))
    if leave == "close":
        assert next(results) == 0
        results.close()
    elif leave == "with":
        with results:
            assert next(results) == 0
    else:
        for value in results:
            assert value == 0
            break
    read = source.read
    if leave == "drop":
        del results
        gc.collect()
    elif leave == "break":
        results = rustray.map(square, [])  # the last reference to the old one goes
    eventually(lambda: not head.held)
    assert source.read == read


def test_an_error_is_raised_at_its_place_and_the_rest_goes_on() -> None:
    """It is the user's class, knows its item, and has the remote traceback."""
    results = rustray.map(invert, [1, 2, 0, 4])
    assert [next(results), next(results)] == [1.0, 0.5]
    with pytest.raises(ZeroDivisionError) as caught:
        next(results)
    error = caught.value
    assert isinstance(error, TaskExecutionFailed)
    assert error.item_index == 2
    assert error.__notes__ == ["item 2 of the map's input"]
    assert "in invert" in error.remote_traceback
    assert "in invert" in str(error.__cause__)
    assert list(results) == [0.25]


def test_errors_may_be_returned() -> None:
    """In their places."""
    found = list(rustray.map(invert, [1, 0, 2, 0], return_exceptions=True))
    assert [x for x in found if isinstance(x, float)] == [1.0, 0.5]
    errors: list[Any] = [x for x in found if isinstance(x, ZeroDivisionError)]
    assert [error.item_index for error in errors] == [1, 3]


def test_a_stop_iteration_of_an_item_does_not_end_the_results() -> None:
    """It comes as `TaskExecutionFailed` alone."""

    def stop(x: int) -> int:
        if x == 1:
            raise StopIteration("done")
        return x

    results = rustray.map(stop, range(3))
    assert next(results) == 0
    with pytest.raises(TaskExecutionFailed, match="StopIteration"):
        next(results)
    assert list(results) == [2]


def test_what_the_input_raises_comes_after_the_results_before_it() -> None:
    """Then there is no more."""

    def source() -> Iterator[int]:
        yield from range(100)
        raise LookupError("the file is cut")

    for ordered in (True, False):
        results = rustray.map(square, source(), ordered=ordered)
        assert sorted(itertools.islice(results, 100)) == [x * x for x in range(100)]
        with pytest.raises(LookupError, match="the file is cut"):
            next(results)
        assert list(results) == []


def test_an_interrupted_input_loses_nothing() -> None:
    """After a Ctrl-C in the input the results of what was read still come."""

    class Source:
        def __init__(self) -> None:
            self.next = 0

        def __iter__(self) -> Source:
            return self

        def __next__(self) -> int:
            self.next += 1
            if self.next == 5:
                raise KeyboardInterrupt
            if self.next > 8:
                raise StopIteration
            return self.next

    results = rustray.map(square, Source(), chunk_size=3)
    found = []
    interrupts = 0
    while True:
        try:
            found.append(next(results))
        except KeyboardInterrupt:
            interrupts += 1
        except StopIteration:
            break
    assert interrupts == 1
    assert found == [1, 4, 9, 16, 36, 49, 64]


def test_an_item_that_cannot_be_pickled_fails_alone() -> None:
    """Its neighbours in the chunk run."""
    items: list[Any] = [*range(50), threading.Lock(), *range(50)]
    found = list(rustray.map(str, items, chunk_size=101, return_exceptions=True))
    assert isinstance(found[50], PayloadError)
    assert "cannot be pickled" in str(found[50])
    assert found[50].item_index == 50
    assert [x for i, x in enumerate(found) if i != 50] == [str(x) for x in [*range(50)] * 2]


def test_references_are_no_items() -> None:
    """An error says what to do instead: a chunk cannot wait for its items one by one."""
    refs = [rustray.remote(square).remote(x) for x in range(3)]
    with pytest.raises(PayloadError, match=r"rustray\.map\(fn, rustray\.get\(refs\)\)"):
        next(rustray.map(square, refs))
    found: list[Any] = list(rustray.map(add, [1, refs[0], 3], range(3), return_exceptions=True))
    assert [found[0], found[2]] == [1, 5]
    assert "task reference" in str(found[1])
    assert list(rustray.map(square, rustray.get(refs))) == [0, 1, 16]


class Unloadable:
    """Pickles well, and raises where it is unpickled."""

    def __reduce__(self) -> Any:
        return _explode, ()


def _explode() -> None:
    raise RuntimeError("no such thing here")


def test_a_result_that_cannot_be_decoded_fails_alone() -> None:
    """In the consumer, at its place."""
    found = list(
        rustray.map(lambda x: Unloadable() if x == 3 else [x], range(6), return_exceptions=True)
    )
    assert [x for x in found if isinstance(x, list)] == [[0], [1], [2], [4], [5]]
    assert isinstance(found[3], PayloadError)
    assert found[3].item_index == 3


def test_chunks_that_are_large_are_cut(head: FakeHead) -> None:
    """No task carries more than it should, whatever chunk was asked for."""
    items = [bytes([i]) * 300_000 for i in range(10)]
    assert list(rustray.map(len, items, chunk_size=10)) == [300_000] * 10
    assert len(head.ran) >= 5


def test_waiting_may_have_a_limit(head: FakeHead) -> None:
    """`next(timeout=...)` says that there is nothing yet, and loses nothing."""
    head.hold = True
    results = rustray.map(square, range(3))
    with pytest.raises(GetTimeout, match=r"0\.01 s"):
        results.next(timeout=0.01)
    head.hold = False
    on_loop(head.release)
    assert list(results) == [0, 1, 4]


def test_exceptions_are_retried_item_by_item(head: FakeHead, tmp_path: Path) -> None:
    """The item alone runs again, as a task of its own with one run less."""
    log = tmp_path / "log"

    def flaky(x: int) -> int:
        seen = log.read_text().split() if log.exists() else []
        log.write_text(" ".join([*seen, str(x)]))
        if x in (3, 7) and str(x) not in seen:
            raise ConnectionError("again")
        return x

    options = {"retry_exceptions": [ConnectionError], "retry_delay_s": 0.01}
    assert list(rustray.map(flaky, range(10), chunk_size=10, options=options)) == list(range(10))
    assert sorted(map(int, log.read_text().split())) == sorted([*range(10), 3, 7])
    assert {task_class.max_retries for task_class in _classes(head)} == {2, 3}


def _classes(head: FakeHead) -> list[TaskClass]:
    return [definition.task_class for frame in head.frames for definition in frame.classes]


def test_a_refusal_of_the_head_is_that_of_each_item(head: FakeHead) -> None:
    """As for any task."""
    head.refuse = lambda _class: AuthorizationError("you may not")
    found: list[Any] = list(rustray.map(square, range(3), return_exceptions=True))
    assert [type(x) for x in found] == [AuthorizationError] * 3


def test_after_shutdown_it_says_so(head: FakeHead) -> None:
    """The consumer does not wait for ever."""
    head.hold = True
    results = rustray.map(square, range(3))
    caught: list[BaseException] = []

    def consume() -> None:
        try:
            next(results)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=consume)
    thread.start()
    eventually(lambda: head.held)
    rustray.shutdown()
    thread.join(10)
    assert isinstance(caught[0], CommunicationError)


def test_a_context_maps_in_its_own_cluster() -> None:
    """`init` returns it."""
    context = rustray.init(ignore_reinit_error=True)
    assert list(context.map(square, range(4), ordered=True)) == [0, 1, 4, 9]
    with pytest.raises(TypeError):
        context.map(square, range(4), orderly=True)


def test_a_callback_of_rustray_may_not_wait_for_results(head: FakeHead) -> None:
    """It would wait for itself."""
    results: MapIterator[int] = rustray.map(square, range(3))
    assert next(results) == 0
    head.hold = True
    later: MapIterator[int] = rustray.map(square, range(3))
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            next(later)
        except BaseException as error:
            caught.append(error)

    on_loop(ask)
    assert "would wait for itself" in str(caught[0])


# ---- amap ------------------------------------------------------------------------------------


async def test_a_stop_of_an_item_does_not_end_an_asynchronous_loop() -> None:
    """It comes as `TaskExecutionFailed` alone."""

    def stop(x: int) -> int:
        if x == 1:
            raise StopAsyncIteration("done")
        return x

    found: list[Any] = [x async for x in rustray.amap(stop, range(3), return_exceptions=True)]
    assert [found[0], found[2]] == [0, 2]
    assert isinstance(found[1], TaskExecutionFailed)
    assert not isinstance(found[1], StopAsyncIteration)


async def test_amap_takes_plain_and_asynchronous_inputs() -> None:
    """In order; and several of both kinds at once."""
    assert [x async for x in rustray.amap(square, range(1000))] == [x * x for x in range(1000)]
    assert [x async for x in rustray.amap(square, ticks(1000))] == [x * x for x in range(1000)]
    found = [x async for x in rustray.amap(add, ticks(10), itertools.count())]
    assert found == [2 * x for x in range(10)]
    assert [x async for x in rustray.amap(square, ticks(0))] == []


async def test_amap_raises_what_the_input_raises_at_the_end() -> None:
    """After the results of what came before."""
    results = rustray.amap(square, ticks(10, LookupError("cut")))
    found = []
    async for value in results:
        found.append(value)
        if len(found) == 10:
            break
    assert found == [x * x for x in range(10)]
    with pytest.raises(LookupError, match="cut"):
        await anext(results)
    assert [x async for x in results] == []


async def test_amap_has_errors_at_their_places() -> None:
    """Raised or returned."""
    results = rustray.amap(invert, [1, 0, 2])
    assert await anext(results) == 1.0
    with pytest.raises(ZeroDivisionError):
        await anext(results)
    assert await anext(results) == 0.5
    found = [x async for x in rustray.amap(invert, [0], return_exceptions=True)]
    assert isinstance(found[0], ZeroDivisionError)


@pytest.mark.parametrize("leave", ["aclose", "drop"])
async def test_amap_cancels_when_its_consumer_leaves(head: FakeHead, leave: str) -> None:
    """And its input is read no further."""
    read = 0

    async def source() -> AsyncIterator[int]:
        nonlocal read
        while True:
            await asyncio.sleep(0)
            read += 1
            yield read - 1

    head.hold = True
    results = rustray.amap(square, source(), chunk_size=1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await anext(results)
    assert len(head.held) >= 2
    if leave == "aclose":
        await results.aclose()
    del results
    gc.collect()
    await aeventually(lambda: not head.held)
    await aeventually(
        lambda: not [t for t in asyncio.all_tasks() if t.get_name() == "rustray-map-input"]
    )
    before = read
    for _ in range(50):
        await asyncio.sleep(0)
    assert read == before


async def test_a_cancelled_consumer_may_go_on(head: FakeHead) -> None:
    """A timeout of asyncio around one result loses nothing."""
    head.hold = True
    results = rustray.amap(square, range(3))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await anext(results)
    head.hold = False
    release: Callable[[], None] = head.release
    await asyncio.to_thread(on_loop, release)
    assert [x async for x in results] == [0, 1, 4]
