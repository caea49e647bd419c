"""The window of one generator: how far it may run ahead of its consumer. Pure."""

from __future__ import annotations

from collections import deque

from rustray.task.streams import WINDOW_BYTES


class Window:
    """Counts what a generator has yielded, and what of that is consumed.

    Attributes:
        index: Of the item that comes next; in the end, how many there were.
        consumed: Items that the consumer is done with.
    """

    __slots__ = ("_bytes", "_have", "_limit", "_sizes", "consumed", "index")

    def __init__(self, limit: int, have: int, consumed: int) -> None:
        """Begin an attempt.

        Args:
            limit: Items that may be under way.
            have: Items that the head has from an earlier attempt: they are passed over.
            consumed: Of these, what the consumer is done with.
        """
        self.index = 0
        self.consumed = consumed
        self._limit = limit
        self._have = have
        self._sizes: deque[tuple[int, int]] = deque()
        self._bytes = 0

    @property
    def is_known(self) -> bool:
        """Whether the head has the next item already."""
        return self.index < self._have

    def count(self, size: int) -> None:
        """Count an item of so many encoded bytes; 0 for one that is known."""
        if size:
            self._sizes.append((self.index, size))
            self._bytes += size
        self.index += 1

    @property
    def is_full(self) -> bool:
        """Whether the generator is to wait before it yields more; never within what is known."""
        consumed, sizes = self.consumed, self._sizes
        while sizes and sizes[0][0] < consumed:
            self._bytes -= sizes.popleft()[1]
        if self.index < self._have:
            return False
        return self.index - consumed >= self._limit or self._bytes >= WINDOW_BYTES
