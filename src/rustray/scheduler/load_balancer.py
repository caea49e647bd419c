"""The load balancer: which worker takes the next tasks of a class.

The scheduler keeps one `LoadBalancer`, tells it which workers there are and when
their load changes, and asks it to `LoadBalancer.pick`. The rule behind the answer is
a `Strategy`, chosen by name in the configuration. Whether a worker *can* take a task
is not decided here: the request brings that along as its ``room``.

Pure: no clock, no I/O; strategies that draw lots do so from a seed.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Final

from rustray.scheduler.candidates import PlacementRequest, Strategy, WorkerLoad
from rustray.scheduler.strategies import (
    BinPack,
    LeastLoaded,
    LocalityAware,
    PowerOfTwoChoices,
    Random,
    RoundRobin,
    Spread,
    WeightedRoundRobin,
)

__all__ = ["STRATEGIES", "LoadBalancer", "PlacementRequest", "Strategy", "WorkerLoad"]

STRATEGIES: Final[dict[str, type[Strategy]]] = {
    strategy.name: strategy
    for strategy in (
        LeastLoaded,
        RoundRobin,
        Random,
        WeightedRoundRobin,
        PowerOfTwoChoices,
        BinPack,
        Spread,
        LocalityAware,
    )
}
"""The strategies by the name that ``[scheduler] strategy`` takes; the first is the default."""


class LoadBalancer:
    """Chooses workers by the strategy of a given name.

    Attributes:
        strategy: The strategy at work.

    Raises:
        ValueError: there is no strategy of that name; the message lists them.
    """

    __slots__ = ("strategy",)

    def __init__(self, name: str = LeastLoaded.name, *, seed: int = 0) -> None:
        found = STRATEGIES.get(name)
        if found is None:
            raise ValueError(_unknown(name))
        self.strategy: Strategy = found(seed)

    def __len__(self) -> int:
        """Count the candidates."""
        return len(self.strategy)

    def add(self, worker: WorkerLoad) -> None:
        """Make a worker a candidate.

        Raises:
            InvariantError: its ``order`` is taken, or its weight is not above 0.
        """
        self.strategy.add(worker)

    def remove(self, worker: WorkerLoad) -> None:
        """Drop a candidate; nothing happens where it is none."""
        self.strategy.remove(worker)

    def changed(self, worker: WorkerLoad) -> None:
        """Note that the load or the room of a worker changed."""
        self.strategy.changed(worker)

    def pick(self, request: PlacementRequest) -> tuple[WorkerLoad, int] | None:
        """Choose a worker and how many tasks it gets, as `Strategy.pick` says."""
        return self.strategy.pick(request)


def _unknown(name: object) -> str:
    plain = {_plain(known): known for known in STRATEGIES}
    near = get_close_matches(_plain(str(name)), plain, n=1, cutoff=0.5)
    hint = f"did you mean {plain[near[0]]!r}? " if near else ""
    return f"unknown strategy {name!r:.80}: {hint}There are {', '.join(STRATEGIES)}"


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
