"""The eight ways to choose among workers that have room.

Pure and deterministic: the same calls give the same picks, in any process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import chain, islice
from math import inf
from typing import ClassVar, Final

from rustray.scheduler.candidates import PlacementRequest, Ring, Roster, View, WorkerLoad
from rustray.scheduler.ordering import (
    Lots,
    Rank,
    RankHeap,
    TurnQueue,
    Turns,
    capacity,
    even_shares,
    level_shares,
)

Pick = tuple[WorkerLoad, int]

LARGE_CODE_BYTES: Final = 16 << 20
"""Code of this size costs LocalityAware the full penalty of a move."""


def _by_load(worker: WorkerLoad) -> Rank:
    return (worker.load, worker.tasks, worker.order)


def _by_fullness(worker: WorkerLoad) -> Rank:
    # An open worker comes before an idle one even where its tasks demand nothing.
    return (-worker.load, not worker.tasks, worker.order)


class _Ranked(Roster[RankHeap], ABC):
    """Takes the worker of the lowest rank that has room.

    The first item of a rank is the *level* that a task raises. A count that is large
    against the number of workers is poured over them like water, by one plan, so that
    the number of picks stays near the number of workers.
    """

    @abstractmethod
    def ranked(self, request: PlacementRequest) -> RankHeap:
        """Return a new heap of all candidates, in the order for this request."""

    def at_hand(self) -> RankHeap | None:
        """Return the heap of all candidates, where one order serves all requests."""
        return None

    def slope(self, worker: WorkerLoad, request: PlacementRequest) -> float:
        """Return how many tasks raise the worker's level by 1."""
        return capacity(worker, request.task_class)

    def pick(self, request: PlacementRequest) -> Pick | None:
        """Choose a worker and how many tasks it gets."""
        view = self.view_of(request)
        if view is None:
            heap = self.at_hand()
            if heap is not None and request.count < 2 * len(heap):
                worker = heap.top()
                room = 0 if worker is None else request.room(worker)
                if worker is not None and room > 0:
                    return worker, self.amount(worker, room, heap, request)
            view = self.open_view(request, self.ranked(request))
        elif view.is_disturbed:
            view.drop_plan()
        return view.planned(request) or self._next(view, request)

    def _next(self, view: View[RankHeap], request: PlacementRequest) -> Pick | None:
        heap = view.members
        if request.count >= 2 * len(heap) and len(heap) > 1:
            self._plan(view, request)
            planned = view.planned(request)
            if planned is not None:
                return planned
        while (worker := heap.top()) is not None:
            room = request.room(worker)
            if room > 0:
                return worker, self.amount(worker, room, heap, request)
            heap.discard(worker)
        return None

    def amount(
        self, worker: WorkerLoad, room: int, heap: RankHeap, request: PlacementRequest
    ) -> int:
        """Return how many tasks bring the top worker up to the next one's level."""
        limit = min(room, request.count)
        if limit == 1 or len(heap) == 1:
            return limit
        slope = self.slope(worker, request)
        if slope == inf:
            return min(limit, max(1, request.count // len(heap)))
        gap = (heap.runner_up() - heap.rank(worker)[0]) * slope
        return limit if gap >= limit else max(1, int(gap))

    def _plan(self, view: View[RankHeap], request: PlacementRequest) -> None:
        heap = view.members
        workers, rooms, slopes = [], [], []
        for worker in heap.workers():
            room = request.room(worker)
            if room <= 0:
                heap.discard(worker)
                continue
            slope = self.slope(worker, request)
            if slope == inf:
                return
            workers.append(worker)
            rooms.append(room)
            slopes.append(max(slope, 1.0))
        levels = [heap.rank(worker)[0] for worker in workers]
        shares = level_shares(levels, slopes, rooms, request.count)
        view.start([pair for pair in zip(workers, shares, strict=True) if pair[1]], request)


class _RankedByState(_Ranked):
    """Ranks that are the same for all requests: one heap serves them all."""

    def __init__(self, rank: Callable[[WorkerLoad], Rank]) -> None:
        super().__init__()
        self._all = RankHeap(rank)

    def joined(self, worker: WorkerLoad) -> None:
        """Rank a new candidate."""
        self._all.put(worker)

    def moved(self, worker: WorkerLoad) -> None:
        """Rank a worker anew."""
        self._all.put(worker)

    def left(self, worker: WorkerLoad) -> None:
        """Forget a candidate."""
        self._all.discard(worker)

    def at_hand(self) -> RankHeap:
        """Return all candidates by rank; not to be changed."""
        return self._all

    def ranked(self, request: PlacementRequest) -> RankHeap:
        """Return a copy of all candidates by rank."""
        return self._all.copy()


class LeastLoaded(_RankedByState):
    """The lowest load among the workers with room; ties by tasks, then by join order.

    A single task never goes to a busier worker than it must. A large count leaves the
    workers level to within one task each.

    Complexity: O(log W) amortised per pick.
    Source: join the shortest queue; greedy list scheduling (Graham: Bounds on
    multiprocessing timing anomalies, 1969).
    """

    name: ClassVar[str] = "LeastLoaded"

    def __init__(self, seed: int = 0) -> None:
        """Start without workers; no lots are drawn here."""
        super().__init__(_by_load)


class BinPack(_RankedByState):
    """The fullest worker that still has room; ties by join order.

    It fills a worker before it opens another one, so that whole workers stay free for
    large tasks, or can be switched off.

    Complexity: O(log W) amortised per pick.
    Source: best fit (Johnson: Near-optimal bin packing algorithms, 1973).
    """

    name: ClassVar[str] = "BinPack"

    def __init__(self, seed: int = 0) -> None:
        """Start without workers; no lots are drawn here."""
        super().__init__(_by_fullness)

    def amount(
        self, worker: WorkerLoad, room: int, heap: RankHeap, request: PlacementRequest
    ) -> int:
        """Return as much as the worker can take."""
        return min(room, request.count)

    def _plan(self, view: View[RankHeap], request: PlacementRequest) -> None:
        """Plan nothing: each pick fills a worker anyway."""


class Spread(_Ranked):
    """The fewest tasks of the same class, then the fewest tasks, then join order.

    One lost worker takes as few tasks of a class with it as possible, whatever the load.

    Complexity: O(W) for the first pick of a request, then O(log W) amortised.
    """

    name: ClassVar[str] = "Spread"

    def __init__(self, seed: int = 0) -> None:
        """Start without workers; no lots are drawn here."""
        super().__init__()

    def ranked(self, request: PlacementRequest) -> RankHeap:
        """Rank all candidates by their tasks of the request's class."""
        task_class = request.task_class

        def rank(worker: WorkerLoad) -> Rank:
            return (worker.by_class.get(task_class, 0), worker.tasks, worker.order)

        return RankHeap(rank, self.workers.values())

    def slope(self, worker: WorkerLoad, request: PlacementRequest) -> float:
        """Each task raises the level by one."""
        return 1.0


class LocalityAware(_Ranked):
    """The lowest load, where code that would have to move counts as load.

    The rule: a worker without the function's code is ranked as if it had 0.5 more
    load, and up to 1.0 more as the code grows to 16 MiB. So while holders are less
    than half full they get everything; a full holder (load 1) loses to an idle worker
    unless the code is that large, and no holder gets more than 1.0 of load above the others.
    Ties go to holders. Registered functions are at home everywhere: for them this is
    LeastLoaded.

    Complexity: O(W) for the first pick of a request, then O(log W) amortised.
    Source: delay scheduling trades waiting for locality (Zaharia et al., EuroSys 2010);
    here the price of moving is compared with the price of waiting at once.
    """

    name: ClassVar[str] = "LocalityAware"

    def __init__(self, seed: int = 0) -> None:
        """Start without workers; no lots are drawn here."""
        super().__init__()

    def ranked(self, request: PlacementRequest) -> RankHeap:
        """Rank all candidates by load plus the penalty of moving the code."""
        code = request.task_class.code_hash
        if not code:
            return RankHeap(_by_load, self.workers.values())
        penalty = 0.5 + 0.5 * min(1.0, request.code_bytes / LARGE_CODE_BYTES)

        def rank(worker: WorkerLoad) -> Rank:
            if code in worker.code:
                return (worker.load, 0, worker.tasks, worker.order)
            return (worker.load + penalty, 1, worker.tasks, worker.order)

        return RankHeap(rank, self.workers.values())


class RoundRobin(Roster[Ring]):
    """Each worker in turn, in join order; one without room is passed over.

    A count of n is dealt to the k workers with room as if one by one: n // k each, one
    more for the first n % k after the cursor, and the next request goes on where this
    one ended. So nobody with room gets two more than another.

    Complexity: O(1) per pick plus O(log W) for each worker passed over.
    """

    name: ClassVar[str] = "RoundRobin"

    def __init__(self, seed: int = 0) -> None:
        """Start without workers; no lots are drawn here."""
        super().__init__()
        self._cursor = 0

    def pick(self, request: PlacementRequest) -> Pick | None:
        """Choose a worker and how many tasks it gets."""
        view = self.view_of(request)
        if view is None:
            orders = self.ring.orders
            if request.count == 1 and orders:
                worker = self.workers[orders[self.ring.index(self._cursor)]]
                if request.room(worker) > 0:
                    self._cursor = worker.order + 1
                    return worker, 1
            view = self.open_view(request, Ring(orders.copy()))
        planned = view.planned(request)
        if planned is None:
            self._plan(view, request)
            planned = view.planned(request)
        return planned

    def _plan(self, view: View[Ring], request: PlacementRequest) -> None:
        takers, rooms = self._takers(view.members, request)
        if not takers:
            return
        shares = even_shares(rooms, request.count)
        most = max(shares)
        last = next(w for w, n in zip(reversed(takers), reversed(shares), strict=True) if n == most)
        self._cursor = last.order + 1
        view.start(list(zip(takers, shares, strict=True)), request)

    def _takers(self, ring: Ring, request: PlacementRequest) -> tuple[list[WorkerLoad], list[int]]:
        """Collect workers with room from the cursor on, at most as many as tasks."""
        start = ring.index(self._cursor)
        takers: list[WorkerLoad] = []
        rooms: list[int] = []
        full: list[WorkerLoad] = []
        for order in chain(islice(ring.orders, start, None), islice(ring.orders, start)):
            worker = self.workers[order]
            room = request.room(worker)
            if room <= 0:
                full.append(worker)
                continue
            takers.append(worker)
            rooms.append(room)
            if len(takers) == request.count:
                break
        for worker in full:
            ring.discard(worker)
        return takers, rooms


class WeightedRoundRobin(Roster[TurnQueue]):
    """Turns in proportion to the workers' weights.

    Whatever the number of tasks so far, each worker that always had room has got its
    weight's share of them to within one task, evenly spaced, not in bursts. A worker that
    was full does not get back what it missed, beyond one turn.

    Complexity: O(log W) amortised per pick.
    Source: see `TurnQueue`.
    """

    name: ClassVar[str] = "WeightedRoundRobin"

    def __init__(self, seed: int = 0) -> None:
        """Start without workers; no lots are drawn here."""
        super().__init__()
        self._turns = Turns()
        self._queue = TurnQueue(self._turns)

    def joined(self, worker: WorkerLoad) -> None:
        """Give a new candidate its first turn now."""
        self._turns.starts[worker.order] = self._turns.now
        self._queue.put(worker)

    def left(self, worker: WorkerLoad) -> None:
        """Forget a candidate."""
        self._queue.discard(worker)
        del self._turns.starts[worker.order]

    def pick(self, request: PlacementRequest) -> Pick | None:
        """Choose a worker and how many tasks it gets."""
        view = self.view_of(request)
        if view is None:
            queue = self._queue
            if request.count < 2 * len(queue):
                worker = queue.top()
                if worker is not None and request.room(worker) > 0:
                    return self._take(worker, 1, queue)
            view = self.open_view(request, TurnQueue(self._turns, self.workers.values()))
        return view.planned(request) or self._next(view, request)

    def _next(self, view: View[TurnQueue], request: PlacementRequest) -> Pick | None:
        queue = view.members
        if request.count >= 2 * len(queue) and len(queue) > 1:
            self._plan(view, request)
            planned = view.planned(request)
            if planned is not None:
                return planned
        while (worker := queue.top()) is not None:
            room = request.room(worker)
            if room > 0:
                count = min(room, request.count) if len(queue) == 1 else 1
                return self._take(worker, count, queue)
            queue.discard(worker)
        return None

    def _plan(self, view: View[TurnQueue], request: PlacementRequest) -> None:
        workers, rooms = [], []
        for worker in view.members.workers():
            room = request.room(worker)
            if room > 0:
                workers.append(worker)
                rooms.append(room)
            else:
                view.members.discard(worker)
        if not workers:
            return
        starts = [self._turns.start(worker) for worker in workers]
        weights = [worker.weight for worker in workers]
        shares = level_shares(starts, weights, rooms, request.count)
        self._turns.take_all(workers, shares, view.members.weight)
        view.start([pair for pair in zip(workers, shares, strict=True) if pair[1]], request)

    def _take(self, worker: WorkerLoad, count: int, queue: TurnQueue) -> Pick:
        self._turns.take(worker, count, queue.weight)
        return worker, count


class _Drawn(Roster[Ring]):
    """Draws lots among the workers with room; a large count goes out in grains."""

    def __init__(self, seed: int = 0) -> None:
        """Start without workers; the seed determines the lots."""
        super().__init__()
        self._lots = Lots(seed)

    def draw(
        self, ring: Ring, request: PlacementRequest, other: WorkerLoad | None = None
    ) -> Pick | None:
        """Draw one of those in the ring with room, but not ``other``; drop those without."""
        orders = ring.orders
        while (number := len(orders) - (other is not None)) > 0:
            at = self._lots.below(number)
            if other is not None and orders[at] >= other.order:
                at += 1
            worker = self.workers[orders[at]]
            room = request.room(worker)
            if room > 0:
                return worker, room
            del orders[at]
        return None


def _grain(room: int, request: PlacementRequest, candidates: int) -> int:
    limit = min(room, request.count)
    if limit == 1 or candidates == 1:
        return limit
    return min(limit, max(1, request.count // (4 * candidates)))


class Random(_Drawn):
    """Any of the workers with room, each as likely as the other.

    Complexity: O(1) per pick plus O(log W) for each full worker met.
    """

    name: ClassVar[str] = "Random"

    def pick(self, request: PlacementRequest) -> Pick | None:
        """Choose a worker and how many tasks it gets."""
        view = self.view_of(request)
        if view is None:
            orders = self.ring.orders
            if not orders:
                return None
            worker = self.workers[orders[self._lots.below(len(orders))]]
            room = request.room(worker)
            if room > 0:
                return worker, _grain(room, request, len(orders))
            view = self.open_view(request, Ring(orders.copy()))
        drawn = self.draw(view.members, request)
        if drawn is None:
            return None
        return drawn[0], _grain(drawn[1], request, len(view.members))


class PowerOfTwoChoices(_Drawn):
    """The less loaded of two different workers, drawn from those with room.

    With n tasks on n workers the fullest gets about log log n tasks, where one random
    choice gives it log n / log log n; and nobody has to know the order of all loads.

    Complexity: O(1) per pick plus O(log W) for each full worker met.
    Source: Azar, Broder, Karlin, Upfal: Balanced allocations, STOC 1994; Mitzenmacher:
    The power of two choices in randomized load balancing, 1996.
    """

    name: ClassVar[str] = "PowerOfTwoChoices"

    def pick(self, request: PlacementRequest) -> Pick | None:
        """Choose a worker and how many tasks it gets."""
        view = self.view_of(request)
        if view is None:
            orders = self.ring.orders
            number = len(orders)
            if number > 1:
                at, beside = self._lots.below(number), self._lots.below(number - 1)
                one = self.workers[orders[at]]
                two = self.workers[orders[beside + (beside >= at)]]
                rooms = request.room(one), request.room(two)
                if rooms[0] > 0 and rooms[1] > 0:
                    return _lighter((one, rooms[0]), (two, rooms[1]), request, number)
            view = self.open_view(request, Ring(orders.copy()))
        ring = view.members
        first = self.draw(ring, request)
        if first is None:
            return None
        second = self.draw(ring, request, first[0])
        return _lighter(first, second or first, request, len(ring))


def _lighter(one: Pick, two: Pick, request: PlacementRequest, candidates: int) -> Pick:
    worker, room = one if _by_load(one[0]) <= _by_load(two[0]) else two
    return worker, _grain(room, request, candidates)
