"""What is kept of tasks that have ended: results for clients, dead letters for whoever retries.

Small results stay in memory. Large ones are the shell's to keep, on disk: once it has one safe,
only the sizes are left here. Each kind has a shelf with a bound of its own, so that a flood of one
costs nothing of the others. On a shelf those that their client has go first, then the oldest.
"""

from __future__ import annotations

from operator import sub
from typing import Final

from rustray.common.durability import Durability
from rustray.scheduler import placed, tombstones
from rustray.scheduler.commands import ForgetResults
from rustray.scheduler.events import OutcomesDelivered, ResultsReleased, ResultsStored
from rustray.scheduler.records import Batch, Shelf, StoredOutcome
from rustray.scheduler.state import SchedulerState
from rustray.scheduler.stream_commands import ForgetItems
from rustray.task.columns import NO_PAYLOADS, PayloadColumn, StoredColumn
from rustray.task.state import DEAD_STATES, TaskState

LARGE_BYTES: Final = 256 << 10
"""A result above this size is large."""
LETTER_BYTES: Final = 600
"""What a record of dead letters takes beside its bytes; counted, for there may be a million."""
_FEW: Final = 1_000


def size_of(stored: StoredOutcome) -> int:
    """Return what an outcome counts on its shelf."""
    size = stored.payloads.size_bytes + stored.item_bytes
    if stored.arguments is None:
        return size
    return LETTER_BYTES + size + stored.arguments.size_bytes


def is_large(state: SchedulerState, end: TaskState, payloads: PayloadColumn) -> bool:
    """Whether the shell keeps these results: values only, so that errors can be listed."""
    if payloads.size_bytes <= LARGE_BYTES or not state.large.limit_bytes:
        return False
    if end is not TaskState.SUCCEEDED:
        return False
    ends = payloads.ends
    largest: int = max(ends[0] - payloads.base, *map(sub, ends[1:], ends), 0)
    return largest > LARGE_BYTES


def keep(state: SchedulerState, stored: StoredOutcome) -> None:
    """Enter the newest outcome of all."""
    batch, shelf = stored.batch, _shelf_of(state, stored)
    if batch.released:
        stored.is_released = stored.offset in batch.released
    batch.outcomes.append(stored)
    batch.kept += 1
    shelf.queue.append(stored)
    shelf.bytes += size_of(stored)
    if stored.is_large and not isinstance(stored.payloads, StoredColumn):
        state.unstored[stored.number] = stored


def on_stored(state: SchedulerState, event: ResultsStored) -> None:
    """Let go of the bytes of large results that the shell has safe."""
    for number in event.numbers:
        stored = state.unstored.pop(number, None)
        if stored is not None:
            stored.payloads = StoredColumn.of_column(number, stored.payloads)


def on_done_with(state: SchedulerState, event: OutcomesDelivered | ResultsReleased) -> None:
    """A client has outcomes, or does not need them any more."""
    if isinstance(event, OutcomesDelivered):
        on_delivered(state, event)
    else:
        on_released(state, event)


def on_delivered(state: SchedulerState, event: OutcomesDelivered) -> None:
    """Mark outcomes as confirmed by their client: they go first when room is short."""
    sequence = event.first
    end = event.first + event.count
    while sequence < end:
        found = state.find(event.prefix, sequence)
        if found is None:
            return
        batch, offset = found
        if not TaskState(batch.state[offset]).is_terminal:
            sequence += 1
            continue
        stored = batch.outcomes[batch.lease[offset]]
        if stored is None:
            sequence += 1
            continue
        is_kept = stored.has_stayed or batch.queue.task_class.is_detached
        first = batch.first + stored.offset
        stop = first + len(stored.payloads)
        # (Sent in parts, as after a lost connection, it counts when a frame had all of it.)
        if not (stored.is_delivered or is_kept) and event.first <= first and stop <= end:
            stored.is_delivered = True
            _shelf_of(state, stored).delivered.append(stored)
        sequence = stop


def on_released(state: SchedulerState, event: ResultsReleased) -> None:
    """Drop values that have stayed with their workers, and that their session needs no more."""
    end = event.first + event.count
    for batch in state.overlapping(event.prefix, event.first, event.count):
        if not batch.queue.task_class.lets_go:
            continue
        low, high = max(event.first - batch.first, 0), min(end - batch.first, batch.count)
        for offset in range(low, high):
            batch.release(offset)
            stored = placed.outcome_at(batch, offset)
            if stored is not None:
                release(state, stored)


def release(state: SchedulerState, stored: StoredOutcome) -> None:
    """Drop a value that nobody needs any more, as far as nothing depends on it."""
    if len(stored.payloads) != 1:
        return  # a small one, beside those of others
    stored.is_released = True
    if stored.pins or stored.is_evicted:
        return
    if stored.batch.heirs.get(stored.offset):
        placed.free(state, stored)
    else:
        evict(state, stored)


def shrink(state: SchedulerState) -> None:
    """Drop results and dead letters until each kind fits."""
    for shelf in state.shelves:
        if shelf.bytes <= shelf.limit_bytes:
            continue
        while shelf.delivered and shelf.bytes > shelf.limit_bytes:
            _expire(state, shelf.delivered.popleft())
        while shelf.queue and shelf.bytes > shelf.limit_bytes:
            _evict_oldest(state, shelf)
        compact(shelf)


def expire(state: SchedulerState) -> None:
    """Drop what has been kept for its time to live; nothing while it is in doubt what is old."""
    if state.now < state.keep_until_s:
        return
    horizon = state.now - state.settings.result_ttl_s
    for shelf in state.shelves:
        queue, delivered = shelf.queue, shelf.delivered
        while queue and (queue[0].is_evicted or queue[0].finished_at_s <= horizon):
            _evict_oldest(state, shelf)
        while delivered and delivered[0].is_evicted:
            delivered.popleft()
    tombstones.expire(state)


def next_expiry(state: SchedulerState) -> float | None:
    """Return when the oldest of what is kept is due, or None."""
    oldest: float | None = None
    for shelf in state.shelves:
        if shelf.queue and (oldest is None or shelf.queue[0].finished_at_s < oldest):
            oldest = shelf.queue[0].finished_at_s
    due = [] if oldest is None else [oldest + state.settings.result_ttl_s]
    if state.tombstones:
        due.append(state.tombstones[0][0])
    return max(min(due), state.keep_until_s) if due else None


def _shelf_of(state: SchedulerState, stored: StoredOutcome) -> Shelf:
    if stored.state in DEAD_STATES:
        return state.letters
    if stored.has_stayed:
        return state.staying
    return state.large if stored.is_large else state.results


def _evict_oldest(state: SchedulerState, shelf: Shelf) -> None:
    stored = shelf.queue.popleft()
    if stored.is_evicted:
        shelf.spent -= 1
        return
    stored.is_overdue = True
    _expire(state, stored)


def drop_overdue(state: SchedulerState, stored: StoredOutcome) -> None:
    """Drop what only a task that took it has kept."""
    if stored.is_released and not (stored.is_overdue or stored.is_evicted):
        release(state, stored)
    elif not stored.is_evicted:
        _expire(state, stored)


def drop_released(state: SchedulerState, stored: StoredOutcome) -> None:
    """Drop a value that was made again, and that who needed it has not lived to take."""
    if stored.is_released and stored.state is TaskState.SUCCEEDED:
        release(state, stored)


def compact(shelf: Shelf) -> None:
    """Let go of records that went out of turn, once they are the greater part."""
    if shelf.spent > _FEW and 2 * shelf.spent > len(shelf.queue):
        kept = [stored for stored in shelf.queue if not stored.is_evicted]
        shelf.queue.clear()
        shelf.queue.extend(kept)
        shelf.spent = 0


def _expire(state: SchedulerState, stored: StoredOutcome) -> None:
    if not (stored.is_evicted or stored.pins):
        state.counters["results_expired"] += stored.live
        tombstones.remember(state, stored)
        evict(state, stored)


def evict(state: SchedulerState, stored: StoredOutcome) -> None:
    """Forget an outcome, with the last one its batch too; and what only this one has kept."""
    waiting = [stored]
    while waiting:
        one = waiting.pop()
        if not one.is_evicted:
            waiting += _evict(state, one)


def _evict(state: SchedulerState, stored: StoredOutcome) -> list[StoredOutcome]:
    stored.is_evicted = True
    shelf = _shelf_of(state, stored)
    shelf.bytes -= size_of(stored)
    shelf.spent += not stored.is_overdue  # that has left the queue already
    state.unstored.pop(stored.number, None)
    batch = stored.batch
    if batch.streams:
        _drop_streams(batch, stored)
    # A large one's file goes right after the commit.
    level = Durability.DEFAULT if stored.is_large else batch.durability
    state.commands.append(ForgetResults(stored.number, stored.is_large, level))
    loose = placed.forget(state, stored)  # after that: its worker lets go when it is committed
    # The shelf's queues may hold the record for long.
    stored.payloads, stored.arguments, stored.live = NO_PAYLOADS, None, 0
    batch.outcomes[stored.index] = None
    batch.kept -= 1
    if batch.kept == 0 and batch.unfinished == 0:
        tombstones.bury(state, batch)
    return loose


# ── Streams ───────────────────────────────────────────────────────────────────────────────────


def forget_items(state: SchedulerState, batch: Batch, offset: int) -> None:
    """Drop the items of a stream that are consumed."""
    stream = batch.streams[offset]
    items, before = stream.items, stream.bytes
    while items and items[0][0] < stream.consumed:
        first, payloads = items.popleft()
        stream.bytes -= payloads.size_bytes
        done = stream.consumed - first
        if done < len(payloads):
            rest = payloads.slice(done, len(payloads))
            stream.bytes += rest.size_bytes
            items.appendleft((stream.consumed, rest))
    state.commands.append(ForgetItems(batch.number, offset, stream.consumed, batch.durability))
    if not TaskState(batch.state[offset]).is_terminal:
        return
    stored = batch.outcomes[batch.lease[offset]]
    if stored is not None and not stored.is_evicted:
        stored.item_bytes -= before - stream.bytes
        _shelf_of(state, stored).bytes -= before - stream.bytes


def _drop_streams(batch: Batch, stored: StoredOutcome) -> None:
    """Drop what tasks have yielded, but for those that are being retried: they go on behind it."""
    for offset in range(stored.offset, stored.offset + len(stored.payloads)):
        if TaskState(batch.state[offset]).is_terminal and batch.lease[offset] == stored.index:
            batch.streams.pop(offset, None)
