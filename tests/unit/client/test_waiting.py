"""`get`, `wait`, their async twins, and awaiting references."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

import rustray
from helpers.client_session import on_loop
from helpers.fake_head import FakeHead
from helpers.waiting import aeventually, eventually
from rustray.client import context
from rustray.common.errors import GetTimeout, PayloadError, RustRayError, TaskCancelled
from rustray.task import flat


@rustray.remote
def double(x: int) -> int:
    """Return twice the argument."""
    return 2 * x


@rustray.remote
def fail(text: str) -> None:
    """Raise."""
    raise ValueError(text)


def refuse() -> None:
    """Be what no value comes of."""
    raise LookupError("no way")


class Unreadable:
    """Can be encoded, and not decoded."""

    def __reduce__(self) -> Any:
        return refuse, ()


def held(head: FakeHead, count: int) -> list[Any]:
    """References whose outcomes the head holds back."""
    head.hold = True
    refs = [double.remote(i) for i in range(count)]
    eventually(lambda: len(head.held) == count)
    return refs


def watchers(ref: Any) -> int:
    """How many watchers a reference's batch has."""
    return sum(map(len, (ref._batch._watchers or {}).values()))


def test_get_times_out_and_the_task_goes_on(head: FakeHead) -> None:
    """GetTimeout says how many are missing; a later get succeeds; no waiter is left."""
    refs = held(head, 3)
    on_loop(lambda: head.release(1))
    with pytest.raises(GetTimeout, match="2 tasks had not ended") as caught:
        rustray.get(refs, timeout=0.05)
    assert isinstance(caught.value, TimeoutError)
    assert watchers(refs[2]) == 0
    with pytest.raises(GetTimeout):
        rustray.get(refs[2], timeout=0)
    on_loop(head.release)
    assert rustray.get(refs, timeout=0) == [0, 2, 4]


def test_values_of_many_are_decoded_as_one_alone_is(head: FakeHead) -> None:
    """Small and large ones, of several classes; and the first that has none names its task."""
    size = flat.MIN_BUFFER_BYTES
    zeros = rustray.remote(lambda count: np.zeros(count, np.uint8))
    refs: list[Any] = [
        double.remote(4),
        zeros.remote(3),
        zeros.remote(size),
        double.remote(5),
        zeros.remote(size),
    ]
    found = rustray.get(refs)
    for value, ref in zip(found, refs, strict=True):
        alone = rustray.get(ref)
        assert type(value) is type(alone)
        assert np.array_equal(value, alone)
        if isinstance(value, np.ndarray):
            assert value.flags.writeable is (len(value) < size)
    strange = rustray.remote(lambda: Unreadable())
    bad = strange.remote()
    for asked in (bad, [refs[0], bad]):
        with pytest.raises(PayloadError, match=f"{bad.task_id} cannot be decoded here.*no way"):
            rustray.get(asked)
    failed = fail.remote("as planned")
    rustray.wait([failed])
    with pytest.raises(ValueError, match="as planned"):
        rustray.get([refs[0], failed, bad])


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", True])
def test_a_bad_timeout_is_a_value_error(head: FakeHead, timeout: Any) -> None:
    """Timeouts are None or seconds from 0 on."""
    refs = held(head, 1)
    with pytest.raises(ValueError, match="timeout"):
        rustray.get(refs, timeout=timeout)


def test_get_raises_as_soon_as_one_task_fails(head: FakeHead) -> None:
    """The first failure ends the wait although others are still running."""
    refs = held(head, 2)
    bad = fail.remote("now")
    eventually(lambda: len(head.held) == 3)
    timer = threading.Timer(0.05, lambda: on_loop(lambda: head.release()))
    ready = head.held.pop()
    head.held.insert(0, ready)
    timer.function = lambda: on_loop(lambda: head.release(1))
    timer.start()
    with pytest.raises(ValueError, match="now"):
        rustray.get([refs[0], bad, refs[1]], timeout=10)
    timer.join()
    assert not refs[0].is_done
    assert context.current_session is not None
    assert not context.current_session.arrivals._failures


def test_failures_of_others_do_not_disturb(head: FakeHead) -> None:
    """A get is not ended by the failure of a task that it does not wait for."""
    refs = held(head, 2)
    with pytest.raises(GetTimeout):
        rustray.get(refs, timeout=0.01)
    other = fail.remote("elsewhere")
    eventually(lambda: len(head.held) == 3)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(rustray.get(refs, timeout=10)))
    thread.start()
    session: Any = context.current_session
    eventually(lambda: session.arrivals._failures)
    head.held.insert(0, head.held.pop())
    on_loop(lambda: head.release(1))
    assert other.is_done
    on_loop(head.release)
    thread.join()
    assert found == [[0, 2]]


def test_get_decodes_anew_each_time(head: FakeHead) -> None:
    """Two gets of one reference do not share a mutable value."""

    @rustray.remote
    def make() -> list[int]:
        return [1]

    ref = make.remote()
    rustray.get(ref).append(2)
    assert rustray.get(ref) == [1]


def test_get_takes_references_only(head: FakeHead) -> None:
    """Anything else is a TypeError that shows it."""
    with pytest.raises(TypeError, match="int"):
        rustray.get([3])  # type: ignore[arg-type, unused-ignore]
    with pytest.raises(TypeError, match="references"):
        rustray.get(3)  # type: ignore[call-overload]
    assert rustray.get([]) == []


def test_wait_keeps_order_and_number(head: FakeHead) -> None:
    """At most num_returns are ready, in the order given, the others are the rest."""
    refs = held(head, 5)
    on_loop(lambda: head.release(3))
    ready, rest = rustray.wait(refs[::-1], num_returns=2)
    assert ready == [refs[2], refs[1]]
    assert rest == [refs[4], refs[3], refs[0]]
    assert rustray.wait(refs, num_returns=5, timeout=0.01) == (refs[:3], refs[3:])
    assert rustray.wait(refs, num_returns=5, timeout=0)[0] == refs[:3]


def test_wait_wakes_when_enough_have_ended(head: FakeHead) -> None:
    """It returns with the one arrival that completes the number."""
    refs = held(head, 4)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(rustray.wait(refs, num_returns=3)))
    thread.start()
    session: Any = context.current_session
    for _ in range(3):
        eventually(lambda: session.arrivals._counted)
        on_loop(lambda: head.release(1))
    thread.join(10)
    assert found == [(refs[:3], refs[3:])]
    assert not session.arrivals._counted


def test_wait_refuses_what_can_never_be(head: FakeHead) -> None:
    """More than there are, fewer than one, or one twice, is a ValueError."""
    refs = held(head, 2)
    for bad in (3, 0, -1, 1.5):
        with pytest.raises(ValueError, match="num_returns"):
            rustray.wait(refs, num_returns=bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="twice"):
        rustray.wait([refs[0], refs[0]])


async def test_wait_takes_the_fetch_local_of_ray(head: FakeHead) -> None:
    """It changes nothing, and must be a bool."""
    refs = [double.remote(1), double.remote(2)]
    await rustray.aget(refs)
    for value in (True, False):
        assert rustray.wait(refs, fetch_local=value) == (refs[:1], refs[1:])
        assert await rustray.await_(refs, fetch_local=value) == (refs[:1], refs[1:])
    for bad in (None, 1, "no"):
        with pytest.raises(ValueError, match="fetch_local must be True or False"):
            rustray.wait(refs, fetch_local=bad)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="fetch_local must be True or False"):
            await rustray.await_(refs, fetch_local=bad)  # type: ignore[arg-type]


async def test_references_can_be_awaited(head: FakeHead) -> None:
    """`await ref`, `asyncio.gather` and `aget` work on any loop."""
    refs = [double.remote(i) for i in range(100)]
    assert await asyncio.gather(*refs) == [2 * i for i in range(100)]
    assert await double.remote(4) == 8
    assert await rustray.aget([double.remote(5), double.remote(6)]) == [10, 12]
    assert await rustray.aget(double.remote(7)) == 14
    with pytest.raises(ValueError, match="later"):
        await fail.remote("later")


async def test_async_waits_do_not_block(head: FakeHead) -> None:
    """Other coroutines run while `aget` and `await_` wait, and timeouts hold."""
    head.hold = True
    refs = [double.remote(i) for i in range(3)]
    await aeventually(lambda: len(head.held) == 3)
    waiting = asyncio.create_task(rustray.aget(refs))
    some = asyncio.create_task(rustray.await_(refs, num_returns=1))
    with pytest.raises(GetTimeout):
        await rustray.aget(refs, timeout=0.01)
    assert await rustray.await_(refs, timeout=0.01) == ([], refs)
    await asyncio.to_thread(on_loop, lambda: head.release(1))
    assert await some == (refs[:1], refs[1:])
    await asyncio.to_thread(on_loop, head.release)
    assert await waiting == [0, 2, 4]


async def test_a_timeout_around_an_awaited_reference_cancels_the_task(head: FakeHead) -> None:
    """Awaiting is like awaiting an asyncio task; `aget` leaves the task alone."""
    head.hold = True
    ref, other = double.remote(1), double.remote(2)
    await aeventually(lambda: len(head.held) == 2)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await rustray.aget(other)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await ref
    with pytest.raises(TaskCancelled):
        await rustray.aget(ref, timeout=10)
    assert watchers(other) == 0
    await asyncio.to_thread(on_loop, head.release)
    assert await other == 4


async def test_blocking_inside_a_running_loop_warns(head: FakeHead) -> None:
    """`get` works there, and says what to use instead."""
    head.hold = True
    ref = double.remote(1)
    await aeventually(lambda: head.held)
    with (
        pytest.warns(RuntimeWarning, match="await ref"),
        pytest.raises(GetTimeout),
    ):
        rustray.get(ref, timeout=0.01)


def test_blocking_on_the_loop_thread_is_refused(head: FakeHead) -> None:
    """Waiting where results arrive would wait for ever: an error says so."""
    ref = held(head, 1)[0]
    with pytest.raises(RustRayError, match="wait for itself"):
        on_loop(lambda: rustray.get(ref))


def test_ctrl_c_ends_a_blocking_get(head: FakeHead) -> None:
    """A signal is handled while get blocks, and leaves nothing behind."""
    ref = held(head, 1)[0]
    threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        rustray.get(ref, timeout=30)
    assert time.monotonic() - began < 20
    assert watchers(ref) == 0


def test_a_reference_shows_itself(head: FakeHead) -> None:
    """Repr names function, id and state."""
    ref = double.remote(1)
    rustray.get(ref)
    assert "double" in repr(ref)
    assert ref.task_id in repr(ref)
    assert "succeeded" in repr(ref)
