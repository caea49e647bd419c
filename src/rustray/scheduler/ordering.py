"""The structures under the strategies: a lazy heap, fair turns, shares, and lots.

Pure and deterministic: ties break by join order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from math import inf
from typing import Final

from rustray.scheduler.candidates import WorkerLoad
from rustray.task.spec import TaskClass

Rank = tuple[float, ...]
"""Lower is better; the last item is the worker's order, so that no two are equal."""

_Entry = tuple[Rank, int, WorkerLoad]
_HEAP_SLACK: Final = 64
_MASK: Final = (1 << 64) - 1
_ROUNDING: Final = 1e-9


class Lots:
    """A stream of pseudo-random numbers that its seed determines.

    Source: splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
    generators, OOPSLA 2014): a counter stepped by the golden ratio, then mixed.
    """

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def below(self, limit: int) -> int:
        """Draw a whole number from 0 to limit - 1, evenly."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        mixed = self._state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((mixed ^ (mixed >> 31)) * limit) >> 64

    def fraction(self) -> float:
        """Draw a number from [0, 1), evenly."""
        return self.below(1 << 53) / (1 << 53)


class RankHeap:
    """Workers by rank, lowest first; ranks are re-read when a worker comes to the top.

    A rank that rose costs nothing until then; one that fell is pushed anew and the
    old entry is skipped later.

    Attributes:
        rank: How it ranks a worker.

    Invariant: each member has exactly one live entry, and its rank is never above
    the worker's rank at its latest `put`.
    """

    __slots__ = ("_heap", "_live", "_ticks", "rank")

    def __init__(
        self, rank: Callable[[WorkerLoad], Rank], workers: Iterable[WorkerLoad] = ()
    ) -> None:
        self.rank = rank
        self._live: dict[int, _Entry] = {w.order: (rank(w), 0, w) for w in workers}
        self._heap = list(self._live.values())
        heapify(self._heap)
        self._ticks = 0

    def copy(self) -> RankHeap:
        """Return an independent heap of the same members."""
        twin = RankHeap(self.rank)
        twin._live = self._live.copy()
        twin._heap = self._heap.copy()
        twin._ticks = self._ticks
        return twin

    def __len__(self) -> int:
        return len(self._live)

    def workers(self) -> list[WorkerLoad]:
        """Return the members, lowest rank first.  Complexity: O(W log W)."""
        return [w for _, w in sorted((self.rank(e[2]), e[2]) for e in self._live.values())]

    def put(self, worker: WorkerLoad) -> None:
        """Add a worker, or take note that its rank changed.  Complexity: O(log W)."""
        rank = self.rank(worker)
        known = self._live.get(worker.order)
        if known is not None and known[0] <= rank:
            return
        entry = self._entry(rank, worker)
        heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._live) + _HEAP_SLACK:
            self._heap = list(self._live.values())
            heapify(self._heap)

    def discard(self, worker: WorkerLoad) -> None:
        """Take a worker out, if it is there."""
        self._live.pop(worker.order, None)

    def top(self) -> WorkerLoad | None:
        """Return the member of the lowest rank.  Complexity: O(log W) amortised."""
        heap, live = self._heap, self._live
        while heap:
            entry = heap[0]
            worker = entry[2]
            if live.get(worker.order) is not entry:
                heappop(heap)
                continue
            rank = self.rank(worker)
            if rank == entry[0]:
                return worker
            heapreplace(heap, self._entry(rank, worker))
        return None

    def runner_up(self) -> float:
        """Return a lower bound of the first rank item of all members behind the top."""
        return min((entry[0][0] for entry in self._heap[1:3]), default=inf)

    def _entry(self, rank: Rank, worker: WorkerLoad) -> _Entry:
        # The tick keeps the comparison of two entries of equal rank away from the workers.
        self._ticks += 1
        entry = (rank, self._ticks, worker)
        self._live[worker.order] = entry
        return entry


class Turns:
    """Virtual time: how far each worker has come in its weighted share.

    A worker's next turn may start at ``starts[order]`` and takes 1 / weight.

    Attributes:
        now: Virtual time: tasks dealt per unit of weight.
        starts: Start of each worker's next turn, by join order.
    """

    __slots__ = ("now", "starts")

    def __init__(self) -> None:
        self.now = 0.0
        self.starts: dict[int, float] = {}

    def start(self, worker: WorkerLoad) -> float:
        """Return when its next turn starts; what it missed while full is forgiven.

        One turn of lag is kept: a worker that never was full has no more.
        """
        return max(self.starts[worker.order], self.now - 1.0 / worker.weight)

    def take(self, worker: WorkerLoad, count: int, competing: float) -> None:
        """Deal tasks to a worker, while workers of that much weight compete."""
        self.starts[worker.order] = self.start(worker) + count / worker.weight
        self.now += count / competing

    def take_all(
        self, workers: Sequence[WorkerLoad], counts: Sequence[int], competing: float
    ) -> None:
        """Deal to several at once, so that none falls behind because it comes last."""
        starts = [self.start(worker) for worker in workers]
        for worker, start, count in zip(workers, starts, counts, strict=True):
            self.starts[worker.order] = start + count / worker.weight
        self.now += sum(counts) / competing


class TurnQueue:
    """Workers by weighted turns: of those whose turn has started, the earliest due.

    Invariant: each member has one entry, waiting or due, that is not later than its
    next turn (starts only grow, so entries are put right when they come up);
    ``_queued`` names who has one.

    Source: earliest eligible virtual deadline first (Stoica, Abdel-Wahab: Earliest
    eligible virtual deadline first, 1995), which keeps everybody within one task of
    its exact share; the usual "smooth" weighted round robin has the same idea (give
    everybody its weight in credit, take from the richest) at O(W) a pick.
    """

    __slots__ = ("_due", "_queued", "_turns", "_waiting", "_weights", "_workers")

    def __init__(self, turns: Turns, workers: Iterable[WorkerLoad] = ()) -> None:
        self._turns = turns
        self._workers: dict[int, WorkerLoad] = {}
        self._weights = 0.0
        self._queued: set[int] = set()
        self._waiting: list[tuple[float, int]] = []
        self._due: list[tuple[float, int, float]] = []
        for worker in workers:
            self.put(worker)

    def __len__(self) -> int:
        return len(self._workers)

    @property
    def weight(self) -> float:
        """Sum of the members' weights."""
        return self._weights

    def workers(self) -> list[WorkerLoad]:
        """Return the members by the start of their next turn."""
        start = self._turns.start
        return sorted(self._workers.values(), key=lambda worker: (start(worker), worker.order))

    def put(self, worker: WorkerLoad) -> None:
        """Add a worker, if it is not there.  Complexity: O(log W)."""
        if worker.order not in self._workers:
            self._workers[worker.order] = worker
            self._weights += worker.weight
            # Who was discarded may still have its entry.
            if worker.order not in self._queued:
                self._queued.add(worker.order)
                heappush(self._waiting, (self._turns.start(worker), worker.order))

    def discard(self, worker: WorkerLoad) -> None:
        """Take a worker out, if it is there."""
        if self._workers.pop(worker.order, None) is not None:
            self._weights = self._weights - worker.weight if self._workers else 0.0

    def top(self) -> WorkerLoad | None:
        """Return the member whose turn it is.  Complexity: O(log W) amortised."""
        turns = self._turns
        while self._workers:
            self._wake(turns.now + _ROUNDING)
            while self._due:
                _, order, noted = self._due[0]
                worker = self._workers.get(order)
                if worker is not None and turns.start(worker) <= noted + _ROUNDING:
                    return worker
                heappop(self._due)
                self._line_up(order, turns.now + _ROUNDING)
            if self._waiting and self._waiting[0][0] > turns.now:
                turns.now = self._waiting[0][0]
        return None

    def _wake(self, now: float) -> None:
        while self._waiting and self._waiting[0][0] <= now:
            self._line_up(heappop(self._waiting)[1], now)

    def _line_up(self, order: int, now: float) -> None:
        """Put back a worker whose entry was taken out, where its next turn belongs."""
        worker = self._workers.get(order)
        if worker is None:
            self._queued.discard(order)
            return
        start = self._turns.start(worker)
        if start > now:
            heappush(self._waiting, (start, order))
        else:
            heappush(self._due, (start + 1.0 / worker.weight, order, start))


def capacity(worker: WorkerLoad, task_class: TaskClass) -> float:
    """Return how many tasks of the class fill the worker from idle to a load of 1.

    Infinite for a class that demands nothing.
    """
    total = worker.total
    return min((total.get(name, 0) / need for name, need in task_class.resources), default=inf)


def even_shares(rooms: Sequence[int], count: int) -> list[int]:
    """Deal a count one by one, round after round, to all that have room.

    Args:
        rooms: How much each can take, in the order of their turns.
        count: How much there is, at least 0.

    Returns:
        What each got: equal up to 1, the earlier ones first, but for those that are full.
    """
    left, level = count, 0
    for taken, room in enumerate(sorted(rooms)):
        takers = len(rooms) - taken
        if (room - level) * takers >= left:
            level += left // takers
            left %= takers
            break
        left -= (room - level) * takers
        level = room
    else:
        left = 0
    shares = []
    for room in rooms:
        extra = 1 if left > 0 and room > level else 0
        left -= extra
        shares.append(min(room, level) + extra)
    return shares


def level_shares(
    levels: Sequence[float], slopes: Sequence[float], rooms: Sequence[int], count: int
) -> list[int]:
    """Pour a count over workers, the lowest first, until all stand at one level.

    Args:
        levels: Where each stands.
        slopes: Tasks that raise each by 1; finite, above 0.
        rooms: Tasks that each can take.
        count: Tasks to pour.

    Returns:
        Whole tasks for each, rounded down: what remains of the count is less than one
        task each, unless the rooms are used up.

    Complexity: O(W log W).
    """
    bends: list[tuple[float, float]] = []
    for level, slope, room in zip(levels, slopes, rooms, strict=True):
        bends.append((level, slope))
        bends.append((level + room / slope, -slope))
    bends.sort()
    poured, rate, surface = 0.0, 0.0, bends[0][0] if bends else 0.0
    for bend, change in bends:
        step = rate * (bend - surface)
        if poured + step >= count:
            surface += (count - poured) / rate
            break
        poured += step
        surface = bend
        rate += change
    return [
        max(0, min(room, int(slope * (surface - level) + _ROUNDING)))
        for level, slope, room in zip(levels, slopes, rooms, strict=True)
    ]
