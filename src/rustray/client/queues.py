"""`Queue` of the whole cluster, as `queue.Queue` is one of a process."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from rustray.client.coordination import Named
from rustray.common.errors import PayloadError
from rustray.coordination.messages import Action, Answer, Kind, Request, Verdict
from rustray.task.codec import decode_value, encode_value
from rustray.task.spec import Codec

BATCH_ITEMS: Final = 1_000
BATCH_BYTES: Final = 1 << 20
MOST_ITEMS: Final = 10_000
_CODECS: Final = {"pickle": Codec.PICKLE, "msgpack": Codec.MSGPACK, "json": Codec.JSON}


def _wait_of(block: bool, timeout: float | None) -> float | None:
    """Turn the two arguments of `queue.Queue.get` into one; None waits for ever.

    Raises:
        ValueError: the time is below 0, and counts.
    """
    if not block:
        return 0.0
    if timeout is None:
        return None
    if not timeout >= 0:
        raise ValueError("'timeout' must be a non-negative number")
    return float(timeout)


class Queue(Named):
    """A queue of the whole cluster: items in order, each to one taker.

    Items are kept by the head as it keeps tasks: `put` returns once they are safe. An item that
    was taken is gone for others, unless its taker dies before it has said that it has it (with its
    next call, or within seconds): then it comes back to the front. One message carries many items:
    prefer `put_many` and `get_many`.

    Args:
        name: Of the queue.
        maxsize: Items that it takes at most, 0: any number; all who put must say the same.
        namespace: Keeps the names of different programs apart.
        codec: How items are encoded that are put here: "pickle" (any object), "msgpack" or "json"
            (data, also from a token that may not send code). Takers see it by itself.
    """

    kind = Kind.QUEUE

    def __init__(
        self, name: str, maxsize: int = 0, *, namespace: str = "", codec: str = "pickle"
    ) -> None:
        super().__init__(name, namespace=namespace)
        if isinstance(maxsize, bool) or not isinstance(maxsize, int):
            raise ValueError(f"maxsize must be a whole number, not {maxsize!r:.80}")
        if codec not in _CODECS:
            raise ValueError(f"codec must be one of {', '.join(_CODECS)}, not {codec!r:.80}")
        self.maxsize = max(maxsize, 0)
        self.codec = codec
        self.allow_pickle = True

    def _settings(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "maxsize": self.maxsize,
            "namespace": self.namespace,
            "codec": self.codec,
        }

    # -- putting ---------------------------------------------------------------

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an item at the end.

        Args:
            item: Anything that the codec can carry, at most 8 MiB encoded.
            block: Wait while the queue is full.
            timeout: Seconds to wait at most; None: for ever.

        Raises:
            queue.Full: there was no room in time.
            ValueError: the timeout is below 0.
            PayloadError: the item cannot travel.
            ResourceExhausted: too much waits in queues under this token.
            ConfigError: others use it with another maxsize now.
        """
        self.put_many([item], block, timeout)

    def put_nowait(self, item: Any) -> None:
        """`put` without waiting."""
        self.put(item, block=False)

    def put_many(
        self, items: Iterable[Any], block: bool = True, timeout: float | None = None
    ) -> None:
        """Put items at the end, in order, up to a thousand with one message.

        Raises:
            queue.Full: there was no room in time; ``args[0]`` is how many of them are in.
            ValueError: the timeout is below 0.
            PayloadError, ResourceExhausted, ConfigError: as `put`; those before are in.
        """
        putting = _Putting(self, items, _wait_of(block, timeout))
        for request in putting:
            putting.note(self._channel().call(request))

    async def aput(self, item: Any, block: bool = True, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """`put` for coroutines; being cancelled while it waits puts nothing."""
        await self.aput_many([item], block, timeout)

    async def aput_many(
        self,
        items: Iterable[Any],
        block: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109 - as in put_many
    ) -> None:
        """`put_many` for coroutines."""
        putting = _Putting(self, items, _wait_of(block, timeout))
        for request in putting:
            putting.note(await self._channel().acall(request))

    def encode(self, item: Any) -> bytes:
        """Encode an item: the codec's number, and the value.

        Raises:
            PayloadError: it cannot travel.
        """
        codec = _CODECS[self.codec]
        return bytes((codec,)) + encode_value(codec, item, "item")

    def putting(self, items: Sequence[bytes], wait_s: float | None) -> Request:
        """Make the request for some items."""
        return self._request(Action.PUT, limit=self.maxsize, items=tuple(items), wait_s=wait_s)

    # -- getting ---------------------------------------------------------------

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the first item.

        Args:
            block: Wait for one.
            timeout: Seconds to wait at most; None: for ever.

        Raises:
            queue.Empty: there was none in time.
            ValueError: the timeout is below 0.
            PayloadError: it cannot be decoded here; it is gone.
        """
        return self.get_many(1, block, timeout)[0]

    def get_nowait(self) -> Any:
        """`get` without waiting."""
        return self.get(block=False)

    def get_many(
        self, max_items: int = BATCH_ITEMS, block: bool = True, timeout: float | None = None
    ) -> list[Any]:
        """Take the first items: what is there, at most ``max_items`` or 4 MiB of them.

        Returns:
            At least one.

        Raises:
            queue.Empty: there was none in time.
            ValueError: ``max_items`` is below 1, or the timeout below 0.
            PayloadError: one cannot be decoded here; all of them are gone.
        """
        return self._taken(self._channel().call(self._getting(max_items, block, timeout)))

    async def aget(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        """`get` for coroutines; being cancelled takes nothing."""
        return (await self.aget_many(1, block, timeout))[0]

    async def aget_many(
        self,
        max_items: int = BATCH_ITEMS,
        block: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109 - as in get_many
    ) -> list[Any]:
        """`get_many` for coroutines; being cancelled takes nothing."""
        request = self._getting(max_items, block, timeout)
        return self._taken(await self._channel().acall(request))

    def _getting(self, max_items: int, block: bool, timeout: float | None) -> Request:
        if max_items < 1:
            raise ValueError(f"max_items must be at least 1, not {max_items!r:.80}")
        count = min(max_items, MOST_ITEMS)
        return self._request(Action.GET, count=count, wait_s=_wait_of(block, timeout))

    def _taken(self, answer: Answer) -> list[Any]:
        if answer.verdict is not Verdict.DONE:
            raise queue.Empty
        return [self._decode(item) for item in answer.items]

    def _decode(self, item: bytes) -> Any:
        codec = item[0] if item else 0
        if codec not in set(Codec):
            raise PayloadError(f"an item of {self!r} is in codec {codec}, which is none")
        if codec == Codec.PICKLE and not self.allow_pickle:
            raise PayloadError(
                f"an item of {self!r} is a pickle, which can run code here: put it with "
                "codec='msgpack', or allow pickles (HeadNode(..., allow_pickle=True))"
            )
        return decode_value(Codec(codec), item[1:])

    # -- looking ---------------------------------------------------------------

    def qsize(self) -> int:
        """Return how many items wait; it may have changed when you read it."""
        return self._channel().call(self._request(Action.COUNT)).count

    async def aqsize(self) -> int:
        """`qsize` for coroutines."""
        return (await self._channel().acall(self._request(Action.COUNT))).count

    def empty(self) -> bool:
        """Say whether no item waits."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Say whether it takes no more items."""
        return 0 < self.maxsize <= self.qsize()

    async def aempty(self) -> bool:
        """`empty` for coroutines."""
        return await self.aqsize() == 0

    async def afull(self) -> bool:
        """`full` for coroutines."""
        return 0 < self.maxsize <= await self.aqsize()


class _Putting:
    """The requests that put items, one after the other, within one time."""

    def __init__(self, target: Queue, items: Iterable[Any], wait_s: float | None) -> None:
        self._queue = target
        self._items = iter(items)
        self._due = None if wait_s is None else time.monotonic() + wait_s
        self._most = min(target.maxsize or BATCH_ITEMS, BATCH_ITEMS)
        self._done = 0
        self._size = 0

    def __iter__(self) -> Iterator[Request]:
        batch: list[bytes] = []
        size = 0
        for item in self._items:
            encoded = self._queue.encode(item)
            if batch and (len(batch) >= self._most or size + len(encoded) > BATCH_BYTES):
                yield self._send(batch)
                batch, size = [], 0
            batch.append(encoded)
            size += len(encoded)
        if batch:
            yield self._send(batch)

    def _send(self, batch: list[bytes]) -> Request:
        self._size = len(batch)
        left_s = None if self._due is None else max(self._due - time.monotonic(), 0.0)
        return self._queue.putting(batch, left_s)

    def note(self, answer: Answer) -> None:
        """Take the answer to the last request.

        Raises:
            queue.Full: there was no room.
        """
        if answer.verdict is not Verdict.DONE:
            raise queue.Full(self._done) if self._done else queue.Full
        self._done += self._size
