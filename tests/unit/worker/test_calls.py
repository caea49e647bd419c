"""Calls of tasks to their agent: both ends over real sockets, and what user code may do to them."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from concurrent.futures import Future
from functools import partial

import pytest

from helpers.waiting import aeventually, eventually
from rustray.common.errors import (
    AuthorizationError,
    CommunicationError,
    InvariantError,
    LeaseLost,
    ResourceExhausted,
)
from rustray.coordination.packing import unpack_request
from rustray.worker import calls, wire
from rustray.worker.calls import Calls
from rustray.worker.calls_port import MAX_CALLS, MAX_MESSAGE_BYTES, CallPorts
from rustray.worker.sharing import ControlReader

ECHO, LOST, BUG, HANG = 11, 12, 13, 14


class Agent:
    """The agent's end, with some handlers."""

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.child_control = theirs
        self.opened: list[Calls] = []
        self.cancelled = 0
        self.hanging = 0
        self.ports = CallPorts(asyncio.get_running_loop(), lambda lease, _: lease == 7)
        self.ports.handlers = {
            ECHO: self.echo, LOST: self.lose, BUG: self.fail, HANG: self.hang,
        }  # fmt: skip
        self.control.setblocking(False)
        self.orders = ControlReader(self.control, self.ports.open)

    async def echo(self, lease: int, offset: int, body: bytes) -> bytes:
        return b"%d %d " % (lease, offset) + body

    async def lose(self, _lease: int, _offset: int, body: bytes) -> bytes:
        raise LeaseLost(body.decode())

    async def fail(self, _lease: int, _offset: int, _body: bytes) -> bytes:
        raise KeyError("a secret of ours")

    async def hang(self, _lease: int, _offset: int, _body: bytes) -> bytes:
        self.hanging += 1
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return b""

    def open(self) -> Calls:
        made = Calls(self.child_control)
        self.opened.append(made)
        assert self.orders.read() is None
        return made

    def close(self) -> None:
        self.ports.close()  # which ends the channels too
        self.control.close()
        self.child_control.close()
        for each in self.opened:
            eventually(partial(_is_closed, each))


def _is_closed(port: Calls) -> bool:
    return port._socket.fileno() < 0


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    made = Agent()
    yield made
    made.close()


async def call(port: Calls, method: int, body: bytes, lease: int = 7) -> bytes:
    return await asyncio.to_thread(port.call, method, lease, 3, body)


async def test_answers_and_errors_arrive(agent: Agent) -> None:
    """Many at once, of any size; an error of its class; a bug of ours keeps its text."""
    port = agent.open()
    large = os.urandom(1 << 20)
    found = await asyncio.gather(*(call(port, ECHO, b"%d" % n + large) for n in range(4)))
    assert found == [b"7 3 %d" % n + large for n in range(4)]
    with pytest.raises(LeaseLost, match="gone"):
        await call(port, LOST, b"gone")
    with pytest.raises(InvariantError) as raised:
        await call(port, BUG, b"")
    assert "secret" not in str(raised.value)


async def test_a_task_speaks_for_itself_only(agent: Agent) -> None:
    """A lease that the executor was not given, and a method that does not exist."""
    port = agent.open()
    with pytest.raises(AuthorizationError):
        await call(port, ECHO, b"", lease=8)
    with pytest.raises(CommunicationError, match="no method 99"):
        await call(port, 99, b"")


async def test_a_call_that_is_taken_back_ends_at_the_agent(agent: Agent) -> None:
    """And one whose executor is gone."""
    port = agent.open()
    number, _ = port.start(HANG, 7, 0, b"")
    port.start(HANG, 7, 0, b"")
    await aeventually(lambda: agent.hanging == 2)
    port.cancel(number)
    port.cancel(number)
    await aeventually(lambda: agent.cancelled == 1)
    port._socket.shutdown(socket.SHUT_RDWR)
    await aeventually(lambda: agent.cancelled == 2)


async def test_a_closed_agent_ends_all_calls(agent: Agent) -> None:
    """Those that wait, and those that come."""
    port = agent.open()
    _, future = port.start(HANG, 7, 0, b"")
    await aeventually(lambda: agent.hanging == 1)
    agent.ports.close()
    with pytest.raises(CommunicationError):
        await asyncio.wrap_future(future)
    with pytest.raises(CommunicationError):
        await call(port, ECHO, b"")


async def test_too_many_calls_are_refused(agent: Agent) -> None:
    """One by one, not all of them."""
    port = agent.open()

    def start() -> list[Future[bytes]]:
        return [port.start(HANG, 7, 0, b"")[1] for _ in range(MAX_CALLS + 1)]

    futures = await asyncio.to_thread(start)
    with pytest.raises(ResourceExhausted):
        await asyncio.wrap_future(futures[-1])
    assert not futures[0].done()


@pytest.mark.parametrize(
    "garbage",
    [
        struct.pack("=BxxxIQ", calls.CALL, 1, 3) + b"abc",
        struct.pack("=BxxxIQ", calls.CALL, 1, MAX_MESSAGE_BYTES + 1) + b"x",
    ],
    ids=["short", "huge"],
)
async def test_garbage_closes_the_channel(agent: Agent, garbage: bytes) -> None:
    """It is the user's code that wrote it; the agent goes on."""
    port = agent.open()
    port._socket.sendall(garbage)
    _, future = port.start(HANG, 7, 0, b"")
    with pytest.raises(CommunicationError):
        await asyncio.wrap_future(future)


async def test_descriptors_that_nobody_asked_for_are_closed(agent: Agent) -> None:
    """Something that is no socket, and a second channel."""
    packet = wire.CONTROL.pack(wire.CALLS, 0, 0, 0)
    null = os.open(os.devnull, os.O_RDONLY)
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(agent.child_control, [packet], [null])
    assert agent.orders.read() is None
    assert len(os.listdir("/proc/self/fd")) == before
    port = agent.open()
    opened = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        socket.send_fds(agent.child_control, [packet], [null])
        assert agent.orders.read() is None
    assert len(os.listdir("/proc/self/fd")) == opened
    os.close(null)
    assert await call(port, ECHO, b"x") == b"7 3 x"


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\x01", b"\x93\x01\x02\x03", b"\x99" + b"\xff" * 9, b"\x99" + b"\x01" * 9],
)
def test_a_malformed_request_of_a_task_is_told_so(data: bytes) -> None:
    """It comes from user code."""
    with pytest.raises(CommunicationError, match="malformed"):
        unpack_request(data)
