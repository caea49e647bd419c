"""What `rustray.map` runs in executor processes; imports nothing that a child should not load.

A chunk of items is one task. Its function is `run_items`, bound to the user's function, and it
answers with a `Report`: plain values as they are, all others pickled one by one as soon as they are
there (so that a result that changes later, or cannot be pickled, is its item's affair alone),
and failures by item.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from types import CoroutineType
from typing import Any, Final

from rustray.common.errors import FunctionNotFound, PayloadError, TaskExecutionFailed
from rustray.task.codec import encode_value
from rustray.task.failures import encode_failure, failure_from_exception
from rustray.task.functions import near_names, registry
from rustray.task.pickling import dumps
from rustray.task.result import FailureInfo, qualified_name
from rustray.task.spec import Codec

FULL_BYTES: Final = 1 << 20
"""A chunk that has made so much ends early: results have a limit, the rest can run elsewhere."""

_SMALL: Final = frozenset({int, float, bool, type(None), complex})
_TEXTS: Final = frozenset({str, bytes})

Report = tuple[float, list[Any], dict[int, bytes], dict[int, bytes]]
"""Seconds of work; a value per item that has run, None where one of these has it: encoded values
and encoded failures, by place in the chunk. Items that are not in it have not begun."""


class Registered:
    """A function that the executor's process has registered under a name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.__qualname__ = name
        self.__module__ = ""
        self._call: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it.

        Raises:
            FunctionNotFound: this worker has none of that name.
        """
        if self._call is None:
            found = registry.functions.get(self.name)
            if found is None:
                near = near_names(self.name, registry.functions)
                hint = f"; near names: {', '.join(near)}" if near else ""
                raise FunctionNotFound(f"this worker has no function {self.name!r}{hint}")
            self._call = found.call
        return self._call(*args, **kwargs)

    def __reduce__(self) -> Any:
        return Registered, (self.name,)


class _Work:
    """The state of one chunk."""

    def __init__(self, items: Sequence[Any], budget_s: float) -> None:
        self.items = items
        self.values: list[Any] = []
        self.encoded: dict[int, bytes] = {}
        self.failures: dict[int, bytes] = {}
        self.bytes = 0
        self.begun = time.perf_counter()
        self.stop_at = self.begun + budget_s

    def keep(self, value: Any) -> None:
        """Keep a value."""
        kind = type(value)
        if kind in _SMALL or (kind in _TEXTS and len(value) < FULL_BYTES):
            self.bytes += len(value) if kind in _TEXTS else 0
            self.values.append(value)
            return
        data = _encode(value)
        self.bytes += len(data)
        self.encoded[len(self.values)] = data
        self.values.append(None)

    def fail(self, error: BaseException) -> None:
        """Keep what an item raised."""
        data = encode_failure(_describe(error))
        self.bytes += len(data)
        self.failures[len(self.values)] = data
        self.values.append(None)

    def is_over(self) -> bool:
        """Whether the rest is to be left to another chunk."""
        return time.perf_counter() >= self.stop_at or self.bytes >= FULL_BYTES

    def report(self) -> Report:
        """Sum up."""
        return time.perf_counter() - self.begun, self.values, self.encoded, self.failures


class _Unencodable(Exception):
    """A result cannot travel."""


def _encode(value: Any) -> bytes:
    try:
        return dumps(value)
    except Exception:
        try:
            return encode_value(Codec.PICKLE, value, "result")
        except PayloadError as error:
            raise _Unencodable(f"the function succeeded, but {error}") from None


def _describe(error: BaseException) -> FailureInfo:
    if isinstance(error, _Unencodable):
        return FailureInfo(PayloadError.code, str(error))
    if type(error) is FunctionNotFound:
        return FailureInfo(FunctionNotFound.code, str(error))
    try:
        return failure_from_exception(error, Codec.PICKLE, skip_frames=1)
    except BaseException as broken:  # methods of the user's own classes have run in there
        name = type(error).__name__
        text = f"{name} was raised, and to describe it raised {type(broken).__name__}"
        return FailureInfo(TaskExecutionFailed.code, text, error_type=qualified_name(type(error)))


def run_items(fn: Callable[..., Any], is_star: bool, budget_s: float, items: Sequence[Any]) -> Any:
    """Call a function for each item in turn.

    Args:
        fn: The function.
        is_star: An item is a tuple of arguments.
        budget_s: Leave the rest to another chunk after so many seconds.
        items: At least one.

    Returns:
        The `Report`; where the function is a coroutine's, a coroutine that returns it.
    """
    work = _Work(items, budget_s)
    append, small, interrupts = work.values.append, _SMALL, _interrupts()
    clock, stop_at = time.perf_counter, work.stop_at
    for item in items:
        try:
            value = fn(*item) if is_star else fn(item)
            kind = type(value)
            if kind in small:
                append(value)
            elif kind is CoroutineType:
                return _go_on(work, fn, is_star, value)
            else:
                work.keep(value)
        except interrupts:
            raise
        except BaseException as error:
            work.fail(error)
        if clock() >= stop_at or work.bytes >= FULL_BYTES:
            break
    return work.report()


async def run_items_async(
    fn: Callable[..., Any], is_star: bool, budget_s: float, items: Sequence[Any]
) -> Report:
    """`run_items` for a function that is known to be a coroutine's."""
    return await _go_on(_Work(items, budget_s), fn, is_star, None)


async def _go_on(work: _Work, fn: Callable[..., Any], is_star: bool, begun: Any) -> Report:
    """Await what was begun, then the rest, one after the other: a chunk has one slot."""
    interrupts = _interrupts()
    while len(work.values) < len(work.items):
        item = work.items[len(work.values)]
        try:
            if begun is None:
                begun = fn(*item) if is_star else fn(item)
            waiting, begun = begun, None
            work.keep(await waiting)
        except asyncio.CancelledError:
            raise
        except interrupts:
            raise
        except BaseException as error:
            work.fail(error)
        if work.is_over():
            break
    return work.report()


def _interrupts() -> tuple[type[BaseException], ...]:
    """Return what ends the task and not just an item; by name, for clients know no workers."""
    module = sys.modules.get("rustray.worker.context")
    return (module.TaskInterrupt,) if module is not None else ()
