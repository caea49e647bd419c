"""The state directory: what it refuses, what it writes, and who may hold it (G8, F5, F13)."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rustray.common.errors import ConfigError
from rustray.security.state_dir import MAX_FILE_BYTES, StateDir, default_state_dir


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "/home/a/.local/state/rustray"),
        ({"XDG_STATE_HOME": "/xdg"}, "/xdg/rustray"),
        ({"XDG_STATE_HOME": ""}, "/home/a/.local/state/rustray"),
        ({"XDG_STATE_HOME": "relative"}, "/home/a/.local/state/rustray"),
        ({"RUSTRAY_STATE_DIR": "/x/y", "XDG_STATE_HOME": "/xdg"}, "/x/y"),
        ({"RUSTRAY_STATE_DIR": "~/y"}, "/home/a/y"),
        ({"RUSTRAY_STATE_DIR": "~"}, "/home/a"),
    ],
)
def test_default_place(environ: dict[str, str], expected: str) -> None:
    """The variable goes first, then the XDG state directory."""
    assert default_state_dir(environ, Path("/home/a")) == Path(expected)


@pytest.mark.parametrize("value", ["", "  "])
def test_empty_variable(value: str) -> None:
    """A variable that is set and empty is an error, not the default."""
    with pytest.raises(ConfigError, match="set but empty"):
        default_state_dir({"RUSTRAY_STATE_DIR": value}, Path("/home/a"))


def test_create_makes_a_private_directory(tmp_path: Path) -> None:
    """The directory and what is missing above it are made, whatever the umask."""
    state = StateDir(tmp_path / "a" / "b")
    assert not state.exists()
    before = os.umask(0o022)
    try:
        state.create()
        state.create()
    finally:
        os.umask(before)
    assert state.exists()
    assert _mode(state.path) == 0o700
    assert repr(state) == f"StateDir({str(state.path)!r})"


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o750, 0o755, 0o770, 0o777, 0o702])
def test_open_directory(state: StateDir, mode: int) -> None:
    """A directory open to group or others is refused, names the chmod, and stays as it is."""
    state.path.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 700 {state.path}"):
        state.create()
    assert _mode(state.path) == mode


def test_symlinked_directory(state: StateDir, tmp_path: Path) -> None:
    """A symbolic link to a good directory is refused."""
    link = tmp_path / "link"
    link.symlink_to(state.path)
    with pytest.raises(ConfigError, match="symbolic link"):
        StateDir(link).create()


def test_dangling_link(tmp_path: Path) -> None:
    """A link to nowhere is refused as well, and not followed."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="symbolic link"):
        StateDir(link).create()
    assert not (tmp_path / "nowhere").exists()


def test_path_is_a_file(tmp_path: Path) -> None:
    """A file is no state directory, and neither is a path below it."""
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(ConfigError, match="is not a directory"):
        StateDir(file).create()
    with pytest.raises(ConfigError, match="cannot create the state directory"):
        StateDir(file / "below").create()


def test_path_with_nul() -> None:
    """A path that no file system can have is a ConfigError."""
    with pytest.raises(ConfigError, match="null"):
        StateDir("/tmp/a\0b").create()
    with pytest.raises(ConfigError, match="null"):
        StateDir("/tmp/a\0b").check()


def test_foreign_owner(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's directory or file is refused, with both user ids."""
    state.write_secret("ca.key", b"k")
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(ConfigError, match=f"user id {mine}, .*{mine + 1}"):
        state.check()
    with pytest.raises(ConfigError, match=f"user id {mine}, .*{mine + 1}"):
        state.read_secret("ca.key")


def test_check_of_an_absent_directory(tmp_path: Path) -> None:
    """Checking does not create."""
    state = StateDir(tmp_path / "absent")
    with pytest.raises(ConfigError, match="No such file"):
        state.check()
    assert not state.exists()


def test_secrets_round_trip(state: StateDir) -> None:
    """What is written is read, replaced whole, 0600, and nothing else stays behind."""
    before = os.umask(0o777)
    try:
        state.write_secret("ca.key", b"one")
        state.write_secret("ca.key", b"two")
    finally:
        os.umask(before)
    assert state.read_secret("ca.key") == b"two"
    assert _mode(state.path / "ca.key") == 0o600
    assert [path.name for path in state.path.iterdir()] == ["ca.key"]


def test_create_secret_never_replaces(state: StateDir) -> None:
    """Of two that create one file, the first wins."""
    assert state.create_secret("ca.key", b"one") is True
    assert state.create_secret("ca.key", b"two") is False
    assert state.read_secret("ca.key") == b"one"
    assert [path.name for path in state.path.iterdir()] == ["ca.key"]


def test_load_or_create_takes_the_winner(state: StateDir) -> None:
    """Who loses the race to create a file returns the winner's content."""

    def make() -> bytes:
        state.create_secret("ca.key", b"winner")
        return b"loser"

    assert state.load_or_create("ca.key", make) == b"winner"
    assert state.load_or_create("ca.key", lambda: b"later") == b"winner"


def test_absent_file(state: StateDir) -> None:
    """Finding an absent file answers None; reading one is an error that names it."""
    assert state.find_secret("ca.key") is None
    with pytest.raises(ConfigError, match=r"ca\.key is missing"):
        state.read_secret("ca.key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o666, 0o610, 0o777])
def test_open_file(state: StateDir, mode: int) -> None:
    """A file open to group or others is refused, with the chmod to run."""
    state.write_secret("ca.key", b"k")
    (state.path / "ca.key").chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {state.path / 'ca.key'}"):
        state.find_secret("ca.key")


def test_symlinked_file(state: StateDir, tmp_path: Path) -> None:
    """A symbolic link in the directory is refused, wherever it leads."""
    target = tmp_path / "target"
    target.write_bytes(b"k")
    target.chmod(0o600)
    (state.path / "ca.key").symlink_to(target)
    with pytest.raises(ConfigError, match=r"ca\.key is a symbolic link"):
        state.find_secret("ca.key")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_no_regular_file(state: StateDir, make: Callable[[Path, int], None]) -> None:
    """A FIFO or directory in a file's place is refused at once, without waiting for a writer."""
    make(state.path / "ca.key", 0o700)
    with pytest.raises(ConfigError, match="is not a regular file"):
        state.find_secret("ca.key")


def test_huge_file(state: StateDir) -> None:
    """No more than a mebibyte of a file is ever read."""
    state.write_secret("ca.key", b"k" * MAX_FILE_BYTES)
    assert len(state.read_secret("ca.key")) == MAX_FILE_BYTES
    state.write_secret("ca.key", b"k" * (MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than"):
        state.find_secret("ca.key")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "A", "a" * 65, "a\0"])
def test_bad_names(state: StateDir, name: str) -> None:
    """Only plain names are files of the directory."""
    match = "is not the name of a file"
    with pytest.raises(ConfigError, match=match):
        state.find_secret(name)
    with pytest.raises(ConfigError, match=match):
        state.write_secret(name, b"")
    with pytest.raises(ConfigError, match=match):
        state.remove(name)


def test_remove(state: StateDir) -> None:
    """Removing twice is fine; what cannot be removed is an error."""
    state.write_secret("head.address", b"x")
    state.remove("head.address")
    state.remove("head.address")
    assert state.find_secret("head.address") is None
    (state.path / "head.address").mkdir()
    with pytest.raises(ConfigError, match="cannot remove"):
        state.remove("head.address")


def test_unreadable_and_unwritable(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of the disk become ConfigErrors that name the file; a half-written one goes away."""
    state.write_secret("ca.key", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ConfigError, match=r"cannot write .*ca\.key: No space left"):
            state.write_secret("ca.key", b"new")
    assert [path.name for path in state.path.iterdir()] == ["ca.key"]
    assert state.read_secret("ca.key") == b"old"

    def denied(path: Path, flags: int, mode: int = 0) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", denied)
        with pytest.raises(ConfigError, match=r"cannot read .*ca\.key: Permission denied"):
            state.read_secret("ca.key")
        with pytest.raises(ConfigError, match="cannot open the lock file"):
            state.lock()


def test_lock_is_exclusive(state: StateDir) -> None:
    """A second head is told the directory and the process that holds it; then it is free."""
    with state.lock() as lock:
        with pytest.raises(ConfigError) as caught:
            state.lock()
        assert str(state.path) in str(caught.value)
        assert f"process {os.getpid()}" in str(caught.value)
    lock.release()
    state.lock().release()


def test_lock_of_an_unknown_holder(state: StateDir) -> None:
    """A holder that has not written its process id yet is called another process."""
    with state.lock():
        (state.path / "lock").write_bytes(b"")
        with pytest.raises(ConfigError, match="another process"):
            state.lock()


def test_lock_forgets_the_last_holder(state: StateDir) -> None:
    """The file names this process, not a longer text of an earlier one."""
    (state.path / "lock").write_bytes(b"99999999999999\n")
    with state.lock():
        assert (state.path / "lock").read_text() == f"{os.getpid()}\n"


def test_file_system_without_locks(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot lock is refused, for two heads could share it."""

    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.raises(ConfigError, match="No locks available; choose one on a local disk"):
        state.lock()


def test_lock_removes_leftovers(state: StateDir) -> None:
    """What a killed head left half-written is gone once the next one holds the directory."""
    leftover = state.path / ".new-ca.key-0011223344556677"
    leftover.write_bytes(b"half a key")
    with state.lock():
        assert not leftover.exists()


_FIRST_START = """
import sys, time
from rustray.common.errors import ConfigError
from rustray.security.auth import AuthManager
from rustray.security.certificates import load_server_identity
from rustray.security.state_dir import StateDir
state = StateDir(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    state.create()
    lock = state.lock()
    load_server_identity(state, ["127.0.0.1"], time.time())
    auth = AuthManager.open(state, jwt_secret=None, token_expiration_s=60)
except ConfigError as error:
    print("refused", error, flush=True)
else:
    print("won", auth.cluster_id, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.slow
def test_two_first_starts_at_once(tmp_path: Path) -> None:
    """Of two heads that start in one new directory at once, one starts and one is told why."""
    place = tmp_path / "state"
    source = str(Path(__file__).parents[3] / "src")
    heads = [
        subprocess.Popen(
            [sys.executable, "-c", _FIRST_START, str(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": source},
        )
        for _ in range(2)
    ]
    try:
        answers = []
        for head in heads:
            assert head.stdout is not None
            assert head.stdout.readline() == "ready\n"
        for head in heads:
            assert head.stdin is not None
            head.stdin.write("go\n")
            head.stdin.flush()
        for head in heads:
            assert head.stdout is not None
            answers.append(head.stdout.readline())
    finally:
        for head in heads:
            head.communicate("stop\n", timeout=30)
    winner = next(head for head, answer in zip(heads, answers, strict=True) if "won" in answer)
    refusals = [answer for answer in answers if answer.startswith("refused")]
    assert len(refusals) == 1
    assert str(place) in refusals[0]
    assert f"process {winner.pid}" in refusals[0] or "another process" in refusals[0]
    assert {path.name for path in place.iterdir()} == {
        "ca.key",
        "ca.pem",
        "cluster_id",
        "lock",
        "server.key",
        "server.pem",
        "signing.key",
    }
    assert all(_mode(path) == 0o600 for path in place.iterdir())
