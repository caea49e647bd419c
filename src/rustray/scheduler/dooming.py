"""The end of tasks whose inputs cannot be had: it passes down the graph, with its cause."""

from __future__ import annotations

from dataclasses import replace

from rustray.common.errors import PayloadError
from rustray.common.ids import task_id
from rustray.scheduler.completion import finish
from rustray.scheduler.inputs import DOOMED, is_gone, size_of_call, unknown
from rustray.scheduler.records import Batch, Part
from rustray.scheduler.state import SchedulerState, unqueue
from rustray.task.columns import PayloadColumn
from rustray.task.failures import decode_failure, encode_failure
from rustray.task.inputs import producers_of
from rustray.task.result import FailureInfo
from rustray.task.state import TaskState


def end_doomed(state: SchedulerState) -> None:
    """End the tasks whose inputs cannot be had, and those that wait for these, and so on."""
    told: dict[tuple[int, int], tuple[TaskState, bytes]] = {}
    while state.doomed:
        batch, offset = state.doomed.popleft()
        if batch.missing.get(offset) != DOOMED or batch.state[offset] != TaskState.QUEUED:
            continue
        part = Part(batch, offset, offset + 1, TaskState.QUEUED)
        end, payload = _cause(state, batch, offset, told)
        unqueue(state, part)
        state.counters["tasks_without_input"] += 1
        finish(state, part, end, PayloadColumn.of([payload]), None)


def _cause(
    state: SchedulerState,
    batch: Batch,
    offset: int,
    told: dict[tuple[int, int], tuple[TaskState, bytes]],
) -> tuple[TaskState, bytes]:
    """Return how a doomed task ends: as the first of its inputs that cannot be had."""
    assert batch.inputs is not None
    for prefix, sequence in producers_of(batch.inputs[offset]):
        found = state.find(prefix, sequence)
        if found is None:
            error = unknown(prefix, sequence)
            return TaskState.FAILED, encode_failure(FailureInfo(error.code, str(error)))
        producer, place = found
        if not is_gone(producer, place):
            continue
        key = (producer.number, place)
        if key not in told:
            told[key] = _passed_on(producer, place)
        return told[key]
    size = size_of_call(state, batch, offset)
    limit = state.settings.max_joined_bytes
    text = (
        f"the task's arguments and inputs take {size} bytes together, at most {limit} can travel "
        "to one task; have it take less, for example in steps"
    )
    return TaskState.FAILED, encode_failure(FailureInfo(PayloadError.code, text))


def _passed_on(producer: Batch, place: int) -> tuple[TaskState, bytes]:
    """Return the failure of a task as those get it that waited for it."""
    name = task_id(producer.prefix, producer.first + place)
    stored = producer.outcomes[producer.lease[place]]
    present = TaskState(producer.state[place])
    end = TaskState.CANCELLED if present is TaskState.CANCELLED else TaskState.FAILED
    if stored is None:
        error = unknown(producer.prefix, producer.first + place)
        return TaskState.FAILED, encode_failure(FailureInfo(error.code, str(error)))
    payload = stored.payloads[place - stored.offset]
    info = decode_failure(payload)
    if info.origin:
        return end, payload  # that of the first one which failed
    return end, encode_failure(replace(info, origin=name))
