"""Payloads of many tasks side by side: the unit that travels through the system.

One blob and one array of end positions stand for thousands of byte strings, so
that head and worker pass a thousand tasks on with two slices and no loop.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final, cast

ENDS_TYPECODE: Final = "I"
MAX_BLOB_BYTES: Final = (1 << 32) - 1
_SWAP = sys.byteorder == "big"


class PayloadColumn:
    """An immutable sequence of byte strings, stored as one blob.

    Attributes:
        blob: All items, one after the other.
        ends: End of each item, unsigned 32 bit, counted from ``-base``: item ``i`` is
            ``blob[ends[i-1] - base : ends[i] - base]``, with ``ends[-1]`` read as ``base``.
        base: What to subtract from ``ends``; lets a slice share the numbers of its parent.
    """

    __slots__ = ("base", "blob", "ends")

    def __init__(self, blob: bytes, ends: array[int], base: int = 0) -> None:
        self.blob = blob
        self.ends = ends
        self.base = base

    @classmethod
    def of(cls, items: Sequence[bytes]) -> PayloadColumn:
        """Pack byte strings; together at most 4 GiB - 1."""
        return cls(b"".join(items), array(ENDS_TYPECODE, accumulate(map(len, items))))

    @classmethod
    def from_wire(cls, blob: bytes, ends: bytes, base: int) -> PayloadColumn:
        """Rebuild from what a peer sent.

        The order of the ends is not checked, for that would be a loop over the
        items: wrong ones can only garble the sender's own items (Python slices
        stay inside the blob).

        Raises:
            ValueError: the ends do not describe the blob (a false or broken peer).
        """
        column = _ends_of(ends)
        if not column:
            if blob:
                raise ValueError("payload bytes without items")
            return cls(blob, column, base)
        if column[-1] - base != len(blob) or base > column[0]:
            raise ValueError("payload ends do not match the blob's size")
        return cls(blob, column, base)

    def ends_bytes(self) -> bytes:
        """Return the ends as little-endian bytes for the wire."""
        if _SWAP:
            swapped = array(ENDS_TYPECODE, self.ends)
            swapped.byteswap()
            return swapped.tobytes()
        return self.ends.tobytes()

    @property
    def size_bytes(self) -> int:
        """Bytes of all items together."""
        return self.ends[-1] - self.base if self.ends else 0

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        """Return one item; a negative index counts from the end."""
        if index < 0:
            index += len(self.ends)
        start = self.ends[index - 1] if index else self.base
        return self.blob[start - self.base : self.ends[index] - self.base]

    def size_of(self, index: int) -> int:
        """Return the bytes of one item."""
        start = self.ends[index - 1] if index else self.base
        return self.ends[index] - start

    def slice(self, low: int, high: int) -> PayloadColumn:
        """Return items ``low`` to ``high - 1`` (0 <= low <= high <= len).

        Complexity: two copies of the bytes concerned, no loop over items.
        """
        if low == 0 and high == len(self.ends):
            return self
        if low == high:
            return PayloadColumn(b"", array(ENDS_TYPECODE))
        start = self.ends[low - 1] if low else self.base
        stop = self.ends[high - 1]
        return PayloadColumn(
            self.blob[start - self.base : stop - self.base], self.ends[low:high], start
        )

    def __iter__(self) -> Iterator[bytes]:
        blob, start, base = self.blob, self.base, self.base
        for end in self.ends:
            yield blob[start - base : end - base]
            start = end

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PayloadColumn) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"PayloadColumn({len(self.ends)} items, {len(self.blob)} bytes)"


class SharedColumn(PayloadColumn):
    """One item in sealed memory that other processes on this machine can map.

    Its blob and what is cut from it are read-only memory views, used as bytes are: measured, cut,
    read, joined. Who needs real bytes makes them: ``bytes(item)``.

    Attributes:
        owner: What keeps the descriptor of that memory (a segment of `rustray.objects`); None:
            there is none any more, only the mapping.
    """

    __slots__ = ("owner",)

    def __init__(self, view: memoryview, owner: object = None) -> None:
        super().__init__(cast("bytes", view), array(ENDS_TYPECODE, [len(view)]))
        self.owner = owner


class StoredColumn(PayloadColumn):
    """A column whose bytes are on a disk: it knows how many items there are, and how large.

    Attributes:
        number: Under which they are found.
        skip: How many items there come before those of this column.
    """

    __slots__ = ("number", "skip")

    def __init__(self, number: int, ends: array[int], base: int = 0, skip: int = 0) -> None:
        super().__init__(b"", ends, base)
        self.number = number
        self.skip = skip

    @classmethod
    def of_column(cls, number: int, column: PayloadColumn) -> StoredColumn:
        """Return what is left here of a column that is on a disk now."""
        return cls(number, column.ends, column.base)

    @classmethod
    def found(cls, number: int, ends: bytes, base: int) -> StoredColumn:
        """Rebuild from what a journal has.

        Raises:
            ValueError: the ends make no sense.
        """
        column = _ends_of(ends)
        if not column or base > column[0]:
            raise ValueError("the ends of stored payloads make no sense")
        return cls(number, column, base)

    def slice(self, low: int, high: int) -> StoredColumn:
        """Return items ``low`` to ``high - 1``, likewise stored."""
        base = self.ends[low - 1] if low else self.base
        return StoredColumn(self.number, self.ends[low:high], base, self.skip + low)

    def __getitem__(self, index: int) -> bytes:
        raise LookupError(f"result {self.number} is on the disk: read it first")

    def __iter__(self) -> Iterator[bytes]:
        raise LookupError(f"result {self.number} is on the disk: read it first")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, StoredColumn)
            and (other.number, other.skip) == (self.number, self.skip)
            and len(other) == len(self)
        )

    __hash__ = None

    def __repr__(self) -> str:
        return f"StoredColumn({self.number}, {len(self.ends)} items, {self.size_bytes} bytes)"


class PlacedColumn(PayloadColumn):
    """One item that stays at its node: the bytes are its packed `rustray.task.place.Place`.

    To all that pass it on it is a small item like another; who wants the value fetches it.
    """

    __slots__ = ()

    def slice(self, low: int, high: int) -> PayloadColumn:
        """Return the item, or nothing."""
        return self if low < high else NO_PAYLOADS

    @classmethod
    def of_item(cls, item: bytes) -> PlacedColumn:
        """Make one of a packed place."""
        return cls(item, array(ENDS_TYPECODE, [len(item)]))

    @classmethod
    def of_column(cls, column: PayloadColumn) -> PlacedColumn:
        """Say of a column that it is one.

        Raises:
            ValueError: it has not one item.
        """
        if len(column) != 1:
            raise ValueError(f"{len(column)} values in one place")
        return cls.of_item(bytes(column[0]))


def _ends_of(ends: bytes) -> array[int]:
    column: array[int] = array(ENDS_TYPECODE)
    column.frombytes(ends)
    if _SWAP:
        column.byteswap()
    return column


NO_PAYLOADS: Final = PayloadColumn.of([])
