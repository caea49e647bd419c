"""The way to the ports of this machine's nodes; see `rustray.objects.port`."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from typing import Any, Final

import msgpack

from rustray.common.errors import all_error_classes
from rustray.objects.segment import Segment
from rustray.task.place import Place

TAKE: Final = "take"
PUT: Final = "put"
MAX_PACKET: Final = 8 << 10
_CREDENTIALS: Final = struct.Struct("3i")
_ROOM: Final = socket.CMSG_SPACE(4)


class _Talks(dict[tuple[int, str], socket.socket]):
    """A thread's connections, by process and port; they end with the thread."""

    def __del__(self) -> None:
        for talk in self.values():
            talk.close()


class PortClient:
    """Asks ports; each thread by a connection of its own."""

    def __init__(self) -> None:
        """Connect with the first request."""
        self._own = threading.local()

    def take(
        self, port: str, place: Place, token: str = "", timeout_s: float | None = None
    ) -> Segment:
        """Have an object's memory; blocks until that node has it.

        Args:
            port: Whom to ask.
            place: Where the object is: with that node, or one that it brings it from.
            token: Opens it there.
            timeout_s: Limit in seconds.

        Raises:
            RustRayError, ValueError: that node's answer.
            OSError: there is no such port here, no answer in time, or no descriptors.
        """
        reply, descriptor = self._ask(port, [TAKE, place.pack(), token], timeout_s=timeout_s)
        if descriptor is None:
            raise ConnectionError("an answer without memory")
        if reply.get("size") != place.size:
            os.close(descriptor)
            raise ConnectionError("what came has another size than it should have")
        return Segment.adopt(descriptor, place.size)

    def put(self, port: str, object_id: str, segment: Segment) -> bytes:
        """Give memory to a node to keep; returns its packed place.

        Raises:
            RustRayError, ValueError: that node's answer, such as that it has no room.
            OSError: there is no such port here.
        """
        request = [PUT, object_id, segment.size]
        reply, descriptor = self._ask(port, request, segment.fileno())
        if descriptor is not None:
            os.close(descriptor)
        place = reply.get("place")
        if not isinstance(place, bytes):
            raise ConnectionError("an answer that makes no sense")
        return place

    def can_reach(self, port: str) -> bool:
        """Whether there is such a port on this machine, of this user."""
        try:
            _connect(port).close()
        except OSError:
            return False
        return True

    def _ask(
        self,
        port: str,
        request: list[Any],
        memory: int | None = None,
        timeout_s: float | None = None,
    ) -> tuple[dict[str, Any], int | None]:
        packet = msgpack.packb(request, use_bin_type=True)
        talks = self._talks()
        key = (os.getpid(), port)  # a forked process does not use its parent's
        known = talks.pop(key, None)
        if known is not None:
            with contextlib.suppress(ConnectionError):  # the node has ended, or closed it
                return self._exchange(talks, key, known, (packet, memory, timeout_s))
        return self._exchange(talks, key, _connect(port), (packet, memory, timeout_s))

    @staticmethod
    def _exchange(
        talks: _Talks,
        key: tuple[int, str],
        talk: socket.socket,
        what: tuple[bytes, int | None, float | None],
    ) -> tuple[dict[str, Any], int | None]:
        """Send a request and take the answer.

        Only a connection that has no answer under way is kept: after an interrupt, say, the next
        request would take this one's for its own.
        """
        packet, memory, timeout_s = what
        try:
            talk.settimeout(timeout_s)
            socket.send_fds(talk, [packet], [] if memory is None else [memory])
            answer, descriptor = receive(talk)
            if not answer:
                raise ConnectionError("the port has closed")
        except BaseException:
            talk.close()
            raise
        talks[key] = talk
        try:
            return _reply_of(answer), descriptor
        except BaseException:
            if descriptor is not None:
                os.close(descriptor)
            raise

    def _talks(self) -> _Talks:
        found: _Talks | None = getattr(self._own, "talks", None)
        if found is None:
            found = self._own.talks = _Talks()
        return found


def _connect(port: str) -> socket.socket:
    talk = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        talk.connect(f"\0{port}")
        if peer_uid(talk) != os.geteuid():
            raise PermissionError("the port is another user's")
    except BaseException:
        talk.close()
        raise
    return talk


def _reply_of(answer: bytes) -> dict[str, Any]:
    """Decode an answer, and raise it if it is an error."""
    try:
        reply = decoded(answer)
    except ValueError:
        reply = None
    if not isinstance(reply, dict):
        raise ConnectionError("an answer that makes no sense")
    if "code" in reply:
        kind = all_error_classes().get(str(reply["code"]))
        text = str(reply.get("text", ""))
        raise ValueError(text) if kind is None else kind(text)
    return reply


def decoded(packet: bytes) -> Any:
    """Decode a packet; raises ValueError."""
    try:
        return msgpack.unpackb(packet, raw=False)
    except Exception as error:  # msgpack has many
        raise ValueError(f"not a message: {error}") from None


def receive(talk: socket.socket) -> tuple[bytes, int | None]:
    """Read one packet, and the descriptor with it, if there is one.

    Raises:
        OSError: the connection broke, or there is nothing to read now.
    """
    packet, ancillary, _, _ = talk.recvmsg(MAX_PACKET, _ROOM, socket.MSG_CMSG_CLOEXEC)
    found: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found += [each for (each,) in struct.iter_unpack("i", data[: len(data) // 4 * 4])]
    for extra in found[1:]:
        os.close(extra)
    return packet, found[0] if found else None


def peer_uid(talk: socket.socket) -> int:
    """Return the user at the other end, as the kernel knows it."""
    data = talk.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[1])
