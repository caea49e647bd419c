"""The exact form of an access token, and the one way in which it is verified.

A token is a JWT of a narrow profile (RFC 8725): the header has exactly three members, the
algorithm is pinned by the key and never taken from the token, every claim is required, of one
type, and known. What is not in the profile is refused, never ignored: an unknown claim could be
a restriction.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from jwt.exceptions import InvalidSubjectError

from rustray.common.errors import AuthenticationError
from rustray.security.encoding import decode_base64url
from rustray.security.roles import SCOPE_CODE, SCOPES, Caller, Role

EDDSA: Final = "EdDSA"
HS256: Final = "HS256"
TOKEN_TYPE: Final = "rr-at+jwt"  # noqa: S105 - the header's "typ"
TOKEN_VERSION: Final = 1

MAX_TOKEN_CHARS: Final = 4096
LEEWAY_S: Final = 30
"""How far two clocks may be apart."""
MAX_RENEWABLE_S: Final = 400 * 86_400
"""No token is renewable for longer than this after it was first minted."""

REFUSED: Final = (
    "not authenticated: the token is missing, malformed, expired or not of this cluster "
    "(see that the clocks of both machines agree); "
    "get a new one with 'rustray token create'"
)
"""The one text that a peer gets, whatever was wrong: reasons would teach an attacker."""

SUBJECT: Final = re.compile(r"(worker|user|svc|head):[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+){2}")
_TOKEN_ID: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_HEADER: Final = frozenset({"alg", "typ", "kid"})
_CLAIMS: Final = frozenset(
    {"iss", "aud", "sub", "iat", "nbf", "exp", "jti", "rol", "scp", "rnu", "ver"}
)
_TIMES: Final = ("iat", "nbf", "exp", "rnu")


def refused(reason: str) -> AuthenticationError:
    """Make the error for a token that is not accepted.

    Args:
        reason: A code for counters and logs, kept as the attribute ``reason``; it never
            travels. See `rejection_reason`.
    """
    error = AuthenticationError(REFUSED)
    vars(error)["reason"] = reason
    return error


def rejection_reason(error: BaseException) -> str:
    """Return why a token was refused, as a code for counters and logs; "" if not known."""
    reason = getattr(error, "reason", "")
    return reason if isinstance(reason, str) else ""


@dataclass(frozen=True, slots=True)
class Issuer:
    """Whose tokens these are, and what verifies (and maybe signs) them.

    Attributes:
        name: The ``iss`` claim, ``rustray:<cluster>``.
        algorithm: `EDDSA` or `HS256`; never both in one cluster.
        verification_keys: By key id.
        signing_kid: Which of them signs.
        signing_key: None where this process only verifies.
    """

    name: str
    algorithm: str
    verification_keys: Mapping[str, Ed25519PublicKey | bytes] = field(repr=False)
    signing_kid: str
    signing_key: Ed25519PrivateKey | bytes | None = field(repr=False)

    def audience(self, kind: str) -> str:
        """Return the ``aud`` claim of tokens for that kind of node ("head", "worker")."""
        return f"{self.name}:{kind}"


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says.

    Attributes:
        issued_unix_s: When it was minted.
        renewable_unix_s: Until when it can be exchanged for a fresh one.
    """

    caller: Caller
    issued_unix_s: int
    not_before_unix_s: int
    expires_unix_s: int
    renewable_unix_s: int


def encode_token(issuer: Issuer, claims: Claims, audience: str) -> str:
    """Sign a token with these claims.

    Args:
        issuer: Has a signing key.
        claims: Already checked by the caller.
        audience: Kind of node that it is for.
    """
    caller = claims.caller
    payload = {
        "iss": issuer.name,
        "aud": issuer.audience(audience),
        "sub": caller.subject,
        "iat": claims.issued_unix_s,
        "nbf": claims.not_before_unix_s,
        "exp": claims.expires_unix_s,
        "jti": caller.token_id,
        "rol": [str(caller.role)],
        "scp": sorted(caller.scopes),
        "rnu": claims.renewable_unix_s,
        "ver": TOKEN_VERSION,
    }
    assert issuer.signing_key is not None
    return jwt.encode(
        payload,
        issuer.signing_key,
        algorithm=issuer.algorithm,
        headers={"typ": TOKEN_TYPE, "kid": issuer.signing_kid},
    )


def check_form(token: str | None) -> str:
    """Refuse what cannot be a token at a glance, before anything is computed from it.

    Raises:
        AuthenticationError: none, longer than 4 KiB, or not three base64url segments.
    """
    if not token:
        raise refused("missing")
    if len(token) > MAX_TOKEN_CHARS:
        raise refused("too_long")  # eight megabytes must cost nothing
    if _TOKEN.fullmatch(token) is None:
        raise refused("malformed")
    return token


def decode_token(issuer: Issuer, token: str, audience: str, max_ttl_s: int) -> Claims:
    """Verify everything about a token except the time, for which see `check_times`.

    Args:
        issuer: Whose tokens are accepted.
        token: As `check_form` returned it.
        audience: Kind of node that this one is.
        max_ttl_s: Longest life from ``iat`` to ``exp`` that is accepted.

    Raises:
        AuthenticationError: any flaw at all; always the same text.
    """
    try:
        return _decode(issuer, token, audience, max_ttl_s)
    except AuthenticationError:
        raise
    except Exception as error:
        # Whatever a parser or a primitive chokes on is the token's fault, not ours.
        raise refused(_REASONS.get(type(error), "malformed")) from error


_REASONS: Final[dict[type[Exception], str]] = {
    jwt.InvalidSignatureError: "signature",
    jwt.InvalidAlgorithmError: "algorithm",
    jwt.InvalidAudienceError: "audience",
    jwt.InvalidIssuerError: "issuer",
    InvalidSubjectError: "subject",
    jwt.MissingRequiredClaimError: "claims",
}


def check_times(claims: Claims, now_unix_s: float) -> None:
    """Refuse a token that is not valid yet or not any more.

    Raises:
        AuthenticationError: reason "expired"; or "clock_skew" if it was minted in the future,
            which only clocks that disagree can bring about.
    """
    if max(claims.issued_unix_s, claims.not_before_unix_s) > now_unix_s + LEEWAY_S:
        raise refused("clock_skew")
    if claims.expires_unix_s + LEEWAY_S <= now_unix_s:
        raise refused("expired")


def _decode(issuer: Issuer, token: str, audience: str, max_ttl_s: int) -> Claims:
    header_text, payload_text, signature_text = token.split(".")
    decode_base64url(signature_text)  # canonical, or one token would have several texts
    key = _select_key(issuer, _parse_object(header_text))
    # Times are left to `check_times`: PyJWT reads the machine's clock and takes "123" for 123.
    jwt.decode(
        token,
        key=key,
        algorithms=[issuer.algorithm],
        issuer=issuer.name,
        audience=issuer.audience(audience),
        options={
            "require": sorted(_CLAIMS),
            "strict_aud": True,
            "verify_exp": False,
            "verify_nbf": False,
            "verify_iat": False,
        },
    )
    return _read_claims(_parse_object(payload_text), max_ttl_s)


def _select_key(issuer: Issuer, header: dict[str, Any]) -> Ed25519PublicKey | bytes:
    if header.keys() != _HEADER:
        raise refused("header")
    if header["alg"] != issuer.algorithm:
        raise refused("algorithm")
    if header["typ"] != TOKEN_TYPE:
        raise refused("type")
    kid = header["kid"]
    key = issuer.verification_keys.get(kid) if isinstance(kid, str) else None
    if key is None:
        raise refused("key")
    return key


def _parse_object(segment: str) -> dict[str, Any]:
    found = json.loads(
        decode_base64url(segment).decode("utf-8"),
        object_pairs_hook=_without_duplicates,
        parse_constant=_no_constant,
    )
    if not isinstance(found, dict):
        raise refused("malformed")
    return found


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise refused("duplicate")
    return members


def _no_constant(text: str) -> NoReturn:
    raise refused("malformed")


def _read_claims(payload: dict[str, Any], max_ttl_s: int) -> Claims:
    if payload.keys() != _CLAIMS:
        raise refused("claims")
    # `type(...) is int`: True is an int to isinstance, and 1.0 equals 1.
    if type(payload["ver"]) is not int or payload["ver"] != TOKEN_VERSION:
        raise refused("version")
    if any(type(payload[name]) is not int for name in _TIMES):
        raise refused("times")
    issued, not_before, expires, renewable = (payload[name] for name in _TIMES)
    if issued < 0 or not_before < issued or expires <= not_before:
        raise refused("times")
    if expires - issued > max_ttl_s:
        raise refused("ttl")
    if not issued <= renewable <= issued + MAX_RENEWABLE_S:
        raise refused("times")
    return Claims(_read_caller(payload, issued, renewable), issued, not_before, expires, renewable)


def _read_caller(payload: dict[str, Any], issued: int, renewable: int) -> Caller:
    subject, token_id = payload["sub"], payload["jti"]
    if not isinstance(subject, str) or SUBJECT.fullmatch(subject) is None:
        raise refused("subject")
    if not isinstance(token_id, str) or _TOKEN_ID.fullmatch(token_id) is None:
        raise refused("token_id")
    roles, scopes = payload["rol"], payload["scp"]
    if not isinstance(roles, list) or len(roles) != 1 or roles[0] not in list(Role):
        raise refused("role")
    if not isinstance(scopes, list) or any(scope not in list(SCOPES) for scope in scopes):
        raise refused("scope")
    if len(set(scopes)) != len(scopes):
        raise refused("scope")
    return Caller(
        subject=subject,
        role=Role(roles[0]),
        scopes=scopes_of(Role(roles[0]), allow_code=SCOPE_CODE in scopes),
        expires_unix_s=payload["exp"],
        token_id=token_id,
        issued_unix_s=issued,
        renewable_unix_s=renewable,
    )


def scopes_of(role: Role, *, allow_code: bool) -> frozenset[str]:
    """Return the scopes of a token: an admin may always send code."""
    return frozenset({SCOPE_CODE}) if allow_code or role is Role.ADMIN else frozenset()


def new_token_id() -> str:
    """Return a fresh ``jti``."""
    return str(uuid.uuid4())
