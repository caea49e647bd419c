"""What the scheduler tells the shell to do about streams; see `rustray.scheduler.commands`."""

from __future__ import annotations

from rustray.common.durability import Durability
from rustray.common.records import record
from rustray.task.columns import PayloadColumn
from rustray.task.streams import StreamCredit


@record
class PersistItems:
    """Commit consecutive items of a stream.

    Attributes:
        batch: Number of the task's batch.
        offset: The task's position there.
        first: Index of the first item.
    """

    batch: int
    offset: int
    first: int
    payloads: PayloadColumn
    durability: Durability = Durability.DEFAULT


@record
class ForgetItems:
    """Drop the items of a stream before an index: they are consumed."""

    batch: int
    offset: int
    consumed: int
    durability: Durability = Durability.DEFAULT


@record
class DeliverItems:
    """Send items to the session that handed the task in, and wake who waits for them.

    Attributes:
        first: Index of the first item.
    """

    prefix: bytes
    sequence: int
    first: int
    payloads: PayloadColumn
    is_pushed: bool
    durability: Durability = Durability.FULL


@record
class CreditStream:
    """Tell a worker how far a stream has come."""

    worker_id: str
    credit: StreamCredit
