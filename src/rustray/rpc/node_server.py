"""A gRPC server as every node of rustray runs one: limits, TLS, the gate, health."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from rustray.common.errors import ConfigError, InvariantError, RustRayError
from rustray.rpc.auth import Guard
from rustray.rpc.gate import Gate, Method, OnRefusal
from rustray.rpc.grpcio import aio, grpc
from rustray.rpc.health import Health
from rustray.rpc.sturdy import make_server
from rustray.security.bind import check_bind, join_host_port
from rustray.security.roles import METHOD_ROLES

MAX_MESSAGE_BYTES: Final = 32 * 1024 * 1024
"""Both ways: a payload of 16 MiB travels inline, and a frame may hold more than one."""


class Identity(Protocol):
    """What a server shows; `rustray.security.certificates.ServerIdentity` is one."""

    @property
    def certificate_pem(self) -> bytes:
        """The server's certificate."""

    @property
    def key_pem(self) -> bytes:
        """Its private key."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server takes from its peers.

    Attributes:
        max_message_bytes: Longest message, either way.
        max_calls: Calls and streams at once.
        max_streams_per_connection: Of them over one connection.
        handshake_s: For TLS and HTTP/2's first bytes.
        idle_s: A connection without a call is closed after this time.
        ping_s: How often a quiet connection is probed; it is dead 10 s later.
    """

    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_calls: int = 10_000
    max_streams_per_connection: int = 1_000
    handshake_s: float = 10.0
    idle_s: float = 900.0
    ping_s: float = 20.0

    def options(self) -> list[tuple[str, Any]]:
        """Return gRPC's channel arguments."""
        return [
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_metadata_size", 8 * 1024),
            ("grpc.absolute_max_metadata_size", 16 * 1024),
            ("grpc.max_concurrent_streams", self.max_streams_per_connection),
            ("grpc.server_handshake_timeout_ms", int(self.handshake_s * 1000)),
            ("grpc.max_connection_idle_ms", int(self.idle_s * 1000)),
            ("grpc.keepalive_time_ms", int(self.ping_s * 1000)),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.http2.max_ping_strikes", 2),
            ("grpc.so_reuseport", 0),
            ("grpc.compression_enabled_algorithms_bitset", 1),  # none: no bombs
        ]


class NodeServer:
    """Serves one table of methods.

    Attributes:
        on_refusal: Called with each error that ends a call.
    """

    def __init__(
        self,
        services: tuple[Any, ...],
        methods: Mapping[str, Method],
        guard: Guard,
        identity: Identity | None,
        host: str,
        port: int,
        limits: Limits | None = None,
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            services: Descriptors of the protobuf services that ``methods`` implement.
            methods: Full name to method.
            guard: Who may call.
            identity: Certificate and key; None for plaintext (loopback only).
            host: Where to listen.
            port: 0 lets the system choose.
            limits: What peers may ask.

        Raises:
            ConfigError: the host can be reached from elsewhere, and TLS or tokens are off.
            InvariantError: the tables of methods do not agree.
        """
        check_bind(host, tls=identity is not None, auth=guard.auth is not None)
        check_tables(services, methods)
        self._health = Health()
        self._methods = {**methods, **self._health.methods()}
        self._guard = guard
        self._identity = identity
        self._host = host
        self._port = port
        self._limits = limits or Limits()
        self._server: aio.Server | None = None
        self._renewed: grpc.ServerCertificateConfiguration | None = None
        self.on_refusal: OnRefusal = _nobody_counts

    async def start(self) -> int:
        """Listen, and answer calls from now on.

        Returns:
            The port.

        Raises:
            ConfigError: the port is taken, or the address is not this machine's.
        """
        if not 0 <= self._port <= 65_535:
            raise ConfigError(f"port {self._port} is outside 0 to 65535")
        server = make_server(
            Gate(self._methods, self._guard, lambda error: self.on_refusal(error)),
            self._methods,
            self._limits.options(),
            self._limits.max_calls,
        )
        target = join_host_port(self._host, self._port)
        try:
            if self._identity is None:
                port = server.add_insecure_port(target)
            else:
                credentials = grpc.dynamic_ssl_server_credentials(
                    _certificate(self._identity),
                    self._take_renewed,  # type: ignore[arg-type] # None: the same as before
                )
                port = server.add_secure_port(target, credentials)
        except RuntimeError as error:
            raise ConfigError(_bind_problem(self._host, self._port)) from error
        await server.start()
        self._server = server
        return port

    def renew(self, identity: Identity) -> None:
        """Show another certificate to whoever connects from now on; what is connected stays so."""
        self._renewed = _certificate(identity)

    def _take_renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Give gRPC, on a thread of its own, a certificate that it does not have yet, or None."""
        renewed, self._renewed = self._renewed, None
        return renewed

    async def stop(self, grace_s: float) -> None:
        """Say NOT_SERVING, take no more calls, and end those that last longer than the grace."""
        server, self._server = self._server, None
        if server is not None:
            await self._health.retire()
            await server.stop(grace_s)

    async def retire(self) -> None:
        """Say NOT_SERVING to those who ask for this node's health."""
        await self._health.retire()


def _certificate(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(identity.key_pem, identity.certificate_pem)])


def check_tables(services: tuple[Any, ...], methods: Mapping[str, Method]) -> None:
    """Compare the protocol, this node's methods, and the roles that may call them.

    Raises:
        InvariantError: a method is missing in one of them.
    """
    described = {
        f"/{service.full_name}/{method.name}": method
        for service in services
        for method in service.methods
    }
    prefixes = tuple(f"/{service.full_name}/" for service in services)
    guarded = {name for name in METHOD_ROLES if name.startswith(prefixes)}
    odd = (described.keys() ^ methods.keys()) | (described.keys() ^ guarded)
    if odd:
        raise InvariantError(f"protocol, methods and roles do not agree on {sorted(odd)}")


def _bind_problem(host: str, port: int) -> str:
    """Find out in words why a port could not be opened."""
    shown = join_host_port(host, port)
    reason = "it cannot be opened"
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(address)
                    probe.listen(1)
                except OSError as error:
                    reason = error.strerror or reason
                    break
    return (
        f"cannot listen on {shown}: {reason}. If another node runs there, stop it or choose "
        "another port (--port); the address has to be one of this machine's (--address)"
    )


def _nobody_counts(_: RustRayError) -> None:
    """Stand in until somebody wants to know."""
