"""What executors tell: readiness, outcomes, tasks given back, and their death."""

from __future__ import annotations

from signal import Signals
from typing import Final

from rustray.task.frames import LeaseOutcome
from rustray.task.result import FailureInfo
from rustray.task.spec import ExecutorKind
from rustray.task.state import TaskState
from rustray.worker.dispatch import start_executor
from rustray.worker.events import (
    DIRECT_LEASES,
    ExecutorExited,
    ExecutorReady,
    ExecutorReported,
    ExecutorReturned,
    ExecutorTold,
)
from rustray.worker.leases import (
    CANCELLED,
    SIGKILL,
    SIGTERM,
    end_if_retired,
    kill,
    reclaim,
    route_unstarted,
    stop_last,
)
from rustray.worker.memory import describe_outgrown
from rustray.worker.records import NEVER, Executor, Lease, Phase, Segment, Stage, Stop
from rustray.worker.state import WorkerState

EARLY_DEATH_S: Final = 1.0
FIRST_HEAL_PAUSE_S: Final = 0.1
LAST_HEAL_PAUSE_S: Final = 10.0
MAX_LOG_TAIL: Final = 2_000
APART_S: Final = 1.0
"""So long links go to executors one by one after a result that was too large to be taken there."""
_NOBODY: Final = (0, -1)
_MEASURED: Final = (TaskState.SUCCEEDED, TaskState.FAILED)


def ready(state: WorkerState, event: ExecutorReady, now: float) -> None:
    """Let an executor take tasks."""
    executor = state.executors.get(event.executor_id)
    if executor is None or executor.phase is not Phase.STARTING:
        return
    executor.phase = Phase.READY
    executor.pid = event.pid
    executor.idle_since = now
    if not executor.is_shared:
        state.note_idle(executor, now)


def reported(state: WorkerState, event: ExecutorReported, now: float) -> None:
    """Take outcomes; what the executor does not hold (any more) is counted and dropped."""
    executor = state.executors.get(event.executor_id)
    if executor is None:
        state.counters["stale_outcomes"] += len(event.outcomes)
        return
    executor.has_worked, executor.is_silent = True, False
    was_signalled = _is_signalled(executor)
    state.early_deaths = 0
    for outcome in event.outcomes:
        _take(state, executor, outcome, now)
    _end_if_signalled(state, executor, was_signalled)
    end_if_retired(state, executor)


def _is_signalled(executor: Executor) -> bool:
    return any(stop.stage is Stage.TERM for stop in executor.stopping.values())


def _end_if_signalled(state: WorkerState, executor: Executor, was_signalled: bool) -> None:
    """Kill a process whose task was sent a signal, and is gone: it may die at any moment."""
    if was_signalled and not (executor.stopping or executor.is_shared):
        kill(state, executor, SIGKILL)


def _take(state: WorkerState, executor: Executor, outcome: LeaseOutcome, now: float) -> None:
    count = len(outcome.payloads)
    number, low = outcome.lease, outcome.offset
    if executor.abandoned:
        _forget_abandoned(state, executor, number, low, count)
    stops = dict(executor.stopping) if executor.stopping else None
    if stops and not executor.is_shared and outcome.state is not TaskState.SUCCEEDED:
        # It has obeyed. What it started need not have, and what it was interrupted in may be
        # half done: the process goes, and its exit is the end of the task.
        kill(state, executor, SIGKILL)
        return
    runs = state.take_out(executor, number, low, low + count, now)
    if not runs:
        state.counters["stale_outcomes"] += 1
        return
    if outcome.state in _MEASURED:
        runs[0][0].work.observe(outcome.run_us, count)
    if stops and outcome.state is not TaskState.SUCCEEDED:
        _settle_stopped(state, runs, outcome, stops)
    elif len(runs) == 1 and runs[0][2] - runs[0][1] == count:
        state.settle(runs[0][0], outcome)
    else:
        for lease, a, b in runs:
            state.settle(lease, _cut(outcome, a, b))


def _forget_abandoned(
    state: WorkerState, executor: Executor, number: int, low: int, count: int
) -> None:
    for key in [k for k in executor.abandoned if k[0] == number and low <= k[1] < low + count]:
        state.release(executor.abandoned.pop(key))
        if key in executor.shares:
            state.free_gpus(executor, [key])


def _cut(outcome: LeaseOutcome, low: int, high: int) -> LeaseOutcome:
    base = outcome.offset
    payloads = outcome.payloads.slice(low - base, high - base)
    run_us = outcome.run_us * (high - low) // len(outcome.payloads)
    return LeaseOutcome(outcome.lease, low, outcome.state, payloads, run_us)


def _settle_stopped(
    state: WorkerState,
    runs: list[tuple[Lease, int, int]],
    outcome: LeaseOutcome,
    stops: dict[tuple[int, int], Stop],
) -> None:
    """Report tasks that were asked to stop as what they were stopped for."""
    for lease, low, high in runs:
        for offset in range(low, high):
            stop = stops.get((lease.number, offset))
            if stop is None:
                state.settle(lease, _cut(outcome, offset, offset + 1))
            else:
                settle_stop(state, lease, offset, stop)


def settle_stop(state: WorkerState, lease: Lease, offset: int, stop: Stop) -> None:
    """Report a task that has stopped, or will not be waited for."""
    if stop.is_timeout:
        limit_s = lease.work.task_class.timeout_s
        text = f"the attempt ran longer than its limit timeout_s={limit_s:g}"
        info = FailureInfo("TASK_TIMEOUT", text, phase="run")
        state.settle_failed(lease, offset, offset + 1, TaskState.TIMED_OUT, info)
    else:
        state.settle_failed(lease, offset, offset + 1, TaskState.CANCELLED, CANCELLED)


def told(state: WorkerState, event: ExecutorTold) -> None:
    """Pass on what running tasks say; what is of no task here, or too much, is counted."""
    executor = state.executors.get(event.executor_id)
    dropped = event.dropped
    for item in event.news:
        if executor is None or not executor.holds(item.lease, item.offset):
            state.counters["stale_news"] += 1
        elif item.lease < DIRECT_LEASES and not state.outbox.add_news(item):
            dropped += 1
    if dropped:
        state.counters["news_dropped"] += dropped


def returned(state: WorkerState, event: ExecutorReturned, now: float) -> None:
    """Take back what an executor has not started, and stop what is left if that is due."""
    executor = state.executors.get(event.executor_id)
    if executor is None:
        return
    # The clock of the task that runs goes on: nothing of it has ended.
    since, is_told = executor.since, executor.is_start_told
    was_signalled = _is_signalled(executor)
    # From the last to the first, so that each goes to the very front of its lane.
    for item in reversed(event.ranges):
        high = item.offset + item.count
        for lease, a, b in state.take_out(executor, item.lease, item.offset, high, now):
            if not event.is_asked and not lease.follows[0]:
                # What it takes was made, and is too large to be handed over there.
                lease.work.apart_until = now + APART_S
            route_unstarted(state, lease, a, b)
    if not event.is_asked:
        executor.is_silent = False
        _end_if_signalled(state, executor, was_signalled)
        return
    is_old, executor.is_answer_old = executor.is_answer_old, False
    stuck_at, executor.stuck_at = executor.stuck_at, NEVER
    executor.is_reclaiming = False
    if executor.count and not executor.is_shared:
        executor.since, executor.is_start_told = since, is_told
        if event.running is not None and not is_old:
            _note_silence(executor)
            executor.is_start_told = True
            state.outbox.tell_start(event.running.lease, event.running.offset)
        if is_old and _is_wanted_back(state, executor):
            reclaim(state, executor)
            executor.stuck_at = stuck_at
            state.arm(executor, stuck_at)
        else:
            stop_last(state, executor, now)


def _note_silence(executor: Executor) -> None:
    """Give an executor nothing more until it has ended what it has: that takes as long as it takes.

    Some of it may have ended, for it reports quick tasks together; the rest is what it runs.
    """
    executor.is_silent, executor.backlog_us = True, NEVER
    for piece in executor.segments:
        piece.cost_us = 0.0


def _is_wanted_back(state: WorkerState, executor: Executor) -> bool:
    """Whether a task that an executor has is to stop, or to go back to the head."""
    return (
        state.is_draining
        or executor.has_cancelled
        or any(
            low < piece.high and piece.low < high
            for piece in executor.segments
            for low, high in piece.lease.recalled
        )
    )


def exited(state: WorkerState, event: ExecutorExited, now: float) -> None:
    """Bury an executor: its running task ends or is blamed, the others find a new place."""
    executor = state.executors.pop(event.executor_id, None)
    if executor is None:
        return
    was_killed = executor.phase is Phase.KILLED
    state.must_heal = True
    state.idle.pop(executor.executor_id, None)
    if state.shared.get(executor.shelf) is executor:
        del state.shared[executor.shelf]
    pieces, stops = executor.pieces(), dict(executor.stopping)
    is_early = now - executor.started_at < EARLY_DEATH_S
    if not pieces and not was_killed and is_early and not executor.has_worked:
        pause_s = FIRST_HEAL_PAUSE_S * (1 << min(state.early_deaths, 10))
        state.early_deaths += 1
        state.heal_at = now + min(pause_s, LAST_HEAL_PAUSE_S)
    _free_all(state, executor, pieces)
    state.unweigh(executor)
    info = _describe_end(state, executor, event, was_killed=was_killed)
    if executor.is_shared:
        for piece in pieces:
            if executor.is_stuck and not _is_to_stop(piece, stops):
                _leave_behind(state, piece.lease, piece.low, piece.high, True, info)
            else:
                _settle_victim(state, piece.lease, piece.low, stops, info)
    elif pieces:
        victim = _find_victim(pieces, event.running, stops)
        if executor.is_stuck and not _is_cancelled(pieces, victim):
            victim = _NOBODY  # it was in the way of one that was to stop, and runs again
        _bury_process(state, pieces, victim, stops, info)


def _is_to_stop(piece: Segment, stops: dict[tuple[int, int], Stop]) -> bool:
    return (piece.lease.number, piece.low) in stops or piece.lease.is_cancelled(piece.low)


def _is_cancelled(pieces: list[Segment], task: tuple[int, int]) -> bool:
    return any(p.lease.number == task[0] and p.lease.is_cancelled(task[1]) for p in pieces)


def _free_all(state: WorkerState, executor: Executor, pieces: list[Segment]) -> None:
    for key in list(executor.blocked):
        state.unblock(executor, key)
    if executor.charge is not None:
        state.release(executor.charge)
    if executor.is_shared:
        for piece in pieces:
            state.release(piece.lease.work.task_class.resources)
    for demand in executor.abandoned.values():
        state.release(demand)
    if executor.share is not None or executor.shares:
        state.free_gpus(executor, list(executor.shares))


def _find_victim(
    pieces: list[Segment], running: tuple[int, int] | None, stops: dict[tuple[int, int], Stop]
) -> tuple[int, int]:
    for key in (running, next(iter(stops), None)):
        if key is not None and any(
            p.lease.number == key[0] and p.low <= key[1] < p.high for p in pieces
        ):
            return key
    # It died between two tasks, or before it could say which: the first one is suspected, or
    # a task that kills its executor so early would be tried for ever.
    return pieces[0].lease.number, pieces[0].low


def _bury_process(
    state: WorkerState,
    pieces: list[Segment],
    victim: tuple[int, int],
    stops: dict[tuple[int, int], Stop],
    info: FailureInfo,
) -> None:
    is_before = True
    for piece in pieces:
        lease, low, high = piece.lease, piece.low, piece.high
        if lease.number == victim[0] and low <= victim[1] < high:
            _leave_behind(state, lease, low, victim[1], True, info)
            _settle_victim(state, lease, victim[1], stops, info)
            is_before = False
            low = victim[1] + 1
        _leave_behind(state, lease, low, high, is_before, info)


def _leave_behind(
    state: WorkerState, lease: Lease, low: int, high: int, is_before: bool, info: FailureInfo
) -> None:
    if low >= high:
        return
    if is_before and lease.work.task_class.max_retries == 0:
        # They have run and only their results are lost: to run them again is the head's choice.
        state.settle_failed(lease, low, high, TaskState.LEASED, info)
    else:
        route_unstarted(state, lease, low, high)


def _settle_victim(
    state: WorkerState,
    lease: Lease,
    offset: int,
    stops: dict[tuple[int, int], Stop],
    info: FailureInfo,
) -> None:
    stop = stops.get((lease.number, offset))
    if stop is None and lease.is_cancelled(offset):
        stop = Stop(is_timeout=False, stage=Stage.TERM, next_at=0.0)
    if stop is not None:
        settle_stop(state, lease, offset, stop)
    else:
        state.settle_failed(lease, offset, offset + 1, TaskState.LEASED, info)


def _describe_end(
    state: WorkerState, executor: Executor, event: ExecutorExited, *, was_killed: bool
) -> FailureInfo:
    if executor.is_cut_off:
        return _describe_cut_off(state.lease_ttl_s)
    if executor.outgrown is not None:
        return describe_outgrown(executor.outgrown)
    if (executor.stopping or executor.is_stuck) and (was_killed or event.signal == SIGTERM):
        return _describe_cleared(event)
    return describe_death(event)


def _describe_cut_off(lease_ttl_s: float) -> FailureInfo:
    return FailureInfo(
        "WORKER_LOST",
        "the worker stopped the task, which is exclusive, before its lease ended: the head did not "
        f"answer for most of lease_ttl_s={lease_ttl_s:g} s",
        phase="contact",
    )


def _describe_cleared(event: ExecutorExited) -> FailureInfo:
    return FailureInfo(
        "WORKER_LOST",
        "the executor process was ended, for another task in it was cancelled, or had run out of "
        "time, and did not stop; this one was in it too, and its result is lost",
        exit_code=event.exit_code,
        signal=event.signal,
    )


def describe_death(event: ExecutorExited) -> FailureInfo:
    """Say how an executor died, for the user whose task ran in it."""
    if event.signal is not None:
        try:
            name = f" ({Signals(event.signal).name})"
        except ValueError:
            name = ""
        how = f"was killed by signal {event.signal}{name}"
        if event.signal == SIGKILL:
            how += ", as the system does when memory runs out"
    else:
        how = f"exited with code {event.exit_code}"
    tail = event.log_tail.strip()[-MAX_LOG_TAIL:]
    ending = f"; its last output:\n{tail}" if tail else ""
    return FailureInfo(
        "WORKER_LOST",
        f"the executor process {how} while it ran the task{ending}",
        exit_code=event.exit_code,
        signal=event.signal,
    )


def heal(state: WorkerState, now: float) -> None:
    """Start process executors until there is one per slot."""
    if not state.is_pool_started or state.is_draining or now < state.heal_at:
        return
    state.must_heal = False
    living = [e for e in state.executors.values() if not e.is_shared and e.phase <= Phase.READY]
    # In the place of one whose task waits for others there is another, for as long.
    alive = sum(not e.blocked for e in living)
    for number in range(alive, state.slots):
        is_extra = number + len(living) - alive >= state.slots
        start_executor(state, ExecutorKind.PROCESS, now, is_extra=is_extra)
