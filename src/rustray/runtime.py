"""What `rustray.init` starts: a cluster inside this process, or a connection to one elsewhere.

The embedded cluster is the head's core and a worker's agent on one event loop in one background
thread, joined by memory instead of gRPC (which is not even loaded); tasks run in child processes,
as everywhere. It stands above head, worker and client, for it is made of all three.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from rustray.client.attachment import Attachment, SessionLimits
from rustray.client.intake import MAX_PAYLOAD_BYTES
from rustray.client.sharing import share
from rustray.client.throttle import PATIENCE_S
from rustray.common.errors import CommunicationError, ConfigError
from rustray.rpc.api import HeadApi

SCHEME: Final = "rustray://"
DEFAULT_PORT: Final = 8000
EMBEDDED_START_S: Final = 30.0
VALUES_SHARE: Final = 0.3
"""Of a machine's memory, for large values of an embedded cluster: as in Ray's object store."""
FRAME_OVERHEAD_BYTES: Final = 64 << 10
"""What a frame holds beside one big item: ids, class definitions, acks."""
_EMBEDDED_CLOSED: Final = (
    "rustray was shut down before this task ended, and the embedded cluster with it"
)
_REMOTE_CLOSED: Final = (
    "rustray was shut down before this task's result arrived; the task goes on at the head, "
    "HeadNode.get_task_result() can fetch it by its id"
)


def start(  # noqa: PLR0913 - settings, by name
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    memory_mb: float | None = None,
    num_gpus: float | None = None,
    token: str | None = None,
    ca_file: str | os.PathLike[str] | None = None,
    connect_timeout_s: float = 10.0,
    backpressure_timeout_s: float = PATIENCE_S,
    log_to_driver: bool = True,
) -> Attachment:
    """Start an embedded cluster, or connect to the head at the address.

    See `rustray.init` for arguments and errors.
    """
    limits = SessionLimits(
        backpressure_timeout_s=backpressure_timeout_s, shows_logs=bool(log_to_driver)
    )
    if address is None:
        for name, value in (("token", token), ("ca_file", ca_file)):
            if value is not None:
                raise ValueError(f"{name} is for the head at an address; none was given")
        return _start_embedded(num_cpus, memory_mb, num_gpus, limits)
    amounts = (("num_cpus", num_cpus), ("memory_mb", memory_mb), ("num_gpus", num_gpus))
    for name, amount in amounts:
        if amount is not None:
            named = (
                ", which RUSTRAY_ADDRESS names,"
                if address == os.environ.get("RUSTRAY_ADDRESS")
                else ""
            )
            raise ValueError(
                f"{name} is for an embedded cluster; the workers of {address}{named} decide theirs "
                "(rustray worker --cpus N --memory-mb M --gpus N): leave it out on a cluster"
            )
    return _connect(parse_address(address), token, ca_file, connect_timeout_s, limits)


def parse_address(text: str) -> str:
    """Turn ``rustray://host:port``, ``host:port`` or ``host`` into ``host:port``.

    Raises:
        ConfigError: it is none of these; the message shows how an address looks.
    """
    rest = text.removeprefix(SCHEME).rstrip("/")
    host, colon, port = rest.rpartition(":")
    if not colon or rest.endswith("]"):
        host, port = rest, str(DEFAULT_PORT)
    is_bare_ipv6 = ":" in host and not host.startswith("[")
    is_port = port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16
    if not host or "/" in rest or is_bare_ipv6 or not is_port or not host.isprintable():
        raise ConfigError(
            f"{text!r:.200} is not the address of a head: write rustray://HOST:PORT, for "
            "example rustray://127.0.0.1:8000 (an IPv6 host in brackets)"
        )
    return f"{host}:{port}"


def _start_embedded(
    num_cpus: float | None,
    memory_mb: float | None,
    num_gpus: float | None,
    limits: SessionLimits,
) -> Attachment:
    from rustray.worker import detect
    from rustray.worker.config import WorkerConfig

    detected, visible = detect.gpus(os.environ)
    present_mb = detect.memory_mb()
    config = WorkerConfig(
        gpus=detected if num_gpus is None else num_gpus,
        gpu_ids=visible,
        cpus=detect.cpu_cores() if num_cpus is None else num_cpus,
        memory_mb=present_mb if memory_mb is None else memory_mb,
        name="embedded",
        shows_output=False,
        max_result_bytes=MAX_PAYLOAD_BYTES,
        object_memory_mb=max(int(present_mb * VALUES_SHARE), 1),
    )
    cluster = _EmbeddedCluster(config)
    return Attachment(
        cluster.open,
        cluster.close,
        slots=max(int(config.cpus), 1),
        close_reason=_EMBEDDED_CLOSED,
        timeout_s=EMBEDDED_START_S,
        limits=replace(limits, pack=share),
    )


class _EmbeddedCluster:
    """A head and a worker on the loop that calls `open`."""

    def __init__(self, config: object) -> None:
        self._config = config
        self._close: list[Callable[[], Awaitable[None]]] = []

    async def open(self) -> HeadApi:
        """Start both, and return the head once the worker has joined it."""
        from rustray.head.core import VERSION
        from rustray.head.embedded import EmbeddedHead, settings_for
        from rustray.worker.agent import WorkerAgent
        from rustray.worker.config import WorkerConfig

        assert isinstance(self._config, WorkerConfig)
        head = EmbeddedHead(settings_for(MAX_PAYLOAD_BYTES))
        await head.start()
        self._close.append(head.close)
        agent = WorkerAgent(head.api(), self._config, version=VERSION)
        work = asyncio.create_task(agent.run(), name="rustray-embedded-worker")
        joined = asyncio.create_task(agent.wait_connected())

        async def stop() -> None:
            joined.cancel()
            await agent.stop()
            await asyncio.gather(work, joined, return_exceptions=True)

        self._close.append(stop)
        await asyncio.wait((work, joined), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
            raise CommunicationError("the embedded worker ended while it started")
        return head.api()

    async def close(self) -> None:
        """Stop the worker, its processes, and the head."""
        while self._close:
            await self._close.pop()()


def _connect(
    address: str,
    token: str | None,
    ca_file: str | os.PathLike[str] | None,
    connect_timeout_s: float,
    limits: SessionLimits,
) -> Attachment:
    # Imported late, as all of security and gRPC: an embedded cluster starts faster without.
    from rustray.client.access import resolve
    from rustray.rpc.head_client import GrpcHeadClient, connect
    from rustray.rpc.node_server import MAX_MESSAGE_BYTES

    clients: list[GrpcHeadClient] = []

    async def dial() -> HeadApi:
        access = resolve(address, token, ca_file)
        client = await connect(
            access.address,
            token_source=access.token_source,
            ca_pem=access.ca_pem,
            insecure=access.insecure,
            timeout_s=connect_timeout_s,
        )
        clients.append(client)
        return client

    async def hangup() -> None:
        while clients:
            await clients.pop().close()

    return Attachment(
        dial,
        hangup,
        address=f"{SCHEME}{address}",
        slots=1,
        close_reason=_REMOTE_CLOSED,
        timeout_s=connect_timeout_s + 1.0,
        limits=replace(limits, max_payload_bytes=MAX_MESSAGE_BYTES - FRAME_OVERHEAD_BYTES),
    )
