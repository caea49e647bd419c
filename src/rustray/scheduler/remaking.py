"""Makes values again that were lost with their worker, by running their tasks again.

That is allowed wherever results may stay with a worker at all (`TaskClass.results_stay`). It begins
when somebody needs one: a task that takes it, or a client that asks. What it takes itself
is made again before it, as far as that is lost too. Who takes it waits anew.
"""

from __future__ import annotations

from collections import deque

from rustray.common.errors import RustRayError
from rustray.scheduler import hand_over, letters
from rustray.scheduler.commands import DeliverOutcome, ReplaceOutcome
from rustray.scheduler.completion import failure_payloads, finish
from rustray.scheduler.events import ValuesSurrendered, ValueWanted
from rustray.scheduler.inputs import count_missing
from rustray.scheduler.placed import forget, on_wanted, outcome_at, story, takes
from rustray.scheduler.records import Batch, Part, Span, StoredOutcome, WorkerRecord
from rustray.scheduler.results import shrink, size_of
from rustray.scheduler.state import SchedulerState
from rustray.scheduler.view import outcome_of
from rustray.task.columns import NO_PAYLOADS, PayloadColumn, PlacedColumn
from rustray.task.frames import Surrendered
from rustray.task.inputs import producers_of
from rustray.task.result import FailureInfo
from rustray.task.state import TaskState

Task = tuple[Batch, int]


def run(state: SchedulerState) -> None:
    """Have made again what the present event has shown to be lost and needed."""
    asked, state.to_remake = state.to_remake, []
    lost = _with_what_they_take(state, asked)
    if not lost:
        return
    needed = {(one.batch, one.offset) for one in lost if one.pins}
    takers = _takers_of(state, needed) if needed else {}
    for stored in lost:
        _remake(state, stored)
    for task, taken in takers.items():
        _wait_anew(state, task, taken)


def _with_what_they_take(state: SchedulerState, asked: list[StoredOutcome]) -> list[StoredOutcome]:
    """Return these, and what is lost of what they take, producers first; each is met once."""
    order: list[StoredOutcome] = []
    seen: set[StoredOutcome] = set()
    waiting = [(one, False) for one in asked if one.is_lost and not one.is_evicted]
    while waiting:
        stored, is_done = waiting.pop()
        if is_done:
            order.append(stored)
        elif stored not in seen:
            seen.add(stored)
            waiting.append((stored, True))
            waiting += [(other, False) for other in _lost_inputs(state, stored)]
    return order


def _lost_inputs(state: SchedulerState, stored: StoredOutcome) -> list[StoredOutcome]:
    outcomes = [outcome_at(*one) for one in takes(state, stored)]
    return [one for one in outcomes if one is not None and one.is_lost]


def _takers_of(state: SchedulerState, lost: set[Task]) -> dict[Task, list[Task]]:
    """Find the tasks that have not ended and take one of these. A pass over all graphs; rare."""
    found: dict[Task, list[Task]] = {}
    for session in state.sessions.values():
        for batch in session.batches:
            if batch.inputs is None or not batch.unfinished:
                continue
            for offset in range(batch.count):
                if TaskState(batch.state[offset]).is_terminal:
                    continue
                for prefix, sequence in producers_of(batch.inputs[offset]):
                    producer = state.find(prefix, sequence)
                    if producer in lost and producer is not None:
                        found.setdefault((batch, offset), []).append(producer)
    return found


def _remake(state: SchedulerState, stored: StoredOutcome) -> None:
    batch, low, place, arguments = stored.batch, stored.offset, stored.place, stored.arguments
    assert place is not None
    part = Part(batch, low, low + 1, stored.state)
    function = batch.queue.task_class.function
    error: RustRayError | None = None
    if arguments is None or batch.queue.task_class.is_put:
        error = story(place, function, is_released=stored.is_released)
        arguments = arguments or PayloadColumn.of([b""])
    elif batch.deadline_s is not None and batch.deadline_s <= state.now:
        function = f"{function}, whose deadline has passed,"
        error = story(place, function, is_released=stored.is_released)
    if stored.is_released:
        batch.release(low)
    letters.revive(state, batch, part, arguments, stored, is_queued=error is None)
    if error is None:
        state.counters["tasks_run_again_for_lost_values"] += 1
        return
    state.counters["values_lost"] += 1
    failed = failure_payloads(1, FailureInfo(error.code, str(error)))
    finish(state, Part(batch, low, low + 1, TaskState.QUEUED), TaskState.FAILED, failed, None)


def _wait_anew(state: SchedulerState, task: Task, taken: list[Task]) -> None:
    """Have a task wait for values that it had already."""
    batch, offset = task
    if TaskState(batch.state[offset]).is_terminal:
        return
    for producer, place in taken:
        if not TaskState(producer.state[place]).is_terminal:
            if task not in producer.dependants.of(place):
                producer.add_dependant(place, batch, offset)
            continue
        ended = outcome_at(producer, place)  # it cannot be made again
        if ended is not None:
            ended.pins += 1
    if batch.state[offset] != TaskState.QUEUED or offset in batch.delayed:
        return
    was_aside = batch.missing.pop(offset, None) is not None
    state.set_aside -= was_aside
    if count_missing(state, batch, offset) and not was_aside:
        _cut_out(batch, offset)


def _cut_out(batch: Batch, offset: int) -> None:
    """Take a task out of its queue."""
    queue = batch.queue
    kept: deque[Span] = deque()
    for span in queue.spans:
        if span.batch is batch and span.low <= offset < span.high:
            if span.low < offset:
                kept.append(Span(batch, span.low, offset))
            if offset + 1 < span.high:
                kept.append(Span(batch, offset + 1, span.high))
            queue.queued -= 1
        else:
            kept.append(span)
    queue.spans = kept


def on_values(state: SchedulerState, event: ValueWanted | ValuesSurrendered) -> None:
    """Take what concerns values that stay with workers."""
    if isinstance(event, ValueWanted):
        on_wanted(state, event)
    else:
        on_surrendered(state, event)


def on_surrendered(state: SchedulerState, event: ValuesSurrendered) -> None:
    """Take values that a worker was asked for."""
    worker = state.workers.get(event.worker_id)
    for item in event.values:
        if worker is None or worker.session != event.session:
            state.counters["stale_objects"] += 1
        else:
            _take(state, worker, item)


def _take(state: SchedulerState, worker: WorkerRecord, item: Surrendered) -> None:
    """Keep a value here that a worker has sent; what it does not have (any more) is lost."""
    hand_over.on_surrendered(state, worker, item)
    stored = state.kept_by.get(worker.worker_id, {}).get(item.object_id)
    if stored is None or stored.place is None:
        if not hand_over.on_adopted(state, worker, item):
            state.counters["stale_objects"] += 1
        return
    if isinstance(item.payloads, PlacedColumn):  # it has lied
        state.counters["stale_objects"] += 1
        return
    if item.is_gone:
        state.counters["objects_lost"] += 1
        stored.is_lost = stored.is_wanted = True
        state.to_remake.append(stored)
        return
    batch = stored.batch
    if item.payloads is None:
        stored.trouble = item.trouble or "its worker did not send it"
    else:
        state.staying.bytes -= size_of(stored)
        stored.payloads, stored.arguments = item.payloads, None
        state.staying.bytes += size_of(stored)
        state.commands.append(ReplaceOutcome(stored.number, stored.payloads, NO_PAYLOADS))
        forget(state, stored)  # after that: its worker lets go when it is committed
    stored.is_wanted = False
    shrink(state)
    # Only for those who wait for it: the session has been told where it was.
    outcome = outcome_of(stored, stored.offset, stored.offset + 1)
    state.commands.append(DeliverOutcome(batch.prefix, outcome, False, batch.durability))
