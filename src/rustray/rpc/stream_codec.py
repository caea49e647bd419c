"""The parts of frames that streams and kept values add, as protobuf and back; see `rpc.codec`.

Decoders raise ValueError for what is out of range. Columns that the head hands on are checked
to the last number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rustray.proto.rustray.v1 import head_pb2 as wire
from rustray.rpc.columns import get_ordered_payloads, get_payloads, put_payloads
from rustray.rpc.convert import text, total
from rustray.rpc.ranges import OFFSETS, SEQUENCES
from rustray.task.columns import PayloadColumn
from rustray.task.frames import Adoption, AssignFrame, Surrendered
from rustray.task.place import Place
from rustray.task.streams import MAX_ITEMS, LeaseItems, StreamCredit, StreamItems, StreamRead


def put_lease_items(target: Any, items: Iterable[LeaseItems]) -> None:
    """Write items of a worker's frame."""
    for one in items:
        message = target.add(lease=one.lease, offset=one.offset, first=one.first)
        put_payloads(message.payloads, one.payloads)


def get_lease_items(messages: Sequence[wire.LeaseItems]) -> list[LeaseItems]:
    """Read items of a worker's frame."""
    found = []
    for one in messages:
        if one.offset >= OFFSETS:
            raise ValueError(f"no lease has a task {one.offset}")
        payloads = get_ordered_payloads(one.payloads, one.first, MAX_ITEMS)
        found.append(LeaseItems(one.lease, one.offset, one.first, payloads))
    return found


def put_surrendered(target: Any, values: Iterable[Surrendered]) -> None:
    """Write values that a worker was asked for."""
    for one in values:
        message = target.add(
            object_id=text(one.object_id), trouble=text(one.trouble), is_gone=one.is_gone
        )
        if one.payloads is not None:
            put_payloads(message.payloads, one.payloads)


def get_surrendered(messages: Sequence[wire.Surrendered]) -> list[Surrendered]:
    """Read values that a worker was asked for."""
    found = []
    for one in messages:
        payloads: PayloadColumn | None = None
        if one.HasField("payloads"):
            payloads = get_ordered_payloads(one.payloads, 0, 2)
        is_there = not (one.trouble or one.is_gone)
        if is_there != (payloads is not None and len(payloads) == 1):
            raise ValueError("not one value in the place of one")
        found.append(Surrendered(one.object_id, payloads, one.trouble, one.is_gone))
    return found


def put_value_orders(message: Any, frame: AssignFrame) -> None:
    """Write what a worker is to do with values."""
    message.free.extend(frame.free)
    message.surrender.extend(frame.surrender)
    for one in frame.adopt:
        message.adopt.add(name=text(one.name), place=one.place, token=text(one.token))


def get_adoptions(messages: Sequence[wire.Adoption]) -> list[Adoption]:
    """Read values that a worker is to take over."""
    for one in messages:
        Place.unpack(one.place)
    return [Adoption(one.name, one.place, one.token) for one in messages]


def put_items(target: Any, items: Iterable[StreamItems]) -> None:
    """Write items of a frame to a client."""
    for one in items:
        message = target.add(sequence=one.sequence, first=one.first)
        put_payloads(message.payloads, one.payloads)


def get_items(messages: Sequence[wire.StreamItems]) -> list[StreamItems]:
    """Read items of a frame to a client."""
    return [
        StreamItems(one.sequence, one.first, get_payloads(one.payloads, one.first, MAX_ITEMS))
        for one in messages
    ]


def put_credits(target: Any, how_far: Iterable[StreamCredit]) -> None:
    """Write how far streams have come."""
    for one in how_far:
        target.add(lease=one.lease, offset=one.offset, have=one.have, consumed=one.consumed)


def get_credits(messages: Sequence[wire.StreamCredit]) -> list[StreamCredit]:
    """Read how far streams have come."""
    return [StreamCredit(one.lease, one.offset, one.have, one.consumed) for one in messages]


def put_reads(target: Any, reads: Iterable[StreamRead]) -> None:
    """Write how far consumers have come."""
    for one in reads:
        message = target.add(sequence=one.sequence, consumed=one.consumed, has_left=one.has_left)
        if one.have >= 0:
            message.have = one.have


def get_reads(messages: Sequence[wire.StreamRead]) -> list[StreamRead]:
    """Read how far consumers have come."""
    found = []
    for one in messages:
        if one.sequence >= SEQUENCES:
            raise ValueError(f"no session has a task {one.sequence}")
        have = one.have if one.HasField("have") else -1
        found.append(StreamRead(one.sequence, one.consumed, have, one.has_left))
    return found


def put_item_list(message: wire.GetTaskResultResponse, items: list[bytes]) -> None:
    """Write items of a stream into an answer."""
    if items:
        put_payloads(message.items, PayloadColumn.of(items))


@total("items")
def get_item_list(message: wire.GetTaskResultResponse) -> list[bytes]:
    """Decode the items of an answer."""
    if not message.HasField("items"):
        return []
    return list(get_payloads(message.items, 0, MAX_ITEMS))
