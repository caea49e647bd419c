"""Streams: what generator tasks yield, from the worker to the journal, and on to the consumer.

Each item has an index. The head takes each index once, in order, from the task's present lease
only: so a retry goes on behind what is here, and what an old attempt still sends is dropped. An
item is kept until its consumer is done with it, or the task's outcome goes.
"""

from __future__ import annotations

import heapq
from typing import Final

from rustray.common.errors import ObjectLost
from rustray.scheduler.cancellation import on_cancel
from rustray.scheduler.commands import CancelLease
from rustray.scheduler.completion import (
    cancelled_payloads,
    failure_payloads,
    finish,
    release,
)
from rustray.scheduler.events import ClientLeft, ItemsRead, RecoveredItems
from rustray.scheduler.records import Batch, Lease, Part, Stream, WorkerRecord
from rustray.scheduler.results import forget_items
from rustray.scheduler.retrying import retry_or_fail
from rustray.scheduler.stale import ENDED, MOVED, OUT_OF_RANGE, count_stale, lease_of
from rustray.scheduler.state import SchedulerState
from rustray.scheduler.stream_commands import CreditStream, DeliverItems, PersistItems
from rustray.task.frames import CancelRequest
from rustray.task.result import FailureInfo
from rustray.task.state import TaskState
from rustray.task.streams import MAX_WINDOW, WINDOW_BYTES, LeaseItems, StreamCredit

MOST_BYTES: Final = 32 * WINDOW_BYTES
"""Items of one stream that are kept at most; its worker should wait long before."""
_OUT_OF_STEP: Final = FailureInfo(
    ObjectLost.code,
    "items of the generator were lost between its worker and the head, and its retries are used "
    "up; raise max_retries: a retry goes on behind the items that the head has",
)


def may_yield(state: SchedulerState, worker: WorkerRecord, report: LeaseItems) -> bool:
    """Whether items are of a task's present lease; those of an old attempt are counted, dropped."""
    count = len(report.payloads)
    lease = lease_of(state, worker, report.lease, count, "items")
    if lease is None:
        return False
    is_stream = lease.batch.queue.task_class.stream_window > 0
    if not (is_stream and count and 0 <= report.offset < lease.count):
        count_stale(state, OUT_OF_RANGE, max(count, 1), "items")
        return False
    place = lease.low + report.offset
    present = TaskState(lease.batch.state[place])
    if present.is_terminal:
        count_stale(state, ENDED, count, "items")
        return False
    if present is TaskState.QUEUED or lease.batch.lease[place] != lease.number:
        count_stale(state, MOVED, count, "items")
        return False
    return True


def on_items(state: SchedulerState, worker: WorkerRecord, report: LeaseItems) -> None:
    """Take items that `may_yield`: keep what is new of them, and send it on."""
    lease = worker.leases[report.lease]
    batch, place = lease.batch, lease.low + report.offset
    stream = batch.streams.get(place)
    if stream is None:
        stream = batch.streams[place] = Stream()
    end = report.first + len(report.payloads)
    # A head that was killed may have told of what is consumed, and not know it any more: so its
    # workers may be ahead of what it takes for the window, but not without bound.
    under_way = end - stream.consumed
    is_absurd = under_way > 2 * MAX_WINDOW or stream.bytes > MOST_BYTES
    if report.first > stream.have or is_absurd:
        _refuse(state, lease, place, len(report.payloads))
        return
    known = min(stream.have - report.first, len(report.payloads))
    if known:
        state.counters["items_repeated"] += known
    first, stream.have = report.first + known, max(end, stream.have)
    if end == first or stream.has_left:
        return
    payloads = report.payloads.slice(known, len(report.payloads))
    stream.items.append((first, payloads))
    stream.bytes += payloads.size_bytes
    state.counters["items_taken"] += end - first
    level = batch.durability
    sequence, is_pushed = batch.first + place, batch.is_pushed
    state.commands.append(PersistItems(batch.number, place, first, payloads, level))
    state.commands.append(DeliverItems(batch.prefix, sequence, first, payloads, is_pushed, level))
    if not is_pushed:
        _note_absence(state, batch)


def _refuse(state: SchedulerState, lease: Lease, place: int, count: int) -> None:
    """Give up an attempt whose items leave a gap, or more of them than it may send.

    A power cut can take items back that were acked, of a task that did not ask for more; else the
    worker lies.
    """
    state.counters["items_out_of_step"] += count
    batch = lease.batch
    part = Part(batch, place, place + 1, TaskState(batch.state[place]))
    state.commands.append(
        CancelLease(lease.worker.worker_id, lease.number, place - lease.low, 1, force=True)
    )
    release(state, lease, part)
    if part.state is TaskState.CANCELLING:
        finish(state, part, TaskState.CANCELLED, cancelled_payloads(1), lease.worker)
    else:
        retry_or_fail(state, lease, part, failure_payloads(1, _OUT_OF_STEP))


# ── The consumer ──────────────────────────────────────────────────────────────────────────────


def on_consumer(state: SchedulerState, event: ItemsRead | ClientLeft) -> None:
    """A consumer has come further, or is away."""
    if isinstance(event, ItemsRead):
        on_read(state, event)
    else:
        on_client_left(state, event)


def on_read(state: SchedulerState, event: ItemsRead) -> None:
    """A consumer has come so far, and perhaps asks for what it has missed, or leaves."""
    read = event.read
    found = state.find(event.prefix, read.sequence)
    if found is None:
        return  # `FollowRequested` says that it is not known
    batch, offset = found
    if not batch.queue.task_class.stream_window:
        state.counters["reads_of_no_stream"] += 1
        return
    stream = batch.streams.get(offset)
    if stream is None:
        if TaskState(batch.state[offset]).is_terminal:
            return  # it has yielded nothing, or that has expired
        stream = batch.streams[offset] = Stream()
    if read.have >= 0:
        batch.is_pushed = True
    if batch.left_s is not None:
        batch.left_s = None if batch.is_pushed else state.now
    _consume(state, batch, offset, stream.have if read.has_left else read.consumed)
    if read.has_left:
        stream.has_left = True
        on_cancel(state, CancelRequest(event.prefix, read.sequence, 1))
    elif read.have >= 0:
        _send_again(state, batch, offset, read.have)


def _consume(state: SchedulerState, batch: Batch, offset: int, consumed: int) -> None:
    stream = batch.streams[offset]
    if consumed <= stream.consumed:
        return
    # A head that had to forget the stream learns from its consumer how far it had been.
    stream.consumed, stream.have = consumed, max(stream.have, consumed)
    forget_items(state, batch, offset)
    present = TaskState(batch.state[offset])
    if present.is_terminal or present is TaskState.QUEUED:
        return
    lease = state.leases[batch.lease[offset]]
    if lease.worker is not state.ghost:
        credit = StreamCredit(lease.number, offset - lease.low, stream.have, consumed)
        state.commands.append(CreditStream(lease.worker.worker_id, credit))


def _send_again(state: SchedulerState, batch: Batch, offset: int, have: int) -> None:
    sequence = batch.first + offset
    for first, payloads in batch.streams[offset].items:
        known = max(have - first, 0)
        if known < len(payloads):
            rest = payloads.slice(known, len(payloads))
            state.commands.append(
                DeliverItems(batch.prefix, sequence, first + known, rest, True, batch.durability)
            )


def items_from(batch: Batch, offset: int, first: int) -> list[bytes]:
    """Return the items of a stream from an index on, as far as they are kept."""
    stream = batch.streams.get(offset)
    found: list[bytes] = []
    for start, payloads in stream.items if stream is not None else ():
        known = max(first - start, 0)
        found += list(payloads.slice(min(known, len(payloads)), len(payloads)))
    return found


def on_client_left(state: SchedulerState, event: ClientLeft) -> None:
    """A client's stream broke: its generators go on for a while, for it may come back."""
    session = state.sessions.get(event.prefix)
    if session is None or not any(key.stream_window for key in state.queues):
        return
    for batch in session.batches:
        if batch.unfinished and batch.queue.task_class.stream_window:
            _note_absence(state, batch)


def _note_absence(state: SchedulerState, batch: Batch) -> None:
    """Note that nobody is known to read; a generator that nobody waits for is to end one day."""
    is_watched = batch.left_s is not None
    batch.left_s = state.now
    if not (is_watched or batch.queue.task_class.is_detached):
        _start_timer(state, batch, state.now + state.settings.stream_ttl_s)


def _start_timer(state: SchedulerState, batch: Batch, due_s: float) -> None:
    heapq.heappush(state.timers, (due_s, state.next_order, "consumer", batch))
    state.next_order += 1


def on_consumer_due(state: SchedulerState, batch: Batch) -> None:
    """Look whether the consumer of a batch's streams has been away for too long."""
    if batch.left_s is None or not batch.unfinished:
        batch.left_s = None
        return
    due_s = batch.left_s + state.settings.stream_ttl_s
    if due_s > state.now:
        _start_timer(state, batch, due_s)
        return
    state.counters["streams_abandoned"] += batch.unfinished
    on_cancel(state, CancelRequest(batch.prefix, batch.first, batch.count))


# ── After a restart ───────────────────────────────────────────────────────────────────────────


def restore_items(state: SchedulerState, batch: Batch, found: RecoveredItems) -> None:
    """Take up items of an earlier head; those that are consumed are left out."""
    stream = batch.streams.setdefault(found.offset, Stream())
    end = found.first + len(found.payloads)
    first = max(found.first, stream.consumed)
    if end <= stream.consumed:
        return
    if end <= stream.have or first != stream.have:
        state.counters["items_out_of_place"] += len(found.payloads)
        return
    payloads = found.payloads.slice(first - found.first, len(found.payloads))
    stream.items.append((first, payloads))
    stream.bytes += payloads.size_bytes
    stream.have = end


def restore_read(batch: Batch, offset: int, consumed: int) -> None:
    """Take up how far a consumer had come; before the items."""
    batch.streams[offset] = Stream(have=consumed, consumed=consumed)


def resume(state: SchedulerState, batch: Batch) -> None:
    """After a restart all consumers are away until they come back."""
    if batch.unfinished and batch.queue.task_class.stream_window:
        _note_absence(state, batch)
