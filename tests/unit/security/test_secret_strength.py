"""Which `jwt_secret` is refused."""

from __future__ import annotations

import random
import string

import pytest

from rustray.common.errors import ConfigError
from rustray.security.secret_strength import check_jwt_secret

from .conftest import SECRET


def _random(alphabet: str, length: int, seed: int = 7) -> str:
    return "".join(random.Random(seed).choices(alphabet, k=length))


@pytest.mark.parametrize(
    ("secret", "flaw"),
    [
        ("", "is empty"),
        ("secret", "too short: 6 bytes"),
        ("change-me", "too short"),
        ("your-secret-key", "too short"),
        (SECRET[:31], "too short: 31 bytes"),
        ("change-me-change-me-please-0192837465", "placeholder"),
        ("CHANGE_ME_IN_PRODUCTION_0192837465xyz", "placeholder"),
        ("please-replace-me-with-something-better", "placeholder"),
        ("your-secret-key-your-secret-key-12", "placeholder"),
        ("your-super-secret-jwt-token-with-at-least-32-characters-long", "placeholder"),
        ("a-string-secret-at-least-256-bits-long", "placeholder"),
        ("my-example-jwt-signing-value-for-docs", "placeholder"),
        ("<put a long random string in this place>", "placeholder"),
        ("${JWT_SIGNING_VALUE_FROM_ENVIRONMENT}", "placeholder"),
        ("P@ssword-for-the-cluster-Password-17", "placeholder"),
        ("deadbeef" * 8, "placeholder"),
        ("...................................", "repeats itself"),
        ("a" * 64, "repeats itself"),
        ("abcabcabcabcabcabcabcabcabcabcabcabc", "repeats itself"),
        ("kR7-vQx2" * 4, "repeats itself"),
        ("kR7-vQx2_Zp9mWt4" * 3, "repeats itself"),
        ("zyxwvutsrqponmlkjihgfedcba9876543210", "repeats itself"),
        ("ABCDEFGIJKLMNOPQRSTUVWXYZ[]^_`abcd", "counts up or down"),
        (" " + SECRET, "begins or ends with a space"),
        (SECRET + "\n", "printable"),
        ("\ud800" * 40, "printable"),
        ("\0" * 40, "printable"),
        (_random(string.ascii_letters + string.digits, 4097), "longer than 4096"),
        ("-----BEGIN PRIVATE KEY-----kR7-vQx2_Zp9mWt4LsYc8Nb-----END PRIVATE KEY-----", "key file"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0x8mVqTz", "key file"),
    ],
)
def test_weak_secrets(secret: str, flaw: str) -> None:
    """The message says what is wrong and how to make a good one, and not the secret."""
    with pytest.raises(ConfigError, match=flaw) as caught:
        check_jwt_secret(secret)
    assert "secrets.token_urlsafe" in str(caught.value)
    assert len(secret) < 16 or secret not in str(caught.value)


def test_good_secrets() -> None:
    """Random secrets in every usual form are accepted as they are."""
    for secret in (SECRET, "Ünïcödé-" + SECRET, "f3a9c1d07be24586" + "90acd1e2b7f84635"):
        assert check_jwt_secret(secret) == secret.encode()
    for alphabet in (string.ascii_letters + string.digits + "-_", string.hexdigits[:16]):
        for seed in range(200):
            secret = _random(alphabet, 43, seed)
            assert check_jwt_secret(secret) == secret.encode()
