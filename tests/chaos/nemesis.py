"""Chooses faults by a seed, and ends them when their time is up.

Each step draws from a random source of its own, so that what the cluster happens to do does not
change what comes later: the same seed gives the same plan, as far as there is a victim for it.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from chaos.faults import Kind
from chaos.world import World

_TICK_S: Final = 0.1
_PAUSES: Final = (0.2, 2.0)


class Nemesis:
    """The faults of one run.

    Attributes:
        counts: How often each fault struck.
        skipped: Faults that cannot be had here, with the reason.
    """

    def __init__(
        self,
        world: World,
        seed: int,
        mix: Sequence[Kind],
        pause: Callable[[float], bool],
        say: Callable[[str], None],
    ) -> None:
        """Prepare.

        Args:
            world: Whom to strike.
            seed: Of the plan.
            mix: What to choose from.
            pause: Waits so many seconds; True if the run is to end.
            say: Prints a line of the timeline.
        """
        self._world, self._seed, self._pause, self._say = world, seed, pause, say
        self._order = itertools.count()
        self._ends: list[tuple[float, int, Callable[[], None]]] = []
        self._steps = itertools.count()
        self.counts: Counter[str] = Counter()
        self.skipped: dict[str, str] = {}
        self._mix = [kind for kind in mix if self._is_there(kind)]

    def _is_there(self, kind: Kind) -> bool:
        shim_missing = self._world.head_shim.missing
        reason = ""
        if kind.needs == "shim" and shim_missing:
            reason = shim_missing
        elif kind.needs == "no shim" and not shim_missing:
            return False  # its better twin is there
        elif kind.needs == "namespace" and not self._world.spaces.is_real:
            reason = "no network namespaces of the run's own"
        if reason:
            self.skipped[kind.name] = reason
        return not reason

    def run(self, until: Callable[[], bool]) -> None:
        """Strike until it is time, or the run is to end."""
        next_at = time.monotonic()
        while not until():
            if time.monotonic() >= next_at:
                next_at = time.monotonic() + self._strike()
            if self.tick():
                return

    def tick(self) -> bool:
        """Wait for a moment, end what is due, look after the processes; True to end the run."""
        is_over = self._pause(_TICK_S)
        while self._ends and self._ends[0][0] <= time.monotonic():
            heapq.heappop(self._ends)[2]()
        self._world.look_after()
        return is_over

    def strike_with(self, kind: Kind, random: Random) -> bool:
        """Let one fault strike, if it finds a victim."""
        strike = kind.fault(self._world, random)
        if strike is None:
            return False
        self.counts[kind.name] += 1
        self._say(strike.text)
        if strike.end is not None:
            due = time.monotonic() + strike.lasts_s
            heapq.heappush(self._ends, (due, next(self._order), strike.end))
        return True

    def finish(self) -> None:
        """End every fault."""
        while self._ends:
            heapq.heappop(self._ends)[2]()
        self._world.heal()

    def _strike(self) -> float:
        random = Random(f"{self._seed}/{next(self._steps)}")
        pause_s = random.uniform(*_PAUSES)
        [kind] = random.choices(self._mix, [kind.weight for kind in self._mix])
        self.strike_with(kind, random)
        return pause_s
