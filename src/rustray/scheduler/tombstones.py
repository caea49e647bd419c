"""Batches of which nothing is left but that their tasks have run.

A client whose stream broke hands in again what it has no answer to, and a program may repeat a call
under its idempotency key. So an outcome that had to go early, for want of room, before its client
confirmed it, leaves its batch behind until its time to live is up: what is handed in again then
gets the answer that it ended and is not kept, and does not run twice. The code of its class goes.
"""

from __future__ import annotations

import sys
from heapq import heappop, heappush
from typing import Final

from rustray.scheduler.records import Batch, StoredOutcome
from rustray.scheduler.state import SchedulerState
from rustray.scheduler.tombstone_commands import ForgetExpired, PersistExpired

TOMBSTONE_BYTES: Final = 64 << 20
"""What all of them may take, roughly; then those go first whose time would be up first."""
MAX_EXPIRED: Final = 50_000
"""Sessions of whose tasks it is known that they have expired; some 150 bytes each."""
_HEARD: Final = -sys.float_info.max
"""Until when a batch is to be known of which no client has missed anything: no more."""
_BATCH_BYTES: Final = 1_000
_TASK_BYTES: Final = 32
_DIGEST_BYTES: Final = 64


def remember(state: SchedulerState, stored: StoredOutcome) -> None:
    """Note until when the tasks of an outcome that goes now are to be known."""
    if stored.is_released:
        return
    until_s = stored.finished_at_s + state.settings.result_ttl_s
    batch = stored.batch
    batch.known_until_s = max(batch.known_until_s, _HEARD if stored.is_delivered else until_s)


def bury(state: SchedulerState, batch: Batch) -> None:
    """Take a batch that has ended, and whose outcomes are gone: forget it now, or later."""
    until_s = batch.known_until_s
    if until_s > _HEARD:
        until_s = max(until_s, state.keep_until_s)
    if until_s <= state.now:
        if until_s >= _HEARD:
            _note_expired(state, batch)
        state.remove(batch)
        return
    batch.is_buried = True
    state.leave_queue(batch.queue)
    heappush(state.tombstones, (until_s, batch.number, batch))
    state.tombstone_bytes += _size_of(batch)
    while state.tombstone_bytes > TOMBSTONE_BYTES:
        _forget_next(state)


def expire(state: SchedulerState) -> None:
    """Forget those whose time is up."""
    while state.tombstones and state.tombstones[0][0] <= state.now:
        _forget_next(state)


def _forget_next(state: SchedulerState) -> None:
    _, _, batch = heappop(state.tombstones)
    state.tombstone_bytes -= _size_of(batch)
    _note_expired(state, batch)
    state.remove(batch)


def _note_expired(state: SchedulerState, batch: Batch) -> None:
    last = max(batch.first + batch.count - 1, state.expired.pop(batch.prefix, 0))
    state.expired[batch.prefix] = last
    state.commands.append(PersistExpired(batch.prefix, last, batch.principal, batch.durability))
    if len(state.expired) > MAX_EXPIRED:
        oldest = next(iter(state.expired))
        del state.expired[oldest]
        state.commands.append(ForgetExpired(oldest, batch.durability))


def has_expired(state: SchedulerState, prefix: bytes, sequence: int) -> bool:
    """Whether an unknown task is one that was known, as far as that can be told.

    It cannot of the sessions whose tasks expired longest ago.
    """
    return sequence <= state.expired.get(prefix, -1)


def _size_of(batch: Batch) -> int:
    inputs = batch.inputs.size_bytes if batch.inputs is not None else 0
    a_task = _TASK_BYTES + (_DIGEST_BYTES if batch.digests else 0)
    return _BATCH_BYTES + a_task * batch.count + inputs
