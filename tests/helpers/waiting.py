"""Waiting for a fact instead of sleeping for a while: the only place in the tests that sleeps.

A test that sleeps is either slow (the time is too long) or flaky (it is too short). These two
return as soon as the fact holds, and their limit only matters when the test is about to fail.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.05


def eventually(predicate: Callable[[], T], within_s: float = 10.0, *, what: str = "") -> T:
    """Wait in this thread until ``predicate()`` is true.

    Args:
        predicate: Asked again and again, with pauses of 1 to 50 ms. What it raises ends the wait.
        within_s: Limit in seconds; be generous, it costs nothing when the test passes.
        what: The awaited fact, for the message; default: the predicate's name.

    Returns:
        The first true answer.

    Raises:
        AssertionError: It was still false after the limit; names the fact and the last answer.
    """
    deadline = time.monotonic() + within_s
    pause_s = _FIRST_PAUSE_S
    while True:
        late = time.monotonic() >= deadline
        answer = predicate()
        if answer:
            return answer
        if late:
            raise AssertionError(_message(predicate, answer, within_s, what))
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


async def aeventually(
    predicate: Callable[[], Any], within_s: float = 10.0, *, what: str = ""
) -> Any:
    """Wait on the event loop until ``predicate()``, plain or async, is true.

    Args, answer and error are those of `eventually`. The loop goes on running meanwhile.
    """
    deadline = time.monotonic() + within_s
    pause_s = _FIRST_PAUSE_S
    while True:
        late = time.monotonic() >= deadline
        answer = predicate()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if late:
            raise AssertionError(_message(predicate, answer, within_s, what))
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


def _message(predicate: object, answer: object, within_s: float, what: str) -> str:
    fact = what or getattr(predicate, "__qualname__", repr(predicate))
    return f"not within {within_s:g} s: {fact} (last answer: {answer!r})"
