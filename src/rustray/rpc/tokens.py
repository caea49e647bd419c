"""The access token of one connection, renewed before it ends."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from rustray.common.errors import RustRayError
from rustray.security.wall_clock import unix_s

logger = logging.getLogger("rustray.rpc")

RENEW_AT: Final = 0.67
"""Share of a token's life after which it is renewed."""
JITTER: Final = 0.1
LONGEST_SLEEP_S: Final = 300.0
"""A clock may be set, or the machine may sleep: look at it again after this time."""
RETRY_S: Final = 5.0


class TokenSource(Protocol):
    """Where a connection's token comes from."""

    def current(self) -> str:
        """Return the token, or "" for none; asked for each call, so it must be quick."""


@dataclass(frozen=True, slots=True, repr=False)
class StaticToken:
    """A token that is given once."""

    token: str

    def current(self) -> str:
        """Return the token."""
        return self.token


def token_life(token: str) -> tuple[float, float] | None:
    """Read (issued, expires), in seconds since 1970, out of a JWT without verifying it.

    Returns:
        None for what is not a JWT with both times.
    """
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        padded = parts[1] + "=" * (-len(parts[1]) % 4)
        claims = json.loads(base64.urlsafe_b64decode(padded))
        issued, expires = float(claims["iat"]), float(claims["exp"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return (issued, expires) if issued < expires else None


class TokenKeeper:
    """Holds the token of a connection and renews it at two thirds of its life."""

    def __init__(
        self,
        source: TokenSource,
        renew: Callable[[], Awaitable[str]],
        clock: Callable[[], float] = unix_s,
    ) -> None:
        """Hold a token.

        Args:
            source: Gives the first one; one that it changes to later replaces ours.
            renew: Asks the head for a fresh one.
            clock: Unix seconds.
        """
        self._source = source
        self._renew = renew
        self._clock = clock
        self._from = source.current()
        self._token = self._from
        # How far this clock is from that of whoever made the token: then its life is what counts.
        self._clock_ahead_s = 0.0
        self._task: asyncio.Task[None] | None = None
        self.listeners: set[Callable[[str], None]] = set()

    def current(self) -> str:
        """Return the token for the next call."""
        given = self._source.current()
        if given != self._from:
            self._from = self._token = given
            self._clock_ahead_s = 0.0
        return self._token

    def start(self) -> None:
        """Renew from now on, on the running loop."""
        if self._task is None and token_life(self.current()) is not None:
            self._task = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        """Renew no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _keep(self) -> None:
        share = RENEW_AT * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load
        while True:
            life = token_life(self.current())
            if life is None:
                return
            issued, expires = life
            # One that is from the future was made just now, by a clock that is ahead of this one.
            self._clock_ahead_s = min(self._clock_ahead_s, self._clock() - issued)
            wait_s = issued + share * (expires - issued) - self._head_clock()
            if wait_s > 0:
                await asyncio.sleep(min(wait_s, LONGEST_SLEEP_S))
                continue
            if not await self._renew_once():
                left_s = expires - self._head_clock()
                await asyncio.sleep(min(max(left_s / 10, 0.1), RETRY_S))

    def _head_clock(self) -> float:
        return self._clock() - self._clock_ahead_s

    async def _renew_once(self) -> bool:
        before = self.current()
        try:
            fresh = await self._renew()
        except RustRayError as error:
            logger.warning("the access token could not be renewed yet: %s", error)
            return False
        life = token_life(fresh)
        if life == token_life(before):
            return False  # as good as none: wait as after a failure
        if self.current() == before:
            self._token = fresh
            self._clock_ahead_s = self._clock() - life[0] if life is not None else 0.0
            for listener in list(self.listeners):
                listener(fresh)
        return True
