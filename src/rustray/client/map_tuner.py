"""How many items of a map make a chunk, and how many chunks are under way: by measured time.

Pure: it is told what was measured, and answers with numbers.
"""

from __future__ import annotations

import math
from typing import Final

TARGET_S: Final = 0.05
"""Work in a chunk: two hundred times what a task costs, and not long to wait for at the end."""
MAX_ITEMS: Final = 1 << 16
GROWTH: Final = 16
TARGET_BYTES: Final = 192 << 10
"""Of arguments, and of results, in a chunk: the head keeps results above 256 KiB in files."""
MIN_AHEAD: Final = 2
MAX_AHEAD: Final = 8
_RISE: Final = 0.5
_FALL: Final = 0.8
_TINY: Final = 1e-9


class ChunkTuner:
    """Finds the number of items that take `TARGET_S` to run.

    It begins with one item, and goes up sixteenfold at a chunk, so that items of a microsecond
    travel by the ten thousand after four chunks. A mean of the latest chunks decides, which follows
    falling times faster than rising ones: the first item of a function is the slow one, for it
    imports. (Where items suddenly take longer, the executor gives back what a chunk has not begun.)

    Attributes:
        size: Items for the next chunk.
    """

    def __init__(self, fixed: int | None = None, target_s: float = TARGET_S) -> None:
        """Begin.

        Args:
            fixed: Chunks are always of so many items; None finds out.
            target_s: Work in a chunk.

        Raises:
            ValueError: ``fixed`` is below 1.
        """
        if fixed is not None and (isinstance(fixed, bool) or fixed < 1):
            raise ValueError(f"chunk_size must be at least 1, not {fixed!r:.80}")
        self.size = fixed or 1
        self._is_fixed = fixed is not None
        self._target_s = target_s
        self._item_s = -1.0
        self._item_bytes = -1.0
        self._way_s = math.inf

    def ended(self, items: int, run_s: float, data_bytes: int, turnaround_s: float) -> None:
        """Take what was measured of a chunk.

        Args:
            items: How many of it have run, at least 1.
            run_s: Seconds that they took.
            data_bytes: Of arguments or of results, whichever are more.
            turnaround_s: Seconds from handing the chunk in to its outcome.
        """
        self._item_s = _mean(self._item_s, max(run_s, 0.0) / items)
        self._item_bytes = _mean(self._item_bytes, data_bytes / items)
        self._way_s = min(self._way_s, max(turnaround_s - run_s, 0.0))
        if self._is_fixed:
            return
        wanted = self._target_s / max(self._item_s, _TINY)
        room = TARGET_BYTES / max(self._item_bytes, _TINY)
        # A chunk of few items, at the end or of a slow source, says nothing against large ones.
        limit = max(self.size, items * GROWTH)
        self.size = max(int(min(wanted, room, limit, MAX_ITEMS)), 1)

    def prefetch(self, slots: int) -> int:
        """Return how many chunks should be under way to keep so many slots busy.

        Two a slot, and more where the way to the executors and back is long compared with the work
        in a chunk. Only the shortest way counts: a longer one was spent behind chunks of our own.
        """
        work_s = max(self.size * self._item_s, _TINY)
        ahead = MIN_AHEAD
        if math.isfinite(self._way_s):
            ahead = min(MAX_AHEAD, 1 + max(1, math.ceil(min(self._way_s / work_s, MAX_AHEAD))))
        return max(slots, 1) * ahead


def _mean(old: float, new: float) -> float:
    if old < 0:
        return new
    return old + (_RISE if new > old else _FALL) * (new - old)
