"""The mutable records of the worker's core; private to `rustray.worker`.

A task is a position in a lease. Until it is settled it stands in exactly one place: in a
segment of a lane (queued), in a segment of a process executor, in the running table of a
shared executor, or waits for one that it follows. `Lease.open` counts all of them together.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise
from typing import Final, NamedTuple

from rustray.common.resources import CPU, MEMORY, UNIT, ResourceSet
from rustray.task.columns import PayloadColumn
from rustray.task.frames import LeaseRange
from rustray.task.runtime_env import RuntimeEnv
from rustray.task.spec import ExecutorKind, TaskClass
from rustray.worker.events import PLAIN, MemoryExceeded, Setting
from rustray.worker.gpus import GpuShare

NEVER: Final = math.inf
_MEAN_WEIGHT: Final = 0.2
_MB: Final = 1_000_000


class LaneKey(NamedTuple):
    """What tasks that queue together have in common."""

    priority: int
    demand: ResourceSet
    kind: ExecutorKind
    is_solo: bool
    depth: int = 0
    runtime_env: RuntimeEnv | None = None


class Home(NamedTuple):
    """What an executor process has become, and can never change again.

    Attributes:
        runtime_env: The environment that its tasks have found.
        gpus: The GPUs that they have worked with.
    """

    runtime_env: RuntimeEnv | None = None
    gpus: tuple[int, ...] = ()


PLAIN_HOME: Final = Home()


class WorkClass:
    """A task class that this worker has been given.

    Attributes:
        number: The worker's own number for it, the same over all sessions.
        code: Cloudpickled function, b"" for a registered one.
        mean_us: Moving average of the run time of one task; 0 while unknown.
        memory_limit: Bytes that one task may hold; 0 where that is not limited. Threads and
            coroutines share a process, so that nobody could say whose its memory is.
        apart_until: Until then nothing goes along with what it follows, see `reports.APART_S`.
        is_solo: Its tasks want an executor for themselves, nothing queued behind them,
            because their run must be timed or weighed alone, or waits for a consumer.
        cores: What one gives back while it waits for tasks of its own.
        lane_key: The lane that its tasks wait in.
        setting: What its executors are to be set to, but for their GPUs.
    """

    __slots__ = (
        "apart_until",
        "code",
        "cores",
        "is_solo",
        "lane_key",
        "mean_us",
        "memory_limit",
        "number",
        "setting",
        "task_class",
    )

    def __init__(self, number: int, task_class: TaskClass, code: bytes) -> None:
        self.number = number
        self.task_class = task_class
        self.code = code
        self.mean_us = 0.0
        self.apart_until = 0.0
        units = task_class.resources.units
        is_alone = task_class.executor is ExecutorKind.PROCESS
        self.memory_limit = units.get(MEMORY, 0) * (_MB // UNIT) if is_alone else 0
        self.is_solo = (
            task_class.timeout_s > 0
            or self.memory_limit > 0
            or units.get(CPU) != UNIT
            or task_class.exclusive
            or task_class.stream_window > 0
        )
        self.cores = ResourceSet({CPU: units[CPU]} if units.get(CPU) else {})
        self.lane_key = LaneKey(
            task_class.priority,
            task_class.resources,
            task_class.executor,
            self.is_solo,
            task_class.depth,
            task_class.runtime_env,
        )
        threads = max(units.get(CPU, 0) // UNIT, 1) if is_alone else 1
        self.setting = Setting(threads, None, task_class.alternative, task_class.runtime_env)

    def observe(self, run_us: int, count: int) -> None:
        """Take the run time of ``count`` tasks together into the average."""
        sample = max(run_us / count, 1.0)
        if self.mean_us:
            self.mean_us += _MEAN_WEIGHT * (sample - self.mean_us)
        else:
            self.mean_us = sample


@dataclass(slots=True, eq=False)
class Lease:
    """One grant.

    Attributes:
        arrival: Order of its grant among all.
        open: Tasks not settled.
        due: When the head will have them stopped; infinite for never.
        cancelled: (low, high, force) ranges that are to stop.
        recalled: (low, high) ranges to give back where they have not started.
        streams: Offset to (items that the head has, items that are consumed) of streams.
        follows: See `rustray.task.frames.LeaseGrant`; (0, 0) once it has what it takes.
        followed: The lease of the task that it follows, or has followed; else 0.
        is_along: An executor was given it together with the task that it follows.
    """

    number: int
    work: WorkClass
    attempt: int
    prefix: bytes
    first: int
    payloads: PayloadColumn
    arrival: int
    open: int
    due: float = NEVER
    cancelled: list[tuple[int, int, bool]] = field(default_factory=list)
    recalled: list[tuple[int, int]] = field(default_factory=list)
    streams: dict[int, tuple[int, int]] = field(default_factory=dict)
    follows: tuple[int, int] = (0, 0)
    is_along: bool = False
    followed: int = 0

    def is_cancelled(self, offset: int) -> bool:
        """Whether this task is to stop."""
        return any(low <= offset < high for low, high, _ in self.cancelled)


ClosedLease = tuple[bytes, int, int, int, int]
"""Prefix, first sequence, attempt, alternative and what it followed of a lease whose tasks have all
been settled: plain values in a tuple, for the collector does not go through thousands of these."""


def closed_lease(lease: Lease) -> ClosedLease:
    """Return what is kept of a lease."""
    alternative = lease.work.task_class.alternative
    return lease.prefix, lease.first, lease.attempt, alternative, lease.followed


@dataclass(slots=True, eq=False)
class Segment:
    """Tasks ``low`` to ``high - 1`` of a lease that stand in one place together.

    Attributes:
        cost_us: Expected run time of one task; 0 while unknown.
    """

    lease: Lease
    low: int
    high: int
    cost_us: float = 0.0

    @property
    def order(self) -> tuple[int, int]:
        """Its place among all segments of one priority."""
        return (self.lease.arrival, self.low)


class Phase(IntEnum):
    """Where an executor stands in its life."""

    STARTING = 0
    READY = 1
    RETIRED = 2
    """Finishes what it runs, takes nothing more, and is killed then."""
    KILLED = 3
    """A signal is under way; its exit will be reported."""


class Stage(IntEnum):
    """How firmly a task was asked to stop."""

    NOTICE = 0
    """`rustray.context().is_cancelled()` is true; interrupted only if it never asked that."""
    INTERRUPT = 1
    """`TaskInterrupt` is raised in it."""
    TERM = 2
    """SIGTERM to its processes; SIGKILL is next. Threads and coroutines are abandoned instead."""


@dataclass(slots=True)
class Stop:
    """A task that was asked to stop, more and more firmly.

    Attributes:
        is_timeout: Whether its run limit passed; else it was cancelled.
        stage: What was done last.
        next_at: When the next stage is due.
    """

    is_timeout: bool
    stage: Stage
    next_at: float


@dataclass(slots=True, eq=False)
class Executor:
    """One executor process, of either sort.

    Attributes:
        charge: What its present tasks hold of the worker's resources: for a process executor
            the demand of one task while it has any, for a shared one unused.
        segments: Process executors: what it was given and has not reported, in order.
        count: Tasks given and not reported.
        backlog_us: Expected run time of them; infinite where one is unknown.
        since: When its present first task became the first.
        is_start_told: Whether the head was told that the first task runs.
        limit_at: When a run limit passes, at the earliest.
        running: Shared executors: (lease, offset) to the lease and the time of its start.
        fresh: Those of `running` that the head was not told of.
        abandoned: Shared executors: settled tasks whose threads go on, and their demand.
        blocked: Tasks that wait for tasks of their own, and the cores that they have given back.
        stopping: Tasks that were asked to stop.
        is_weighed: Its memory is watched, for the task that it holds.
        outgrown: What its task was found to hold too much; it is being killed for that.
        is_reclaiming: It was asked for what it has not started, and has not answered.
        stuck_at: If it has not answered by then it is killed, for a task of it is to stop.
        is_stuck: It was killed for that.
        is_silent: It has not answered, nor reported since; all that it had not begun was taken.
        is_answer_old: It had ended all that it was asked for, and was given more meanwhile.
        is_guarded: It runs an exclusive task, and the zygote knows until when.
        is_cut_off: It was killed for that, because the head did not answer.
        setting: What it was set to last.
        share: Process executors: the GPUs that its present tasks hold.
        shares: Shared executors: the same, of each task that holds any.
        home: What its tasks have made of its process; None as long as it has had none, or as its
            worker has only ever had tasks that are alike in this.
        check_at: When `watch.examine` has something to look at, at the earliest.
    """

    executor_id: int
    kind: ExecutorKind
    concurrency: int
    started_at: float
    is_extra: bool = False
    pid: int = 0
    phase: Phase = Phase.STARTING
    has_worked: bool = False
    classes: set[int] = field(default_factory=set)
    charge: ResourceSet | None = None
    segments: deque[Segment] = field(default_factory=deque)
    count: int = 0
    backlog_us: float = 0.0
    since: float = 0.0
    is_start_told: bool = False
    is_solo: bool = False
    limit_at: float = NEVER
    running: dict[tuple[int, int], tuple[Lease, float]] = field(default_factory=dict)
    fresh: dict[tuple[int, int], float] = field(default_factory=dict)
    limits: dict[tuple[int, int], float] = field(default_factory=dict)
    abandoned: dict[tuple[int, int], ResourceSet] = field(default_factory=dict)
    blocked: dict[tuple[int, int], ResourceSet] = field(default_factory=dict)
    stopping: dict[tuple[int, int], Stop] = field(default_factory=dict)
    is_weighed: bool = False
    outgrown: MemoryExceeded | None = None
    is_reclaiming: bool = False
    stuck_at: float = NEVER
    is_stuck: bool = False
    is_silent: bool = False
    is_answer_old: bool = False
    is_guarded: bool = False
    is_cut_off: bool = False
    setting: Setting = PLAIN
    share: GpuShare | None = None
    shares: dict[tuple[int, int], GpuShare] = field(default_factory=dict)
    home: Home | None = None
    idle_since: float = 0.0
    check_at: float = NEVER

    @property
    def shelf(self) -> tuple[ExecutorKind, RuntimeEnv | None]:
        """Where a shared executor stands among those that take tasks."""
        return self.kind, None if self.home is None else self.home.runtime_env

    @property
    def is_shared(self) -> bool:
        """Whether it runs several tasks at once."""
        return self.kind is not ExecutorKind.PROCESS

    def pieces(self) -> list[Segment]:
        """Return all that it holds as segments, in the order it was given."""
        if not self.is_shared:
            return list(self.segments)
        return [Segment(lease, o, o + 1) for (_, o), (lease, _) in self.running.items()]

    def holds(self, number: int, offset: int) -> bool:
        """Whether a task is here."""
        return self.lease_of(number, offset) is not None

    def lease_of(self, number: int, offset: int) -> Lease | None:
        """Return the lease of a task that is here, else None."""
        if self.is_shared:
            entry = self.running.get((number, offset))
            return entry[0] if entry is not None else None
        for segment in self.segments:
            if segment.lease.number == number and segment.low <= offset < segment.high:
                return segment.lease
        return None

    @property
    def room(self) -> int:
        """How many tasks more a shared executor may run at once."""
        return self.concurrency + len(self.blocked) - self.count - len(self.abandoned)

    @property
    def may_have_more(self) -> bool:
        """Whether it is worth asking a process for what it has not started."""
        is_asked = self.is_reclaiming or self.is_silent
        return self.count > 1 and not (is_asked or self.is_shared)

    @property
    def has_cancelled(self) -> bool:
        """Whether a process holds a task that was cancelled."""
        return any(
            low < piece.high and piece.low < high
            for piece in self.segments
            for low, high, _ in piece.lease.cancelled
        )

    def last_task(self) -> tuple[Lease, int] | None:
        """Return the last task of a process executor: the running one if none is unstarted."""
        if not self.segments:
            return None
        segment = self.segments[-1]
        return segment.lease, segment.high - 1

    def take_out(self, number: int, low: int, high: int) -> list[tuple[Lease, int, int]]:
        """Remove tasks of a lease, as far as they are here; returns the runs removed."""
        segments = self.segments
        if segments:
            head = segments[0]
            if head.low == low and head.lease.number == number and high <= head.high:
                self._count_out(head, high - low)
                head.low = high
                if head.low == head.high:
                    segments.popleft()
                return [(head.lease, low, high)]
            return self._search_out(number, low, high)
        found: list[tuple[Lease, int, int]] = []
        for offset in range(max(low, 0), high) if self.running else ():
            entry = self.running.pop((number, offset), None)
            if entry is not None:
                self.fresh.pop((number, offset), None)
                self.limits.pop((number, offset), None)
                self.count -= 1
                found.append((entry[0], offset, offset + 1))
        return found

    def _search_out(self, number: int, low: int, high: int) -> list[tuple[Lease, int, int]]:
        found: list[tuple[Lease, int, int]] = []
        kept: deque[Segment] = deque()
        for segment in self.segments:
            from_, to = max(low, segment.low), min(high, segment.high)
            if segment.lease.number != number or from_ >= to:
                kept.append(segment)
                continue
            self._count_out(segment, to - from_)
            found.append((segment.lease, from_, to))
            if segment.low < from_:
                kept.append(Segment(segment.lease, segment.low, from_, segment.cost_us))
            if to < segment.high:
                kept.append(Segment(segment.lease, to, segment.high, segment.cost_us))
        self.segments = kept
        return found

    def _count_out(self, segment: Segment, count: int) -> None:
        self.count -= count
        if self.count == 0:
            self.backlog_us = 0.0
        elif segment.cost_us:
            self.backlog_us = max(self.backlog_us - count * segment.cost_us, 0.0)


def merge_ranges(ranges: list[LeaseRange]) -> list[LeaseRange]:
    """Sort ranges by lease and offset, and join those that touch or overlap."""
    ranges.sort(key=lambda r: (r.lease, r.offset))
    merged: list[LeaseRange] = []
    for item in ranges:
        if merged and merged[-1].lease == item.lease:
            last = merged[-1]
            end = last.offset + last.count
            if item.offset <= end:
                count = max(end, item.offset + item.count) - last.offset
                merged[-1] = LeaseRange(last.lease, last.offset, count)
                continue
        merged.append(item)
    return merged


def subtract(low: int, high: int, holes: list[tuple[int, int]]) -> list[tuple[int, int, bool]]:
    """Split ``low..high`` into runs of (low, high, is inside a hole)."""
    cuts = {low, high}
    for a, b in holes:
        cuts.update(x for x in (a, b) if low < x < high)
    marks = sorted(cuts)
    runs: list[tuple[int, int, bool]] = []
    for a, b in pairwise(marks):
        is_hole = any(x <= a and b <= y for x, y in holes)
        if runs and runs[-1][2] == is_hole:
            runs[-1] = (runs[-1][0], b, is_hole)
        else:
            runs.append((a, b, is_hole))
    return runs
