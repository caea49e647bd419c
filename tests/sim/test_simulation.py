"""Seeded histories of the real cores over a bad network."""

from __future__ import annotations

import math
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from random import Random

import pytest

from helpers.simulation import RandomHistory, make_cluster, run_histories, run_history, work
from rustray.common.errors import InvariantError
from rustray.testing import SimCluster, seeds
from rustray.worker import dispatch, exclusive

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


@pytest.mark.parametrize("seed", range(12))
def test_tasks_that_wait_for_others(seed: int) -> None:
    """They give back their cores and get them again, and every promise holds, whatever breaks."""
    history = RandomHistory(seed, waits=0.4)
    with history.cluster:
        history.run()


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


def run_exclusive(seed: int) -> SimCluster:
    """Run long exclusive tasks while workers are cut off, crash, and are drained."""
    with make_cluster(seed) as cluster:

        def duration(number: int) -> float:
            return 1.0 + Random(f"{seed}/{number}").random() * 30.0

        endless = {"max_retries": -1, "crash_limit": -1}
        hold = cluster.remote(work, takes_s=duration, exclusive=True, **endless)
        cluster.network(delay_s=(0.0001, cluster.random.choice([0.002, 0.3])))
        faults = ("partition", "one_way", "partition", "crash_head", "pause_head", "kill_executor")
        cluster.chaos(90.0, every_s=5.0, faults=faults)
        tasks = hold.map(range(10))
        cluster.advance(90.0)
        cluster.settle(3_000.0)
        assert [task.result() for task in tasks] == list(map(work, range(10)))
    return cluster


@pytest.mark.parametrize("seed", range(40))
def test_attempts_of_an_exclusive_task_never_overlap(seed: int) -> None:
    """I7: `SimCluster` looks at each start whether an earlier attempt still runs somewhere."""
    cluster = run_exclusive(seed)
    assert [entry for entry in cluster.history if entry.event == "started"]


def test_a_worker_that_does_not_stop_exclusive_tasks_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The histories above would show it: without the stop, attempts do overlap."""
    monkeypatch.setattr(exclusive, "stop_if_due", lambda state, now: None)
    monkeypatch.setattr(exclusive, "next_deadline", lambda state: math.inf)
    monkeypatch.setattr(dispatch, "guard", lambda state, executor, lease: None)
    overlaps = 0
    for seed in range(12):
        try:
            run_exclusive(seed)
        except InvariantError as error:
            overlaps += "is exclusive, and runs on" in str(error)
    assert overlaps
