"""Selectors, preferences and alternatives: which worker gets a task, and in which way."""

from __future__ import annotations

import pytest

from helpers.scheduling import PREFIX, Bench, NaiveWorker
from rustray.common.resources import ResourceSet
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.scheduler.load_balancer import STRATEGIES
from rustray.task.frames import LeaseRange
from rustray.task.functions import FunctionInfo
from rustray.task.needs import Alternative
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState

from .test_recovery import Head

CORE = ResourceSet.of({"cpu_cores": 1})
GPU = ResourceSet.of({"cpu_cores": 1, "gpus": 1})
FOUR_CORES = ResourceSet.of({"cpu_cores": 4})
EITHER = TaskClass("f", resources=GPU, fallback=(Alternative(FOUR_CORES),))


def ways(worker: NaiveWorker) -> list[int]:
    """Return in which way each of a worker's tasks was granted."""
    return [
        worker.grants[n].task_class.alternative for n, held in worker.held.items() for _ in held
    ]


def test_a_selector_chooses_the_worker() -> None:
    """in, !in and a value; a class without one goes anywhere."""
    bench = Bench()
    east = bench.join("east", 1, labels={"zone": "east", "disk": "ssd"})
    west = bench.join("west", 1, labels={"zone": "west"})
    bench.submit(1, TaskClass("f", label_selector=(("zone", "in(north,west)"),)))
    assert (len(east.held), len(west.held)) == (0, 1)
    bench.submit(1, TaskClass("f", label_selector=(("disk", "ssd"), ("zone", "!west"))))
    assert (len(east.held), len(west.held)) == (1, 1)
    bench.run_all()
    assert len(bench.ended) == 2


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_code_that_calls_a_registered_function_goes_where_that_is(strategy: str) -> None:
    """Bug: a map of a registered function sent its chunks to workers that do not offer it."""
    bench = Bench(strategy=strategy)
    code_hash = bytes(32)
    bench.feed(e.CodeReceived(code_hash, b"code"))
    bare = bench.join("bare", 8, functions=())
    offers = bench.join("offers", 1, functions=(FunctionInfo("add", ()),))
    bench.submit(5, TaskClass("add", code_hash, needs_function="add"))
    assert not bare.held
    reason = bench.scheduler.explain(PREFIX, 4, bench.now)
    assert reason is not None
    assert "does not offer the function 'add'" in str(reason.workers)
    bench.run_all()
    assert (len(bench.ended), bool(offers.held)) == (5, False)
    bench.submit(1, TaskClass("ad", code_hash, needs_function="ad"))
    assert bench.rejected == {5: "FUNCTION_NOT_FOUND"}


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_a_preference_gives_way(strategy: str) -> None:
    """The preferred worker is filled first, the others get the rest: none waits."""
    bench = Bench(strategy=strategy)
    plain = bench.join("plain", 8)
    fast = bench.join("fast", 2, labels={"disk": "ssd"})
    bench.submit(5, TaskClass("f", label_selector_soft=(("disk", "ssd"),)))
    assert sum(map(len, fast.held.values())) == 2
    assert sum(map(len, plain.held.values())) == 3
    bench.run_all()
    assert len(bench.ended) == 5


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_the_first_alternative_that_fits_wins(strategy: str) -> None:
    """Two GPUs, then four cores a task, then the queue; what is free again is used as before."""
    bench = Bench(strategy=strategy)
    gpus = bench.join("gpus", 2, gpus=2)
    cores = bench.join("cores", 8)
    bench.submit(6, EITHER)
    assert ways(gpus) == [0, 0]
    assert ways(cores) == [1, 1]
    assert sum(bench.state_of(n) is TaskState.QUEUED for n in range(6)) == 2
    lease = next(iter(gpus.held))
    bench.end(gpus, lease, next(iter(gpus.held[lease])), 1, run_us=10_000_000)
    assert len(ways(gpus)) == 2
    bench.run_all()
    assert len(bench.ended) == 6


def test_one_worker_may_serve_both_ways() -> None:
    """What it charges is what was granted."""
    bench = Bench()
    both = bench.join("both", 9, gpus=1)
    bench.submit(4, EITHER)
    assert sorted(ways(both)) == [0, 1, 1]
    load = bench.scheduler.state.workers["both"].load
    assert load.leased == {"cpu_cores": 90_000, "gpus": 10_000}
    bench.run_all()
    assert not any(load.leased.values())


def test_the_nearest_miss_is_of_the_nearest_way() -> None:
    """All ways are named, and what is missing for the one that comes nearest."""
    bench = Bench()
    bench.join("small", 2, labels={"zone": "a"})
    near = Alternative(CORE, label_selector=(("zone", "!in(a,b)"),))
    bench.submit(1, TaskClass("f", resources=GPU, fallback=(Alternative(FOUR_CORES), near)))
    (reject,) = [x for x in bench.commands if isinstance(x, c.RejectTasks)]
    text = str(reject.error)
    assert reject.error.code == "RESOURCE_NOT_AVAILABLE"
    assert (
        "cpu_cores=1, gpus=1 or with cpu_cores=4 or with cpu_cores=1, label zone !in(a,b)" in text
    )
    assert "label zone is 'a', '!in(a,b)' is needed" in text


def test_a_preference_alone_makes_nothing_impossible() -> None:
    """Nobody has the label, and the task runs."""
    bench = Bench()
    bench.join("w", 1)
    bench.submit(1, TaskClass("f", label_selector_soft=(("disk", "ssd"),)))
    bench.run_all()
    assert bench.ended == {0: [TaskState.SUCCEEDED]}


def test_explain_names_the_label() -> None:
    """For each worker: what it lacks, or that it is full."""
    bench = Bench()
    bench.join("a", 1, labels={"zone": "a"})
    bench.join("b", 1)
    selected = TaskClass("f", label_selector=(("zone", "in(b,c)"),), wait_for_resources=True)
    bench.submit(1, selected)
    found = bench.scheduler.explain(PREFIX, 0, bench.now)
    assert found is not None
    assert [reason.reason for reason in found.workers] == [
        "label zone is 'a', 'in(b,c)' is needed",
        "label zone is None, 'in(b,c)' is needed",
    ]
    bench.join("c", 1, labels={"zone": "c"})
    assert bench.state_of(0) is TaskState.LEASED


def test_a_restarted_head_learns_in_which_way_tasks_run() -> None:
    """The class is journaled whole, and the worker says which way it was granted."""
    head = Head()
    head.join("w", 1, cpus=4)
    head.greet("w", 1)
    head.submit(0, 2, resources=GPU, fallback=EITHER.fallback, label_selector_soft=(("a", "b"),))
    (grant,) = head.grants
    assert grant.task_class.alternative == 1
    head.restart()
    queue = next(iter(head.scheduler.state.queues))
    assert (queue.fallback, queue.label_selector_soft) == (EITHER.fallback, (("a", "b"),))
    head.join("w", 2, cpus=4)
    head.greet("w", 2, grant)
    (worker,) = head.scheduler.state.workers.values()
    assert worker.load.leased == FOUR_CORES.units
    assert not head.dropped()


def test_tasks_of_one_selector_queue_together() -> None:
    """Ten thousand submits of one class are one queue, whose capacity is asked once a worker."""
    bench = Bench()
    bench.join("w", 1, labels={"zone": "a"})
    for _ in range(100):
        bench.submit(100, TaskClass("f", label_selector=(("zone", "in(a,b)"),)))
    (queue,) = bench.scheduler.state.queues.values()
    assert queue.queued > 9_000
    (variant,) = queue.variants
    assert variant.task_class is queue.task_class
    assert variant.capacity == {"w": 1}


def test_unstarted_tasks_go_to_an_idle_worker_that_can_run_them_another_way() -> None:
    """What one worker holds in prefetch is taken back for one that has only the alternative."""
    bench = Bench()
    gpus = bench.join("gpus", 1, gpus=1)
    bench.submit(1, EITHER)
    bench.end(gpus, *next((n, min(held), 1) for n, held in gpus.held.items()), run_us=10)
    bench.submit(50, EITHER)
    assert len(ways(gpus)) > 10, "they are short, so they are prefetched"
    bench.join("cores", 8)
    recalls = [x for x in bench.commands if isinstance(x, c.RecallLease)]
    assert recalls
    for one in recalls:
        back = [LeaseRange(one.lease, one.offset, one.count)]
        gpus.held[one.lease] -= set(range(one.offset, one.offset + one.count))
        bench.report(gpus, returned=back)
    assert ways(bench.workers["cores"])
