"""Chains on `SimCluster`: each link begins where the one before has ended, whatever breaks."""

from __future__ import annotations

from typing import Any

import pytest

from rustray.common.errors import RustRayError, TaskCancelled
from rustray.task.state import TaskState
from rustray.testing import FAULTS, SimCluster, SimTask

LONG_WAY_S = 0.05


def step(value: int) -> int:
    """Do a link's work."""
    return value + 1


def chain(function: Any, links: int) -> list[SimTask]:
    """Hand in tasks of which each takes the result of the one before."""
    tasks = [function.remote(0)]
    while len(tasks) < links:
        tasks.append(function.remote(tasks[-1]))
    return tasks


def workers_of(tasks: list[SimTask]) -> set[str]:
    """Return where tasks ran."""
    return {run.worker for task in tasks for run in task.runs}


def test_a_chain_costs_no_round_trip_for_each_link() -> None:
    """It stays with one worker, though another one is idle."""
    with SimCluster(1, workers=2, commit_s=0.0) as cluster:
        cluster.network(delay_s=(LONG_WAY_S, LONG_WAY_S))
        tasks = chain(cluster.remote(step, takes_s=0.001), 500)
        began = cluster.now
        assert tasks[-1].result() == 500
        assert cluster.now - began < 500 * LONG_WAY_S / 5
        assert len(workers_of(tasks[2:60])) == 1
        assert all(len(task.runs) == 1 for task in tasks)


def test_other_work_finds_room_beside_a_chain() -> None:
    """What follows holds no slot: a task of another function begins at once on the second core."""
    with SimCluster(1, workers={"w": 2.0}) as cluster:
        tasks = chain(cluster.remote(step, takes_s=1.0), 20)
        cluster.run_until(lambda: tasks[2].is_running)
        other = cluster.remote(step, takes_s=0.1, priority=-1).remote(1)
        assert other.result(within_s=1.0) == 2
        assert tasks[-1].result() == 20


def test_a_chain_ends_with_a_link_that_fails() -> None:
    """What follows it never begins, and says why."""

    def fails_at_ten(value: int) -> int:
        if value == 10:
            raise ValueError("ten")
        return value + 1

    with SimCluster(1, workers=1) as cluster:
        tasks = chain(cluster.remote(fails_at_ten, takes_s=0.001), 40)
        cluster.settle()
        for task in tasks[10:]:
            assert task.state is TaskState.FAILED
            assert "ten" in str(task.error)
        assert all(not task.runs for task in tasks[11:])


def test_a_link_that_is_cancelled_takes_those_after_it_along() -> None:
    """Also what its worker has already, by force or not."""
    for force in (False, True):
        with SimCluster(1, workers=2) as cluster:
            tasks = chain(cluster.remote(step, takes_s=1.0), 20)
            cluster.run_until(lambda: tasks[5].is_running)  # noqa: B023 - called at once
            tasks[5].cancel(force=force)
            tasks[12].cancel(force=force)
            cluster.settle()
            assert tasks[4].result() == 5
            for task in tasks[5:]:
                assert isinstance(task.error, TaskCancelled)
            assert all(not task.runs for task in tasks[7:])


def test_a_worker_that_drains_gives_the_rest_of_its_chains_back() -> None:
    """Another one goes on with them; no link runs twice."""
    with SimCluster(1, workers=2) as cluster:
        tasks = chain(cluster.remote(step, takes_s=0.1), 30)
        cluster.run_until(lambda: tasks[7].is_running)
        cluster.drain_worker(tasks[7].worker)
        assert tasks[-1].result() == 30
        assert all(len(task.runs) == 1 for task in tasks)


@pytest.mark.parametrize("seed", range(30))
def test_chains_keep_every_promise_whatever_breaks(seed: int) -> None:
    """Heads and workers die, links are cancelled, and each value is one of the link before."""
    stay_bytes = 1 if seed % 3 == 0 else 100_000  # of a third all results are large ones
    workers = {"a": 1.0, "b": 2.0, "c": 1.0}
    with SimCluster(seed, workers=workers, check_every=10, stay_bytes=stay_bytes) as cluster:
        random = cluster.random
        cluster.network(
            drop=random.choice([0.0, 0.02]),
            duplicate=random.choice([0.0, 0.05]),
            delay_s=(0.0001, random.choice([0.002, 0.2])),
        )
        work = cluster.remote(
            step, takes_s=random.choice([0.0001, 0.001, 0.05, 0.3]), max_retries=-1, crash_limit=-1
        )
        cluster.chaos(20.0, every_s=2.0, faults=FAULTS)
        tasks: list[SimTask] = []

        def hand_in(links: int) -> None:
            tasks.extend(chain(work, links))

        def cancel_one() -> None:
            if tasks:
                random.choice(tasks).cancel(force=random.random() < 0.5)

        for _ in range(6):
            cluster.later(random.random() * 15.0, hand_in, random.randint(2, 60))
        for _ in range(4):
            at_s = random.random() * 20.0
            cluster.later(at_s, cancel_one)
        cluster.advance(20.0)
        cluster.settle()
        for task in tasks:
            error: RustRayError | None = task.error
            assert error is None or isinstance(error, TaskCancelled)
