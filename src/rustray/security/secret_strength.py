"""Refuses a ``jwt_secret`` that an attacker would try first."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Final

import jwt
from jwt.algorithms import HMACAlgorithm

from rustray.common.errors import ConfigError

MIN_SECRET_BYTES: Final = 32
"""RFC 7518, section 3.2: a key of HS256 has at least the size of its digest."""
MAX_SECRET_BYTES: Final = 4096
_MIN_DISTINCT: Final = 7
_MAX_PERIOD: Final = 16

_HOW: Final = (
    'make one with: python3 -c "import secrets; print(secrets.token_urlsafe(48))", '
    "or leave [security] jwt_secret out and the head makes a key of its own"
)

_NOISE: Final = re.compile(r"[^a-z0-9]+")
# At least seven characters each, so that a random secret meets one about never.
_PLACEHOLDERS: Final = (
    "changeme",
    "changethis",
    "changeit",
    "replaceme",
    "replacethis",
    "replacewith",
    "yoursecret",
    "your256bit",
    "yourjwt",
    "yourkey",
    "yoursuper",
    "yourvery",
    "yourown",
    "mysecret",
    "supersecret",
    "verysecret",
    "secretkey",
    "secrettoken",
    "jwtsecret",
    "secretatleast",
    "secrethere",
    "secretgoes",
    "example",
    "placeholder",
    "insertsecret",
    "insertyour",
    "putyour",
    "password",
    "default",
    "donotuse",
    "notasecret",
    "notsecure",
    "insecure",
    "development",
    "testing",
    "qwertyui",
    "abcdefgh",
    "12345678",
    "deadbeef",
    "correcthorse",
)


def check_jwt_secret(secret: str) -> bytes:
    """Return the secret as key bytes.

    Raises:
        ConfigError: too short, too long, or a placeholder; says how to make a good one, and
            never repeats the secret.
    """
    flaw = _flaw(secret)
    if flaw is not None:
        raise ConfigError(f"[security] jwt_secret {flaw}; {_HOW}")
    key = secret.encode("utf-8")
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(key)
    except jwt.InvalidKeyError:
        # A public key as HMAC secret is the classic confusion of algorithms.
        raise ConfigError(f"[security] jwt_secret is a certificate or key file; {_HOW}") from None
    return key


def _flaw(secret: str) -> str | None:
    if not secret.isprintable():
        return "has to be one line of printable text"
    size = len(secret.encode("utf-8"))
    if size == 0:
        return "is empty"
    if secret != secret.strip():
        return "begins or ends with a space"
    if size < MIN_SECRET_BYTES:
        return f"is too short: {size} bytes, and it takes {MIN_SECRET_BYTES}"
    if size > MAX_SECRET_BYTES:
        return f"is longer than {MAX_SECRET_BYTES} bytes"
    if _is_placeholder(secret):
        return "is a placeholder or contains one"
    if _is_repetitive(secret):
        return "repeats itself, or counts up or down"
    return None


def _is_placeholder(secret: str) -> bool:
    if secret[0] in "<{$" and secret[-1] in ">}":
        return True
    bare = _NOISE.sub("", secret.lower())
    return any(word in bare for word in _PLACEHOLDERS)


def _is_repetitive(secret: str) -> bool:
    if len(set(secret)) < _MIN_DISTINCT:
        return True
    if any(secret[period:] == secret[:-period] for period in range(1, _MAX_PERIOD + 1)):
        return True
    steps = [ord(after) - ord(before) for before, after in pairwise(secret)]
    return max(steps.count(1), steps.count(-1)) * 2 > len(steps)
