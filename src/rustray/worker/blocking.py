"""Tasks that wait for tasks of their own: they give back their cores, and get them again.

Only cores: what such a task holds of memory or of a GPU it goes on holding. While its executor
stands still another takes its place, so that tasks can wait for tasks to any depth on one core.

How many may wait is bounded, and grows with the depth: a task starts only while fewer executors
wait than `WorkerLimits.max_executors` for each level from the top down to its own. So there is
always a place left for what those that wait are waiting for.
"""

from __future__ import annotations

from rustray.common.resources import CPU
from rustray.task.spec import ExecutorKind
from rustray.worker.backlog import Lane
from rustray.worker.events import DIRECT_LEASES, ResumeTask, TaskBlocked, TaskWoke
from rustray.worker.leases import reclaim
from rustray.worker.records import Executor, Phase
from rustray.worker.state import WorkerState


def take(state: WorkerState, event: TaskBlocked | TaskWoke) -> None:
    """A task waits for others, or wants to go on."""
    if isinstance(event, TaskBlocked):
        _block(state, event)
    else:
        _wake(state, event)


def _block(state: WorkerState, event: TaskBlocked) -> None:
    """Take the cores of a task that waits for others, and what waits behind it."""
    executor = state.executors.get(event.executor_id)
    key = (event.lease, event.offset)
    lease = executor.lease_of(*key) if executor is not None else None
    if executor is None or lease is None or key in executor.blocked:
        state.counters["stale_waits"] += 1
        return
    if executor.phase is Phase.KILLED:
        return
    executor.blocked[key] = lease.work.cores
    state.release(lease.work.cores)
    tell_blocked(state, key, is_blocked=True)
    if executor.is_shared:
        return
    state.blocked_processes += 1
    state.must_heal = True
    if executor.count > 1:
        reclaim(state, executor)


def _wake(state: WorkerState, event: TaskWoke) -> None:
    """A task has what it has waited for, and goes on as soon as it has its cores."""
    executor = state.executors.get(event.executor_id)
    if executor is None or not executor.holds(event.lease, event.offset):
        state.counters["stale_waits"] += 1
    elif (event.lease, event.offset) in executor.blocked:
        state.waking[(event.executor_id, event.lease, event.offset)] = None
    else:
        state.commands.append(ResumeTask(event.executor_id, event.lease, event.offset))


def resume_woken(state: WorkerState) -> dict[str, int]:
    """Let tasks go on that have waited, in order, as far as there are cores.

    Returns:
        What the others want: it is kept for them.
    """
    reserved: dict[str, int] = {}
    for executor_id, number, offset in list(state.waking):
        executor, key = state.executors[executor_id], (number, offset)
        cores = executor.blocked[key].units.get(CPU, 0)
        has_room = not executor.is_shared or executor.room > 0
        if not has_room or state.free.get(CPU, 0) - reserved.get(CPU, 0) < cores:
            reserved[CPU] = reserved.get(CPU, 0) + cores
            continue
        state.unblock(executor, key)
        tell_blocked(state, key, is_blocked=False)
        state.commands.append(ResumeTask(executor_id, number, offset))
    return reserved


def may_start(state: WorkerState, lane: Lane) -> bool:
    """Whether the tasks of a lane may start, so many as are waiting already."""
    if lane.kind is ExecutorKind.PROCESS:
        if not state.blocked_processes:
            return True
        waiting, places = state.blocked_processes, state.limits.max_executors
    else:
        executor: Executor | None = state.shared.get((lane.kind, lane.key.runtime_env))
        if executor is None:
            return True
        waiting, places = len(executor.blocked), executor.concurrency
    return waiting < places * (1 + lane.key.depth)


def tell_blocked(state: WorkerState, key: tuple[int, int], *, is_blocked: bool) -> None:
    """Have the head know what a task holds."""
    if key[0] < DIRECT_LEASES and state.outbox.session is not None:
        state.outbox.waits[key] = is_blocked
