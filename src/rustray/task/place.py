"""Where a large value is: what travels in its stead, and how to get at it.

Results above 100 KiB stay in the store of the node that made them. Head and journal pass a few
bytes on; who wants the value maps it, if it is on the same machine, or has it sent, straight from
that node.
"""

from __future__ import annotations

import re
from typing import Final

import msgpack

from rustray.common.records import record

MIN_PLACED_BYTES: Final = 100 << 10
"""Smaller values travel themselves."""
MAX_PLACE_BYTES: Final = 1_024
MAX_SENT_BYTES: Final = 28 << 20
"""A value up to this size can travel through the head."""
PUT_PREFIX: Final = "put-"
"""Names of values that no task has made begin so."""
MOVED: Final = "."
"""In a name: it has been taken over from another node; a number comes after."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_MAX_TEXT: Final = 300
_FORMAT: Final = 1
_TYPES: Final = (str, int, str, str, str, str, str)


def is_put_name(object_id: str) -> bool:
    """Whether a program may call a value so that it puts at a node."""
    return object_id.startswith(PUT_PREFIX) and MOVED not in object_id


def next_name(object_id: str, number: int) -> str:
    """Return the name of a value at the node that takes it over; no node gives such names itself.

    So who could not have it where it was can be told that it is elsewhere now.

    Args:
        object_id: Its name where it was.
        number: Never used twice.
    """
    return f"{object_id.partition(MOVED)[0]}{MOVED}{number:x}"


@record
class Place:
    """One value in the store of a node.

    Attributes:
        object_id: Its name there.
        size: Its encoded bytes.
        worker_id: The node's worker.
        host_key: The machine, as workers and clients name it.
        port: Name of the Unix socket there by which its memory can be had; "" for none.
        address: host:port of the worker's own service; "" for none.
        tls_name: What its certificate names; "": the host of the address.
    """

    object_id: str
    size: int
    worker_id: str
    host_key: str = ""
    port: str = ""
    address: str = ""
    tls_name: str = ""

    def pack(self) -> bytes:
        """Encode it."""
        fields = [
            _FORMAT, self.object_id, self.size, self.worker_id, self.host_key, self.port,
            self.address, self.tls_name,
        ]  # fmt: skip
        packed: bytes = msgpack.packb(fields, use_bin_type=True)
        return packed

    @classmethod
    def unpack(cls, data: bytes) -> Place:
        """Decode what `pack` has encoded.

        Raises:
            ValueError: it is no place.
        """
        if len(data) > MAX_PLACE_BYTES:
            raise ValueError(f"{len(data)} bytes are no place of a value")
        try:
            found = msgpack.unpackb(data, raw=False)
        except Exception as error:  # msgpack has many
            raise ValueError(f"no place of a value: {error}") from None
        if not isinstance(found, list) or len(found) != 1 + len(_TYPES) or found[0] != _FORMAT:
            raise ValueError("no place of a value")
        if any(type(each) is not kind for each, kind in zip(found[1:], _TYPES, strict=True)):
            raise ValueError("no place of a value")
        place = cls(*found[1:])
        texts = found[3:]
        if not 0 < place.size < 1 << 46 or _NAME.fullmatch(place.object_id) is None:
            raise ValueError("a value of no size, or without a proper name")
        if any(len(each) > _MAX_TEXT or not each.isprintable() for each in texts):
            raise ValueError("the place of a value has characters that do not belong there")
        return place
