"""Certificates for workers on other machines than the head's."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from rustray.common.errors import ConfigError
from rustray.security.certificates import Authority, load_authority
from rustray.security.enrollment import Enrollment, Registrar, SigningRequest, worker_host
from rustray.security.state_dir import StateDir


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A cluster's authority."""
    state = StateDir(tmp_path / "state")
    state.create()
    return load_authority(state, datetime.fromtimestamp(time.time(), UTC))


def _request(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    algorithm = hashes.SHA256() if isinstance(key, ec.EllipticCurvePrivateKey) else None
    alternative = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = builder.add_extension(alternative, critical=False).sign(key, algorithm)
    return signed.public_bytes(serialization.Encoding.DER)


def test_a_worker_gets_a_certificate_of_the_cluster(authority: Authority) -> None:
    """What the head signs fits the worker's key, and the cluster's authority vouches for it."""
    request = SigningRequest()
    found = request.identity(Registrar(authority, b"{}").enroll("w-1", request.der))
    certificate = x509.load_pem_x509_certificate(found.certificate_pem)
    certificate.verify_directly_issued_by(authority.certificate)
    assert found.expires_unix_s > time.time()


def test_the_head_alone_decides_the_names(authority: Authority) -> None:
    """A request that asks for localhost gets the worker's own name and nothing else."""
    wanted = _request(ec.generate_private_key(ec.SECP256R1()))
    answer = Registrar(authority, None).enroll("w-1", wanted)
    certificate = x509.load_pem_x509_certificate(answer.certificate_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName(worker_host("w-1"))]
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not basic.ca


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: b"", "no PKCS"),
        (lambda: b"garbage", "no PKCS"),
        (lambda: bytes(10_000), "more than"),
        (lambda: _request(ec.generate_private_key(ec.SECP384R1())), "P-256"),
        (lambda: _request(ed25519.Ed25519PrivateKey.generate()), "P-256"),
        (
            lambda: _request(ec.generate_private_key(ec.SECP256R1()))[:-4] + bytes(4),
            "not signed by its own key",
        ),
    ],
)
def test_a_bad_request_is_refused(
    authority: Authority, make: Callable[[], bytes], reason: str
) -> None:
    """Each kind of bad request has its reason."""
    with pytest.raises(ValueError, match=reason):
        Registrar(authority, None).enroll("w-1", make())


def test_a_certificate_for_another_key_is_refused(authority: Authority) -> None:
    """A worker does not show what was signed for somebody else, nor garbage."""
    other = Registrar(authority, None).enroll("w-2", SigningRequest().der)
    for answer in (other, Enrollment(b"garbage", b"", b"")):
        with pytest.raises(ConfigError, match="not for this worker"):
            SigningRequest().identity(answer)
