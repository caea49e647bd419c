"""Seeded histories of the real cores over a bad network."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.simulation import Simulation

SEEDS_FILE = Path(__file__).with_name("regressions.txt")
FOUND_SEEDS = [
    int(line.split("#")[0])
    for line in SEEDS_FILE.read_text().splitlines()
    if line.split("#")[0].strip()
]


@pytest.mark.parametrize("seed", FOUND_SEEDS)
def test_a_seed_that_once_failed(seed: int) -> None:
    """A history that once broke a promise keeps it now."""
    Simulation(seed).run()


@pytest.mark.parametrize("seed", range(40))
def test_every_task_ends_exactly_once(seed: int) -> None:
    """Whatever the network and the workers do, each accepted task ends once, with its result.

    Replay one with ``make sim SEEDS=1 FIRST=<seed>``.
    """
    Simulation(seed).run()


def test_a_simulation_repeats_exactly() -> None:
    """The same seed gives the same history."""

    def history(seed: int) -> tuple[object, ...]:
        sim = Simulation(seed)
        sim.run()
        return (sim.seen, sim.runs, sorted(sim.client.ends.items()))

    assert history(7) == history(7)
