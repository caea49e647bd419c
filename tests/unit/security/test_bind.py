"""Where a node may listen."""

from __future__ import annotations

import itertools

import pytest

from rustray.common.errors import ConfigError
from rustray.security.bind import check_bind, is_unspecified, join_host_port, split_host_port

_LOOPBACK = (
    "127.0.0.1",
    "127.8.9.10",
    "::1",
    "localhost",
    "LocalHost.",
    "::ffff:127.0.0.1",
    "127.0.0.1:8000",
    "[::1]:8000",
    "localhost:8000",
)
_OPEN = (
    "0.0.0.0",
    "::",
    "",
    "192.0.2.1",
    "2001:db8::1",
    "::ffff:192.0.2.1",
    "head.example",
    "localhost.example",
    "127.0.0.1.example",
    "127.1",
    "[::]:8000",
    "0.0.0.0:8000",
)


@pytest.mark.parametrize(("tls", "auth"), list(itertools.product([True, False], repeat=2)))
@pytest.mark.parametrize("address", _LOOPBACK)
def test_loopback_is_always_allowed(address: str, tls: bool, auth: bool) -> None:
    """On loopback, TLS and tokens may be off."""
    check_bind(address, tls=tls, auth=auth)


@pytest.mark.parametrize("address", _OPEN)
@pytest.mark.parametrize(
    ("tls", "auth", "missing"),
    [
        (False, False, "TLS and authentication would be off"),
        (False, True, "and TLS would be off"),
        (True, False, "and authentication would be off"),
    ],
)
def test_open_bind_takes_both(address: str, tls: bool, auth: bool, missing: str) -> None:
    """Where others can reach it, a node without TLS or without tokens is refused."""
    with pytest.raises(ConfigError, match=missing):
        check_bind(address, tls=tls, auth=auth)
    check_bind(address, tls=True, auth=True)


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("a:1", ("a", "1")),
        ("a", ("a", "")),
        ("::1", ("::1", "")),
        ("[::1]:1", ("::1", "1")),
        ("[::1]", ("::1", "")),
    ],
)
def test_split(address: str, parts: tuple[str, str]) -> None:
    """Host and port come apart, with or without brackets."""
    assert split_host_port(address) == parts


def test_join() -> None:
    """An IPv6 host gets its brackets."""
    assert join_host_port("::1", 8000) == "[::1]:8000"
    assert join_host_port("a", "1") == "a:1"


def test_unspecified() -> None:
    """All addresses of the machine are 0.0.0.0, :: or nothing."""
    assert all(map(is_unspecified, ("", "0.0.0.0", "::")))
    assert not any(map(is_unspecified, ("127.0.0.1", "a", "::1")))
