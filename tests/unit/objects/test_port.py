"""Ports: how processes of one machine get at a node's objects."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
from collections.abc import AsyncIterator

import msgpack
import pytest

from helpers.waiting import aeventually
from rustray.common.errors import ObjectLost
from rustray.objects.port import ObjectPort, new_name
from rustray.objects.port_client import MAX_PACKET, PortClient
from rustray.objects.segment import Segment
from rustray.task.place import Place

A = Place("a", len(b"value of a"), "w-1")
B = Place("b", 5, "w-1")


class Shelf:
    """Objects by name."""

    def __init__(self) -> None:
        self.found = {"a": Segment.write([b"value of a"])}
        self.at_hand: dict[str, Segment] = {}
        self.put: dict[str, bytes] = {}
        self.asked: list[str] = []

    def in_memory(self, place: bytes) -> Segment | None:
        """See `Objects`."""
        return self.at_hand.get(Place.unpack(place).object_id)

    @contextlib.asynccontextmanager
    async def hold_at(self, place: bytes, token: str) -> AsyncIterator[Segment]:
        """See `Objects`."""
        name = Place.unpack(place).object_id
        if name not in self.found:
            raise ObjectLost(f"no {name} here")
        self.asked.append(token)
        if token == "slow":
            await asyncio.Event().wait()
        yield self.found[name]

    async def put_in(self, object_id: str, segment: Segment) -> bytes:
        """See `Objects`."""
        if object_id in self.put:
            segment.close()
            raise ValueError("it exists")
        self.put[object_id] = bytes(segment.view())
        segment.close()
        return b"place of " + object_id.encode()


@contextlib.asynccontextmanager
async def a_port() -> AsyncIterator[tuple[Shelf, str]]:
    shelf, name = Shelf(), new_name()
    port = ObjectPort(asyncio.get_running_loop(), name, shelf)
    try:
        yield shelf, name
    finally:
        port.close()


async def test_memory_goes_both_ways() -> None:
    """Taken and put without a copy through the socket; errors come as what they are."""
    client = PortClient()
    async with a_port() as (shelf, name):
        taken = await asyncio.to_thread(client.take, name, A)
        assert bytes(taken.view()) == b"value of a"
        with pytest.raises(ObjectLost, match="no b here"):
            await asyncio.to_thread(client.take, name, B)
        given = Segment.write([b"x" * 5_000])
        assert await asyncio.to_thread(client.put, name, "new", given) == b"place of new"
        assert shelf.put["new"] == b"x" * 5_000
        with pytest.raises(ValueError, match="exists"):
            await asyncio.to_thread(client.put, name, "new", given)


async def test_what_is_in_memory_is_passed_on_at_once() -> None:
    """Again and again on one connection, between answers that take their time; no fd stays."""
    client = PortClient()

    def take(name: str, place: Place) -> bytes:
        segment = client.take(name, place)
        content = bytes(segment.view())
        segment.close()
        return content

    async with a_port() as (shelf, name):
        shelf.at_hand["b"] = Segment.write([b"hello"])
        for _ in range(3):
            assert await asyncio.to_thread(take, name, B) == b"hello"
            assert await asyncio.to_thread(take, name, A) == b"value of a"
        assert shelf.asked == [""] * 3
        count = len(os.listdir("/proc/self/fd"))
        assert await asyncio.to_thread(take, name, B) == b"hello"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as talk:
            await asyncio.to_thread(talk.connect, f"\0{name}")
            packet = msgpack.packb(["take", B.pack(), ""], use_bin_type=True)
            beside = os.memfd_create("beside")
            socket.send_fds(talk, [packet], [beside])
            os.close(beside)
            answer = msgpack.unpackb(await asyncio.to_thread(talk.recv, 1_000))
            assert answer["code"] == ObjectLost.code  # the long way, which does not know it
        await aeventually(lambda: len(os.listdir("/proc/self/fd")) == count)


@pytest.mark.parametrize("how", ["at once", "later"])
async def test_who_asks_what_breaks_the_node_is_not_left_waiting(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: after an error that nobody had thought of there was no answer, ever."""

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with a_port() as (shelf, name):
        monkeypatch.setattr(shelf, "in_memory" if how == "at once" else "hold_at", broken)
        with pytest.raises(ConnectionError):
            await asyncio.to_thread(PortClient().take, name, A, "", 20.0)
        monkeypatch.undo()
        assert (await asyncio.to_thread(PortClient().take, name, A)).size == A.size
    gc.collect()
    await aeventually(lambda: told)


async def test_a_port_that_is_gone_says_so_and_a_new_one_is_found() -> None:
    """A connection of before does not hinder."""
    client = PortClient()
    async with a_port() as (_, name):
        await asyncio.to_thread(client.take, name, A)
    with pytest.raises(ConnectionError):
        await asyncio.to_thread(client.take, name, A)
    with pytest.raises(ConnectionError):
        client.take(new_name(), A)


@pytest.mark.parametrize(
    "packet",
    [
        b"\x00",
        b"\xc1garbage",
        msgpack.packb(["take"]),
        msgpack.packb(["take", "text", 5]),
        msgpack.packb(["put", "a", 10]),
        msgpack.packb({"take": 1}),
        b"\x91" * MAX_PACKET,
    ],
)
async def test_nonsense_gets_an_error_and_harms_nobody(packet: bytes) -> None:
    """Whatever a process of the same user sends."""
    async with a_port() as (_, name):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as talk:
            await asyncio.to_thread(talk.connect, f"\0{name}")
            talk.send(packet)
            answer = msgpack.unpackb(await asyncio.to_thread(talk.recv, 1_000))
        assert answer["code"] == ""
        taken = await asyncio.to_thread(PortClient().take, name, A)
        assert taken.size == len(b"value of a")


async def test_memory_that_is_not_sealed_is_not_taken() -> None:
    """Its owner could cut it under a reader."""
    async with a_port() as (shelf, name):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as talk:
            await asyncio.to_thread(talk.connect, f"\0{name}")
            loose = os.memfd_create("loose")
            os.write(loose, b"12345")
            socket.send_fds(talk, [msgpack.packb(["put", "loose", 5])], [loose])
            os.close(loose)
            answer = msgpack.unpackb(await asyncio.to_thread(talk.recv, 1_000))
        assert "sealed" in answer["text"]
        assert shelf.put == {}


async def test_an_answer_that_came_too_late_is_nobody_s() -> None:
    """After a timeout, or an interrupt, the next request gets its own answer."""
    client = PortClient()

    def late_then_right(name: str) -> int:
        client.take(name, A)
        with pytest.raises(TimeoutError):
            client.take(name, A, "slow", timeout_s=0.05)
        with pytest.raises(ObjectLost):
            client.take(name, B)
        return client.take(name, A).size

    async with a_port() as (_, name):
        assert await asyncio.to_thread(late_then_right, name) == A.size


async def test_memory_of_another_size_is_not_taken() -> None:
    """It would be read beyond its end, or be another value."""
    async with a_port() as (_, name):
        with pytest.raises(ConnectionError, match="another size"):
            await asyncio.to_thread(PortClient().take, name, Place("a", 3, "w-1"))
