"""The head's gRPC server: unary calls by table, and the two frame streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final, Protocol

from rustray.common.errors import AuthenticationError, CommunicationError, RustRayError
from rustray.proto.rustray.v1 import head_pb2 as wire
from rustray.rpc.api import FramePump, Link
from rustray.rpc.auth import Authenticator, Guard, StreamPass
from rustray.rpc.codec import (
    BYE,
    HELLO_KEY,
    OPEN_KEY,
    decode_client_frame,
    decode_client_hello,
    decode_worker_frame,
    decode_worker_hello,
    encode_assign_frame,
    encode_head_frame,
)
from rustray.rpc.gate import Context, Method, OnRefusal
from rustray.rpc.grpcio import aio
from rustray.rpc.head_methods import MakeApi, head_methods
from rustray.rpc.links import DRAIN_S, FrameLink
from rustray.rpc.nested_codec import decode_nested_frame, encode_nested_frame
from rustray.rpc.node_server import Identity, Limits, NodeServer
from rustray.rpc.status import abort
from rustray.security.auth import AUDIENCE_HEAD
from rustray.security.roles import HEAD_SERVICE, Caller

LONGEST_TIMER_S: Final = 86_400.0


class AttachablePump(FramePump, Protocol):
    """The head's own end of a stream, which learns its link afterwards."""

    def attach(self, link: Link) -> None:
        """Learn the link; frames may be asked for from now on."""


class HeadEndpoint(Protocol):
    """Makes the head's ends of streams; both raise a `RustRayError` to refuse one."""

    def worker_pump(self, caller: Caller, worker_id: str, session: int) -> AttachablePump:
        """Return the pump for a registered worker's session."""

    def nested_pump(self, caller: Caller, worker_id: str, session: int) -> AttachablePump:
        """Return the pump for the sessions of tasks that run on a worker."""

    def client_pump(self, caller: Caller, prefix: bytes) -> AttachablePump:
        """Return the pump for a client's session."""


class ServerLink(FrameLink):
    """The server's side of a frame stream."""

    def __init__(
        self,
        pump: AttachablePump,
        context: Context,
        codec: tuple[Callable[[Any], bytes], Callable[[bytes], Any]],
        stream_pass: StreamPass,
        protocol: int,
        on_refusal: OnRefusal,
    ) -> None:
        super().__init__(pump, context, *codec)
        self._protocol = protocol
        self._on_refusal = on_refusal
        self._attach = pump.attach
        self._context = context
        self._pass = stream_pass
        self._timer: asyncio.TimerHandle | None = None
        self._has_bye = False
        self._reader: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """Run until the stream is over, then end the call with its status."""
        try:
            await self._context.send_initial_metadata(((OPEN_KEY, str(self._protocol)),))
            self._attach(self)
            self._watch_token()
            self._reader = self._loop.create_task(self.read_on())
            await asyncio.wait({self.ended})
        except (asyncio.CancelledError, aio.BaseError):
            self.lose(None)
            raise
        except Exception as error:
            self.fail(error)
        finally:
            if self._timer is not None:
                self._timer.cancel()
        error_sent = self.ended.result()
        if error_sent is not None:
            await abort(self._context, error_sent)

    def take(self, message: bytes) -> None:
        """Handle a message: a goodbye, a renewed token, or a frame of the pump's."""
        if message == BYE:
            self._has_bye = True
            return
        frame = self._decode(message)
        if frame.token:
            self._pass.renew(frame.token)
            self._watch_token()
        if frame.number or not frame.token:
            self._pump.on_frame(frame)

    def at_eof(self) -> None:
        """The peer sends no more: in order if it said goodbye."""
        if self._has_bye:
            self.finish(None)
        else:
            self.lose(None)

    def note_fault(self, error: RustRayError) -> None:
        """Count what ends the stream, as what ends any other call."""
        self._on_refusal(error)

    def explain_loss(self, error: BaseException | None) -> RustRayError:
        """Say that the peer is gone."""
        return CommunicationError("the peer's connection ended without a goodbye")

    def _watch_token(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        left_s = self._pass.left_s()
        if left_s <= 0:
            self.fail(
                AuthenticationError(
                    "the access token of this stream has ended and no renewed one came"
                )
            )
            return
        self._timer = self._loop.call_later(min(left_s, LONGEST_TIMER_S), self._watch_token)

    async def close(self) -> None:
        """End the stream in an orderly way, after what waits has been written."""
        await self.drain()
        self.finish(None)

    async def join(self) -> None:
        """Wait for the reader, which ends with the call."""
        if self._reader is not None:
            await asyncio.wait({self._reader}, timeout=DRAIN_S)


class HeadServer:
    """HeadService on a port."""

    def __init__(
        self,
        make_api: MakeApi,
        endpoint: HeadEndpoint,
        *,
        auth: Authenticator | Guard | None,
        identity: Identity | None,
        address: str = "127.0.0.1",
        port: int = 8000,
        limits: Limits | None = None,
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            make_api: Gives what one caller may do.
            endpoint: Gives the head's ends of frame streams.
            auth: Judges tokens, or a whole guard; None for none (loopback only).
            identity: Certificate and key; None for plaintext (loopback only).
            address: Host to listen on.
            port: 0 lets the system choose.
            limits: What peers may ask.

        Raises:
            ConfigError: an address that others can reach, without TLS or tokens.
        """
        self._endpoint = endpoint
        self._guard = auth if isinstance(auth, Guard) else Guard(auth, AUDIENCE_HEAD)
        self._links: set[ServerLink] = set()
        methods = head_methods(make_api)
        methods[_CLIENT_STREAM] = Method(bidi=self._client_stream)
        methods[_WORKER_STREAM] = Method(bidi=self._worker_stream)
        methods[_NESTED_STREAM] = Method(bidi=self._nested_stream)
        services = (wire.DESCRIPTOR.services_by_name["HeadService"],)
        self._node = NodeServer(services, methods, self._guard, identity, address, port, limits)

    def count_refusals(self, count: OnRefusal) -> None:
        """Have each error that ends a call counted."""
        self._node.on_refusal = count

    def renew(self, identity: Identity) -> None:
        """See `NodeServer.renew`."""
        self._node.renew(identity)

    async def start(self) -> int:
        """Listen.

        Returns:
            The port.

        Raises:
            ConfigError: the port is taken, or the address is not this machine's.
        """
        return await self._node.start()

    async def stop(self, grace_s: float = 2.0) -> None:
        """Say NOT_SERVING, end the streams in order, then all calls within the grace."""
        await self._node.retire()
        links = list(self._links)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await asyncio.gather(*(link.close() for link in links))
        for link in links:
            link.finish(None)
        await self._node.stop(grace_s)
        await asyncio.gather(*(link.join() for link in links))

    async def _client_stream(self, caller: Caller, context: Context) -> None:
        prefix, protocol = decode_client_hello(_hello(context))
        pump = self._endpoint.client_pump(caller, prefix)
        codec = (encode_head_frame, decode_client_frame)
        await self._serve(
            pump, context, codec, StreamPass(self._guard, caller, _CLIENT_STREAM), protocol
        )

    async def _worker_stream(self, caller: Caller, context: Context) -> None:
        worker_id, session, protocol = decode_worker_hello(_hello(context))
        pump = self._endpoint.worker_pump(caller, worker_id, session)
        codec = (encode_assign_frame, decode_worker_frame)
        await self._serve(
            pump, context, codec, StreamPass(self._guard, caller, _WORKER_STREAM), protocol
        )

    async def _nested_stream(self, caller: Caller, context: Context) -> None:
        worker_id, session, protocol = decode_worker_hello(_hello(context))
        pump = self._endpoint.nested_pump(caller, worker_id, session)
        codec = (encode_nested_frame, decode_nested_frame)
        await self._serve(
            pump, context, codec, StreamPass(self._guard, caller, _NESTED_STREAM), protocol
        )

    async def _serve(
        self,
        pump: AttachablePump,
        context: Context,
        codec: tuple[Callable[[Any], bytes], Callable[[bytes], Any]],
        stream_pass: StreamPass,
        protocol: int,
    ) -> None:
        link = ServerLink(pump, context, codec, stream_pass, protocol, self._node.on_refusal)
        self._links.add(link)
        try:
            await link.serve()
        finally:
            self._links.discard(link)


_CLIENT_STREAM: Final = HEAD_SERVICE + "ClientStream"
_NESTED_STREAM: Final = HEAD_SERVICE + "NestedStream"
_WORKER_STREAM: Final = HEAD_SERVICE + "WorkerStream"


def _hello(context: Context) -> bytes:
    for key, value in context.invocation_metadata() or ():
        if key == HELLO_KEY and isinstance(value, bytes):
            return value
    raise CommunicationError(f"a stream is opened with the metadata {HELLO_KEY}")
