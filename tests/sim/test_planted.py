"""One history for each planted bug of tests/planted: the very moment at which it does harm."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count

import pytest

import rustray
from rustray.task.state import TaskState
from rustray.testing import SimCluster, SimTask, seeds
from rustray.testing.clock import START_S, WALL_OFFSET_S
from rustray.testing.history import SimNode

SLOW_DISK_S = 4.0
TRIES = 8
"""Seeds for each: whether a commit that was under way has reached the disk is drawn."""


def work(value: object = None) -> object:
    """Return the argument."""
    return value


def start(cluster: SimCluster, takes_s: float, **options: object) -> SimTask:
    """Hand in one task and wait until it runs."""
    task = cluster.remote(work, takes_s=takes_s, **options).remote()
    cluster.run_until(lambda: task.is_running)
    return task


def restart(cluster: SimCluster) -> None:
    """End the head, and start another one."""
    cluster.crash_head()
    cluster.advance(0.1)
    cluster.restart_head()


# -- B1, B5, B7: what was said is on the disk ----------------------------------


def test_what_is_accepted_survives_the_head() -> None:
    """B1: a head that is killed right after an ack has the task still."""
    for seed in seeds(TRIES):
        with SimCluster(seed, commit_s=SLOW_DISK_S) as cluster:
            task = cluster.remote(work, takes_s=30.0).remote()
            cluster.run_until(lambda: task.is_accepted)  # noqa: B023 - called at once
            restart(cluster)
            cluster.settle()


def test_a_result_that_was_acked_is_not_run_again() -> None:
    """B5: a worker keeps its result until the head has committed it."""
    for seed in seeds(TRIES):
        with SimCluster(seed, workers=1, commit_s=SLOW_DISK_S) as cluster:
            task = start(cluster, 10.0)
            cluster.run_until(lambda: not task.is_running)  # noqa: B023 - called at once
            cluster.advance(0.1)
            restart(cluster)
            cluster.settle()
            assert [run.end for run in task.runs] == ["returned"]


def test_an_end_that_was_told_stays() -> None:
    """B5: a head that is killed right after it has told an end knows it when it is back."""
    for seed in seeds(TRIES):
        with SimCluster(seed, commit_s=SLOW_DISK_S) as cluster:
            task = start(cluster, 10.0)
            cluster.run_until(lambda: task.is_done)  # noqa: B023 - called at once
            cluster.crash_worker(task.worker)
            restart(cluster)
            cluster.advance(60.0)
            assert len(task.runs) == 1


def test_a_task_that_is_handed_in_again_after_a_crash_runs_once() -> None:
    """B7: by its id the next head knows a task whose ack was lost."""
    for seed in seeds(TRIES):
        with SimCluster(seed, workers=1, commit_s=SLOW_DISK_S) as cluster:
            cluster.partition("head", "client", one_way=True)
            task = cluster.remote(work, takes_s=60.0).remote()
            cluster.advance(SLOW_DISK_S + 0.1)
            assert not task.is_accepted
            restart(cluster)
            cluster.settle()
            assert len(task.runs) == 1


def test_a_result_is_made_of_what_is_recorded_of_its_inputs() -> None:
    """G4: what a task has taken is not made anew, as another value, while it uses the old one."""
    sites = {name: SimNode(1.0, labels={"site": name}) for name in "ab"}
    for seed in seeds(TRIES):
        made = count()
        with SimCluster(seed, workers=sites, commit_s=SLOW_DISK_S, check_every=50) as cluster:
            make = cluster.remote(
                lambda made=made: next(made), takes_s=9.0, label_selector={"site": "a"}
            )
            take = cluster.remote(work, takes_s=9.0, label_selector={"site": "b"})
            maker = make.remote()
            taker = take.remote(maker)
            cluster.run_until(lambda: taker.is_running)  # noqa: B023 - called at once
            cluster.crash_worker("a")
            restart(cluster)
            cluster.add_worker("a again", sites["a"])
            assert taker.result() == maker.result()
            cluster.settle()


def test_a_chain_on_one_worker_waits_for_no_commit() -> None:
    """What a worker has made itself it may take at once: who loses the one loses the other."""
    with SimCluster(3, workers=1, commit_s=SLOW_DISK_S) as cluster:
        function = cluster.remote(work, takes_s=0.01)
        first = last = function.remote()
        for _ in range(20):
            last = function.remote(last)
        cluster.run_until(lambda: bool(last.runs))
        assert last.runs[0].started_at_s - first.runs[0].started_at_s < SLOW_DISK_S
        cluster.settle()


# -- B2, B4: attempts ----------------------------------


def test_a_late_report_changes_nothing() -> None:
    """B2: a failure that is told again does not end the attempt that runs elsewhere by then."""
    calls: Counter[str] = Counter()

    async def fails_once(name: str) -> str:
        calls[name] += 1
        if (name, calls[name]) == ("short", 1):
            raise ConnectionError(name)
        await asyncio.sleep(30.0)  # the task's work
        return name

    with SimCluster(1, workers={"w-0": 2.0}) as cluster:
        function = cluster.remote(
            fails_once, executor="process", max_retries=3, retry_exceptions=True, retry_delay_s=1.0
        )
        short, long = function.map(["short", "long"])
        cluster.run_until(lambda: short.runs and long.runs)
        cluster.partition("head", "w-0", one_way=True)  # the ack of the failure is lost
        cluster.add_worker("w-1", 2.0)
        cluster.run_until(lambda: len(short.runs) == 2)
        assert short.worker == "w-1"
        cluster.heal()
        cluster.settle()
        assert (len(short.runs), len(long.runs)) == (2, 1)


def test_a_second_run_is_another_attempt() -> None:
    """B4: what runs again after its worker was lost has a greater attempt number."""
    seen: list[int] = []

    def look() -> None:
        seen.append(rustray.context().attempt)

    with SimCluster(1) as cluster:
        task = cluster.remote(look, takes_s=5.0).remote()
        cluster.run_until(lambda: task.is_running)
        cluster.crash_worker(task.worker)
        task.result()
    assert seen == [1, 2]


def test_fences_grow_over_a_restart() -> None:
    """B4: also after head and worker have died together."""
    seen: list[int] = []

    def look() -> None:
        seen.append(rustray.context().fence)

    with SimCluster(1) as cluster:
        for _ in range(20):
            cluster.submit(work).result()
        task = cluster.remote(look, takes_s=30.0).remote()
        cluster.run_until(lambda: task.is_running and task.is_accepted)
        cluster.crash_worker(task.worker)
        restart(cluster)
        task.result()
    assert len(seen) == 2
    assert seen[0] < seen[1]


# -- B3: clocks ----------------------------------


class Wall:
    """The wall clock of the whole process, which may jump."""

    def __init__(self) -> None:
        self.cluster: SimCluster | None = None
        self.jump_s = 0.0

    def __call__(self) -> float:
        """Return Unix seconds."""
        now = START_S + WALL_OFFSET_S if self.cluster is None else self.cluster.unix_s
        return now + self.jump_s


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wall]:
    """Take the wall clock over."""
    clock = Wall()
    monkeypatch.setattr(time, "time", clock)
    yield clock
    monkeypatch.undo()


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_jump_of_the_wall_clock_ends_no_lease(wall: Wall, jump_s: float) -> None:
    """B3: workers keep what they have, whatever the time of day does."""
    with SimCluster(1) as cluster:
        wall.cluster = cluster
        task = start(cluster, 60.0, timeout_s=100.0)
        cluster.advance(5.0)
        wall.jump_s = jump_s
        task.result()
        assert len(task.runs) == 1


def test_a_clock_that_is_set_back_keeps_no_lease_alive(wall: Wall) -> None:
    """B3: a lost worker is given up in its time."""
    with SimCluster(1) as cluster:
        wall.cluster = cluster
        task = start(cluster, 60.0)
        wall.jump_s = -3600.0
        cluster.crash_worker(task.worker)
        cluster.run_until(lambda: len(task.runs) == 2, within_s=30.0)


# -- B6: cancels ----------------------------------


def test_a_confirmed_cancel_survives_the_head() -> None:
    """B6: the head dies, the worker that had the task as well, and the task is not run again."""
    with SimCluster(1) as cluster:
        task = start(cluster, 30.0)
        cluster.run_until(lambda: task.is_accepted)
        cluster.partition("head", task.worker)
        task.cancel()
        cluster.run_until(lambda: any(one.event == "cancel confirmed" for one in task.history))
        cluster.crash_worker(task.worker)
        restart(cluster)
        cluster.settle()
        assert (task.state, len(task.runs)) == (TaskState.CANCELLED, 1)


# -- What the simulation has found ---------------------------------------------------------------


def test_a_last_frame_that_is_lost_is_missed() -> None:
    """S1: a grant or a report that is lost with nothing after it is told again."""
    for seed in seeds(TRIES):
        with SimCluster(seed, workers=1) as cluster:
            for at_s in (0.001, 0.5):  # on the way there, and on the way back
                task = cluster.remote(work, takes_s=0.5).remote()
                cluster.advance(at_s)
                cluster.network(between=("head", "w-0"), drop=1.0)
                cluster.advance(0.05)
                cluster.network(between=("head", "w-0"), drop=0.0)
                task.result(within_s=60.0)


def test_a_failure_that_is_told_twice_is_charged_once() -> None:
    """S2: a worker whose failure was heard, and that does not know, comes back."""
    calls = 0

    def fails_once() -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ConnectionError("once")
        return calls

    with SimCluster(1, workers=1) as cluster:
        options = {"max_retries": 1, "retry_exceptions": True, "retry_delay_s": 40.0}
        task = cluster.remote(fails_once, takes_s=1.0, **options).remote()
        cluster.run_until(lambda: task.is_running)
        cluster.partition("head", "w-0", one_way=True)
        cluster.advance(5.0)
        cluster.heal()
        assert task.result() == 2
        assert task.attempts == 2


def test_what_a_lost_worker_had_in_store_runs_once_at_most() -> None:
    """S3: it was cut off, ran what it had, and nobody heard of that."""
    with SimCluster(1, workers=1) as cluster:
        function = cluster.remote(work, takes_s=0.01, max_retries=0)
        function.map(range(5))
        cluster.settle()
        cluster.partition("w-0", "head", one_way=True)
        tasks = function.map(range(20))
        cluster.advance(5.0)
        cluster.crash_worker("w-0")
        cluster.settle()
        ran = [len(task.runs) for task in tasks]
        assert max(ran) == 1
        assert sum(task.state is TaskState.FAILED for task in tasks) > 1
