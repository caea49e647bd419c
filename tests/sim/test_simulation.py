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


@pytest.mark.parametrize("seed", [*range(40), 49])
def test_a_head_that_dies_costs_no_run(seed: int) -> None:
    """However often and long the head is away: what was acked runs once, and is not lost."""
    sim = Simulation(seed, tasks=150)
    sim.commit_s = 0.01
    sim.faults.delay_s = 0.0  # in order, as a real stream: nothing but the head breaks a session
    first = 0
    while first < sim.tasks:
        size = min(sim.random.randint(1, 30), sim.tasks - first)
        sim.loop.call_at(sim.loop.now + sim.random.random() * 40.0, sim._submit, first, size)
        first += size
    for _ in range(4):
        sim.loop.call_at(sim.loop.now + sim.random.random() * 60.0, sim.kill_head)
    sim.loop.run_until(sim.loop.now + 300.0, sim._after_each)
    sim.check_end()
    assert {n for n, runs in sim.runs.items() if runs > 1} <= sim.unacked
