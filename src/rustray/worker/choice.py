"""Which idle executor takes a task, and how there comes to be one.

A process that has worked with GPUs holds on to them (its libraries have seen these and no others,
and keep memory there), so it takes later tasks on the very same GPUs only, and ends before these
go to another process.
"""

from __future__ import annotations

from rustray.common.resources import GPU, UNIT
from rustray.worker.backlog import Lane
from rustray.worker.gpus import GpuPool, GpuShare
from rustray.worker.leases import SIGKILL, kill
from rustray.worker.records import Executor
from rustray.worker.state import WorkerState


def choose(state: WorkerState, lane: Lane) -> tuple[Executor, GpuShare | None] | None:
    """Return the idle executor for a lane's first task, and its GPUs; None: none is suited.

    The lane's demand must fit, and some executor must be idle. Nothing is changed.
    """
    if state.gpus is None:
        return next(iter(state.idle.values())), None
    need = lane.demand.units.get(GPU, 0)
    if need:
        return _choose_with_gpus(state, state.gpus, need)
    fresh = None
    for executor in state.idle.values():
        if executor.home == ():
            return executor, None
        if executor.home is None and fresh is None:
            fresh = executor
    return None if fresh is None else (fresh, None)


def _choose_with_gpus(
    state: WorkerState, gpus: GpuPool, need: int
) -> tuple[Executor, GpuShare | None] | None:
    best = gpus.find(need)
    if best is None:
        return None
    count = -(-need // UNIT)
    warm = fresh = None
    for executor in state.idle.values():
        home = executor.home
        if home == best.indices:
            return executor, best
        if home is None:
            fresh = fresh or executor
        elif warm is None and len(home) == count:
            share = GpuShare(home, need)
            warm = (executor, share) if gpus.can_take(share) else None
    if warm is not None:
        return warm
    return None if fresh is None else (fresh, best)


def squatters(state: WorkerState, executor: Executor, share: GpuShare) -> list[Executor]:
    """List the executors without tasks that still hold on to some of these GPUs."""
    wanted = set(share.indices)
    return [
        other
        for other in state.executors.values()
        if other is not executor and not other.count and other.home and wanted & set(other.home)
    ]


def evict(state: WorkerState, executor: Executor, share: GpuShare) -> bool:
    """End who holds on to these GPUs without a task; whether somebody has yet to go."""
    found = squatters(state, executor, share)
    for other in found:
        kill(state, other, SIGKILL)
    return bool(found)


def end_longest_idle(state: WorkerState) -> None:
    """Make room for an executor that is better suited."""
    if state.idle:
        kill(state, min(state.idle.values(), key=lambda e: e.idle_since), SIGKILL)
