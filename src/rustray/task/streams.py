"""Streams: what a generator task yields, item by item, on its way to whoever iterates.

The *window* of a stream says how many items may be under way: yielded, and not consumed. When it is
full, or `WINDOW_BYTES` are under way, the generator waits at its ``yield``.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from rustray.common.records import record
from rustray.task.columns import PayloadColumn

K = TypeVar("K")

STREAMING: Final = "streaming"
DEFAULT_WINDOW: Final = 128
MAX_WINDOW: Final = 65_536
WINDOW_BYTES: Final = 8 << 20
"""Bytes under way above which a generator waits, too; one item is always allowed."""
JOIN_BYTES: Final = 16 << 10
"""Neighbours that wait are joined to columns of about this size."""
RUN_BYTES: Final = 200
"""What waiting items take beside their bytes."""
MAX_ITEMS: Final = (1 << 32) - 1
"""Items of one stream at most: they are counted in 32 bits."""


@record
class LeaseItems:
    """Worker to head: consecutive items of one stream, which a task of a lease has yielded.

    Attributes:
        lease: The grant that it runs under.
        offset: Its position in the lease.
        first: Index of the first item, from 0.
        payloads: Encoded values, one an item.
    """

    lease: int
    offset: int
    first: int
    payloads: PayloadColumn


@record
class StreamCredit:
    """Head to worker: how far a stream has come.

    Attributes:
        lease: The grant that its task runs under.
        offset: Its position in the lease.
        have: Items that the head has: an attempt that begins passes over so many.
        consumed: Items that the consumer is done with; the window begins there.
    """

    lease: int
    offset: int
    have: int
    consumed: int


@record
class StreamItems:
    """Head to client: consecutive items of a stream.

    Attributes:
        sequence: The task's.
        first: Index of the first item.
        payloads: Encoded values, one an item.
    """

    sequence: int
    first: int
    payloads: PayloadColumn


@record
class StreamRead:
    """Client to head: how far a consumer has come.

    Attributes:
        sequence: The task's.
        consumed: Items that it is done with.
        have: Send all items from this one on, for a new connection; -1: go on as before.
        has_left: It wants no more: the task is to end, and its items are dropped.
    """

    sequence: int
    consumed: int
    have: int = -1
    has_left: bool = False


def window_of(num_returns: object, window: object, *, is_process: bool = True) -> int:
    """Return the window of a task, 0 for one that is no stream.

    Args:
        num_returns: "streaming", or how many values it returns.
        window: ``generator_backpressure_num_objects``; None takes `DEFAULT_WINDOW`.
        is_process: Whether it runs in a process of its own.

    Raises:
        ValueError: a value is out of range, or the two do not go together.
    """
    if window is not None and (type(window) is not int or not 1 <= window <= MAX_WINDOW):
        raise ValueError(
            f"generator_backpressure_num_objects must be 1 to {MAX_WINDOW}, or None for "
            f"{DEFAULT_WINDOW}, not {window!r:.80}"
        )
    if num_returns != STREAMING:
        if window is not None:
            raise ValueError(
                "generator_backpressure_num_objects is for generators: num_returns='streaming'"
            )
        return 0
    found = DEFAULT_WINDOW if window is None else window
    check_window(found, is_process=is_process)
    assert isinstance(found, int)
    return found


def check_window(window: object, *, is_process: bool) -> None:
    """Refuse what is no window, and streams where none can run.

    Raises:
        ValueError: as said.
    """
    if type(window) is not int or not 0 <= window <= MAX_WINDOW:
        raise ValueError(f"a stream's window must be 0 to {MAX_WINDOW}, not {window!r:.80}")
    if window and not is_process:
        raise ValueError(
            "a generator task runs in a process (executor='process'), which may wait for its "
            "consumer; async generators do so too"
        )


def is_generator_function(function: Any) -> bool:
    """Whether calls of a function are streams without being told so."""
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def join(columns: list[PayloadColumn]) -> PayloadColumn:
    """Put columns together, in order."""
    if len(columns) == 1:
        return columns[0]
    return PayloadColumn.of([item for column in columns for item in column])


@dataclass(slots=True)
class _Run(Generic[K]):
    """Consecutive items of one stream that came as several columns."""

    key: K
    first: int
    end: int
    bytes: int
    columns: list[PayloadColumn]


class ItemQueue(Generic[K]):
    """Items that wait to be sent, in the order in which they came; neighbours travel together.

    Attributes:
        runs: Runs of neighbours: empty where nothing waits, which is asked for each frame.
        weight: About how many bytes of memory they take.
    """

    __slots__ = ("runs", "weight")

    def __init__(self) -> None:
        self.runs: deque[_Run[K]] = deque()
        self.weight = 0

    def __bool__(self) -> bool:
        return bool(self.runs)

    def add(self, key: K, first: int, column: PayloadColumn) -> None:
        """Take items behind all others.

        Args:
            key: Names the stream.
            first: Index of the first item.
            column: The items.
        """
        size, runs = column.size_bytes, self.runs
        self.weight += size + RUN_BYTES
        if runs:
            last = runs[-1]
            if last.key == key and last.end == first and last.bytes < JOIN_BYTES:
                last.columns.append(column)
                last.end += len(column)
                last.bytes += size
                return
        runs.append(_Run(key, first, first + len(column), size, [column]))

    def put_first(self, key: K, first: int, column: PayloadColumn) -> None:
        """Take back what was sent in vain, before all others."""
        size = column.size_bytes
        self.weight += size + RUN_BYTES
        self.runs.appendleft(_Run(key, first, first + len(column), size, [column]))

    def take(self, limit_bytes: int) -> Iterator[tuple[K, int, PayloadColumn]]:
        """Take out items, until they have so many bytes: (stream, index of the first, items)."""
        size = 0
        while self.runs and size < limit_bytes:
            run = self.runs.popleft()
            size += run.bytes
            self.weight -= run.bytes + RUN_BYTES * len(run.columns)
            yield run.key, run.first, join(run.columns)
