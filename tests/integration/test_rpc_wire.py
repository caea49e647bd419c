"""Bad manners on the wire (group A of the bad-input corpus): the server answers the next call."""

from __future__ import annotations

import asyncio
import base64
import gzip
import os
import random
import re
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from helpers import http2 as h
from helpers.rpc import FakeAuth, FakeHead, make_identity
from rustray.common.errors import ResourceExhausted
from rustray.rpc import sturdy
from rustray.rpc.codec import encode_client_hello
from rustray.rpc.head_client import connect
from rustray.rpc.server import HeadServer

STATUS = b"/rustray.v1.HeadService/GetStatus"
STREAM = b"/rustray.v1.HeadService/ClientStream"
HELLO = (b"rustray-hello-bin", base64.b64encode(encode_client_hello(b"0123456789")))
GOOD = h.call(STATUS, h.message(b""), token="admin")


def _many(make: object, count: int) -> bytes:
    return b"".join(make(number) for number in range(count))  # type: ignore[operator]


def _headers(path: bytes, stream: int = 1, end: bool = False, **other: object) -> bytes:
    block = h.header_block(h.request_headers(path, **other))  # type: ignore[arg-type]
    return h.frame(h.HEADERS, h.END_HEADERS | (h.END_STREAM if end else 0), stream, block)


def _settings(number: int) -> bytes:
    return h.frame(h.SETTINGS, 0, 0, struct.pack("!HI", 4, 65_535 + number))


BOMB = gzip.compress(b"\0" * (64 << 20))

CASES: dict[str, bytes] = {
    "A1 random bytes": random.Random(1).randbytes(4096),
    "A2 HTTP/1.1": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "A4 preface, then silence": h.PREFACE,
    "A5 half a preface": h.PREFACE[:7],
    "A6 SETTINGS flood": h.HELLO + _many(_settings, 10_000),
    "A7 PING flood": h.HELLO + h.frame(h.PING, 0, 0, b"12345678") * 10_000,
    "A8 HEADERS and RST_STREAM": h.HELLO
    + _many(
        lambda n: (
            _headers(STATUS, 2 * n + 1, token="admin")
            + h.frame(h.RST_STREAM, 0, 2 * n + 1, struct.pack("!I", 8))
        ),
        1_000,
    ),
    "A9 CONTINUATION flood": h.HELLO
    + h.frame(h.HEADERS, 0, 1, h.header_block(h.request_headers(STATUS)))
    + h.frame(h.CONTINUATION, 0, 1, h.header_block([(b"x", b"y" * 100)])) * 5_000,
    "A10 bad HPACK index": h.HELLO + h.frame(h.HEADERS, h.END_HEADERS, 1, b"\xff\xff\xff\x0f"),
    "A11 frame of 2^24-1": h.HELLO + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + b"x" * 1000,
    "A12 stream 0": h.HELLO + _headers(STATUS, 0),
    "A12 even stream": h.HELLO + _headers(STATUS, 2),
    "A12 falling streams": h.HELLO + _headers(STATUS, 7) + _headers(STATUS, 5),
    "A13 WINDOW_UPDATE 0": h.HELLO + h.frame(h.WINDOW_UPDATE, 0, 0, b"\0\0\0\0"),
    "A13 WINDOW_UPDATE overflow": h.HELLO + h.frame(h.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2,
    "A14 prefix beyond the body": h.HELLO
    + h.call(STATUS, h.message(b"abc", length=100), token="admin"),
    "A14 prefix of 2^32-1": h.HELLO
    + h.call(STATUS, h.message(b"abc", length=0xFFFFFFFF), token="admin"),
    "A15 compressed without encoding": h.HELLO
    + h.call(STATUS, h.message(b"abc", flag=1), token="admin"),
    "A15 unknown encoding": h.HELLO
    + h.call(STATUS, h.message(b"abc", flag=1), token="admin", extra=[(b"grpc-encoding", b"zz")]),
    "A15 corrupt gzip": h.HELLO
    + h.call(STATUS, h.message(b"abc", flag=1), token="admin", extra=[(b"grpc-encoding", b"gzip")]),
    "A16 gzip bomb": h.HELLO
    + _headers(STATUS, token="admin", extra=[(b"grpc-encoding", b"gzip")])
    + b"".join(
        h.frame(h.DATA, 0, 1, piece)
        for piece in (
            h.message(BOMB, flag=1)[low : low + 16_000] for low in range(0, 64_000, 16_000)
        )
    ),
    "A17 half-close in a message": h.HELLO
    + _headers(STATUS, token="admin")
    + h.frame(h.DATA, h.END_STREAM, 1, h.message(b"abc", length=50)),
    "A19 stream on unary": h.HELLO
    + _headers(STATUS, token="admin")
    + h.frame(h.DATA, 0, 1, h.message(b"")) * 50,
    "A20 two messages on unary": h.HELLO
    + h.call(STATUS, h.message(b"") + h.message(b""), token="admin"),
    "A21 text/plain": h.HELLO
    + h.call(STATUS, h.message(b""), token="admin", content_type=b"text/plain"),
    "A23 grpc-timeout 0n": h.HELLO
    + h.call(STATUS, h.message(b""), token="admin", extra=[(b"grpc-timeout", b"0n")]),
    "A23 grpc-timeout junk": h.HELLO
    + h.call(STATUS, h.message(b""), token="admin", extra=[(b"grpc-timeout", b"-1S")]),
    "A24 bad base64": h.HELLO
    + h.call(STATUS, h.message(b""), token="admin", extra=[(b"x-bin", b"%%%")]),
    "A25 authority of 100 KB": h.HELLO
    + h.call(STATUS, h.message(b""), token="admin", authority=b"a" * 16_000),
    "metadata of 60 KB": h.HELLO
    + _headers(STATUS, token="admin", extra=[(b"k%d" % n, b"v" * 7_000) for n in range(2)]),
    "path that is not UTF-8": h.HELLO + h.call(b"/\xff\xfe/x", h.message(b"")),
    "empty path": h.HELLO + h.call(b"", h.message(b"")),
    "no protobuf": h.HELLO
    + h.call(b"/rustray.v1.HeadService/ListTasks", h.message(b"\xff" * 9), token="admin"),
    "stream without hello": h.HELLO + h.call(STREAM, h.message(b"\xff" * 9), token="admin"),
    "stream with a bad hello": h.HELLO
    + _headers(STREAM, token="admin", extra=[(b"rustray-hello-bin", b"/w==")]),
    "stream that says nothing": h.HELLO + _headers(STREAM, end=True, token="admin", extra=[HELLO]),
    "stream of no protobuf": h.HELLO
    + h.call(STREAM, h.message(b"\xff" * 9), token="admin", extra=[HELLO]),
}


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


def status_of(answer: bytes) -> int | None:
    """Find a call's status in what a server sent."""
    found = re.search(rb"grpc-status[\x01\x02](\d+)", answer)
    return int(found[1]) if found else None


async def assert_it_still_answers(port: int) -> None:
    """A good call on a new connection works, soon."""
    start = time.monotonic()
    client = await connect(f"127.0.0.1:{port}", token_source="admin", insecure=True)
    assert (await client.status()).cluster_id == "c"
    await client.close()
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("case", CASES)
async def test_bad_bytes_end_no_more_than_their_connection(port: int, case: str):
    """Whatever a stranger sends, no call answers UNKNOWN and the next good one works."""
    answer = await asyncio.to_thread(h.talk, port, CASES[case], for_s=0.2)
    assert status_of(answer) != 2
    await assert_it_still_answers(port)


async def test_a_good_call_by_hand_works(port: int):
    """The helper speaks HTTP/2 well enough to be answered when it behaves."""
    assert status_of(await asyncio.to_thread(h.talk, port, h.HELLO + GOOD, for_s=1)) == 0


@pytest.mark.parametrize(
    "path", [b"/rustray.v1.HeadService/Nothing", b"/other.Service/Method", b"/\xff\xfe", b"junk"]
)
async def test_an_unknown_method_without_a_token_is_unauthenticated(port: int, path: bytes):
    """A18: who has no token does not learn which methods exist; who has one may not call it."""
    answer = await asyncio.to_thread(h.talk, port, h.HELLO + h.call(path), for_s=1)
    assert status_of(answer) == 16
    answer = await asyncio.to_thread(
        h.talk, port, h.HELLO + h.call(path, token="admin", stream=1), for_s=1
    )
    assert status_of(answer) == 7


async def test_auth_comes_before_the_body(port: int):
    """A call without a token is refused although its body never comes."""
    answer = await asyncio.to_thread(h.talk, port, h.HELLO + _headers(STATUS), for_s=1)
    assert status_of(answer) == 16


async def test_two_authorization_entries_are_refused(port: int):
    """B5: the second token does not replace the first."""
    call = h.call(
        STATUS, h.message(b""), token="admin", extra=[(b"authorization", b"Bearer admin")]
    )
    assert status_of(await asyncio.to_thread(h.talk, port, h.HELLO + call, for_s=1)) == 16


async def test_a_token_that_breaks_the_verifier_is_unauthenticated(port: int):
    """An exception of any class out of the verifier means that the token is not good."""
    call = h.HELLO + h.call(STATUS, h.message(b""), token="explode")
    assert status_of(await asyncio.to_thread(h.talk, port, call, for_s=1)) == 16


async def test_the_sturdy_server_is_in_use():
    """This grpc has what protects the server from a path that is not UTF-8."""
    assert sturdy.is_supported()


async def test_oversize_messages_are_refused(port: int):
    """A message over 32 MiB is RESOURCE_EXHAUSTED, costs no memory, and hurts nobody else."""
    client = await connect(
        f"127.0.0.1:{port}", token_source="admin", insecure=True, max_message_bytes=1 << 30
    )
    before = psutil.Process(os.getpid()).memory_info().rss
    with pytest.raises(ResourceExhausted):
        await client.explain("x" * (33 << 20))
    await client.close()
    await assert_it_still_answers(port)
    assert psutil.Process(os.getpid()).memory_info().rss - before < 250 << 20


async def test_plaintext_to_tls_and_back(head: FakeHead, tmp_path: Path, port: int):
    """A3: the wrong kind of hello ends its own connection only."""
    identity = make_identity(tmp_path / "state")
    server = HeadServer(head.api, head, auth=FakeAuth(), identity=identity, port=0)
    tls_port = await server.start()
    await asyncio.to_thread(h.talk, tls_port, h.HELLO + GOOD, for_s=0.3)
    client = await connect(f"127.0.0.1:{tls_port}", token_source="admin", ca_pem=identity.ca_pem)
    assert (await client.status()).cluster_id == "c"
    await client.close()
    await server.stop(0.2)

    def say_tls_hello() -> None:
        context = ssl.create_default_context()
        with (
            socket.create_connection(("127.0.0.1", port), 5) as raw,
            pytest.raises((ssl.SSLError, ConnectionError)),
        ):
            context.wrap_socket(raw, server_hostname="localhost")

    await asyncio.to_thread(say_tls_hello)
    await assert_it_still_answers(port)


async def test_silent_connections_leave_room(port: int):
    """A4: connections that say nothing do not keep others out."""
    silent = []
    try:
        for _ in range(200):
            raw = socket.create_connection(("127.0.0.1", port), 5)
            raw.sendall(h.PREFACE)
            silent.append(raw)
        await assert_it_still_answers(port)
    finally:
        for raw in silent:
            raw.close()
