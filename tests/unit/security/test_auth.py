"""Minting, renewing, caching, the simple mode, and managers that only verify."""

from __future__ import annotations

import math
from typing import Any

import jwt
import pytest

from rustray.common.errors import AuthenticationError, ConfigError
from rustray.security import auth as auth_module
from rustray.security.auth import AuthManager
from rustray.security.encoding import decode_base64url, encode_base64url
from rustray.security.roles import Caller, Role
from rustray.security.state_dir import CLUSTER_ID, StateDir
from rustray.security.tokens import (
    MAX_TOKEN_CHARS,
    REFUSED,
    decode_token,
    rejection_reason,
)

from .conftest import NOW, SECRET, Forge, hs256


def _payload(token: str) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return found


def test_minted_token_says_what_it_was_minted_for(auth: AuthManager) -> None:
    """A verified token gives back subject, role, scopes and end."""
    caller = auth.verify(auth.mint("submit", "user:ada", NOW + 0.9, 600), NOW)
    assert (caller.subject, caller.role) == ("user:ada", Role.SUBMIT)
    assert (caller.scopes, caller.may_send_code) == (frozenset(), False)
    assert caller.expires_unix_s == NOW + 600
    assert caller.token_id


def test_profile_of_a_minted_token(auth: AuthManager) -> None:
    """Header and claims are those of the profile, and nothing else."""
    token = auth.mint(Role.WORKER, "worker:a", NOW, renew_until_unix_s=NOW + 99)
    payload = _payload(token)
    header = jwt.get_unverified_header(token)
    assert set(header) == {"alg", "typ", "kid"}
    assert (header["alg"], header["typ"], len(header["kid"])) == ("EdDSA", "rr-at+jwt", 16)
    assert payload.pop("jti")
    assert payload == {
        "iss": f"rustray:{auth.cluster_id}",
        "aud": f"rustray:{auth.cluster_id}:head",
        "sub": "worker:a",
        "iat": NOW,
        "nbf": NOW,
        "exp": NOW + 3600,
        "rol": ["worker"],
        "scp": [],
        "rnu": NOW + 99,
        "ver": 1,
    }
    assert len(token) < MAX_TOKEN_CHARS / 4


def test_no_two_tokens_are_the_same(auth: AuthManager) -> None:
    """Each token has an id of its own."""
    first, second = (auth.mint(Role.ADMIN, "user:a", NOW) for _ in range(2))
    assert auth.verify(first, NOW).token_id != auth.verify(second, NOW).token_id


@pytest.mark.parametrize(
    ("role", "allow_code", "may"),
    [("admin", False, True), ("submit", True, True), ("submit", False, False)],
)
def test_who_may_send_code(auth: AuthManager, role: str, allow_code: bool, may: bool) -> None:
    """An admin may always send code, others where their token was made so."""
    token = auth.mint(role, "user:a", NOW, allow_code=allow_code)
    assert auth.verify(token, NOW).may_send_code is may


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"role": "root"}, "'root' is not a role; roles are: worker, submit, observe, admin"),
        ({"subject": "ada"}, "is not a subject"),
        ({"subject": "user:a b"}, "is not a subject"),
        ({"subject": "user:" + "a" * 129}, "is not a subject"),
        ({"ttl_s": 0}, "from 1 to 86400 seconds"),
        ({"ttl_s": -1}, "from 1 to"),
        ({"ttl_s": 86_401}, "from 1 to"),
        ({"ttl_s": math.nan}, "from 1 to"),
        ({"ttl_s": math.inf}, "from 1 to"),
        ({"renew_until_unix_s": NOW - 1}, "renewable until"),
        ({"renew_until_unix_s": math.nan}, "renewable until"),
        ({"renew_until_unix_s": NOW + 401 * 86_400}, "to 400 days from now"),
        ({"audience": "client"}, "is not an audience"),
    ],
)
def test_bad_mint(auth: AuthManager, arguments: dict[str, Any], match: str) -> None:
    """What cannot be verified later is not minted."""
    good: dict[str, Any] = {"role": "submit", "subject": "user:ada", "now_unix_s": NOW}
    with pytest.raises(ConfigError, match=match):
        auth.mint(**(good | arguments))


@pytest.mark.parametrize("expiration", [0, -5, math.nan, math.inf, 30 * 86_400 + 1])
def test_bad_token_expiration(state: StateDir, expiration: float) -> None:
    """The configured life of tokens has bounds, and the message names the key."""
    with pytest.raises(ConfigError, match="token_expiration"):
        AuthManager.open(state, jwt_secret=None, token_expiration_s=expiration)


def test_long_expiration_raises_the_longest_life(state: StateDir) -> None:
    """A configured life of a week makes tokens of a week good."""
    auth = AuthManager.open(state, jwt_secret=None, token_expiration_s=7 * 86_400)
    assert auth.default_ttl_s == 7 * 86_400
    auth.verify(auth.mint("observe", "user:a", NOW), NOW + 6 * 86_400)


def test_renewal_keeps_who_and_what(auth: AuthManager) -> None:
    """A renewed token has the same subject, role, scopes, life and last renewal."""
    old = auth.mint("submit", "user:a", NOW, 600, allow_code=True, renew_until_unix_s=NOW + 5000)
    new = auth.renew(old, NOW + 400)
    before, after = auth.verify(old, NOW), auth.verify(new, NOW + 999)
    assert (after.subject, after.role, after.scopes) == (
        before.subject,
        before.role,
        frozenset({"code"}),
    )
    assert after.expires_unix_s == NOW + 1000
    assert after.token_id != before.token_id
    assert _payload(new)["rnu"] == NOW + 5000


def test_renewals_end(auth: AuthManager) -> None:
    """A token is never renewed past its last moment, and after it not at all."""
    token = auth.mint("worker", "worker:a", NOW, 3600, renew_until_unix_s=NOW + 1000)
    assert auth.verify(auth.renew(token, NOW + 900), NOW + 900).expires_unix_s == NOW + 1000
    with pytest.raises(AuthenticationError) as caught:
        auth.renew(token, NOW + 1000)
    assert (str(caught.value), rejection_reason(caught.value)) == (REFUSED, "renewal_over")


def test_only_good_tokens_are_renewed(auth: AuthManager) -> None:
    """An expired or absent token cannot be exchanged."""
    token = auth.mint("worker", "worker:a", NOW, 60)
    for bad in (token, None, "x"):
        with pytest.raises(AuthenticationError):
            auth.renew(bad, NOW + 91)


def test_renewal_for_a_verified_caller(auth: AuthManager) -> None:
    """A caller that was verified gets a fresh token; one that no token stands for does not."""
    caller = auth.verify(auth.mint("worker", "worker:a", NOW, 600), NOW)
    assert auth.verify(auth.renew_for(caller, NOW + 300), NOW + 300).expires_unix_s == NOW + 900
    made_up = Caller("worker:a", Role.WORKER, frozenset(), NOW + 600.0, "id")
    for late, now, reason in ((made_up, NOW, "renewal_over"), (caller, NOW + 630, "expired")):
        with pytest.raises(AuthenticationError) as caught:
            auth.renew_for(late, now)
        assert rejection_reason(caught.value) == reason


def test_default_renewals_last_30_days(auth: AuthManager) -> None:
    """By default a token can be kept alive for 30 days after its first minting."""
    payload = _payload(auth.mint("worker", "worker:a", NOW))
    assert payload["rnu"] - payload["iat"] == 30 * 86_400


def test_audiences_do_not_mix(auth: AuthManager) -> None:
    """A head's token is refused by a worker and the other way round, cached or not."""
    for mine, other in (("head", "worker"), ("worker", "head")):
        token = auth.mint("admin", "user:a", NOW, audience=mine)
        auth.verify(token, NOW, mine)
        with pytest.raises(AuthenticationError):
            auth.verify(token, NOW, other)


def test_clusters_do_not_mix(auth: AuthManager, tmp_path: Any) -> None:
    """A token of one cluster is refused by another."""
    elsewhere = StateDir(tmp_path / "other")
    elsewhere.create()
    other = AuthManager.open(elsewhere, jwt_secret=None, token_expiration_s=3600)
    with pytest.raises(AuthenticationError):
        other.verify(auth.mint("admin", "user:a", NOW), NOW)


def test_tokens_outlive_a_restart(auth: AuthManager, state: StateDir) -> None:
    """A head that starts again with its directory accepts the tokens of before."""
    token = auth.mint("worker", "worker:a", NOW)
    again = AuthManager.open(state, jwt_secret=None, token_expiration_s=3600)
    assert again.cluster_id == auth.cluster_id
    assert again.verify(token, NOW).subject == "worker:a"


def test_cache_spares_signatures(auth: AuthManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token seen before is not decoded again; refused ones are not kept."""
    decoded: list[str] = []

    def counted(issuer: Any, token: str, audience: str, max_ttl_s: int) -> Any:
        decoded.append(token)
        return decode_token(issuer, token, audience, max_ttl_s)

    monkeypatch.setattr(auth_module, "decode_token", counted)
    token = auth.mint("observe", "user:a", NOW)
    assert auth.verify(token, NOW) is auth.verify(token, NOW)
    assert decoded == [token]
    for _ in range(2):
        with pytest.raises(AuthenticationError):
            auth.verify("a.b.c", NOW)
    assert decoded == [token, "a.b.c", "a.b.c"]


def test_cache_is_bounded(auth: AuthManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently used token leaves the cache first, and is still good."""
    monkeypatch.setattr(auth_module, "CACHE_ENTRIES", 2)
    first, second, third = (auth.mint("observe", f"user:{n}", NOW) for n in "abc")
    kept = auth.verify(first, NOW)
    dropped = auth.verify(second, NOW)
    auth.verify(first, NOW)
    auth.verify(third, NOW)
    assert auth.verify(first, NOW) is kept
    again = auth.verify(second, NOW)
    assert again == dropped
    assert again is not dropped


def test_cached_token_minds_a_clock_that_jumps_back(auth: AuthManager) -> None:
    """A clock set back an hour makes the token refused as skewed, not accepted unseen."""
    token = auth.mint("observe", "user:a", NOW)
    auth.verify(token, NOW)
    with pytest.raises(AuthenticationError) as caught:
        auth.verify(token, NOW - 3600)
    assert rejection_reason(caught.value) == "clock_skew"


class TestSimpleMode:
    """`jwt_secret` is set: HS256, and whoever has the secret mints."""

    def test_round_trip(self, state: StateDir) -> None:
        """Tokens carry HS256 and are good for the same secret."""
        auth = AuthManager.open(state, jwt_secret=SECRET, token_expiration_s=60)
        token = auth.mint("submit", "user:a", NOW)
        assert jwt.get_unverified_header(token)["alg"] == auth.algorithm == "HS256"
        assert auth.verify(token, NOW).expires_unix_s == NOW + 60
        auth.verify(auth.renew(token, NOW + 30), NOW + 80)
        assert auth.verification_document() is None

    def test_holder_of_the_secret_mints(self, state: StateDir) -> None:
        """A machine that has only the secret makes tokens that the head accepts."""
        head = AuthManager.open(state, jwt_secret=SECRET, token_expiration_s=60)
        elsewhere = AuthManager.from_secret(SECRET, token_expiration_s=60)
        assert elsewhere.cluster_id.startswith("simple-")
        token = elsewhere.mint("worker", "worker:a", NOW)
        assert head.verify(token, NOW).role is Role.WORKER

    def test_other_secret(self, state: StateDir) -> None:
        """A token of another secret is refused."""
        head = AuthManager.open(state, jwt_secret=SECRET, token_expiration_s=60)
        other = AuthManager.from_secret(SECRET[::-1], token_expiration_s=60)
        with pytest.raises(AuthenticationError):
            head.verify(other.mint("admin", "user:a", NOW), NOW)

    def test_algorithms_never_mix(self, state: StateDir, auth: AuthManager, forge: Forge) -> None:
        """One manager takes one algorithm, whatever the token's header says."""
        simple = AuthManager.open(state, jwt_secret=SECRET, token_expiration_s=60)
        with pytest.raises(AuthenticationError):
            simple.verify(auth.mint("admin", "user:a", NOW), NOW)
        with pytest.raises(AuthenticationError):
            auth.verify(simple.mint("admin", "user:a", NOW), NOW)
        confused = forge.token(forge.header(alg="HS256"), sign=hs256(SECRET.encode()))
        for manager in (auth, simple):
            with pytest.raises(AuthenticationError):
                manager.verify(confused, NOW)

    def test_weak_secret(self, state: StateDir) -> None:
        """A weak secret keeps the head from starting, and nothing is made meanwhile."""
        with pytest.raises(ConfigError, match="jwt_secret"):
            AuthManager.open(state, jwt_secret="change-me", token_expiration_s=60)
        assert not (state.path / "signing.key").exists()


class TestVerifier:
    """A node that knows the head's public key only."""

    def test_verifies_and_cannot_mint(self, auth: AuthManager) -> None:
        """It tells good from bad tokens, and has nothing to sign with."""
        document = auth.verification_document()
        assert document is not None
        verifier = AuthManager.verifier(document)
        token = auth.mint("admin", "user:a", NOW, audience="worker")
        assert verifier.verify(token, NOW, "worker").role is Role.ADMIN
        assert verifier.verification_document() == document
        with pytest.raises(ConfigError, match="cannot mint"):
            verifier.mint("admin", "user:a", NOW)
        with pytest.raises(ConfigError, match="cannot mint"):
            verifier.renew(token, NOW, "worker")

    @pytest.mark.parametrize(
        "document",
        [
            b"",
            b"{}",
            b"[]",
            b"null",
            b"\xff",
            b'{"cluster_id": 7, "x": "AAAA"}',
            b'{"cluster_id": "00000000000000000000000000000000", "x": 7}',
            b'{"cluster_id": "00000000000000000000000000000000", "x": "AAAA"}',
            b"[" * 100_000,
        ],
    )
    def test_damaged_document(self, document: bytes) -> None:
        """A damaged document is a ConfigError."""
        with pytest.raises(ConfigError, match="verification document is damaged"):
            AuthManager.verifier(document)

    def test_document_with_a_bad_cluster_id(self) -> None:
        """The cluster id is checked even where the key is good."""
        x = encode_base64url(b"\x01" * 32)
        with pytest.raises(ConfigError, match="damaged"):
            AuthManager.verifier(b'{"cluster_id": "x", "x": "%s"}' % x.encode())


@pytest.mark.parametrize("content", [b"", b"x", b"g" * 32, b"0" * 31, b"\xff" * 32, b"0" * 33])
def test_damaged_cluster_id(state: StateDir, content: bytes) -> None:
    """A damaged cluster id is never replaced silently."""
    state.write_secret(CLUSTER_ID, content)
    with pytest.raises(ConfigError, match="cluster_id is damaged"):
        AuthManager.open(state, jwt_secret=None, token_expiration_s=60)
    assert state.read_secret(CLUSTER_ID) == content


def test_rejection_reason_of_foreign_errors() -> None:
    """An error that carries no reason has the reason ""."""
    assert rejection_reason(AuthenticationError("x")) == ""
    odd = UnicodeDecodeError("ascii", b"x", 0, 1, "why")
    assert rejection_reason(odd) == "why"
    odd_reason = AuthenticationError("x")
    vars(odd_reason)["reason"] = 7
    assert rejection_reason(odd_reason) == ""


def test_nothing_secret_in_reprs(state: StateDir, auth: AuthManager) -> None:
    """Neither managers nor their parts show keys when printed."""
    simple = AuthManager.from_secret(SECRET, token_expiration_s=60)
    shown = repr(simple) + repr(vars(simple)["_issuer"]) + repr(vars(auth)["_issuer"])
    assert SECRET not in shown
    assert decode_base64url("AAAA") == b"\0\0\0"
