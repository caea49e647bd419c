"""How far streams have come, in the words that workers are told of it."""

from __future__ import annotations

from rustray.scheduler.records import Batch, Lease
from rustray.scheduler.stream_commands import CreditStream
from rustray.task.streams import StreamCredit


def begun_streams(batch: Batch, lease: int, low: int, high: int) -> tuple[StreamCredit, ...]:
    """Return how far those of some tasks have come that have yielded something before.

    Args:
        batch: The tasks'.
        lease: Number of the lease that they are under, from ``low`` on.
        low, high: Their offsets.
    """
    streams = batch.streams
    if not streams:
        return ()
    return tuple(
        StreamCredit(lease, offset - low, one.have, one.consumed)
        for offset in range(low, high)
        if (one := streams.get(offset)) is not None
    )


def credits_of(lease: Lease) -> list[CreditStream]:
    """Return what a worker is to be told again that may have missed it."""
    batch, low = lease.batch, lease.low
    return [
        CreditStream(lease.worker.worker_id, credit)
        for credit in begun_streams(batch, lease.number, low, low + lease.count)
        if batch.lease[low + credit.offset] == lease.number
    ]
