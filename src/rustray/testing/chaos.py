"""A nemesis: random faults, all of them drawn from the seed, each healed after a while."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final

from rustray.testing.controls import Controls

FAULTS: Final = (
    "crash_head",
    "crash_worker",
    "drain_worker",
    "kill_executor",
    "one_way",
    "partition",
    "pause_head",
    "pause_worker",
)
"""What `SimCluster.chaos` does, unless it is told to do less."""
LONGEST_S: Final = 25.0
LOOKS: Final = 20
"""How often it is looked whether a worker has left that was told to."""


class Nemesis:
    """Strikes at random times, and undoes what it did some time later."""

    def __init__(self, target: Controls, random: Random) -> None:
        self._target = target
        self._random = random

    def plan(self, duration_s: float, every_s: float, faults: Sequence[str]) -> None:
        """Arrange faults.

        Args:
            duration_s: The last comes before this.
            every_s: Mean time between two.
            faults: Kinds to choose from.

        Raises:
            ValueError: a kind is not known, or a time makes no sense.
        """
        unknown = sorted(set(faults) - set(FAULTS))
        if unknown or not faults:
            raise ValueError(f"unknown faults {unknown}; valid are: {', '.join(FAULTS)}")
        if duration_s <= 0 or every_s <= 0:
            raise ValueError("duration_s and every_s must be above 0 seconds")
        at_s = self._random.expovariate(1 / every_s)
        while at_s < duration_s:
            kind = self._random.choice(list(faults))
            self._target.later(at_s, self._strike, kind)
            at_s += self._random.expovariate(1 / every_s)

    def _strike(self, kind: str) -> None:
        target, random = self._target, self._random
        worker = random.choice(list(target.worker_names))
        undo_s = random.random() * LONGEST_S
        if kind == "crash_head" and target.is_head_up:
            target.crash_head()
            target.later(undo_s, self._restart_head)
        elif kind == "pause_head" and target.is_head_up:
            target.pause_head()
            target.later(undo_s, target.resume_head)
        elif kind in ("partition", "one_way"):
            ends = [worker, "head"]
            random.shuffle(ends)
            target.partition(*ends, one_way=kind == "one_way")
            target.later(undo_s, target.heal, *ends)
        elif target.is_worker_up(worker):
            self._strike_worker(kind, worker, undo_s)

    def _strike_worker(self, kind: str, worker: str, undo_s: float) -> None:
        target = self._target
        if kind == "crash_worker":
            target.crash_worker(worker)
            target.later(undo_s, self._restart_worker, worker)
        elif kind == "pause_worker":
            target.pause_worker(worker)
            target.later(undo_s, target.resume_worker, worker)
        elif kind == "kill_executor":
            target.kill_executor(worker)
        elif kind == "drain_worker" and target.is_head_up:
            target.drain_worker(worker)
            target.later(LONGEST_S, self._replace, worker, LOOKS)

    def _restart_head(self) -> None:
        if not self._target.is_head_up:
            self._target.restart_head()

    def _replace(self, name: str, looks: int) -> None:
        """Start a worker again once it has left; it may take its time, or hear of it late."""
        if not self._target.is_worker_up(name):
            self._target.restart_worker(name)
        elif looks:
            self._target.later(LONGEST_S, self._replace, name, looks - 1)

    def _restart_worker(self, name: str) -> None:
        if not self._target.is_worker_up(name):
            self._target.restart_worker(name)
