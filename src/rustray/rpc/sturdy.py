"""A grpc.aio server that a stranger cannot stop with one call, and that is quick with many methods.

grpc.aio (1.85 at least) decodes the path of each call to an unregistered method as UTF-8 in its
main loop. A path that is not UTF-8 ends that loop, and with it the server, before any interceptor
or credential has been looked at. So here every method of the node is registered, and whatever
arrives beside them is by definition a call to a method that does not exist: it is answered without
its path.

For each call that main loop waits anew for every method of the server, which took longer than most
calls of a node with thirty. Here each method has a loop of its own, and the main loop waits once.

It needs names that grpc keeps to itself. Where a later grpc has them no more, the plain server
serves, and ``tests/integration/test_rpc_wire.py`` says whether it is in danger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from rustray.rpc.grpcio import aio, cygrpc, grpc

UNKNOWN: Final = "/unknown"
"""What the gate is told for the path of a method that does not exist."""
_NEEDED: Final = ("_MethodResolver", "_handle_rpc", "_schedule_rpc_coro", "get_working_loop")
_NEEDED_OF_SERVER: Final = (
    "_make_request_call_future", "_request_call", "_request_registered_call"
)  # fmt: skip

if TYPE_CHECKING:
    _Core: Any = object
    _Plain: Any = aio.Server
else:
    _Core = cygrpc.AioServer
    _Plain = aio._server.Server


def is_supported() -> bool:
    """Whether this grpc has what the sturdy server stands on."""
    return all(hasattr(cygrpc, name) for name in _NEEDED) and all(
        hasattr(cygrpc.AioServer, name) for name in _NEEDED_OF_SERVER
    )


class _SturdyCore(_Core):  # type: ignore[misc]
    """Answers all calls itself."""

    def prepare(
        self, loop: asyncio.AbstractEventLoop, interceptors: tuple[Any, ...], max_calls: int
    ) -> None:
        """Say what the base class keeps to itself."""
        self.own_loop = loop
        self.own_interceptors = interceptors
        self.own_max_calls = max_calls
        self.own_calls: set[asyncio.Task[None]] = set()
        self.own_served = 0

    def _make_request_call_future(self, method_bytes: bytes | None) -> Any:
        """Return what the main loop takes for one call to come: a task that answers them all."""
        if method_bytes is None:
            return self.own_loop.create_task(self._answer(UNKNOWN, self._request_call))
        request = partial(self._request_registered_call, method_bytes)
        return self.own_loop.create_task(self._answer(method_bytes.decode(), request))

    async def _answer(self, path: str, request: Callable[[], Awaitable[Any]]) -> Any:
        resolver = cygrpc._MethodResolver([], {})
        while True:
            state = await request()  # raises when the server shuts down
            is_refused = self.own_served >= self.own_max_calls
            answer = cygrpc._handle_rpc(
                path, resolver, self.own_interceptors, state, self.own_loop, is_refused
            )
            call = self.own_loop.create_task(
                cygrpc._schedule_rpc_coro(answer, state, self.own_loop, path)
            )
            self.own_calls.add(call)
            call.add_done_callback(self.own_calls.discard)
            if not is_refused:  # or those that are told so would keep others out
                self.own_served += 1
                call.add_done_callback(self._count_out)

    def _count_out(self, _: asyncio.Task[None]) -> None:
        self.own_served -= 1


class _SturdyServer(_Plain):  # type: ignore[misc]
    def __init__(
        self, interceptors: tuple[Any, ...], options: list[tuple[str, Any]], max_calls: int
    ) -> None:
        loop = cygrpc.get_working_loop()
        self._loop = loop
        self._server = _SturdyCore(loop, None, (), interceptors, tuple(options), None)
        self._server.prepare(loop, interceptors, max_calls)


def make_server(
    interceptor: Any, paths: Iterable[str], options: list[tuple[str, Any]], max_calls: int
) -> aio.Server:
    """Make a server whose calls all go to one interceptor.

    Args:
        interceptor: Answers every call, known or not.
        paths: Full names of the node's methods.
        options: Channel arguments.
        max_calls: Calls and streams at once.
    """
    try:
        server = _SturdyServer((interceptor,), options, max_calls) if is_supported() else None
    except TypeError:  # its core takes something else by now
        server = None
    if server is None:
        return aio.server(
            interceptors=(interceptor,), options=options, maximum_concurrent_rpcs=max_calls
        )
    for path in paths:
        service, _, method = path.removeprefix("/").rpartition("/")
        # The interceptor answers in place of this handler, which is never called.
        handler = grpc.unary_unary_rpc_method_handler(_never)
        server.add_registered_method_handlers(service, {method: handler})
    return server


async def _never(_request: bytes, context: Any) -> bytes:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED)
    return b""
