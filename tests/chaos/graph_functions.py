"""Tasks of graphs and nested tasks of a chaos run; they write their history as the others do."""

from __future__ import annotations

import hashlib
import time
from typing import Any, Final

import numpy as np

import rustray
from chaos.functions import Attempt, die, work
from chaos.history import digest

PARTS: Final = 3
LARGE_BYTES: Final = 100 << 10
"""Values from this size on may stay with the worker that made them."""
_PATIENCE_S: Final = 0.05


def large(name: str, size: int) -> Any:
    """Return bytes, or an array, that follow from a name: the same in every attempt of a task."""
    seed = hashlib.sha256(f"{name}/{size}".encode()).digest()
    content = (seed * (size // len(seed) + 1))[:size]
    return np.frombuffer(content, np.uint8) if size % 2 else content


@rustray.remote
def combine(seconds: float, size: int, *values: object) -> Any:
    """Take values; return a text, or so many bytes."""
    attempt = Attempt(took=values)
    work(seconds)
    if not size:
        return attempt.finish()
    result = large(attempt.task_id, size)
    attempt.finish_with(result, size=size)
    return result


@rustray.remote(num_returns=PARTS)
def split(seconds: float, *values: object) -> list[str]:
    """Return several values, each with a reference of its own."""
    attempt = Attempt(took=values)
    work(seconds)
    parts = [attempt.text() for _ in range(PARTS)]
    attempt.finish_with(parts, parts=[digest(part) for part in parts])
    return parts


@rustray.remote
def refuse(seconds: float, *values: object) -> Any:
    """Raise, as users' code does: what takes this one's result ends with it."""
    attempt = Attempt(took=values)
    work(seconds)
    attempt.fail()
    raise LookupError(f"task {attempt.task_id} has nothing to return")


@rustray.remote
def leaf(seconds: float) -> str:
    """Be handed in by a task."""
    attempt = Attempt()
    work(seconds)
    return attempt.finish()


@rustray.remote
def patient(seconds: float) -> str:
    """Be handed in by a task that is cancelled: end early, for it is cancelled too."""
    attempt, task = Attempt(), rustray.context()
    end = time.monotonic() + seconds
    while not task.is_cancelled():
        if time.monotonic() >= end:
            return attempt.finish()
        time.sleep(_PATIENCE_S)  # the task's work
    value = attempt.text()
    attempt.finish_with(value, stopped=True)
    return value


@rustray.remote
def branch(depth: int, width: int, seconds: float, how: str = "", waits: bool = False) -> str:
    """Hand in tasks, wait for them, and return something.

    Args:
        depth: Levels of tasks below this one.
        width: Tasks that it hands in.
        seconds: What the lowest take.
        how: The first attempt ends its executor so, with its children under way; "" for not.
        waits: The lowest look whether they are cancelled.
    """
    attempt = Attempt()
    below = patient if waits else leaf
    refs: list[rustray.TaskRef[str]] = [
        branch.remote(depth - 1, width, seconds, "", waits) if depth > 1 else below.remote(seconds)
        for _ in range(width)
    ]
    ids = [ref.task_id for ref in refs]
    attempt.note("children", ids=ids)
    if how and attempt.number == 1:
        work(min(seconds, 0.1))
        attempt.crash()
        die(how)
    try:
        values = rustray.get(refs)
    except rustray.RustRayError:
        attempt.fail()
        raise
    found = [[name, digest(value)] for name, value in zip(ids, values, strict=True)]
    attempt.note("saw", of=found)
    return attempt.finish()
