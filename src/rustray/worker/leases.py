"""What the head asks of the worker: grants, cancels, recalls; and the way of unstarted tasks."""

from __future__ import annotations

from typing import Final

from rustray.task.columns import PayloadColumn
from rustray.task.failures import TOLD
from rustray.task.frames import AssignFrame, ClassDefinition, LeaseCancel, LeaseGrant, LeaseRange
from rustray.task.result import FailureInfo
from rustray.task.state import TaskState
from rustray.task.streams import StreamCredit
from rustray.worker.events import (
    DIRECT_LEASES,
    DirectSubmitted,
    Interrupt,
    KillExecutor,
    Reclaim,
)
from rustray.worker.kept_packages import keep_packages
from rustray.worker.records import (
    NEVER,
    Executor,
    Lease,
    Phase,
    Stage,
    Stop,
    WorkClass,
    subtract,
)
from rustray.worker.state import WorkerState, shortage_text
from rustray.worker.streams import credit

SIGKILL: Final = 9
SIGTERM: Final = 15
TIMEOUT_GRACE_S: Final = 1.0
"""After the interrupt of a task that is out of time; the head waits 5 s longer than the limit."""
TIMEOUT_TERM_S: Final = 2.0
"""After its SIGTERM, at most."""
ANSWER_S: Final = 1.0
"""How long an executor may take to say what it has not started, if a task is stopped by force."""
ALIVE_S: Final = 5.0
"""How long a process of several tasks may take to answer once one of them does not obey: it answers
between two turns of their threads, or of its event loop."""
CANCELLED: Final = FailureInfo(
    "TASK_CANCELLED", "the task was cancelled before it ended", phase=TOLD
)

NO_DIRECT_STREAM: Final = FailureInfo(
    "PAYLOAD_ERROR", "a generator's items need a head: hand the task in there, not at a worker"
)


class ProtocolError(Exception):
    """The head sent what makes no sense; the session ends and both sides compare notes."""


def define_class(state: WorkerState, definition: ClassDefinition) -> None:
    """Learn the head's number for a class.

    Raises:
        ProtocolError: the class is bad, or its code was never sent.
    """
    task_class = definition.task_class
    try:
        task_class.validate()
    except ValueError as error:
        raise ProtocolError(f"class {definition.number} is bad: {error}") from None
    code = definition.code
    if task_class.code_hash:
        code = code or state.codes.get(task_class.code_hash, b"")
        if not code:
            raise ProtocolError(f"the code of class {definition.number} was never sent")
        state.codes[task_class.code_hash] = code
    keep_packages(state, definition.packages)
    env = task_class.runtime_env
    if env is not None and not set(env.packages) <= state.packages.keys():
        raise ProtocolError(f"a package of class {definition.number} was never sent")
    state.session_classes[definition.number] = state.intern(task_class, code)


def grant(state: WorkerState, granted: LeaseGrant, now: float) -> None:
    """Queue the tasks of a new lease; a repetition is ignored.

    Raises:
        ProtocolError: it names an unknown class, no tasks, or an impossible number.
    """
    if granted.lease in state.leases or granted.lease in state.closed:
        state.counters["duplicate_grants"] += 1
        return
    work = state.session_classes.get(granted.class_number)
    if work is None:
        raise ProtocolError(f"lease {granted.lease} names the unknown class {granted.class_number}")
    if not 0 < granted.lease < DIRECT_LEASES or not len(granted.payloads):
        raise ProtocolError(f"lease {granted.lease} is empty or has an impossible number")
    if granted.follows[0] and (len(granted.payloads) != 1 or not work.task_class.has_inputs):
        raise ProtocolError(f"lease {granted.lease} follows another, and cannot")
    admit(state, granted, work, now + granted.time_left_s if granted.time_left_s else NEVER)
    for how_far in granted.streams:
        credit(state, StreamCredit(granted.lease, how_far.offset, how_far.have, how_far.consumed))


def grant_direct(state: WorkerState, event: DirectSubmitted) -> None:
    """Queue a task that came through the WorkerService."""
    work = state.intern(event.task_class, b"")
    payloads = PayloadColumn.of([event.payload])
    number = event.lease
    granted = LeaseGrant(number, 0, 1, event.prefix, event.sequence, payloads)
    admit(state, granted, work, NEVER)


def admit(state: WorkerState, granted: LeaseGrant, work: WorkClass, due: float) -> None:
    """Hold a lease, and queue its tasks unless they can never run here."""
    state.arrivals += 1
    count = len(granted.payloads)
    lease = Lease(
        granted.lease,
        work,
        granted.attempt,
        granted.prefix,
        granted.first,
        granted.payloads,
        state.arrivals,
        count,
        due,
        follows=granted.follows,
        followed=granted.follows[0],
    )
    state.leases[lease.number] = lease
    if work.task_class.exclusive and lease.number < DIRECT_LEASES:
        state.exclusive[lease.number] = lease
    demand, total = work.task_class.resources, state.limits.resources.units
    if work.task_class.stream_window and lease.number >= DIRECT_LEASES:
        state.settle_failed(lease, 0, count, TaskState.FAILED, NO_DIRECT_STREAM)
    elif state.is_draining:
        state.give_back(lease, 0, count)
    elif not demand.times_in(total):
        lacking = shortage_text(demand, total)
        info = FailureInfo("RESOURCE_NOT_AVAILABLE", f"this worker can never run it: {lacking}")
        state.settle_failed(lease, 0, count, TaskState.FAILED, info)
    elif granted.follows[0]:
        _wait(state, lease)
    else:
        state.backlog.add(lease, 0, count)


def _wait(state: WorkerState, lease: Lease) -> None:
    """Have a task wait for the one that it follows, if that is here and cannot have ended."""
    number, offset = lease.follows
    before = state.leases.get(number)
    is_here = before is not None and before is not lease and offset < len(before.payloads)
    if before is None or not is_here or before.open < len(before.payloads):
        state.give_back(lease, 0, 1)
    else:
        state.followers.setdefault(lease.follows, []).append(lease)


def cancel(state: WorkerState, request: LeaseCancel, now: float) -> None:
    """Stop tasks: queued ones end at once, running ones are asked, and killed if they go on."""
    lease = state.leases.get(request.lease)
    if lease is None:
        state.counters["stale_requests"] += 1
        return
    low, high = _clip(lease, request.offset, request.count)
    if low >= high:
        return
    mark = (low, high, request.force)
    if mark not in lease.cancelled:
        lease.cancelled.append(mark)
    if not lease.is_along and state.detach(lease):
        state.settle_failed(lease, 0, 1, TaskState.CANCELLED, CANCELLED)
    for a, b in state.backlog.remove(lease, low, high):
        state.settle_failed(lease, a, b, TaskState.CANCELLED, CANCELLED)
    for executor in list(state.executors.values()):
        if lease.open == 0:
            break
        _cancel_in(state, executor, lease, mark, now)


def _cancel_in(
    state: WorkerState, executor: Executor, lease: Lease, mark: tuple[int, int, bool], now: float
) -> None:
    low, high, force = mark
    if executor.is_shared:
        for number, offset in list(executor.running):
            if number == lease.number and low <= offset < high:
                ask_to_stop(state, executor, lease, offset, now, force=force)
        return
    if not any(s.lease is lease and s.low < high and low < s.high for s in executor.segments):
        return
    if executor.count > 1 and not executor.is_silent:
        # Which of them runs is known once the others are back; see `reports.returned`.
        reclaim(state, executor)
        limits = state.limits
        firmly_s = limits.cancel_notice_s + limits.cancel_grace_s + limits.kill_grace_s
        executor.stuck_at = min(executor.stuck_at, now + (ANSWER_S if force else firmly_s))
        state.arm(executor, executor.stuck_at)
    else:
        stop_last(state, executor, now)


def stop_last(state: WorkerState, executor: Executor, now: float) -> None:
    """Stop what a process executor runs, if that was cancelled; nothing may wait behind it."""
    last = executor.last_task()
    if last is None:
        return
    lease, offset = last
    if lease.is_cancelled(offset):
        force = any(f and low <= offset < high for low, high, f in lease.cancelled)
        ask_to_stop(state, executor, lease, offset, now, force=force)


def ask_to_stop(
    state: WorkerState,
    executor: Executor,
    lease: Lease,
    offset: int,
    now: float,
    *,
    force: bool = False,
    is_timeout: bool = False,
) -> None:
    """Ask one task that may be running to stop; `watch` sees to it that it ends."""
    key = (lease.number, offset)
    known = executor.stopping.get(key)
    if known is None:
        known = executor.stopping[key] = Stop(is_timeout, Stage.NOTICE, now)
        if executor.is_shared or not force:
            is_firm = is_timeout or force or state.limits.cancel_notice_s <= 0
            _ask(state, executor, key, known, now, Stage.INTERRUPT if is_firm else Stage.NOTICE)
    if force:
        known.stage, known.next_at = Stage.TERM, now
        if not executor.is_shared:
            kill(state, executor, SIGKILL)
    state.arm(executor, known.next_at)


def _ask(
    state: WorkerState,
    executor: Executor,
    key: tuple[int, int],
    stop: Stop,
    now: float,
    stage: Stage,
) -> None:
    limits = state.limits
    stop.stage = stage
    is_notice = stage is Stage.NOTICE
    state.commands.append(Interrupt(executor.executor_id, *key, is_notice))
    if is_notice:
        stop.next_at = now + limits.cancel_notice_s
    else:
        stop.next_at = now + (TIMEOUT_GRACE_S if stop.is_timeout else limits.cancel_grace_s)


def press(
    state: WorkerState, executor: Executor, key: tuple[int, int], stop: Stop, now: float
) -> bool:
    """Ask more firmly; True if all has been done that can be, but for the last resort."""
    if stop.stage is Stage.NOTICE:
        _ask(state, executor, key, stop, now, Stage.INTERRUPT)
        return False
    if stop.stage is Stage.TERM or executor.is_shared:
        return True
    stop.stage = Stage.TERM
    grace_s = state.limits.kill_grace_s
    stop.next_at = now + (min(grace_s, TIMEOUT_TERM_S) if stop.is_timeout else grace_s)
    state.commands.append(KillExecutor(executor.executor_id, SIGTERM))
    return False


def kill(state: WorkerState, executor: Executor, signal: int) -> None:
    """Signal an executor, once; its exit settles what it held."""
    if executor.phase is Phase.KILLED:
        return
    executor.phase = Phase.KILLED
    state.must_heal = True
    state.idle.pop(executor.executor_id, None)
    if state.shared.get(executor.shelf) is executor:
        del state.shared[executor.shelf]
    state.commands.append(KillExecutor(executor.executor_id, signal))


def end_if_retired(state: WorkerState, executor: Executor) -> None:
    """Kill a retired executor once only abandoned tasks are left in it."""
    if executor.phase is Phase.RETIRED and executor.count == 0:
        kill(state, executor, SIGKILL)


def reclaim(state: WorkerState, executor: Executor) -> None:
    """Ask a process executor for what it has not started, unless that is asked or known."""
    is_idle_talk = executor.is_reclaiming or executor.is_silent
    if not is_idle_talk and executor.phase is not Phase.KILLED:
        executor.is_reclaiming = True
        state.commands.append(Reclaim(executor.executor_id))


def recall(state: WorkerState, wanted: LeaseRange) -> None:
    """Give tasks back to the head, as far as they have not started."""
    lease = state.leases.get(wanted.lease)
    if lease is None:
        state.counters["stale_requests"] += 1
        return
    low, high = _clip(lease, wanted.offset, wanted.count)
    if low >= high:
        return
    if (low, high) not in lease.recalled:
        lease.recalled.append((low, high))
    if not lease.is_along and state.detach(lease):
        state.give_back(lease, 0, 1)
    for a, b in state.backlog.remove(lease, low, high):
        state.give_back(lease, a, b)
    for executor in state.executors.values():
        if executor.count > 1 and any(
            s.lease is lease and s.low < high and low < s.high for s in executor.segments
        ):
            reclaim(state, executor)


def route_unstarted(state: WorkerState, lease: Lease, low: int, high: int) -> None:
    """Find the next place of tasks that an executor gave back or left behind unstarted."""
    lease.is_along = False
    if lease.follows[0] and not _stops_to_follow(state, lease):
        return
    stops = [(a, b) for a, b, _ in lease.cancelled]
    for a, b, is_cancelled in subtract(low, high, stops):
        if is_cancelled:
            state.settle_failed(lease, a, b, TaskState.CANCELLED, CANCELLED)
            continue
        for c, d, is_recalled in subtract(a, b, lease.recalled):
            if is_recalled or state.is_draining:
                state.give_back(lease, c, d)
            else:
                state.backlog.add(lease, c, d)


def _stops_to_follow(state: WorkerState, lease: Lease) -> bool:
    """Whether a task that has not got what it takes waits for that no longer.

    It does so where it was cancelled or asked back, and where nobody makes it any more.
    """
    if any(one is lease for one, _ in state.loose):
        return False  # what it follows has just ended: `following.go_on` sees to it
    is_wanted = lease.is_cancelled(0) or bool(lease.recalled) or state.is_draining
    if lease in state.followers.get(lease.follows, ()) and not is_wanted:
        return False
    if not state.detach(lease) and not lease.is_cancelled(0):
        lease.recalled.append((0, 1))
    return True


def take_frame(state: WorkerState, frame: AssignFrame, now: float) -> None:
    """Do what a frame of the head says; its number has been checked.

    Raises:
        ProtocolError: a part of it makes no sense; the parts before it hold.
    """
    for definition in frame.classes:
        define_class(state, definition)
    for granted in frame.leases:
        grant(state, granted, now)
    for request in frame.cancels:
        cancel(state, request, now)
    for wanted in frame.recall:
        recall(state, wanted)
    for how_far in frame.credits:
        credit(state, how_far)


def _clip(lease: Lease, offset: int, count: int) -> tuple[int, int]:
    return max(offset, 0), min(offset + count, len(lease.payloads))
