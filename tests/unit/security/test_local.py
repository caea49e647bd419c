"""Local credentials, and tokens from the environment (F5)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from rustray.common.errors import AuthenticationError, ConfigError, HeadUnavailable
from rustray.security.auth import AuthManager
from rustray.security.certificates import load_server_identity
from rustray.security.local import (
    MAX_TOKEN_FILE_BYTES,
    find_local_credentials,
    find_local_join,
    publish_local_credentials,
    token_from_environment,
    withdraw_local_credentials,
)
from rustray.security.roles import Role
from rustray.security.state_dir import ADMIN_TOKEN, HEAD_ADDRESS, WORKER_JOIN, StateDir

from .conftest import NOW

CANARY = "eyJhbGciOiJFZERTQSJ9.canary.AAAA"


@pytest.fixture
def published(state: StateDir, auth: AuthManager) -> StateDir:
    """Return the directory of a head that listens on all addresses."""
    load_server_identity(state, ["0.0.0.0"], NOW)
    publish_local_credentials(state, auth, "0.0.0.0:8000", NOW)
    return state


def test_local_command_finds_all_it_needs(published: StateDir, auth: AuthManager) -> None:
    """Address, authority and an admin's token are there, for the owner only."""
    found = find_local_credentials(published)
    caller = auth.verify(found.token, NOW)
    assert found.address == "127.0.0.1:8000"
    assert found.ca_pem == published.read_secret("ca.pem")
    assert (caller.role, caller.may_send_code) == (Role.ADMIN, True)
    assert found.token not in repr(found)
    for name in (ADMIN_TOKEN, WORKER_JOIN, HEAD_ADDRESS):
        assert stat.S_IMODE((published.path / name).stat().st_mode) == 0o600


def test_local_worker_joins_without_a_flag(published: StateDir, auth: AuthManager) -> None:
    """A join string with a worker's token is there."""
    join = find_local_join(published)
    caller = auth.verify(join.token, NOW)
    assert join.address == "127.0.0.1:8000"
    assert join.ca_pem == find_local_credentials(published).ca_pem
    assert (caller.role, caller.may_send_code) == (Role.WORKER, False)


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("[::]:8000", "[::1]:8000"),
        ("0.0.0.0:1", "127.0.0.1:1"),
        ("192.0.2.1:8000", "192.0.2.1:8000"),
        ("head.example:8000", "head.example:8000"),
    ],
)
def test_published_address(state: StateDir, auth: AuthManager, address: str, local: str) -> None:
    """All addresses become loopback; others stay as they are."""
    load_server_identity(state, [], NOW)
    publish_local_credentials(state, auth, address, NOW)
    assert find_local_credentials(state).address == local


def test_republished_before_expiry(published: StateDir, auth: AuthManager) -> None:
    """The head is told to write again half-way, and then the tokens are good for longer."""
    first = find_local_credentials(published).token
    again = publish_local_credentials(published, auth, "127.0.0.1:8000", NOW)
    assert again == NOW + 1800
    publish_local_credentials(published, auth, "127.0.0.1:8000", again)
    second = find_local_credentials(published).token
    with pytest.raises(AuthenticationError):
        auth.verify(first, NOW + 4000)
    auth.verify(second, NOW + 4000)


def test_bad_address_publishes_nothing(state: StateDir, auth: AuthManager) -> None:
    """An address without a port is refused before any file is written."""
    load_server_identity(state, [], NOW)
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        publish_local_credentials(state, auth, "127.0.0.1", NOW)
    assert state.find_secret(ADMIN_TOKEN) is None


def test_no_head_ever(tmp_path: Path) -> None:
    """Without a state directory no head runs here, and the message says how to start one."""
    absent = StateDir(tmp_path / "absent")
    for find in (find_local_credentials, find_local_join):
        with pytest.raises(HeadUnavailable, match="rustray head"):
            find(absent)
    assert not absent.exists()


def test_head_that_stopped(published: StateDir) -> None:
    """A head that stopped in good order leaves no credentials behind."""
    withdraw_local_credentials(published)
    withdraw_local_credentials(published)
    for find in (find_local_credentials, find_local_join):
        with pytest.raises(HeadUnavailable):
            find(published)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\n"])
@pytest.mark.parametrize("name", [ADMIN_TOKEN, WORKER_JOIN, HEAD_ADDRESS])
def test_damaged_files(published: StateDir, name: str, content: bytes) -> None:
    """An empty or damaged file is named, with what to do."""
    published.write_secret(name, content)
    find = find_local_join if name == WORKER_JOIN else find_local_credentials
    with pytest.raises(ConfigError, match=f"{name} is empty or damaged; restart the head"):
        find(published)


def test_unsafe_directory(published: StateDir) -> None:
    """A client refuses a directory into which others could have put a head of theirs."""
    published.path.chmod(0o777)
    with pytest.raises(ConfigError, match="chmod 700"):
        find_local_credentials(published)


def test_damaged_address(published: StateDir) -> None:
    """An address that is none is refused."""
    published.write_secret(HEAD_ADDRESS, b"nowhere\n")
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        find_local_credentials(published)


def _file(path: Path, content: bytes, mode: int = 0o600) -> dict[str, str]:
    path.write_bytes(content)
    path.chmod(mode)
    return {"RUSTRAY_TOKEN_FILE": str(path)}


def test_no_token_in_the_environment() -> None:
    """Where no variable is set there is no token."""
    assert token_from_environment({}) is None


@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_token_from_a_file(tmp_path: Path, ending: bytes) -> None:
    """The file goes before the variable; one line end is not part of the token."""
    environ = _file(tmp_path / "token", CANARY.encode() + ending)
    assert token_from_environment(environ | {"RUSTRAY_TOKEN": "other"}) == CANARY
    assert token_from_environment({"RUSTRAY_TOKEN": CANARY + ending.decode()}) == CANARY


def test_token_file_behind_a_link(tmp_path: Path) -> None:
    """A link is followed: that is how orchestrators mount secrets."""
    _file(tmp_path / "token", CANARY.encode())
    (tmp_path / "link").symlink_to(tmp_path / "token")
    assert token_from_environment({"RUSTRAY_TOKEN_FILE": str(tmp_path / "link")}) == CANARY


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "set but empty"),
        (b"\n", "set but empty"),
        (b"  \n", "set but empty"),
        (b"\xef\xbb\xbf" + CANARY.encode(), "byte order mark"),
        (CANARY.encode("utf-16"), "byte order mark"),
        (CANARY.encode() + b"\r\n", "Windows line ends"),
        (CANARY.encode() + b"\n\n", "one line without spaces"),
        (b" " + CANARY.encode(), "one line without spaces"),
        (CANARY.encode() + b"\0", "one line without spaces"),
        (b"\xc3\xa9" + CANARY.encode(), "one line without spaces"),
        (b"A" * (MAX_TOKEN_FILE_BYTES + 1), "more than 65536 bytes"),
    ],
)
def test_bad_tokens(tmp_path: Path, content: bytes, match: str) -> None:
    """A bad token in file or variable is fatal, named, not shown, and nothing else is tried."""
    for environ in (
        _file(tmp_path / "token", content) | {"RUSTRAY_TOKEN": "good"},
        {"RUSTRAY_TOKEN": os.fsdecode(content)},
    ):
        with pytest.raises(ConfigError, match=match) as caught:
            token_from_environment(environ)
        assert str(caught.value).startswith(next(iter(environ)))
        assert "canary" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o666])
def test_open_token_file(tmp_path: Path, mode: int) -> None:
    """A token file that others can read is refused."""
    with pytest.raises(ConfigError, match="chmod 600"):
        token_from_environment(_file(tmp_path / "token", CANARY.encode(), mode))


def test_foreign_token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token file of another user is refused, unless that user is root."""
    environ = _file(tmp_path / "token", CANARY.encode())
    os.chown(tmp_path / "token", os.geteuid(), -1)
    mine = os.geteuid()
    real = os.fstat

    def owned_by(owner: int) -> None:
        def fake(descriptor: int) -> os.stat_result:
            fields = list(real(descriptor))
            fields[stat.ST_UID] = owner
            return os.stat_result(fields)

        monkeypatch.setattr(os, "fstat", fake)

    owned_by(mine + 1000)
    with pytest.raises(ConfigError, match="belongs to another user"):
        token_from_environment(environ)


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("", "set but empty"),
        ("absent", "No such file"),
        ("directory", "is not a regular file"),
        ("fifo", "is not a regular file"),
        ("a\0b", "null"),
        ("x" * 5000, "File name too long"),
    ],
)
def test_bad_token_paths(tmp_path: Path, path: str, match: str) -> None:
    """A path without a readable file is fatal at once, a FIFO too; the variable is not tried."""
    (tmp_path / "directory").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "fifo", 0o600)
    named = str(tmp_path / path) if path else ""
    with pytest.raises(ConfigError, match=match):
        token_from_environment({"RUSTRAY_TOKEN_FILE": named, "RUSTRAY_TOKEN": CANARY})
