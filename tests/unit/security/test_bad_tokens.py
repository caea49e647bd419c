"""Group B of the bad-input corpus: every bad token is refused, always with the same words."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rustray.common.errors import AuthenticationError, AuthorizationError
from rustray.security.auth import AuthManager, token_from_authorization
from rustray.security.encoding import decode_base64url, encode_base64url
from rustray.security.join import JoinString
from rustray.security.roles import Caller, Role, authorize
from rustray.security.tokens import REFUSED, rejection_reason

from .conftest import DROP, NOW, Forge, hs256, other_key

_L = 2**252 + 27742317777372353535851937790883648493
"""Order of the Ed25519 group: S and S + _L are the same number to a careless verifier."""


def _refusal(auth: AuthManager, token: str | None, now: float = NOW) -> str:
    with pytest.raises(AuthenticationError) as caught:
        auth.verify(token, now)
    assert type(caught.value) is AuthenticationError
    assert str(caught.value) == REFUSED
    return rejection_reason(caught.value)


def test_the_forge_makes_good_tokens(auth: AuthManager, forge: Forge) -> None:
    """The token that all cases below spoil in one place is good."""
    caller = auth.verify(forge.token(), NOW)
    assert caller == Caller(
        subject="user:ada",
        role=Role.SUBMIT,
        scopes=frozenset(),
        expires_unix_s=NOW + 3600,
        token_id=forge.claims()["jti"],
        issued_unix_s=NOW,
        renewable_unix_s=NOW + 86_400,
    )


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        pytest.param([], "missing", id="B1-none"),
        pytest.param([""], "scheme", id="B2-empty"),
        pytest.param(["Bearer"], "missing", id="B3-bearer-only"),
        pytest.param(["Bearer "], "missing", id="B3-bearer-space"),
        pytest.param([b"Basic dXNlcjpwdw=="], "scheme", id="B4-basic"),
        pytest.param(["Bearer a.b.c", "Bearer a.b.c"], "duplicate", id="B5-two"),
    ],
)
def test_bad_authorization_metadata(values: list[str | bytes], reason: str) -> None:
    """B1-B5: there has to be exactly one authorization entry, with a bearer token."""
    with pytest.raises(AuthenticationError, match="not authenticated") as caught:
        token_from_authorization(values)
    assert rejection_reason(caught.value) == reason


@pytest.mark.parametrize("value", ["Bearer a.b.c", "bearer a.b.c", b"BEARER a.b.c"])
def test_good_authorization_metadata(value: str | bytes) -> None:
    """The scheme's case does not matter, and text and bytes are the same."""
    assert token_from_authorization([value]) == "a.b.c"


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda t: "", id="B2-empty"),
        pytest.param(lambda t: t.split(".")[0], id="B6-1-segment"),
        pytest.param(lambda t: t.rpartition(".")[0], id="B6-2-segments"),
        pytest.param(lambda t: t + ".AAAA", id="B6-4-segments"),
        pytest.param(lambda t: t + ".AAAA.AAAA", id="B6-B32-5-segments"),
        pytest.param(lambda t: "é" + t, id="B7-non-ascii"),
        pytest.param(lambda t: t + "\ud800", id="B7-surrogate"),
        pytest.param(lambda t: t + "\0", id="B7-nul"),
        pytest.param(lambda t: t + "\n", id="B7-newline"),
        pytest.param(lambda t: " " + t, id="B7-leading-space"),
        pytest.param(lambda t: t + "==", id="B8-padding"),
        pytest.param(lambda t: t.replace(".", "=.", 1), id="B8-inner-padding"),
        pytest.param(lambda t: t.rpartition(".")[0] + ".", id="B18-stripped"),
        pytest.param(lambda t: t[:-1], id="B18-short"),
        pytest.param(lambda t: t[:-4], id="B18-shorter"),
        pytest.param(lambda t: _twin_of_last_character(t), id="B18-spare-bits"),
        pytest.param(lambda t: _with_signature(t, _flip_bit), id="B18-bit-flip"),
        pytest.param(lambda t: _with_signature(t, _add_order), id="B18-non-canonical-S"),
        pytest.param(lambda t: _with_signature(t, lambda s: b"\0" * 64), id="B18-zeros"),
    ],
)
def test_bad_token_text(auth: AuthManager, forge: Forge, spoil: Callable[[str], str]) -> None:
    """B2, B6-B8, B18, B32: only the one canonical text of a signed token is accepted."""
    _refusal(auth, spoil(forge.token()))


def test_no_token(auth: AuthManager) -> None:
    """B1: a call without a token is refused."""
    assert _refusal(auth, None) == "missing"
    assert _refusal(auth, "") == "missing"


@pytest.mark.parametrize(
    "changes",
    [
        *[pytest.param({"alg": a}, id=f"B9-{a}") for a in ("none", "None", "NONE", "")],
        *[
            pytest.param({"alg": a}, id=f"B11-{a}")
            for a in (["EdDSA"], {"EdDSA": 1}, 1, None, "eddsa", "Ed25519", "RS256", DROP)
        ],
        *[
            pytest.param({"typ": t}, id=f"B13-{t}")
            for t in (DROP, "JWT", "at+jwt", "RR-AT+JWT", None, ["rr-at+jwt"])
        ],
        *[
            pytest.param({"kid": k}, id=f"B14-{str(k)[:12]}")
            for k in (
                "unknown",
                "../../key",
                "' OR 1=1",
                "https://evil.example/key",
                "k" * 10_000,
                1,
                None,
                [],
                {},
                "",
                DROP,
            )
        ],
        *[
            pytest.param({name: value}, id=f"B15-{name}")
            for name, value in {
                "jku": "https://evil.example/jwks",
                "x5u": "https://evil.example/cert",
                "jwk": {"kty": "OKP"},
                "x5c": ["MIIB"],
                "crit": ["b64"],
                "b64": False,
                "zip": "DEF",
                "cty": "JWT",
                "unknown": 1,
            }.items()
        ],
    ],
)
def test_bad_header(auth: AuthManager, forge: Forge, changes: dict[str, Any]) -> None:
    """B9, B11, B13-B15: a header with any other member or value is refused."""
    _refusal(auth, forge.token(forge.header(**changes)))


@pytest.mark.parametrize("form", ["pem", "der", "raw", "jwk"])
def test_public_key_as_hmac_secret(auth: AuthManager, forge: Forge, form: str) -> None:
    """B10: a token signed by HS256 with the public key, in whatever form, is refused."""
    public = forge.key.public
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    secret = {
        "pem": public.public_bytes(serialization.Encoding.PEM, spki),
        "der": public.public_bytes(serialization.Encoding.DER, spki),
        "raw": public.public_bytes_raw(),
        "jwk": json.dumps(
            {"crv": "Ed25519", "kty": "OKP", "x": encode_base64url(public.public_bytes_raw())}
        ).encode(),
    }[form]
    for algorithm in ("HS256", "EdDSA"):
        _refusal(auth, forge.token(forge.header(alg=algorithm), sign=hs256(secret)))


@pytest.mark.parametrize(
    "header",
    [
        pytest.param('{"alg":"none","alg":"EdDSA","typ":"rr-at+jwt","kid":"KID"}', id="B12-alg"),
        pytest.param('{"alg":"EdDSA","typ":"rr-at+jwt","kid":"x","kid":"KID"}', id="B12-kid"),
        pytest.param("[" * 1_500 + "]" * 1_500, id="B16-deep"),
        pytest.param('{"kid":' * 200 + "1" + "}" * 200, id="B16-deep-objects"),
        pytest.param("[" * 5_000, id="B16-deep-5k"),
        pytest.param("[" * 100_000, id="B16-deep-100k"),
        pytest.param('{"alg":' + "9" * 5_000 + "}", id="B16-5000-digits"),
        pytest.param('{"alg":' + "9" * 2_500 + "}", id="B16-2500-digits"),
        pytest.param("[]", id="array"),
        pytest.param('"EdDSA"', id="string"),
        pytest.param("", id="empty"),
        pytest.param("{", id="broken"),
        pytest.param("null", id="null"),
        pytest.param('{"alg":"EdDSA","typ":"rr-at+jwt","kid":NaN}', id="nan"),
        pytest.param("\ud800", id="not-utf-8"),
    ],
)
def test_raw_header(auth: AuthManager, forge: Forge, header: str) -> None:
    """B12, B16: doubled members, deep nests, huge numbers and other JSON are refused."""
    _refusal(auth, forge.token(header.replace("KID", forge.key.kid)))


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param("[]", id="B17-array"),
        pytest.param('"claims"', id="B17-string"),
        pytest.param("[" * 1_200 + "]" * 1_200, id="B17-deep"),
        pytest.param("NaN", id="B17-nan"),
        pytest.param("{", id="B17-broken"),
        pytest.param("\ud800", id="B17-not-utf-8"),
    ],
)
def test_raw_payload(auth: AuthManager, forge: Forge, payload: str) -> None:
    """B17: a payload that is no JSON object is refused, even if well signed."""
    _refusal(auth, forge.token(claims=payload))


def test_payload_with_nan_or_doubled_claims(auth: AuthManager, forge: Forge) -> None:
    """B17: NaN as a claim, and a claim given twice, are refused."""
    text = json.dumps(forge.claims())
    assert _refusal(auth, forge.token(claims=text.replace(str(NOW + 3600), "NaN"))) == "malformed"
    assert _refusal(auth, forge.token(claims=text[:-1] + ',"sub":"user:eve"}')) == "duplicate"


def test_other_key(auth: AuthManager, forge: Forge) -> None:
    """B18, B28: a token under a known key id, signed by another key, is refused."""
    assert _refusal(auth, forge.token(sign=other_key().sign)) == "signature"


_BAD_TIMES: list[Any] = [None, True, "123", str(NOW), float(NOW), [NOW], 10**30, -1, DROP]


@pytest.mark.parametrize(
    "changes",
    [
        *[pytest.param({"exp": t}, id=f"B19-exp-{t}") for t in (*_BAD_TIMES, NOW - 3600, NOW - 30)],
        pytest.param({"exp": 1e400}, id="B19-exp-inf"),
        *[pytest.param({"nbf": t}, id=f"B20-nbf-{t}") for t in (*_BAD_TIMES, NOW + 31)],
        *[pytest.param({"iat": t}, id=f"B20-iat-{t}") for t in (*_BAD_TIMES, NOW + 31)],
        pytest.param({"iat": NOW + 31, "nbf": NOW + 31}, id="B20-both-future"),
        pytest.param({"exp": NOW}, id="B19-exp-equals-nbf"),
        pytest.param({"exp": NOW + 86_401}, id="B21-life-too-long"),
        *[pytest.param({"rnu": t}, id=f"rnu-{t}") for t in (*_BAD_TIMES, NOW - 1)],
        pytest.param({"ver": 2}, id="ver-2"),
        pytest.param({"ver": True}, id="ver-true"),
        pytest.param({"ver": 1.0}, id="ver-float"),
        pytest.param({"ver": DROP}, id="ver-missing"),
    ],
)
def test_bad_times(auth: AuthManager, forge: Forge, changes: dict[str, Any]) -> None:
    """B19-B21: times are JSON integers, in order, near now, and not too far apart."""
    _refusal(auth, forge.token(claims=forge.claims(**changes)))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"aud": DROP}, id="B22-missing"),
        pytest.param({"aud": ["AUD"]}, id="B22-list"),
        pytest.param({"aud": "AU"}, id="B22-prefix"),
        pytest.param({"aud": "AUDx"}, id="B22-suffix"),
        pytest.param({"aud": f"rustray:{'0' * 32}:head"}, id="B22-other-cluster"),
        pytest.param({"aud": "ISS:worker"}, id="B22-worker-audience"),
        pytest.param({"aud": None}, id="B22-null"),
        pytest.param({"aud": 1}, id="B22-int"),
        pytest.param({"iss": "rustray:other"}, id="B23-wrong"),
        pytest.param({"iss": ["ISS"]}, id="B23-list"),
        pytest.param({"iss": "ISSx"}, id="B23-suffix"),
        pytest.param({"iss": "rustray:"}, id="B23-prefix"),
        pytest.param({"iss": DROP}, id="B23-missing"),
        *[
            pytest.param({"sub": s}, id=f"B24-{s!r:.14}")
            for s in (
                1,
                None,
                "",
                "ada",
                "robot:ada",
                "worker:*",
                "worker:",
                "user:a b",
                "user:" + "a" * 129,
                "user:ada\n",
                ["user:ada"],
                DROP,
            )
        ],
        *[
            pytest.param({"rol": r}, id=f"B25-{r!r:.20}")
            for r in (
                "submit",
                [],
                ["root"],
                ["submit", "admin"],
                ["submit", "submit"],
                [1],
                [["admin"]],
                [{}],
                None,
                {"submit": 1},
                DROP,
            )
        ],
        *[
            pytest.param({"scp": s}, id=f"scp-{s!r:.16}")
            for s in ("code", ["root"], ["code", "code"], [1], [[]], None, DROP)
        ],
        *[
            pytest.param({"jti": j}, id=f"jti-{j!r:.10}")
            for j in ("", 1, None, "a" * 65, "a b", DROP)
        ],
        pytest.param({"tve": 3}, id="B26-unknown-claim"),
        pytest.param({"cnf": {"x5t#S256": "abc"}}, id="B29-cnf"),
    ],
)
def test_bad_names(auth: AuthManager, forge: Forge, changes: dict[str, Any]) -> None:
    """B22-B26, B29: audience, issuer, subject, role, scope and id are exact; no other claims."""
    good = forge.claims()

    def fill(value: Any) -> Any:
        if isinstance(value, list):
            return [fill(item) for item in value]
        if isinstance(value, str) and ("AU" in value or "ISS" in value):
            whole = value.replace("AUD", good["aud"]).replace("ISS", good["iss"])
            return good["aud"][:-1] if whole == "AU" else whole
        return value

    spoiled = {name: fill(value) for name, value in changes.items()}
    _refusal(auth, forge.token(claims=forge.claims(**spoiled)))


def test_huge_token_is_refused_by_its_length(auth: AuthManager) -> None:
    """B30: eight megabytes are refused before anything reads them."""
    assert _refusal(auth, "A" * 8_000_000) == "too_long"


def test_length_limit_is_exact(auth: AuthManager) -> None:
    """B30: 4,096 characters are looked at, one more are not."""
    assert _refusal(auth, "A" * 4096) == "malformed"
    assert _refusal(auth, "A" * 4097) == "too_long"


def test_join_string_is_no_access_token(auth: AuthManager, ca_der: bytes) -> None:
    """B31: a join string as a whole is refused where a token is expected."""
    token = auth.mint(Role.WORKER, "worker:a", NOW)
    joined = JoinString("127.0.0.1:8000", ca_der, token).encode()
    _refusal(auth, joined)


def test_verified_token_expires(auth: AuthManager, forge: Forge) -> None:
    """B33: a token that was good is refused from 30 s after its end on, cached or not."""
    token = forge.token()
    assert auth.verify(token, NOW).expires_unix_s == NOW + 3600
    auth.verify(token, NOW + 3629)
    assert _refusal(auth, token, NOW + 3630) == "expired"
    assert _refusal(auth, token, NOW + 3630) == "expired"


def test_worker_token_on_user_method(auth: AuthManager, forge: Forge) -> None:
    """B34: a worker's good token does not submit."""
    caller = auth.verify(forge.token(claims=forge.claims(sub="worker:a", rol=["worker"])), NOW)
    with pytest.raises(AuthorizationError, match="worker may not call SubmitTask"):
        authorize(caller, "/rustray.v1.HeadService/SubmitTask")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iat": NOW + 3600, "nbf": NOW + 3600, "exp": NOW + 7200}, "clock_skew"),
        ({"iat": NOW - 7200, "nbf": NOW - 7200, "exp": NOW - 3600}, "expired"),
        ({"aud": "other"}, "audience"),
        ({"iss": "other"}, "issuer"),
        ({"sub": 7}, "subject"),
        ({"exp": DROP}, "claims"),
        ({"extra": 1}, "claims"),
        ({"ver": 9}, "version"),
        ({"exp": "1"}, "times"),
        ({"exp": NOW + 10**7}, "ttl"),
        ({"rol": ["root"]}, "role"),
        ({"scp": ["root"]}, "scope"),
        ({"jti": ""}, "token_id"),
    ],
)
def test_reasons(auth: AuthManager, forge: Forge, changes: dict[str, Any], reason: str) -> None:
    """The head's own counters learn why, and see a skewed clock for what it is."""
    assert _refusal(auth, forge.token(claims=forge.claims(**changes))) == reason


def test_small_clock_difference_is_fine(auth: AuthManager, forge: Forge) -> None:
    """A token minted by a clock that is 30 s ahead is accepted."""
    claims = forge.claims(iat=NOW + 30, nbf=NOW + 30)
    assert auth.verify(forge.token(claims=claims), NOW).subject == "user:ada"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
_FUZZ = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _is_total(auth: AuthManager, token: str) -> None:
    refusal: AuthenticationError | None = None
    try:
        auth.verify(token, NOW)
    except AuthenticationError as error:
        refusal = error
    assert refusal is None or (str(refusal) == REFUSED and rejection_reason(refusal))


@_FUZZ
@given(st.text(max_size=200) | st.from_regex(r"[A-Za-z0-9_-]{0,60}(\.[A-Za-z0-9_-]{0,60}){2}"))
def test_any_text(auth: AuthManager, text: str) -> None:
    """No text brings anything but an AuthenticationError."""
    _is_total(auth, text)


@_FUZZ
@given(name=st.sampled_from(["alg", "typ", "kid", "crit", "x"]), value=_JSON)
def test_any_header_member(auth: AuthManager, forge: Forge, name: str, value: Any) -> None:
    """No header member brings anything but an AuthenticationError."""
    _is_total(auth, forge.token(forge.header(**{name: value})))


@_FUZZ
@given(
    name=st.sampled_from(
        ["iss", "aud", "sub", "iat", "nbf", "exp", "jti", "rol", "scp", "rnu", "ver", "x"]
    ),
    value=_JSON,
)
def test_any_claim(auth: AuthManager, forge: Forge, name: str, value: Any) -> None:
    """No claim, even well signed, brings anything but an AuthenticationError."""
    _is_total(auth, forge.token(claims=forge.claims(**{name: value})))


@_FUZZ
@given(place=st.integers(0, 10_000), character=st.characters())
def test_any_changed_character(auth: AuthManager, forge: Forge, place: int, character: str) -> None:
    """A good token with one other character is not a good token."""
    token = forge.token()
    place %= len(token)
    changed = token[:place] + character + token[place + 1 :]
    if changed != token:
        _refusal(auth, changed)


def _twin_of_last_character(token: str) -> str:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + alphabet[alphabet.index(token[-1]) ^ 1]


def _with_signature(token: str, change: Callable[[bytes], bytes]) -> str:
    signed, _, signature = token.rpartition(".")
    return f"{signed}.{encode_base64url(change(decode_base64url(signature)))}"


def _flip_bit(signature: bytes) -> bytes:
    return bytes([signature[0] ^ 1]) + signature[1:]


def _add_order(signature: bytes) -> bytes:
    number = int.from_bytes(signature[32:], "little") + _L
    return signature[:32] + number.to_bytes(32, "little")
