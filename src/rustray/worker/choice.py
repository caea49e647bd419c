"""Which idle executor takes a task, and how there comes to be one.

A process that has worked with GPUs holds on to them (its libraries have seen these and no others,
and keep memory there), so it takes later tasks on the very same GPUs only, and ends before these
go to another process. One whose tasks have found an environment keeps it, and takes no others.
"""

from __future__ import annotations

from rustray.common.resources import GPU
from rustray.worker.backlog import Lane
from rustray.worker.gpus import GpuShare
from rustray.worker.leases import SIGKILL, kill
from rustray.worker.records import PLAIN_HOME, Executor, Home
from rustray.worker.state import WorkerState


def choose(state: WorkerState, lane: Lane) -> tuple[Executor, GpuShare | None] | None:
    """Return the idle executor for a lane's first task, and its GPUs; None: none is suited.

    The lane's demand must fit, and some executor must be idle. Nothing is changed.
    """
    if not state.is_mixed:
        return next(iter(state.idle.values())), None
    need = lane.demand.units.get(GPU, 0)
    best = None
    if need and state.gpus is not None:
        best = state.gpus.find(need)
        if best is None:
            return None
    wanted = Home(lane.key.runtime_env, best.indices if best is not None else ())
    warm = fresh = None
    for executor in state.idle.values():
        home = home_of(executor)
        if home == wanted:
            return executor, best
        if home is None:
            fresh = fresh or executor
        elif warm is None and best is not None:
            warm = _on_its_own_gpus(state, executor, home, wanted, need)
    if warm is not None:
        return warm
    return None if fresh is None else (fresh, best)


def home_of(executor: Executor) -> Home | None:
    """Return what an executor has become, None for one that has had no task."""
    if executor.home is None and executor.classes:
        return PLAIN_HOME
    return executor.home


def _on_its_own_gpus(
    state: WorkerState, executor: Executor, home: Home, wanted: Home, need: int
) -> tuple[Executor, GpuShare] | None:
    """Return an executor with the GPUs that it has worked with, if these will do and are free."""
    if home.runtime_env != wanted.runtime_env or len(home.gpus) != len(wanted.gpus):
        return None
    share = GpuShare(home.gpus, need)
    assert state.gpus is not None
    return (executor, share) if state.gpus.can_take(share) else None


def squatters(state: WorkerState, executor: Executor, share: GpuShare) -> list[Executor]:
    """List the executors without tasks that still hold on to some of these GPUs."""
    wanted = set(share.indices)
    return [
        other
        for other in state.executors.values()
        if other is not executor
        and not other.count
        and other.home is not None
        and wanted & set(other.home.gpus)
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
