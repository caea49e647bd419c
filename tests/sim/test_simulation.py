"""Seeded histories of the real cores over a bad network."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.simulation import Simulation

SEEDS_FILE = Path(__file__).with_name("regressions.txt")
FOUND_SEEDS = [
    int(line.partition("#")[0])
    for line in SEEDS_FILE.read_text(encoding="utf-8").splitlines()
    if line.partition("#")[0].strip()
]
DEFAULT_SEEDS = 60


@pytest.mark.parametrize("seed", FOUND_SEEDS)
def test_a_seed_that_once_failed(seed: int) -> None:
    """A history that once broke a promise keeps it now."""
    Simulation(seed).run()


@pytest.mark.timeout(0)
def test_every_task_ends_exactly_once(sim_seeds: int) -> None:
    """Whatever the network and the workers do, each accepted task ends once, with its result.

    ``make sim SEEDS=2000`` tries more; a seed that fails belongs into regressions.txt.
    """
    for seed in range(sim_seeds or DEFAULT_SEEDS):
        try:
            Simulation(seed).run()
        except Exception as error:
            raise AssertionError(f"seed {seed} fails: {error}") from error


def test_a_simulation_repeats_exactly() -> None:
    """The same seed gives the same history."""

    def history(seed: int) -> tuple[object, ...]:
        sim = Simulation(seed)
        sim.run()
        return (sim.seen, sim.runs, sorted(sim.client.ends.items()))

    assert history(7) == history(7)
