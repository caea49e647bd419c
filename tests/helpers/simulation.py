"""Random histories on `SimCluster`: what tests/sim tries with thousands of seeds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from random import Random
from typing import Any

from rustray.common.errors import TaskNotFound
from rustray.scheduler.state import SchedulerSettings
from rustray.task.place import MIN_PLACED_BYTES
from rustray.task.state import TaskState
from rustray.testing import SimCluster, SimNode, SimTask

STRATEGY_NAMES = [
    "LeastLoaded",
    "RoundRobin",
    "Random",
    "WeightedRoundRobin",
    "PowerOfTwoChoices",
    "BinPack",
    "Spread",
    "LocalityAware",
]
CHAOS_S = 30.0
_WAIT = {"wait_for_resources": True}
"""The only worker that has it may be down."""
_OPTIONS: list[dict[str, Any]] = [
    {"max_retries": -1},
    {"max_retries": -1},
    {"max_retries": 0},
    {"max_retries": -1, "exclusive": True},
    {"max_retries": -1, "num_gpus": 1, **_WAIT},
    {"max_retries": -1, "num_gpus": 0.4, "num_cpus": 0.2, **_WAIT},
    {"max_retries": -1, "label_selector": {"zone": "in(a,b)"}, **_WAIT},
    {
        "max_retries": 0,
        "label_selector": {"zone": "!a"},
        "label_selector_soft": {"disk": "ssd"},
        **_WAIT,
    },
    {
        "max_retries": -1,
        "num_gpus": 2,
        "fallback_strategy": [
            {"num_gpus": 1, "label_selector": {"zone": "!b"}},
            {"num_gpus": 0, "num_cpus": 2},
        ],
        **_WAIT,
    },
]


def make_cluster(
    seed: int, *, workers: int = 3, waits: float = 0.0, stay_bytes: int | None = None
) -> SimCluster:
    """Build a cluster whose settings follow from the seed too.

    Args:
        seed: Of all.
        workers: How many.
        waits, stay_bytes: See `SimCluster`; None: in every other history nearly all results stay.
    """
    random = Random(f"{seed}/settings")
    if stay_bytes is None:
        stay_bytes = 1 if seed % 2 else MIN_PLACED_BYTES
    # Of a value that stays with its worker the head keeps more than 600 bytes.
    few = 600 if stay_bytes > 1 else 20_000
    settings = SchedulerSettings(
        strategy=random.choice(STRATEGY_NAMES),
        result_memory_bytes=random.choice([few, 1 << 30]),
    )
    return SimCluster(
        seed,
        workers={f"w-{i}": _node(i) for i in range(workers)},
        commit_s=random.choice([0.0, 0.002, 0.1]),
        check_every=50,
        settings=settings,
        waits=waits,
        stay_bytes=stay_bytes,
    )


def _node(number: int) -> SimNode:
    """Return a worker of one to three cores; all differ in what else they have."""
    labels = {"zone": "ab"[number % 2], **({"disk": "ssd"} if number % 3 == 1 else {})}
    return SimNode(1.0 + number % 3, number % 3, labels)


def duration_of(number: int, *taken: object) -> float:
    """Return a task's run time: mostly tiny, some long."""
    draw = Random(number).random()
    return 0.0002 if draw < 0.7 else 0.02 if draw < 0.95 else 1.5


def work(number: int, *taken: str) -> str:
    """What tasks do."""
    return f"result of {number}"


class RandomHistory:
    """Tasks handed in and cancelled at random times, while everything breaks and heals.

    Attributes:
        cluster: Where.
        tasks: All that were handed in.
    """

    def __init__(
        self, seed: int, *, tasks: int = 150, waits: float = 0.0, stay_bytes: int | None = None
    ) -> None:
        self.cluster = make_cluster(seed, waits=waits, stay_bytes=stay_bytes)
        self.tasks: list[SimTask] = []
        self._count = tasks
        cluster = self.cluster
        self._functions = [
            cluster.remote(work, takes_s=duration_of, priority=priority, **options)
            for options in _OPTIONS
            for priority in (0, 0, 0, 5)
        ]

    def run(self) -> None:
        """Let it happen, and judge it."""
        cluster, random = self.cluster, self.cluster.random
        cluster.network(
            drop=random.choice([0.0, 0.01, 0.05]),
            duplicate=random.choice([0.0, 0.05]),
            reorder=random.choice([0.0, 0.0, 0.02]),
            delay_s=(0.0001, random.choice([0.002, 0.002, 0.3])),
        )
        cluster.chaos(CHAOS_S, every_s=random.choice([3.0, 6.0, 15.0]))
        self.plan(CHAOS_S * 0.7, 60)
        for _ in range(random.randint(0, 5)):
            cluster.later(random.random() * CHAOS_S, self._cancel_one)
        if cluster.stay_bytes == 1:
            for _ in range(random.choice([0, 5, 30])):
                cluster.later(random.random() * CHAOS_S, self._free_one)
            for _ in range(random.choice([0, 2, 8])):
                cluster.later(random.random() * CHAOS_S, self._cut_one)
        cluster.advance(CHAOS_S)
        cluster.settle()
        self.judge()

    def plan(self, duration_s: float, batch: int) -> None:
        """Arrange that all tasks are handed in within a time, in batches."""
        left, random = self._count, self.cluster.random
        while left:
            size = min(random.randint(1, batch), left)
            self.cluster.later(random.random() * duration_s, self._hand_in, size)
            left -= size

    def _hand_in(self, size: int) -> None:
        random = self.cluster.random
        function = random.choice(self._functions)
        takes = random.choice([0, 0, 1, 3])
        takes_freed = random.random() < 0.1
        known = [task for task in self.tasks if takes_freed or not task.is_freed]
        for _ in range(size):
            taken = random.sample(known, min(takes, len(known)))
            known.append(function.remote(len(self.tasks), *taken))
            self.tasks.append(known[-1])

    def _cancel_one(self) -> None:
        if self.tasks:
            task = self.cluster.random.choice(self.tasks)
            task.cancel(force=self.cluster.random.random() < 0.5)

    def _free_one(self) -> None:
        if self.tasks:
            self.cluster.random.choice(self.tasks).free()

    def _cut_one(self) -> None:
        """Cut a way by which values go, for a while."""
        cluster = self.cluster
        ends = cluster.random.sample([*cluster.worker_names, "client"], 2)
        cluster.partition(*ends)
        cluster.later(cluster.random.random() * 15.0, cluster.heal, *ends)

    def judge(self) -> None:
        """Every task has ended, with its own result; the rest `SimCluster` has watched."""
        assert len(self.tasks) == self._count
        self.cluster.check_values()
        may_expire = self.cluster._history.may_expire
        causes = {"WORKER_LOST", "OBJECT_LOST"}
        if any(task.state is TaskState.POISONED for task in self.tasks):
            causes.add("TASK_POISONED")  # of what takes its result; it met the nemesis three times
        for task in self.tasks:
            error = task.error
            if isinstance(error, TaskNotFound):
                assert may_expire  # results are allowed 600 bytes in some histories
            elif task.state is TaskState.SUCCEEDED:
                assert task.result() == work(task.number)
            elif task.state is TaskState.FAILED:
                assert error is not None
                # `History` says of which task the value may be lost.
                assert error.code in causes, error


def run_history(seed: int) -> SimCluster:
    """Run one history; returns its cluster."""
    history = RandomHistory(seed)
    with history.cluster:
        history.run()
    return history.cluster


def run_histories(numbers: Sequence[int]) -> int:
    """Run one history after the other; returns how many events were simulated."""
    logging.disable(logging.WARNING)  # thousands of lines of closed sessions
    try:
        return sum(run_history(seed).events for seed in numbers)
    finally:
        logging.disable(logging.NOTSET)
