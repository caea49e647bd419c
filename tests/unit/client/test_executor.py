"""`rustray.Executor` against the contract of `concurrent.futures.Executor`.

The cases are those of CPython's own test_concurrent_futures that make sense for processes. These
run on the fake head; tests/unit/test_embedded_executor.py has those that need real processes.
"""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import concurrent.futures.process
import functools
import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

import rustray
from helpers.client_session import on_loop
from helpers.fake_head import FakeHead
from helpers.waiting import eventually
from rustray.client import context
from rustray.client.attachment import Attachment
from rustray.common.errors import PayloadError
from rustray.task.codec import encode_failure
from rustray.task.columns import PayloadColumn
from rustray.task.frames import HeadFrame, Outcome
from rustray.task.result import FailureInfo
from rustray.task.state import TaskState


def capture(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments."""
    return args, kwargs


def mul(x: int, y: int) -> int:
    """Multiply."""
    return x * y


def divide(x: int, y: int) -> float:
    """Divide."""
    return x / y


class Thing:
    """Has a method and can be weakly referenced."""

    def __init__(self, value: int) -> None:
        self.value = value

    def get(self) -> int:
        """Return the value."""
        return self.value


@pytest.fixture
def executor(head: FakeHead) -> Iterator[rustray.Executor]:
    """An executor on the program's session."""
    with rustray.Executor() as ex:
        yield ex


def test_submit_returns_a_real_future(executor: rustray.Executor) -> None:
    """A `concurrent.futures.Future` with the result."""
    future = executor.submit(pow, 2, 10)
    assert type(future) is cf.Future
    assert future.result(10) == 1024
    assert future.done()
    assert not future.cancel()


def test_submit_takes_any_keyword(executor: rustray.Executor) -> None:
    """Fn is positional only: self= and fn= belong to the user."""
    assert executor.submit(mul, 2, y=8).result(10) == 16
    found = executor.submit(capture, 1, self=2, fn=3).result(10)
    assert found == ((1,), {"self": 2, "fn": 3})
    with pytest.raises(TypeError):
        executor.submit(fn=capture, arg=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        executor.submit(arg=1)  # type: ignore[call-arg]


def test_any_callable_can_be_submitted(executor: rustray.Executor) -> None:
    """Lambdas, closures, bound methods, classes and partials run with their present state."""
    thing = Thing(1)
    first = executor.submit(thing.get)
    thing.value = 2
    assert [first.result(10), executor.submit(thing.get).result(10)] == [1, 2]
    adders = [executor.submit(lambda x, n=n: x + n, 10) for n in range(3)]
    assert [f.result(10) for f in adders] == [10, 11, 12]
    assert executor.submit(Thing, 5).result(10).value == 5


def test_a_named_function_travels_once(head: FakeHead, executor: rustray.Executor) -> None:
    """And lambdas do not define a class each."""
    for i in range(5):
        executor.submit(mul, i, i).result(10)
        executor.submit(lambda i=i: i).result(10)
    assert len([d for f in head.frames for d in f.classes]) == 2


def test_map_keeps_order_and_submits_eagerly(executor: rustray.Executor) -> None:
    """Like the built-in map, over several iterables, shortest wins."""
    assert list(executor.map(pow, range(10), range(10))) == list(map(pow, range(10), range(10)))
    assert list(executor.map(pow, range(4), range(3), chunksize=3)) == [1, 1, 4]
    assert list(executor.map(mul, [], [], chunksize=2)) == []
    seen: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(3):
            seen.append(i)
            yield i

    results = executor.map(abs, numbers())
    assert seen == [0, 1, 2]
    assert list(results) == [0, 1, 2]


def test_map_raises_at_its_place(executor: rustray.Executor) -> None:
    """Results before the failing item come, then the user's exception."""
    for chunksize in (1, 2):
        results = executor.map(divide, [1, 1, 1, 1], [1, 1, 0, 1], chunksize=chunksize)
        assert [next(results), next(results)] == [1, 1]
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_map_times_out_from_the_call(head: FakeHead, executor: rustray.Executor) -> None:
    """The timeout counts from the call of map."""
    head.hold = True
    results = executor.map(abs, [1, 2], timeout=0.05)
    with pytest.raises(TimeoutError):
        next(results)
    on_loop(head.release)
    head.hold = False


@pytest.mark.parametrize("chunksize", [0, -1])
def test_map_refuses_a_chunksize_below_one(executor: rustray.Executor, chunksize: int) -> None:
    """It is a ValueError at the call."""
    with pytest.raises(ValueError, match="chunksize must be >= 1"):
        executor.map(abs, [1], chunksize=chunksize)


def test_map_keeps_no_reference_to_what_it_yielded(executor: rustray.Executor) -> None:
    """A yielded result can be collected while the iterator lives."""
    for chunksize in (1, 3):
        for result in executor.map(Thing, range(6), chunksize=chunksize):
            found = weakref.ref(result)
            del result
            gc.collect()
            eventually(lambda found=found: found() is None)  # type: ignore[misc]


def test_no_reference_to_arguments_is_kept(executor: rustray.Executor) -> None:
    """The arguments of a call can be collected after it."""
    thing = Thing(1)
    found = weakref.ref(thing)
    future = executor.submit(capture, thing)
    del thing
    future.result(10)
    gc.collect()
    assert found() is None


def test_exceptions_are_the_users_with_a_remote_traceback(executor: rustray.Executor) -> None:
    """Exact type, and a `_RemoteTraceback` as cause, as ProcessPoolExecutor does it."""
    future = executor.submit(divide, 1, 0)
    error = future.exception(10)
    assert type(error) is ZeroDivisionError
    cause = error.__cause__
    assert type(cause) is concurrent.futures.process._RemoteTraceback
    assert "in divide" in str(cause)


def test_an_argument_that_cannot_travel_fails_its_future(executor: rustray.Executor) -> None:
    """Submit does not raise, the future has the error, and others go on."""
    future = executor.submit(capture, threading.Lock())
    assert isinstance(future.exception(10), PayloadError)
    assert executor.submit(abs, -1).result(10) == 1


def test_pending_calls_can_be_cancelled_and_running_ones_not(
    head: FakeHead, executor: rustray.Executor
) -> None:
    """What waits here is cancelled for sure; what the cluster has is running."""
    head.hold = True
    futures = [executor.submit(abs, i) for i in range(20)]
    running = [f for f in futures if f.running()]
    assert 0 < len(running) < 20
    assert not running[0].cancel()
    assert futures[-1].cancel()
    assert futures[-1].cancelled()
    with pytest.raises(cf.CancelledError):
        futures[-1].result()
    head.hold = False
    on_loop(head.release)
    assert [f.result(10) for f in futures[:-1]] == list(range(19))
    assert len(head.ran) == 19


@pytest.mark.parametrize(
    ("quick", "slow"),
    [
        (abs, capture),
        (lambda i: i, lambda i: -i),
        (functools.partial(abs), functools.partial(mul, 2)),
    ],
    ids=["functions", "lambdas", "partials"],
)
def test_quick_calls_of_one_function_leave_those_of_others_cancellable(
    head: FakeHead, executor: rustray.Executor, quick: Any, slow: Any
) -> None:
    """However quick a burst was, of another function no more are handed over than keep it busy."""
    for future in [executor.submit(quick, i) for i in range(5_000)]:
        future.result(30)
    head.hold = True
    futures = [executor.submit(slow, i) for i in range(50)]
    at_once = 2 * executor._max_workers
    running = [f.running() for f in futures]
    cancelled = [f.cancel() for f in futures]
    head.hold = False
    on_loop(head.release)
    assert running == [True] * at_once + [False] * (50 - at_once)
    assert cancelled == [False] * at_once + [True] * (50 - at_once)


def test_callbacks_run_once_even_if_one_raises(
    head: FakeHead, executor: rustray.Executor, caplog: pytest.LogCaptureFixture
) -> None:
    """Exceptions of callbacks are logged; a callback may block for another result."""
    head.hold = True
    calls: list[Any] = []
    future = executor.submit(abs, -3)

    def bad(_future: cf.Future[int]) -> None:
        raise ValueError("in callback")

    future.add_done_callback(bad)
    future.add_done_callback(lambda f: calls.append(f.result()))
    future.add_done_callback(lambda _: calls.append(executor.submit(abs, -4).result(10)))
    head.hold = False
    on_loop(head.release)
    eventually(lambda: calls == [3, 4])
    assert "in callback" in caplog.text


def test_wait_and_as_completed_work(executor: rustray.Executor) -> None:
    """Futures are real: the module's functions take them."""
    futures = [executor.submit(abs, -i) for i in range(50)]
    assert {f.result() for f in cf.as_completed(futures, 10)} == set(range(50))
    assert cf.wait(futures, 10).not_done == set()


async def test_asyncio_takes_the_executor(executor: rustray.Executor) -> None:
    """run_in_executor and wrap_future work."""
    loop = asyncio.get_running_loop()
    assert await loop.run_in_executor(executor, abs, -7) == 7
    assert await asyncio.wrap_future(executor.submit(abs, -8)) == 8


def test_shutdown_refuses_what_comes_after(head: FakeHead) -> None:
    """Submit after shutdown is a RuntimeError; shutdown may be called again."""
    executor = rustray.Executor()
    future = executor.submit(abs, -1)
    executor.shutdown()
    assert future.done()
    executor.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(abs, 1)
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.map(abs, [1])


def test_shutdown_cancels_what_waits(head: FakeHead) -> None:
    """cancel_futures cancels everything that has not been handed over, and wakes waiters."""
    head.hold = True
    executor = rustray.Executor()
    futures = [executor.submit(abs, i) for i in range(50)]
    executor.shutdown(wait=False, cancel_futures=True)
    cancelled = [f for f in futures if f.cancelled()]
    assert len(cancelled) > 20
    assert cf.wait(cancelled, 5).not_done == set()
    head.hold = False
    on_loop(head.release)
    assert all(f.result(10) is not None for f in futures if not f.cancelled())


def test_shutdown_without_wait_lets_calls_end(head: FakeHead) -> None:
    """It returns at once; what was submitted still runs."""
    head.hold = True
    executor = rustray.Executor()
    futures = [executor.submit(abs, i) for i in range(20)]
    executor.shutdown(wait=False)
    head.hold = False
    on_loop(head.release)
    assert [f.result(10) for f in futures] == list(range(20))


@pytest.mark.parametrize("count", [0, -1])
def test_max_workers_must_be_positive(count: int) -> None:
    """Before anything is started."""
    with pytest.raises(ValueError, match="max_workers"):
        rustray.Executor(max_workers=count)


def test_a_number_in_place_of_the_address_is_told_where_it_belongs() -> None:
    """``ThreadPoolExecutor(4)`` is ``Executor(max_workers=4)``; other things are no address."""
    with pytest.raises(TypeError, match=r"must be text.*not 4; .* write max_workers=4;"):
        rustray.Executor(4)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"must be text.*not b'host'; without one"):
        rustray.Executor(b"host")  # type: ignore[arg-type]


def test_the_initializer_must_be_callable() -> None:
    """Before anything is started."""
    with pytest.raises(TypeError, match="initializer"):
        rustray.Executor(initializer=123)  # type: ignore[arg-type]


def test_max_workers_limits_calls_at_once_on_a_shared_cluster(head: FakeHead) -> None:
    """With a limit, no more than that are handed over."""
    head.hold = True
    with rustray.Executor(max_workers=3) as executor:
        assert executor._max_workers == 3
        futures = [executor.submit(abs, i) for i in range(10)]
        eventually(lambda: len(head.held) == 3)
        assert sum(f.running() for f in futures) == 3
        head.hold = False
        on_loop(head.release)


def test_an_initializer_runs_first_and_once(head: FakeHead) -> None:
    """Once per process, before the first call."""
    with rustray.Executor(initializer=_remember, initargs=("x",)) as executor:
        _remembered.clear()
        assert executor.submit(_recall).result(10) == ["x"]
        assert executor.submit(_recall).result(10) == ["x"]


def test_a_failing_initializer_breaks_the_executor(head: FakeHead) -> None:
    """All futures get BrokenExecutor, and submit refuses from then on."""
    executor = rustray.Executor(initializer=divide, initargs=(1, 0))
    head.hold = True
    futures = [executor.submit(abs, i) for i in range(30)]
    head.hold = False
    on_loop(head.release)
    for future in futures:
        error = future.exception(10)
        assert isinstance(error, cf.BrokenExecutor)
    assert executor._broken
    with pytest.raises(cf.BrokenExecutor, match="initializer failed"):
        executor.submit(abs, 1)
    executor.shutdown()


def test_a_dead_process_breaks_only_its_own_future(
    head: FakeHead, executor: rustray.Executor
) -> None:
    """WORKER_LOST becomes BrokenProcessPool for that call; the executor goes on."""
    head.hold = True
    first, second = executor.submit(abs, -1), executor.submit(abs, -2)
    eventually(lambda: len(head.held) == 2)
    dead = encode_failure(FailureInfo("WORKER_LOST", "executor died: signal 9", signal=9))
    link, outcome = head.held.pop(0)
    lost = Outcome(outcome.first, TaskState.FAILED, PayloadColumn.of([dead]), "w", 1)
    on_loop(lambda: link.answer(HeadFrame(outcomes=[lost])))
    error = first.exception(10)
    assert isinstance(error, concurrent.futures.process.BrokenProcessPool)
    assert "signal 9" in str(error)
    head.hold = False
    on_loop(head.release)
    assert second.result(10) == 2
    assert executor.submit(abs, -3).result(10) == 3


def test_a_cancel_from_elsewhere_is_a_cancelled_error(
    head: FakeHead, executor: rustray.Executor
) -> None:
    """A task that somebody cancels by its id raises CancelledError from result()."""
    head.hold = True
    future = executor.submit(abs, -1)
    eventually(lambda: head.held)
    link, outcome = head.held.pop(0)
    on_loop(lambda: head.cancel_one(link, outcome.first))
    with pytest.raises(cf.CancelledError):
        future.result(10)


def test_a_closed_session_fails_futures(head: FakeHead) -> None:
    """rustray.shutdown() under an executor leaves no future pending."""
    head.hold = True
    executor = rustray.Executor()
    futures = [executor.submit(abs, i) for i in range(30)]
    rustray.shutdown()
    for future in futures:
        assert future.exception(10) is not None
    with pytest.raises(RuntimeError):
        executor.submit(abs, 1)
    executor.shutdown()


def test_many_calls_come_back(executor: rustray.Executor) -> None:
    """The window opens by itself; nothing is lost on the way."""
    futures = [executor.submit(abs, -i) for i in range(5_000)]
    assert [f.result(30) for f in futures] == list(range(5_000))


_remembered: list[str] = []


def _remember(text: str) -> None:
    _remembered.append(text)


def _recall() -> list[str]:
    return list(_remembered)


# ---- maps on a cluster, in chunks that size themselves -------------------------------------


@pytest.fixture
def far_executor(head: FakeHead, monkeypatch: pytest.MonkeyPatch) -> Iterator[rustray.Executor]:
    """An executor on a head with an address, whose calls may run again."""
    monkeypatch.setattr(context.current_runtime(), "address", "rustray://far:8000")
    monkeypatch.setattr(Attachment, "count_slots", lambda _self: 2)
    with rustray.Executor() as executor:
        yield executor


def test_a_map_on_a_cluster_travels_in_few_tasks(
    head: FakeHead, far_executor: rustray.Executor
) -> None:
    """A chunk size that is given is kept to; all inputs are read at the call."""
    calls = iter(range(5000))
    results = far_executor.map(abs, calls)
    assert list(calls) == []
    assert list(results) == list(range(5000))
    assert len(head.ran) < 100
    head.ran.clear()
    assert list(far_executor.map(divide, range(6), [1] * 9, chunksize=1)) == [0, 1, 2, 3, 4, 5]
    assert len(head.ran) == 6


def test_a_map_on_a_cluster_raises_at_its_place(far_executor: rustray.Executor) -> None:
    """The user's exception itself; a StopIteration would look like the end."""
    results = far_executor.map(divide, [1, 1, 1], [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError) as caught:
        next(results)
    assert type(caught.value) is ZeroDivisionError
    assert list(results) == []
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(far_executor.map(next, [iter([])]))


def test_a_map_on_a_cluster_times_out_from_the_call(
    head: FakeHead, far_executor: rustray.Executor
) -> None:
    """And what is out is cancelled when its consumer has gone."""
    head.hold = True
    results = far_executor.map(abs, [1, 2], timeout=0.05)
    with pytest.raises(TimeoutError):
        next(results)
    eventually(lambda: not head.held)
    head.hold = False


def test_a_map_on_a_cluster_keeps_nothing_that_it_yielded(far_executor: rustray.Executor) -> None:
    """A yielded result can be collected while the iterator lives."""
    for result in far_executor.map(Thing, range(6)):
        found = weakref.ref(result)
        del result
        gc.collect()
        eventually(lambda found=found: found() is None)  # type: ignore[misc]


def test_shutdown_waits_for_maps_or_cuts_them_off(
    head: FakeHead, far_executor: rustray.Executor
) -> None:
    """As for calls: all results are there after it, unless they were to be cancelled."""
    results = far_executor.map(abs, range(1000))
    far_executor.shutdown()
    assert list(results) == list(range(1000))
    head.hold = True
    other = rustray.Executor()
    cut_off = other.map(abs, range(1000))
    eventually(lambda: head.held)
    other.shutdown(cancel_futures=True)
    with pytest.raises(RuntimeError, match="cut off"):
        list(cut_off)
    head.hold = False
    with pytest.raises(RuntimeError, match="shutdown"):
        other.map(abs, [1])
