"""Every call passes here first: who calls, may they, and does the method exist.

The answer comes before any byte of the call's body is read. A method that the node's table does
not list does not exist, whatever else is registered; a call without a good token does not learn
whether it does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from rustray.common.errors import AuthorizationError, GetTimeout, RustRayError
from rustray.rpc.auth import ANYBODY, Guard
from rustray.rpc.grpcio import aio, grpc
from rustray.rpc.status import abort, for_peer
from rustray.security.roles import PUBLIC_METHODS, Caller

logger = logging.getLogger("rustray.rpc")

Context: TypeAlias = aio.ServicerContext[Any, Any]
Unary: TypeAlias = Callable[[Caller, bytes], Awaitable[bytes]]
ServerStream: TypeAlias = Callable[[Caller, bytes, Context], Awaitable[None]]
BidiStream: TypeAlias = Callable[[Caller, Context], Awaitable[None]]
OnRefusal: TypeAlias = Callable[[RustRayError], None]
"""Learns of each call that ends with an error, to count it."""

if TYPE_CHECKING:
    _Interceptor = aio.ServerInterceptor[Any, Any]
else:
    _Interceptor = aio.ServerInterceptor

LONGEST_CALL_S: Final = 330.0
"""Server-side limit of a unary call; above the longest wait for a result."""


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a node; exactly one of the three is set.

    Attributes:
        unary: Request bytes to response bytes.
        stream_out: Writes responses to the context.
        bidi: Reads from and writes to the context.
    """

    unary: Unary | None = None
    stream_out: ServerStream | None = None
    bidi: BidiStream | None = None


class Gate(_Interceptor):
    """Authenticates and authorises each call, then runs its method."""

    def __init__(self, methods: Mapping[str, Method], guard: Guard, on_refusal: OnRefusal) -> None:
        self._methods = methods
        self._guard = guard
        self._on_refusal = on_refusal

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[Any]],
        handler_call_details: Any,
    ) -> Any:
        """Return the handler of a call, which may be a refusal."""
        name = handler_call_details.method
        method = self._methods.get(name)
        if name in PUBLIC_METHODS and method is not None:
            return _handler(method, ANYBODY, name, self._on_refusal)
        try:
            caller = self._guard.admit(name, handler_call_details.invocation_metadata)
        except RustRayError as error:
            return self._refuse(error)
        except Exception as error:
            return self._refuse(for_peer(error, "the check of a caller"))
        if method is None:
            return self._refuse(AuthorizationError(f"this node has no method {name[:200]!r}"))
        return _handler(method, caller, name, self._on_refusal)

    def _refuse(self, error: RustRayError) -> Any:
        self._on_refusal(error)
        return _refusal(error)


def _refusal(error: RustRayError) -> Any:
    # As a stream of requests, so that none is read.
    async def refuse(_requests: Any, context: Context) -> None:
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)


def _handler(method: Method, caller: Caller, name: str, on_refusal: OnRefusal) -> Any:
    unary, stream_out, bidi = method.unary, method.stream_out, method.bidi
    if unary is not None:

        async def run_unary(request: bytes, context: Context) -> bytes:
            try:
                return await _in_time(unary(caller, request), context)
            except Exception as error:
                await _abort(context, error, name, on_refusal)
            return b""  # not reached: abort raises

        return grpc.unary_unary_rpc_method_handler(run_unary)
    if stream_out is not None:

        async def run_stream(request: bytes, context: Context) -> None:
            try:
                await stream_out(caller, request, context)
            except (aio.UsageError, aio.InternalError):
                return  # the subscriber has gone while it was written to
            except Exception as error:
                await _abort(context, error, name, on_refusal)

        return grpc.unary_stream_rpc_method_handler(run_stream)
    assert bidi is not None

    async def run_bidi(_requests: Any, context: Context) -> None:
        try:
            await bidi(caller, context)
        except Exception as error:
            await _abort(context, error, name, on_refusal)

    return grpc.stream_stream_rpc_method_handler(run_bidi)


async def _in_time(work: Awaitable[bytes], context: Context) -> bytes:
    left_s = context.time_remaining()
    if left_s is not None and left_s <= LONGEST_CALL_S:
        return await work  # gRPC ends it then, and a timer of our own costs 10 us
    async with asyncio.timeout(LONGEST_CALL_S):
        return await work


async def _abort(context: Context, error: Exception, name: str, on_refusal: OnRefusal) -> None:
    if isinstance(error, aio.BaseError):  # aborted already, or the connection is gone
        raise error
    if isinstance(error, TimeoutError) and not isinstance(error, RustRayError):
        error = GetTimeout("the call took longer than this node allows; ask again")
    told = for_peer(error, name)
    on_refusal(told)
    await abort(context, told)
