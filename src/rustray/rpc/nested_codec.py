"""Frames of a NestedStream as protobuf, and back; see `rustray.rpc.codec`."""

from __future__ import annotations

from typing import Final

from rustray.proto.rustray.v1 import head_pb2 as wire
from rustray.rpc.convert import parse, text, total
from rustray.rpc.ranges import MAX_ENTRIES
from rustray.task.frames import NestedFrame, NestedItem

_MAX_CHANNEL: Final = 1 << 63


def encode_nested_frame(frame: NestedFrame) -> bytes:
    """Encode a frame, either way."""
    message = wire.NestedFrame(number=frame.number)
    if frame.token:
        message.token = frame.token
    for item in frame.items:
        target = message.items.add(channel=item.channel, data=item.data)
        if item.opens is not None:
            target.opens = True
            target.lease, target.offset = item.opens
        if item.ends:
            target.ends = True
            target.code, target.message = text(item.code), text(item.message)
    return message.SerializeToString()


@total("frame of nested sessions")
def decode_nested_frame(data: bytes) -> NestedFrame:
    """Decode and check a frame, either way.

    Raises:
        CommunicationError: it is malformed.
    """
    message = parse(wire.NestedFrame, data, "frame of nested sessions")
    if len(message.items) > MAX_ENTRIES:
        raise ValueError(f"more than {MAX_ENTRIES} items in a frame of nested sessions")
    if not (message.number or message.token):
        raise ValueError("frames are numbered from 1")
    return NestedFrame(message.number, [_get_item(m) for m in message.items], message.token)


def _get_item(message: wire.NestedItem) -> NestedItem:
    if message.opens + message.ends + bool(message.data) != 1:
        raise ValueError("an item that is not one thing")
    if not 0 < message.channel < _MAX_CHANNEL:
        raise ValueError(f"channel {message.channel} is out of range")
    return NestedItem(
        message.channel,
        (message.lease, message.offset) if message.opens else None,
        message.data,
        message.ends,
        message.code,
        message.message,
    )
