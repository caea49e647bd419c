"""Every rule that holds between the scheduler's structures after each event."""

from __future__ import annotations

from collections import Counter

from rustray.common.errors import InvariantError
from rustray.common.resources import CPU
from rustray.scheduler.placed import made_of
from rustray.scheduler.records import Batch, Lease, StoredOutcome
from rustray.scheduler.results import size_of
from rustray.scheduler.state import SchedulerState
from rustray.scheduler.variants import can_run
from rustray.task.columns import PlacedColumn, StoredColumn
from rustray.task.inputs import producers_of
from rustray.task.state import DEAD_STATES, TaskState


def check(state: SchedulerState) -> None:
    """Check all rules; slow, for tests and simulations.

    Raises:
        InvariantError: names the rule that is broken.
    """
    columns_agree_with_leases(state)
    counts_agree_with_columns(state)
    queues_hold_what_is_queued(state)
    workers_are_charged_what_they_hold(state)
    leases_are_of_their_class(state)
    outcomes_are_found(state)
    values_that_stay_are_counted(state)
    streams_are_whole(state)
    no_room_is_left_unused(state)
    inputs_are_waited_for_and_kept(state)


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise InvariantError(text)


def columns_agree_with_leases(state: SchedulerState) -> None:
    """A task is with a worker exactly if a live lease covers it."""
    held: Counter[int] = Counter()
    for session in state.sessions.values():
        for batch in session.batches:
            for offset in range(batch.count):
                present = TaskState(batch.state[offset])
                if present is TaskState.QUEUED:
                    _require(batch.lease[offset] == 0, "a queued task has a lease")
                elif not present.is_terminal:
                    lease = state.leases.get(batch.lease[offset])
                    _require(lease is not None, "a leased task has no lease")
                    assert lease is not None
                    inside = lease.low <= offset < lease.low + lease.count
                    _require(lease.batch is batch and inside, "a lease does not cover its task")
                    held[lease.number] += 1
    for number, lease in state.leases.items():
        _require(lease.remaining == held[number] > 0, "a lease miscounts its tasks")
        _require(lease.worker.leases.get(number) is lease, "a worker does not know its lease")
        known = state.workers.get(lease.worker.worker_id) is lease.worker
        _require(known or lease.worker is state.ghost, "a lease belongs to a forgotten worker")


def counts_agree_with_columns(state: SchedulerState) -> None:
    """The counts by state, pending tasks and bytes are those of the columns."""
    counts: Counter[int] = Counter()
    pending = pending_bytes = 0
    principals: dict[str, tuple[int, int]] = {}
    for session in state.sessions.values():
        for batch in session.batches:
            counts.update(batch.state)
            unfinished = sum(byte < TaskState.SUCCEEDED for byte in batch.state)
            _require(batch.unfinished == unfinished, "a batch miscounts its unfinished tasks")
            _require((batch.payloads is None) == (unfinished == 0), "payloads outlive their batch")
            pending += unfinished
            size = len(batch.payloads.blob) if batch.payloads else 0
            pending_bytes += size
            if unfinished:
                tasks, held = principals.get(batch.principal, (0, 0))
                principals[batch.principal] = (tasks + unfinished, held + size)
    for present in TaskState:
        _require(state.counts[present] == counts[present], f"the count of {present.name} is wrong")
    held = sum(map(len, state.code.values()))
    _require(state.code_bytes == held, "the bytes of code and packages are miscounted")
    _require(state.pending_tasks == pending, "pending tasks are miscounted")
    _require(state.pending_bytes == pending_bytes, "pending bytes are miscounted")
    counted = {name: (one.tasks, one.bytes) for name, one in state.principals.items()}
    _require(counted == principals, "what is pending of a principal is miscounted")


def queues_hold_what_is_queued(state: SchedulerState) -> None:
    """Each queued task stands in its class queue exactly once, and can be found by dispatch."""
    queued = delayed = 0
    for queue in state.queues.values():
        number = 0
        seen: set[tuple[int, int]] = set()
        for span in queue.spans:
            for offset in range(span.low, span.high):
                if span.batch.state[offset] == TaskState.QUEUED:
                    key = (span.batch.number, offset)
                    _require(key not in seen, "a task is queued twice")
                    seen.add(key)
                    number += 1
        _require(queue.queued == number, "a queue miscounts its tasks")
        queued += number
        if number:
            listed = queue.is_blocked and queue in state.blocked
            _require(
                listed or state.storage.is_stalled,
                "a queue with work is neither placed nor blocked",
            )
    for session in state.sessions.values():
        for batch in session.batches:
            delayed += len(batch.delayed)
            for offset in batch.delayed:
                _require(batch.state[offset] == TaskState.QUEUED, "a task pauses that has gone on")
    _require(state.delayed == delayed, "tasks that pause are miscounted")
    aside = sum(len(b.missing) for s in state.sessions.values() for b in s.batches)
    _require(state.set_aside == aside, "tasks that lack inputs are miscounted")
    is_complete = queued + delayed + aside == state.counts[TaskState.QUEUED]
    _require(is_complete, "a queued task neither pauses, nor lacks inputs, nor is in a queue")


def workers_are_charged_what_they_hold(state: SchedulerState) -> None:
    """A worker's load is the demand of its leases."""
    for worker in state.workers.values():
        tasks = idle = 0
        units: Counter[str] = Counter()
        for lease in worker.leases.values():
            if lease.is_idle:
                idle += 1
                continue
            tasks += lease.remaining
            for name, need in lease.variant.task_class.resources.units.items():
                units[name] += need * lease.remaining
            if lease.blocked:
                need = lease.variant.task_class.resources.units.get(CPU, 0)
                units[CPU] -= need * len(lease.blocked)
                _holds_what_is_blocked(lease)
        _require(worker.load.tasks == tasks, "a worker's task count is wrong")
        _require(worker.followers == idle, "a worker miscounts what waits for others of its tasks")
        leased = {name: amount for name, amount in worker.load.leased.items() if amount}
        _require(leased == {k: v for k, v in units.items() if v}, "a worker's load is wrong")
        levels: Counter[str] = Counter()
        for level in worker.leased_by_level.values():
            levels.update(level)
        _require({k: v for k, v in levels.items() if v} == leased, "priorities' loads are wrong")


def leases_are_of_their_class(state: SchedulerState) -> None:
    """A lease is of a way in which its class may run."""
    for lease in state.leases.values():
        is_own = any(lease.variant is known for known in lease.batch.queue.variants)
        _require(is_own, "a lease is of another class's way to run")


def _holds_what_is_blocked(lease: Lease) -> None:
    for offset in lease.blocked or ():
        place = lease.low + offset
        is_held = lease.batch.lease[place] == lease.number
        is_open = lease.batch.state[place] < TaskState.SUCCEEDED
        _require(is_held and is_open, "a task waits for others that its worker does not run")


def outcomes_are_found(state: SchedulerState) -> None:
    """Each ended task points to the outcome that covers it, or to an expired one."""
    sizes: Counter[str] = Counter()
    live: Counter[StoredOutcome] = Counter()
    buried = {batch for _, _, batch in state.tombstones}
    for session in state.sessions.values():
        for batch in session.batches:
            is_over = not (batch.unfinished or batch.kept)
            _require(is_over == (batch in buried), "a batch of which nothing is left is not buried")
            kept = [outcome for outcome in batch.outcomes if outcome is not None]
            _require(batch.kept == len(kept), "a batch miscounts its outcomes")
            for one in kept:
                _stands_right(state, one)
                live[one] = 0
                kind = "letters" if one.state in DEAD_STATES else "results"
                kind = "staying" if one.has_stayed and kind == "results" else kind
                sizes["large" if one.is_large and not one.has_stayed else kind] += size_of(one)
            for offset in range(batch.count):
                if not TaskState(batch.state[offset]).is_terminal:
                    continue
                stored = batch.outcomes[batch.lease[offset]]
                if stored is None:
                    continue
                inside = stored.offset <= offset < stored.offset + len(stored.payloads)
                _require(inside, "an outcome does not cover its task")
                _require(stored.state == batch.state[offset], "an outcome has another state")
                live[stored] += 1
    for kind in ("results", "large", "letters", "staying"):
        shelf = getattr(state, kind)
        _require(shelf.bytes == sizes[kind], f"the bytes of {kind} are miscounted")
        spent = sum(one.is_evicted for one in shelf.queue)
        _require(shelf.spent == spent, f"the shelf of {kind} miscounts what has gone")
    for outcome, number in live.items():
        _require(outcome.live == number > 0, "an outcome miscounts its tasks")


def _stands_right(state: SchedulerState, one: StoredOutcome) -> None:
    waits = one.is_large and not isinstance(one.payloads, StoredColumn)
    _require((one.number in state.unstored) == waits, "a large result is miscounted")
    _require(one.batch.outcomes[one.index] is one, "an outcome is misplaced")
    _require(not one.is_evicted, "an outcome that was evicted is there")


def inputs_are_waited_for_and_kept(state: SchedulerState) -> None:
    """What a task takes is waited for or there, and is kept until the task has ended."""
    _require(not state.doomed, "a task whose inputs cannot be had has not ended")
    pins: Counter[StoredOutcome] = Counter()
    for session in state.sessions.values():
        for batch in session.batches:
            for offset in range(batch.count) if batch.inputs is not None else ():
                if not TaskState(batch.state[offset]).is_terminal:
                    _takes_right(state, batch, offset, pins)
    for session in state.sessions.values():
        for batch in session.batches:
            for stored in batch.outcomes:
                if stored is not None:
                    _require(stored.pins == pins[stored], "a result miscounts who takes it")


def _takes_right(
    state: SchedulerState, batch: Batch, offset: int, pins: Counter[StoredOutcome]
) -> None:
    lacking = 0
    assert batch.inputs is not None
    for prefix, sequence in producers_of(batch.inputs[offset]):
        found = state.find(prefix, sequence)
        if found is None:
            continue
        producer, place = found
        if TaskState(producer.state[place]).is_terminal:
            stored = producer.outcomes[producer.lease[place]]
            if stored is not None:
                pins[stored] += 1
            continue
        lacking += 1
        waits = (batch, offset) in producer.dependants.of(place)
        _require(waits, "a task is not told of when its input is there")
    if batch.state[offset] == TaskState.QUEUED and offset not in batch.delayed:
        _require(batch.missing.get(offset, 0) == lacking, "a task miscounts what it lacks")


def values_that_stay_are_counted(state: SchedulerState) -> None:
    """Each is noted with its worker, and what it was made of knows of it."""
    heirs: Counter[tuple[Batch, int]] = Counter()
    noted: Counter[tuple[Batch, int]] = Counter()
    for session in state.sessions.values():
        for batch in session.batches:
            noted.update({(batch, offset): count for offset, count in batch.heirs.items()})
            for stored in batch.outcomes:
                if stored is None or stored.place is None:
                    continue
                kept = state.kept_by.get(stored.place.worker_id, {})
                is_kept = kept.get(stored.place.object_id) is stored
                _require(is_kept or stored.is_lost, "a value is not noted with its worker")
                heirs.update(made_of(state, stored))
    _require(heirs == noted, "what values are made of is miscounted")
    _require(not state.to_remake, "a value that is needed and lost is not being made again")
    for worker_id, kept in state.kept_by.items():
        _require(bool(kept), "a worker is noted that keeps nothing")
        for object_id, stored in kept.items():
            _is_kept_right(worker_id, object_id, stored)


def _is_kept_right(worker_id: str, object_id: str, stored: StoredOutcome) -> None:
    place = stored.place
    is_named = place is not None and (place.worker_id, place.object_id) == (worker_id, object_id)
    _require(is_named and not stored.is_evicted, "a worker is taken to keep what is forgotten")
    is_value = stored.state is TaskState.SUCCEEDED and type(stored.payloads) is PlacedColumn
    _require(is_value and stored.has_stayed, "what stays with a worker is no value")
    is_needed = stored.pins > 0 or not stored.is_released
    _require(is_needed, "a value that was let go, and that nobody takes, stays with its worker")


def streams_are_whole(state: SchedulerState) -> None:
    """What is kept of a stream goes from where its consumer is to its end, without a gap."""
    for session in state.sessions.values():
        for batch in session.batches:
            for stream in batch.streams.values():
                at = stream.consumed
                for first, payloads in stream.items:
                    _require(first == at and len(payloads) > 0, "a stream has a gap")
                    at += len(payloads)
                _require(stream.has_left or at == stream.have, "a stream miscounts its items")
                size = sum(payloads.size_bytes for _, payloads in stream.items)
                _require(stream.bytes == size, "a stream miscounts its bytes")


def no_room_is_left_unused(state: SchedulerState) -> None:
    """No task waits while a ready worker stands idle that could run it, unless the disk stalls."""
    if state.storage.is_stalled:
        return
    for queue in state.queues.values():
        if queue.queued <= 0:
            continue
        for worker in state.workers.values():
            if worker.state != "ready" or worker.load.tasks:
                continue
            _require(not can_run(queue, worker), "an idle worker could run a task")
