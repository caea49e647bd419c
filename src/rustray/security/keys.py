"""The Ed25519 key with which a head signs tokens; it never leaves the state directory."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from rustray.common.errors import ConfigError
from rustray.security.encoding import encode_base64url
from rustray.security.state_dir import SIGNING_KEY, StateDir

KEY_ID_CHARS: Final = 16


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key and the name under which verifiers know it.

    Attributes:
        private: Never shown, never sent.
        public: What verifies its signatures.
        kid: First 16 characters of the RFC 7638 thumbprint.
    """

    private: Ed25519PrivateKey = field(repr=False)
    public: Ed25519PublicKey = field(repr=False)
    kid: str


def key_id(public: Ed25519PublicKey) -> str:
    """Name a public key.

    Source: RFC 7638 (thumbprint), RFC 8037, appendix A.3 (members for Ed25519).
    """
    x = encode_base64url(public.public_bytes_raw())
    members = json.dumps({"crv": "Ed25519", "kty": "OKP", "x": x}, separators=(",", ":"))
    return encode_base64url(hashlib.sha256(members.encode("ascii")).digest())[:KEY_ID_CHARS]


def load_signing_key(state: StateDir) -> SigningKey:
    """Read the signing key; the first start makes it.

    Raises:
        ConfigError: the file is not a plain Ed25519 private key, or cannot be read or written.
    """
    pem = state.load_or_create(SIGNING_KEY, _new_key_pem)
    path = state.path / SIGNING_KEY
    try:
        private = serialization.load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise ConfigError(
            f"{path} is encrypted, and nobody is there to type a passphrase; "
            "put the unencrypted key there"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{path} is not a private key (damaged?); restore it from a backup, or remove it to "
            "have a new one made, which makes all tokens invalid"
        ) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError(f"{path} holds a key of another kind than Ed25519; remove it")
    public = private.public_key()
    return SigningKey(private=private, public=public, kid=key_id(public))


def _new_key_pem() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
