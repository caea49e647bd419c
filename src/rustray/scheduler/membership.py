"""Workers that join, report, fall silent, come back, or leave."""

from __future__ import annotations

import heapq

from rustray.common.errors import (
    CommunicationError,
    ConfigError,
    RustRayError,
    WorkerLost,
    WorkerNotFound,
)
from rustray.common.resources import CPU, UNIT, ResourceSet
from rustray.scheduler import hand_over, placed, recovery
from rustray.scheduler.cancellation import remind
from rustray.scheduler.commands import (
    CancelLease,
    CloseSession,
    DrainWorker,
    ForgetWorker,
    PersistWorker,
    PublishEvents,
    RefuseWorker,
)
from rustray.scheduler.completion import (
    cancelled_payloads,
    failure_payloads,
    finish,
    give_back,
    owned_runs,
    requeue,
)
from rustray.scheduler.events import (
    DrainRequested,
    HeartbeatReceived,
    WorkerDied,
    WorkerDisconnected,
    WorkerJoined,
    WorkerReported,
)
from rustray.scheduler.load_balancer import WorkerLoad
from rustray.scheduler.nesting import on_blocked, on_resumed
from rustray.scheduler.news import may_speak, on_news
from rustray.scheduler.placement import unblock_all
from rustray.scheduler.records import Part, WorkerRecord
from rustray.scheduler.retrying import on_outcome, retry_or_fail
from rustray.scheduler.stale import OLD_SESSION, OUT_OF_RANGE, count_stale, lease_of
from rustray.scheduler.state import SchedulerState
from rustray.scheduler.streams import may_yield, on_items
from rustray.scheduler.variants import forget_worker
from rustray.task.frames import HeldRange, LeaseRange
from rustray.task.result import FailureInfo
from rustray.task.state import TaskState
from rustray.task.views import WorkerInfo

MAX_CORES = 100_000
LATE_S = 0.1
SECOND_LOOK = 1.5
"""How long, in times of the lease's, a head that was frozen listens before it judges: workers that
have lost it meanwhile pause up to ten seconds between two tries."""
FROZEN_AGAIN = 1 / 3
"""How late the second look may be, in times of the lease's: one that only has too much to do judges
all the same."""
RUN_GRACE_S = 5.0
"""How long the head waits beyond a run limit for the worker, which enforces it first."""


def on_joined(state: SchedulerState, event: WorkerJoined) -> None:
    """Register a worker, or one that lost its connection; its stream comes next."""
    info = event.info
    try:
        total = ResourceSet.of(info.resources)
    except ValueError as error:
        text = f"its resources are not plausible: {error}"
        _refuse(state, event, "resources", text, ConfigError)
        return
    if total.units.get(CPU, 0) > MAX_CORES * UNIT:
        text = f"it claims {info.resources[CPU]:g} cores, at most {MAX_CORES} count"
        _refuse(state, event, "resources", text, ConfigError)
        return
    try:
        for function in info.functions:
            ResourceSet.of(function.resources)
    except ValueError as error:
        text = f"the needs of its function {function.name} make no sense: {error}"
        _refuse(state, event, "function", text, ConfigError)
        return
    worker = state.workers.get(info.worker_id)
    if worker is not None and info.incarnation < worker.info.incarnation:
        _refuse(state, event, "incarnation", "a newer start of this worker is registered")
        return
    if worker is not None and info.incarnation > worker.info.incarnation:
        lose(state, worker, "it was started anew")
        worker = None
    for function in info.functions:
        state.functions[function.name] = function
    for queue in state.queues.values():
        forget_worker(queue, info.worker_id)
    if worker is None:
        worker = new_worker(state, event.info, event.session, total)
        placed.on_worker_back(state, info.worker_id)
        state.commands.append(PersistWorker(info.worker_id))
    else:
        _set_state(state, worker, "joining")
        worker.info = info
        worker.load.total = dict(total.units)
        worker.functions = frozenset(function.name for function in info.functions)
        worker.session = event.session
    worker.expires_at_s = state.now + state.settings.lease_ttl_s
    state.counters["workers_joined"] += 1


def _refuse(
    state: SchedulerState,
    event: WorkerJoined,
    why: str,
    reason: str,
    kind: type[RustRayError] = CommunicationError,
) -> None:
    state.counters["workers_refused"] += 1
    state.counters[f"workers_refused_{why}"] += 1
    error = kind(f"the head refuses worker {event.info.worker_id}: {reason}")
    state.commands.append(RefuseWorker(event.info.worker_id, event.session, error))


def new_worker(
    state: SchedulerState, info: WorkerInfo, session: int, total: ResourceSet
) -> WorkerRecord:
    """Enter a worker, whose stream comes next."""
    load = WorkerLoad(
        worker_id=info.worker_id,
        order=state.next_worker,
        total=dict(total.units),
        leased={},
        load=0.0,
        tasks=0,
        by_class={},
        code=set(),
        weight=max(total.units.get(CPU, 0) / UNIT, 1e-4),
    )
    state.next_worker += 1
    worker = WorkerRecord(
        info=info,
        session=session,
        load=load,
        state="joining",
        expires_at_s=state.now + state.settings.lease_ttl_s,
        last_seen_s=state.now,
        functions=frozenset(function.name for function in info.functions),
    )
    state.workers[info.worker_id] = worker
    _start_expiry_timer(state, worker, worker.expires_at_s)
    return worker


def _start_expiry_timer(state: SchedulerState, worker: WorkerRecord, due_s: float) -> None:
    heapq.heappush(state.timers, (due_s, state.next_order, "expiry", worker))
    state.next_order += 1
    worker.look_s = due_s


def _set_state(state: SchedulerState, worker: WorkerRecord, new: str) -> None:
    """Move a worker to another state and keep the load balancer's candidates in step."""
    if worker.state == new:
        return
    if worker.state == "ready":
        state.balancer.remove(worker.load)
        state.freed.pop(worker, None)
    worker.state = new
    if new == "ready":
        state.balancer.add(worker.load)
        state.freed[worker] = None
        unblock_all(state)
        hand_over.on_worker_ready(state)
    elif new == "draining":
        hand_over.begin(state, worker)


def on_reported(state: SchedulerState, event: WorkerReported) -> None:
    """Take a frame of a worker's stream."""
    worker = state.workers.get(event.worker_id)
    if worker is None or worker.session != event.session:
        _count_old(state, event)
        return
    worker.last_seen_s = state.now
    # A frame is as good a sign of life as a heartbeat, which is a call of its own and may be stuck.
    # (What a worker stops when it is alone goes by the heartbeats that it knows to be answered.)
    worker.expires_at_s = state.now + state.settings.lease_ttl_s
    if event.held is not None:
        for lease in worker.leases.values():  # it tells again what waits
            state.unblock(lease, lease.low, lease.low + lease.count)
        _reconcile(state, worker, event.held)
        is_leaving = event.is_draining or worker.worker_id in state.leaving
        if is_leaving and not event.is_draining:
            state.commands.append(DrainWorker(worker.worker_id))  # it was not told, or not heard
        _set_state(state, worker, "draining" if is_leaving else "ready")
    elif event.is_draining:
        _set_state(state, worker, "draining")
    _on_running(state, worker, event)
    for outcome in event.outcomes:
        on_outcome(state, worker, outcome)
    for returned in event.returned:
        give_back(state, worker, returned)
    if event.has_drained:
        lose(state, worker, "it left")


def _on_running(state: SchedulerState, worker: WorkerRecord, event: WorkerReported) -> None:
    """Take what running tasks say, and how they do."""
    _take_words(state, worker, event)
    for started in event.started:  # before the ends: what is told of both had started first
        _on_started(state, worker, started)
    for blocked in event.blocked:
        _on_started(state, worker, blocked)
        on_blocked(state, worker, blocked)
    for resumed in event.resumed:
        on_resumed(state, worker, resumed)


def _count_old(state: SchedulerState, event: WorkerReported) -> None:
    count_stale(state, OLD_SESSION, len(event.outcomes) + len(event.returned) + 1)
    if event.items:
        count_stale(state, OLD_SESSION, sum(len(one.payloads) for one in event.items), "items")


def _take_words(state: SchedulerState, worker: WorkerRecord, event: WorkerReported) -> None:
    """Take what running tasks say and yield. Who speaks has started; and spoke before it ended."""
    for item in event.news:
        if may_speak(state, worker, item):
            _on_started(state, worker, LeaseRange(item.lease, item.offset, 1))
            on_news(state, worker, item)
    for items in event.items:
        if may_yield(state, worker, items):
            _on_started(state, worker, LeaseRange(items.lease, items.offset, 1))
            on_items(state, worker, items)


def _reconcile(state: SchedulerState, worker: WorkerRecord, held: tuple[HeldRange, ...]) -> None:
    """Compare what a worker holds with what it was given; neither side may keep a ghost.

    What the worker does not have never reached it, or was lost: it is queued again at no cost to
    its budget. What an earlier head gave it, and nobody else has, is its own again. What is left
    is to be dropped by the worker.
    """
    has: dict[int, set[int]] = {}
    by_lease: dict[int, list[HeldRange]] = {}
    for part in held:
        by_lease.setdefault(part.lease, []).append(part)
    for number, parts in sorted(by_lease.items()):  # what follows others comes after these
        lease = worker.leases.get(number) or recovery.adopt(state, worker, parts)
        for part in parts:
            if lease is None or part.offset < 0 or part.offset + part.count > lease.count:
                if lease is None:
                    lease_of(state, worker, number, 1)
                else:
                    count_stale(state, OUT_OF_RANGE)
                state.commands.append(
                    CancelLease(worker.worker_id, number, part.offset, part.count, force=True)
                )
                continue
            has.setdefault(number, set()).update(range(part.offset, part.offset + part.count))
    for lease in reversed(list(worker.leases.values())):
        kept = has.get(lease.number, set())
        missing = [offset for offset in range(lease.count) if offset not in kept]
        for offset in reversed(missing):
            if (
                lease.batch.lease[lease.low + offset] == lease.number
                and not TaskState(lease.batch.state[lease.low + offset]).is_terminal
            ):
                state.counters["tasks_redelivered"] += 1
                give_back(state, worker, LeaseRange(lease.number, offset, 1))
    remind(state, worker)
    placed.ask_again(state, worker)
    hand_over.on_worker_back(state, worker)
    recovery.note_return(state, worker)


def _on_started(state: SchedulerState, worker: WorkerRecord, started: LeaseRange) -> None:
    lease = lease_of(state, worker, started.lease, 1)
    if lease is None:
        return
    state.wake(lease)
    batch = lease.batch
    timeout_s = batch.queue.task_class.timeout_s
    for part in owned_runs(state, lease, started.offset, started.count):
        offsets = worker.running.setdefault(lease.number, set())
        offsets.update(range(part.low - lease.low, part.high - lease.low))
        if part.state is not TaskState.LEASED:
            continue
        state.set_state(part, TaskState.RUNNING)
        state.commands.append(
            PublishEvents(
                batch.prefix,
                batch.first + part.low,
                part.count,
                TaskState.RUNNING,
                lease.attempt,
                worker.worker_id,
                batch.queue.task_class.function,
                None,
                batch.durability,
            )
        )
        if timeout_s:
            subject = (lease, part.low, part.high)
            due = state.now + timeout_s + RUN_GRACE_S
            heapq.heappush(state.timers, (due, state.next_order, "run", subject))
            state.next_order += 1


def on_heartbeat(state: SchedulerState, event: HeartbeatReceived) -> bool:
    """Renew a worker's leases; return whether this session is known."""
    worker = state.workers.get(event.worker_id)
    if worker is None or worker.session != event.session:
        state.counters["stale_heartbeats"] += 1
        why = "unknown_worker" if worker is None else OLD_SESSION
        state.counters[f"stale_heartbeats_{why}"] += 1
        return False
    worker.last_seen_s = state.now
    worker.expires_at_s = state.now + state.settings.lease_ttl_s
    worker.reported_running = event.running
    worker.is_full = event.is_full
    if event.held is not None and worker.state in ("ready", "draining"):
        # What the worker has beyond the head's books (cancelled, out of time) it will report in
        # vain; what it lacks would wait for ever.
        theirs = dict(event.held)
        if any(theirs.get(n, 0) < lease.remaining for n, lease in worker.leases.items()):
            state.counters["sessions_out_of_step"] += 1
            state.commands.append(
                CloseSession(worker.worker_id, worker.session, "it lacks tasks that it was given")
            )
    return True


def on_disconnected(state: SchedulerState, event: WorkerDisconnected) -> None:
    """A stream broke: no new work, but its leases run on until they expire."""
    worker = state.workers.get(event.worker_id)
    if worker is None or worker.session != event.session:
        return
    worker.last_seen_s = state.now
    _set_state(state, worker, "disconnected")


def on_died(state: SchedulerState, event: WorkerDied) -> None:
    """The worker's process is certainly gone: no need to wait for its leases to end."""
    worker = state.workers.get(event.worker_id)
    if worker is not None and worker.session == event.session:
        lose(state, worker, "its process died")


def on_drain(state: SchedulerState, event: DrainRequested) -> None:
    """Send a worker away in order.

    Raises:
        WorkerNotFound: no such worker.
    """
    worker = state.workers.get(event.worker_id)
    if worker is None:
        known = ", ".join(sorted(state.workers)) or "none"
        raise WorkerNotFound(f"no worker {event.worker_id!r}; there are: {known}")
    if worker.state in ("joining", "disconnected"):
        hand_over.begin(state, worker)  # it is told when it is back
        return
    _set_state(state, worker, "draining")
    state.commands.append(DrainWorker(worker.worker_id))


def on_expiry(state: SchedulerState, worker: WorkerRecord) -> None:
    """A worker's leases may have run out.

    A head that comes to look late was frozen, and could not hear anybody: it finds its timers due
    before it has read what has arrived meanwhile. So it looks again, as late as a restarted one;
    and once more if it was frozen at that time too.
    """
    if state.workers.get(worker.worker_id) is not worker and worker is not state.ghost:
        return
    if worker.expires_at_s > state.now:
        worker.is_doubted = False
        _start_expiry_timer(state, worker, worker.expires_at_s)
        return
    ttl_s = state.settings.lease_ttl_s
    has_waited = worker.is_doubted and state.now - worker.look_s <= ttl_s * FROZEN_AGAIN
    if state.now - worker.expires_at_s > LATE_S and not has_waited:
        worker.is_doubted = True
        second_look_s = state.now + ttl_s * SECOND_LOOK
        _start_expiry_timer(state, worker, second_look_s)
        return
    if worker is state.ghost:
        recovery.end(state)
        return
    state.commands.append(
        CloseSession(worker.worker_id, worker.session, "no heartbeat within the lease")
    )
    lose(state, worker, f"it was silent for {state.settings.lease_ttl_s:g} s")


def lose(state: SchedulerState, worker: WorkerRecord, reason: str) -> None:
    """Give a worker's tasks to others and forget it.

    Only tasks that may have been running pay with a retry: those that it reported as started, and
    the oldest unreported ones up to its number of slots.
    """
    _set_state(state, worker, "disconnected")
    worker.is_lost = True
    suspects = _possibly_started(worker)
    info = FailureInfo(
        WorkerLost.code,
        f"worker {worker.worker_id} was lost ({reason}) while it ran the task, "
        "and its retries are used up; raise max_retries if the task is safe to repeat",
    )
    for lease in reversed(list(worker.leases.values())):
        marked = suspects.get(lease.number, set())
        for part in reversed(owned_runs(state, lease, 0, lease.count)):
            lease.remaining -= part.count
            if part.state is TaskState.CANCELLING:
                cancelled = cancelled_payloads(part.count)
                finish(state, part, TaskState.CANCELLED, cancelled, worker)
                continue
            for piece, is_suspect in _split(part, lease.low, marked):
                if is_suspect:
                    retry_or_fail(state, lease, piece, failure_payloads(piece.count, info))
                else:
                    requeue(state, lease, piece)
        state.leases.pop(lease.number, None)
    worker.leases.clear()
    state.overfull.pop(worker, None)
    state.freed.pop(worker, None)
    state.workers.pop(worker.worker_id, None)
    _forget_functions(state, worker)
    for queue in state.queues.values():
        forget_worker(queue, worker.worker_id)
    state.commands.append(ForgetWorker(worker.worker_id))
    placed.on_worker_lost(state, worker.worker_id)
    hand_over.on_worker_lost(state, worker.worker_id)
    state.counters["workers_lost" if reason != "it left" else "workers_left"] += 1


def _forget_functions(state: SchedulerState, gone: WorkerRecord) -> None:
    """Describe functions as those who are left do; one that nobody offers stays remembered."""
    for function in gone.info.functions:
        if state.functions.get(function.name) is not function:
            continue
        for worker in sorted(state.workers.values(), key=lambda one: one.load.order):
            for other in worker.info.functions if function.name in worker.functions else ():
                if other.name == function.name:
                    state.functions[function.name] = other


def _possibly_started(worker: WorkerRecord) -> dict[int, set[int]]:
    found = {number: set(offsets) for number, offsets in worker.running.items()}
    slots = max(1, round(worker.load.weight))
    for lease in worker.leases.values():
        # What is to run once at most is suspect as soon as it is leased: a worker that was cut off
        # may have run all that it held, and its reports are lost.
        is_strict = lease.batch.queue.task_class.max_retries == 0
        if (slots <= 0 and not is_strict) or lease.is_idle:
            continue  # (what has begun in the last moment pays with the task that it follows)
        for offset in range(lease.count):
            index = lease.low + offset
            if lease.batch.lease[index] != lease.number or lease.batch.state[index] in _NOT_HELD:
                continue
            found.setdefault(lease.number, set()).add(offset)
            slots -= 1
            if slots == 0 and not is_strict:
                break
    return found


_NOT_HELD = frozenset(
    {
        TaskState.QUEUED,
        TaskState.SUCCEEDED,
        TaskState.FAILED,
        TaskState.CANCELLED,
        TaskState.TIMED_OUT,
        TaskState.POISONED,
    }
)


def _split(part: Part, base: int, marked: set[int]) -> list[tuple[Part, bool]]:
    """Split a part, last first, into runs of tasks that are all marked or all not.

    Args:
        part: Of the batch.
        base: Where the lease begins in the batch.
        marked: Offsets in the lease.
    """
    if not marked:
        return [(part, False)]
    found: list[tuple[Part, bool]] = []
    start = part.low
    for offset in range(part.low + 1, part.high + 1):
        is_marked = start - base in marked
        if offset == part.high or (offset - base in marked) != is_marked:
            found.append((Part(part.batch, start, offset, part.state), is_marked))
            start = offset
    return found[::-1]
