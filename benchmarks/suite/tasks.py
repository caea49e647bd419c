"""What the compared systems are asked to run; executors import this module by its name."""

from __future__ import annotations

import time


def noop(_number: int = 0) -> None:
    """Do nothing."""


def take(_payload: bytes) -> None:
    """Take an argument."""


def give(size: int) -> bytes:
    """Return a result of ``size`` bytes."""
    return bytes(size)


def hold(seconds: float) -> None:
    """Keep an executor busy."""
    time.sleep(seconds)
