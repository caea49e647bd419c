"""What the compared systems are asked to run; executors import this module by its name."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any


def noop(_number: int = 0) -> None:
    """Do nothing."""


def increment(number: int) -> int:
    """Do next to nothing."""
    return number + 1


def take(_payload: bytes) -> None:
    """Take an argument."""


def give(size: int) -> bytes:
    """Return a result of ``size`` bytes."""
    return bytes(size)


def count_up(number: int) -> Iterator[int]:
    """Yield numbers."""
    for index in range(number):  # noqa: UP028 - Ray 2.60 cannot take `yield from` of a range
        yield index


def hold(seconds: float) -> None:
    """Keep an executor busy."""
    time.sleep(seconds)


def take_array(array: Any) -> int:
    """Look at each page of an array."""
    step = 512  # 4 KiB of 8 byte numbers
    assert array[::step].sum() > 0
    return len(array)


def give_array(count: int) -> Any:
    """Return an array."""
    import numpy as np

    return np.arange(count, dtype=np.float64)


def more(number: int) -> int:
    """Count up."""
    return number + 1


def add(*numbers: int) -> int:
    """Add up."""
    return sum(numbers)


def add_listed(numbers: list[int]) -> int:
    """Add up, for systems that take references in a list."""
    return sum(numbers)
