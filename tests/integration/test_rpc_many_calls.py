"""How a server takes its calls: many at once, no more than allowed, none for too long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

import pytest

from helpers.rpc import FakeAuth, FakeHead
from helpers.waiting import aeventually
from rustray.common.errors import GetTimeout, HeadUnavailable, ResourceExhausted
from rustray.rpc import gate, sturdy
from rustray.rpc.head_client import GrpcHeadClient, connect
from rustray.rpc.node_server import Limits
from rustray.rpc.server import HeadServer
from rustray.security.roles import HEAD_SERVICE
from rustray.task.views import ClusterStatus


class _WaitingHead(FakeHead):
    """Answers ``status`` once it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.waiting = 0

    async def status(self) -> ClusterStatus:
        self.waiting += 1
        try:
            await self.gate.wait()
        finally:
            self.waiting -= 1
        return await super().status()


@asynccontextmanager
async def _served(head: FakeHead, limits: Limits) -> AsyncIterator[GrpcHeadClient]:
    server = HeadServer(head.api, head, auth=FakeAuth(), identity=None, port=0, limits=limits)
    port = await server.start()
    client = await connect(f"127.0.0.1:{port}", token_source="admin", insecure=True)
    try:
        yield client
    finally:
        await client.close()
        await server.stop(0.2)


async def test_more_calls_than_allowed_are_refused_and_those_before_are_not() -> None:
    """Whoever is refused may come again once a call has ended."""
    head = _WaitingHead()
    async with _served(head, Limits(max_calls=3)) as client:
        calls = [asyncio.create_task(client.status()) for _ in range(3)]
        await aeventually(lambda: head.waiting == 3)
        with pytest.raises(ResourceExhausted, match="Concurrent RPC limit"):
            await client.status()
        assert not any(call.done() for call in calls)
        head.gate.set()
        assert {status.cluster_id for status in await asyncio.gather(*calls)} == {"c"}
        assert (await client.status()).cluster_id == "c"


async def test_calls_that_are_being_refused_keep_nobody_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Regression: under a storm of calls most of the room was taken by those that were told no."""
    ends = [asyncio.Event() for _ in range(4)]
    refused: list[bool] = []

    class Core:
        _MethodResolver = staticmethod(lambda *_: None)

        @staticmethod
        def _handle_rpc(*given: Any) -> int:
            refused.append(given[-1])
            return len(refused) - 1

        @staticmethod
        async def _schedule_rpc_coro(number: int, *_: Any) -> None:
            await ends[number].wait()

    class Server:  # without a port of gRPC's under it
        prepare = sturdy._SturdyCore.prepare
        _answer = sturdy._SturdyCore._answer
        _count_out = sturdy._SturdyCore._count_out

    monkeypatch.setattr(sturdy, "cygrpc", Core)
    core: Any = Server()
    core.prepare(asyncio.get_running_loop(), (), 1)
    calls: asyncio.Queue[object] = asyncio.Queue()
    answering = asyncio.create_task(core._answer("/service/Method", calls.get))
    for _ in range(3):
        calls.put_nowait(object())
    await aeventually(lambda: refused == [False, True, True])
    ends[0].set()
    await aeventually(lambda: len(core.own_calls) == 2)
    calls.put_nowait(object())
    await aeventually(lambda: refused == [False, True, True, False])
    answering.cancel()
    for end in ends:
        end.set()
    await aeventually(lambda: not core.own_calls)


async def test_a_grpc_whose_core_takes_something_else_serves_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The names that the server stands on may stay, and what they take may change."""

    def refuse(*_: object) -> None:
        raise TypeError("__init__() takes exactly 7 positional arguments (6 given)")

    monkeypatch.setattr(sturdy, "_SturdyCore", refuse)
    head = _WaitingHead()
    head.gate.set()
    async with _served(head, Limits()) as client:
        assert (await client.status()).cluster_id == "c"


async def test_a_call_costs_no_wait_for_all_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """grpc.aio's own main loop waits for each method anew with each call."""
    head = _WaitingHead()
    head.gate.set()
    waits: list[int] = []
    wait = asyncio.wait

    async def count(fs: Collection[asyncio.Future[Any]], **how: Any) -> Any:
        waits.append(len(fs))
        return await wait(fs, **how)

    async with _served(head, Limits()) as client:
        monkeypatch.setattr(asyncio, "wait", count)
        for _ in range(10):
            await client.status()
        monkeypatch.undo()
    assert max(waits, default=0) < 5


async def test_no_call_lasts_longer_than_the_node_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its caller would wait."""
    monkeypatch.setattr(gate, "LONGEST_CALL_S", 0.2)
    head = _WaitingHead()
    async with _served(head, Limits()) as client:
        with pytest.raises(GetTimeout, match="longer than this node allows"):
            await client.status()
        await aeventually(lambda: head.waiting == 0)


async def test_a_call_whose_caller_waits_no_more_ends() -> None:
    """So gRPC has it: no timer of the node's has to."""
    head = _WaitingHead()
    async with _served(head, Limits()) as client:
        with pytest.raises(HeadUnavailable, match="no answer came in time"):
            await client._call_path(f"{HEAD_SERVICE}GetStatus", b"", 0.2)
        await aeventually(lambda: head.waiting == 0)
