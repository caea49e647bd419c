"""When to try the head again: backoff with full jitter, for ever.

Pure: no clock and no randomness. The jitter is a hash of the worker's seed and the number
of the attempt, so a thousand workers spread out and a simulation repeats exactly.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

FIRST_CEILING_S: Final = 0.2
LAST_CEILING_S: Final = 10.0
LASTING_SESSION_S: Final = 5.0


class ReconnectManager:
    """Decides the pause before each attempt to reach the head.

    Attributes:
        attempts: Failures in a row, since a session last held.
    """

    def __init__(
        self,
        seed: str,
        *,
        first_ceiling_s: float = FIRST_CEILING_S,
        last_ceiling_s: float = LAST_CEILING_S,
        lasting_session_s: float = LASTING_SESSION_S,
    ) -> None:
        """Start with no failures.

        Args:
            seed: Differs between workers; their id does.
            first_ceiling_s: The first pause is between 0 and this; it doubles each time.
            last_ceiling_s: No pause is longer.
            lasting_session_s: A session that held so long counts as a success.
        """
        self._seed = seed.encode()
        self._first_ceiling_s = first_ceiling_s
        self._last_ceiling_s = last_ceiling_s
        self._lasting_session_s = lasting_session_s
        self._opened_at: float | None = None
        self._total = 0
        self.attempts = 0

    def session_opened(self, now: float) -> None:
        """Note that a session stands."""
        self._opened_at = now

    def pause_after_failure(self, now: float) -> float:
        """Say how many seconds to wait, after a session broke or could not be opened."""
        if self._opened_at is not None and now - self._opened_at >= self._lasting_session_s:
            self.attempts = 0
        self._opened_at = None
        ceiling = self.ceiling_s()
        self.attempts += 1
        self._total += 1
        digest = blake2b(b"%s/%d" % (self._seed, self._total), digest_size=8).digest()
        return ceiling * (int.from_bytes(digest, "big") / (1 << 64))

    def ceiling_s(self) -> float:
        """Return the longest that the next pause can be."""
        # The exponent is bounded, for a worker may try for years and floats overflow.
        doubled = self._first_ceiling_s * (1 << min(self.attempts, 30))
        return min(doubled, self._last_ceiling_s)
