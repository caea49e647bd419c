"""How commands on the head's own machine get in without a flag, and tokens from elsewhere.

Whoever can read the state directory is its owner (`StateDir` sees to that), so what lies in it
is a proof of who asks.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from rustray.common.errors import ConfigError, HeadUnavailable
from rustray.security.auth import AuthManager
from rustray.security.bind import is_unspecified, join_host_port, split_host_port
from rustray.security.join import JoinString, check_address
from rustray.security.roles import Role
from rustray.security.state_dir import (
    ADMIN_TOKEN,
    CA_CERTIFICATE,
    HEAD_ADDRESS,
    WORKER_JOIN,
    StateDir,
    read_up_to,
)

TOKEN_FILE_VARIABLE: Final = "RUSTRAY_TOKEN_FILE"  # noqa: S105 - a variable's name
TOKEN_VARIABLE: Final = "RUSTRAY_TOKEN"  # noqa: S105 - a variable's name
MAX_TOKEN_FILE_BYTES: Final = 65_536

_REPUBLISH_RATIO: Final = 0.5
"""A command that has just read its token still has half of its life left."""
_BYTE_ORDER_MARKS: Final = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class LocalCredentials:
    """What a command on the head's machine needs.

    Attributes:
        address: ``host:port`` of the head.
        ca_pem: The authority that its certificate is from.
        token: An admin's access token.
    """

    address: str
    ca_pem: bytes
    token: str = field(repr=False)


def publish_local_credentials(
    state: StateDir, auth: AuthManager, address: str, now_unix_s: float
) -> float:
    """Write what `find_local_credentials` and `find_local_join` find.

    Args:
        state: Checked, and locked by this process; has the authority's certificate.
        auth: Mints the tokens.
        address: ``host:port`` where the head listens; an unspecified host becomes loopback.
        now_unix_s: Wall clock.

    Returns:
        When to call this again, in unix seconds: before the tokens expire.

    Raises:
        ConfigError: a file cannot be written, or the address is none.
    """
    host, port = split_host_port(address)
    if is_unspecified(host):
        host = "::1" if ":" in host else "127.0.0.1"
    local = join_host_port(host, port)
    check_address(local)
    ca_pem = state.read_secret(CA_CERTIFICATE)
    admin = auth.mint(Role.ADMIN, "user:local-admin", now_unix_s, allow_code=True)
    worker = auth.mint(Role.WORKER, "worker:local", now_unix_s)
    join = JoinString.from_pem(local, ca_pem, worker)
    state.write_secret(ADMIN_TOKEN, f"{admin}\n".encode("ascii"))
    state.write_secret(WORKER_JOIN, f"{join.encode()}\n".encode("ascii"))
    # Last: who finds an address finds the rest as well.
    state.write_secret(HEAD_ADDRESS, f"{local}\n".encode("ascii"))
    return now_unix_s + auth.default_ttl_s * _REPUBLISH_RATIO


def withdraw_local_credentials(state: StateDir) -> None:
    """Remove what `publish_local_credentials` wrote; for a head that stops in good order.

    Raises:
        ConfigError: a file cannot be removed.
    """
    for name in (HEAD_ADDRESS, WORKER_JOIN, ADMIN_TOKEN):
        state.remove(name)


def find_local_credentials(state: StateDir) -> LocalCredentials:
    """Return how to reach the head of this state directory, as its admin.

    Raises:
        HeadUnavailable: no head runs with it.
        ConfigError: the directory or a file in it is damaged or unsafe.
    """
    address = _read_line(state, HEAD_ADDRESS)
    check_address(address)
    ca_pem = state.read_secret(CA_CERTIFICATE)
    return LocalCredentials(address, ca_pem, _read_line(state, ADMIN_TOKEN))


def find_local_join(state: StateDir) -> JoinString:
    """Return how a worker on this machine joins the head of this state directory.

    Raises:
        HeadUnavailable: no head runs with it.
        ConfigError: the directory or a file in it is damaged or unsafe.
    """
    return JoinString.parse(_read_line(state, WORKER_JOIN))


def token_from_environment(environ: Mapping[str, str]) -> str | None:
    """Return the token that the environment names, or None if it names none.

    ``RUSTRAY_TOKEN_FILE`` (a path) goes before ``RUSTRAY_TOKEN`` (the token itself). One that is
    set and not usable is an error: to go on as somebody else would be a surprise.

    Raises:
        ConfigError: says which variable, what is wrong, and what to do. Never shows the token.
    """
    path = environ.get(TOKEN_FILE_VARIABLE)
    if path is not None:
        return _token_from_file(path)
    text = environ.get(TOKEN_VARIABLE)
    if text is None:
        return None
    return _check_token(os.fsencode(text), TOKEN_VARIABLE)


def _read_line(state: StateDir, name: str) -> str:
    if not state.exists():
        raise HeadUnavailable(_no_head(state))
    state.check()
    content = state.find_secret(name)
    if content is None:
        raise HeadUnavailable(_no_head(state))
    try:
        text = content.decode("ascii").removesuffix("\n")
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise ConfigError(
            f"{state.path / name} is empty or damaged; restart the head, which writes it again"
        )
    return text


def _no_head(state: StateDir) -> str:
    return (
        f"no head runs on this machine with the state directory {state.path}; start one with "
        "'rustray head', or name another with --head and RUSTRAY_TOKEN_FILE"
    )


def _token_from_file(path: str) -> str:
    origin = f"{TOKEN_FILE_VARIABLE}={path!r}"
    if not path:
        raise ConfigError(f"{TOKEN_FILE_VARIABLE} is set but empty: unset it, or name a file")
    try:
        # Not blocking: opening a FIFO that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{origin} cannot be read: {why}") from error
    try:
        _check_token_file(os.fstat(descriptor), origin)
        content = read_up_to(descriptor, MAX_TOKEN_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    return _check_token(content, origin)


def _check_token_file(found: os.stat_result, origin: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{origin} is not a regular file")
    if found.st_uid not in {os.geteuid(), 0}:
        raise ConfigError(f"{origin} belongs to another user (id {found.st_uid})")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(
            f"{origin} is open to other users (mode {stat.S_IMODE(found.st_mode):04o}); "
            "run: chmod 600 on it"
        )


def _check_token(content: bytes, origin: str) -> str:
    if len(content) > MAX_TOKEN_FILE_BYTES:
        raise ConfigError(f"{origin} has more than {MAX_TOKEN_FILE_BYTES} bytes: not a token")
    if content.startswith(_BYTE_ORDER_MARKS):
        raise ConfigError(f"{origin} begins with a byte order mark; save it as plain ASCII")
    line = content.removesuffix(b"\n")
    if line.endswith(b"\r"):
        raise ConfigError(f"{origin} has Windows line ends; save it with Unix ones")
    if not line.strip():
        raise ConfigError(f"{origin} is set but empty: no token in it")
    if any(not 0x21 <= byte <= 0x7E for byte in line):
        raise ConfigError(
            f"{origin} is not a token: it takes one line without spaces, of ASCII characters"
        )
    return line.decode("ascii")
