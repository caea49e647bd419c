"""A state that comes and goes, told of no more often than somebody wants to read."""

from __future__ import annotations

import math


class Damper:
    """Says which changes of a state are to be told: pairs of them, with a pause between."""

    def __init__(self, pause_s: float) -> None:
        """Prepare.

        Args:
            pause_s: How long after its coming was told it is not told again.
        """
        self._pause_s = pause_s
        self._quiet_until = -math.inf
        self._is_told = False

    def tells(self, is_there: bool, now: float) -> bool:
        """Whether to tell that it has come, or gone; its going is told where its coming was."""
        if not is_there:
            was_told, self._is_told = self._is_told, False
            return was_told
        if now < self._quiet_until:
            return False
        self._quiet_until, self._is_told = now + self._pause_s, True
        return True
