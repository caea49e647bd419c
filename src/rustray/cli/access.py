"""How commands find the head, its authority, and a token to show.

What the user says goes first: ``--head``, ``RUSTRAY_ADDRESS``; ``--token-file``,
``RUSTRAY_TOKEN_FILE``, ``RUSTRAY_TOKEN``; ``--ca-file``, ``RUSTRAY_CA_FILE``; ``--join``,
``RUSTRAY_JOIN``. The rest comes from the state directory of a head on this machine.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rustray.cli.load import Loaded, Surroundings, expand, load, state_dir
from rustray.cli.values import parse_address
from rustray.client.access import GivenToken, resolve
from rustray.common.config import STATE_DIR_ENV
from rustray.common.errors import ConfigError, HeadUnavailable
from rustray.rpc.tokens import TokenSource
from rustray.security.bind import is_loopback, split_host_port
from rustray.security.join import JoinString
from rustray.security.local import (
    TOKEN_FILE_VARIABLE,
    find_local_credentials,
    find_local_join,
    token_from_environment,
)
from rustray.security.state_dir import WORKER_JOIN, StateDir

ADDRESS_ENV: Final = "RUSTRAY_ADDRESS"
JOIN_ENV: Final = "RUSTRAY_JOIN"
_MAX_FILE_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Target:
    """What the flags of a client command said; None where they said nothing."""

    head: str | None = None
    token_file: str | None = None
    state_dir: str | None = None
    ca_file: str | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """Everything that a connection to the head takes.

    Attributes:
        address: ``host:port``.
        ca_pem: The head's authority; None for the system's.
        token_source: Gives the token.
        is_insecure: Plaintext, to this machine only.
    """

    address: str
    ca_pem: bytes | None
    token_source: TokenSource
    is_insecure: bool = False


class FileToken:
    """The token in a file that the head on this machine writes anew from time to time."""

    def __init__(self, path: Path, read: Callable[[], str]) -> None:
        self._path = path
        self._read = read
        self._stamp = self._look()
        self._token = read()

    def current(self) -> str:
        """Return the newest token; the last good one while the head is away."""
        stamp = self._look()
        if stamp not in (0, self._stamp):
            try:
                self._token = self._read()
                self._stamp = stamp
            except (ConfigError, HeadUnavailable):
                return self._token
        return self._token

    def _look(self) -> int:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return 0


def client_access(target: Target, around: Surroundings) -> Access:
    """Resolve how a client command reaches the head.

    Raises:
        HeadUnavailable: no head is named, and none runs on this machine.
        ConfigError: what was named cannot be used.
        UsageProblem: the address is none.
    """
    loaded = load(around)
    directory = _state(target.state_dir, loaded, around)
    token = _named_token(target, around) or _minted_token(loaded, "admin", "user:command-line")
    address = _named_address(target.head, around)
    if address is None and not loaded.config.security.tls:
        address = f"{loaded.config.node.address}:{loaded.config.node.head_port}"
    if address is None:
        address = find_local_credentials(directory).address
    environ = {**around.environ, STATE_DIR_ENV: str(directory.path)}
    ca_file = str(expand(target.ca_file, around)) if target.ca_file is not None else None
    found = resolve(address, token, ca_file, environ)
    is_insecure = found.insecure or (not loaded.config.security.tls and ca_file is None)
    return Access(found.address, found.ca_pem, found.token_source, is_insecure)


def worker_access(
    head: str | None, join: str | None, loaded: Loaded, around: Surroundings
) -> Access:
    """Resolve how a worker reaches the head.

    Args:
        head: ``--head``, or None.
        join: ``--join``, or None: a join string, or ``@FILE``.
        loaded: The settings.
        around: The process's surroundings.

    Raises:
        HeadUnavailable: nothing says where the head is, and none runs on this machine.
        ConfigError: what was said cannot be used.
        UsageProblem: the address is none.
    """
    named = _named_address(head, around)
    text = join if join is not None else around.environ.get(JOIN_ENV)
    if text is not None:
        string = JoinString.parse(_join_text(text, around))
        return Access(named or string.address, string.ca_pem, GivenToken(string.token))
    token = token_from_environment(around.environ)
    token = token or _minted_token(loaded, "worker", "worker:command-line")
    directory = _state(None, loaded, around)
    if not loaded.config.security.tls:
        address = named or f"{loaded.config.node.address}:{loaded.config.node.head_port}"
        return Access(address, None, GivenToken(token or ""), is_insecure=True)
    try:
        found = find_local_join(directory)
    except HeadUnavailable:
        # As for clients: a head without TLS on this machine has left nothing to find.
        if named is None or token is not None or not is_loopback(split_host_port(named)[0]):
            raise
        return Access(named, None, GivenToken(""), is_insecure=True)
    if token is not None:
        return Access(named or found.address, found.ca_pem, GivenToken(token))
    source = FileToken(directory.path / WORKER_JOIN, lambda: find_local_join(directory).token)
    return Access(named or found.address, found.ca_pem, source)


def head_state(flag: str | None) -> StateDir:
    """Return the state directory of the head on this machine.

    Args:
        flag: ``--state-dir``, if given.

    Raises:
        ConfigError: the configuration is wrong.
    """
    around = Surroundings.of_this_process()
    return _state(flag, load(around), around)


def _state(flag: str | None, loaded: Loaded, around: Surroundings) -> StateDir:
    return StateDir(expand(flag, around) if flag else state_dir(loaded.config, around))


def _named_address(flag: str | None, around: Surroundings) -> str | None:
    if flag is not None:
        return parse_address(flag, "--head")
    text = around.environ.get(ADDRESS_ENV)
    return parse_address(text, ADDRESS_ENV) if text is not None else None


def _named_token(target: Target, around: Surroundings) -> str | None:
    if target.token_file is None:
        return token_from_environment(around.environ)
    path = str(expand(target.token_file, around)) if target.token_file else ""
    try:
        return token_from_environment({TOKEN_FILE_VARIABLE: path})
    except ConfigError as error:
        raise ConfigError(str(error).replace(TOKEN_FILE_VARIABLE, "--token-file")) from None


def _minted_token(loaded: Loaded, role: str, subject: str) -> str | None:
    secret = loaded.config.security.jwt_secret
    if secret is None:
        return None
    from rustray.security.auth import AuthManager

    expiration_s = loaded.config.security.token_expiration
    manager = AuthManager.from_secret(secret, token_expiration_s=expiration_s)
    return manager.mint(role, subject, time.time())


def _join_text(text: str, around: Surroundings) -> str:
    if not text.startswith("@"):
        return text
    content = _read_small(expand(text[1:], around), "--join @FILE:")
    try:
        return content.decode("ascii")
    except UnicodeDecodeError:
        raise ConfigError(f"--join {text[:200]!r}: the file has no join string in it") from None


def _read_small(path: Path, what: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{what} {str(path)!r:.200} cannot be read: {reason}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ConfigError(f"{what} {str(path)!r:.200} is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as opened:
            content = opened.read(_MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > _MAX_FILE_BYTES:
        raise ConfigError(f"{what} {str(path)!r:.200} has more than {_MAX_FILE_BYTES} bytes")
    return content
