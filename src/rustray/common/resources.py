"""Amounts of what tasks need and workers own.

Amounts are integers in units of 1/10,000, so that a thousand tasks of
``cpu_cores=0.1`` fill exactly a hundred cores (floats would drift).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

UNIT: Final = 10_000
"""Integer units in one core, one megabyte, one GPU or one custom resource."""
CPU: Final = "cpu_cores"
MEMORY: Final = "memory_mb"
GPU: Final = "gpus"
MAX_AMOUNT: Final = 1e12
MAX_NAMES: Final = 64
UNBOUNDED: Final = 1 << 40
"""What `ResourceSet.times_in` answers for a demand of nothing."""


def to_units(name: str, amount: float) -> int:
    """Convert a user's amount to integer units.

    Raises:
        ValueError: negative, NaN, infinite, absurdly large, or not a number.
    """
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise ValueError(f"{name} must be a number, not {type(amount).__name__}")
    if math.isnan(amount) or math.isinf(amount):
        raise ValueError(f"{name} must be finite, not {amount}")
    if amount < 0:
        raise ValueError(f"{name} must not be negative, got {amount}")
    if amount > MAX_AMOUNT:
        raise ValueError(f"{name}={amount:g} is more than any machine has (limit {MAX_AMOUNT:g})")
    return round(amount * UNIT)


def gpu_times(need: int, total: int) -> int:
    """Count how often a demand for GPUs fits into a worker's, all of them free.

    A fraction comes from one GPU: two have room for two demands of 0.6, not for three.
    """
    whole, rest = divmod(need, UNIT)
    count, part = divmod(total, UNIT)
    fits = total // need
    if not rest:
        return fits
    while fits > 0:
        fractions = max(fits - part // rest, 0)
        if fits * whole + -(-fractions // (UNIT // rest)) <= count:
            break
        fits -= 1
    return fits


class ResourceSet:
    """An immutable vector of named amounts; a name that is absent means zero.

    Attributes:
        units: name to positive integer units, in name order; not to be mutated.
        is_split: Whether it asks for a part of a GPU, which comes from one GPU only.
    """

    __slots__ = ("_hash", "is_split", "units")

    def __init__(self, units: Mapping[str, int]) -> None:
        self.units: dict[str, int] = {k: units[k] for k in sorted(units) if units[k] > 0}
        self._hash = hash(tuple(self.units.items()))
        self.is_split = self.units.get(GPU, 0) % UNIT != 0

    @classmethod
    def of(cls, amounts: Mapping[str, float]) -> ResourceSet:
        """Build from a user's amounts (cores, megabytes, ...).

        Raises:
            ValueError: an amount is not a finite number of at least 0, a name is
                empty or over-long, or there are more than 64 names.
        """
        if len(amounts) > MAX_NAMES:
            raise ValueError(f"{len(amounts)} resources named, at most {MAX_NAMES} are allowed")
        for name in amounts:
            if not isinstance(name, str) or not 0 < len(name) <= 128 or not name.isprintable():
                raise ValueError(f"bad resource name {name!r:.80}: 1 to 128 printable characters")
        return cls({name: to_units(name, amount) for name, amount in amounts.items()})

    def amounts(self) -> dict[str, float]:
        """Return the amounts as a user writes them (whole numbers as int)."""
        return {
            name: units // UNIT if units % UNIT == 0 else units / UNIT
            for name, units in self.units.items()
        }

    def times_in(self, free: Mapping[str, int]) -> int:
        """Count how often this demand fits into the free units (0 if not once).

        Complexity: O(names in the demand).
        """
        best = UNBOUNDED
        for name, need in self.units.items():
            have = free.get(name, 0)
            if have < need:
                return 0
            fits = have // need
            if fits < best:
                best = fits
        if self.is_split:
            best = min(best, gpu_times(self.units[GPU], free.get(GPU, 0)))
        return best

    def shortage(self, total: Mapping[str, int]) -> dict[str, tuple[float, float]]:
        """Name what ``total`` lacks: name to (needed, there)."""
        return {
            name: (need / UNIT, total.get(name, 0) / UNIT)
            for name, need in self.units.items()
            if total.get(name, 0) < need
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResourceSet) and self.units == other.units

    def __hash__(self) -> int:
        return self._hash

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self.units.items())

    def __repr__(self) -> str:
        inner = ", ".join(f"{k}={v:g}" for k, v in self.amounts().items())
        return f"ResourceSet({inner})"
