"""One object between two processes: FetchObject with TLS and tokens, and a bare TLS socket.

``python -m suite.transfer DIRECTORY SIZE`` is the sender of both; it prints its two ports and ends
with its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from rustray.common.errors import ConfigError
from rustray.objects.node_store import NodeStore
from rustray.objects.records import StoreLimits
from rustray.rpc.channel import open_channel
from rustray.rpc.object_stream import ObjectSource, fetch_object
from rustray.rpc.worker_server import WorkerServer
from rustray.security.auth import AuthManager
from rustray.security.certificates import load_server_identity
from rustray.security.object_tokens import mint_object_token
from rustray.security.state_dir import CA_CERTIFICATE, StateDir

_OBJECT: Final = "benchmark"
_PIECE: Final = 1 << 20
_HOST: Final = "127.0.0.1"


def measure(directory: Path, size: int, times: int) -> dict[str, float]:
    """Return both medians in MB/s, and the quotient."""
    state = StateDir(directory / "transfer")
    state.create()
    load_server_identity(state, [_HOST], time.time())
    auth = AuthManager.open(state, jwt_secret=None, token_expiration_s=3600)
    token = mint_object_token(auth, _OBJECT, "user:benchmark", time.time())
    sender = subprocess.Popen(
        [sys.executable, "-m", "suite.transfer", str(state.path), str(size)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert sender.stdin is not None
    assert sender.stdout is not None
    try:
        grpc_port, bare_port = map(int, sender.stdout.readline().split())
        ca = (state.path / CA_CERTIFICATE).read_text()
        source = ObjectSource(_OBJECT, size, token)
        fetched, bare = asyncio.run(_both(source, ca, grpc_port, bare_port, times))
    finally:
        sender.stdin.close()
        sender.wait(30)
    return {
        "FetchObject MB/s": size / fetched / 1e6,
        "bare TLS socket MB/s": size / bare / 1e6,
        "share of the bare socket": bare / fetched,
    }


async def _both(
    source: ObjectSource, ca: str, grpc_port: int, bare_port: int, times: int
) -> tuple[float, float]:
    """Take both in turn, so that both see the same machine; the first of each is not counted."""
    fetched, bare = [], []
    channel = open_channel(
        _HOST, grpc_port, ca_pem=ca.encode(), insecure=False, max_message_bytes=4 << 20
    )
    async with channel:
        for _ in range(times + 1):
            begin = time.perf_counter()
            segment = await fetch_object(channel, source)
            fetched.append(time.perf_counter() - begin)
            segment.close()
            bare.append(await asyncio.to_thread(_receive_bare, ca, bare_port, source.size))
    return statistics.median(fetched[1:]), statistics.median(bare[1:])


def _receive_bare(ca: str, port: int, size: int) -> float:
    """Receive so many bytes into memory of their own, as FetchObject does."""
    context = ssl.create_default_context(cadata=ca)
    with (
        socket.create_connection((_HOST, port)) as plain,
        context.wrap_socket(plain, server_hostname=_HOST) as line,
    ):
        begin = time.perf_counter()
        target = os.memfd_create("bare")
        piece = memoryview(bytearray(_PIECE))
        received = 0
        while received < size:
            count = line.recv_into(piece)
            if not count:
                raise RuntimeError("the sender has gone")
            os.write(target, piece[:count])
            received += count
        taken = time.perf_counter() - begin
        os.close(target)
        return taken


class _Sender:
    """What a worker's service is asked for; only objects here."""

    def __init__(self, store: NodeStore) -> None:
        self._store = store

    async def execute_task(self, item: Any) -> Any:
        raise ConfigError("nothing runs here")

    async def get_status(self) -> Any:
        raise ConfigError("there is no status")

    @contextlib.asynccontextmanager
    async def open_object(self, object_id: str) -> AsyncIterator[memoryview]:
        async with self._store.hold(object_id) as segment:
            yield segment.view()


async def _send(path: Path, size: int) -> None:
    state = StateDir(path)
    identity = load_server_identity(state, [_HOST], time.time())
    auth = AuthManager.open(state, jwt_secret=None, token_expiration_s=3600)
    data = os.urandom(_PIECE) * (size // _PIECE + 1)
    store = NodeStore(asyncio.get_running_loop(), StoreLimits(2 * size + _PIECE))
    await store.put(_OBJECT, [memoryview(data)[:size]])
    server = WorkerServer(_Sender(store), auth=auth, identity=identity, port=0)
    port = await server.start()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    chain = path / "bare.pem"
    chain.write_bytes(identity.certificate_pem + identity.key_pem)
    context.load_cert_chain(chain)
    listener = socket.create_server((_HOST, 0))
    threading.Thread(target=_serve_bare, args=(listener, context, data, size), daemon=True).start()
    print(port, listener.getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0.0)
    await store.close()


def _serve_bare(listener: socket.socket, context: ssl.SSLContext, data: bytes, size: int) -> None:
    view = memoryview(data)[:size]
    while True:
        plain, _ = listener.accept()
        with context.wrap_socket(plain, server_side=True) as line:
            for start in range(0, size, _PIECE):
                line.sendall(view[start : start + _PIECE])
            with contextlib.suppress(OSError):
                line.recv(1)


if __name__ == "__main__":
    asyncio.run(_send(Path(sys.argv[1]), int(sys.argv[2])))
