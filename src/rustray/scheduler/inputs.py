"""Tasks that take what other tasks return: they wait for it, get it, or fail with it.

An edge of the graph costs an entry in the list of those that wait for the producer, and nothing
while nobody waits. A task whose inputs are missing is QUEUED and stands in no queue, and
`Batch.missing` says how many it lacks. What a task takes is *pinned*: it is kept until the task
has ended, however short the room is, for it may have to start again.
"""

from __future__ import annotations

from typing import Final

from rustray.common.errors import ObjectLost, PayloadError, RustRayError
from rustray.common.ids import task_id
from rustray.scheduler.events import TasksSubmitted
from rustray.scheduler.records import Batch, Span, StoredOutcome
from rustray.scheduler.state import SchedulerState, enqueue, push_front, runs
from rustray.task.inputs import MAX_INPUTS, WHOLE, InputValue, producers_of, unpack_inputs
from rustray.task.state import TaskState

DOOMED: Final = -1
"""In `Batch.missing`: an input can never be had, and the task is to end with that."""
LEASE_BYTES: Final = 4 << 20
"""Tasks with inputs are granted together up to so many bytes."""


# ── Accepting ─────────────────────────────────────────────────────────────────────────────────


def refusals(
    state: SchedulerState, event: TasksSubmitted, low: int, high: int
) -> dict[int, RustRayError]:
    """Say which of the event's tasks ``low`` to ``high - 1`` cannot be accepted for what they take.

    What is there, or was handed in before, also in the same range, can be taken: so there are no
    cycles.
    """
    assert event.inputs is not None
    found: dict[int, RustRayError] = {}
    for place in range(low, high):
        error = _refusal_of(state, event, place, event.inputs[place], found)
        if error is not None:
            found[place] = error
    return found


def _refusal_of(
    state: SchedulerState,
    event: TasksSubmitted,
    place: int,
    item: bytes,
    refused: dict[int, RustRayError],
) -> RustRayError | None:
    ids = list(unpack_inputs(item))
    if len(ids) > MAX_INPUTS:
        return PayloadError(
            f"the task takes {len(ids)} references, at most {MAX_INPUTS} are allowed; reduce them "
            "in steps"
        )
    for one in ids:
        before = one.sequence - event.first
        if one.prefix == event.prefix and 0 <= before < len(event.payloads):
            if before >= place:
                return PayloadError("the task takes its own result, or one of a later task")
            if before in refused:
                return refused[before]
            producer = event.task_class
        else:
            known = state.find(one.prefix, one.sequence)
            if known is None:
                return unknown(one.prefix, one.sequence)
            producer = known[0].queue.task_class
        last = producer.num_returns - 1
        if not (one.index <= last if last else one.index == WHOLE):
            name = task_id(one.prefix, one.sequence)
            return PayloadError(f"task {name} returns {producer.num_returns} values, and not that")
    return None


def unknown(prefix: bytes, sequence: int) -> ObjectLost:
    """Return the error for an input that is not there (any more)."""
    return ObjectLost(
        f"the result of task {task_id(prefix, sequence)}, which is an argument, is not known here: "
        "it has expired, was freed, or is another cluster's. Hand in the task that makes it again, "
        "or pass the value"
    )


def register(state: SchedulerState, batch: Batch, low: int, high: int) -> None:
    """Note who waits for what, and pin what is there, for tasks that have not ended."""
    if batch.inputs is None:
        return
    for offset in range(low, high):
        if TaskState(batch.state[offset]).is_terminal:
            continue
        for prefix, sequence in producers_of(batch.inputs[offset]):
            found = state.find(prefix, sequence)
            if found is None:
                continue
            producer, place = found
            if not TaskState(producer.state[place]).is_terminal:
                producer.add_dependant(place, batch, offset)
                continue
            stored = producer.outcomes[producer.lease[place]]
            if stored is not None:
                stored.pins += 1


# ── Waiting ───────────────────────────────────────────────────────────────────────────────────


def queue_fresh(state: SchedulerState, batch: Batch, low: int, high: int) -> None:
    """Queue tasks at the end of their class, as far as their inputs are there."""
    for start, end in _ready_runs(state, batch, low, high):
        batch.queue.spans.append(Span(batch, start, end))
        batch.queue.queued += end - start
    enqueue(state, batch.queue)


def queue_again(state: SchedulerState, batch: Batch, low: int, high: int) -> None:
    """Queue tasks at the front of their class, as far as their inputs are there."""
    for start, end in reversed(_ready_runs(state, batch, low, high)):
        push_front(batch.queue, batch, start, end)
    enqueue(state, batch.queue)


def _ready_runs(state: SchedulerState, batch: Batch, low: int, high: int) -> list[tuple[int, int]]:
    """Return the runs of QUEUED tasks that lack nothing; the others are set aside."""
    if batch.inputs is None:
        return [(low, high)]
    column = bytes(count_missing(state, batch, offset) for offset in range(low, high))
    return [
        (low + start, low + end) for start, end, lacks in runs(column, 0, high - low) if not lacks
    ]


def count_missing(state: SchedulerState, batch: Batch, offset: int) -> bool:
    """Whether a QUEUED task lacks inputs; it is counted as set aside then."""
    # (What is lost with its worker is made again at the end of the event: `remaking`.)
    assert batch.inputs is not None
    missing = 0
    for prefix, sequence in producers_of(batch.inputs[offset]):
        found = state.find(prefix, sequence)
        if found is None or is_gone(*found):
            state.doomed.append((batch, offset))
            missing = DOOMED
            break
        if not TaskState(found[0].state[found[1]]).is_terminal:
            missing += 1
        elif state.kept_by:
            _note_lost(state, *found)
    if not missing and size_of_call(state, batch, offset) > state.settings.max_joined_bytes:
        state.doomed.append((batch, offset))
        missing = DOOMED
    if missing:
        batch.missing[offset] = missing
        state.set_aside += 1
    return bool(missing)


def _note_lost(state: SchedulerState, producer: Batch, place: int) -> None:
    """Have a value made again that was lost with its worker, for somebody takes it."""
    stored = producer.outcomes[producer.lease[place]]
    if stored is not None and stored.is_lost:
        state.to_remake.append(stored)


def is_gone(producer: Batch, place: int) -> bool:
    """Whether a task will not have a value that can be taken."""
    present = TaskState(producer.state[place])
    if not present.is_terminal:
        return False
    return present is not TaskState.SUCCEEDED or producer.outcomes[producer.lease[place]] is None


def tell(state: SchedulerState, stored: StoredOutcome, low: int, high: int) -> None:
    """Tell those that wait for tasks which have just ended."""
    producer = stored.batch
    has_value = stored.state is TaskState.SUCCEEDED
    for place in range(low, high):
        for batch, offset in dict.fromkeys(producer.dependants.pop(place)):
            present = TaskState(batch.state[offset])
            if present.is_terminal:
                continue
            stored.pins += 1
            missing = batch.missing.get(offset)
            if missing is None or missing == DOOMED:
                if not has_value and missing is None:
                    state.orphans.append((batch, offset))
                continue  # a worker has it already, or it ends anyway
            if not has_value:
                batch.missing[offset] = DOOMED
                state.doomed.append((batch, offset))
            elif missing > 1:
                batch.missing[offset] = missing - 1
            else:
                _take_up(state, batch, offset)


def _take_up(state: SchedulerState, batch: Batch, offset: int) -> None:
    """Queue a task that has all its inputs now."""
    if size_of_call(state, batch, offset) > state.settings.max_joined_bytes:
        batch.missing[offset] = DOOMED
        state.doomed.append((batch, offset))
        return
    del batch.missing[offset]
    state.set_aside -= 1
    queue = batch.queue
    last = queue.spans[-1] if queue.spans else None
    if last is not None and last.batch is batch and last.high == offset:
        last.high += 1
    else:
        queue.spans.append(Span(batch, offset, offset + 1))
    queue.queued += 1
    enqueue(state, queue)


# ── Starting ──────────────────────────────────────────────────────────────────────────────────


def values_of(state: SchedulerState, batch: Batch, offset: int) -> tuple[InputValue, ...]:
    """Return the values of a task's inputs; all of them are there."""
    values: list[InputValue] = []
    assert batch.inputs is not None
    for one in unpack_inputs(batch.inputs[offset]):
        found = state.find(one.prefix, one.sequence)
        assert found is not None
        producer, place = found
        stored = producer.outcomes[producer.lease[place]]
        assert stored is not None
        at = place - stored.offset
        codec = int(producer.queue.task_class.codec)
        values.append(InputValue(codec, stored.payloads.slice(at, at + 1), one.index))
    return tuple(values)


def size_of_call(state: SchedulerState, batch: Batch, offset: int) -> int:
    """Return the bytes of a task's arguments and inputs, as far as these are there."""
    assert batch.inputs is not None
    assert batch.payloads is not None
    size = len(batch.payloads[offset])
    for prefix, sequence in producers_of(batch.inputs[offset]):
        found = state.find(prefix, sequence)
        if found is None or not TaskState(found[0].state[found[1]]).is_terminal:
            continue
        stored = found[0].outcomes[found[0].lease[found[1]]]
        if stored is not None:
            size += stored.payloads.size_of(found[1] - stored.offset)
    return size


def holder_of(state: SchedulerState, batch: Batch, offset: int) -> tuple[str, int] | None:
    """Return the worker that keeps most bytes of what a task takes, and how many; None: none."""
    assert batch.inputs is not None
    held: dict[str, int] = {}
    for prefix, sequence in producers_of(batch.inputs[offset]):
        found = state.find(prefix, sequence)
        if found is None or not TaskState(found[0].state[found[1]]).is_terminal:
            continue
        stored = found[0].outcomes[found[0].lease[found[1]]]
        place = None if stored is None else stored.place
        if place is not None:
            held[place.worker_id] = held.get(place.worker_id, 0) + place.size
    return max(held.items(), key=lambda each: each[1], default=None)


def end_of_grant(state: SchedulerState, batch: Batch, low: int, high: int) -> int:
    """Return how many of some tasks can be granted together: the end of them."""
    size, end = 0, low
    while end < high and size < LEASE_BYTES:
        size += size_of_call(state, batch, end)
        end += 1
    return end


# ── Ending ────────────────────────────────────────────────────────────────────────────────────


def let_go(state: SchedulerState, batch: Batch, low: int, high: int) -> list[StoredOutcome]:
    """Unpin what tasks have taken that have just ended; returns what is overdue to go."""
    overdue: list[StoredOutcome] = []
    if batch.inputs is None:
        return overdue
    for offset in range(low, high):
        batch.missing.pop(offset, None)
        batch.lacks.pop(offset, None)
        for prefix, sequence in producers_of(batch.inputs[offset]):
            found = state.find(prefix, sequence)
            if found is None or not TaskState(found[0].state[found[1]]).is_terminal:
                continue
            stored = found[0].outcomes[found[0].lease[found[1]]]
            if stored is not None and stored.pins:
                stored.pins -= 1
                if (stored.is_overdue or stored.is_released) and not stored.pins:
                    overdue.append(stored)
    return overdue
