"""`AuthManager`: mints, verifies and renews the tokens of one cluster.

Law: one manager has one algorithm. Either the head's own Ed25519 key signs (the default), or a
secret that the user configured (HS256, the simple mode: whoever verifies could also mint).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from rustray.common.errors import AuthenticationError, ConfigError
from rustray.security.encoding import decode_base64url, encode_base64url
from rustray.security.keys import KEY_ID_CHARS, key_id, load_signing_key
from rustray.security.roles import Caller, Role, parse_role
from rustray.security.secret_strength import check_jwt_secret
from rustray.security.state_dir import CLUSTER_ID, StateDir
from rustray.security.tokens import (
    EDDSA,
    HS256,
    LEEWAY_S,
    MAX_RENEWABLE_S,
    SUBJECT,
    Claims,
    Issuer,
    check_form,
    check_times,
    decode_token,
    encode_token,
    new_token_id,
    refused,
    scopes_of,
)

AUDIENCE_HEAD: Final = "head"
AUDIENCE_WORKER: Final = "worker"
DEFAULT_TTL_S: Final = 3600.0
MAX_TTL_S: Final = 86_400
"""Longest life of one token, unless the configured expiration is longer."""
MAX_TOKEN_EXPIRATION_S: Final = 30 * 86_400
RENEWABLE_S: Final = 30 * 86_400
"""How long after its first minting a token can be renewed, unless told otherwise."""
CACHE_ENTRIES: Final = 10_000

_AUDIENCES: Final = frozenset({AUDIENCE_HEAD, AUDIENCE_WORKER})
_OBJECT: Final = "object:"  # see `rustray.security.object_tokens`
_CLUSTER_ID: Final = re.compile(r"[0-9a-f]{32}")
_SCHEME: Final = "bearer"


class AuthManager:
    """Mints and verifies the tokens of one cluster; for use by one thread.

    Complexity: a token seen before costs a SHA-256 and a dictionary lookup; a new one a
    signature check (≈ 0.2 ms).
    """

    def __init__(self, issuer: Issuer, cluster_id: str, token_expiration_s: float) -> None:
        self._issuer = issuer
        self._cluster_id = cluster_id
        self._ttl_s = _check_expiration(token_expiration_s)
        self._max_ttl_s = max(MAX_TTL_S, self._ttl_s)
        self._verified: OrderedDict[bytes, Claims] = OrderedDict()

    @classmethod
    def open(
        cls, state: StateDir, *, jwt_secret: str | None, token_expiration_s: float
    ) -> AuthManager:
        """Load the head's keys; the first start makes them.

        Args:
            state: Checked, and locked by this process.
            jwt_secret: Turns on the simple mode; None for the head's own Ed25519 key.
            token_expiration_s: Life of a token for which none is given.

        Raises:
            ConfigError: a file is damaged or unsafe, the secret is weak, or the expiration is
                out of range.
        """
        cluster_id = load_cluster_id(state)
        if jwt_secret is not None:
            return cls(_secret_issuer(jwt_secret), cluster_id, token_expiration_s)
        key = load_signing_key(state)
        issuer = Issuer(
            name=f"rustray:{cluster_id}",
            algorithm=EDDSA,
            verification_keys={key.kid: key.public},
            signing_kid=key.kid,
            signing_key=key.private,
        )
        return cls(issuer, cluster_id, token_expiration_s)

    @classmethod
    def from_secret(cls, jwt_secret: str, *, token_expiration_s: float) -> AuthManager:
        """Make a manager of the simple mode where there is no state directory.

        Whoever has the secret can mint: that is how a worker or client of the simple mode
        gets its token.

        Raises:
            ConfigError: the secret is weak, or the expiration is out of range.
        """
        issuer = _secret_issuer(jwt_secret)
        return cls(issuer, issuer.name.partition(":")[2], token_expiration_s)

    @classmethod
    def verifier(cls, document: bytes) -> AuthManager:
        """Make a manager that verifies and cannot mint, from `verification_document`.

        Raises:
            ConfigError: the document is damaged.
        """
        try:
            found = json.loads(document)
            cluster_id, x = found["cluster_id"], found["x"]
            public = Ed25519PublicKey.from_public_bytes(decode_base64url(x))
            if _CLUSTER_ID.fullmatch(cluster_id) is None:
                raise ValueError("cluster id")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ConfigError(
                "the cluster's verification document is damaged; get it again from the head"
            ) from error
        kid = key_id(public)
        issuer = Issuer(
            name=f"rustray:{cluster_id}",
            algorithm=EDDSA,
            verification_keys={kid: public},
            signing_kid=kid,
            signing_key=None,
        )
        return cls(issuer, cluster_id, DEFAULT_TTL_S)

    @property
    def cluster_id(self) -> str:
        """Names the cluster; 32 hex digits, or ``simple-…`` without a state directory."""
        return self._cluster_id

    @property
    def algorithm(self) -> str:
        """``EdDSA`` or ``HS256``."""
        return self._issuer.algorithm

    @property
    def default_ttl_s(self) -> int:
        """Life of a token for which none is given."""
        return self._ttl_s

    def verification_document(self) -> bytes | None:
        """Return what `verifier` needs; public. None in the simple mode: its key is secret."""
        key = self._issuer.verification_keys[self._issuer.signing_kid]
        if isinstance(key, bytes):
            return None
        x = encode_base64url(key.public_bytes_raw())
        return json.dumps({"cluster_id": self._cluster_id, "x": x}).encode("ascii")

    def verify(self, token: str | None, now_unix_s: float, audience: str = AUDIENCE_HEAD) -> Caller:
        """Answer who holds this token.

        Args:
            token: The compact form, as a peer sent it; None if it sent none.
            now_unix_s: Wall clock.
            audience: Kind of node that this one is.

        Raises:
            AuthenticationError: the token is not good, for whatever reason; one fixed text.
                `tokens.rejection_reason` gives the reason for counters and logs.
        """
        return self._claims(token, now_unix_s, audience).caller

    def mint(
        self,
        role: Role | str,
        subject: str,
        now_unix_s: float,
        ttl_s: float | None = None,
        *,
        allow_code: bool = False,
        renew_until_unix_s: float | None = None,
        audience: str = AUDIENCE_HEAD,
    ) -> str:
        """Sign a new token.

        Args:
            role: What its holder is.
            subject: ``worker:…``, ``user:…``, ``svc:…`` or ``head:…``.
            now_unix_s: Wall clock.
            ttl_s: Its life; None for the configured one.
            allow_code: Its holder may send functions as code (an admin always may).
            renew_until_unix_s: Last moment at which it can be renewed; None for 30 days from
                now, ``now_unix_s`` for never.
            audience: Kind of node that it is for.

        Raises:
            ConfigError: the role, subject, audience or one of the times is out of range, or
                this manager cannot mint.
        """
        role = parse_role(role)
        if SUBJECT.fullmatch(subject) is None:
            raise ConfigError(
                f"{subject[:80]!r} is not a subject: expected worker:NAME, user:NAME, svc:NAME or "
                "head:NAME, the name of up to 128 letters, digits and . _ @ -"
            )
        if audience not in _AUDIENCES and not audience.startswith(_OBJECT):
            raise ConfigError(f"{audience[:80]!r} is not an audience; those are: head, worker")
        issued = int(now_unix_s)
        ttl = self._ttl_s if ttl_s is None else self._check_ttl(ttl_s)
        renewable = _check_renewable(issued, renew_until_unix_s)
        return self._sign(
            role, subject, scopes_of(role, allow_code=allow_code), issued, ttl, renewable, audience
        )

    def renew(self, token: str | None, now_unix_s: float, audience: str = AUDIENCE_HEAD) -> str:
        """Exchange a token for a fresh one with the same subject, role, scopes and life.

        Args:
            token: Good now.
            now_unix_s: Wall clock.
            audience: Kind of node that it is for.

        Raises:
            AuthenticationError: it is not good, or its time of renewals is over.
            ConfigError: this manager cannot mint.
        """
        return self.renew_for(
            self._claims(token, now_unix_s, audience).caller, now_unix_s, audience
        )

    def renew_for(
        self,
        caller: Caller,
        now_unix_s: float,
        audience: str = AUDIENCE_HEAD,
        *,
        earliest_unix_s: float | None = None,
    ) -> str:
        """Mint a fresh token for a caller that `verify` returned.

        Args:
            caller: Whose token it was.
            now_unix_s: When the fresh one begins.
            audience: Kind of node that it is for.
            earliest_unix_s: When it may be now at the earliest, where that is in doubt.

        Raises:
            AuthenticationError: its token has expired since, or its time of renewals is over.
            ConfigError: this manager cannot mint.
        """
        earliest = now_unix_s if earliest_unix_s is None else earliest_unix_s
        if caller.expires_unix_s + LEEWAY_S <= earliest:
            raise refused("expired")
        issued = int(now_unix_s)
        life = int(caller.expires_unix_s - caller.issued_unix_s)
        ttl = min(life, int(caller.renewable_unix_s) - issued)
        if ttl <= 0:
            raise refused("renewal_over")
        return self._sign(
            caller.role,
            caller.subject,
            caller.scopes,
            issued,
            ttl,
            int(caller.renewable_unix_s),
            audience,
        )

    def _claims(self, token: str | None, now_unix_s: float, audience: str) -> Claims:
        token = check_form(token)
        digest = hashlib.sha256(f"{audience} {token}".encode("ascii")).digest()
        claims = self._verified.get(digest)
        if claims is None:
            claims = decode_token(self._issuer, token, audience, self._max_ttl_s)
            check_times(claims, now_unix_s)
            self._verified[digest] = claims
            if len(self._verified) > CACHE_ENTRIES:
                self._verified.popitem(last=False)
            return claims
        try:
            check_times(claims, now_unix_s)
        except AuthenticationError:
            del self._verified[digest]
            raise
        self._verified.move_to_end(digest)
        return claims

    def _sign(
        self,
        role: Role,
        subject: str,
        scopes: frozenset[str],
        issued: int,
        ttl: int,
        renewable: int,
        audience: str,
    ) -> str:
        if self._issuer.signing_key is None:
            raise ConfigError("this node verifies tokens and cannot mint any; ask the head")
        expires = issued + ttl
        caller = Caller(
            subject=subject,
            role=role,
            scopes=scopes,
            expires_unix_s=expires,
            token_id=new_token_id(),
            issued_unix_s=issued,
            renewable_unix_s=renewable,
        )
        return encode_token(
            self._issuer, Claims(caller, issued, issued, expires, renewable), audience
        )

    def _check_ttl(self, ttl_s: float) -> int:
        if not math.isfinite(ttl_s) or not 1 <= ttl_s <= self._max_ttl_s:
            raise ConfigError(
                f"a token's life has to be from 1 to {self._max_ttl_s} seconds, not {ttl_s}"
            )
        return int(ttl_s)


def token_from_authorization(values: Sequence[str | bytes]) -> str:
    """Take the token from a call's ``authorization`` metadata.

    Args:
        values: All entries of that name; there has to be exactly one.

    Raises:
        AuthenticationError: none, several, or not ``Bearer <token>``.
    """
    if not values:
        raise refused("missing")
    if len(values) != 1:
        raise refused("duplicate")
    value = values[0]
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    scheme, space, token = value.partition(" ")
    if scheme.lower() != _SCHEME:
        raise refused("scheme")
    if not space or not token:
        raise refused("missing")
    return token


def load_cluster_id(state: StateDir) -> str:
    """Read the cluster's id; the first start makes it.

    Raises:
        ConfigError: the file is damaged or unsafe.
    """
    found = state.load_or_create(CLUSTER_ID, lambda: f"{uuid.uuid4().hex}\n".encode("ascii"))
    text = found.decode("ascii", "replace").removesuffix("\n")
    if _CLUSTER_ID.fullmatch(text) is None:
        raise ConfigError(
            f"{state.path / CLUSTER_ID} is damaged: expected 32 hexadecimal digits; restore it "
            "from a backup, or remove it, which makes all tokens invalid"
        )
    return text


def _secret_issuer(jwt_secret: str) -> Issuer:
    secret = check_jwt_secret(jwt_secret)
    # From the secret alone, so that every holder of it mints for the same issuer. It tells an
    # attacker nothing that a signature of the secret does not.
    print_ = hashlib.sha256(b"rustray simple mode\0" + secret).digest()
    fingerprint = encode_base64url(print_)[:KEY_ID_CHARS]
    return Issuer(
        name=f"rustray:simple-{fingerprint}",
        algorithm=HS256,
        verification_keys={fingerprint: secret},
        signing_kid=fingerprint,
        signing_key=secret,
    )


def _check_expiration(token_expiration_s: float) -> int:
    if not math.isfinite(token_expiration_s) or not (
        1 <= token_expiration_s <= MAX_TOKEN_EXPIRATION_S
    ):
        raise ConfigError(
            f"[security] token_expiration has to be from 1 to {MAX_TOKEN_EXPIRATION_S} seconds, "
            f"not {token_expiration_s}"
        )
    return int(token_expiration_s)


def _check_renewable(issued: int, renew_until_unix_s: float | None) -> int:
    if renew_until_unix_s is None:
        return issued + RENEWABLE_S
    if not math.isfinite(renew_until_unix_s) or not (
        issued <= renew_until_unix_s <= issued + MAX_RENEWABLE_S
    ):
        raise ConfigError(
            "a token has to be renewable until a moment from now to "
            f"{MAX_RENEWABLE_S // 86_400} days from now"
        )
    return int(renew_until_unix_s)
