"""What is measured, on which systems, how long at most, and what is to be reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class SystemInfo:
    """A system that is compared.

    Attributes:
        title: As people call it.
        setting: How it runs here.
        security: What protects its connections.
    """

    title: str
    setting: str
    security: str


SYSTEMS: Final[Mapping[str, SystemInfo]] = {
    "rustray": SystemInfo(
        "rustray",
        "head (state in memory), worker with 2 executors, client: processes of their own",
        "TLS + JWT",
    ),
    "rustray-embedded": SystemInfo(
        "rustray embedded", "head and worker inside the client, 2 executors", "no network"
    ),
    "ray": SystemInfo("Ray", "num_cpus=2, dashboard off", "none"),
    "dask": SystemInfo("Dask", "LocalCluster, 2 worker processes x 1 thread", "none"),
    "processpool": SystemInfo("ProcessPool", "ProcessPoolExecutor(2)", "no network"),
    "pool": SystemInfo("Pool", "multiprocessing.Pool(2), its own chunk size", "no network"),
    "rustray-core": SystemInfo("rustray core", "the head's scheduler alone", "no network"),
}
EVERY: Final = ("rustray", "rustray-embedded", "ray", "dask", "processpool")
STREAMING: Final = ("rustray", "rustray-embedded", "ray")
MAPPERS: Final = ("rustray", "rustray-embedded", "ray", "dask", "pool")
CLUSTERS: Final = ("rustray", "ray", "dask")
CORE: Final = ("rustray-core",)

Params = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Workload:
    """One thing to measure.

    Attributes:
        name: For ``--only`` and the results file.
        group: Another name for ``--only`` that several share.
        measure: Name of the function in `suite.measures`.
        title: For tables.
        unit: Of the value.
        is_rate: More is better; otherwise less is.
        systems: Where it makes sense.
        limit_s: Time that one sample may take, start and stop included.
        params: For the function.
        quick: What replaces some of them with ``--quick``.
    """

    name: str
    group: str
    measure: str
    title: str
    unit: str
    is_rate: bool
    systems: tuple[str, ...]
    limit_s: float
    params: Params = field(default_factory=dict)
    quick: Params = field(default_factory=dict)

    def params_for(self, *, is_quick: bool) -> dict[str, float]:
        """Return the parameters of a run."""
        return {**self.params, **(self.quick if is_quick else {})}


def _payload(direction: str, label: str, size: int, window: int) -> Workload:
    return Workload(
        f"{direction}-{label.replace(' ', '')}",
        direction,
        direction,
        f"{label} as {direction}, {window:,} in flight",
        "tasks/s",
        True,
        EVERY,
        180.0,
        {"seconds": 1.0, "windows": 3, "window": window, "size": size},
        {"seconds": 0.1, "windows": 1, "window": min(window, 100)},
    )


def _head_cpu(queued: int, workers: int) -> Workload:
    return Workload(
        f"head-cpu-{queued}-{workers}",
        "head-cpu",
        "head_cpu",
        f"head CPU: {queued:,} queued, workers: {workers:,}",
        "us/task",
        False,
        CORE,
        180.0,
        {"queued": queued, "workers": workers, "measured": 1024 * 500},
        {"measured": 1024 * 50},
    )


WORKLOADS: Final = (
    Workload(
        "sync", "sync", "one_at_a_time", "one at a time", "tasks/s", True, EVERY, 90.0,
        {"seconds": 3.0}, {"seconds": 0.2},
    ),
    Workload(
        "in-flight", "in-flight", "in_flight", "1,000 in flight", "tasks/s", True, EVERY, 180.0,
        {"seconds": 2.0, "windows": 10, "window": 1000},
        {"seconds": 0.1, "windows": 2, "window": 200},
    ),
    Workload(
        "burst", "burst", "burst", "burst of 100,000", "tasks/s", True, EVERY, 300.0,
        {"tasks": 100_000, "fewer_tasks": 20_000, "budget_s": 120.0},
        {"tasks": 2_000, "fewer_tasks": 400, "budget_s": 5.0},
    ),
    _payload("argument", "100 B", 100, 1000),
    _payload("argument", "10 KiB", 10 * KIB, 1000),
    _payload("argument", "1 MiB", MIB, 32),
    _payload("result", "100 B", 100, 1000),
    _payload("result", "10 KiB", 10 * KIB, 1000),
    _payload("result", "1 MiB", MIB, 32),
    Workload(
        "stream", "stream", "stream", "1,000 items of a generator, one by one", "items/s", True,
        STREAMING, 120.0, {"items": 1000, "streams": 20}, {"items": 200, "streams": 2},
    ),
    Workload(
        "clients", "clients", "four_clients", "4 clients, 1,000 in flight each", "tasks/s", True,
        CLUSTERS, 180.0,
        {"clients": 4, "seconds": 3.0, "window": 1000},
        {"clients": 4, "seconds": 0.3, "window": 100},
    ),
    Workload(
        "map", "map", "map_items", "map over 1,000,000 items", "items/s", True, MAPPERS, 300.0,
        {"tasks": 1_000_000, "fewer_tasks": 20_000, "budget_s": 60.0, "chunk": 1000},
        {"tasks": 20_000, "fewer_tasks": 500, "budget_s": 5.0, "chunk": 100},
    ),
    Workload(
        "start", "start", "start_to_result", "start to first result", "s", False, EVERY, 90.0,
    ),
    Workload(
        "queue-memory", "queue-memory", "queue_memory", "memory per queued task, 100 B payload",
        "B/task", False, EVERY, 240.0, {"tasks": 100_000, "size": 100}, {"tasks": 5_000},
    ),
    Workload(
        "idle-memory", "idle-memory", "idle_memory", "idle memory (PSS)", "MB", False, EVERY, 90.0,
        {"settle_s": 2.0}, {"settle_s": 0.5},
    ),
    _head_cpu(10_000, 1),
    _head_cpu(1_000_000, 1),
    _head_cpu(1_000_000, 100),
    _head_cpu(1_000_000, 1000),
)  # fmt: skip
BY_NAME: Final = {workload.name: workload for workload in WORKLOADS}


@dataclass(frozen=True, slots=True)
class Goal:
    """A promise about medians.

    Attributes:
        title: For the table.
        value: (workload, system) whose median counts.
        against: (workload, system) to divide by, or None for the median itself.
        bound: The limit.
        is_least: Whether the bound is the least that must be reached, or the most allowed.
        unit: Of the bound.
    """

    title: str
    value: tuple[str, str]
    against: tuple[str, str] | None
    bound: float
    is_least: bool
    unit: str


def _at_least(title: str, workload: str, system: str, peer: str, bound: float) -> Goal:
    return Goal(title, (workload, system), (workload, peer), bound, True, f"x {peer}")


def _core(queued: int, workers: int) -> tuple[str, str]:
    return f"head-cpu-{queued}-{workers}", "rustray-core"


GOALS: Final = (
    _at_least("1,000 in flight", "in-flight", "rustray", "ray", 40),
    _at_least("1,000 in flight", "in-flight", "rustray", "dask", 100),
    _at_least("burst of 100,000", "burst", "rustray", "ray", 40),
    _at_least("burst of 100,000", "burst", "rustray", "dask", 100),
    _at_least("one at a time, networked", "sync", "rustray", "ray", 1.5),
    _at_least("one at a time, embedded", "sync", "rustray-embedded", "ray", 5),
    _at_least("1,000 items of a generator", "stream", "rustray", "ray", 3),
    _at_least("map over 1,000,000 items", "map", "rustray", "ray", 100),
    Goal("memory per queued task", ("queue-memory", "rustray"), None, 1024, False, "B/task"),
    Goal("idle memory (PSS)", ("idle-memory", "rustray"), None, 150, False, "MB"),
    Goal("init() embedded to first result", ("start", "rustray-embedded"), None, 0.7, False, "s"),
    Goal("head CPU, 1,000,000 queued", _core(1_000_000, 1), _core(10_000, 1), 1.2, False,
         "x 10,000 queued"),
    Goal("head CPU, 1,000 workers", _core(1_000_000, 1000), _core(1_000_000, 1), 1.3, False,
         "x 1 worker"),
)  # fmt: skip
