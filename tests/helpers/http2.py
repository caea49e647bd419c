"""HTTP/2 by hand, as much as a peer with bad manners needs."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0, 1, 3, 4, 6, 7, 8, 9,
)  # fmt: skip
END_STREAM, ACK, END_HEADERS = 1, 1, 4


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    """Make a frame."""
    return (
        struct.pack("!I", len(body))[1:] + bytes((kind, flags)) + struct.pack("!I", stream) + body
    )


def _text(value: bytes) -> bytes:
    if len(value) < 127:
        return bytes((len(value),)) + value
    rest, parts = len(value) - 127, [127]
    while rest >= 128:
        parts.append(rest % 128 + 128)
        rest //= 128
    return bytes((*parts, rest)) + value


def header_block(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Encode headers as HPACK literals without index."""
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in headers)


def request_headers(
    path: bytes, *, token: str = "", extra: Iterable[tuple[bytes, bytes]] = (), **other: bytes
) -> list[tuple[bytes, bytes]]:
    """Return a gRPC call's headers."""
    found = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", other.get("authority", b"localhost")),
        (b"te", b"trailers"),
        (b"content-type", other.get("content_type", b"application/grpc")),
    ]
    if token:
        found.append((b"authorization", b"Bearer " + token.encode()))
    return [*found, *extra]


def message(body: bytes, *, length: int | None = None, flag: int = 0) -> bytes:
    """Prefix a gRPC message."""
    return bytes((flag,)) + struct.pack("!I", len(body) if length is None else length) + body


def call(
    path: bytes, body: bytes = b"", *, stream: int = 1, end: bool = True, **headers: object
) -> bytes:
    """Make a whole call: HEADERS and one DATA frame."""
    block = header_block(request_headers(path, **headers))  # type: ignore[arg-type]
    return frame(HEADERS, END_HEADERS, stream, block) + frame(
        DATA, END_STREAM if end else 0, stream, body
    )


HELLO = PREFACE + frame(SETTINGS, 0, 0)


def talk(port: int, *parts: bytes, for_s: float = 0.5) -> bytes:
    """Send bytes to a port of this machine and return what comes back until silence or the end."""
    answer = b""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as raw:
        raw.settimeout(for_s)
        for part in parts:
            raw.sendall(part)
        while piece := raw.recv(65_536):
            answer += piece
    return answer
