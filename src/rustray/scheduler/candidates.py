"""What strategies choose from: workers with their load, and the request to place.

Pure: no clock, no I/O, no hidden randomness; iteration is always in join order
or in rank order, never over a set.

A strategy keeps its workers in a `Roster`. A request that meets a worker without
room gets a `View`: the candidates minus those found full, brought up to date with
the workers that changed since. So a full worker is asked once, and not again before
it changed, however many picks are made in between.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Final, Generic, Protocol, TypeVar

from rustray.common.errors import InvariantError
from rustray.task.spec import TaskClass

MAX_VIEWS: Final = 8
"""Requests that a strategy remembers; each costs memory and a note of every change."""


@dataclass(slots=True, eq=False)
class WorkerLoad:
    """What the Scheduler has leased to one worker; strategies only read it.

    Attributes:
        worker_id: Its id.
        order: Join order, never used twice: the last tie-break.
        total: Integer units (`rustray.common.resources`) that it owns.
        leased: Demand of everything leased to it; above ``total`` where it prefetches.
        load: ``leased`` as a fraction of ``total``, the largest over its resources:
            0.0 idle, 1.0 full, more is prefetched.
        tasks: Leased tasks.
        by_class: Leased tasks of each class, without zero entries.
        code: Hashes of the function code that it already has.
        weight: Capacity weight, such as its cores; above 0.
    """

    worker_id: str
    order: int
    total: dict[str, int]
    leased: dict[str, int] = field(default_factory=dict)
    load: float = 0.0
    tasks: int = 0
    by_class: dict[TaskClass, int] = field(default_factory=dict)
    code: set[bytes] = field(default_factory=set)
    weight: float = 1.0


@dataclass(slots=True, eq=False)
class PlacementRequest:
    """Tasks of one class that want workers.

    Picks with the same ``task_class`` and ``room`` (the same function object) count as
    one request: a worker that had no room is asked again only after ``changed(worker)``,
    and a large count is dealt by one plan. So make ``room`` once per class or at least
    once per loop of picks, not once per pick; a new function asks everybody anew.

    Attributes:
        task_class: Their class.
        count: Tasks still to place, at least 1.
        room: Hashable; how many of them a worker can take now; 0 where it is full or not
            eligible (resources, labels, window, session: all included). While one
            function is in use, it may grow for a worker only with a call of ``changed``.
        code_bytes: Size of the function's code, for locality.
    """

    task_class: TaskClass
    count: int
    room: Callable[[WorkerLoad], int]
    code_bytes: int = 0


class Strategy(Protocol):
    """Which worker takes the next tasks; one of these per scheduler."""

    name: ClassVar[str]

    def __init__(self, seed: int = 0) -> None:
        """Start without workers; the seed is for strategies that draw lots."""

    def __len__(self) -> int:
        """Count the candidates."""

    def add(self, worker: WorkerLoad) -> None:
        """Make a worker a candidate.

        Raises:
            InvariantError: its ``order`` is taken.
        """

    def remove(self, worker: WorkerLoad) -> None:
        """Drop a candidate; nothing happens where it is none."""

    def changed(self, worker: WorkerLoad) -> None:
        """Note that the load or the room of a worker changed."""

    def pick(self, request: PlacementRequest) -> tuple[WorkerLoad, int] | None:
        """Choose a worker and how many tasks it gets.

        Returns:
            The worker and n, 1 <= n <= min(count, its room), or None where nobody has
            room. The caller leases n tasks, updates the load, calls `changed`, lowers
            ``count`` by n, and picks again.
        """


class Ring:
    """Join orders, ascending: for turns (next after a cursor) and for lots (by index).

    Insertion and removal move memory, about a microsecond among 5,000 entries.
    """

    __slots__ = ("orders",)

    def __init__(self, orders: list[int] | None = None) -> None:
        self.orders: list[int] = [] if orders is None else orders

    def __len__(self) -> int:
        return len(self.orders)

    def index(self, cursor: int) -> int:
        """Return the index of the first entry at or after the cursor, 0 behind the last."""
        at = bisect_left(self.orders, cursor)
        return at if at < len(self.orders) else 0

    def put(self, worker: WorkerLoad) -> None:
        """Add a worker, if it is not there."""
        order = worker.order
        orders = self.orders
        if not orders or order > orders[-1]:
            orders.append(order)
            return
        at = bisect_left(orders, order)
        if orders[at] != order:
            orders.insert(at, order)

    def discard(self, worker: WorkerLoad) -> None:
        """Take a worker out, if it is there."""
        at = bisect_left(self.orders, worker.order)
        if at < len(self.orders) and self.orders[at] == worker.order:
            del self.orders[at]


class Members(Protocol):
    """An ordering of candidates that can be kept up to date."""

    def __len__(self) -> int:
        """Count the members."""

    def put(self, worker: WorkerLoad) -> None:
        """Add a worker, or take note that it changed."""

    def discard(self, worker: WorkerLoad) -> None:
        """Take a worker out, if it is there."""


M = TypeVar("M", bound=Members)


class View(Generic[M]):
    """The candidates of one request that are not known to be full.

    Attributes:
        members: They, in the order of the strategy.
        dirty: Who joined, left or changed since the last pick, by join order.
        is_disturbed: Whether others than the one that was dealt to had changed by then.
    """

    __slots__ = ("_dealt", "_due", "_plan", "_task_class", "dirty", "is_disturbed", "members")

    def __init__(self, request: PlacementRequest, members: M) -> None:
        self.members = members
        self.dirty: dict[int, WorkerLoad] = {}
        self.is_disturbed = False
        self._dealt = -1
        self._task_class = request.task_class
        self._plan: list[tuple[WorkerLoad, int]] = []
        self._due = 0

    def serves(self, request: PlacementRequest) -> bool:
        """Say whether what it remembers is of the request's class."""
        return self._task_class is request.task_class

    def catch_up(self, workers: dict[int, WorkerLoad]) -> None:
        """Apply the changes since the last pick, given all candidates by join order."""
        self.is_disturbed = len(self.dirty) > 1 or self._dealt not in self.dirty
        for order, worker in self.dirty.items():
            if workers.get(order) is worker:
                self.members.put(worker)
            else:
                self.members.discard(worker)
                self._plan = [share for share in self._plan if share[0] is not worker]
        self.dirty.clear()

    def start(self, plan: list[tuple[WorkerLoad, int]], request: PlacementRequest) -> None:
        """Note how a large count is to be dealt, the first share first."""
        plan.reverse()
        self._plan = plan
        self._due = request.count

    def drop_plan(self) -> None:
        """Forget the plan, as the loads that it was made for have changed."""
        self._plan = []

    def planned(self, request: PlacementRequest) -> tuple[WorkerLoad, int] | None:
        """Deal the next share of the plan; None where there is none (left).

        A plan ends early where the caller's count shows that it did something else.
        """
        if not self._plan:
            return None
        if request.count != self._due:
            self._plan = []
        while self._plan:
            worker, share = self._plan.pop()
            dealt = min(share, request.count, request.room(worker))
            if dealt > 0:
                self._due = request.count - dealt
                self._dealt = worker.order
                return worker, dealt
        return None


class Roster(Generic[M]):
    """All candidates in join order, and the views of the latest requests.

    The shared part of all strategies.

    Invariant: ``ring`` holds exactly the keys of ``workers``.
    """

    def __init__(self) -> None:
        self.workers: dict[int, WorkerLoad] = {}
        self.ring = Ring()
        self._views: dict[Callable[[WorkerLoad], int], View[M]] = {}

    def __len__(self) -> int:
        """Count the candidates."""
        return len(self.workers)

    def add(self, worker: WorkerLoad) -> None:
        """Make a worker a candidate.

        Raises:
            InvariantError: its ``order`` is taken, or its weight is not above 0.
        """
        if worker.order in self.workers:
            raise InvariantError(f"two workers have the join order {worker.order}")
        if not worker.weight > 0:
            raise InvariantError(f"worker {worker.worker_id} has the weight {worker.weight}")
        self.workers[worker.order] = worker
        self.ring.put(worker)
        self.joined(worker)
        self._note(worker)

    def remove(self, worker: WorkerLoad) -> None:
        """Drop a candidate; nothing happens where it is none."""
        if self.workers.get(worker.order) is not worker:
            return
        del self.workers[worker.order]
        self.ring.discard(worker)
        self.left(worker)
        self._note(worker)

    def changed(self, worker: WorkerLoad) -> None:
        """Note that the load or the room of a worker changed."""
        if self.workers.get(worker.order) is not worker:
            return
        self.moved(worker)
        self._note(worker)

    def view_of(self, request: PlacementRequest) -> View[M] | None:
        """Return what is remembered for this request, up to date."""
        view = self._views.get(request.room)
        if view is None or not view.serves(request):
            return None
        if view.dirty:
            view.catch_up(self.workers)
        return view

    def open_view(self, request: PlacementRequest, members: M) -> View[M]:
        """Start to remember who has no room for this request."""
        views = self._views
        views.pop(request.room, None)
        if len(views) >= MAX_VIEWS:
            del views[next(iter(views))]
        view = views[request.room] = View(request, members)
        return view

    def _note(self, worker: WorkerLoad) -> None:
        for view in self._views.values():
            view.dirty[worker.order] = worker

    def joined(self, worker: WorkerLoad) -> None:
        """Let the strategy take note of a new candidate."""

    def moved(self, worker: WorkerLoad) -> None:
        """Let the strategy take note of a change."""

    def left(self, worker: WorkerLoad) -> None:
        """Let the strategy forget a candidate."""
