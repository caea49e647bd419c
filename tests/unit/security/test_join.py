"""Join strings: round trips, and everything that is refused."""

from __future__ import annotations

import hashlib
import struct
import zlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rustray.common.errors import ConfigError
from rustray.security.auth import AuthManager
from rustray.security.certificates import load_server_identity, spki_pin
from rustray.security.encoding import decode_base64url, encode_base64url
from rustray.security.join import MAX_JOIN_CHARS, JoinString, check_address
from rustray.security.state_dir import StateDir

from .conftest import NOW

TOKEN = "aaa.bbb.ccc"


def _pack(address: bytes, compressed: bytes, token: bytes, *, tail: bytes = b"") -> str:
    sizes = struct.pack(">HHH", len(address), len(compressed), len(token))
    body = sizes + address + compressed + token
    checksum = hashlib.sha256(b"rustray join\0" + body).digest()[:8]
    return "rrj1." + encode_base64url(body + checksum + tail)


@pytest.mark.parametrize("address", ["head.example:8000", "192.0.2.1:1", "[2001:db8::1]:65535"])
def test_round_trip(ca_der: bytes, address: str) -> None:
    """Address, certificate and token come back as they were."""
    made = JoinString(address, ca_der, TOKEN)
    text = made.encode()
    assert text.startswith("rrj1.")
    assert text.isprintable()
    assert JoinString.parse(text) == made
    assert text == _pack(address.encode(), zlib.compress(ca_der, 9), TOKEN.encode())


def test_white_space_from_a_terminal(ca_der: bytes) -> None:
    """A string that a terminal broke into lines is read all the same."""
    made = JoinString("a:1", ca_der, TOKEN)
    text = made.encode()
    broken = " " + "\r\n  ".join(text[at : at + 70] for at in range(0, len(text), 70)) + "\n"
    assert JoinString.parse(broken) == made


def test_certificate_forms(state: StateDir, auth: AuthManager) -> None:
    """The authority's certificate and its pin come out as they are in the state directory."""
    identity = load_server_identity(state, [], NOW)
    made = JoinString.from_pem("a:1", identity.ca_pem, auth.mint("worker", "worker:a", NOW))
    parsed = JoinString.parse(made.encode())
    assert parsed.ca_pem == identity.ca_pem
    assert parsed.ca_pin == spki_pin(x509.load_pem_x509_certificate(identity.ca_pem))
    assert auth.verify(parsed.token, NOW).subject == "worker:a"


def test_token_is_not_shown(ca_der: bytes) -> None:
    """Printing a join string's object does not leak its token."""
    assert TOKEN not in repr(JoinString("a:1", ca_der, TOKEN))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("hello", "not a join string: those begin with rrj1"),
        ("eyJhbGciOiJFZERTQSJ9.e30.AAAA", "access token, not a join string"),
        ("rrj2.AAAA", "another version"),
        ("RRJ1.AAAA", "not a join string"),
        ("rrj1.", "cut short"),
        ("rrj1.A", "cut short or damaged"),
        ("rrj1.AAAA", "cut short"),
        ("rrj1.AA==", "characters that do not belong"),
        ("rrj1.é", "characters that do not belong"),
        ("rrj1.a.b", "characters that do not belong"),
        ("rrj1." + "A" * (MAX_JOIN_CHARS + 1), "too long"),
        ("A" * 100_000_0, "too long"),
        ("rrj1." + encode_base64url(b"\xff" * 100), "cut short"),
    ],
)
def test_other_texts(text: str, match: str) -> None:
    """What is no join string is refused with words that help."""
    with pytest.raises(ConfigError, match=match):
        JoinString.parse(text)


def test_every_cut_is_noticed(ca_der: bytes) -> None:
    """However much of its end is missing, a string is said to be cut short."""
    text = JoinString("head.example:8000", ca_der, TOKEN).encode()
    for length in range(len("rrj1."), len(text)):
        with pytest.raises(ConfigError, match="cut short"):
            JoinString.parse(text[:length])


def test_tail_is_noticed(ca_der: bytes) -> None:
    """More than the checksum at the end is damage."""
    with pytest.raises(ConfigError, match="wrong checksum"):
        JoinString.parse(_pack(b"a:1", zlib.compress(ca_der), b"t", tail=b"more"))


def test_flipped_bits_are_noticed(ca_der: bytes) -> None:
    """A single wrong bit anywhere is noticed."""
    data = decode_base64url(JoinString("a:1", ca_der, TOKEN).encode().removeprefix("rrj1."))
    for place in range(len(data)):
        wrong = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(ConfigError, match=r"wrong checksum|cut short"):
            JoinString.parse("rrj1." + encode_base64url(wrong))


def test_bad_parts_under_a_good_checksum(ca_der: bytes) -> None:
    """A checksum makes nothing good: each part is looked at for itself."""
    good = zlib.compress(ca_der)
    leaf = b"0\x03\x02\x01\x00"
    for address, certificate, token, match in (
        (b"\xff:1", good, b"t", "damaged"),
        (b"a:1", good, b"\xff", "damaged"),
        (b"a", good, b"t", "is not an address"),
        (b"a:1", good, b"", "is not a token"),
        (b"a:1", good, b"a b", "is not a token"),
        (b"a:1", good, b"t" * 4097, "is not a token"),
        (b"a:1", b"", b"t", "too large or damaged"),
        (b"a:1", b"junk", b"t", "damaged"),
        (b"a:1", good[:-1], b"t", "too large or damaged"),
        (b"a:1", good + b"x", b"t", "too large or damaged"),
        (b"a:1", zlib.compress(b"\0" * 5_000_000), b"t", "too large or damaged"),
        (b"a:1", zlib.compress(leaf), b"t", "certificate in the join string is damaged"),
    ):
        with pytest.raises(ConfigError, match=match):
            JoinString.parse(_pack(address, certificate, token))


def test_server_certificate_is_no_authority(state: StateDir) -> None:
    """A join string holds an authority, not some server's certificate."""
    identity = load_server_identity(state, [], NOW)
    with pytest.raises(ConfigError, match="not the certificate of a certificate authority"):
        JoinString.from_pem("a:1", identity.certificate_pem, TOKEN)
    with pytest.raises(ConfigError, match="is not PEM"):
        JoinString.from_pem("a:1", b"junk", TOKEN)


@pytest.mark.parametrize("address", ["a:1", "a-b.c_d:65535", "[::1]:8000", "192.0.2.1:8000"])
def test_good_addresses(address: str) -> None:
    """Names, IPv4 and bracketed IPv6 with a port are addresses."""
    check_address(address)


@pytest.mark.parametrize(
    "address",
    ["", "a", ":1", "a:", "a:0", "a:65536", "a:99999", "a:-1", "a:x", "a:1\n", "::1:8000", "é:1",
     "http://a:1", "a b:1", "a:٥", "a" * 300 + ":1"],
)  # fmt: skip
def test_bad_addresses(address: str) -> None:
    """Everything else is not, and the message says what is expected."""
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        check_address(address)


_FUZZ = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@_FUZZ
@given(st.text(max_size=100) | st.from_regex(r"\s*rrj1\.[A-Za-z0-9_-]{0,200}"))
def test_any_text(text: str) -> None:
    """No text brings anything but a ConfigError."""
    with pytest.raises(ConfigError):
        JoinString.parse(text)


@_FUZZ
@given(st.binary(max_size=30), st.binary(max_size=60), st.binary(max_size=30))
def test_any_parts(address: bytes, compressed: bytes, token: bytes) -> None:
    """No parts under a good checksum bring anything but a ConfigError."""
    with pytest.raises(ConfigError):
        JoinString.parse(_pack(address, compressed, token))


@_FUZZ
@given(st.binary(max_size=200))
def test_any_certificate(der: bytes) -> None:
    """No bytes in the certificate's place bring anything but a ConfigError."""
    with pytest.raises(ConfigError):
        JoinString.parse(_pack(b"a:1", zlib.compress(der), b"t"))


@_FUZZ
@given(place=st.integers(0, 2_000), value=st.integers(0, 255))
def test_any_changed_byte_of_the_certificate(ca_der: bytes, place: int, value: int) -> None:
    """A certificate with one other byte is refused, or still is an authority with a pin."""
    changed = bytearray(ca_der)
    changed[place % len(ca_der)] = value
    try:
        found = JoinString.parse(_pack(b"a:1", zlib.compress(bytes(changed)), b"t"))
    except ConfigError:
        return
    assert len(found.ca_pin) == 43
    x509.load_pem_x509_certificate(found.ca_pem).public_bytes(serialization.Encoding.DER)
