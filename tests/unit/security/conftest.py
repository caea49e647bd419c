"""A cluster's secrets in a directory of their own, and a forge for tokens that nobody mints."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rustray.security.auth import AuthManager
from rustray.security.certificates import load_server_identity
from rustray.security.encoding import encode_base64url
from rustray.security.keys import SigningKey, load_signing_key
from rustray.security.state_dir import StateDir

NOW = 1_800_000_000
SECRET = "kR7-vQx2_Zp9mWt4LsYc8NbHd3JfUgEa"  # 32 characters, random


@dataclass
class Forge:
    """Makes tokens out of any header and any claims, signed by the cluster's true key."""

    key: SigningKey
    cluster_id: str

    def header(self, **changes: Any) -> dict[str, Any]:
        """Return a good header with some members replaced, or dropped where `DROP`."""
        return _changed({"alg": "EdDSA", "typ": "rr-at+jwt", "kid": self.key.kid}, changes)

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Return good claims with some replaced, or dropped where `DROP`."""
        good = {
            "iss": f"rustray:{self.cluster_id}",
            "aud": f"rustray:{self.cluster_id}:head",
            "sub": "user:ada",
            "iat": NOW,
            "nbf": NOW,
            "exp": NOW + 3600,
            "jti": "3b7b6c1e-7a51-4b2f-9d3e-0f6a6f6f1c11",
            "rol": ["submit"],
            "scp": [],
            "rnu": NOW + 86_400,
            "ver": 1,
        }
        return _changed(good, changes)

    def token(self, header: Any = None, claims: Any = None, *, sign: Any = None) -> str:
        """Put a token together; header and claims may be dicts or raw JSON text."""
        head = _segment(self.header() if header is None else header)
        body = _segment(self.claims() if claims is None else claims)
        signer = self.key.private.sign if sign is None else sign
        return f"{head}.{body}.{encode_base64url(signer(f'{head}.{body}'.encode()))}"


class _Drop:
    """Stands for a member that is left out; the same words in each process that runs tests."""

    def __repr__(self) -> str:
        return "left out"


DROP: object = _Drop()


def _changed(good: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in (good | changes).items() if value is not DROP}


def _segment(content: Any) -> str:
    text = content if isinstance(content, str) else json.dumps(content)
    return encode_base64url(text.encode("utf-8", "surrogatepass"))


def hs256(key: bytes) -> Any:
    """Return a signer for HS256 with that key."""
    return lambda data: hmac.new(key, data, hashlib.sha256).digest()


def other_key() -> Ed25519PrivateKey:
    """Return a key that is not the cluster's."""
    return Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    """Return a fresh, checked state directory."""
    made = StateDir(tmp_path / "state")
    made.create()
    return made


@pytest.fixture
def auth(state: StateDir) -> AuthManager:
    """Return the manager of a fresh cluster, with its own Ed25519 key."""
    return AuthManager.open(state, jwt_secret=None, token_expiration_s=3600.0)


@pytest.fixture
def forge(state: StateDir, auth: AuthManager) -> Forge:
    """Return a forge for the cluster of `auth`."""
    return Forge(load_signing_key(state), auth.cluster_id)


@pytest.fixture(scope="session")
def ca_der(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the certificate of some cluster's authority."""
    made = StateDir(tmp_path_factory.mktemp("authority") / "state")
    made.create()
    identity = load_server_identity(made, ["127.0.0.1"], NOW)
    certificate = x509.load_pem_x509_certificate(identity.ca_pem)
    return certificate.public_bytes(serialization.Encoding.DER)
