"""The authority, the server certificate, and what is refused of either (G9)."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from rustray.common.errors import ConfigError
from rustray.security import certificates
from rustray.security.certificates import (
    ServerIdentity,
    check_authority,
    load_server_identity,
    server_hosts,
    spki_pin,
)
from rustray.security.state_dir import (
    CA_CERTIFICATE,
    CA_KEY,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    StateDir,
)

from .conftest import NOW

DAY = 86_400
_SAN = x509.SubjectAlternativeName


def _load(state: StateDir, *hosts: str, now: float = NOW) -> ServerIdentity:
    return load_server_identity(state, hosts, now)


def _certificate(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def _write_pair(state: StateDir, names: tuple[str, str], certificate: Any, key: Any) -> None:
    state.write_secret(names[0], certificate.public_bytes(serialization.Encoding.PEM))
    state.write_secret(names[1], _key_pem(key))


def _key_pem(key: Any, password: bytes = b"") -> bytes:
    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption(),
    )
    return pem


def _make(
    key: Any,
    *,
    ca: bool | None = True,
    signer: Any = None,
    issuer: x509.Name | None = None,
    days: tuple[int, int] = (-1, 300),
    hosts: tuple[str, ...] = (),
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "made by a test")])
    now = datetime.fromtimestamp(NOW, UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer or name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
    if hosts:
        builder = builder.add_extension(_SAN([x509.DNSName(host) for host in hosts]), False)
    signer = signer or key
    algorithm = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(signer, algorithm)


def _p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def test_first_start(state: StateDir) -> None:
    """An authority of 10 years on P-256 and a server certificate of 90 days from it are made."""
    identity = _load(state, "192.0.2.7", "Head.Example.")
    authority, server = _certificate(identity.ca_pem), _certificate(identity.certificate_pem)
    server.verify_directly_issued_by(authority)
    for certificate in (authority, server):
        public = certificate.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        assert public.curve.name == "secp256r1"
    assert authority.not_valid_after_utc.timestamp() == NOW + 3650 * DAY
    assert server.not_valid_after_utc.timestamp() == NOW + 90 * DAY == identity.expires_unix_s
    names = server.extensions.get_extension_for_class(_SAN).value
    assert {"localhost", "head.example"} <= set(names.get_values_for_type(x509.DNSName))
    assert {str(address) for address in names.get_values_for_type(x509.IPAddress)} == {
        "127.0.0.1",
        "::1",
        "192.0.2.7",
    }
    assert b"PRIVATE" not in repr(identity).encode()


def test_second_start_changes_nothing(state: StateDir) -> None:
    """What still fits is used again."""
    assert _load(state, "192.0.2.7") == _load(state, "127.0.0.1", now=NOW + 59 * DAY)


@pytest.mark.parametrize(
    ("hosts", "now"),
    [
        ((), NOW + 61 * DAY),
        ((), NOW + 1000 * DAY),
        (("192.0.2.8",), NOW),
        (("other.example",), NOW),
        (("2001:db8::1",), NOW),
    ],
    ids=["near-expiry", "expired", "new-v4", "new-name", "new-v6"],
)
def test_reissue(state: StateDir, hosts: tuple[str, ...], now: float) -> None:
    """Near its end or short of a name, the server certificate is replaced; the authority stays."""
    before = _load(state)
    after = _load(state, *hosts, now=now)
    assert after.certificate_pem != before.certificate_pem
    assert after.key_pem != before.key_pem
    assert after.ca_pem == before.ca_pem
    assert _load(state, *hosts, now=now) == after


def test_certificate_from_the_future_is_reissued(state: StateDir) -> None:
    """A server certificate that a wrong clock made for later days is replaced."""
    _load(state)
    later = _load(state, now=NOW + 200 * DAY)
    assert _load(state, now=NOW + DAY).expires_unix_s < later.expires_unix_s


@pytest.mark.parametrize("name", [SERVER_CERTIFICATE, SERVER_KEY])
def test_half_a_pair_is_reissued(state: StateDir, name: str) -> None:
    """A server certificate without its key, or the reverse, is replaced."""
    before = _load(state)
    state.remove(name)
    assert _load(state).certificate_pem != before.certificate_pem


def test_mismatched_server_key_is_reissued(state: StateDir) -> None:
    """A server key that is not the certificate's is replaced with it."""
    before = _load(state)
    state.write_secret(SERVER_KEY, _key_pem(_p256()))
    assert _load(state).certificate_pem != before.certificate_pem


def test_server_certificate_without_names_is_reissued(state: StateDir) -> None:
    """A certificate of ours that lacks subject alternative names is replaced."""
    authority = _certificate(_load(state).ca_pem)
    signer = serialization.load_pem_private_key(state.read_secret(CA_KEY), None)
    key = _p256()
    bare = _make(key, ca=False, signer=signer, issuer=authority.subject)
    _write_pair(state, (SERVER_CERTIFICATE, SERVER_KEY), bare, key)
    assert _load(state).certificate_pem != bare.public_bytes(serialization.Encoding.PEM)


def test_end_of_the_authority_bounds_the_server(state: StateDir) -> None:
    """No server certificate outlives its authority."""
    _load(state)
    late = _load(state, now=NOW + 3640 * DAY)
    assert late.expires_unix_s == NOW + 3650 * DAY


def test_interrupted_first_start(state: StateDir) -> None:
    """A start that was killed after it wrote the authority's key goes on with that key."""
    key = _p256()
    state.write_secret(CA_KEY, _key_pem(key))
    assert _certificate(_load(state).ca_pem).public_key() == key.public_key()


def test_lost_authority_is_never_replaced(state: StateDir) -> None:
    """Where the authority's certificate is gone and its work is there, a human decides."""
    _load(state)
    state.remove(CA_CERTIFICATE)
    with pytest.raises(ConfigError, match=r"ca\.pem is missing"):
        _load(state)
    assert state.find_secret(CA_CERTIFICATE) is None


def test_lost_authority_key(state: StateDir) -> None:
    """Without its key the authority cannot go on, and the message says what to do."""
    _load(state)
    state.remove(CA_KEY)
    with pytest.raises(ConfigError, match=r"ca\.key is missing.*restore it from a backup"):
        _load(state)


_DAMAGE = (b"", b"\xff\x00garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----")


@pytest.mark.parametrize("name", [CA_CERTIFICATE, CA_KEY, SERVER_CERTIFICATE, SERVER_KEY])
@pytest.mark.parametrize("content", _DAMAGE, ids=["empty", "binary", "truncated"])
def test_damaged_files(state: StateDir, name: str, content: bytes) -> None:
    """A damaged file is named with what to do, and never replaced."""
    _load(state)
    state.write_secret(name, content)
    with pytest.raises(ConfigError, match=f"{name} is not a PEM .*remove") as caught:
        _load(state)
    assert str(state.path / name) in str(caught.value)
    assert state.read_secret(name) == content


@pytest.mark.parametrize("name", [CA_KEY, SERVER_KEY])
def test_encrypted_keys(state: StateDir, name: str) -> None:
    """An encrypted key is refused for what it is."""
    _load(state)
    state.write_secret(name, _key_pem(_p256(), b"passphrase"))
    with pytest.raises(ConfigError, match=f"{name} is encrypted"):
        _load(state)


@pytest.mark.parametrize("name", [CA_KEY, SERVER_KEY])
def test_keys_of_another_kind(state: StateDir, name: str) -> None:
    """A key that TLS here does not use is refused."""
    _load(state)
    state.write_secret(name, _key_pem(ed25519.Ed25519PrivateKey.generate()))
    with pytest.raises(ConfigError, match=f"{name} holds a key of a kind"):
        _load(state)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda key: _make(key, ca=False), "not the certificate of a certificate authority"),
        (lambda key: _make(key, ca=None), "not the certificate of a certificate authority"),
        (lambda key: _make(key, days=(-300, -1)), "expired at .*if this machine's clock is right"),
        (lambda key: _make(key, days=(1, 300)), "not valid before .*set the clock right"),
        (lambda key: _make(_p256()), r"ca\.key is not the key of"),
    ],
    ids=["leaf", "no-constraints", "expired", "not-yet-valid", "key-mismatch"],
)
def test_bad_authority(
    state: StateDir, make: Callable[[Any], x509.Certificate], match: str
) -> None:
    """An authority that is none, out of its time, or not of its key is refused."""
    key = _p256()
    _write_pair(state, (CA_CERTIFICATE, CA_KEY), make(key), key)
    with pytest.raises(ConfigError, match=match):
        _load(state)


@pytest.mark.parametrize(
    "key",
    [rsa.generate_private_key(65537, 1024), ec.generate_private_key(ec.SECP192R1())],
    ids=["RSA-1024", "P-192"],
)
def test_weak_authority(state: StateDir, key: Any) -> None:
    """An authority with a weak key is refused."""
    _write_pair(state, (CA_CERTIFICATE, CA_KEY), _make(key), key)
    with pytest.raises(ConfigError, match="too weak or of an unsupported kind"):
        _load(state)


def test_authority_of_another_kind() -> None:
    """An authority on Ed25519 is refused: TLS stacks do not take it."""
    with pytest.raises(ConfigError, match="unsupported kind"):
        check_authority(_make(ed25519.Ed25519PrivateKey.generate()), "it")


def test_authority_with_an_unreadable_key() -> None:
    """A certificate whose public key cannot be parsed is refused."""
    good = _make(_p256()).public_bytes(serialization.Encoding.DER)
    curve = bytes.fromhex("06082a8648ce3d030107")
    broken = good.replace(curve, curve[:-1] + b"\x7f")
    with pytest.raises(ConfigError, match="has a public key that cannot be used"):
        check_authority(x509.load_der_x509_certificate(broken), "it")


def test_authority_brought_along(state: StateDir) -> None:
    """A strong RSA authority that somebody put there is used."""
    key = rsa.generate_private_key(65537, 2048)
    _write_pair(state, (CA_CERTIFICATE, CA_KEY), _make(key), key)
    identity = _load(state)
    _certificate(identity.certificate_pem).verify_directly_issued_by(_certificate(identity.ca_pem))


def test_foreign_server_certificate(state: StateDir) -> None:
    """A server certificate from somewhere else is refused, not overwritten."""
    _load(state)
    key = _p256()
    foreign = _make(key, ca=False, hosts=("localhost",))
    _write_pair(state, (SERVER_CERTIFICATE, SERVER_KEY), foreign, key)
    with pytest.raises(ConfigError, match=r"server\.pem was not issued by ca\.pem"):
        _load(state)


def test_authority_as_server_certificate(state: StateDir) -> None:
    """The authority's own pair in the server's place is refused (G9)."""
    _load(state)
    for source, target in ((CA_CERTIFICATE, SERVER_CERTIFICATE), (CA_KEY, SERVER_KEY)):
        state.write_secret(target, state.read_secret(source))
    with pytest.raises(ConfigError, match=r"server\.pem is the certificate of an authority"):
        _load(state)


def test_loser_of_a_race_takes_the_winners_authority(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is second to create the authority's certificate uses the first one's."""
    create = StateDir.create_secret
    key = _p256()
    winner = _make(key).public_bytes(serialization.Encoding.PEM)

    def beaten(self: StateDir, name: str, content: bytes) -> bool:
        return create(self, name, winner if name == CA_CERTIFICATE else content)

    state.write_secret(CA_KEY, _key_pem(key))
    monkeypatch.setattr(StateDir, "create_secret", beaten)
    assert _load(state).ca_pem == winner


def test_hosts() -> None:
    """Localhost and this machine are always covered; brackets, case and zones do not matter."""
    found = server_hosts(["[2001:DB8::1]", "fe80::1%eth0", "A.Example", "a.example."])
    assert {str(host) for host in found} - {socket.gethostname().lower()} == {
        "localhost",
        "127.0.0.1",
        "::1",
        "2001:db8::1",
        "fe80::1",
        "a.example",
    }


def test_unprintable_machine_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose name is no host name does without it."""
    monkeypatch.setattr(socket, "gethostname", lambda: "ma chine")
    assert {str(host) for host in server_hosts([])} == {"localhost", "127.0.0.1", "::1"}


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::", "[::]"])
def test_wildcard_stands_for_all_addresses(wildcard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server on all addresses has all of them in its certificate, and no wildcard."""
    address = psutil.net_if_addrs()["lo"][0]
    interfaces = {
        "eth0": [
            _with_address(address, socket.AF_INET, "192.0.2.9"),
            _with_address(address, socket.AF_INET6, "fe80::2%eth0"),
            _with_address(address, psutil.AF_LINK, "00:00:00:00:00:00"),
        ]
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: interfaces)
    found = server_hosts([wildcard])
    assert {ipaddress.ip_address("192.0.2.9"), ipaddress.ip_address("fe80::2")} <= found
    assert ipaddress.ip_address(wildcard.strip("[]")) not in found


def _with_address(address: Any, family: int, text: str) -> Any:
    return address._replace(family=family, address=text)


@pytest.mark.parametrize("host", ["", "a b", "a/b", "-a", "a..b", "ü.example", "a" * 254])
def test_bad_hosts(state: StateDir, host: str) -> None:
    """What is neither address nor name is refused before anything is issued."""
    with pytest.raises(ConfigError, match="neither an IP address nor a host name"):
        _load(state, host)


def test_pin_is_of_the_key(state: StateDir) -> None:
    """A pin survives a new certificate on the same key, and is 43 characters."""
    key = _p256()
    first, second = _make(key), _make(key, days=(-2, 10))
    assert spki_pin(first) == spki_pin(second)
    assert len(spki_pin(first)) == 43
    assert spki_pin(_make(_p256())) != spki_pin(first)


def test_real_tls_handshake(state: StateDir) -> None:
    """A client that trusts the authority completes TLS by name and by address, and only so."""
    now = time.time()
    identity = load_server_identity(state, ["127.0.0.1"], now)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(state.path / SERVER_CERTIFICATE, state.path / SERVER_KEY)
    client = ssl.create_default_context(cadata=identity.ca_pem.decode())
    for name, good in (("localhost", True), ("127.0.0.1", True), ("evil.example", False)):
        assert _handshake(server, client, name) is good
    assert _handshake(server, ssl.create_default_context(), "localhost") is False


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> bool:
    near, far = socket.socketpair()
    with near, far:
        thread = threading.Thread(target=_accept, args=(server, near))
        thread.start()
        try:
            with client.wrap_socket(far, server_hostname=name):
                return True
        except ssl.SSLError:
            return False
        finally:
            far.close()
            thread.join()


def _accept(server: ssl.SSLContext, near: socket.socket) -> None:
    with contextlib.suppress(OSError), server.wrap_socket(near, server_side=True):
        pass


def test_budget_constants() -> None:
    """The lifetimes are those of the security profile."""
    assert timedelta(days=3650) == certificates.CA_LIFETIME
    assert timedelta(days=90) == certificates.SERVER_LIFETIME
    assert timedelta(days=30) == certificates.REISSUE_BEFORE_EXPIRY
