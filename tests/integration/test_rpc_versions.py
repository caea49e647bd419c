"""Peers of older and newer releases at a real server (F36)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from helpers.rpc import FakeAuth, FakeHead
from rustray.common.errors import RustRayError, VersionMismatch
from rustray.proto.rustray.v1 import head_pb2
from rustray.rpc import versions
from rustray.rpc.codec import HELLO_KEY, OPEN_KEY
from rustray.rpc.grpcio import StatusCode, aio
from rustray.rpc.head_client import connect
from rustray.rpc.server import HeadServer
from rustray.rpc.status import from_rpc_error
from rustray.security.roles import HEAD_SERVICE
from rustray.task.views import WorkerInfo

PREFIX = b"0123456789"
ADMIN = ("authorization", "Bearer admin")
WORKER = ("authorization", "Bearer worker")
FROM_THE_FUTURE = b"\x9a\x7d\x05later" + b"\xa0\x7d\x07"
"""Fields 2003 (bytes) and 2004 (a number), which no release has."""
NEXT = versions.PROTOCOL + 1


@pytest.fixture
def head() -> FakeHead:
    """A head that remembers."""
    return FakeHead()


@pytest.fixture
async def channel(head: FakeHead) -> AsyncIterator[aio.Channel]:
    """A raw way to it, as a program of another release has one."""
    server = HeadServer(head.api, head, auth=FakeAuth(), identity=None, port=0)
    async with aio.insecure_channel(f"127.0.0.1:{await server.start()}") as opened:
        yield opened
    await server.stop(0.2)


async def _open(channel: aio.Channel, method: str, hello: bytes, who: Any) -> str:
    """Open a stream with a hello; return the version that the head chose.

    Raises:
        RustRayError: it refused.
    """
    call = channel.stream_stream(HEAD_SERVICE + method, None, None)(
        None, metadata=(who, (HELLO_KEY, hello))
    )
    try:
        answers = [value for key, value in await call.initial_metadata() if key == OPEN_KEY]
        if not answers:
            await call.read()
        return str(answers[0])
    except aio.AioRpcError as error:
        raise from_rpc_error(error) from None
    finally:
        call.cancel()


def _client(newest: int, oldest: int) -> bytes:
    hello = head_pb2.ClientHello(prefix=PREFIX, protocol=newest, oldest_protocol=oldest)
    return hello.SerializeToString() + FROM_THE_FUTURE


def _worker(newest: int, oldest: int) -> bytes:
    hello = head_pb2.WorkerHello(worker_id="w", session=7, protocol=newest, oldest_protocol=oldest)
    return hello.SerializeToString() + FROM_THE_FUTURE


@pytest.mark.parametrize(
    ("newest", "oldest"), [(NEXT, versions.PROTOCOL), (versions.PROTOCOL, 0), (NEXT + 5, 1)]
)
async def test_who_can_speak_this_version_is_let_in(
    channel: aio.Channel, head: FakeHead, newest: int, oldest: int
) -> None:
    """A newer release that can also speak this one's; what it adds to messages is ignored."""
    for method, hello, who in (
        ("ClientStream", _client(newest, oldest), ADMIN),
        ("WorkerStream", _worker(newest, oldest), WORKER),
    ):
        assert await _open(channel, method, hello, who) == str(versions.PROTOCOL)
    assert [name for name, _ in head.calls] == ["client_pump", "worker_pump"]


@pytest.mark.parametrize(("newest", "oldest"), [(NEXT, NEXT), (NEXT, 0), (0, 0)])
async def test_who_cannot_is_told_both_versions(
    channel: aio.Channel, head: FakeHead, newest: int, oldest: int
) -> None:
    """Older and newer; no stream is opened, and no worker registered."""
    older = "worker" if newest < versions.PROTOCOL else "head"
    words = rf"version {newest} of .*, the head version {versions.PROTOCOL}: upgrade .* the {older}"
    with pytest.raises(VersionMismatch, match=words):
        await _open(channel, "WorkerStream", _worker(newest, oldest), WORKER)
    with pytest.raises(VersionMismatch, match=f"version {newest} of"):
        await _open(channel, "ClientStream", _client(newest, oldest), ADMIN)
    register = channel.unary_unary(HEAD_SERVICE + "RegisterWorker", None, None)
    request = head_pb2.RegisterWorkerRequest(
        worker_id="w", name="w", protocol=newest, oldest_protocol=oldest, version="9.9"
    )
    with pytest.raises(aio.AioRpcError) as caught:
        await register(request.SerializeToString() + FROM_THE_FUTURE, metadata=(WORKER,))
    assert caught.value.code() is StatusCode.FAILED_PRECONDITION
    found: RustRayError = from_rpc_error(caught.value)
    assert isinstance(found, VersionMismatch)
    assert head.calls == []


async def test_fields_of_a_newer_release_are_ignored(channel: aio.Channel, head: FakeHead) -> None:
    """Registrations, heartbeats and submits with more in them mean what this release knows."""
    register = channel.unary_unary(HEAD_SERVICE + "RegisterWorker", None, None)
    known = head_pb2.RegisterWorkerRequest(
        worker_id="w", name="w", protocol=NEXT, oldest_protocol=1
    )
    await register(known.SerializeToString() + FROM_THE_FUTURE, metadata=(WORKER,))
    beat = channel.unary_unary(HEAD_SERVICE + "Heartbeat", None, None)
    message = head_pb2.HeartbeatRequest(worker_id="w", session=7)
    answer = await beat(message.SerializeToString() + FROM_THE_FUTURE, metadata=(WORKER,))
    assert head_pb2.HeartbeatResponse.FromString(answer).is_known
    assert [name for name, _ in head.calls] == ["register_worker", "heartbeat"]


async def test_our_own_side_says_its_versions(
    head: FakeHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of this release at a head of the next but one: refused, before anything happens."""
    server = HeadServer(head.api, head, auth=FakeAuth(), identity=None, port=0)
    port = await server.start()
    client = await connect(f"127.0.0.1:{port}", token_source="worker", insecure=True)
    info = WorkerInfo("w", 1, "w", "", {}, {}, (), "1", 1, "")
    agree = versions.agree
    monkeypatch.setattr(
        versions,
        "agree",
        lambda newest, oldest, peer: _as_release(monkeypatch, 3, 2, agree, newest, oldest, peer),
    )
    with pytest.raises(VersionMismatch, match="upgrade rustray on the worker's machine"):
        await client.register_worker(info)
    await client.close()
    await server.stop(0.2)


def _as_release(
    monkeypatch: pytest.MonkeyPatch, newest: int, oldest: int, agree: Any, *arguments: Any
) -> int:
    with monkeypatch.context() as patch:
        patch.setattr(versions, "PROTOCOL", newest)
        patch.setattr(versions, "OLDEST_PROTOCOL", oldest)
        return int(agree(*arguments))
