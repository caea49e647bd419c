"""The join string: all that another machine needs to find, trust and enter a cluster.

It carries the authority's certificate itself, so that a machine that joins trusts exactly that
authority from its first byte on, and sends nothing to anybody else.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from rustray.common.errors import ConfigError
from rustray.security.certificates import UNREADABLE, check_authority, spki_pin
from rustray.security.encoding import decode_base64url, encode_base64url
from rustray.security.tokens import MAX_TOKEN_CHARS

PREFIX: Final = "rrj1."
MAX_JOIN_CHARS: Final = 16_384

_MAX_CERTIFICATE_BYTES: Final = 4096
_MAX_ADDRESS_CHARS: Final = 300
_CHECKSUM_BYTES: Final = 8
# Sizes of address, compressed certificate and token; then these three; then the checksum.
_SIZES: Final = struct.Struct(">HHH")
_WHITESPACE: Final = re.compile(r"\s+", re.ASCII)
_BODY: Final = re.compile(r"[A-Za-z0-9_-]*")
_ADDRESS: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_TOKEN: Final = re.compile(r"[A-Za-z0-9._-]+")
_MAX_PORT: Final = 65_535
_COPY_AGAIN: Final = "copy it again, whole ('rustray token create --role worker' prints a new one)"


@dataclass(frozen=True, slots=True)
class JoinString:
    """Address, authority and token in one.

    Attributes:
        address: ``host:port`` of the head, an IPv6 host in brackets.
        ca_der: The authority's certificate.
        token: An access token.
    """

    address: str
    ca_der: bytes = field(repr=False)
    token: str = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse parts of which no usable join string can be made."""
        check_address(self.address)
        if len(self.token) > MAX_TOKEN_CHARS or _TOKEN.fullmatch(self.token) is None:
            raise ConfigError("the token in the join string is not a token; make a new one")
        check_authority(_parse_der(self.ca_der), "the certificate in the join string")

    @classmethod
    def from_pem(cls, address: str, ca_pem: bytes, token: str) -> JoinString:
        """Make one from the authority's PEM certificate.

        Raises:
            ConfigError: a part is not usable.
        """
        try:
            certificate = x509.load_pem_x509_certificate(ca_pem)
        except UNREADABLE as error:
            raise ConfigError("the authority's certificate is not PEM") from error
        return cls(address, certificate.public_bytes(serialization.Encoding.DER), token)

    @classmethod
    def parse(cls, text: str) -> JoinString:
        """Read a join string; white space from copying is ignored.

        Raises:
            ConfigError: not a join string, cut short, damaged, or with an unusable part.
        """
        if len(text) > 2 * MAX_JOIN_CHARS:
            raise ConfigError("this is too long to be a join string")
        bare = _WHITESPACE.sub("", text)
        if not bare.startswith(PREFIX):
            raise ConfigError(_no_join_string(bare))
        data = _decode_body(bare.removeprefix(PREFIX))
        address_size, ca_size, token_size = _SIZES.unpack_from(data)
        body_size = _SIZES.size + address_size + ca_size + token_size
        if len(data) < body_size + _CHECKSUM_BYTES:
            raise ConfigError(f"the join string is cut short; {_COPY_AGAIN}")
        body, checksum = data[:body_size], data[body_size:]
        if checksum != _checksum(body):
            raise ConfigError(f"the join string is damaged (wrong checksum); {_COPY_AGAIN}")
        try:
            address = body[_SIZES.size :][:address_size].decode("ascii")
            token = body[body_size - token_size :].decode("ascii")
        except UnicodeDecodeError as error:
            raise ConfigError(f"the join string is damaged; {_COPY_AGAIN}") from error
        compressed = body[_SIZES.size + address_size : body_size - token_size]
        return cls(address, _decompress(compressed), token)

    def encode(self) -> str:
        """Return the printable form."""
        address, token = self.address.encode("ascii"), self.token.encode("ascii")
        compressed = zlib.compress(self.ca_der, 9)
        sizes = _SIZES.pack(len(address), len(compressed), len(token))
        body = sizes + address + compressed + token
        return PREFIX + encode_base64url(body + _checksum(body))

    @property
    def ca_pem(self) -> bytes:
        """The authority's certificate as gRPC takes it."""
        return _parse_der(self.ca_der).public_bytes(serialization.Encoding.PEM)

    @property
    def ca_pin(self) -> str:
        """Base64url SHA-256 of the authority's public key, for people to compare."""
        return spki_pin(_parse_der(self.ca_der))


def check_address(address: str) -> None:
    """Refuse what is not ``host:port``.

    Raises:
        ConfigError: says what is expected.
    """
    found = _ADDRESS.fullmatch(address) if len(address) <= _MAX_ADDRESS_CHARS else None
    if found is None or not 1 <= int(found[2]) <= _MAX_PORT:
        raise ConfigError(
            f"{address[:80]!r} is not an address: expected HOST:PORT, "
            "for IPv6 [ADDRESS]:PORT, with a port from 1 to 65535"
        )


def _decode_body(text: str) -> bytes:
    if len(text) > MAX_JOIN_CHARS:
        raise ConfigError("this is too long to be a join string")
    if _BODY.fullmatch(text) is None:
        raise ConfigError(f"the join string has characters that do not belong there; {_COPY_AGAIN}")
    try:
        data = decode_base64url(text)
    except ValueError as error:
        raise ConfigError(f"the join string is cut short or damaged; {_COPY_AGAIN}") from error
    if len(data) < _SIZES.size + _CHECKSUM_BYTES:
        raise ConfigError(f"the join string is cut short; {_COPY_AGAIN}")
    return data


def _no_join_string(bare: str) -> str:
    if not bare:
        return "the join string is empty"
    if bare.startswith("eyJ"):
        return (
            "this is an access token, not a join string (those begin with rrj1.); "
            "give it by RUSTRAY_TOKEN_FILE or RUSTRAY_TOKEN"
        )
    if bare.startswith("rrj"):
        return "this join string is of another version of rustray; make one with this version"
    return "this is not a join string: those begin with rrj1."


def _decompress(compressed: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(compressed, _MAX_CERTIFICATE_BYTES)
    except zlib.error as error:
        raise ConfigError(f"the join string is damaged; {_COPY_AGAIN}") from error
    if not inflater.eof or inflater.unused_data:
        raise ConfigError("the certificate in the join string is too large or damaged")
    return data


def _parse_der(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except UNREADABLE as error:
        raise ConfigError("the certificate in the join string is damaged") from error


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(b"rustray join\0" + body).digest()[:_CHECKSUM_BYTES]
