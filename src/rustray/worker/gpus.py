"""Which GPUs a task gets, by id. Pure.

Whole GPUs go to one task at a time. A fraction comes from one GPU only, and from the fullest one
that has enough left, so that whole ones stay free for those who need them.
"""

from __future__ import annotations

from typing import NamedTuple

from rustray.common.resources import UNIT


class GpuShare(NamedTuple):
    """What one task holds of the worker's GPUs.

    Attributes:
        indices: Places in `GpuPool.ids`; a fraction is of the last one.
        units: Of all of them together.
    """

    indices: tuple[int, ...]
    units: int

    def parts(self) -> list[tuple[int, int]]:
        """Return how much it holds of each: (index, units)."""
        whole, rest = divmod(self.units, UNIT)
        parts = [(index, UNIT) for index in self.indices[:whole]]
        return parts + [(index, rest) for index in self.indices[whole:]]


class GpuPool:
    """The GPUs of a worker, and how much of each is free.

    Attributes:
        ids: What the drivers call them, in the order of the worker's own environment.
        free: Units of each that no task holds.
    """

    __slots__ = ("free", "ids", "total")

    def __init__(self, units: int, ids: tuple[str, ...]) -> None:
        count = -(-units // UNIT)
        self.ids = ids[:count] if len(ids) >= count else tuple(map(str, range(count)))
        self.total = [min(UNIT, units - index * UNIT) for index in range(count)]
        self.free = list(self.total)

    def times(self, need: int) -> int:
        """Count how often a demand fits into what is free; 0 if not once."""
        whole, rest = divmod(need, UNIT)
        if not rest:
            return self.free.count(UNIT) // whole
        if not whole:
            return sum(units // need for units in self.free)
        return 0 if self.find(need) is None else 1

    def find(self, need: int) -> GpuShare | None:
        """Choose GPUs for a demand; None if they do not suffice. Nothing is taken yet."""
        whole, rest = divmod(need, UNIT)
        full = [index for index, units in enumerate(self.free) if units == UNIT]
        if len(full) < whole:
            return None
        chosen = full[:whole]
        if rest:
            # The least that suffices; among equals the first.
            left = [
                (units, index)
                for index, units in enumerate(self.free)
                if units >= rest and index not in chosen
            ]
            if not left:
                return None
            chosen.append(min(left)[1])
        return GpuShare(tuple(chosen), need)

    def can_take(self, share: GpuShare) -> bool:
        """Whether all of it is free."""
        return all(self.free[index] >= units for index, units in share.parts())

    def take(self, share: GpuShare) -> None:
        """Take what `find` has chosen."""
        for index, units in share.parts():
            self.free[index] -= units

    def give_back(self, share: GpuShare) -> None:
        """Free what a task has held."""
        for index, units in share.parts():
            self.free[index] += units

    def names(self, share: GpuShare) -> tuple[str, ...]:
        """Return the ids of what a task holds."""
        return tuple(self.ids[index] for index in share.indices)
