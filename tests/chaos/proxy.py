"""A TCP proxy between one node and the head, which can make a bad network of a good one.

Bytes are never changed or lost in a connection that lives on, for TCP does not do that either: they
come late, in one direction only, not at all, or the connection ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, Final

_PIECE: Final = 64 * 1024
_ANSWER_S: Final = 10.0
UP: Final = "up"
DOWN: Final = "down"


class Network:
    """The event loop of all proxies, in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-network")
        self._thread.start()
        self.proxies: list[Proxy] = []

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine there, and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_ANSWER_S)

    def do(self, action: Callable[[], None]) -> None:
        """Run a plain function there, and wait for it."""

        async def run() -> None:
            action()

        self.call(run())

    def open(self, host: str, upstream: tuple[str, int], seed: int) -> Proxy:
        """Start a proxy."""
        proxy = Proxy(host, upstream, Random(seed))
        self.call(proxy.start())
        self.proxies.append(proxy)
        return proxy

    def close(self) -> None:
        """Close all proxies, and end the thread."""
        for proxy in self.proxies:
            self.call(proxy.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Proxy:
    """One listening port; everything but `start` and `close` is called through `Network.do`.

    Attributes:
        port: Where it listens.
        accepted: Connections so far.
        delay_s: How late each piece comes, at most.
        bytes_per_s: Limit of each direction of each connection; 0 for none.
        is_refusing: Whether new connections are closed at once.
    """

    def __init__(self, host: str, upstream: tuple[str, int], random: Random) -> None:
        self._host, self._upstream, self._random = host, upstream, random
        self._server: asyncio.Server | None = None
        self._open: dict[str, asyncio.Event] = {UP: asyncio.Event(), DOWN: asyncio.Event()}
        self._closing = asyncio.Event()
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.port = 0
        self.accepted = 0
        self.delay_s = 0.0
        self.bytes_per_s = 0
        self.is_refusing = False

    async def start(self) -> None:
        """Listen."""
        self.heal()
        self._server = await asyncio.start_server(self._accept, self._host, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and end every connection."""
        assert self._server is not None
        self._closing.set()
        self._server.close()
        self.cut()
        if self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(set(self._tasks))

    def cut(self) -> None:
        """Reset every connection."""
        for pair in list(self._pairs):
            for writer in pair:
                writer.transport.abort()

    def stall(self, *directions: str) -> None:
        """Let nothing pass in these directions; connections stay."""
        for direction in directions:
            self._open[direction].clear()

    def heal(self) -> None:
        """Let everything pass again, at once."""
        for event in self._open.values():
            event.set()
        self.delay_s, self.bytes_per_s, self.is_refusing = 0.0, 0, False

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except asyncio.CancelledError:  # the proxy closes; a server's task may not end so
            return
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.is_refusing or self._closing.is_set():
            return
        try:
            answers, upstream = await asyncio.open_connection(*self._upstream)
        except OSError:  # the head is away: the node sees its connection end
            return
        pair = (writer, upstream)
        self._pairs.add(pair)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, upstream, UP))
                group.create_task(self._pump(answers, writer, DOWN))
        finally:
            self._pairs.discard(pair)
            upstream.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str
    ) -> None:
        with contextlib.suppress(OSError):  # either end may go at any moment
            while piece := await reader.read(_PIECE):
                late_s = self._random.uniform(self.delay_s / 3, self.delay_s)
                if self.bytes_per_s:
                    late_s += len(piece) / self.bytes_per_s
                if late_s:
                    await self._pause(late_s)
                await self._open[direction].wait()
                writer.write(piece)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
            return
        writer.transport.abort()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)
