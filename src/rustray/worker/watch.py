"""What time alone brings about: run limits, kills, news of long tasks, tasks to rescue.

Nothing ticks: an executor is looked at when one of its own deadlines has come.
"""

from __future__ import annotations

from typing import Final

from rustray.common.resources import CPU, ResourceSet
from rustray.worker.blocking import tell_blocked
from rustray.worker.leases import (
    ALIVE_S,
    SIGKILL,
    ask_to_stop,
    end_if_retired,
    kill,
    press,
    reclaim,
)
from rustray.worker.records import NEVER, Executor, Phase
from rustray.worker.reports import settle_stop
from rustray.worker.state import KEEP_IDLE_EXTRA_S, LOOK_AFTER_S, WorkerState

TELL_START_S: Final = 0.020
_HAIR_S: Final = 1e-6


def look(state: WorkerState, now: float) -> None:
    """Examine the executors whose time has come, and find the next time."""
    if now < state.watch_at:
        return
    for executor in list(state.executors.values()):
        if executor.check_at <= now and executor.phase is not Phase.KILLED:
            executor.check_at = NEVER
            if executor.is_shared:
                _examine_shared(state, executor, now)
            else:
                _examine_process(state, executor, now)
    state.watch_at = min(
        (e.check_at for e in state.executors.values() if e.phase is not Phase.KILLED),
        default=NEVER,
    )


def _examine_process(state: WorkerState, executor: Executor, now: float) -> None:
    if executor.count == 0:
        _let_go(state, executor, now)
        return
    if not executor.is_start_told:
        if now >= executor.since + TELL_START_S:
            first = executor.segments[0]
            executor.is_start_told = True
            state.outbox.tell_start(first.lease.number, first.low)
        else:
            executor.check_at = executor.since + TELL_START_S
    if executor.may_have_more and _has_free_slot(state, executor):
        if now >= executor.since + LOOK_AFTER_S:
            reclaim(state, executor)
        else:
            executor.check_at = min(executor.check_at, executor.since + LOOK_AFTER_S)
    if executor.is_reclaiming and _is_stuck(executor, now):
        kill(state, executor, SIGKILL)
        return
    if now >= executor.limit_at:
        executor.limit_at = NEVER
        first = executor.segments[0]
        ask_to_stop(state, executor, first.lease, first.low, now, is_timeout=True)
    for key, stop in executor.stopping.items():
        if now >= stop.next_at and press(state, executor, key, stop, now):
            kill(state, executor, SIGKILL)
            return
        executor.check_at = min(executor.check_at, stop.next_at)
    executor.check_at = min(executor.check_at, executor.limit_at)


def _is_stuck(executor: Executor, now: float) -> bool:
    """Whether it will not say what it has not started, though a task of it is to stop.

    From behind a task that it runs that is taken; so it stands still between two of them.
    """
    if now >= executor.stuck_at and not executor.has_cancelled:
        executor.stuck_at = NEVER  # it has ended before the answer came, and others are here now
    executor.check_at = min(executor.check_at, executor.stuck_at)
    executor.is_stuck = now >= executor.stuck_at
    return executor.is_stuck


def _has_free_slot(state: WorkerState, executor: Executor) -> bool:
    charge = executor.charge
    return bool(state.idle) and charge is not None and state.fits(charge) > 0


def _let_go(state: WorkerState, executor: Executor, now: float) -> None:
    if not executor.is_extra or executor.phase is not Phase.READY:
        return
    if now >= executor.idle_since + KEEP_IDLE_EXTRA_S:
        kill(state, executor, SIGKILL)  # a task may have left a handler for SIGTERM behind
    else:
        executor.check_at = executor.idle_since + KEEP_IDLE_EXTRA_S


def tell_starts_again(state: WorkerState) -> None:
    """Repeat, in a new session, which tasks have been running for a while, and which wait."""
    for executor in state.executors.values():
        for key in executor.blocked:
            tell_blocked(state, key, is_blocked=True)
        if executor.is_shared:
            for number, offset in executor.running:
                if (number, offset) not in executor.fresh:
                    state.outbox.tell_start(number, offset)
        elif executor.is_start_told and executor.segments:
            last = executor.last_task() if executor.is_silent else None
            lease, offset = last or (executor.segments[0].lease, executor.segments[0].low)
            state.outbox.tell_start(lease.number, offset)


def _examine_shared(state: WorkerState, executor: Executor, now: float) -> None:
    _tell_fresh(state, executor, now)
    if now >= executor.limit_at:
        for key in [k for k, at in executor.limits.items() if at <= now]:
            del executor.limits[key]
            ask_to_stop(state, executor, executor.running[key][0], key[1], now, is_timeout=True)
        executor.limit_at = min(executor.limits.values(), default=NEVER)
    due = [(key, stop) for key, stop in executor.stopping.items() if stop.next_at <= now]
    for key, stop in due:
        if press(state, executor, key, stop, now):
            _abandon(state, executor, key, now)
    if now >= executor.stuck_at:
        executor.is_stuck = True
        kill(state, executor, SIGKILL)
        return
    for stop in executor.stopping.values():
        executor.check_at = min(executor.check_at, stop.next_at)
    executor.check_at = min(executor.check_at, executor.limit_at, executor.stuck_at)
    end_if_retired(state, executor)
    if executor.home is not None and executor.count == 0 and not executor.abandoned:
        # Of an environment that may never be asked for again.
        if now >= executor.idle_since + KEEP_IDLE_EXTRA_S:
            kill(state, executor, SIGKILL)
        else:
            executor.check_at = min(executor.check_at, executor.idle_since + KEEP_IDLE_EXTRA_S)


def _tell_fresh(state: WorkerState, executor: Executor, now: float) -> None:
    fresh = executor.fresh
    while fresh:
        key, started_at = next(iter(fresh.items()))
        if now < started_at + TELL_START_S:
            executor.check_at = started_at + TELL_START_S
            break
        del fresh[key]
        state.outbox.tell_start(*key)


def _abandon(state: WorkerState, executor: Executor, key: tuple[int, int], now: float) -> None:
    """Stop waiting for a thread or coroutine that does not obey.

    To kill the process would take its other tasks along. So it takes no more, and is killed
    as soon as the last of them is done; or at once, if nothing goes on in it: then it does not
    answer either.
    """
    lease, _ = executor.running.pop(key)
    held = lease.work.task_class.resources
    if executor.blocked.pop(key, None) is not None:
        # It has given back its cores, others have them, and it is not asked to go on any more.
        state.waking.pop((executor.executor_id, *key), None)
        held = ResourceSet({name: n for name, n in held.units.items() if name != CPU})
    executor.fresh.pop(key, None)
    executor.limits.pop(key, None)
    executor.count -= 1
    executor.abandoned[key] = held
    executor.phase = Phase.RETIRED
    if state.shared.get(executor.shelf) is executor:
        del state.shared[executor.shelf]
    settle_stop(state, lease, key[1], executor.stopping.pop(key))
    if executor.count:
        reclaim(state, executor)
        executor.stuck_at = min(executor.stuck_at, now + ALIVE_S)


def rescue(state: WorkerState, now: float) -> None:
    """Plan to take tasks from executors that hold several, now that others have nothing."""
    if state.backlog.lanes or len(state.idle) == len(state.executors):
        return
    for executor in state.executors.values():
        if executor.may_have_more:
            state.arm(executor, executor.since + LOOK_AFTER_S)
    look(state, now)
