"""A pickle with large buffers beside it: one run of bytes that is read without a copy.

========  ==========================================================================
head      magic, version, count of buffers, size of the stream, size of all of it
table     where each buffer begins, and how large it is
stream    pickle protocol 5
buffers   each at a multiple of 64 bytes; the whole is padded to one as well
========  ==========================================================================

Such a payload has the codec PICKLE as a plain pickle has, and differs from one in its first
byte. What is read from it (numpy arrays, pandas frames, Arrow tables) are views of the very
bytes that came: read-only, and those bytes stay as long as a view does. Numbers are
little-endian.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from struct import Struct
from typing import Any, Final

MIN_BUFFER_BYTES: Final = 100 * 1024
"""Smaller buffers stay in the pickle: what is read from it is a copy that may be written to."""
ALIGNMENT: Final = 64
FIRST_BYTE: Final = 0x93
"""No pickle of protocol 2 or higher begins with it."""
BEGINNING: Final = bytes([FIRST_BYTE])

_MAGIC: Final = BEGINNING + b"RYF"
_VERSION: Final = 1
_HEAD: Final = Struct("<4sHxxIxxxxQQ")
_ENTRY: Final = Struct("<QQ")
_MAX_BUFFERS: Final = 1 << 20
_PADDING: Final = bytes(ALIGNMENT)


class FlatValue:
    """An encoded value whose buffers are still where they were; nothing is copied yet.

    Attributes:
        parts: In order, together `size` bytes.
    """

    __slots__ = ("parts", "size")

    def __init__(self, stream: bytes, buffers: Sequence[memoryview]) -> None:
        """Lay out a pickle and its buffers; they must not change before they are written."""
        offset = _align(_HEAD.size + len(buffers) * _ENTRY.size + len(stream))
        parts: list[bytes | memoryview] = [b"", stream]
        position = _HEAD.size + len(buffers) * _ENTRY.size + len(stream)
        entries = []
        for buffer in buffers:
            entries.append(_ENTRY.pack(offset, buffer.nbytes))
            parts += [_PADDING[: offset - position], buffer]
            position = offset + buffer.nbytes
            offset = _align(position)
        parts.append(_PADDING[: offset - position])
        head = _HEAD.pack(_MAGIC, _VERSION, len(buffers), len(stream), offset)
        parts[0] = b"".join((head, *entries))
        self.parts = [part for part in parts if len(part)]
        self.size = offset

    def __len__(self) -> int:
        return self.size

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)


class Buffers(list[memoryview]):
    """Collects the large buffers of a value while it is pickled: ``buffer_callback=found.take``."""

    def take(self, buffer: pickle.PickleBuffer) -> bool:
        """Keep a buffer that is worth it; True: let it be pickled as usual."""
        with memoryview(buffer) as shape:
            if shape.nbytes < MIN_BUFFER_BYTES:
                return True
        self.append(buffer.raw())
        return False


def parts_of(item: bytes | FlatValue) -> Sequence[bytes | memoryview]:
    """Return the bytes of an encoded value as they lie in memory."""
    return item.parts if isinstance(item, FlatValue) else (item,)


def encode(dump: Callable[..., bytes], value: Any, protocol: int) -> bytes | FlatValue:
    """Pickle a value, large buffers beside the pickle; what the pickler raises passes through."""
    found = Buffers()
    stream = dump(value, protocol, buffer_callback=found.take)
    return FlatValue(stream, found) if found else stream


def is_flat(payload: bytes | memoryview) -> bool:
    """Whether a payload of the codec PICKLE has this layout."""
    return len(payload) >= _HEAD.size and payload[0] == FIRST_BYTE


def decode(payload: bytes | memoryview) -> Any:
    """Read a value; large buffers in it are views of the payload, read-only.

    Raises:
        ValueError: the payload is damaged or of another version; and whatever unpickling raises.
    """
    whole = memoryview(payload).toreadonly()
    stream, buffers = _take_apart(whole)
    return pickle.loads(stream, buffers=buffers)  # noqa: S301 - its codec says PICKLE


def _take_apart(whole: memoryview) -> tuple[memoryview, list[memoryview]]:
    magic, version, count, stream_size, size = _HEAD.unpack_from(whole)
    if magic != _MAGIC:
        raise ValueError("it begins like no value that rustray has written")
    if version != _VERSION:
        raise ValueError(f"its layout is of version {version}, and this side knows {_VERSION}")
    if size != len(whole):
        raise ValueError(f"it has {len(whole)} bytes and says {size}: it was cut or damaged")
    start = _HEAD.size + count * _ENTRY.size
    if count > _MAX_BUFFERS or start + stream_size > size:
        raise ValueError("its table of buffers is damaged")
    return whole[start : start + stream_size], list(_buffers(whole, count, start + stream_size))


def _buffers(whole: memoryview, count: int, low: int) -> Iterator[memoryview]:
    for index in range(count):
        offset, length = _ENTRY.unpack_from(whole, _HEAD.size + index * _ENTRY.size)
        if offset < low or offset + length > len(whole):
            raise ValueError("its table of buffers is damaged")
        low = offset + length
        yield whole[offset:low]


def _align(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT
