"""Who calls: the token of a call or a stream, judged before any of its body is read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from rustray.common.errors import AuthenticationError, RustRayError
from rustray.security.auth import token_from_authorization
from rustray.security.object_tokens import named_object, object_audience
from rustray.security.roles import FETCH_OBJECT, SCOPE_CODE, Caller, Role, authorize
from rustray.security.wall_clock import WallClock, unix_s

logger = logging.getLogger("rustray.rpc")

STREAM_GRACE_S: Final = 30.0
"""How long a stream outlives its token, so that a renewed one can arrive."""
ANYBODY: Final = Caller("user:anybody", Role.ADMIN, frozenset({SCOPE_CODE}), float("inf"), "")
"""The caller of a node that runs without authentication (loopback only)."""


class Authenticator(Protocol):
    """Judges tokens; `rustray.security.auth.AuthManager` is one."""

    def verify(self, token: str | None, now_unix_s: float, audience: str, /) -> Caller:
        """Return whose token it is.

        Args:
            token: From a peer; None if it sent none.
            now_unix_s: Wall clock.
            audience: Kind of node that this one is, "head" or "worker"; or "object:<id>".

        Raises:
            AuthenticationError: it is not good.
        """


@dataclass(frozen=True, slots=True)
class Guard:
    """Decides who may call this node: its verifier, audience and clock.

    Attributes:
        auth: None where the node runs without authentication.
        audience: Kind of node that this one is.
        clock: Unix seconds; see `rustray.security.wall_clock`.
    """

    auth: Authenticator | None
    audience: str
    clock: Callable[[], float] = unix_s

    def admit(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """Return the caller of a method, from the metadata of its call.

        Raises:
            AuthenticationError: no token, or none that is good.
            AuthorizationError: the token's holder may not call it.
        """
        if self.auth is None:
            return ANYBODY
        metadata = list(metadata)
        values = [value for key, value in metadata if key == "authorization"]
        token = token_from_authorization(values)
        audience = object_audience(named_object(metadata)) if method == FETCH_OBJECT else None
        caller = self.verify_token(token, audience)
        authorize(caller, method)
        return caller

    def verify_token(self, token: str, audience: str | None = None) -> Caller:
        """Return whose token it is.

        Args:
            token: From a peer.
            audience: What it has to be for; None: this node.

        Raises:
            AuthenticationError: it is not good.
        """
        first: RustRayError | None = None
        for now in self.moments():
            try:
                return self._verify(token, now, self.audience if audience is None else audience)
            except RustRayError as error:
                first = first or error
        assert first is not None
        raise first

    def moments(self) -> tuple[float, ...]:
        """Return the times that it may be, the likeliest first."""
        clock = self.clock
        return clock.moments() if isinstance(clock, WallClock) else (clock(),)

    def _verify(self, token: str, now_unix_s: float, audience: str) -> Caller:
        assert self.auth is not None
        try:
            return self.auth.verify(token, now_unix_s, audience)
        except RustRayError:
            raise
        except Exception:  # of whatever class: a token that breaks the verifier is not good
            logger.exception("the check of a token failed")
            raise AuthenticationError("the access token is not valid") from None


class StreamPass:
    """What lets a stream go on: it ends `STREAM_GRACE_S` after its token unless renewed."""

    def __init__(self, guard: Guard, caller: Caller, method: str) -> None:
        self._guard = guard
        self._caller = caller
        self._method = method

    def renew(self, token: str) -> None:
        """Take the token that the peer sent on the stream.

        Raises:
            AuthenticationError: it is not good, or somebody else's.
            AuthorizationError: its holder may not keep this stream.
        """
        if self._guard.auth is None:
            return
        caller = self._guard.verify_token(token)
        if caller.subject != self._caller.subject:
            raise AuthenticationError("the renewed token belongs to another subject")
        authorize(caller, self._method)
        self._caller = caller

    def left_s(self) -> float:
        """Return how long the stream may go on, in seconds."""
        until = self._caller.expires_unix_s + STREAM_GRACE_S
        left = [until - moment for moment in self._guard.moments()]
        return left[0] if left[0] > 0 else max(left)
