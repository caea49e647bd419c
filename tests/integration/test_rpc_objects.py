"""FetchObject over real gRPC with TLS and tokens: whole objects, cuts, lies, and who may."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.rpc import make_identity
from helpers.waiting import aeventually
from rustray.common.errors import (
    AuthenticationError,
    AuthorizationError,
    CommunicationError,
    ConfigError,
    ObjectLost,
    RustRayError,
)
from rustray.objects.digest import digest_of
from rustray.objects.node_store import NodeStore
from rustray.objects.records import StoreLimits
from rustray.objects.segment import SegmentWriter
from rustray.proto.rustray.v1 import worker_pb2 as wire
from rustray.rpc import object_stream
from rustray.rpc.channel import open_channel
from rustray.rpc.gate import Context, Method
from rustray.rpc.grpcio import aio
from rustray.rpc.object_stream import (
    CHUNK_BYTES,
    ObjectSource,
    fetch_object,
    pack_data,
    unpack_data,
)
from rustray.rpc.status import from_rpc_error
from rustray.rpc.worker_server import WorkerServer
from rustray.security.auth import AuthManager
from rustray.security.object_tokens import OBJECT_KEY, mint_object_token
from rustray.security.roles import FETCH_OBJECT, WORKER_SERVICE, Caller, Role
from rustray.security.state_dir import CA_CERTIFICATE, StateDir

SIZES = [1, 63, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES + 12_345]


def content(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


class Node:
    """A worker's service with a store, TLS and tokens."""

    def __init__(self, folder: Path) -> None:
        self.identity = make_identity(folder)
        self.state = StateDir(folder)
        self.auth = AuthManager.open(self.state, jwt_secret=None, token_expiration_s=3600)
        document = self.auth.verification_document()
        assert document is not None
        self.verifier = AuthManager.verifier(document)
        self.ca = (folder / CA_CERTIFICATE).read_bytes()
        self.store = NodeStore(asyncio.get_running_loop(), StoreLimits(200 << 20))
        self.server: WorkerServer | None = None
        self.port = 0

    async def execute_task(self, item: Any) -> Any:
        raise ConfigError("nothing runs here")

    async def get_status(self) -> Any:
        raise ConfigError("no status")

    @contextlib.asynccontextmanager
    async def open_object(self, object_id: str) -> AsyncIterator[memoryview]:
        async with self.store.hold(object_id) as segment:
            yield segment.view()

    async def start(self, port: int = 0) -> None:
        self.server = WorkerServer(self, auth=self.verifier, identity=self.identity, port=port)
        self.port = await self.server.start()

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(0.0)
            self.server = None

    def token(self, object_id: str, **options: Any) -> str:
        return mint_object_token(self.auth, object_id, "user:test", time.time(), **options)

    def source(self, object_id: str, size: int, token: str | None = None) -> ObjectSource:
        return ObjectSource(object_id, size, self.token(object_id) if token is None else token)

    def channel(self, port: int = 0) -> aio.Channel:
        return open_channel(
            "127.0.0.1", port or self.port, ca_pem=self.ca, insecure=False,
            max_message_bytes=4 << 20,
        )  # fmt: skip


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """One that listens."""
    made = Node(tmp_path / "state")
    await made.start()
    yield made
    await made.stop()
    await made.store.close()


async def test_objects_of_every_size_arrive_as_they_were(node: Node) -> None:
    """One byte, around a chunk's edges, several chunks; several at a time."""
    for size in SIZES:
        await node.store.put(f"o-{size}", [content(size)])
    async with node.channel() as channel:
        found = await asyncio.gather(
            *(fetch_object(channel, node.source(f"o-{size}", size)) for size in SIZES)
        )
    for size, segment in zip(SIZES, found, strict=True):
        assert bytes(segment.view()) == content(size)
        segment.close()
    await aeventually(lambda: all(pins == 0 for *_, pins in node.store.core.rows()))


async def test_a_token_opens_its_object_and_nothing_else(node: Node) -> None:
    """Of another object, of a node, expired, none: each is refused before the body is read."""
    for name in ("mine", "other"):
        await node.store.put(name, [b"x" * 1000])
    now = time.time()
    worker = node.auth.mint(Role.ADMIN, "user:a", now, audience="worker")
    old = mint_object_token(node.auth, "mine", "user:a", now - 1000, 60)
    async with node.channel() as channel:
        for bad in (node.token("other"), worker, old, "nonsense", ""):
            with pytest.raises(AuthenticationError):
                await fetch_object(channel, node.source("mine", 1000, bad))
        status = channel.unary_unary(WORKER_SERVICE + "GetStatus", None, None)
        with pytest.raises(aio.AioRpcError) as caught:
            await status(b"", metadata=(("authorization", f"Bearer {node.token('mine')}"),))
        assert isinstance(from_rpc_error(caught.value), AuthenticationError)
        call: Any = channel.unary_stream(FETCH_OBJECT, None, None)
        request = wire.FetchObjectRequest(object_id="other").SerializeToString()
        bearer = ("authorization", f"Bearer {node.token('mine')}")
        for names, kind in (
            (["mine"], AuthorizationError),
            (["other"], AuthenticationError),
            ([], AuthenticationError),
            (["mine", "mine"], AuthenticationError),
            (["../mine"], AuthenticationError),
        ):
            metadata = (bearer, *((OBJECT_KEY, name) for name in names))
            with pytest.raises(aio.AioRpcError) as caught:
                await call(request, metadata=metadata).read()
            assert isinstance(from_rpc_error(caught.value), kind), names
    with pytest.raises(ConfigError, match="cannot mint"):
        mint_object_token(node.verifier, "mine", "user:a", now)


async def test_what_is_not_there_or_of_another_size_is_lost(node: Node) -> None:
    """Typed, without a second try; an offset outside of the object is the caller's mistake."""
    await node.store.put("a", [content(1000)])
    async with node.channel() as channel:
        with pytest.raises(ObjectLost, match="not on this node"):
            await fetch_object(channel, node.source("gone", 10))
        with pytest.raises(ObjectLost, match="has 1000 bytes there"):
            await fetch_object(channel, node.source("a", 999))
        call: Any = channel.unary_stream(FETCH_OBJECT, None, None)
        request = wire.FetchObjectRequest(object_id="a", offset=1001).SerializeToString()
        metadata = ((OBJECT_KEY, "a"), ("authorization", f"Bearer {node.token('a')}"))
        with pytest.raises(aio.AioRpcError) as caught:
            await call(request, metadata=metadata).read()
        assert isinstance(from_rpc_error(caught.value), ConfigError)


class CuttingLine:
    """Passes connections on; the first ones end after so many bytes have come back.

    Args:
        target: Port.
        cuts: How many bytes of each connection come back; no limit for those after them.
        before_cut: Awaited before a connection is cut.
    """

    def __init__(
        self,
        target: int,
        cuts: list[int],
        before_cut: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self.target = target
        self.cuts = cuts
        self.before_cut = before_cut
        self.made = 0
        self.port = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> CuttingLine:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks)
        await self.server.wait_closed()

    async def _serve(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.made += 1
        left = self.cuts.pop(0) if self.cuts else 1 << 60
        far, there = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers += [back, there]
        up = asyncio.create_task(self._pass(near, there))
        with contextlib.suppress(OSError):
            while left > 0 and (data := await far.read(min(left, 1 << 16))):
                left -= len(data)
                back.write(data)
                await back.drain()
        if left == 0 and self.before_cut is not None:
            await self.before_cut()
        for writer in (back, there):
            writer.transport.abort()
        await up
        for writer in (back, there):
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    @staticmethod
    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()


async def test_a_transfer_that_is_cut_at_99_percent_goes_on_where_it_was(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice cut; what had come is not sent again."""
    size = 8 * CHUNK_BYTES
    await node.store.put("a", [content(size)])
    asked: list[int] = []
    arrived = 0
    real_send, real_write = object_stream.send_object, SegmentWriter.write

    async def note(view: memoryview, offset: int, write: Any) -> None:
        asked.append(offset)
        await real_send(view, offset, write)

    def count(writer: SegmentWriter, part: memoryview) -> None:
        nonlocal arrived
        arrived += len(part)
        real_write(writer, part)

    async def seven_have_come() -> None:
        await aeventually(lambda: arrived == 7 * CHUNK_BYTES)

    monkeypatch.setattr("rustray.rpc.worker_server.send_object", note)
    monkeypatch.setattr(SegmentWriter, "write", count)
    line = CuttingLine(node.port, [size * 99 // 100, CHUNK_BYTES // 2], seven_have_come)
    async with line, node.channel(line.port) as channel:
        segment = await fetch_object(channel, node.source("a", size))
    assert line.made >= 3
    assert bytes(segment.view()) == content(size)
    assert asked[0] == 0
    assert set(asked[1:]) == {7 * CHUNK_BYTES}
    assert arrived == size
    await aeventually(lambda: all(pins == 0 for *_, pins in node.store.core.rows()))


async def test_a_node_that_stays_away_is_an_error_that_says_how_much_came(node: Node) -> None:
    """No hang and no half object."""
    size = 4 * CHUNK_BYTES
    await node.store.put("a", [content(size)])
    line = CuttingLine(node.port, [2 * CHUNK_BYTES + 50_000, *[0] * 100])
    async with line, node.channel(line.port) as channel:
        with pytest.raises(CommunicationError, match=rf"\d+ of {size} bytes came"):
            await fetch_object(channel, node.source("a", size))


async def _serve_lies(node: Node, fetch: Callable[[bytes, Context], Awaitable[None]]) -> None:
    """Have the node answer FetchObject by a function of ours."""

    async def run(_: Caller, data: bytes, context: Context) -> None:
        await fetch(data, context)

    await node.stop()
    await node.start()
    assert node.server is not None
    node.server._node._methods[FETCH_OBJECT] = Method(stream_out=run)


@pytest.mark.parametrize("lie", ["digest", "bytes", "short", "long", "no digest", "garbage"])
async def test_what_does_not_match_is_never_handed_out(node: Node, lie: str) -> None:
    """A wrong digest, other bytes, too few, too many: ObjectLost; no protobuf: typed as well."""
    size = 3000
    data = content(size)
    calls = 0

    async def answer(_: bytes, context: Context) -> None:
        nonlocal calls
        calls += 1
        sent = {"bytes": b"x" + data[1:], "short": data[:-1], "long": data + b"!"}.get(lie, data)
        digest = {"digest": bytes(16), "no digest": b""}.get(lie, digest_of(data))
        await context.write(wire.ObjectChunk(size=size).SerializeToString())
        await context.write(b"\xff\xff" if lie == "garbage" else pack_data(memoryview(sent)))
        await context.write(wire.ObjectChunk(digest=digest).SerializeToString())

    await _serve_lies(node, answer)
    async with node.channel() as channel:
        kind: type[RustRayError] = CommunicationError if lie == "garbage" else ObjectLost
        with pytest.raises(kind) as caught:
            await fetch_object(channel, node.source("a", size))
    if lie in ("digest", "bytes"):
        assert "came damaged twice" in str(caught.value)
        assert calls == 2


async def test_a_sender_that_falls_silent_is_left(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams that bring nothing end after a while, and the fetch with them."""
    monkeypatch.setattr(object_stream, "STALL_S", 0.05)
    monkeypatch.setattr(object_stream, "_PAUSE_S", 0.001)

    async def silent(_: bytes, context: Context) -> None:
        await context.write(wire.ObjectChunk(size=10).SerializeToString())
        await asyncio.Event().wait()

    await _serve_lies(node, silent)
    async with node.channel() as channel:
        with pytest.raises(CommunicationError, match="0 of 10 bytes came"):
            await fetch_object(channel, node.source("a", 10))


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152])
def test_chunks_are_the_protobuf_that_the_protocol_describes(size: int) -> None:
    """Encoded by hand for speed, and the same to any other program."""
    data = bytes(size)
    message = pack_data(memoryview(data))
    assert wire.ObjectChunk.FromString(message) == wire.ObjectChunk(data=data)
    if size:
        assert message == wire.ObjectChunk(data=data).SerializeToString()
    found = unpack_data(message)
    assert found is not None
    assert bytes(found) == data
    assert unpack_data(wire.ObjectChunk(data=data, size=7).SerializeToString()) is None
    assert unpack_data(message + b"\x00") is None
    assert unpack_data(b"") is None
    assert unpack_data(b"\x0a") is None
    assert unpack_data(b"\x0a" + b"\xff" * 20) is None
