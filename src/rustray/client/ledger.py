"""What a session has handed in and not yet got back, and how outcomes find their references.

`Ledger` runs on the session's loop thread, except for `add`. Outcomes come as ranges of
sequences; the batch that holds them is found by bisection, and the references get their payloads in
one tight loop. A false or repeated message of the head concerns no unfinished task, and is
ignored.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

from rustray.client.failures import error_of_rejection
from rustray.client.ranges import RangeSet
from rustray.client.refs import (
    CANCELLED,
    FAILED,
    SUCCEEDED,
    Batch,
    Failure,
    TaskRef,
    run_callback,
)
from rustray.client.values import Placed
from rustray.client.waiters import Arrivals
from rustray.common.errors import RustRayError, TaskCancelled, TaskNotFound
from rustray.common.ids import task_id
from rustray.task.columns import PayloadColumn, PlacedColumn
from rustray.task.frames import HeadFrame, Outcome, TaskRange
from rustray.task.streams import StreamItems

_MIN_RETIRED: Final = 64


class Ledger:
    """The sealed batches of a session, by first sequence.

    Invariant: ``_firsts`` is sorted and parallel to ``_batches``; a batch without unfinished
    tasks (*retired*) holds nothing, and retired ones are never the greater part for long.
    """

    def __init__(
        self,
        prefix: bytes,
        lock: threading.Lock,
        arrivals: Arrivals,
        placed: Callable[[Batch, int, PayloadColumn], list[Placed]],
    ) -> None:
        self._placed = placed
        self._prefix = prefix
        self._lock = lock
        self._arrivals = arrivals
        self._firsts: list[int] = []
        self._batches: list[Batch] = []
        self._retired = 0

    def add(self, batch: Batch) -> None:
        """Append a batch that has just been sealed; the session's lock is held."""
        self._firsts.append(batch.first)
        self._batches.append(batch)

    def unfinished(self) -> list[Batch]:
        """Return the batches that still wait for an outcome, oldest first."""
        return [batch for batch in self._batches if batch.unfinished]

    def unsettled(self) -> list[Batch]:
        """Return the batches that are to be handed in again, oldest first, and prepare them."""
        found: list[Batch] = []
        for batch in self.unfinished():
            batch.sent = 0
            settle_finished(batch)
            if batch.settled.count < batch.size:
                found.append(batch)
        return found

    def apply(self, frame: HeadFrame) -> bool:
        """Take what the head says.

        Returns:
            Whether tasks that it had acked are to be handed in again.
        """
        are_lost = False
        for accepted in frame.accepted:
            for batch, low, high in self.spans(accepted.first, accepted.count):
                _settle(batch, low, high)
        for refused in frame.rejected:
            error = error_of_rejection(refused)
            for batch, low, high in self.spans(refused.first, refused.count):
                _settle(batch, low, high)
                self.fail(batch, low, high, error)
        for items in frame.items:
            self._take_items(items)
        for outcome in frame.outcomes:
            if outcome.state.is_terminal:
                self._finish(outcome)
        for lost in frame.unknown:
            for batch, low, high in self.spans(lost.first, lost.count):
                are_lost |= self._take_back(batch, low, high)
                self._fail_lost(batch, low, high)
        self._arrivals.wake()
        return are_lost

    def withdraw(
        self, batch: Batch, low: int, high: int
    ) -> tuple[list[tuple[int, TaskRef[Any]]], list[Any]]:
        """Take tasks out that the head has refused, to be handed in elsewhere; the lock is held.

        Returns:
            (index, reference) of those that had not ended, and their encoded arguments; of a class
            with inputs together with the encoded ids of these.
        """
        taken = [(low + i, ref) for i, ref in enumerate(batch.refs[low:high]) if ref is not None]
        assert batch.column is not None or not taken
        payloads: list[Any] = [] if batch.column is None else list(batch.column.slice(low, high))
        if batch.inputs is not None:
            payloads = list(zip(payloads, batch.inputs.slice(low, high), strict=True))
        batch.refs[low:high] = [None] * (high - low)
        batch.settled.add(low, high)
        batch.unfinished -= len(taken)
        return taken, [payloads[index - low] for index, _ in taken]

    def let_go(self, batch: Batch) -> None:
        """Forget a batch of which nothing is left after `withdraw`."""
        if not batch.unfinished:
            self._retire(batch)

    def fail(self, batch: Batch, low: int, high: int, error: RustRayError) -> None:
        """End tasks here, without the head."""
        refs = batch.refs[low:high]
        batch.refs[low:high] = [None] * len(refs)
        state = CANCELLED if isinstance(error, TaskCancelled) else FAILED
        for ref in refs:
            if ref is not None:
                ref._data = error
                ref._state = state
        self._ended(batch, low, refs, state)

    def spans(self, first: int, count: int) -> list[tuple[Batch, int, int]]:
        """Cut a range of sequences into (batch, low, high) of batches that are not retired."""
        stop = first + count
        index = max(bisect_right(self._firsts, first) - 1, 0)
        if index < len(self._firsts):
            batch = self._batches[index]
            if batch.first <= first and stop <= batch.first + batch.size and batch.unfinished:
                return [(batch, first - batch.first, stop - batch.first)]  # nearly always
        found: list[tuple[Batch, int, int]] = []
        while index < len(self._firsts) and self._firsts[index] < stop:
            batch = self._batches[index]
            low = max(first - batch.first, 0)
            high = min(stop - batch.first, batch.size)
            if low < high and batch.unfinished:
                found.append((batch, low, high))
            index += 1
        return found

    def _take_items(self, items: StreamItems) -> None:
        for batch, low, _ in self.spans(items.sequence, 1):
            if not batch.entry.task_class.stream_window:
                return
            buffer = batch.buffer_of(low)
            buffer.add(items.first, items.payloads)
            held = buffer.held
            if held is not None and buffer.received >= held.items:
                buffer.held = None
                self._finish(held)

    def _finish(self, outcome: Outcome) -> None:
        payloads = outcome.payloads
        state = int(outcome.state)
        for batch, low, high in self.spans(outcome.first, len(payloads)):
            if outcome.items and batch.entry.task_class.stream_window:
                buffer = batch.buffer_of(low)
                if buffer.received < outcome.items and not buffer.has_left:
                    buffer.held = outcome  # it came before the last items, over a new connection
                    return
            start = batch.first + low - outcome.first
            column = payloads.slice(start, start + high - low)
            if batch.entry.task_class.is_put and batch.column is not None and not column.size_bytes:
                column = batch.column.slice(low, high)  # the head does not send back what is here
            refs = batch.refs[low:high]
            batch.refs[low:high] = [None] * (high - low)
            if state == SUCCEEDED:
                # (One that has come again is held already.)
                is_new_place = type(column) is PlacedColumn and refs[0] is not None
                items = self._placed(batch, low, column) if is_new_place else column
                # The hottest loop of a client: one pass per result.
                for ref, payload in zip(refs, items):  # noqa: B905 - equal by construction
                    if ref is not None:
                        ref._data = payload
                        ref._state = state  # last, for other threads look at it first
            else:
                for ref, payload in zip(refs, column, strict=True):
                    if ref is not None:
                        ref._data = Failure(payload, outcome.worker_id, outcome.attempts)
                        ref._state = state
            self._ended(batch, low, refs, state)

    def _take_back(self, batch: Batch, low: int, high: int) -> bool:
        """Count tasks as not acked that a head had before they were safe; once in each stream."""
        asked = batch.asked
        if asked is None or batch.column is None:
            return False
        lost = RangeSet()
        for index in range(low, high):
            if index in asked and batch.refs[index] is not None:
                lost.add(index, index + 1)
        for start, end in lost:
            asked.discard(start, end)
            batch.settled.discard(start, end)
        return bool(lost.count)

    def _fail_lost(self, batch: Batch, low: int, high: int) -> None:
        for index in range(low, high):
            # What is not acked goes out again by itself: it is not lost.
            if batch.refs[index] is None or index not in batch.settled:
                continue
            name = task_id(self._prefix, batch.first + index)
            error = TaskNotFound(
                f"the head does not know task {name} any more: the head restarted without its "
                "state, or the result has expired; submit the task again"
            )
            self.fail(batch, index, index + 1, error)
            if not batch.unfinished:
                return

    def _ended(self, batch: Batch, low: int, refs: list[TaskRef[Any] | None], state: int) -> None:
        if None in refs:
            ended = [ref for ref in refs if ref is not None]
        else:
            ended = cast("list[TaskRef[Any]]", refs)
        if not ended:
            return
        batch.unfinished -= len(ended)
        self._arrivals.finished += len(ended)
        if state != SUCCEEDED:
            self._arrivals.failed(ended)
        watchers = batch.take_watchers(low, low + len(refs), ended)
        if not batch.unfinished:
            self._retire(batch)
        for ref, callback in watchers:
            run_callback(callback, ref)

    def _retire(self, batch: Batch) -> None:
        """Drop what a batch holds; forget retired ones when they are the greater part."""
        batch.column = batch.inputs = batch.taken = None
        batch.cancels = None
        batch.full, batch.buffers = batch.buffers, None
        batch.refs = []
        self._retired += 1
        if self._retired < _MIN_RETIRED or self._retired * 2 < len(self._batches):
            return
        with self._lock:
            self._batches = [batch for batch in self._batches if batch.unfinished]
            self._firsts = [batch.first for batch in self._batches]
            self._retired = 0


def settle_finished(batch: Batch) -> None:
    """Count tasks that have ended as settled: there is no need to send them again."""
    if batch.unfinished < batch.size:
        for index, ref in enumerate(batch.refs):
            if ref is None:
                batch.settled.add(index, index + 1)


def ask_for(batch: Batch) -> list[TaskRange]:
    """Return what a new stream has to ask for of a batch, and note that of what may be lost."""
    acked = list(acked_unfinished(batch))
    if batch.entry.may_be_lost:
        batch.asked = RangeSet()
        for one in acked:
            low = one.first - batch.first
            batch.asked.add(low, low + one.count)
    return acked


def acked_unfinished(batch: Batch) -> Iterator[TaskRange]:
    """Yield the acked tasks whose outcomes are still missing."""
    for low, high in batch.settled:
        start = -1
        for index in range(low, high + 1):
            is_missing = index < high and batch.refs[index] is not None
            if is_missing and start < 0:
                start = index
            elif not is_missing and start >= 0:
                yield TaskRange(batch.first + start, index - start)
                start = -1


def _settle(batch: Batch, low: int, high: int) -> None:
    batch.settled.add(low, high)
    if batch.settled.count == batch.size and not batch.entry.keeps_arguments:
        batch.column = batch.inputs = batch.taken = None
