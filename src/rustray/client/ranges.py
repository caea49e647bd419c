"""Sets of whole numbers, kept as few disjoint ranges."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator


class RangeSet:
    """Numbers that mostly come in order: usually a single range.

    Invariant: ``_lows`` and ``_highs`` are sorted, ranges neither touch nor overlap, and
    ``count`` is how many numbers they hold.
    """

    __slots__ = ("_highs", "_lows", "count")

    def __init__(self) -> None:
        self._lows: list[int] = []
        self._highs: list[int] = []
        self.count = 0

    def add(self, low: int, high: int) -> None:
        """Add ``low`` to ``high - 1``; what is there already stays."""
        if low >= high:
            return
        lows, highs = self._lows, self._highs
        # Every range from `start` on ends at or after `low`; up to `stop` they begin at or
        # before `high`: those touch the new one and are swallowed by it.
        start = bisect_left(highs, low)
        stop = start
        while stop < len(lows) and lows[stop] <= high:
            self.count -= highs[stop] - lows[stop]
            low = min(low, lows[stop])
            high = max(high, highs[stop])
            stop += 1
        lows[start:stop] = [low]
        highs[start:stop] = [high]
        self.count += high - low

    def discard(self, low: int, high: int) -> None:
        """Take out ``low`` to ``high - 1``; what is not there need not be."""
        if low >= high:
            return
        lows, highs = self._lows, self._highs
        # From `start` on ranges end beyond `low`; those before `stop` begin before `high`.
        start, stop = bisect_left(highs, low + 1), bisect_left(lows, high)
        hit = list(zip(lows[start:stop], highs[start:stop], strict=True))
        if not hit:
            return
        rest = [(hit[0][0], low), (high, hit[-1][1])]  # before and behind what is taken out
        kept = [(first, end) for first, end in rest if first < end]
        lows[start:stop] = [first for first, _ in kept]
        highs[start:stop] = [end for _, end in kept]
        self.count += sum(end - first for first, end in kept) - sum(b - a for a, b in hit)

    def gaps(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Yield the (low, high) ranges between the bounds that are not in the set."""
        index = bisect_left(self._highs, low + 1)
        while low < high:
            if index == len(self._lows) or self._lows[index] >= high:
                yield low, high
                return
            if self._lows[index] > low:
                yield low, self._lows[index]
            low = self._highs[index]
            index += 1

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._lows, self._highs, strict=True)))

    def __contains__(self, number: int) -> bool:
        index = bisect_left(self._highs, number + 1)
        return index < len(self._lows) and self._lows[index] <= number
