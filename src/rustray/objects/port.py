"""The port of a node: how other processes of its machine get at its objects without a copy.

A Unix socket in the abstract namespace, so that nothing is left of it after any kind of death. Who
connects has to be of the same user: the kernel says so. A request is one packet, and so is the
answer; memory travels as a descriptor beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

import msgpack

from rustray.common.errors import RustRayError
from rustray.objects.port_client import PUT, TAKE, decoded, peer_uid, receive
from rustray.objects.segment import NotASegment, Segment

_BACKLOG: Final = 64
_MAX_CONNECTIONS: Final = 1_024


class Objects(Protocol):
    """What is behind a port."""

    def in_memory(self, place: bytes) -> Segment | None:
        """Return the object of a packed place, if it is in memory here."""

    def hold_at(self, place: bytes, token: str) -> AbstractAsyncContextManager[Segment]:
        """Have the object of a packed place here, and in memory, as long as the block lasts."""

    async def put_in(self, object_id: str, segment: Segment) -> bytes:
        """Keep an object that another process has made; returns its packed place."""


def new_name() -> str:
    """Return a name that nobody can guess."""
    return f"rustray-objects-{secrets.token_hex(16)}"


class ObjectPort:
    """Answers on one name; for one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str, objects: Objects) -> None:
        """Listen.

        Raises:
            OSError: no descriptors, or no Unix sockets.
        """
        self._loop = loop
        self._objects = objects
        self._talks: dict[socket.socket, asyncio.Task[None] | None] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.setblocking(False)
            self._socket.bind(f"\0{name}")
            self._socket.listen(_BACKLOG)
        except OSError:
            self._socket.close()
            raise
        loop.add_reader(self._socket, self._on_connect)

    def _on_connect(self) -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                talk, _ = self._socket.accept()
            except OSError:
                return  # too many files are open: it is tried again with the next turn
            if len(self._talks) >= _MAX_CONNECTIONS or peer_uid(talk) != os.geteuid():
                talk.close()
                return
            talk.setblocking(False)
            self._talks[talk] = None
            self._loop.add_reader(talk, self._on_request, talk)

    def _on_request(self, talk: socket.socket) -> None:
        """Answer at once what needs no waiting; else no more is read until it is answered."""
        try:
            packet, descriptor = receive(talk)
        except BlockingIOError:
            return
        except OSError:
            packet, descriptor = b"", None
        if not packet:
            self._end(talk)
            return
        try:
            if descriptor is None and self._answers_at_once(talk, packet):
                return
        except BaseException:  # who asks is not to wait for ever
            self._end(talk)
            raise
        self._loop.remove_reader(talk)
        answering = self._answer_later(talk, packet, descriptor)
        self._talks[talk] = self._loop.create_task(answering, name="rustray-port")

    def _answers_at_once(self, talk: socket.socket, packet: bytes) -> bool:
        """Pass on what is in memory: that is what most ask for, and they wait for it."""
        try:
            request = decoded(packet)
        except ValueError:
            return False
        match request:
            case [str(what), bytes(place), str()] if what == TAKE:
                segment = self._objects.in_memory(place)
                if segment is None:
                    return False
                reply = msgpack.packb({"size": segment.size}, use_bin_type=True)
                try:
                    socket.send_fds(talk, [reply], [segment.fileno()])
                except OSError:
                    return False  # the long way finds out what it is
                return True
        return False

    async def _answer_later(
        self, talk: socket.socket, packet: bytes, descriptor: int | None
    ) -> None:
        memory = None
        try:
            reply, memory = await self._answer(packet, descriptor)
            await self._send(talk, reply, memory)
        except OSError:
            self._end(talk)
            return
        except BaseException:
            self._end(talk)
            raise
        finally:
            if memory is not None:
                os.close(memory)
        self._talks[talk] = None
        self._loop.add_reader(talk, self._on_request, talk)

    def _end(self, talk: socket.socket) -> None:
        if talk not in self._talks:
            return  # it has ended with the port
        del self._talks[talk]
        self._loop.remove_reader(talk)
        talk.close()

    async def _send(self, talk: socket.socket, reply: dict[str, Any], memory: int | None) -> None:
        packet = msgpack.packb(reply, use_bin_type=True)
        while True:
            try:
                socket.send_fds(talk, [packet], [] if memory is None else [memory])
                return
            except BlockingIOError:
                await _once(talk, self._loop.add_writer, self._loop.remove_writer)

    async def _answer(
        self, packet: bytes, descriptor: int | None
    ) -> tuple[dict[str, Any], int | None]:
        """Do what a packet asks for; returns the answer, and a descriptor to send and close."""
        try:
            request = decoded(packet)
            match request:
                case [str(what), bytes(place), str(token)] if what == TAKE:
                    async with self._objects.hold_at(place, token) as segment:
                        return {"size": segment.size}, os.dup(segment.fileno())
                case [str(what), str(object_id), int(size)] if what == PUT:
                    if descriptor is None:
                        raise NotASegment("no memory came with it")
                    owned, descriptor = descriptor, None
                    segment = Segment.adopt(owned, size)
                    return {"place": await self._objects.put_in(object_id, segment)}, None
            raise ValueError("an unknown request")
        except RustRayError as error:
            return {"code": error.code, "text": str(error)[:2_000]}, None
        except (OSError, ValueError) as error:
            return {"code": "", "text": str(error)[:2_000]}, None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def close(self) -> None:
        """Answer no more."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
        for talk, task in list(self._talks.items()):
            if task is not None:
                task.cancel()
            self._end(talk)


async def _once(
    talk: socket.socket,
    add: Callable[[socket.socket, Callable[[], None]], Any],
    remove: Callable[[socket.socket], Any],
) -> None:
    """Wait until a socket is ready."""
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    add(talk, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        remove(talk)
