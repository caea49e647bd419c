"""The cluster's own certificate authority, and the head's server certificate from it.

Law: the authority is made once and never replaced by itself, because clients pin it; the
server certificate is replaced whenever it is about to expire or no longer fits.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import psutil
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from rustray.common.errors import ConfigError
from rustray.security.encoding import encode_base64url
from rustray.security.state_dir import (
    CA_CERTIFICATE,
    CA_KEY,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    StateDir,
)

CA_LIFETIME: Final = timedelta(days=3650)
SERVER_LIFETIME: Final = timedelta(days=90)
REISSUE_BEFORE_EXPIRY: Final = timedelta(days=30)

_BACKDATED: Final = timedelta(hours=1)
"""So that a peer whose clock is a little behind accepts a fresh certificate."""
_CLOCK_SLACK: Final = timedelta(seconds=30)
_DNS_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*"
)
_MIN_EC_BITS: Final = 256
_MIN_RSA_BITS: Final = 2048

# What reading a certificate or a part of one can raise, beside what it is meant to give.
UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.UnsupportedGeneralNameType,
    CryptographyDeprecationWarning,  # under -W error
)

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Host = str | ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What a gRPC server shows, and what its peers check it against; all PEM.

    Attributes:
        certificate_pem: The server's certificate.
        key_pem: Its private key.
        ca_pem: The authority's certificate.
        expires_unix_s: When the certificate ends; load the identity again 30 days before.
    """

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    ca_pem: bytes
    expires_unix_s: float


@dataclass(frozen=True, slots=True)
class Authority:
    """The cluster's certificate authority.

    Attributes:
        certificate: What everybody trusts.
        key: What only the head has.
    """

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)

    def sign(
        self, public_key: CertificatePublicKeyTypes, name: str, hosts: Iterable[Host], now: datetime
    ) -> x509.Certificate:
        """Issue a server certificate for a key, under a name and the hosts it serves at."""
        # Hosts in a fixed order, so that two certificates of one configuration read the same.
        names: list[x509.GeneralName] = [
            x509.DNSName(host) if isinstance(host, str) else x509.IPAddress(host)
            for host in sorted(hosts, key=str)
        ]
        until = min(now + SERVER_LIFETIME, self.certificate.not_valid_after_utc)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            # From the authority's own start on: so it is good for peers whose clock is behind, and
            # when this one's was ahead for a while.
            .not_valid_before(self.certificate.not_valid_before_utc)
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
        )


def load_server_identity(
    state: StateDir, hosts: Iterable[str], now_unix_s: float
) -> ServerIdentity:
    """Return a server certificate that fits, issuing what is missing or about to end.

    Args:
        state: Checked, and locked by this process.
        hosts: Addresses and names under which clients reach the server, beside localhost and
            this machine's name. An unspecified address (0.0.0.0, ::) stands for all of this
            machine's.
        now_unix_s: Wall clock.

    Raises:
        ConfigError: a file is damaged, foreign or expired; names it and what to do.
    """
    now = datetime.fromtimestamp(now_unix_s, UTC)
    authority = load_authority(state, now)
    wanted = server_hosts(hosts)
    stored = _stored_server_certificate(state, authority)
    if stored is None or not _fits(stored[0], stored[1], wanted, now):
        stored = _issue_server_certificate(state, authority, wanted, now)
    certificate, key = stored
    return ServerIdentity(
        certificate_pem=certificate.public_bytes(serialization.Encoding.PEM),
        key_pem=private_pem(key),
        ca_pem=authority.certificate.public_bytes(serialization.Encoding.PEM),
        expires_unix_s=certificate.not_valid_after_utc.timestamp(),
    )


def server_hosts(hosts: Iterable[str]) -> frozenset[Host]:
    """Return the names and addresses that a server certificate has to cover.

    Raises:
        ConfigError: one of them is neither an IP address nor a host name.
    """
    found: set[Host] = {
        "localhost",
        ipaddress.ip_address("127.0.0.1"),
        ipaddress.ip_address("::1"),
    }
    machine = socket.gethostname().lower()
    if _DNS_NAME.fullmatch(machine):
        found.add(machine)
    for text in hosts:
        host = _parse_host(text)
        if not isinstance(host, str) and host.is_unspecified:
            found |= _interface_addresses()
        else:
            found.add(host)
    return frozenset(found)


def spki_pin(certificate: x509.Certificate) -> str:
    """Return the base64url SHA-256 of a certificate's public key (RFC 7469, section 2.4)."""
    spki = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encode_base64url(hashlib.sha256(spki).digest())


def check_authority(certificate: x509.Certificate, origin: str) -> None:
    """Refuse a certificate that is no usable authority, whatever its dates.

    Args:
        certificate: What claims to be one.
        origin: Where it came from, for the message.

    Raises:
        ConfigError: not an authority, or its key is weak or of an unknown kind.
    """
    if not _is_authority(certificate):
        raise ConfigError(f"{origin} is not the certificate of a certificate authority")
    try:
        public = certificate.public_key()
    except UNREADABLE as error:
        raise ConfigError(f"{origin} has a public key that cannot be used") from error
    if isinstance(public, ec.EllipticCurvePublicKey) and public.key_size >= _MIN_EC_BITS:
        return
    if isinstance(public, rsa.RSAPublicKey) and public.key_size >= _MIN_RSA_BITS:
        return
    raise ConfigError(
        f"{origin} has a key that is too weak or of an unsupported kind: it takes an elliptic "
        f"curve of {_MIN_EC_BITS} bits or RSA of {_MIN_RSA_BITS} bits"
    )


# ── The authority ─────────────────────────────────────────────────────────────────────────────


def load_authority(state: StateDir, now: datetime) -> Authority:
    """Return the cluster's authority; the first call makes it.

    Raises:
        ConfigError: a file is missing, damaged, foreign or expired; names it and what to do.
    """
    certificate_path, key_path = state.path / CA_CERTIFICATE, state.path / CA_KEY
    pem = state.find_secret(CA_CERTIFICATE)
    if pem is None:
        return _make_authority(state, now)
    certificate = _parse_certificate(pem, certificate_path, _RESTORE_CA)
    key_pem = state.find_secret(CA_KEY)
    if key_pem is None:
        raise ConfigError(f"{key_path} is missing, and {certificate_path} needs it; {_RESTORE_CA}")
    key = _parse_key(key_pem, key_path, _RESTORE_CA)
    check_authority(certificate, str(certificate_path))
    if certificate.public_key() != key.public_key():
        raise ConfigError(f"{key_path} is not the key of {certificate_path}; {_RESTORE_CA}")
    if now > certificate.not_valid_after_utc:
        raise ConfigError(
            f"{certificate_path} expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; "
            "if this machine's clock is right, " + _NEW_CA
        )
    if now < certificate.not_valid_before_utc - _CLOCK_SLACK:
        raise ConfigError(
            f"{certificate_path} is not valid before "
            f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC, and this machine's clock "
            f"says {now:%Y-%m-%d %H:%M}; set the clock right"
        )
    return Authority(certificate, key)


_NEW_CA: Final = (
    f"remove {CA_CERTIFICATE}, {CA_KEY}, {SERVER_CERTIFICATE} and {SERVER_KEY} to have new ones "
    "made; every machine that joined needs a new join string then"
)
_RESTORE_CA: Final = "restore it from a backup, or " + _NEW_CA


def _make_authority(state: StateDir, now: datetime) -> Authority:
    """First start. A key without a certificate is what an interrupted one leaves."""
    stale = state.find_secret(SERVER_CERTIFICATE)
    if stale is not None:
        raise ConfigError(
            f"{state.path / CA_CERTIFICATE} is missing, and {SERVER_CERTIFICATE} was issued by "
            f"it; {_RESTORE_CA}"
        )
    key_pem = state.load_or_create(CA_KEY, lambda: private_pem(new_key()))
    key = _parse_key(key_pem, state.path / CA_KEY, _RESTORE_CA)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rustray cluster CA")])
    public = key.public_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    state.create_secret(CA_CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM))
    # Another process may have been first: its certificate counts.
    pem = state.read_secret(CA_CERTIFICATE)
    return Authority(_parse_certificate(pem, state.path / CA_CERTIFICATE, _RESTORE_CA), key)


# ── The server ────────────────────────────────────────────────────────────────────────────────

_REISSUE: Final = f"remove {SERVER_CERTIFICATE} and {SERVER_KEY} to have new ones issued"


def _stored_server_certificate(
    state: StateDir, authority: Authority
) -> tuple[x509.Certificate, PrivateKey] | None:
    pem, key_pem = state.find_secret(SERVER_CERTIFICATE), state.find_secret(SERVER_KEY)
    if pem is None or key_pem is None:
        return None
    path = state.path / SERVER_CERTIFICATE
    certificate = _parse_certificate(pem, path, _REISSUE)
    key = _parse_key(key_pem, state.path / SERVER_KEY, _REISSUE)
    if _is_authority(certificate):
        raise ConfigError(f"{path} is the certificate of an authority, not a server's; {_REISSUE}")
    try:
        certificate.verify_directly_issued_by(authority.certificate)
    except (InvalidSignature, *UNREADABLE) as error:
        raise ConfigError(f"{path} was not issued by {CA_CERTIFICATE}; {_REISSUE}") from error
    return certificate, key


def _fits(
    certificate: x509.Certificate, key: PrivateKey, wanted: frozenset[Host], now: datetime
) -> bool:
    if certificate.public_key() != key.public_key():
        return False
    if now < certificate.not_valid_before_utc:
        return False
    left = certificate.not_valid_after_utc - now
    # One that lasts too long was made when the clock was ahead.
    if not REISSUE_BEFORE_EXPIRY <= left <= SERVER_LIFETIME + _BACKDATED:
        return False
    return wanted <= _covered_hosts(certificate)


def _covered_hosts(certificate: x509.Certificate) -> set[Host]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except UNREADABLE:
        return set()
    return {
        *names.get_values_for_type(x509.DNSName),
        # An address of a certificate's name is never a network; the type says it could be.
        *(
            address
            for address in names.get_values_for_type(x509.IPAddress)
            if isinstance(address, ipaddress.IPv4Address | ipaddress.IPv6Address)
        ),
    }


def _issue_server_certificate(
    state: StateDir, authority: Authority, wanted: frozenset[Host], now: datetime
) -> tuple[x509.Certificate, PrivateKey]:
    key = new_key()
    certificate = authority.sign(key.public_key(), "rustray head", wanted, now)
    # Key first: a crash between the two leaves a pair that does not match, which is re-issued.
    state.write_secret(SERVER_KEY, private_pem(key))
    state.write_secret(SERVER_CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM))
    return certificate, key


# ── Parsing and small parts ───────────────────────────────────────────────────────────────────


def _parse_certificate(pem: bytes, path: Path, remedy: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except UNREADABLE as error:
        raise ConfigError(f"{path} is not a PEM certificate (damaged?); {remedy}") from error


def _parse_key(pem: bytes, path: Path, remedy: str) -> PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise ConfigError(
            f"{path} is encrypted, and nobody is there to type a passphrase; "
            "put the unencrypted key there"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is not a PEM private key (damaged?); {remedy}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ConfigError(f"{path} holds a key of a kind that TLS here does not use; {remedy}")
    return key


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except UNREADABLE:
        return False
    return basic.ca


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: PrivateKey) -> bytes:
    """Encode a private key, unencrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _parse_host(text: str) -> Host:
    bare = text.strip().removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        name = bare.lower().removesuffix(".")
        if _DNS_NAME.fullmatch(name) is None:
            raise ConfigError(f"{text[:80]!r} is neither an IP address nor a host name") from None
        return name
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
        # A certificate cannot carry a zone; clients leave it out when they compare.
        return ipaddress.IPv6Address(int(address))
    return address


def _interface_addresses() -> set[Host]:
    found: set[Host] = set()
    for addresses in psutil.net_if_addrs().values():
        for entry in addresses:
            if entry.family in {socket.AF_INET, socket.AF_INET6}:
                found.add(_parse_host(entry.address))
    return found
