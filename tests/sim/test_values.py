"""Values that stay with their workers: what happens to them when something breaks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from helpers.simulation import RandomHistory
from rustray.common.errors import InvariantError, ObjectLost, TaskCancelled
from rustray.scheduler import hand_over, placed, remaking, results
from rustray.scheduler.state import SchedulerSettings
from rustray.testing import SimCluster, SimNode, SimTask, seeds
from rustray.testing.values import SimSegment
from rustray.worker.object_desk import ObjectDesk

SITES = {name: SimNode(1.0, labels={"site": name}) for name in "abc"}
SLOW_DISK_S = 4.0
PATIENT = SchedulerSettings(lease_ttl_s=30.0)
TRIES = 8
"""Seeds for each: whether a commit that was under way has reached the disk is drawn."""
LIMIT = 120
"""Histories within which each planted bug has to be found."""


def work(*values: object) -> object:
    """Return the arguments."""
    return values


def at(cluster: SimCluster, site: str, takes_s: float = 0.1, **options: Any) -> Any:
    """Return a function that runs at one site alone."""
    options = {"label_selector": {"site": site}, "wait_for_resources": True, **options}
    return cluster.remote(work, takes_s=takes_s, **options)


def done(cluster: SimCluster, task: SimTask) -> SimTask:
    """Let a task end; its value stays with its worker."""
    cluster.wait_for(task, 60.0)
    assert task.holder == task.worker
    return task


def crash(cluster: SimCluster, *names: str) -> None:
    """Kill workers and start others in their stead."""
    for name in names:
        cluster.crash_worker(name)
        cluster.restart_worker(name)


def judge(cluster: SimCluster) -> None:
    """Everything ends, and what is kept is where it should be."""
    cluster.settle()
    cluster.check_values()


def test_a_value_stays_and_is_taken_where_it_is() -> None:
    """Nothing of it passes through the head: neither to who takes it, nor to the client."""
    with SimCluster(1, workers=SITES, stay_bytes=1) as cluster:
        maker = done(cluster, at(cluster, "a").remote("value"))
        taker = at(cluster, "b").remote(maker)
        assert taker.result() == (("value",),)
        assert not [one for one in cluster.history if one.event in ("lacks", "value asked")]
        judge(cluster)


def test_small_values_do_not_stay() -> None:
    """Below the limit they travel to the head, as those do of tasks that run once at most."""
    with SimCluster(1) as cluster:
        assert cluster.submit(work).result() == ()
        large = cluster.submit(work, bytes(cluster.stay_bytes))
        assert large.result() == (bytes(cluster.stay_bytes),)
        once = cluster.remote(work, max_retries=0).remote(bytes(cluster.stay_bytes))
        assert once.result() == (bytes(cluster.stay_bytes),)
        assert [bool(task.holder) for task in cluster.tasks] == [False, True, False]


def test_a_holder_crashes_while_a_taker_waits() -> None:
    """What a task waits to take is made again, before it runs."""
    with SimCluster(2, workers=SITES, stay_bytes=1) as cluster:
        maker = done(cluster, at(cluster, "a").remote("value"))
        blocker = at(cluster, "b", 30.0).remote()
        cluster.run_until(lambda: blocker.is_running)
        taker = at(cluster, "b").remote(maker)
        cluster.run_until(lambda: taker.is_accepted)
        crash(cluster, "a")
        assert taker.result() == (("value",),)
        assert len(maker.runs) == 2
        assert len(taker.runs) == 1
        judge(cluster)


def test_a_chain_whose_holders_are_all_gone_is_made_again() -> None:
    """Who asks for the end of it has all of it made again, in order and once."""
    with SimCluster(3, workers=SITES, stay_bytes=1) as cluster:
        chain = [done(cluster, at(cluster, "a").remote(0))]
        for number in range(1, 9):
            chain.append(done(cluster, at(cluster, "abc"[number % 3]).remote(chain[-1])))
        crash(cluster, *SITES)
        last = cluster.remote(work).remote(chain[-1])
        assert last.result() == (chain[-1].result(),)
        assert [len(task.runs) for task in chain] == [2] * len(chain)
        begun = [task.runs[-1].started_at_s for task in chain]
        assert begun == sorted(begun)
        judge(cluster)


def test_a_value_of_a_drained_worker_can_be_had() -> None:
    """A worker that leaves in order takes no value along for good."""
    with SimCluster(4, workers=SITES, stay_bytes=1) as cluster:
        maker = done(cluster, cluster.remote(work, takes_s=0.1).remote("value"))
        cluster.drain_worker(maker.holder)
        cluster.run_until(lambda: not cluster.is_worker_up(maker.holder))
        assert cluster.remote(work).remote(maker).result() == (("value",),)
        assert len(maker.runs) == 1
        judge(cluster)


def test_the_last_worker_that_leaves_gives_its_values_to_the_head() -> None:
    """Nothing is run again when the next one comes."""
    with SimCluster(4, workers=1, stay_bytes=1) as cluster:
        makers = [done(cluster, cluster.remote(work).remote(number)) for number in range(20)]
        cluster.drain_worker("w-0")
        cluster.run_until(lambda: not cluster.is_worker_up("w-0"), within_s=10.0)
        cluster.restart_worker("w-0")
        for number, maker in enumerate(makers):
            assert cluster.remote(work).remote(maker).result() == ((number,),)
        assert all(len(maker.runs) == 1 for maker in makers)
        judge(cluster)


def test_values_wander_from_worker_to_worker_as_these_are_replaced() -> None:
    """Also over a head that dies half-way, and past one that cannot be reached."""
    for seed in seeds(TRIES):
        with SimCluster(seed, workers=SITES, stay_bytes=1) as cluster:
            makers = [done(cluster, cluster.remote(work).remote(number)) for number in range(80)]
            for name in ("a", "b", "a"):
                cluster.partition(name, cluster.random.choice([*set(SITES) - {name}]))
                cluster.drain_worker(name)
                cluster.advance(cluster.random.random() * 0.05)
                cluster.crash_head()
                cluster.restart_head()
                cluster.advance(40.0)
                cluster.heal()
                if not cluster.is_worker_up(name):
                    cluster.restart_worker(name)
                cluster.advance(5.0)
            for number, maker in enumerate(makers):
                assert cluster.remote(work).remote(maker).result() == ((number,),)
            judge(cluster)


def test_a_head_that_dies_before_it_has_saved_an_end_hears_of_it_again() -> None:
    """The worker has the value, and says so to the next head: nothing is run again."""
    for seed in seeds(TRIES):
        with SimCluster(seed, workers=SITES, stay_bytes=1, commit_s=SLOW_DISK_S) as cluster:
            maker = at(cluster, "a").remote("value")
            cluster.run_until(lambda: maker.is_accepted)  # noqa: B023 - called at once
            cluster.run_until(lambda: maker.runs[0].end == "returned")  # noqa: B023 - as above
            cluster.advance(0.1)
            cluster.crash_head()
            cluster.restart_head()
            assert at(cluster, "b").remote(maker).result() == (("value",),)
            assert len(maker.runs) == 1
            judge(cluster)


def test_where_there_is_no_way_to_the_holder_the_value_goes_through_the_head() -> None:
    """It is brought there, to a task as to the client, and nothing is run again."""
    with SimCluster(5, workers=SITES, stay_bytes=1) as cluster:
        cluster.partition("client", "a")
        maker = at(cluster, "a").remote("value")
        assert maker.result() == ("value",)
        second = done(cluster, at(cluster, "c").remote("other"))
        cluster.partition("b", "c")
        taker = at(cluster, "b").remote(maker, second)
        assert taker.result() == (("value",), ("other",))
        assert [one.event for one in taker.history].count("lacks") == 1
        assert [len(task.runs) for task in (maker, second, taker)] == [1, 1, 1]
        judge(cluster)


def ask_while_away() -> None:
    """Ask for a value whose worker has no session, and is back in time."""
    with SimCluster(6, workers=SITES, stay_bytes=1) as cluster:
        maker = at(cluster, "a").remote("value")
        cluster.partition("client", "a")
        cluster.run_until(lambda: bool(maker.holder))
        cluster.partition("head", "a")
        cluster.advance(8.0)  # not long enough to be given up
        cluster.heal("head", "a")
        assert maker.result() == ("value",)
        assert len(maker.runs) == 1
        judge(cluster)


def test_a_holder_that_has_lost_the_head_is_asked_again() -> None:
    """What was asked of it while it was away it sends when it is back."""
    ask_while_away()


def test_many_values_go_through_the_head() -> None:
    """However many a task takes of a worker that it has no way to."""
    with SimCluster(14, workers=SITES, stay_bytes=1) as cluster:
        makers = [done(cluster, at(cluster, "a").remote(number)) for number in range(30)]
        cluster.partition("a", "b")
        taker = at(cluster, "b").remote(*makers)
        assert taker.result() == tuple((number,) for number in range(30))
        assert {len(task.runs) for task in cluster.tasks} == {1}
        judge(cluster)


def test_a_task_waits_for_a_holder_that_is_frozen() -> None:
    """Until that is given up, and the value made again: the task has not failed meanwhile."""
    sites = {**SITES, "d": SITES["a"]}
    with SimCluster(13, workers=sites, stay_bytes=1, settings=PATIENT) as cluster:
        maker = done(cluster, at(cluster, "a").remote("value"))
        cluster.pause_worker(maker.holder)
        taker = at(cluster, "b").remote(maker)
        assert taker.result() == (("value",),)
        assert sorted(run.worker for run in maker.runs) == ["a", "d"]
        judge(cluster)


def test_a_worker_lets_go_of_a_value_when_the_head_has_it_for_certain() -> None:
    """A head that dies before it has saved what was brought to it finds it where it was."""
    made = count()

    def make() -> int:
        return next(made)

    for seed in seeds(TRIES):
        with SimCluster(seed, workers=SITES, stay_bytes=1, commit_s=SLOW_DISK_S) as cluster:
            maker = cluster.remote(make, label_selector={"site": "a"}).remote()
            cluster.partition("client", "a")
            cluster.run_until(lambda: bool(maker.holder))  # noqa: B023 - called at once
            cluster.advance(0.1)
            cluster.crash_head()
            cluster.restart_head()
            cluster.settle()
            assert len(maker.runs) == 1
            judge(cluster)


def test_a_value_that_is_freed_is_there_for_who_takes_it_already() -> None:
    """It goes when that task has ended, and who asks then gets ObjectLost."""
    with SimCluster(7, workers=SITES, stay_bytes=1) as cluster:
        maker = done(cluster, at(cluster, "a").remote("value"))
        taker = at(cluster, "b", 1.0).remote(maker)
        maker.free()
        cluster.run_until(lambda: taker.is_running)
        late = at(cluster, "c", 1.0).remote(maker)
        cluster.partition("b", "head")
        cluster.advance(15.0)
        cluster.heal()
        assert taker.result() == (("value",),)
        with pytest.raises(ObjectLost, match="freed"):
            maker.result()
        judge(cluster)
        assert late.is_done
        gone = at(cluster, "b").remote(late if late.error is None else maker)
        taker.free()
        judge(cluster)
        assert gone.is_done


def test_a_result_that_is_freed_before_it_is_there_does_not_stay() -> None:
    """Freed first and made then: as soon as the client hears of it, it is let go."""
    with SimCluster(8, workers=SITES, stay_bytes=1) as cluster:
        maker = at(cluster, "a", 5.0).remote("value")
        cluster.run_until(lambda: maker.is_running)
        maker.free()
        judge(cluster)
        assert isinstance(maker.error, ObjectLost)
        with pytest.raises(ObjectLost):
            at(cluster, "b").remote(maker).result()


def test_two_that_lack_the_same_value_have_it_made_again_once() -> None:
    """However many need it."""
    with SimCluster(9, workers=SITES, stay_bytes=1) as cluster:
        maker = done(cluster, at(cluster, "a", takes_s=2.0).remote("value"))
        crash(cluster, "a")
        takers = [at(cluster, site).remote(maker) for site in "bc"]
        assert [task.result() for task in takers] == [(("value",),)] * 2
        assert len(maker.runs) == 2
        judge(cluster)


def test_a_task_that_is_run_again_for_its_value_can_be_cancelled() -> None:
    """A cancel holds for the life of a task in which it is asked for."""
    with SimCluster(10, workers=SITES, stay_bytes=1) as cluster:
        maker = done(cluster, at(cluster, "a", takes_s=30.0).remote("value"))
        crash(cluster, "a")
        taker = at(cluster, "b").remote(maker)
        cluster.run_until(lambda: len(maker.runs) == 2)
        cluster.cancel(maker, force=True)
        taker.cancel()
        judge(cluster)
        assert isinstance(taker.error, TaskCancelled)


def test_a_leak_is_found() -> None:
    """A worker that keeps what the head does not know breaks the promise, until it lets go."""
    with SimCluster(11, workers=SITES, stay_bytes=1) as cluster:
        done(cluster, at(cluster, "a").remote("value"))
        cluster.check_values()
        store = cluster._workers["a"].desk.store
        assert store is not None
        store.take_over("stray", SimSegment(b"value"))
        with pytest.raises(InvariantError, match="a keeps stray, and 0 more, for nobody"):
            cluster.check_values()
        store.free("stray")
        cluster.check_values()


def test_a_value_that_is_not_where_it_should_be_is_found() -> None:
    """Nor may the head take a value to be where it is not."""
    with SimCluster(12, workers=SITES, stay_bytes=1) as cluster:
        maker = done(cluster, at(cluster, "a").remote("value"))
        desk = cluster._workers["a"].desk
        desk.free(sorted(desk.names))
        with pytest.raises(InvariantError, match="and the head has not noticed"):
            cluster.check_values()
        assert at(cluster, "b").remote(maker).result() == (("value",),)  # now it has
        cluster.check_values()


# -- planted bugs --------------------------------------------------------------------------------


def nothing(*_args: object, **_kwargs: object) -> None:
    """Do nothing, as a bug does."""


PLANTED: list[tuple[object, str, Callable[..., object]]] = [
    (placed, "on_worker_lost", nothing),
    (placed, "on_workers_gone", nothing),
    (placed, "want", nothing),
    (placed, "free", nothing),
    (placed, "forget", lambda *_: []),
    (results, "release", nothing),
    (remaking, "_wait_anew", nothing),
    (remaking, "_lost_inputs", lambda *_: []),
    (ObjectDesk, "free", nothing),
    (ObjectDesk, "doubtful", lambda *_: ()),
    (hand_over, "on_worker_lost", nothing),
]
IDS = [f"{one.__name__.rpartition('.')[2]}.{name}" for one, name, _ in PLANTED]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("owner", "name", "bug"), PLANTED, ids=IDS)
def test_a_planted_bug_is_found(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, bug: Callable[..., object]
) -> None:
    """Random histories notice it, each in its way."""
    monkeypatch.setattr(owner, name, bug)
    assert any(breaks(seed) for seed in range(LIMIT))


def test_without_a_planted_bug_nothing_is_found() -> None:
    """What the histories above find is the bug."""
    assert not any(breaks(seed) for seed in range(20))


def test_a_holder_that_is_not_asked_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the second question the client would wait for ever."""
    monkeypatch.setattr(placed, "ask_again", nothing)
    with pytest.raises(TimeoutError):
        ask_while_away()


def breaks(seed: int) -> bool:
    """Whether a history breaks a promise, never ends, or breaks the scheduler itself."""
    history = RandomHistory(seed, stay_bytes=1)
    try:
        with history.cluster:
            history.run()
    except (InvariantError, AssertionError, TimeoutError, LookupError):
        return True
    return False
