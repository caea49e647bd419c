"""Connecting, tokens and the worker's server, over real gRPC."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from helpers.rpc import TASK, FakeAuth, FakeHead, ScriptedPump, make_identity
from helpers.waiting import aeventually
from rustray.common.errors import (
    AuthenticationError,
    AuthorizationError,
    CommunicationError,
    ConfigError,
    HeadUnavailable,
    ObjectLost,
    PayloadError,
)
from rustray.proto.rustray.v1 import common_pb2, worker_pb2
from rustray.rpc import tokens
from rustray.rpc.api import RawResult, SubmitItem
from rustray.rpc.grpcio import StatusCode, aio
from rustray.rpc.head_client import GrpcHeadClient, connect
from rustray.rpc.server import HeadServer
from rustray.rpc.worker_server import WorkerServer
from rustray.security.auth import AuthManager
from rustray.security.encoding import encode_base64url
from rustray.security.roles import Role
from rustray.task.functions import FunctionInfo
from rustray.task.state import TaskState

PREFIX = b"0123456789"


@pytest.fixture
def head() -> FakeHead:
    """A head that remembers."""
    return FakeHead()


@pytest.fixture
async def port(head: FakeHead) -> AsyncIterator[int]:
    """The port of a server without TLS."""
    server = HeadServer(head.api, head, auth=FakeAuth(), identity=None, port=0)
    yield await server.start()
    await server.stop(0.2)


@pytest.fixture
async def client(port: int) -> AsyncIterator[GrpcHeadClient]:
    """An administrator's connection."""
    found = await connect(f"127.0.0.1:{port}", token_source="admin", insecure=True)
    yield found
    await found.close()


# ── Connecting ──────────────────────────────────────────────────────────────────────────────────


async def test_nobody_there(unused_port: int):
    """Where nothing listens, the error says so."""
    with pytest.raises(HeadUnavailable, match="nothing listens there"):
        await connect(f"127.0.0.1:{unused_port}", insecure=True)


@pytest.fixture
def unused_port() -> int:
    """A port where nothing listens."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_wrong_ca_and_wrong_mode_are_told_apart(head: FakeHead, tmp_path: Path, port: int):
    """Another cluster's CA, plaintext to TLS and TLS to plaintext each have their own text."""
    identity, other = make_identity(tmp_path / "a"), make_identity(tmp_path / "b")
    server = HeadServer(head.api, head, auth=FakeAuth(), identity=identity, port=0)
    tls_port = await server.start()
    with pytest.raises(HeadUnavailable, match="not issued by the authority"):
        await connect(f"127.0.0.1:{tls_port}", token_source="admin", ca_pem=other.ca_pem)
    with pytest.raises(HeadUnavailable, match="probably speaks TLS"):
        await connect(f"127.0.0.1:{tls_port}", token_source="admin", insecure=True)
    with pytest.raises(HeadUnavailable, match="does not speak TLS"):
        await connect(f"127.0.0.1:{port}", token_source="admin", ca_pem=identity.ca_pem)
    await server.stop(0.2)


async def test_a_certificate_for_another_name_is_told(head: FakeHead, tmp_path: Path):
    """A head reached under a name that its certificate lacks says which name would do."""
    identity = make_identity(tmp_path / "a")
    server = HeadServer(
        head.api, head, auth=FakeAuth(), identity=identity, address="127.0.0.2", port=0
    )
    port = await server.start()
    with pytest.raises(HeadUnavailable, match="does not name this address"):
        await connect(f"127.0.0.2:{port}", token_source="admin", ca_pem=identity.ca_pem)
    await server.stop(0.2)


async def test_a_missing_token_says_how_to_get_one(port: int):
    """Without a token the error names the command that makes one."""
    client = await connect(f"127.0.0.1:{port}", insecure=True)
    with pytest.raises(AuthenticationError, match="rustray token create"):
        await client.status()
    await client.close()


async def test_a_wrong_role_says_which_would_do(port: int):
    """An observer who cancels learns which roles may."""
    client = await connect(f"127.0.0.1:{port}", token_source="observe", insecure=True)
    with pytest.raises(AuthorizationError, match="submit"):
        await client.cancel([TASK], False)
    await client.close()


async def test_a_closed_client_says_so(port: int):
    """A call after close is HeadUnavailable, not a crash."""
    client = await connect(f"127.0.0.1:{port}", token_source="admin", insecure=True)
    await client.close()
    await client.close()
    with pytest.raises(HeadUnavailable):
        await client.status()


async def test_insecure_to_another_machine_is_refused():
    """Plaintext beyond loopback is a ConfigError before anything is sent."""
    with pytest.raises(ConfigError, match="another machine"):
        await connect("192.0.2.1:8000", token_source="admin", insecure=True)


async def test_a_taken_port_is_told(port: int, head: FakeHead):
    """The second server on a port exits with a text that says what to do."""
    second = HeadServer(head.api, head, auth=FakeAuth(), identity=None, port=port)
    with pytest.raises(ConfigError, match=r"in use.*--port"):
        await second.start()


def test_an_open_address_without_tls_is_refused(head: FakeHead):
    """A server that others can reach needs TLS and tokens."""
    with pytest.raises(ConfigError):
        HeadServer(head.api, head, auth=None, identity=None, address="0.0.0.0", port=0)


async def test_a_node_without_authentication_lets_anybody_in(head: FakeHead):
    """On loopback without tokens every caller is an administrator."""
    server = HeadServer(head.api, head, auth=None, identity=None, port=0)
    port = await server.start()
    client = await connect(f"127.0.0.1:{port}", insecure=True)
    await client.drain_worker("w")
    assert head.callers[0].role is Role.ADMIN
    pump = ScriptedPump()
    await client.open_client_stream(PREFIX, pump)
    await client.close()
    await server.stop(0.2)


async def test_a_stopping_head_says_not_serving(port: int, head: FakeHead):
    """Once a stop has begun, a new connection is told that the head is going."""
    server = HeadServer(head.api, head, auth=FakeAuth(), identity=None, port=0)
    own_port = await server.start()
    await server._node.retire()
    with pytest.raises(HeadUnavailable, match="shutting down"):
        await connect(f"127.0.0.1:{own_port}", token_source="admin", insecure=True)
    await server.stop(0.2)


# ── Tokens ──────────────────────────────────────────────────────────────────────────────────────


def jwt(name: str, life_s: float) -> str:
    """Make something that looks like a JWT of so many seconds."""
    now = time.time()
    claims = {"iat": now, "exp": now + life_s, "name": name}
    return f"x.{encode_base64url(json.dumps(claims).encode())}.y"


async def test_the_token_is_renewed_before_it_ends_and_reaches_open_streams():
    """At two thirds of its life a fresh token takes its place, and listeners get it."""
    fresh = jwt("fresh", 3600)
    asked: list[int] = []
    heard: list[str] = []

    async def renew() -> str:
        asked.append(1)
        if len(asked) == 1:
            raise CommunicationError("not now")
        return fresh

    keeper = tokens.TokenKeeper(tokens.StaticToken(jwt("old", 0.3)), renew)
    keeper.listeners.add(heard.append)
    keeper.start()
    await aeventually(lambda: keeper.current() == fresh)
    assert heard == [fresh]
    await keeper.close()


@pytest.mark.parametrize("ahead_s", [-3e8, -7200.0, 7200.0, 3e8])
async def test_a_clock_that_is_wrong_renews_tokens_as_often_as_a_right_one(ahead_s: float):
    """What counts of a renewed token is its life, and not when this clock says that it ends."""
    asked: list[int] = []

    async def renew() -> str:
        asked.append(1)
        return jwt(f"fresh {len(asked)}", 3600)

    first = jwt("first", 0.3)
    keeper = tokens.TokenKeeper(tokens.StaticToken(first), renew, lambda: time.time() + ahead_s)
    keeper.start()
    await aeventually(lambda: keeper.current() != first)
    for _ in range(200):  # turns of the loop in which it could ask again, if it thought it had to
        await asyncio.sleep(0)
    assert len(asked) == 1
    await keeper.close()


async def test_a_token_that_its_source_changes_is_taken_over():
    """A file that is written anew wins over what was renewed."""

    class Source:
        token = "first"

        def current(self) -> str:
            return self.token

    async def renew() -> str:
        raise AssertionError("must not be asked")

    source = Source()
    keeper = tokens.TokenKeeper(source, renew)
    assert keeper.current() == "first"
    source.token = "second"
    assert keeper.current() == "second"
    keeper.start()
    await keeper.close()


@pytest.mark.parametrize("token", ["", "a", "a.b.c", "a..c", "a.bnVsbA.c", "a.W10.c", "é.é.é"])
def test_what_is_no_jwt_has_no_life(token: str):
    """Anything else than a JWT with both times is left alone."""
    assert tokens.token_life(token) is None


async def test_the_real_token_manager_fits(head: FakeHead, tmp_path: Path):
    """Tokens of AuthManager are taken as it makes them, renewed ones reach the next calls."""
    auth = AuthManager.from_secret("k" * 20 + "3xQ9vR7pLm2Z", token_expiration_s=3600)
    identity = make_identity(tmp_path / "a")
    server = HeadServer(head.api, head, auth=auth, identity=identity, port=0)
    port = await server.start()
    now = time.time()
    head.token = auth.mint("submit", "user:eve", now)
    aged = auth.mint("submit", "user:eve", now - 3000)
    client = await connect(f"127.0.0.1:{port}", token_source=aged, ca_pem=identity.ca_pem)
    await aeventually(lambda: client.keeper.current() == head.token)
    pump = ScriptedPump()
    await client.open_client_stream(PREFIX, pump)
    assert head.callers[-1].subject == "user:eve"
    for wrong in (auth.mint("submit", "user:eve", now, audience="worker"), aged[:-4] + "AAAA"):
        assert not await _may_list(port, identity.ca_pem, wrong)
    assert await _may_list(port, identity.ca_pem, head.token)
    await client.close()
    await server.stop(0.2)


async def _may_list(port: int, ca_pem: bytes, token: str) -> bool:
    client = await connect(f"127.0.0.1:{port}", token_source=token, ca_pem=ca_pem)
    try:
        await client.list_workers()
    except AuthenticationError:
        return False
    finally:
        await client.close()
    return True


# ── The worker's server ─────────────────────────────────────────────────────────────────────────


class FakeWorker:
    """A worker that runs nothing."""

    worker_id, name, state, head, version = "w-1", "w", "ready", "h:1", "1"
    pid, uptime_s, slots, held, running, queued, finished = os.getpid(), 2.5, 2, 3, 1, 2, 9
    resources, used = {"cpu_cores": 2}, {"cpu_cores": 0.5}
    labels, functions, counters = {"a": "b"}, (FunctionInfo("f", ()),), {"odd": 1}

    class _Executor:
        executor_id, kind, pid, state, tasks = 1, "process", 7, "idle", 0

    executors = (_Executor(),)

    async def execute_task(self, item: SubmitItem) -> RawResult:
        if item.task_class.function != "f":
            raise PayloadError("no such function")
        return RawResult("ab" * 16, TaskState.SUCCEEDED, 2, item.payload, "w-1", 1)

    def open_object(self, object_id: str) -> Any:
        raise ObjectLost(object_id)

    async def get_status(self) -> Any:
        return self


async def test_a_worker_answers_directly():
    """ExecuteTask and GetStatus work over gRPC, health too."""
    server = WorkerServer(FakeWorker(), auth=FakeAuth(), identity=None, port=0)
    port = await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        admin = (("authorization", "Bearer admin"),)
        run = channel.unary_unary("/rustray.v1.WorkerService/ExecuteTask", None, None)
        request = worker_pb2.ExecuteTaskRequest(
            task=common_pb2.TaskRequest(function_name="f", args=[b"1"])
        )
        data = await run(request.SerializeToString(), metadata=admin)
        assert worker_pb2.ExecuteTaskResponse.FromString(data).result.payload == b"[[1],{}]"
        with pytest.raises(aio.AioRpcError) as caught:
            await run(request.SerializeToString(), metadata=(("authorization", "Bearer submit"),))
        assert caught.value.code() is StatusCode.PERMISSION_DENIED
        status = channel.unary_unary("/rustray.v1.WorkerService/GetStatus", None, None)
        found = worker_pb2.WorkerStatusResponse.FromString(await status(b"", metadata=admin))
        assert (found.worker_id, found.slots, found.executors[0].kind) == ("w-1", 2, "process")
    await server.stop(0.2)
