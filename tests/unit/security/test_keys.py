"""The signing key."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from rustray.common.errors import ConfigError
from rustray.security.encoding import decode_base64url
from rustray.security.keys import key_id, load_signing_key
from rustray.security.state_dir import SIGNING_KEY, StateDir


def _pem(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, password: bytes = b""
) -> bytes:
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def test_key_id_is_the_thumbprint() -> None:
    """The example of RFC 8037, appendix A.3, has the id that the RFC gives."""
    public = ed25519.Ed25519PublicKey.from_public_bytes(
        decode_base64url("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
    )
    assert key_id(public) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"[:16]


def test_key_is_made_once(state: StateDir) -> None:
    """The second start finds the key of the first."""
    first, second = load_signing_key(state), load_signing_key(state)
    assert first.kid == second.kid
    assert first.public == second.public
    assert "private" not in repr(first)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not a private key"),
        (b"\xff" * 100, "not a private key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "not a private key"),
        (_pem(ec.generate_private_key(ec.SECP256R1())), "another kind than Ed25519"),
        (_pem(ed25519.Ed25519PrivateKey.generate(), b"pw"), "is encrypted"),
    ],
)
def test_damaged_key(state: StateDir, content: bytes, match: str) -> None:
    """A damaged, encrypted or foreign key is refused by name and never replaced."""
    state.write_secret(SIGNING_KEY, content)
    with pytest.raises(ConfigError, match=match) as caught:
        load_signing_key(state)
    assert "signing.key" in str(caught.value)
    assert state.read_secret(SIGNING_KEY) == content
