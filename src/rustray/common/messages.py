"""Messages on a byte stream between two processes of one machine: a head and a body each."""

from __future__ import annotations

import struct
from typing import Final

HEAD: Final = struct.Struct("=BxxxIQ")
"""kind, number, bytes that follow."""


class MessageSplitter:
    """Cuts a byte stream into messages; holds what is not whole yet.

    Attributes:
        missing: Size that the message which is not whole will have.
    """

    __slots__ = ("_held", "_parts", "missing")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._held = 0
        self.missing = HEAD.size

    def feed(self, data: bytes) -> list[tuple[int, int, bytes, int, int]]:
        """Take what arrived; return (kind, number, bytes, start, stop) of each whole message.

        Complexity: each byte is copied at most once more, however many reads a message took.
        """
        if self._parts:
            self._parts.append(data)
            self._held += len(data)
            if self._held < self.missing:
                return []
            data = b"".join(self._parts)
            self._parts.clear()
        found = []
        position, size = 0, len(data)
        need = HEAD.size
        while size - position >= HEAD.size:
            kind, number, length = HEAD.unpack_from(data, position)
            start = position + HEAD.size
            if size - start < length:
                need = HEAD.size + length
                break
            position = start + length
            found.append((kind, number, data, start, position))
        if position < size:
            self._parts.append(data[position:] if position else data)
            self._held = size - position
            self.missing = need
        return found
