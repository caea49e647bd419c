"""Tasks with large values, for `test_values`."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import rustray
from rustray.client import nested as nested_sessions

MB = 1 << 20


@rustray.remote
def make(size: int, seed: int = 0, note: str = "") -> np.ndarray:
    """Return so many bytes; note where and how often it ran."""
    if note:
        with Path(note).open("a") as file:
            file.write(f"{os.getppid()}\n")
    return np.full(size, seed, dtype=np.uint8)


@rustray.remote
def total(*arrays: np.ndarray) -> int:
    """Add all of it up."""
    assert all(not array.flags.writeable for array in arrays)
    return sum(int(array.sum()) for array in arrays)


@rustray.remote(num_returns=3)
def three(size: int) -> tuple[np.ndarray, str, np.ndarray]:
    """Return two large values and a small one between."""
    return np.full(size, 1, dtype=np.uint8), "small", np.full(size, 3, dtype=np.uint8)


@rustray.remote
def nested(size: int) -> int:
    """Have a large value made, and look at it here."""
    return int(rustray.get(make.remote(size, 2)).sum())


@rustray.remote
def hand_on(size: int) -> list[rustray.TaskRef[np.ndarray]]:
    """Return a reference to a value that a task of this one makes."""
    return [make.remote(size, 5)]


@rustray.remote
def put_in(size: int) -> list[rustray.TaskRef[np.ndarray]]:
    """Put a value, and return its reference."""
    return [rustray.put(np.full(size, 1, dtype=np.uint8))]


@rustray.remote(max_retries=1)
def put_again(size: int, note: str) -> tuple[list[rustray.TaskRef[np.ndarray]], int]:
    """Put a value and have a task take it; ends with its process the first time."""
    ref = rustray.put(np.full(size, 1, dtype=np.uint8))
    found = rustray.get(total.remote(ref), timeout=20)
    if not Path(note).exists():
        Path(note).touch()
        os._exit(3)
    return [ref], found


@rustray.remote
def spoil(size: int, kind: str) -> object:
    """Fail, with a value that a task of this one has made."""
    ref = make.remote(size, 6)
    found = rustray.get(ref).sum()
    if kind == "raises":
        raise ValueError(f"spoilt: {found}")
    return threading.Lock(), ref


@rustray.remote
async def spoil_async(size: int) -> None:
    """Fail in a coroutine, with a value that a task of this one has made."""
    ref = make.remote(size, 6)
    raise ValueError(f"spoilt: {(await ref).sum()}")


@rustray.remote
async def add_up(size: int) -> int:
    """Have a large value made, and look at it in a coroutine."""
    return int((await make.remote(size, 2)).sum())


@rustray.remote(num_returns="streaming")
def spoil_later(size: int) -> Iterator[tuple[int, int]]:
    """Yield what tasks of this one made of a large value, and its process' open sessions; fail."""
    ref = make.remote(size, 6)
    found = int(rustray.get(total.remote(ref)))
    assert nested_sessions._channel is not None
    yield found, len(nested_sessions._channel.links)
    raise ValueError("spoilt")
