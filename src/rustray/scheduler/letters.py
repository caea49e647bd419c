"""Dead letters: tasks that ended badly, kept with arguments and error, to be retried or purged.

A retry makes the same task run again, under the same id: whoever asks for it from then on waits for
the new outcome. Its budgets and limits of time begin anew, its attempt numbers go on. What is not a
dead letter (any more) is left as it is, so that a request may come twice.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rustray.common.counting import count_refused
from rustray.common.errors import RustRayError, TaskNotFound, TaskTimeout
from rustray.scheduler import tombstones
from rustray.scheduler.admission import refusal
from rustray.scheduler.backpressure import fitting
from rustray.scheduler.commands import (
    PersistGrant,
    PersistPurge,
    PersistRetry,
    PublishEvents,
    RefuseLetters,
    ReplaceOutcome,
)
from rustray.scheduler.deadlines import start_batch_timers
from rustray.scheduler.events import LetterRange, PurgeRequested, RecoveredRetry, RetryRequested
from rustray.scheduler.inputs import queue_fresh, register
from rustray.scheduler.records import Batch, Part, Revived, Span, StoredOutcome
from rustray.scheduler.results import compact, evict, size_of
from rustray.scheduler.state import SchedulerState, hold_back, runs
from rustray.task.columns import NO_PAYLOADS, PayloadColumn
from rustray.task.state import DEAD_STATES, TaskState


def letters_in(batch: Batch, low: int, high: int) -> Iterator[tuple[Part, StoredOutcome | None]]:
    """Yield the dead letters among some tasks, in parts of one outcome (None: it has expired)."""
    for start, end, byte in list(runs(batch.state, low, high)):
        if byte not in DEAD_STATES:
            continue
        at = start
        while at < end:
            index = batch.lease[at]
            stop = at + 1
            while stop < end and batch.lease[stop] == index:
                stop += 1
            yield Part(batch, at, stop, TaskState(byte)), batch.outcomes[index]
            at = stop


def _disjoint(ranges: Iterable[LetterRange]) -> Iterator[LetterRange]:
    """Yield the same tasks without naming one twice, in order within each session."""
    by_prefix: dict[bytes, list[LetterRange]] = {}
    for one in ranges:
        by_prefix.setdefault(one.prefix, []).append(one)
    for prefix, mine in by_prefix.items():
        behind = 0
        for one in sorted(mine, key=lambda one: one.first):
            first, end = max(one.first, behind), one.first + one.count
            if first < end:
                yield LetterRange(prefix, first, end - first)
                behind = end


def _chosen(
    state: SchedulerState, event: RetryRequested | PurgeRequested
) -> dict[Batch, list[tuple[Part, StoredOutcome | None]]]:
    """Return the dead letters that a request means, batch by batch, each of them once."""
    found: dict[Batch, list[tuple[Part, StoredOutcome | None]]] = {}
    for one in _disjoint(event.ranges):
        for batch in state.overlapping(one.prefix, one.first, one.count):
            low = max(one.first - batch.first, 0)
            high = min(one.first + one.count - batch.first, batch.count)
            found.setdefault(batch, []).extend(
                (part, stored)
                for part, stored in letters_in(batch, low, high)
                if stored is None or stored.number <= event.horizon
            )
    return found


def on_request(state: SchedulerState, event: RetryRequested | PurgeRequested) -> None:
    """Do what is asked about dead letters."""
    if isinstance(event, RetryRequested):
        on_retry(state, event)
    else:
        on_purge(state, event)


# ── Retrying ──────────────────────────────────────────────────────────────────────────────────


def on_retry(state: SchedulerState, event: RetryRequested) -> None:
    """Make tasks of dead letters."""
    chosen = _chosen(state, event)
    _forget_places(chosen)
    for batch, letters in chosen.items():
        taken: list[tuple[Part, PayloadColumn, StoredOutcome]] = []
        for part, stored in letters:
            column = _arguments_of(part, stored)
            error = refusal_of(state, batch, column)
            if error is not None or column is None or stored is None:
                _refuse(state, part, error)
                continue
            fit, full = fitting(state, batch.principal, column)
            if full is not None:
                _refuse(state, Part(batch, part.low + fit, part.high, part.state), full)
                if fit == 0:
                    continue
                part = Part(batch, part.low, part.low + fit, part.state)
                column = column.slice(0, fit)
            taken.append((part, column, stored))
            # So that those after it see it in the bounds.
            batch.unfinished += part.count
            state.count_pending(batch, part.count, _bytes_to_come(batch, column))
        if taken:
            counted = sum(_bytes_to_come(batch, column) for _, column, _ in taken)
            state.count_pending(batch, 0, -counted)
            _revive_all(state, batch, taken)
            state.counters["tasks_retried_on_request"] += sum(part.count for part, _, _ in taken)
    compact(state.letters)


def _forget_places(chosen: dict[Batch, list[tuple[Part, StoredOutcome | None]]]) -> None:
    """Take tasks that ended in their queue out of it: what ends there leaves its place behind."""
    ended_there = {
        batch
        for batch, letters in chosen.items()
        if any(stored is not None and not stored.worker_id for _, stored in letters)
    }
    for queue in {batch.queue for batch in ended_there}:
        kept: deque[Span] = deque()
        for span in queue.spans:
            if span.batch not in ended_there:
                kept.append(span)
                continue
            for low, high, byte in runs(span.batch.state, span.low, span.high):
                if byte == TaskState.QUEUED:
                    kept.append(Span(span.batch, low, high))
        queue.spans = kept


def _arguments_of(part: Part, stored: StoredOutcome | None) -> PayloadColumn | None:
    if stored is None or stored.arguments is None:
        return None
    return stored.arguments.slice(part.low - stored.offset, part.high - stored.offset)


def refusal_of(
    state: SchedulerState, batch: Batch, column: PayloadColumn | None
) -> RustRayError | None:
    """Say why tasks cannot be made again, or None."""
    if column is None:
        return TaskNotFound(
            "the arguments of this task are not kept any more, so it cannot be retried "
            "([scheduler] result_ttl_s and dead_letter_memory_mb say how long they are); "
            "hand it in again"
        )
    if batch.deadline_s is not None and batch.deadline_s <= state.now:
        return TaskTimeout(
            "the task's deadline has passed, and a retry does not move it; hand the task in again "
            "with a later one",
            phase="deadline",
        )
    return refusal(state, batch.queue, column)


def revive(
    state: SchedulerState,
    batch: Batch,
    part: Part,
    arguments: PayloadColumn,
    stored: StoredOutcome,
    *,
    is_queued: bool,
) -> None:
    """Make tasks again of such as have ended, whose outcome is of no use any more.

    Args:
        state: The scheduler's.
        batch: Of the tasks.
        part: Which.
        arguments: Theirs.
        stored: Their outcome.
        is_queued: They are to run; else the caller ends them.
    """
    batch.unfinished += part.count
    state.count_pending(batch, part.count, 0)
    _revive_all(state, batch, [(part, arguments, stored)], is_queued=is_queued)


def _revive_all(
    state: SchedulerState,
    batch: Batch,
    taken: list[tuple[Part, PayloadColumn, StoredOutcome]],
    *,
    is_queued: bool = True,
) -> None:
    _restore_arguments(state, batch, [(part.low, column) for part, column, _ in taken])
    for part, column, stored in taken:
        _revive(state, part, column, stored, is_queued=is_queued)
    start_batch_timers(state, batch, state.now)


def _refuse(state: SchedulerState, part: Part, error: RustRayError | None) -> None:
    assert error is not None
    count_refused(state.counters, "retries_refused", error, part.count)
    first = part.batch.first + part.low
    state.commands.append(RefuseLetters(part.batch.prefix, first, part.count, error))


def _revive(
    state: SchedulerState,
    part: Part,
    arguments: PayloadColumn,
    stored: StoredOutcome,
    *,
    is_queued: bool,
) -> None:
    batch, low, high, number = part.batch, part.low, part.high, part.count
    attempts, fence = stored.attempts, stored.fence
    task_class = batch.queue.task_class
    state.commands.append(
        PersistRetry(
            state.next_outcome, batch.number, low, number, attempts, fence, arguments
        )
    )  # fmt: skip
    state.next_outcome += 1
    if task_class.max_retries == 0:
        state.commands.append(PersistGrant(batch.number, low, number, is_granted=False))
    _begin_anew(batch, low, high, attempts, fence, state.now)
    batch.lease[low:high] = array("Q", (0,)) * number
    state.set_state(part, TaskState.QUEUED)
    register(state, batch, low, high)
    stored.live -= number
    if stored.live == 0:
        evict(state, stored)
    state.commands.append(
        PublishEvents(
            batch.prefix, batch.first + low, number, TaskState.QUEUED, attempts, "",
            task_class.function, None, batch.durability,
        )
    )  # fmt: skip
    # The head has given up its last attempt; a worker that was cut off has until then to do so too.
    surely_ended_s = stored.finished_at_s + state.settings.lease_ttl_s
    queued = Part(batch, low, high, TaskState.QUEUED)
    if is_queued and not (task_class.exclusive and hold_back(state, queued, surely_ended_s)):
        queue_fresh(state, batch, low, high)


def _begin_anew(
    batch: Batch, low: int, high: int, attempts: int, fence: int, since_s: float
) -> None:
    """Forget what was used up of budgets; attempts go on behind those of before."""
    revived = batch.revived
    if revived is None:
        revived = batch.revived = Revived.of(batch.count)
    number = high - low
    revived.since_s[low:high] = array("d", (since_s,)) * number
    revived.attempts[low:high] = array("I", (attempts,)) * number
    revived.fence[low:high] = array("I", (fence,)) * number
    batch.lost_attempts = max(batch.lost_attempts, fence)
    used: tuple[dict[int, Any], ...] = (
        batch.reruns, batch.oom_reruns, batch.crashes, batch.grants,
    )  # fmt: skip
    for known in used:
        if known:
            for offset in range(low, high):
                known.pop(offset, None)
    if batch.begun:
        batch.begun.difference_update(range(low, high))
    batch.forced = batch.forced.difference(range(low, high))


def _has_all_arguments(batch: Batch) -> bool:
    return batch.payloads is not None and batch.revived is None


def _bytes_to_come(batch: Batch, arguments: PayloadColumn) -> int:
    """Return how many bytes a batch takes on at most when these come back to it."""
    return 0 if _has_all_arguments(batch) else arguments.size_bytes


def _restore_arguments(
    state: SchedulerState, batch: Batch, columns: list[tuple[int, PayloadColumn]]
) -> None:
    """Bring arguments back to where leases are cut from; one pass over the batch."""
    if _has_all_arguments(batch):
        return
    payloads = batch.payloads
    items = [b""] * batch.count if payloads is None else list(payloads)
    for low, column in columns:
        items[low : low + len(column)] = column
    batch.payloads = PayloadColumn.of(items)
    had = 0 if payloads is None else len(payloads.blob)
    state.count_pending(batch, 0, len(batch.payloads.blob) - had)


def attempts_of_before(batch: Batch, low: int, high: int, attempt: int) -> Iterator[
    tuple[int, int, bool]
]:  # fmt: skip
    """Split tasks by whether an attempt of them is from before a retry: (low, high, whether)."""
    if batch.revived is None:
        yield low, high, False
        return
    past = bytes(fence >= attempt for fence in batch.revived.fence[low:high])
    for start, end, is_past in runs(past, 0, high - low):
        yield low + start, low + end, bool(is_past)


# ── Purging ───────────────────────────────────────────────────────────────────────────────────


def on_purge(state: SchedulerState, event: PurgeRequested) -> None:
    """Forget dead letters: error and arguments; that the tasks have ended stays known."""
    for letters in _chosen(state, event).values():
        by_outcome: dict[StoredOutcome, list[Part]] = {}
        for part, stored in letters:
            if stored is not None:
                by_outcome.setdefault(stored, []).append(part)
        for stored, parts in by_outcome.items():
            number = sum(part.count for part in parts)
            state.counters["tasks_purged"] += number
            if stored.batch.is_pushed:  # (an id that a caller has chosen is free again)
                tombstones.remember(state, stored)
            if number == stored.live:
                evict(state, stored)
            else:
                _cut_out(state, stored, parts)
    compact(state.letters)


def _cut_out(state: SchedulerState, stored: StoredOutcome, parts: list[Part]) -> None:
    """Take tasks out of an outcome that others share: their bytes must be gone."""
    batch = stored.batch
    before = size_of(stored)
    payloads = list(stored.payloads)
    arguments = list(stored.arguments) if stored.arguments is not None else []
    nowhere = len(batch.outcomes)
    batch.outcomes.append(None)
    for part in parts:
        start = part.low - stored.offset
        batch.lease[part.low : part.high] = array("Q", (nowhere,)) * part.count
        payloads[start : start + part.count] = [b""] * part.count
        if arguments:
            arguments[start : start + part.count] = [b""] * part.count
        stored.live -= part.count
        state.commands.append(PersistPurge(batch.number, part.low, part.count))
    stored.payloads = PayloadColumn.of(payloads)
    if stored.arguments is not None:
        stored.arguments = PayloadColumn.of(arguments)
    state.letters.bytes += size_of(stored) - before
    state.commands.append(
        ReplaceOutcome(stored.number, stored.payloads, stored.arguments or NO_PAYLOADS)
    )


# ── After a restart ───────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class RestoredLives:
    """What retries of an earlier head leave to be done once for many of them.

    Attributes:
        columns: Arguments by their first offset, the oldest retry first.
        starts: When limits of time began, as monotonic time; a set in order.
    """

    columns: dict[Batch, list[tuple[int, PayloadColumn]]] = field(default_factory=dict)
    starts: dict[tuple[Batch, float], None] = field(default_factory=dict)


def restore_retry(
    state: SchedulerState, batch: Batch | None, found: RecoveredRetry, lives: RestoredLives
) -> None:
    """Take up a retry of an earlier head; what it takes back is restored already."""
    state.next_outcome = max(state.next_outcome, found.number + 1)
    low, high = found.offset, found.offset + found.count
    # (Of those that had succeeded the value was lost with its worker.)
    if batch is None or not all(TaskState(byte).is_terminal for byte in batch.state[low:high]):
        state.counters["outcomes_out_of_place"] += 1
        return
    if found.arguments is not None:
        lives.columns.setdefault(batch, []).append((low, found.arguments))
    for offset in range(low, high):
        stored = batch.outcomes[batch.lease[offset]]
        if stored is not None:
            stored.live -= 1
    for start, end, byte in list(runs(batch.state, low, high)):
        state.set_state(Part(batch, start, end, TaskState(byte)), TaskState.QUEUED)
    since_s = state.now - found.age_s
    _begin_anew(batch, low, high, found.attempts, found.fence, since_s)
    batch.lease[low:high] = array("Q", (0,)) * found.count
    batch.unfinished += found.count
    state.count_pending(batch, found.count, 0)
    lives.starts[batch, since_s] = None


def resume_lives(state: SchedulerState, lives: RestoredLives) -> None:
    """Bring back arguments and limits of time of all retries: a pass over each batch."""
    for batch, columns in lives.columns.items():
        if batch.unfinished:
            _restore_arguments(state, batch, columns)
    for batch, since_s in lives.starts:
        if batch.unfinished:
            start_batch_timers(state, batch, since_s)


def restore_purge(batch: Batch | None, low: int, count: int) -> None:
    """Take up a purge of an earlier head."""
    if batch is None:
        return
    for part, stored in list(letters_in(batch, low, low + count)):
        if stored is not None:
            stored.live -= part.count
            nowhere = len(batch.outcomes)
            batch.outcomes.append(None)
            batch.lease[part.low : part.high] = array("Q", (nowhere,)) * part.count
