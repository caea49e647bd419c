"""How a command that waits puts up with a head that is away: it says so, and goes on waiting."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from rustray.cli.call import Call
from rustray.cli.output import Output
from rustray.common.errors import GetTimeout, HeadUnavailable
from rustray.rpc.api import HeadApi

T = TypeVar("T")

OUTAGE_S: Final = 60.0
"""How long a command without --timeout waits for a head: a restart takes less."""
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 2.0
_GRACE_S: Final = 0.5
"""What a head may take beyond the limit to say that the task has not ended."""


class Patience:
    """The limits of one waiting command.

    Attributes:
        timeout_s: What the user said, or None.
    """

    def __init__(
        self,
        output: Output,
        timeout_s: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to wait.

        Args:
            output: Where to say that the head is away.
            timeout_s: Limit of the whole command; None: none, but for each outage.
            clock: Monotonic seconds.
        """
        self.timeout_s = timeout_s
        self._output = output
        self._clock = clock
        self._started = self._heard_at = clock()
        self._pause_s = _FIRST_PAUSE_S
        self._is_told = False

    def left_s(self) -> float | None:
        """Return how long there is left of the user's limit; None for no limit."""
        if self.timeout_s is None:
            return None
        return max(self.timeout_s - (self._clock() - self._started), 0.0)

    def heard(self) -> None:
        """Note that the head has answered."""
        if self._is_told:
            self._output.note("the head is back")
        self._heard_at = self._clock()
        self._pause_s = _FIRST_PAUSE_S
        self._is_told = False

    async def endure(self, error: HeadUnavailable) -> None:
        """Pause before another try.

        Raises:
            HeadUnavailable: it has lasted too long; the error that was given.
        """
        left_s = self.left_s()
        if left_s is None:
            left_s = OUTAGE_S - (self._clock() - self._heard_at)
        if left_s <= 0.0:
            raise error
        if not self._is_told:
            self._output.note(f"{error}; waiting up to {left_s:.0f} s for it (Ctrl-C ends that)")
            self._is_told = True
        pause_s = self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        await asyncio.sleep(min(pause_s, left_s))


async def with_head(call: Call, patience: Patience, use: Callable[[HeadApi], Awaitable[T]]) -> T:
    """Do something with the head, again from the start if it goes away meanwhile.

    Args:
        call: How to connect; each time anew, for a head may come back at another port.
        patience: Its limits.
        use: What to do; doing it twice must be the same as doing it once.

    Raises:
        HeadUnavailable: there was none for too long.
        RustRayError: as ``use``.
    """
    while True:
        left_s = patience.left_s()
        try:
            async with asyncio.timeout(None if left_s is None else left_s + _GRACE_S):
                async with call.head() as api:
                    patience.heard()
                    return await use(api)
        except HeadUnavailable as error:
            await patience.endure(error)
        except GetTimeout:
            raise
        except TimeoutError:
            raise HeadUnavailable(
                f"no head has answered within {patience.timeout_s:g} s (--timeout)"
            ) from None
