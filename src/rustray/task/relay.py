"""The channel of tasks that hand in tasks: what travels on it, and where its ends meet.

Executor and client's side are siblings, and know nothing of each other. Both know this module: the
executor says here which task the calling code belongs to, and gives the channel to its agent; the
client's side speaks the protocol of clients on it, which the agent carries to the head unread.

A message is a head (kind, channel, size; `rustray.common.messages`) and a body.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgpack

from rustray.common.errors import CommunicationError, RustRayError, all_error_classes
from rustray.common.messages import HEAD

OPEN: Final = 1
"""Executor: a session of the task that the body names begins."""
DATA: Final = 2
"""Either way: an encoded frame of a client's stream."""
CLOSE: Final = 3
"""Either way: the session's stream is over; in the body why, unless it ends in order."""
BLOCKED: Final = 4
"""Executor: the task waits for tasks of its own."""
WOKE: Final = 5
"""Executor: it waits no more, and asks to go on."""
RESUME: Final = 6
"""Agent: it may."""

_TASK: Final = struct.Struct("=QI")


def pack(kind: int, channel: int, body: bytes = b"") -> bytes:
    """Encode a message."""
    return HEAD.pack(kind, channel, len(body)) + body


def pack_task(lease: int, offset: int) -> bytes:
    """Encode which task a message is about, as a body."""
    return _TASK.pack(lease, offset)


def unpack_task(body: bytes) -> tuple[int, int]:
    """Decode (lease, offset).

    Raises:
        ValueError: it is none.
    """
    try:
        lease, offset = _TASK.unpack(body)
    except struct.error as error:
        raise ValueError(f"a malformed name of a task: {error}") from None
    return lease, offset


def pack_reason(error: RustRayError | None) -> bytes:
    """Encode why a stream is over, as a body."""
    return b"" if error is None else bytes(msgpack.packb((error.code, str(error))))


def pack_code(code: str, text: str) -> bytes:
    """`pack_reason` of what has travelled as code and text; "" is an orderly end."""
    return bytes(msgpack.packb((code, text))) if code else b""


def unpack_reason(body: bytes) -> RustRayError | None:
    """Decode why a stream is over; what is malformed is an error too."""
    if not body:
        return None
    try:
        code, text = msgpack.unpackb(body)
        return all_error_classes().get(code, CommunicationError)(str(text))
    except (ValueError, TypeError, msgpack.UnpackException):
        return CommunicationError("the stream ended, and the reason cannot be read")


class Seat:
    """A task that runs in this process.

    Attributes:
        prefix, sequence: Its id.
        attempt: Number of this attempt, from 1.
        lease, offset: By which its worker knows it.
        thread_id: The thread that its code runs in; 0 where several may.
        session: What the client's side has made for it.
        leave: Called when its code has ended; whether to wait until all is handed in.
    """

    __slots__ = (
        "attempt", "lease", "leave", "offset", "prefix", "sequence", "session", "thread_id",
    )  # fmt: skip

    def __init__(
        self, prefix: bytes, sequence: int, attempt: int, lease: int, offset: int, thread_id: int
    ) -> None:
        self.prefix = prefix
        self.sequence = sequence
        self.attempt = attempt
        self.lease = lease
        self.offset = offset
        self.thread_id = thread_id
        self.session: Any = None
        self.leave: Callable[[bool], None] | None = None


class Host(Protocol):
    """An executor, as the client's side sees it.

    Attributes:
        limit: Bytes that the head takes as one value.
    """

    limit: int

    def seat(self) -> Seat | None:
        """Return the task that the calling code belongs to."""

    def open_channel(self) -> int:
        """Make the channel, once; returns the descriptor of this end."""

    def note_waiting(self, change: int) -> None:
        """So many more tasks wait for tasks of their own, or fewer."""


_hosts: list[Host] = []


def serve(host: Host) -> None:
    """Say which executor this process is."""
    _hosts[:] = [host]


def host() -> Host:
    """Return the executor that this process is; only where there is a `seat`."""
    return _hosts[0]


def seat() -> Seat | None:
    """Return the task that the calling code belongs to; None if it belongs to none."""
    return _hosts[0].seat() if _hosts else None
