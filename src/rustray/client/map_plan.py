"""What is to be done next in a map: pure, told what has happened and when.

The input is cut into *parts*, consecutive items that travel together. A part that comes back whole
is done. One that comes back in pieces (an executor died under it, some items are to be run again,
its executor gave the rest back) is replaced by smaller parts in its place, so that the order of the
results is the order of the parts, and one bad item is alone in the end.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rustray.client.map_calls import Report
from rustray.client.map_tuner import ChunkTuner
from rustray.common.errors import (
    PayloadError,
    ResourceExhausted,
    RustRayError,
    TaskOutOfMemory,
    TaskPoisoned,
    TaskTimeout,
    WorkerLost,
)
from rustray.task.failures import decode_failure
from rustray.task.result import FailureInfo
from rustray.task.retries import RetryOn, is_wanted, pause_s

PIECES: Final = 8
"""Into how many a part is split whose run failed: each bad item costs log8(items) executors."""
MAX_HELD: Final = 4
"""Parts that wait to be consumed, done ones included, for each that may be under way."""
RUN_PHASES: Final = ("", "run")
_DEATHS: Final = frozenset({WorkerLost.code, TaskPoisoned.code, TaskOutOfMemory.code})


@dataclass(frozen=True, slots=True)
class Rules:
    """What the options of a map's function say about trying again.

    Attributes:
        max_retries: As in `rustray.remote`; 0: nothing that may have begun is run again.
        crash_limit: Executors that an item may kill.
        oom_retries: Re-runs of an item that outgrew its memory.
        retry_on: Exceptions after which an item is run again.
        retry_delay_s: Pause before that, or None for the default.
    """

    max_retries: int
    crash_limit: int
    oom_retries: int = 0
    retry_on: RetryOn = False
    retry_delay_s: float | None = None


class Encoded:
    """A result that is still pickled.

    Attributes:
        index: Of the item in the input, from 0.
        data: The pickle.
    """

    __slots__ = ("data", "index")

    def __init__(self, index: int, data: bytes) -> None:
        self.index = index
        self.data = data


class Failed:
    """The place of an item without a result.

    Attributes:
        index: Of the item in the input, from 0.
        payload: Its encoded `FailureInfo`; None where the cluster has not said it.
        make: Builds the error, a new one at each call.
    """

    __slots__ = ("index", "make", "payload")

    def __init__(self, index: int, payload: bytes | None, make: Callable[[], RustRayError]) -> None:
        self.index = index
        self.payload = payload
        self.make = make


class Part:
    """Consecutive items.

    Attributes:
        first: Index of the first one.
        items: The items; empty once it is done or split.
        is_alone: It is one item that runs as a task of its own, with what is left of its budgets.
        values: Results: values, `Encoded` and `Failed`; None until it is done.
        children: What it was split into, or None.
        deaths: Executors that died under what it was split off from.
        sent_s: When it was handed in.
        sent_bytes: Its encoded size.
    """

    __slots__ = (
        "children", "deaths", "first", "is_alone", "items", "sent_bytes", "sent_s", "values",
    )  # fmt: skip

    def __init__(
        self, first: int, items: list[Any], *, is_alone: bool = False, deaths: int = 0
    ) -> None:
        self.first = first
        self.deaths = deaths
        self.items = items
        self.is_alone = is_alone
        self.values: list[Any] | None = None
        self.children: list[Part] | None = None
        self.sent_s = 0.0
        self.sent_bytes = 0


FailureOf = Callable[[bytes], Callable[[], RustRayError]]
"""From an encoded failure of one item to what builds its error."""


class MapPlan:
    """The parts of one map.

    Attributes:
        under_way: Parts that were handed in and have not ended.
        items_read, items_taken: How many were read of the input; how many results were taken.
        is_at_end: The input has no more.
    """

    def __init__(
        self,
        tuner: ChunkTuner,
        rules: Rules,
        *,
        is_ordered: bool,
        read_ahead: int | None = None,
        at_once: int | None = None,
    ) -> None:
        """Begin.

        Args:
            tuner: Says how large parts should be.
            rules: Of the function.
            is_ordered: Results come in the order of the items; else as they end.
            read_ahead: Most items that are read before their results are taken.
            at_once: Most parts that may be under way.
        """
        self.tuner = tuner
        self.under_way = 0
        self.items_read = self.items_taken = 0
        self.is_at_end = False
        self.rules = rules
        self._is_ordered = is_ordered
        self._read_ahead = read_ahead
        self._at_once = at_once
        self._held = 0
        self._waiting: deque[Part] = deque()
        self._later: list[tuple[float, int, Part]] = []
        self._order: deque[Part] = deque()
        self._done: deque[Part] = deque()

    # ---- input --------------------------------------------------------------------------

    def wanted(self, slots: int) -> int:
        """Return how many items should be read for another part now; 0 for none."""
        ahead = self._ahead(slots)
        if self.is_at_end or self.under_way + len(self._waiting) >= ahead:
            return 0
        if self._held >= MAX_HELD * ahead:
            return 0
        if self._read_ahead is None:
            return self.tuner.size
        # A bound on what is read shall not leave slots idle: several parts must fit into it.
        share = max(self._read_ahead // (2 * max(slots, 1)), 1)
        left = self._read_ahead - (self.items_read - self.items_taken)
        return max(min(self.tuner.size, share, left), 0)

    def read(self, items: list[Any]) -> None:
        """Take items that were read, in order; none are no part."""
        if not items:
            return
        part = Part(self.items_read, items)
        self.items_read += len(items)
        self._held += 1
        self._waiting.append(part)
        if self._is_ordered:
            self._order.append(part)

    # ---- to the cluster -----------------------------------------------------------------

    def next_to_send(self, slots: int, now: float) -> Part | None:
        """Return the part to hand in next, or None; it stays next until `sent`."""
        while self._later and self._later[0][0] <= now:
            self._waiting.appendleft(heapq.heappop(self._later)[2])
        if self._waiting and self.under_way < self._ahead(slots):
            return self._waiting[0]
        return None

    def next_due_s(self) -> float | None:
        """Return when a pause ends, or None."""
        return self._later[0][0] if self._later else None

    def sent(self, size: int, now: float) -> Part:
        """Count the next part as handed in; returns it."""
        part = self._waiting.popleft()
        part.sent_s = now
        part.sent_bytes = size
        self.under_way += 1
        return part

    def is_too_big(self, size: int, limit: int) -> bool:
        """Split the next part if it is; a single item is as big as it is."""
        part = self._waiting[0]
        if size <= limit or len(part.items) == 1:
            return False
        self._waiting.popleft()
        self._split(part, min(len(part.items), -(-2 * size // limit)))
        return True

    def cannot_be_sent(self, make: Callable[[], RustRayError]) -> None:
        """Split the next part until the item is alone that cannot be encoded; that one fails."""
        part = self._waiting.popleft()
        if len(part.items) > 1:
            self._split(part, PIECES)
        else:
            self._finish(part, [Failed(part.first, None, make)])

    # ---- from the cluster ---------------------------------------------------------------

    def ran(
        self, part: Part, report: Report, size: int, now: float, lot: float, failure_of: FailureOf
    ) -> None:
        """Take what a chunk's executor has reported.

        Args:
            part: The part.
            report: See `rustray.client.map_calls.Report`.
            size: Bytes of the encoded report.
            now: The time, as for `sent`.
            lot: Drawn evenly from [0, 1), for the pause before a re-run.
            failure_of: See there.
        """
        self.under_way -= 1
        run_s, values, encoded, failures = report
        self.tuner.ended(len(values), run_s, max(size, part.sent_bytes), now - part.sent_s)
        for place, data in encoded.items():
            values[place] = Encoded(part.first + place, data)
        again: list[int] = []
        for place, data in failures.items():
            if self.rules.max_retries and self._is_wanted(data):
                again.append(place)
            else:
                values[place] = Failed(part.first + place, data, failure_of(data))
        if not again and len(values) == len(part.items):
            self._finish(part, values)
        else:
            self._cut(part, values, again, now, lot)

    def returned(self, part: Part, data: bytes) -> None:
        """Take the encoded value of an item that ran alone."""
        self.under_way -= 1
        self._finish(part, [Encoded(part.first, data)])

    def failed(self, part: Part, payload: bytes | None, make: Callable[[], RustRayError]) -> None:
        """Take how a part ended without a report.

        Args:
            part: The part.
            payload: The encoded failure; None where it never ran.
            make: Builds the error.
        """
        self.under_way -= 1
        if payload is not None and not part.is_alone:
            part.deaths += decode_failure(payload).code == TaskPoisoned.code
        action = self._action_on(part, payload, make)
        if action == "split":
            self._split(part, PIECES)
        elif action == "alone":
            child = Part(part.first, part.items, is_alone=True, deaths=part.deaths)
            self._replace(part, [child])
            self._waiting.appendleft(child)
        else:
            first, count = part.first, len(part.items)
            self._finish(part, [Failed(first + i, payload, make) for i in range(count)])

    # ---- to the consumer ----------------------------------------------------------------

    def has_results(self) -> bool:
        """Whether `take` has something to return."""
        order = self._order
        while order and (children := order[0].children) is not None:
            order.popleft()
            order.extendleft(reversed(children))
        return bool(self._done) or bool(order and order[0].values is not None)

    def take(self) -> list[Any] | None:
        """Return the results of the next part, or None if it is not done."""
        if not self.has_results():
            return None
        part = (self._order if self._is_ordered else self._done).popleft()
        values = part.values
        assert values is not None
        self._held -= 1
        self.items_taken += len(values)
        return values

    @property
    def is_exhausted(self) -> bool:
        """Whether the input has no more, and every result was taken."""
        return self.is_at_end and self.items_taken == self.items_read

    # ---- inside -------------------------------------------------------------------------

    def _ahead(self, slots: int) -> int:
        ahead = self.tuner.prefetch(slots)
        return ahead if self._at_once is None else min(ahead, self._at_once)

    def _is_wanted(self, payload: bytes) -> bool:
        retry_on = self.rules.retry_on
        return retry_on is not False and is_wanted(retry_on, decode_failure(payload))

    def _action_on(
        self, part: Part, payload: bytes | None, make: Callable[[], RustRayError]
    ) -> str:
        """Say what to do about a part without a report: "split", "alone" or "fail"."""
        is_one = len(part.items) == 1
        if payload is None:  # it was refused, so nothing of it has run
            error = make()
            is_size = isinstance(error, PayloadError) or (
                isinstance(error, ResourceExhausted) and not error.reason
            )
            return "split" if is_size and not is_one else "fail"
        info = decode_failure(payload)
        if info.code == PayloadError.code:
            # The arguments could not be decoded; with an error type it is the function.
            return "fail" if is_one or info.error_type else "split"
        if part.is_alone or not self.rules.max_retries:
            return "fail"
        if is_one:
            return "alone" if self._has_budget(info) else "fail"
        is_run = info.code == TaskTimeout.code and info.phase in RUN_PHASES
        is_big = info.code == ResourceExhausted.code
        return "split" if info.code in _DEATHS or is_run or is_big else "fail"

    def _has_budget(self, info: FailureInfo) -> bool:
        if info.code == TaskPoisoned.code:
            return self.rules.crash_limit > 1
        return info.code == TaskOutOfMemory.code and self.rules.oom_retries != 0

    def _split(self, part: Part, count: int) -> None:
        """Replace a part by several, which go before everything that waits."""
        children = self._pieces(part, 0, -(-len(part.items) // count))
        self._replace(part, children)
        self._waiting.extendleft(reversed(children))

    def _pieces(self, part: Part, begin: int, size: int | None = None) -> list[Part]:
        """Cut what follows in a part into several, of some size or so that all slots have some."""
        left = len(part.items) - begin
        if size is None:  # it took too long as it was
            size = min(self.tuner.size, -(-left // PIECES))
        size = max(size, 1)
        return [
            Part(part.first + start, part.items[start : start + size], deaths=part.deaths)
            for start in range(begin, len(part.items), size)
        ]

    def _cut(
        self, part: Part, values: list[Any], again: Sequence[int], now: float, lot: float
    ) -> None:
        """Replace a part by its done stretches, items to run again, and what has not begun."""
        children: list[Part] = []
        start = 0
        for place in (*again, len(values)):
            if place > start:
                children.append(done := Part(part.first + start, []))
                done.values = values[start:place]
            if place < len(values):
                one = Part(part.first + place, [part.items[place]], is_alone=True)
                children.append(one)
                due_s = now + pause_s(self.rules.retry_delay_s, 1, lot)
                heapq.heappush(self._later, (due_s, one.first, one))
            start = place + 1
        rest = self._pieces(part, len(values))
        self._waiting.extendleft(reversed(rest))
        self._replace(part, children + rest)

    def _replace(self, part: Part, children: Iterable[Part]) -> None:
        part.children = list(children)
        part.items = []
        self._held += len(part.children) - 1
        if not self._is_ordered:
            self._done.extend(child for child in part.children if child.values is not None)

    def _finish(self, part: Part, values: list[Any]) -> None:
        part.values = values
        part.items = []
        if not self._is_ordered:
            self._done.append(part)
