"""Generators in executors: items go out one by one, and the generator waits for its consumer."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from rustray.common.errors import PayloadError
from rustray.task.result import FailureInfo
from rustray.worker import wire
from rustray.worker.callee import Callee, Unresolvable
from rustray.worker.child_base import CALL, ENCODE, own_frame, too_big
from rustray.worker.window import Window

if TYPE_CHECKING:
    import asyncio

Key = tuple[int, int]
"""Number of a chunk, and a task's place in it."""
Send = Callable[[int, bytes], None]
"""Takes an item's index and its encoded value."""


class Yielding:
    """One generator that runs: what it has yielded, and how much of that is consumed.

    The control thread calls `credit`, all else happens in the main thread.

    Attributes:
        window: How far it may run ahead.
        stage: What is being done, for `describe_failure`.
        value: The item that is being encoded, likewise.
    """

    def __init__(self, callee: Callee, have: int, consumed: int, limit: int, send: Send) -> None:
        """Prepare.

        Args:
            callee: The generator function.
            have: Items that the head has from an earlier attempt: they are passed over.
            consumed: Items that the consumer is done with.
            limit: Bytes of one encoded item at most.
            send: Where items go.
        """
        self.window = Window(callee.stream_window, have, consumed)
        self.stage = CALL
        self.value: Any = None
        self._callee = callee
        self._limit = limit
        self._send = send
        self._opened = threading.Condition()
        self._tell: Callable[[], None] | None = None

    def credit(self, consumed: int) -> None:
        """So many items are consumed."""
        with self._opened:
            if consumed <= self.window.consumed:
                return
            self.window.consumed = consumed
            self._opened.notify_all()
            if self._tell is not None:
                self._tell()

    @own_frame
    def run(self, value: Any, drive: Callable[[Any], Any]) -> int:
        """Iterate over what the function returned, and return how many items there were.

        Args:
            value: A generator, an async generator, or another iterator.
            drive: Runs a coroutine to its end.

        Raises:
            Unresolvable: it is neither.
            BaseException: what the generator raised, or the encoding of an item did.
        """
        if isinstance(value, Iterator):
            self._iterate(value)
        elif isinstance(value, AsyncIterator):
            drive(self._iterate_async(value))
        else:
            if isinstance(value, CoroutineType):
                value.close()
            raise Unresolvable(self._no_generator(value))
        return self.window.index

    def _no_generator(self, value: Any) -> FailureInfo:
        return FailureInfo(
            PayloadError.code,
            f"{self._callee.name!r} was handed in with num_returns='streaming', and returned "
            f"{type(value).__name__}: such a function yields its items (def or async def with "
            "yield)",
        )

    @own_frame
    def _iterate(self, items: Iterator[Any]) -> None:
        try:
            for item in items:
                self._emit(item)
                if self.window.is_full:
                    with self._opened:
                        while self.window.is_full:
                            self._opened.wait()
        except BaseException:
            close = getattr(items, "close", None)
            if close is not None:
                with contextlib.suppress(Exception):  # what ended it is told, not what came then
                    close()
            raise

    @own_frame
    async def _iterate_async(self, items: AsyncIterator[Any]) -> None:
        import asyncio  # an executor that has no use for it does not load it

        loop = asyncio.get_running_loop()
        opened = asyncio.Event()
        with self._opened:
            self._tell = functools.partial(_wake, loop, opened)
        try:
            async for item in items:
                self._emit(item)
                while self.window.is_full:
                    opened.clear()
                    if self.window.is_full:  # a credit that came before the event was cleared
                        await opened.wait()
        except BaseException:
            close = getattr(items, "aclose", None)
            if close is not None:
                with contextlib.suppress(Exception):
                    await close()
            raise
        finally:
            with self._opened:
                self._tell = None

    def _emit(self, value: Any) -> None:
        window, size = self.window, 0
        if not window.is_known:
            self.stage, self.value = ENCODE, value
            item = self._callee.encode_item(value)
            size = len(item)
            if size > self._limit:
                raise too_big(size, self._limit)
            self._send(window.index, item)
            self.stage, self.value = CALL, None
        window.count(size)


class Streams:
    """The generators of one process, which run one after the other.

    Attributes:
        is_sending: An item is on its way out: no interrupt may cut the message in two.
    """

    def __init__(self, limit: int, send_item: Callable[[int, int, bytes], None]) -> None:
        """Prepare.

        Args:
            limit: Bytes of one encoded item at most.
            send_item: Takes a task's place in its chunk, an item's index, and its encoded value.
        """
        self.is_sending = False
        self._limit = limit
        self._send_item = send_item
        self._lock = threading.Lock()
        self._present: tuple[Key, Yielding] | None = None
        self._early: dict[Key, int] = {}

    def begin(self, chunk: wire.Chunk, callee: Callee, index: int) -> Yielding:
        """Prepare for the items of a generator."""

        def send(item_index: int, item: bytes) -> None:
            self.is_sending = True
            try:
                self._send_item(index, item_index, item)
            finally:
                self.is_sending = False

        key = (chunk.number, index)
        have, consumed = (chunk.have, chunk.consumed) if index == 0 else (0, 0)
        yielding = Yielding(callee, have, consumed, self._limit, send)
        with self._lock:
            self._present = (key, yielding)
            early = self._early.pop(key, 0)
            self._early = {one: n for one, n in self._early.items() if one > key}
        yielding.credit(early)
        return yielding

    def end(self) -> None:
        """The generator has ended."""
        self._present = None

    def credit(self, key: Key, consumed: int) -> None:
        """So many items of a generator are consumed; it may begin only later (control thread)."""
        with self._lock:
            present = self._present
            if present is None or present[0] < key:
                self._early[key] = max(consumed, self._early.get(key, 0))
                return
        if present[0] == key:
            present[1].credit(consumed)


def _wake(loop: asyncio.AbstractEventLoop, opened: asyncio.Event) -> None:
    loop.call_soon_threadsafe(opened.set)
