"""When a session hands in again what the head has refused for the time being.

After a refusal with a hint nothing is handed in for that time and some more, drawn by lot, so that
many clients do not come back at the same moment. Then one frame goes as a probe; when it is
accepted, the rest follows. All of it happens under the same task ids, so that nothing runs twice.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Final

from rustray.task.frames import HeadFrame, Rejection, Submission

logger = logging.getLogger("rustray.client")

PATIENCE_S: Final = 600.0
"""How long a session is refused, without one task accepted, before its tasks fail."""
BACKOFF_FIRST_S: Final = 0.5
BACKOFF_CAP_S: Final = 30.0


class Throttle:
    """Belongs to the loop thread, but for `is_on`."""

    def __init__(
        self,
        wake_after: Callable[[float], None] | None,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Let everything pass.

        Args:
            wake_after: Has the session asked for frames again, so many seconds from now. None: no
                refusal is for the time being.
            patience_s: See `PATIENCE_S`.
            clock: Monotonic seconds.
            draw: A number from 0 to 1.
        """
        self._wake_after = wake_after
        self._patience_s = patience_s
        self._clock = clock
        self._draw = draw
        self._attempt = 0
        self._since_s = 0.0
        self._until_s = 0.0
        self._probe: int | None = None
        self._has_told = False
        self.is_on = False
        self.must_requeue = False

    def is_waiting(self) -> bool:
        """Whether nothing may be handed in now."""
        return self.is_on and (self._probe is not None or self._clock() < self._until_s)

    def take(self, frame: HeadFrame) -> bool:
        """Learn what the head says, and take out what it refuses for the time being.

        Returns:
            Whether something may be handed in again that had to wait before.
        """
        was_waiting = self.is_waiting()
        if self.is_on:
            self.hear(frame)
        if frame.rejected:
            frame.rejected = [
                one for one in frame.rejected if one.retry_after_s <= 0 or not self.refuse(one)
            ]
            if self._probe is not None:
                self._end_probe(frame.rejected)
        return was_waiting and not self.is_waiting()

    def note_sent(self, submissions: list[Submission]) -> None:
        """Take what has just been handed in for the probe, if it is time for one."""
        if self.is_on and submissions:
            self._probe = submissions[0].first

    def forget_probe(self) -> None:
        """The stream is new: what was under way is handed in again."""
        self._probe = None

    def refuse(self, refusal: Rejection) -> bool:
        """Wait, for tasks were refused for the time being; False if patience is at its end."""
        if self._wake_after is None:
            return False
        now = self._clock()
        if not self.is_on:
            self.is_on = True
            self._since_s, self._attempt = now, 0
            self._tell(refusal)
        elif now - self._since_s > self._patience_s:
            self._probe = None
            return False
        self.must_requeue = True
        if self._probe is None and now < self._until_s:
            return True  # one more that was under way when the first was refused
        self._probe = None
        cap_s = min(BACKOFF_CAP_S, BACKOFF_FIRST_S * 2**self._attempt)
        self._attempt = min(self._attempt + 1, 16)
        wait_s = refusal.retry_after_s + self._draw() * cap_s
        self._until_s = now + wait_s
        self._wake_after(wait_s)
        return True

    def hear(self, frame: HeadFrame) -> bool:
        """Let everything pass again if the probe was accepted; whether it was."""
        probe = self._probe
        if probe is None:
            return False
        ranges = [(one.first, one.count) for one in frame.accepted]
        ranges += [(one.first, len(one.payloads)) for one in frame.outcomes]
        if not any(first <= probe < first + count for first, count in ranges):
            return False
        self.is_on, self._probe = False, None
        logger.info("the head takes tasks again after %.1f s", self._clock() - self._since_s)
        return True

    def _end_probe(self, final: list[Rejection]) -> None:
        """Make the next frame the probe if this one was refused for good: no other answer comes."""
        probe = self._probe
        if probe is not None and any(one.first <= probe < one.first + one.count for one in final):
            self._probe = None

    def _tell(self, refusal: Rejection) -> None:
        if not self._has_told:
            self._has_told = True
            logger.warning(
                "the head takes no more tasks for now, so they wait here and are handed in again, "
                "for up to %g s without one accepted: %s", self._patience_s, refusal.message,
            )  # fmt: skip
