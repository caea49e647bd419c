"""Large arguments in an embedded cluster: sealed memory that the executor maps, not bytes.

They are copied once, when they are handed in: what the caller does to an array after that does
not reach the task.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Final

from rustray.objects.segment import Segment
from rustray.task.columns import PayloadColumn, SharedColumn
from rustray.task.flat import MIN_BUFFER_BYTES, FlatValue, parts_of

MAX_SEGMENTS: Final = 256
"""Arguments in memory of their own at a time: each has a descriptor, and a process often may have
1,024. What comes beyond is copied."""
_live: Final[weakref.WeakSet[Segment]] = weakref.WeakSet()


class SharedPayload:
    """Encoded arguments in sealed memory."""

    __slots__ = ("segment", "view")

    def __init__(self, segment: Segment) -> None:
        """Map it."""
        self.segment = segment
        self.view = segment.view()

    def __len__(self) -> int:
        return self.segment.size

    def __bytes__(self) -> bytes:
        return bytes(self.view)


def share(payload: bytes | FlatValue) -> bytes | SharedPayload:
    """Have large arguments in sealed memory; bytes, where they are not large or there is none."""
    if len(payload) < MIN_BUFFER_BYTES or len(_live) >= MAX_SEGMENTS:
        return bytes(payload)
    try:
        shared = SharedPayload(Segment.write(parts_of(payload)))
    except OSError:
        return bytes(payload)
    _live.add(shared.segment)
    return shared


def column_of(items: Sequence[Any]) -> PayloadColumn:
    """Put the arguments of a batch into a column; what is alone in its batch stays where it is."""
    if len(items) == 1 and isinstance(items[0], SharedPayload):
        return SharedColumn(items[0].view, items[0].segment)
    if max(map(len, items), default=0) >= MIN_BUFFER_BYTES:
        items = [each if isinstance(each, bytes) else bytes(each) for each in items]
    return PayloadColumn.of(items)
