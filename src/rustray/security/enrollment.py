"""How a worker elsewhere gets a certificate and the key that verifies tokens, from the head.

A worker's certificate bears one name that is made of the worker's id, and neither an address nor
a host's name. So whoever has a worker's token can pose as a worker, and never as the head.
Callers expect that name of whatever answers at a worker's address.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from rustray.common.errors import ConfigError
from rustray.security.certificates import (
    UNREADABLE,
    Authority,
    ServerIdentity,
    new_key,
    private_pem,
)
from rustray.security.wall_clock import unix_s

_MAX_REQUEST_BYTES: Final = 8 * 1024
_PEM: Final = serialization.Encoding.PEM


@dataclass(frozen=True, slots=True)
class Enrollment:
    """What the head gives an enrolled worker; nothing of it is secret.

    Attributes:
        certificate_pem: Of the worker's own key.
        ca_pem: The cluster's authority.
        verification_document: For `AuthManager.verifier`; empty in the simple mode.
    """

    certificate_pem: bytes
    ca_pem: bytes
    verification_document: bytes = field(repr=False)


def worker_host(worker_id: str) -> str:
    """Return the name that a worker's certificate bears."""
    digest = hashlib.sha256(worker_id.encode(errors="replace")).hexdigest()
    return f"{digest[:32]}.worker.rustray.internal"


class SigningRequest:
    """A fresh key of a worker, and what the head has to sign for it.

    Attributes:
        der: The request (PKCS #10).
    """

    def __init__(self) -> None:
        self._key = new_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rustray worker")])
        request = x509.CertificateSigningRequestBuilder().subject_name(name)
        self.der = request.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

    def identity(self, enrollment: Enrollment) -> ServerIdentity:
        """Return the key together with its certificate.

        Raises:
            ConfigError: the head has signed something else.
        """
        try:
            certificate = x509.load_pem_x509_certificate(enrollment.certificate_pem)
            is_ours = certificate.public_key() == self._key.public_key()
        except UNREADABLE:
            is_ours = False
        if not is_ours:
            raise ConfigError("the head answered with a certificate that is not for this worker")
        return ServerIdentity(
            certificate_pem=enrollment.certificate_pem,
            key_pem=private_pem(self._key),
            ca_pem=enrollment.ca_pem,
            expires_unix_s=certificate.not_valid_after_utc.timestamp(),
        )


class Registrar:
    """Signs for the head."""

    def __init__(self, authority: Authority, verification_document: bytes | None) -> None:
        self._authority = authority
        self._document = verification_document or b""

    def enroll(self, worker_id: str, signing_request: bytes) -> Enrollment:
        """Issue a certificate for a worker's key.

        What the request says of names is not looked at: the head decides them.

        Raises:
            ValueError: it is no signing request, not signed by its own key, or of another kind
                of key than P-256.
        """
        public_key = _read(signing_request)
        now = datetime.fromtimestamp(unix_s(), UTC)
        host = worker_host(worker_id)
        certificate = self._authority.sign(public_key, "rustray worker", [host], now)
        return Enrollment(
            certificate.public_bytes(_PEM),
            self._authority.certificate.public_bytes(_PEM),
            self._document,
        )


def _read(signing_request: bytes) -> ec.EllipticCurvePublicKey:
    if len(signing_request) > _MAX_REQUEST_BYTES:
        raise ValueError(f"signing_request has more than {_MAX_REQUEST_BYTES} bytes")
    try:
        request = x509.load_der_x509_csr(signing_request)
        public_key = request.public_key()
        is_signed = request.is_signature_valid
    except UNREADABLE as error:
        raise ValueError("signing_request is no PKCS #10 request in DER") from error
    if not is_signed:
        raise ValueError("signing_request is not signed by its own key")
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or public_key.key_size != 256:
        raise ValueError("signing_request has a key that is not on the curve P-256")
    return public_key
