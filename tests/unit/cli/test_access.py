"""How commands find the head, its authority and a token: groups B, F and G that apply."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from rustray.cli.access import Target, client_access, worker_access
from rustray.cli.load import Surroundings, load
from rustray.common.errors import ConfigError, HeadUnavailable, UsageProblem
from rustray.security.auth import AuthManager
from rustray.security.certificates import load_server_identity
from rustray.security.join import JoinString
from rustray.security.local import find_local_join, publish_local_credentials
from rustray.security.state_dir import StateDir

SECRET = "k3Jq9ZpL0vXw7RtB2nYc5HfGd8Ms1QaE4u"
TOKEN = "header.payload.signature"


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    """Return surroundings with a state directory that nobody has made."""
    home = tmp_path / "home"
    home.mkdir()
    return Surroundings({"RUSTRAY_STATE_DIR": str(tmp_path / "state")}, home, home)


def with_env(around: Surroundings, **environ: str) -> Surroundings:
    """Return the same surroundings with more variables."""
    return Surroundings({**around.environ, **environ}, around.working_dir, around.home)


@pytest.fixture
def state(around: Surroundings) -> StateDir:
    """Return a state directory as a running head leaves it."""
    state = StateDir(around.environ["RUSTRAY_STATE_DIR"])
    state.create()
    auth = AuthManager.open(state, jwt_secret=None, token_expiration_s=3600)
    load_server_identity(state, [], time.time())
    publish_local_credentials(state, auth, "127.0.0.1:9000", time.time())
    return state


def a_file(around: Surroundings, name: str, content: bytes, mode: int = 0o600) -> str:
    """Write a file in the working directory and return its name."""
    path = around.working_dir / name
    path.write_bytes(content)
    path.chmod(mode)
    return name


def test_without_a_head_here_or_named_nothing_is_guessed(around: Surroundings):
    """No address and no state directory: exit 3's error, with what to do."""
    with pytest.raises(HeadUnavailable, match="rustray head"):
        client_access(Target(), around)
    with pytest.raises(HeadUnavailable, match="rustray head"):
        worker_access(None, None, load(around), around)


def test_on_the_heads_machine_nothing_needs_to_be_said(around: Surroundings, state: StateDir):
    """Address, authority and token come from the state directory."""
    found = client_access(Target(), around)
    assert found.address == "127.0.0.1:9000"
    assert b"BEGIN CERTIFICATE" in (found.ca_pem or b"")
    assert found.token_source.current().count(".") == 2
    worker = worker_access(None, None, load(around), around)
    assert (worker.address, worker.is_insecure) == ("127.0.0.1:9000", False)
    assert worker.token_source.current() != found.token_source.current()


def test_flags_beat_variables_beat_the_state_directory(around: Surroundings, state: StateDir):
    """The nearest word wins, for the address and for the token."""
    env = with_env(around, RUSTRAY_ADDRESS="rustray://env:1", RUSTRAY_TOKEN="env.env.env")
    found = client_access(Target(), env)
    assert (found.address, found.token_source.current()) == ("env:1", "env.env.env")
    a_file(around, "token", TOKEN.encode() + b"\n")
    found = client_access(Target(head="flag:2", token_file="token"), env)
    assert (found.address, found.token_source.current()) == ("flag:2", TOKEN)


def test_a_state_directory_may_be_named_by_flag(around: Surroundings, state: StateDir):
    """--state-dir stands for the head of that directory."""
    elsewhere = Surroundings({}, around.working_dir, around.home)
    found = client_access(Target(state_dir=str(state.path)), elsewhere)
    assert found.address == "127.0.0.1:9000"


def test_a_new_worker_token_is_picked_up(around: Surroundings, state: StateDir):
    """A worker on the head's machine follows the file that the head writes anew."""
    source = worker_access(None, None, load(around), around).token_source
    before = source.current()
    auth = AuthManager.open(state, jwt_secret=None, token_expiration_s=3600)
    publish_local_credentials(state, auth, "127.0.0.1:9000", time.time() + 60)
    os.utime(state.path / "worker.join", ns=(1, 1))
    assert source.current() != before
    newest = source.current()
    state.remove("worker.join")
    assert source.current() == newest


def test_a_join_string_needs_nothing_else(around: Surroundings, state: StateDir):
    """The string alone, from a flag, a file or a variable, says address, authority, token."""
    text = find_local_join(state).encode()
    elsewhere = Surroundings({}, around.working_dir, around.home)
    a_file(around, "join", text.encode() + b"\n")
    ways = [
        worker_access(None, text, load(elsewhere), elsewhere),
        worker_access(None, "@join", load(elsewhere), elsewhere),
        worker_access(None, None, load(elsewhere), with_env(elsewhere, RUSTRAY_JOIN=text)),
    ]
    for found in ways:
        assert found.address == "127.0.0.1:9000"
        assert found.ca_pem == JoinString.parse(text).ca_pem
    assert worker_access("other:1", text, load(elsewhere), elsewhere).address == "other:1"


BAD_JOINS = [
    "",
    "garbage",
    "rrj1.",
    "rrj1.AAAA",
    "@",
    "@missing",
    "@.",
    "@fifo",
    "@binary",
    "eyJ.x",
]


@pytest.mark.parametrize("text", BAD_JOINS)
def test_a_bad_join_string_is_refused(around: Surroundings, text: str):
    """Garbage, access tokens and files that are none end at once with a sentence."""
    os.mkfifo(around.working_dir / "fifo")
    a_file(around, "binary", b"\xff\xfe")
    with pytest.raises(ConfigError):
        worker_access(None, text, load(around), around)


BAD_TOKENS = [
    pytest.param("missing", None, 0o600, "cannot be read", id="missing"),
    pytest.param(".", None, 0o600, "not a regular file", id="directory"),
    pytest.param("fifo", None, 0o600, "not a regular file", id="fifo"),
    pytest.param("", None, 0o600, "empty", id="no-name"),
    pytest.param("t", TOKEN.encode(), 0o644, "chmod 600", id="readable"),
    pytest.param("t", b"", 0o600, "empty", id="empty"),
    pytest.param("t", b"x.y.z\r\n", 0o600, "Windows", id="crlf"),
    pytest.param("t", b"\xef\xbb\xbfx.y.z", 0o600, "byte order", id="bom"),
    pytest.param("t", b"x" * (1 << 20), 0o600, "more than", id="huge"),
    pytest.param("t", b"x y z", 0o600, "not a token", id="spaces"),
]


@pytest.mark.parametrize(("name", "content", "mode", "reason"), BAD_TOKENS)
def test_a_bad_token_file_is_refused(around: Surroundings, name, content, mode, reason):
    """F5: nothing is read over, and the flag is named; the token is not."""
    os.mkfifo(around.working_dir / "fifo")
    if content is not None:
        a_file(around, name, content, mode)
    with pytest.raises(ConfigError, match=reason) as caught:
        client_access(Target(head="h:1", token_file=name), around)
    assert "--token-file" in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_bad_ca_file_is_refused(around: Surroundings):
    """A CA that is missing or no PEM is an error, not the system's authorities."""
    a_file(around, "not.pem", b"hello")
    for name in ("missing.pem", "not.pem"):
        with pytest.raises(ConfigError, match=name):
            client_access(Target(head="h:1", ca_file=name), around)


@pytest.mark.parametrize("head", ["http://h:1", "h:0", "::1", ""])
def test_a_bad_address_is_a_usage_error(around: Surroundings, head: str):
    """F3: flag and variable are checked alike, and named."""
    with pytest.raises(UsageProblem, match="--head"):
        client_access(Target(head=head), around)
    with pytest.raises(UsageProblem, match="RUSTRAY_ADDRESS"):
        client_access(Target(), with_env(around, RUSTRAY_ADDRESS=head))


def test_the_simple_mode_makes_its_own_tokens(around: Surroundings):
    """Whoever has jwt_secret in the settings needs no token from elsewhere."""
    env = with_env(around, RUSTRAY_SECURITY__JWT_SECRET=SECRET)
    token = client_access(Target(head="h:1"), env).token_source.current()
    manager = AuthManager.from_secret(SECRET, token_expiration_s=3600)
    assert manager.verify(token, time.time()).role == "admin"


def test_without_tls_only_this_machine_is_spoken_to(around: Surroundings):
    """[security] tls = false means plaintext to the configured loopback address."""
    env = with_env(around, RUSTRAY_SECURITY__TLS="false", RUSTRAY_SECURITY__AUTH="false")
    assert client_access(Target(), env).is_insecure
    assert client_access(Target(), env).address == "127.0.0.1:8000"
    assert worker_access(None, None, load(env), env).is_insecure
