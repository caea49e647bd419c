"""The loop that looks for events before it sleeps hears of everything that is given to it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from rustray.client.loop_thread import LoopThread
from rustray.client.spinning import SPIN_S, SpinningLoop, _LookAgain

WITHIN_S = 10.0


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    """Run a spinning loop."""
    found = LoopThread("test-spinning", spins=True)
    yield found
    found.stop()


def test_each_callback_is_called_whatever_the_loop_does_just_then(thread: LoopThread) -> None:
    """It spins, falls asleep, or sleeps: pauses around `SPIN_S` meet all of that."""
    call = thread.loop.call_soon_threadsafe
    for turn in range(300):
        called = threading.Event()
        call(called.set)
        assert called.wait(WITHIN_S), f"turn {turn}"
        until = time.perf_counter() + SPIN_S * (turn % 10) / 4
        while time.perf_counter() < until:
            pass


def test_callbacks_are_called_in_order_and_one_that_raises_stops_none(thread: LoopThread) -> None:
    """Many threads hand in; of each the order is kept."""
    seen: list[tuple[int, int]] = []
    errors: list[object] = []
    thread.loop.set_exception_handler(lambda _loop, context: errors.append(context["exception"]))
    call = thread.loop.call_soon_threadsafe

    def fail() -> None:
        raise ValueError("as planned")

    def hand_in(me: int) -> None:
        call(fail)
        for number in range(200):
            call(partial(seen.append, (me, number)))

    threads = [threading.Thread(target=hand_in, args=(me,)) for me in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    done = threading.Event()
    call(done.set)
    assert done.wait(WITHIN_S)
    assert len(errors) == 3
    for me in range(3):
        assert [number for who, number in seen if who == me] == list(range(200))


def test_what_comes_between_the_last_look_and_the_sleep_ends_the_sleep() -> None:
    """Who came then saw the loop awake, and wakes nobody: the loop has to look once more."""

    class Late(_LookAgain):
        @property
        def is_asleep(self) -> bool:
            return False

        @is_asleep.setter
        def is_asleep(self, value: bool) -> None:
            if value:
                self.is_called = True

    looker = Late()
    before = time.monotonic()
    assert looker.select(WITHIN_S) == []
    assert time.monotonic() - before < WITHIN_S / 2
    looker.close()


def test_what_is_handed_in_does_not_keep_sockets_waiting(thread: LoopThread) -> None:
    """A loop that always finds something handed in still looks at its sockets."""
    loop = thread.loop
    assert isinstance(loop, SpinningLoop)
    is_over = threading.Event()

    def again() -> None:
        if not is_over.is_set():
            loop.call_soon_threadsafe(again)

    async def echo() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        found = await reader.readexactly(1)
        writer.close()
        return found

    async def serve() -> asyncio.Server:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(1))
            await writer.drain()
            writer.close()

        return await asyncio.start_server(answer, "127.0.0.1", 0)

    async def close() -> None:
        server.close()

    server = thread.call(serve(), WITHIN_S)
    port = server.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(again)
    try:
        assert thread.call(echo(), WITHIN_S) == b"x"
    finally:
        is_over.set()
        thread.call(close(), WITHIN_S)


def test_a_closed_loop_says_so() -> None:
    """As `call_soon_threadsafe` does: who hands in learns that nobody will do it."""
    loop = SpinningLoop()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_soon_threadsafe(print)


def test_debug_mode_works_too(thread: LoopThread) -> None:
    """There `call_soon` refuses to be called by other threads."""
    thread.loop.set_debug(True)
    called = threading.Event()
    thread.loop.call_soon_threadsafe(called.set)
    assert called.wait(WITHIN_S)
