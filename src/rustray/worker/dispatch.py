"""Which queued tasks start where: the worker's own little scheduler.

Order is priority, then arrival. A task that needs more than is free is passed by later
ones that fit, for one second; after that the free resources are kept for it.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from rustray.common.resources import GPU, UNBOUNDED
from rustray.task.runtime_env import RuntimeEnv
from rustray.task.spec import ExecutorKind
from rustray.worker.backlog import Lane
from rustray.worker.blocking import may_start, resume_woken
from rustray.worker.choice import choose, end_longest_idle, evict
from rustray.worker.events import (
    DefineClass,
    DispatchTasks,
    PrepareExecutor,
    StartExecutor,
    WatchMemory,
)
from rustray.worker.exclusive import guard
from rustray.worker.gpus import GpuShare
from rustray.worker.records import NEVER, Executor, Home, Lease, Phase, Segment, WorkClass
from rustray.worker.state import LOOK_AFTER_S, WorkerState

CHUNK_US: Final = 2_000.0
"""Work that is handed to an executor at once."""
MAX_CHUNK: Final = 256
MAX_CHUNK_BYTES: Final = 256 * 1024
PREFETCH_BELOW_US: Final = 10_000.0
"""Longer tasks gain nothing from one that waits in the executor, and it could not be overtaken."""
BYPASS_S: Final = 1.0


class _Verdict(Enum):
    PLACED = 1
    NO_EXECUTOR = 2
    NO_RESOURCES = 3
    NO_SUITED_EXECUTOR = 4
    """One is about to start, and the resources are kept for it."""


def dispatch(state: WorkerState, now: float) -> None:
    """Hand out all that can start now.

    Complexity: O(lanes + executors) per chunk handed out.
    """
    reserved = resume_woken(state) if state.waking else {}
    lanes = state.backlog.lanes
    if not lanes or state.has_left or state.outbox.is_full or state.is_store_paused:
        return
    waiting = list(lanes.values())
    can_top_up = True
    while waiting:
        lane = min(waiting, key=Lane.order) if len(waiting) > 1 else waiting[0]
        verdict = _place(state, lane, reserved, can_top_up, now)
        if verdict is _Verdict.PLACED:
            lane.blocked_at = None
            if not lane.segments:
                waiting.remove(lane)
                state.backlog.drop_if_empty(lane)
            continue
        waiting.remove(lane)
        if lane.kind is ExecutorKind.PROCESS:
            # Executors must be able to run empty for the better lane.
            can_top_up = False
        if verdict is _Verdict.NO_RESOURCES and lane.blocked_at is None:
            lane.blocked_at = now
        if verdict is _Verdict.NO_SUITED_EXECUTOR or (
            lane.blocked_at is not None and now - lane.blocked_at >= BYPASS_S
        ):
            for name, units in lane.demand.units.items():
                reserved[name] = reserved.get(name, 0) + units


def _place(
    state: WorkerState, lane: Lane, reserved: dict[str, int], can_top_up: bool, now: float
) -> _Verdict:
    if not may_start(state, lane):
        lane.blocked_at = None  # nothing is kept for it
        return _Verdict.NO_EXECUTOR
    fits = _count_fits(state, lane, reserved)
    if lane.kind is not ExecutorKind.PROCESS:
        return _place_shared(state, lane, fits, now)
    work = lane.segments[0].lease.work
    if fits and state.idle:
        found = choose(state, lane)
        if found is None:
            _grow(state, now, may_evict=True)
            return _Verdict.NO_SUITED_EXECUTOR
        executor, share = found
        if share is not None and evict(state, executor, share):
            return _Verdict.NO_SUITED_EXECUTOR
        del state.idle[executor.executor_id]
        _settle_in(state, executor, lane, share)
        executor.charge = lane.demand
        executor.is_solo = work.is_solo
        state.charge(lane.demand)
        _give(state, executor, lane, work, now)
        return _Verdict.PLACED
    if can_top_up and not work.is_solo and 0 < work.mean_us <= PREFETCH_BELOW_US:
        room = _find_room(state, lane)
        if room is not None:
            _give(state, room, lane, work, now)
            return _Verdict.PLACED
    if not fits:
        return _Verdict.NO_RESOURCES
    if not 0 < work.mean_us < CHUNK_US:
        _grow(state, now)
    return _Verdict.NO_EXECUTOR


def _settle_in(state: WorkerState, executor: Executor, lane: Lane, share: GpuShare | None) -> None:
    """Give an executor its GPUs, and note that it can have no others from now on."""
    if not state.is_mixed:
        return
    executor.home = Home(lane.key.runtime_env)
    if share is not None and state.gpus is not None:
        state.gpus.take(share)
        executor.share = share
        executor.home = Home(lane.key.runtime_env, share.indices)


def _count_fits(state: WorkerState, lane: Lane, reserved: dict[str, int]) -> int:
    fits = state.fits(lane.demand)
    if not reserved or not fits:
        return fits
    free = state.free
    left = {name: free.get(name, 0) - reserved.get(name, 0) for name in lane.demand.units}
    return min(fits, lane.demand.times_in(left)) if left else UNBOUNDED


def _find_room(state: WorkerState, lane: Lane) -> Executor | None:
    """Return the executor with the least to do of those that may get more of a lane, or None."""
    found, least_us = None, NEVER
    for executor in state.executors.values():
        backlog_us = executor.backlog_us
        if (
            executor.count
            and backlog_us < least_us
            and (backlog_us <= CHUNK_US or executor.count == 1)
            and executor.charge == lane.demand
            and (not state.is_mixed or executor.setting.runtime_env == lane.key.runtime_env)
            and executor.phase is Phase.READY
            and not (executor.is_solo or executor.is_reclaiming)
            and not (executor.stopping or executor.blocked)
        ):
            found, least_us = executor, backlog_us
    return found


def chunk_size(state: WorkerState, lane: Lane, work: WorkClass) -> int:
    """Say how many tasks to hand out at once: about two milliseconds of work."""
    most = _most_at_once(work)
    if most <= 1:
        return 1
    size = min(most, -(-lane.count // state.slots))
    payloads = lane.segments[0].lease.payloads
    if len(payloads.blob) > MAX_CHUNK_BYTES:
        size = min(size, MAX_CHUNK_BYTES * len(payloads) // len(payloads.blob))
    return max(size, 1)


def _most_at_once(work: WorkClass) -> int:
    """Say how many tasks are about two milliseconds of work; 0: one is more than that."""
    if work.is_solo or not work.mean_us:
        return 1
    return min(int(CHUNK_US / work.mean_us), MAX_CHUNK)


def _give(state: WorkerState, executor: Executor, lane: Lane, work: WorkClass, now: float) -> None:
    limit, most = chunk_size(state, lane, work), _most_at_once(work)
    if executor.count == 0:
        executor.since = now
        executor.is_start_told = False
        executor.is_answer_old, executor.stuck_at = executor.is_reclaiming, NEVER
        state.arm(executor, now + LOOK_AFTER_S)
        if work.task_class.timeout_s:
            executor.limit_at = now + work.task_class.timeout_s
            state.arm(executor, executor.limit_at)
        if work.task_class.exclusive:
            guard(state, executor, lane.segments[0].lease)
        if work.memory_limit:
            _weigh(state, executor, lane.segments[0], work.memory_limit)
    while limit and lane.segments and lane.segments[0].lease.work is work:
        lease, low, high = lane.take(limit)
        limit -= high - low
        most -= high - low
        last = executor.segments[-1] if executor.segments else None
        is_next = last is not None and last.lease is lease and last.high == low
        if last is not None and is_next and last.cost_us == work.mean_us:
            last.high = high
        else:
            executor.segments.append(Segment(lease, low, high, work.mean_us))
        executor.count += high - low
        executor.backlog_us += (high - low) * work.mean_us if work.mean_us else NEVER
        _send(state, executor, lease, low, high, now, executor.share)
        if state.followers and most > 0 and now >= work.apart_until:
            most -= _give_along(state, executor, lease, high - 1, most, now)
            limit = min(limit, most)


def _give_along(
    state: WorkerState, executor: Executor, lease: Lease, offset: int, most: int, now: float
) -> int:
    """Give an executor what follows its last task too, and what follows that; returns how many.

    Each link takes the result of the one before where that is made: a quick chain costs no way
    from process to process for each.
    """
    work, size = lease.work, 0
    for count in range(most):
        waiting = state.followers.get((lease.number, offset), ())
        # One that is along already is on its way back from an executor.
        if len(waiting) != 1 or waiting[0].work is not work or waiting[0].is_along:
            return count
        (lease,), offset = waiting, 0
        size += len(lease.payloads.blob)
        if size > MAX_CHUNK_BYTES:
            return count
        lease.is_along = True
        executor.segments.append(Segment(lease, 0, 1, work.mean_us))
        executor.count += 1
        executor.backlog_us += work.mean_us
        _send(state, executor, lease, 0, 1, now, executor.share)
    return most


def _weigh(state: WorkerState, executor: Executor, first: Segment, limit: int) -> None:
    """Have an executor's memory watched for the task that it is about to be given."""
    executor.is_weighed = True
    state.commands.append(
        WatchMemory(executor.executor_id, executor.pid, first.lease.number, first.low, limit)
    )


def _send(
    state: WorkerState,
    executor: Executor,
    lease: Lease,
    low: int,
    high: int,
    now: float,
    share: GpuShare | None,
) -> None:
    work = lease.work
    due, timeout_s = lease.due, work.task_class.timeout_s
    if timeout_s:
        due = min(due, now + timeout_s)
    setting = work.setting
    if state.gpus is not None:
        ids = () if share is None else state.gpus.names(share)
        setting = setting._replace(gpu_ids=ids)
    if executor.setting != setting:
        executor.setting = setting
        state.commands.append(PrepareExecutor(executor.executor_id, setting))
    if work.number not in executor.classes:
        executor.classes.add(work.number)
        state.commands.append(
            DefineClass(executor.executor_id, work.number, work.task_class, work.code)
        )
    state.commands.append(
        DispatchTasks(
            executor.executor_id,
            work.number,
            lease.number,
            low,
            lease.attempt,
            lease.prefix,
            lease.first + low,
            lease.payloads.slice(low, high),
            due,
            *(lease.streams.get(low, (0, 0)) if lease.streams else (0, 0)),
            lease.follows,
        )
    )


def _place_shared(state: WorkerState, lane: Lane, fits: int, now: float) -> _Verdict:
    if not fits:
        return _Verdict.NO_RESOURCES
    executor = state.shared.get((lane.kind, lane.key.runtime_env))
    if executor is None:
        start_executor(state, lane.kind, now, runtime_env=lane.key.runtime_env)
        return _Verdict.NO_EXECUTOR
    if executor.phase is not Phase.READY or executor.room <= 0:
        return _Verdict.NO_EXECUTOR
    share = None
    need = lane.demand.units.get(GPU, 0)
    if need and state.gpus is not None:
        share = state.gpus.find(need)
        assert share is not None  # the demand fits
        if evict(state, executor, share):
            return _Verdict.NO_SUITED_EXECUTOR
        state.gpus.take(share)
    lease, low, high = lane.take(min(fits, executor.room) if share is None else 1)
    state.charge(lane.demand, high - low)
    keys = [(lease.number, offset) for offset in range(low, high)]
    executor.running.update(dict.fromkeys(keys, (lease, now)))
    executor.fresh.update(dict.fromkeys(keys, now))
    executor.count += high - low
    state.arm(executor, now + LOOK_AFTER_S)
    timeout_s = lease.work.task_class.timeout_s
    if timeout_s:
        executor.limits.update(dict.fromkeys(keys, now + timeout_s))
        executor.limit_at = min(executor.limit_at, now + timeout_s)
        state.arm(executor, executor.limit_at)
    if share is not None:
        executor.shares[keys[0]] = share
    _send(state, executor, lease, low, high, now, share)
    return _Verdict.PLACED


def _grow(state: WorkerState, now: float, *, may_evict: bool = False) -> None:
    processes = [e for e in state.executors.values() if not (e.is_shared or e.blocked)]
    # One at a time: what is just starting may be all that was missing.
    if any(e.phase is Phase.STARTING for e in processes):
        return
    if len(processes) < state.limits.max_executors:
        start_executor(state, ExecutorKind.PROCESS, now, is_extra=True)
    elif may_evict and all(e.phase is not Phase.KILLED for e in processes):
        end_longest_idle(state)


def start_executor(
    state: WorkerState,
    kind: ExecutorKind,
    now: float,
    *,
    is_extra: bool = False,
    runtime_env: RuntimeEnv | None = None,
) -> None:
    """Start one, unless the pool is not there yet or executors keep dying."""
    if not state.is_pool_started or now < state.heal_at or state.has_left:
        return
    concurrency = {
        ExecutorKind.PROCESS: 1,
        ExecutorKind.THREAD: state.limits.thread_concurrency,
        ExecutorKind.ASYNC: state.limits.async_concurrency,
    }[kind]
    state.last_executor += 1
    executor = Executor(state.last_executor, kind, concurrency, now, is_extra=is_extra)
    state.executors[executor.executor_id] = executor
    if executor.is_shared:
        executor.home = Home(runtime_env) if runtime_env is not None else None
        state.shared[executor.shelf] = executor
    state.commands.append(StartExecutor(executor.executor_id, kind, concurrency))
