"""How a program finds the head, its authority, and a token to show.

What the caller says goes first, then ``RUSTRAY_TOKEN_FILE`` and ``RUSTRAY_TOKEN`` and
``RUSTRAY_CA_FILE``, then the state directory of a head on this machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rustray.common.errors import ConfigError, HeadUnavailable
from rustray.security.bind import is_loopback, split_host_port
from rustray.security.local import (
    LocalCredentials,
    find_local_credentials,
    token_from_environment,
)
from rustray.security.state_dir import StateDir, default_state_dir

CA_FILE_VARIABLE: Final = "RUSTRAY_CA_FILE"
REREAD_S: Final = 1.0


class LocalToken:
    """The admin token of this machine's head, which that writes anew before it ends."""

    def __init__(self, state: StateDir, token: str) -> None:
        self._state = state
        self._token = token
        self._read_at_s = time.monotonic()

    def current(self) -> str:
        """Return the newest token; the last good one while the head is away."""
        now = time.monotonic()
        if now - self._read_at_s >= REREAD_S:
            self._read_at_s = now
            try:
                self._token = find_local_credentials(self._state).token
            except (ConfigError, HeadUnavailable):
                return self._token
        return self._token


@dataclass(frozen=True, slots=True)
class GivenToken:
    """A token that is what it is."""

    token: str = field(repr=False)

    def current(self) -> str:
        """Return the token."""
        return self.token


@dataclass(frozen=True, slots=True)
class Access:
    """Everything that a connection takes; see `rustray.rpc.head_client.connect`."""

    address: str
    token_source: GivenToken | LocalToken
    ca_pem: bytes | None
    insecure: bool


def resolve(
    address: str,
    token: str | None,
    ca_file: str | os.PathLike[str] | None,
    environ: Mapping[str, str] | None = None,
) -> Access:
    """Work out how to reach the head at ``host:port``.

    A head without TLS (loopback only) is reached in plaintext if nothing names an authority and
    no head with keys runs on this machine.

    Raises:
        ConfigError: a token or CA file is named and cannot be used.
    """
    around = os.environ if environ is None else environ
    given = token if token is not None else token_from_environment(around)
    named = ca_file if ca_file is not None else around.get(CA_FILE_VARIABLE)
    state = StateDir(default_state_dir(around, Path.home()))
    local = _local(state)
    if named is not None:
        ca_pem = _read_ca(named)
        if given is None and local is not None and local.ca_pem == ca_pem:
            return Access(address, LocalToken(state, local.token), ca_pem, insecure=False)
        return Access(address, GivenToken(given or ""), ca_pem, insecure=False)
    if local is None:
        insecure = given is None and is_loopback(split_host_port(address)[0])
        return Access(address, GivenToken(given or ""), None, insecure)
    if given is not None:
        return Access(address, GivenToken(given), local.ca_pem, insecure=False)
    # The local token may go to any address: TLS with the local authority lets nobody but the
    # head of this very state directory receive it.
    return Access(address, LocalToken(state, local.token), local.ca_pem, insecure=False)


def _local(state: StateDir) -> LocalCredentials | None:
    try:
        return find_local_credentials(state)
    except HeadUnavailable:
        return None


def _read_ca(path: str | os.PathLike[str]) -> bytes:
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigError(f"the CA file {os.fspath(path)!r} cannot be read: {error}") from None
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise ConfigError(f"the CA file {os.fspath(path)!r} is not a PEM certificate")
    return content
