"""Channels to a node: its address, TLS, and texts for what can go wrong on the way."""

from __future__ import annotations

import re
from typing import Any, Final

from rustray.common.errors import ConfigError
from rustray.rpc.grpcio import aio, grpc
from rustray.security.bind import is_loopback, join_host_port, split_host_port

SCHEME: Final = "rustray://"
DEFAULT_PORT: Final = 8000
_HOST: Final = re.compile(
    r"[a-z0-9_][a-z0-9._-]{0,252}|[0-9a-f:.]{2,45}(?:%\w{1,16})?", re.IGNORECASE | re.ASCII
)
_PORT: Final = re.compile(r"[0-9]{1,5}", re.ASCII)


def parse_address(address: str) -> tuple[str, int]:
    """Take ``rustray://host:port``, ``host:port`` or ``[v6]:port`` apart.

    Returns:
        Host without brackets, and port.

    Raises:
        ConfigError: it is none of these; the message says what to write.
    """
    shown = repr(address[:100])
    bare = address.strip()
    scheme, separator, rest = bare.partition("://")
    if separator:
        if scheme.lower() != "rustray":
            raise ConfigError(
                f"{shown} is not a rustray address: write {SCHEME}HOST:PORT"
                + (" (the head speaks gRPC, not HTTP)" if scheme.lower() in _WEB else "")
            )
        bare = rest.removesuffix("/")
    if bare.count(":") > 1 and not bare.startswith("["):
        raise ConfigError(f"{shown}: write an IPv6 address in brackets, {SCHEME}[::1]:PORT")
    host, port = split_host_port(bare)
    if not _HOST.fullmatch(host):
        raise ConfigError(f"{shown} is not an address: write {SCHEME}HOST:PORT")
    if not port:
        raise ConfigError(f"{shown} has no port: write {SCHEME}HOST:PORT, e.g. :{DEFAULT_PORT}")
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65_535:
        raise ConfigError(f"{shown}: the port has to be a number from 1 to 65535")
    return host, int(port)


_WEB: Final = frozenset({"http", "https", "ws", "wss", "grpc", "grpcs"})


def channel_options(max_message_bytes: int) -> list[tuple[str, Any]]:
    """Return a client's channel arguments."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_metadata_size", 8 * 1024),
        ("grpc.absolute_max_metadata_size", 16 * 1024),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
        ("grpc.compression_enabled_algorithms_bitset", 1),
    ]


def open_channel(
    host: str,
    port: int,
    *,
    ca_pem: bytes | None,
    insecure: bool,
    max_message_bytes: int,
    tls_name: str = "",
) -> aio.Channel:
    """Make a channel; it connects at its first use.

    Args:
        host: As in `parse_address`.
        port: As there.
        ca_pem: The cluster's authority; None for the system's.
        insecure: Plaintext, to this machine only.
        max_message_bytes: Longest message, either way.
        tls_name: What the certificate has to name; "": the host.

    Raises:
        ConfigError: plaintext to another machine, or a CA that is not PEM.
    """
    target = join_host_port(host, port)
    options = channel_options(max_message_bytes)
    if tls_name:
        options.append(("grpc.ssl_target_name_override", tls_name))
    if insecure:
        if not is_loopback(host):
            raise ConfigError(
                f"{host} is another machine: without TLS everybody on the way could read and "
                "change what travels. Leave the insecure mode to 127.0.0.1"
            )
        return aio.insecure_channel(target, options)
    if ca_pem is not None and b"-----BEGIN CERTIFICATE-----" not in ca_pem:
        raise ConfigError("the cluster's CA certificate is not a PEM file")
    return aio.secure_channel(target, grpc.ssl_channel_credentials(ca_pem), options)


def explain_unavailable(shown: str, details: str, *, insecure: bool) -> str:
    """Say what is likely wrong where no peer answered.

    Args:
        shown: The address, for people.
        details: gRPC's own words.
        insecure: Whether the caller speaks plaintext.
    """
    low = details.lower()
    for signs, advice in _SIGNS:
        if any(sign in low for sign in signs):
            return f"no head answers at {shown}: {advice}"
    if insecure:
        return (
            f"no head answers at {shown} without TLS: the connection was closed at once. The node "
            "there probably speaks TLS, and no credentials of it were found here: set "
            "RUSTRAY_STATE_DIR to the head's state directory, or RUSTRAY_CA_FILE and RUSTRAY_TOKEN"
        )
    return f"no head answers at {shown}: {details[:300]}"


_SIGNS: Final = (
    (
        ("certificate has expired", "certificate is not yet valid", "certificate not yet valid"),
        "its certificate is not valid at the time that this machine's clock shows. Set the clock "
        "right, here and on the head's machine; if both are right, start the head again, which "
        "makes a new certificate",
    ),
    (
        ("certificate_verify_failed", "certificate verify failed", "unable to get local issuer"),
        "its certificate was not issued by the authority (CA) that this side trusts. It is another "
        "cluster, or its state directory was made anew: use that head's own join string or CA "
        "certificate (ca_file=, --ca-file, RUSTRAY_CA_FILE)",
    ),
    (
        ("hostname verification", "peer name", "no match found for server name"),
        "its certificate does not name this address: connect by a name or address that the head "
        "was started with (--address), or restart it with this one",
    ),
    (
        ("wrong_version_number", "packet_length_too_long", "http_request", "unexpected_message"),
        "what listens there does not speak TLS; it is another program, or a head in the insecure "
        "mode",
    ),
    (
        ("fd shutdown (endpoint shutdown)",),  # our own end of a handshake that took too long
        "something listens there, and says nothing. The head is stopped, or has too much to do; "
        "or it is another program",
    ),
    (
        ("connection refused",),
        "nothing listens there. Start one with `rustray head`, or check host and port",
    ),
    (
        ("no such host", "name or service not known", "domain name not found", "dns resolution"),
        "the host's name cannot be resolved; check its spelling",
    ),
    (
        ("network is unreachable", "no route to host"),
        "there is no way to that host in the network",
    ),
)
