"""Seeded histories of the real cores over a bad network."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from helpers.simulation import RandomHistory, run_histories, run_history
from rustray.testing import seeds

SEEDS_FILE = Path(__file__).with_name("regressions.txt")
FOUND_SEEDS = [
    int(line.partition("#")[0])
    for line in SEEDS_FILE.read_text(encoding="utf-8").splitlines()
    if line.partition("#")[0].strip()
]
DEFAULT_SEEDS = 60
ALONE = 100
"""So many seeds run in this process; more are shared out."""


@pytest.mark.parametrize("seed", FOUND_SEEDS)
def test_a_seed_that_once_failed(seed: int) -> None:
    """A history that once broke a promise keeps it now."""
    run_history(seed)


@pytest.mark.timeout(0)
def test_every_task_ends_exactly_once(sim_seeds: int) -> None:
    """Whatever the network and the processes do, each accepted task ends once, with its result.

    ``make sim SEEDS=10000`` tries more, on all cores; a seed that fails belongs into
    regressions.txt.
    """
    chosen = seeds(sim_seeds or DEFAULT_SEEDS)
    if len(chosen) <= ALONE:
        run_histories(chosen)
        return
    chunks = [chosen[at : at + ALONE] for at in range(0, len(chosen), ALONE)]
    began = time.monotonic()
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        events = sum(pool.map(run_histories, chunks))
    seconds = time.monotonic() - began
    print(f"{len(chosen)} seeds, {events} events: {seconds:.0f} s")


def test_a_simulation_repeats_exactly() -> None:
    """The same seed gives the same history."""
    assert run_history(7).trace() == run_history(7).trace()


@pytest.mark.parametrize("seed", [*range(40), 49])
def test_a_head_that_dies_costs_no_run(seed: int) -> None:
    """However often and long the head is away: what was acked runs once, and is not lost."""
    history = RandomHistory(seed, tasks=150)
    unacked: set[int] = set()
    with history.cluster as cluster:

        def crash() -> None:
            if cluster.is_head_up:
                unacked.update(task.number for task in history.tasks if not task.is_accepted)
                cluster.crash_head()
                cluster.later(cluster.random.random() * 30.0, cluster.restart_head)

        history.plan(40.0, 30)
        for _ in range(4):
            cluster.later(cluster.random.random() * 60.0, crash)
        cluster.advance(100.0)
        cluster.settle()
        history.judge()
        assert {task.number for task in history.tasks if len(task.runs) > 1} <= unacked
