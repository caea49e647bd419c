"""Where a node may listen, and what that takes."""

from __future__ import annotations

import ipaddress

from rustray.common.errors import ConfigError


def split_host_port(address: str) -> tuple[str, str]:
    """Split ``host:port`` or ``[v6]:port``; the port is "" where there is none.

    The host comes without brackets. Nothing is validated.
    """
    if address.startswith("["):
        host, _, rest = address[1:].partition("]")
        return host, rest.removeprefix(":")
    if address.count(":") == 1:
        host, _, port = address.partition(":")
        return host, port
    return address, ""


def join_host_port(host: str, port: str | int) -> str:
    """Write ``host:port``, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_unspecified(host: str) -> bool:
    """Whether the host stands for all addresses of the machine."""
    address = _parse(host)
    return host == "" or (address is not None and address.is_unspecified)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host; a name other than localhost is not."""
    if host.lower().removesuffix(".") == "localhost":
        return True
    address = _parse(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address is not None and address.is_loopback


def check_bind(address: str, *, tls: bool, auth: bool) -> None:
    """Refuse to listen where strangers can reach a node that does not check who they are.

    Args:
        address: Host, or ``host:port``.
        tls: Whether the listener speaks TLS.
        auth: Whether it takes tokens.

    Raises:
        ConfigError: the host is not loopback, and TLS or tokens are off.
    """
    host, _ = split_host_port(address)
    if is_loopback(host) or (tls and auth):
        return
    missing = " and ".join(name for name, on in (("TLS", tls), ("authentication", auth)) if not on)
    raise ConfigError(
        f"{host or 'every address'} can be reached from other machines, and {missing} would be "
        "off: whoever reaches the port could run code here. Turn it on, or listen on 127.0.0.1"
    )


def _parse(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
