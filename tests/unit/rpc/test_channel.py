"""Addresses: what is understood, and what the error says of the rest."""

from __future__ import annotations

import pytest

from rustray.common.errors import ConfigError
from rustray.rpc.channel import explain_unavailable, open_channel, parse_address


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("rustray://head.example:8000", "head.example", 8000),
        ("RustRay://head:8000/", "head", 8000),
        ("127.0.0.1:8000", "127.0.0.1", 8000),
        (" localhost:1 ", "localhost", 1),
        ("[::1]:8000", "::1", 8000),
        ("rustray://[fe80::1%eth0]:65535", "fe80::1%eth0", 65535),
        ("my_host-1:80", "my_host-1", 80),
    ],
)
def test_good_addresses(address: str, host: str, port: int):
    """Both forms, names and both kinds of IP addresses are understood."""
    assert parse_address(address) == (host, port)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://head:8000", "gRPC, not HTTP"),
        ("https://head", "gRPC, not HTTP"),
        ("tcp://head:8000", "rustray://HOST:PORT"),
        ("", "not an address"),
        ("host", "no port"),
        (":8000", "not an address"),
        ("host:0", "1 to 65535"),
        ("host:99999", "1 to 65535"),
        ("host:8o", "1 to 65535"),
        ("host:٨٠", "1 to 65535"),
        ("::1:8000", "brackets"),
        ("[::1]", "no port"),
        ("hösť:80", "not an address"),
        ("a b:80", "not an address"),
        ("rustray://user@host:80", "not an address"),
        ("host:80/path", "1 to 65535"),
        ("x" * 300 + ":80", "not an address"),
    ],
)
def test_bad_addresses_are_explained(address: str, reason: str):
    """Anything else is a ConfigError that says what to write."""
    with pytest.raises(ConfigError, match=reason):
        parse_address(address)


def test_a_ca_that_is_no_certificate_is_refused():
    """A wrong file in the place of the CA is found before anything is sent."""
    with pytest.raises(ConfigError, match="PEM"):
        open_channel("h", 1, ca_pem=b"junk", insecure=False, max_message_bytes=1)


@pytest.mark.parametrize("reason", ["certificate has expired", "certificate is not yet valid"])
def test_a_certificate_out_of_its_time_names_the_clock(reason: str):
    """Most likely a clock is wrong; it is not taken for another cluster's certificate."""
    details = f"OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: {reason}"
    text = explain_unavailable("h:1", details, insecure=False)
    assert "clock" in text
    assert "another cluster" not in text


def test_a_peer_that_says_nothing_is_not_told_in_grpcs_words():
    """Regression: a stopped head (SIGSTOP) was a "Handshake read failed (FD Shutdown ...)"."""
    details = "UNAVAILABLE: ipv4:1.2.3.4:1: Handshake read failed (FD Shutdown (endpoint shutdown))"
    text = explain_unavailable("h:1", details, insecure=False)
    assert "says nothing" in text
    assert "FD Shutdown" not in text
