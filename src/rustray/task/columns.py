"""Payloads of many tasks side by side: the unit that travels through the system.

One blob and one array of end positions stand for thousands of byte strings, so
that head and worker pass a thousand tasks on with two slices and no loop.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

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
        column: array[int] = array(ENDS_TYPECODE)
        column.frombytes(ends)
        if _SWAP:
            column.byteswap()
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

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        """Return one item; a negative index counts from the end."""
        if index < 0:
            index += len(self.ends)
        start = self.ends[index - 1] if index else self.base
        return self.blob[start - self.base : self.ends[index] - self.base]

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


NO_PAYLOADS: Final = PayloadColumn.of([])
