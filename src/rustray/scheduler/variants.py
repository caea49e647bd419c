"""The ways in which tasks of a class may run, and which workers can run them so.

A soft selector makes two of one: on the workers that are preferred, then on any. And where there is
more than one, each comes twice: for what can run now, and after all of these for what waits at a
worker behind others. So "the first for which a worker has room" is all that placement has to know.
"""

from __future__ import annotations

from dataclasses import replace

from rustray.scheduler.records import ClassQueue, Variant, WorkerRecord
from rustray.task.selectors import matches, misses
from rustray.task.spec import TaskClass


def variants_of(task_class: TaskClass) -> tuple[Variant, ...]:
    """Return the ways to run a class, the preferred first."""
    if not (task_class.fallback or task_class.label_selector_soft):
        return (Variant(task_class, (), _shape_of(task_class)),)
    found = []
    for number in range(1 + len(task_class.fallback)):
        granted = _granted(task_class, number)
        soft = task_class.label_selector_soft
        if number:
            soft = task_class.fallback[number - 1].label_selector_soft
        if soft:
            found.append(Variant(granted, soft, (*_shape_of(granted), soft), prefetches=False))
        found.append(Variant(granted, (), _shape_of(granted), prefetches=False))
    return (*found, *(replace(variant, prefetches=True) for variant in found))


def _granted(task_class: TaskClass, number: int) -> TaskClass:
    """Return what a worker is told that gets tasks in this way."""
    plain = replace(task_class, label_selector_soft=(), fallback=(), alternative=number)
    if number == 0:
        return plain
    way = task_class.fallback[number - 1]
    return replace(
        plain, resources=way.resources, labels=way.labels, label_selector=way.label_selector
    )


def _shape_of(task_class: TaskClass) -> tuple[object, ...]:
    """Return what decides which workers can run a class in one way."""
    offered = task_class.offered_function
    return (task_class.resources, task_class.labels, task_class.label_selector, offered)


def variant_of(queue: ClassQueue, alternative: int) -> Variant:
    """Return the way that a worker says it was granted, the first if there is no such."""
    for variant in queue.variants:
        if variant.task_class.alternative == alternative:
            return variant
    return queue.variants[0]


def capacity_in(task_class: TaskClass, worker: WorkerRecord) -> int:
    """Count how many tasks of a class fit into an empty worker; 0 if it cannot run it."""
    offered = task_class.offered_function
    if offered and offered not in worker.functions:
        return 0
    labels = worker.info.labels
    for key, value in task_class.labels:
        if labels.get(key) != value:
            return 0
    if task_class.label_selector and not matches(task_class.label_selector, labels):
        return 0
    return task_class.resources.times_in(worker.load.total)


def capacity_of(variant: Variant, worker: WorkerRecord) -> int:
    """Return how many tasks fit into an empty worker, remembered until that registers anew."""
    worker_id = worker.info.worker_id
    capacity = variant.capacity.get(worker_id)
    if capacity is None:
        is_preferred = not variant.preference or matches(variant.preference, worker.info.labels)
        capacity = capacity_in(variant.task_class, worker) if is_preferred else 0
        variant.capacity[worker_id] = capacity
    return capacity


def can_run(queue: ClassQueue, worker: WorkerRecord) -> bool:
    """Whether an empty worker could run tasks of a queue, in whichever way."""
    variants = queue.variants
    if len(variants) == 1:
        return capacity_of(variants[0], worker) > 0
    return any(capacity_of(variant, worker) for variant in _ways(queue))


def _ways(queue: ClassQueue) -> list[Variant]:
    """Return one variant for each way, the preferences left out."""
    return list({v.task_class.alternative: v for v in queue.variants if not v.preference}.values())


def forget_worker(queue: ClassQueue, worker_id: str) -> None:
    """Ask anew what fits into a worker: it is gone, or another one."""
    for variant in queue.variants:
        variant.capacity.pop(worker_id, None)


def nearest_miss(queue: ClassQueue, worker: WorkerRecord) -> tuple[int, float, list[str]]:
    """Say what a worker lacks for the way that it comes nearest to.

    Returns:
        How many things, how much of them (to compare workers), and each in words.
    """
    best: tuple[int, float, list[str]] | None = None
    total = worker.load.total
    for variant in _ways(queue):
        found = misses_of(variant.task_class, worker)
        missing = variant.task_class.resources.shortage(total)
        gap = sum(need / max(have, 1e-9) for need, have in missing.values())
        if best is None or (len(found), gap) < best[:2]:
            best = (len(found), gap, found)
    assert best is not None  # each way has a variant without preference
    return best


def misses_of(task_class: TaskClass, worker: WorkerRecord) -> list[str]:
    """List what a worker lacks for a class in one way, in words."""
    labels = worker.info.labels
    found = [
        f"label {key} is {labels.get(key)!r}, {value!r} is needed"
        for key, value in task_class.labels
        if labels.get(key) != value
    ]
    found += misses(task_class.label_selector, labels)
    for name, (need, have) in task_class.resources.shortage(worker.load.total).items():
        found.append(f"it has {name}={have:g}, {need:g} is needed")
    return found


def needs_of(queue: ClassQueue) -> str:
    """Say what tasks of a queue need, in words."""
    ways = []
    for variant in _ways(queue):
        task_class = variant.task_class
        parts = [f"{name}={amount:g}" for name, amount in task_class.resources.amounts().items()]
        parts += [f"label {key}={value}" for key, value in task_class.labels]
        parts += [f"label {key} {value}" for key, value in task_class.label_selector]
        ways.append(", ".join(parts) or "no needs")
    return " or with ".join(ways)
