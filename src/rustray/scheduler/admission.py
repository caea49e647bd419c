"""What the head accepts, and what it refuses with which error."""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b

from rustray.common.counting import count_refused
from rustray.common.durability import Durability
from rustray.common.errors import (
    DuplicateTask,
    DurabilityNotAvailable,
    FunctionNotFound,
    PayloadError,
    ResourceExhausted,
    ResourceNotAvailable,
    RustRayError,
)
from rustray.scheduler import inputs, placed
from rustray.scheduler.backpressure import fitting
from rustray.scheduler.commands import (
    AcceptTasks,
    DeliverOutcome,
    PersistBatch,
    PersistCode,
    PersistDurability,
    PublishEvents,
    RejectTasks,
    ReportUnknown,
)
from rustray.scheduler.completion import finish
from rustray.scheduler.deadlines import end_queued_if_due, start_batch_timers
from rustray.scheduler.events import CodeReceived, FollowRequested, TasksSubmitted
from rustray.scheduler.nesting import STALE, stale_runs
from rustray.scheduler.placement import new_queue
from rustray.scheduler.records import DIGEST_BYTES, Batch, ClassQueue, Part, StoredOutcome
from rustray.scheduler.state import SchedulerState, runs
from rustray.scheduler.variants import can_run, nearest_miss, needs_of
from rustray.scheduler.view import outcome_of
from rustray.task.columns import PayloadColumn, PlacedColumn
from rustray.task.functions import near_names
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState

FULL_RETRY_S = 5.0
MAX_CODE_BYTES = 1 << 30
"""Of all functions and packages that tasks need which are not over yet."""
STALLED_RETRY_S = 1.0


def on_submitted(state: SchedulerState, event: TasksSubmitted) -> None:
    """Accept or refuse consecutive tasks; those that are there already count as accepted."""
    count = len(event.payloads)
    error = durability_error(state, event.durability)
    if error is not None:
        _refuse(state, event.prefix, event.first, count, error)
        _drop_code(state, event.task_class)
        return
    known = state.overlapping(event.prefix, event.first, count)
    low = 0
    for batch in known:
        start = max(batch.first - event.first, 0)
        end = min(batch.first + batch.count - event.first, count)
        if low < start:
            _accept(state, event, low, start)
        for a, b, is_stale in stale_runs(batch, event, start, end):
            if is_stale:
                _refuse(state, event.prefix, event.first + a, b - a, STALE)
            else:
                _match_known(state, event, batch, a, b)
        low = end
    if low < count:
        _accept(state, event, low, count)
    elif known:
        _drop_code(state, event.task_class)


def _drop_code(state: SchedulerState, task_class: TaskClass) -> None:
    """Forget code that came with tasks of which none was accepted."""
    if task_class not in state.queues:
        state.forget_blobs(task_class)


def _level_of(state: SchedulerState, event: TasksSubmitted) -> Durability:
    """Return the level that is asked for; of exclusive tasks the head's at least.

    They are not to be begun while a head after this one might not know of them.
    """
    level, own = event.durability, state.settings.durability
    return max(level, own) if event.task_class.exclusive else level or own


def durability_error(state: SchedulerState, asked: Durability) -> DurabilityNotAvailable | None:
    """Say why a level cannot be had here, or None: a head with a journal has them all."""
    if asked <= Durability.MEMORY or state.settings.durability is not Durability.MEMORY:
        return None
    return DurabilityNotAvailable(
        f"durability={asked.label!r} cannot be had from this head: it runs at the level 'memory' "
        "and keeps no journal, and so does every embedded cluster (rustray.init() without an "
        f"address). Use a head that was started with --durability {asked.label}, or leave "
        "durability out"
    )


def on_code(state: SchedulerState, event: CodeReceived) -> None:
    """Keep the code of a function; the tasks that need it follow."""
    if state.storage.is_full or state.storage.is_stalled or event.code_hash in state.code:
        return  # the tasks that follow are refused, or it is here
    if len(event.code) + state.code_bytes > MAX_CODE_BYTES:
        return
    state.code_bytes += len(event.code)
    state.code[event.code_hash] = event.code
    state.commands.append(PersistCode(event.code_hash, event.code))


def _accept(state: SchedulerState, event: TasksSubmitted, low: int, high: int) -> None:
    """Accept tasks that are not known yet, but for those that take what cannot be had."""
    if event.inputs is None:
        _accept_fresh(state, event, low, high)
        return
    for place, error in inputs.refusals(state, event, low, high).items():
        if low < place:
            _accept_fresh(state, event, low, place)
        _refuse(state, event.prefix, event.first + place, 1, error)
        low = place + 1
    if low < high:
        _accept_fresh(state, event, low, high)
    else:
        _drop_code(state, event.task_class)


def _accept_fresh(state: SchedulerState, event: TasksSubmitted, low: int, high: int) -> None:
    payloads = event.payloads.slice(low, high)
    first = event.first + low
    queue = new_queue(state, event.task_class)
    count = high - low
    fit, error = 0, refusal(state, queue, payloads) or _shape_error(state, event)
    if error is None:
        fit, error = fitting(state, event.principal, payloads)
    if error is not None:
        _refuse(state, event.prefix, first + fit, count - fit, error)
    if fit == 0:
        if queue.batches == 0:
            state.drop_queue(queue)
        return
    payloads = payloads.slice(0, fit)
    # What is put is kept as a result, and only there.
    arguments = PayloadColumn.of([b""] * fit) if event.task_class.is_put else payloads
    batch = Batch(
        state.next_batch,
        event.prefix,
        first,
        fit,
        queue,
        arguments,
        event.is_pushed,
        state.now,
    )
    if event.inputs is not None:
        batch.inputs = event.inputs.slice(low, low + fit)
    if not event.is_pushed or event.task_class.depth:
        batch.digests = digests(payloads)
    if event.time_left_s is not None:
        batch.deadline_s = state.now + event.time_left_s
    state.next_batch += 1
    queue.batches += 1
    state.insert(batch)
    batch.principal, batch.near = event.principal, event.near
    batch.durability = _level_of(state, event)
    state.count_pending(batch, batch.count, len(arguments.blob))
    state.counts[TaskState.QUEUED] += batch.count
    state.counters["tasks_accepted"] += batch.count
    _announce(state, event, batch)
    if event.task_class.is_put:
        finish(state, Part(batch, 0, fit, TaskState.QUEUED), TaskState.SUCCEEDED, payloads, None)
        return
    start_batch_timers(state, batch)
    inputs.register(state, batch, 0, fit)
    inputs.queue_fresh(state, batch, 0, fit)
    end_queued_if_due(state, batch)


def _announce(state: SchedulerState, event: TasksSubmitted, batch: Batch) -> None:
    """Persist a new batch, then tell whoever wants to know."""
    commands, first = state.commands, batch.first
    assert batch.payloads is not None
    commands.append(
        PersistBatch(
            batch.number,
            batch.prefix,
            first,
            event.task_class,
            batch.payloads,
            event.is_pushed,
            event.deadline_unix_s,
            event.principal,
            batch.durability,
            batch.inputs,
        )
    )
    commands.append(AcceptTasks(batch.prefix, first, batch.count, False, batch.durability))
    function = event.task_class.function
    commands.append(
        PublishEvents(
            batch.prefix, first, batch.count, TaskState.QUEUED, 0, "", function, None,
            batch.durability,
        )
    )  # fmt: skip


def _refuse(
    state: SchedulerState, prefix: bytes, first: int, count: int, error: RustRayError
) -> None:
    count_refusal(state, error, count)
    state.commands.append(RejectTasks(prefix, first, count, error))


def count_refusal(state: SchedulerState, error: RustRayError, count: int) -> None:
    """Count refused tasks: all, by the error's code, and by the limit that was reached."""
    count_refused(state.counters, "tasks_rejected", error, count)


def _match_known(
    state: SchedulerState, event: TasksSubmitted, batch: Batch, low: int, high: int
) -> None:
    """Compare tasks that exist already with what was submitted again under their ids.

    A session that hands in tasks again has lost its stream before it learned that they were
    accepted: it gets the outcomes that it may have missed as well.
    """
    first = event.first + low
    start = first - batch.first
    end = start + high - low
    if event.rejects_known:
        exists = DuplicateTask("a task with this id or idempotency key exists already")
        _refuse(state, event.prefix, first, high - low, exists)
        return
    if (
        _is_same_class(event, batch.queue.task_class)
        and _are_same_arguments(batch, start, end, event.payloads.slice(low, high))
        and _are_same_inputs(batch, start, end, event, low, high)
    ):
        state.counters["tasks_deduplicated"] += high - low
        asked = _level_of(state, event)
        if asked > batch.durability:
            batch.durability = asked
            state.commands.append(PersistDurability(batch.number, batch.durability))
        state.commands.append(AcceptTasks(batch.prefix, first, high - low, True, batch.durability))
        if event.is_pushed:
            batch.is_pushed = True
            _send_again(state, batch, start, end)
        return
    error = DuplicateTask(
        "a task with this id or idempotency key exists already and has other content; "
        "give the new task an id or key of its own",
    )
    _refuse(state, event.prefix, first, high - low, error)


def _is_same_class(event: TasksSubmitted, known: TaskClass) -> bool:
    """Compare what callers said; what the head filled in may have changed since."""
    asked = event.task_class
    if event.horizon and asked.code_hash and known.code_hash and "<" not in asked.function:
        # Of an attempt, whose own code is that of the one before: a function of a module, by its
        # name. Its pickle need not be the same to the byte where it was loaded anew; what is made
        # while a task runs ("<locals>", "<lambda>") may hold anything, and must be.
        asked = replace(asked, code_hash=known.code_hash)
    if not asked.code_hash and asked.executor is not known.executor:
        asked = replace(asked, executor=known.executor)
    if event.uses_default_resources and asked.resources != known.resources:
        asked = replace(asked, resources=known.resources)
    return asked == known


def _are_same_arguments(batch: Batch, low: int, high: int, payloads: PayloadColumn) -> bool:
    """Compare arguments; those of a session that are gone are taken for the same.

    A session makes its ids itself and never uses one twice; what it hands in again is what it lost
    the answer of. Ids that a caller has chosen may stand for anything.
    """
    known = batch.payloads
    if batch.queue.task_class.is_put:  # (only sessions put)
        return batch.digests is None or batch.digests[low:high] == digests(payloads)
    if known is not None and batch.revived is None:
        return known.slice(low, high) == payloads
    if batch.digests is not None:
        return batch.digests[low:high] == digests(payloads)
    if known is None:
        return True
    # After a retry there may be nothing of those that have ended.
    return all(
        TaskState(byte).is_terminal
        or known.slice(start, end) == payloads.slice(start - low, end - low)
        for start, end, byte in runs(batch.state, low, high)
    )


def _are_same_inputs(
    batch: Batch, start: int, end: int, event: TasksSubmitted, low: int, high: int
) -> bool:
    if batch.inputs is None or event.inputs is None:
        return batch.inputs is event.inputs
    return batch.inputs.slice(start, end) == event.inputs.slice(low, high)


def digests(payloads: PayloadColumn) -> list[bytes]:
    """Return what is kept of arguments, to compare them with others."""
    return [blake2b(item, digest_size=DIGEST_BYTES).digest() for item in payloads]


def refusal(
    state: SchedulerState, queue: ClassQueue, payloads: PayloadColumn
) -> RustRayError | None:
    """Say why none of these tasks can be accepted, or None; see `backpressure` for how many."""
    if state.storage.is_full or state.storage.is_stalled:
        return storage_error(state)
    settings = state.settings
    task_class = queue.task_class
    size = len(payloads.blob)
    if size > settings.max_payload_bytes:
        largest = max(map(len, payloads))
        if largest > settings.max_payload_bytes:
            return PayloadError(
                f"the arguments of one task take {largest} bytes, at most "
                f"{settings.max_payload_bytes} are allowed ([scheduler] max_payload_bytes); "
                "pass a path or a smaller piece instead"
            )
    if task_class.is_put:
        return None
    return call_error(state, task_class) or feasibility_error(state, queue)


def _shape_error(state: SchedulerState, event: TasksSubmitted) -> RustRayError | None:
    """Say that a class and what comes with its tasks contradict each other, or None."""
    task_class = event.task_class
    if task_class.has_inputs != (event.inputs is not None):
        return PayloadError("the task's inputs are not what its class says")
    if task_class.is_put and (task_class.has_inputs or task_class.num_returns != 1):
        return PayloadError("what is put takes no inputs, and is one value")
    payloads = event.payloads
    if isinstance(payloads, PlacedColumn):
        return placed.put_error(state, payloads, is_put=task_class.is_put)
    return None


def storage_error(state: SchedulerState) -> ResourceExhausted:
    """Say why the disk under the journal allows no new tasks."""
    if state.storage.is_full:
        state.counters["submits_refused_disk_full"] += 1
        return ResourceExhausted(
            "the head's disk has less room than it keeps in reserve ([scheduler] disk_reserve_mb), "
            "so no new tasks are accepted; those that are accepted go on. Make room there; it is "
            "noticed within seconds",
            retry_after_s=FULL_RETRY_S,
            reason="DISK_FULL",
        )
    state.counters["submits_refused_disk_slow"] += 1
    return ResourceExhausted(
        "the head's disk does not keep up: too much waits to be committed. Submit again in a "
        "moment, or use a faster disk for the state directory",
        retry_after_s=STALLED_RETRY_S,
        reason="DISK_SLOW",
    )


def call_error(state: SchedulerState, task_class: TaskClass) -> RustRayError | None:
    """Check name and arguments of a call to a registered function."""
    if not all(map(state.code.__contains__, task_class.blobs)):
        return PayloadError(
            f"the code of {task_class.function}, or a package of its runtime_env, has not arrived "
            "at the head, or has no room there; submit it again"
        )
    offered = task_class.offered_function
    if not offered:
        return None
    info = state.functions.get(offered)
    if info is None:
        if state.ghost is not None or not (state.workers or state.functions):
            return None  # No worker has joined (again): the one that offers it may come.
        if task_class.wait_for_resources:
            return None
        near = near_names(offered, state.functions)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else (
            "offered are: " + (", ".join(sorted(state.functions)[:10]) or "none") + "."
        )  # fmt: skip
        return FunctionNotFound(
            f"no worker offers a function {offered!r}; {hint} "
            "Start a worker with --functions MODULE, or have the task wait for one "
            "(wait_for_resources=True, --wait-for-resources)."
        )
    if task_class.nargs < 0:
        return None
    problem = info.check_call(task_class.nargs, task_class.kwarg_names)
    if problem:
        return PayloadError(f"{info.signature} cannot be called like this: {problem}")
    return None


def feasibility_error(state: SchedulerState, queue: ClassQueue) -> RustRayError | None:
    """Check that some worker could ever run the class; name the nearest miss if not."""
    task_class = queue.task_class
    if task_class.wait_for_resources or state.ghost is not None or not state.workers:
        return None
    for worker in state.workers.values():
        if can_run(queue, worker):
            return None
    offered = task_class.offered_function
    if offered and not any(offered in worker.functions for worker in state.workers.values()):
        return None  # A worker that offered it has left, and may come back.
    best: tuple[int, float, str] | None = None
    for worker in state.workers.values():
        count, gap, misses = nearest_miss(queue, worker)
        text = f"{worker.worker_id} comes nearest: " + ", ".join(misses)
        candidate = (count, gap, text)
        if best is None or candidate < best:
            best = candidate
    nearest = best[2] if best else ""
    return ResourceNotAvailable(
        f"no worker can ever run {task_class.function} with {needs_of(queue)}; {nearest}. "
        "Ask for less, add such a worker, or have the task wait for one "
        "(wait_for_resources=True, --wait-for-resources)."
    )


def on_follow(state: SchedulerState, event: FollowRequested) -> None:
    """Send a client that came back what has ended meanwhile, and name what is not known."""
    sequence = event.first
    end = event.first + event.count
    while sequence < end:
        found = state.find(event.prefix, sequence)
        if found is None:
            known = state.overlapping(event.prefix, sequence, end - sequence)
            stop = known[0].first if known else end
            state.commands.append(ReportUnknown(event.prefix, sequence, stop - sequence))
            sequence = stop
            continue
        batch, offset = found
        batch.is_pushed = True
        stop_offset = min(batch.count, offset + end - sequence)
        _send_again(state, batch, offset, stop_offset)
        sequence += stop_offset - offset


def _send_again(state: SchedulerState, batch: Batch, low: int, high: int) -> None:
    offset = low
    while offset < high:
        if not TaskState(batch.state[offset]).is_terminal:
            offset += 1
            continue
        stored = batch.outcomes[batch.lease[offset]]
        if stored is None or stored.is_evicted:
            state.commands.append(ReportUnknown(batch.prefix, batch.first + offset, 1))
            offset += 1
            continue
        end = min(high, stored.offset + len(stored.payloads))
        if stored.live < len(stored.payloads):  # some of its tasks were retried, and go on
            end = next((at for at in range(offset, end) if not _is_of(batch, at, stored)), end)
        outcome = outcome_of(stored, offset, end)
        state.commands.append(DeliverOutcome(batch.prefix, outcome, True, batch.durability))
        offset = end


def _is_of(batch: Batch, offset: int, stored: StoredOutcome) -> bool:
    """Whether this is how a task has ended, and not how it had before it was retried."""
    return TaskState(batch.state[offset]).is_terminal and batch.lease[offset] == stored.index
