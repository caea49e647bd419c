"""All that the worker's core knows, and the few primitives that keep it consistent."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from rustray.common.resources import CPU, GPU, UNIT, ResourceSet
from rustray.task.columns import NO_PAYLOADS, PayloadColumn
from rustray.task.failures import encode_failure
from rustray.task.frames import LeaseOutcome, LeaseRange
from rustray.task.result import FailureInfo
from rustray.task.runtime_env import RuntimeEnv
from rustray.task.spec import ExecutorKind, TaskClass
from rustray.task.state import TaskState
from rustray.worker.backlog import Backlog
from rustray.worker.events import (
    DIRECT_LEASES,
    Command,
    DeliverDirect,
    GuardExecutor,
    UnwatchMemory,
)
from rustray.worker.gpus import GpuPool
from rustray.worker.outbox import Outbox
from rustray.worker.records import (
    NEVER,
    ClosedLease,
    Executor,
    Lease,
    Phase,
    WorkClass,
    closed_lease,
)
from rustray.worker.spool import Spool
from rustray.worker.waiting import DEFAULT_MEMORY_BYTES, WaitingOutcomes

DEFAULT_DRAIN_S: Final = 30.0
DEFAULT_CANCEL_S: Final = 5.0
MAX_CLOSED_LEASES: Final = 8192
FORGET_TOGETHER: Final = 256
MIN_EXECUTOR_LIMIT: Final = 16
EXECUTORS_PER_SLOT: Final = 4
KEEP_IDLE_EXTRA_S: Final = 60.0
DEFAULT_PACKAGE_BYTES: Final = 2_000_000_000
LOOK_AFTER_S: Final = 0.010
"""A task that runs so long is looked at: to tell the head, to free what waits behind it."""


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What the core may use.

    Attributes:
        resources: What the worker owns.
        thread_concurrency: Threads in the shared executor of kind THREAD.
        async_concurrency: Coroutines at once in the one of kind ASYNC.
        drain_timeout_s: How long running tasks may go on once the worker leaves.
        spool_memory_bytes: Of outcomes that the head has not confirmed; above it nothing starts.
        spool_disk_bytes: Of them on disk; 0: there is no disk to use.
        cancel_notice_s: How long a cancelled task that looks at ``is_cancelled`` has to end.
        cancel_grace_s: How long one has to end that was interrupted.
        kill_grace_s: How long between SIGTERM and SIGKILL.
        gpu_ids: What the drivers call the GPUs; where there are fewer than it owns: 0, 1, 2...
        package_bytes: Of packages on disk, packed; beyond it go those that nothing needs.
    """

    resources: ResourceSet
    thread_concurrency: int = 64
    async_concurrency: int = 1000
    drain_timeout_s: float = DEFAULT_DRAIN_S
    spool_memory_bytes: int = DEFAULT_MEMORY_BYTES
    spool_disk_bytes: int = 0
    cancel_notice_s: float = DEFAULT_CANCEL_S
    cancel_grace_s: float = DEFAULT_CANCEL_S
    kill_grace_s: float = DEFAULT_CANCEL_S
    gpu_ids: tuple[str, ...] = ()
    package_bytes: int = DEFAULT_PACKAGE_BYTES

    @property
    def slots(self) -> int:
        """Process executors that are always kept: one per core, a part of one counts."""
        return max(1, math.ceil(self.resources.units.get(CPU, 0) / UNIT))

    @property
    def max_executors(self) -> int:
        """Process executors at most, for tasks that need less than a core each."""
        return max(MIN_EXECUTOR_LIMIT, EXECUTORS_PER_SLOT * self.slots)


@dataclass(slots=True)
class WorkerState:
    """The core's state; functions of `rustray.worker` change it and nobody else.

    Attributes:
        slots: Process executors that are kept.
        free: Units of each resource that no task holds.
        gpus: Which GPUs these are; None on a worker without.
        session_classes: The head's number for a class, valid in this session only.
        codes: SHA-256 to cloudpickled function, kept over sessions.
        followers: (lease, offset) of a task to the leases of those that follow it.
        loose: Leases of those whose turn it is, with how what they follow has ended; None: it was
            given back. Empty between events.
        urgent: Tasks that have ended in the present event, and that nothing here follows.
        closed: What is kept of leases that were settled lately, by number: a late repetition of
            the grant is known for what it is, and a new head is told whose outcomes wait here.
        idle: Process executors that are ready and have nothing; who had a task last comes first.
        shared: The executor of each shared kind and environment that takes tasks.
        packages: SHA-256 to size of the packages that are on disk, oldest first.
        is_mixed: Not every process executor suits every task: there are GPUs, or environments.
        waking: (executor, lease, offset) of tasks that have waited and want their cores, in order.
        blocked_processes: Process executors whose task waits for tasks of its own.
        received: Number of the last frame of the session.
        must_heal: Executors may be missing.
        is_store_paused: The store of objects has no task start for now.
        heal_at: No executor is started before this.
        early_deaths: Executors that died young and unused, in a row.
        watch_at: When an executor wants to be looked at, at the earliest.
        drain_at: Running tasks are killed then.
        keeps_values: Others may need them: a worker that leaves waits until they are taken.
        keep_until: But no longer than this.
        leave_at: The worker stops then, whatever is left.
        goodbye_at: The same, once the last frame has been sent.
        is_leaving_told: The head of this session knows that the worker is on its way out.
        drained_number: Number of the frame that said goodbye, 0 before.
        finished: Tasks that have ended here.
        exclusive: Open leases of exclusive classes; without those that are being killed.
        exclusive_until: These are stopped then, unless the head answers before.
        lease_ttl_s: How long after hearing of the worker the head leaves it its tasks.
    """

    limits: WorkerLimits
    slots: int
    free: dict[str, int]
    outbox: Outbox
    gpus: GpuPool | None = None
    backlog: Backlog = field(default_factory=Backlog)
    leases: dict[int, Lease] = field(default_factory=dict)
    followers: dict[tuple[int, int], list[Lease]] = field(default_factory=dict)
    loose: list[tuple[Lease, LeaseOutcome | None]] = field(default_factory=list)
    urgent: int = 0
    closed: dict[int, ClosedLease] = field(default_factory=dict)
    classes: dict[TaskClass, WorkClass] = field(default_factory=dict)
    session_classes: dict[int, WorkClass] = field(default_factory=dict)
    codes: dict[bytes, bytes] = field(default_factory=dict)
    executors: dict[int, Executor] = field(default_factory=dict)
    idle: OrderedDict[int, Executor] = field(default_factory=OrderedDict)
    shared: dict[tuple[ExecutorKind, RuntimeEnv | None], Executor] = field(default_factory=dict)
    packages: dict[bytes, int] = field(default_factory=dict)
    is_mixed: bool = False
    waking: dict[tuple[int, int, int], None] = field(default_factory=dict)
    blocked_processes: int = 0
    commands: list[Command] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    received: int = 0
    arrivals: int = 0
    last_executor: int = 0
    is_pool_started: bool = False
    must_heal: bool = False
    is_store_paused: bool = False
    heal_at: float = 0.0
    early_deaths: int = 0
    watch_at: float = NEVER
    is_draining: bool = False
    drain_at: float = NEVER
    keeps_values: bool = False
    keep_until: float = NEVER
    leave_at: float = NEVER
    goodbye_at: float = NEVER
    is_leaving_told: bool = False
    drained_number: int = 0
    has_left: bool = False
    finished: int = 0
    exclusive: dict[int, Lease] = field(default_factory=dict)
    exclusive_until: float = -NEVER
    lease_ttl_s: float = NEVER

    def intern(self, task_class: TaskClass, code: bytes) -> WorkClass:
        """Return the worker's record of a class, the same for equal ones."""
        work = self.classes.get(task_class)
        if work is None:
            work = self.classes[task_class] = WorkClass(len(self.classes) + 1, task_class, code)
            self.is_mixed = self.is_mixed or task_class.runtime_env is not None
        return work

    def fits(self, demand: ResourceSet) -> int:
        """Count how often a demand fits into what is free; 0 if not once."""
        times = demand.times_in(self.free)
        need = demand.units.get(GPU, 0)
        if need and times and self.gpus is not None:
            times = min(times, self.gpus.times(need))
        return times

    def charge(self, demand: ResourceSet, times: int = 1) -> None:
        """Take resources."""
        free = self.free
        for name, units in demand.units.items():
            free[name] -= units * times

    def release(self, demand: ResourceSet, times: int = 1) -> None:
        """Give resources back."""
        free = self.free
        for name, units in demand.units.items():
            free[name] += units * times

    def arm(self, executor: Executor, at: float) -> None:
        """Look at this executor at ``at`` or before."""
        if at < executor.check_at:
            executor.check_at = at
            self.watch_at = min(self.watch_at, at)

    def take_out(
        self, executor: Executor, number: int, low: int, high: int, now: float
    ) -> list[tuple[Lease, int, int]]:
        """Remove tasks from an executor and free what they held; returns the runs removed."""
        runs = executor.take_out(number, low, high)
        if not runs:
            return runs
        if executor.blocked:
            for key in [k for k in executor.blocked if k[0] == number and low <= k[1] < high]:
                self.unblock(executor, key)
        if executor.stopping:
            for key in [k for k in executor.stopping if k[0] == number and low <= k[1] < high]:
                del executor.stopping[key]
        if executor.is_shared:
            self._release_shared(executor, runs, now)
            return runs
        executor.since = now
        executor.is_start_told = False
        if executor.count == 0:
            self.vacate(executor, now)
        else:
            self.arm(executor, now + LOOK_AFTER_S)
        return runs

    def _release_shared(
        self, executor: Executor, runs: list[tuple[Lease, int, int]], now: float
    ) -> None:
        for lease, low, high in runs:
            self.release(lease.work.task_class.resources, high - low)
        if executor.shares:
            self.free_gpus(executor, _ended_shares(executor))
        if executor.home is not None and executor.count == 0:
            executor.idle_since = now
            self.arm(executor, now + KEEP_IDLE_EXTRA_S)

    def unblock(self, executor: Executor, key: tuple[int, int]) -> None:
        """A task that had given back its cores has them again, if only on paper: it has ended."""
        cores = executor.blocked.pop(key, None)
        if cores is not None:
            self.charge(cores)
            self.waking.pop((executor.executor_id, *key), None)
            self.blocked_processes -= not executor.is_shared

    def vacate(self, executor: Executor, now: float) -> None:
        """Note that a process executor has nothing any more."""
        if executor.charge is not None:
            self.release(executor.charge)
        executor.charge = None
        if executor.share is not None:
            self.free_gpus(executor)
        executor.is_solo = False
        self.unweigh(executor)
        self.unguard(executor)
        executor.limit_at = NEVER
        executor.idle_since = now
        executor.check_at = NEVER
        if executor.phase is Phase.READY:
            self.note_idle(executor, now)
            # The next task finds it awake, and its caches warm.
            self.idle.move_to_end(executor.executor_id, last=False)

    def note_idle(self, executor: Executor, now: float) -> None:
        """Count a process executor as idle; one beyond the slots ends after a minute of that."""
        executor.idle_since = now
        self.idle[executor.executor_id] = executor
        if executor.is_extra:
            self.arm(executor, now + KEEP_IDLE_EXTRA_S)

    def free_gpus(self, executor: Executor, keys: Iterable[tuple[int, int]] = ()) -> None:
        """Take back the GPUs of a process executor, and of these tasks of a shared one."""
        assert self.gpus is not None
        if executor.share is not None:
            self.gpus.give_back(executor.share)
            executor.share = None
        for key in keys:
            share = executor.shares.pop(key, None)
            if share is not None:
                self.gpus.give_back(share)

    def unweigh(self, executor: Executor) -> None:
        """Watch its memory no longer."""
        if executor.is_weighed:
            executor.is_weighed = False
            self.commands.append(UnwatchMemory(executor.executor_id))

    def unguard(self, executor: Executor) -> None:
        """It runs nothing exclusive any more."""
        if executor.is_guarded:
            executor.is_guarded = False
            self.commands.append(GuardExecutor(executor.executor_id, NEVER))

    def settle(self, lease: Lease, outcome: LeaseOutcome) -> None:
        """Report how tasks ended, to whoever gave them."""
        if lease.number >= DIRECT_LEASES:
            self.commands.append(DeliverDirect(outcome))
        else:
            self.outbox.waiting.add(outcome)
        count = len(outcome.payloads)
        self.finished += count
        followed = 0
        if self.followers:
            followed = self._loosen(lease, outcome.offset, outcome.offset + count, outcome)
        # What follows a failure does not begin: the head is to say what becomes of it.
        self.urgent += count - (followed if outcome.state is TaskState.SUCCEEDED else 0)
        self._close(lease, count)

    def settle_failed(
        self, lease: Lease, low: int, high: int, state: TaskState, info: FailureInfo
    ) -> None:
        """Report that tasks ended alike, without a value."""
        payloads = PayloadColumn.of([encode_failure(info)] * (high - low))
        self.settle(lease, LeaseOutcome(lease.number, low, state, payloads, 0))

    def give_back(self, lease: Lease, low: int, high: int) -> None:
        """Return tasks to the head, never to be started here."""
        if lease.number >= DIRECT_LEASES:
            self.settle_failed(lease, low, high, TaskState.CANCELLED, LEAVING)
            return
        self.outbox.returned.append(LeaseRange(lease.number, low, high - low))
        if self.followers:
            self._loosen(lease, low, high, None)
        self._close(lease, high - low)

    def _loosen(self, lease: Lease, low: int, high: int, outcome: LeaseOutcome | None) -> int:
        """See to it that what follows these tasks goes on; returns how many are followed."""
        followed = 0
        for offset in range(low, high):
            found = self.followers.pop((lease.number, offset), None)
            if found is not None:
                followed += 1
                self.loose += [(follower, outcome) for follower in found]
        return followed

    def detach(self, lease: Lease) -> bool:
        """Have a task wait no longer for the one that it follows; False: it does not."""
        waiting = self.followers.get(lease.follows, ())
        if lease not in waiting:
            return False
        rest = [one for one in waiting if one is not lease]
        if rest:
            self.followers[lease.follows] = rest
        else:
            del self.followers[lease.follows]
        return True

    def _close(self, lease: Lease, count: int) -> None:
        if lease.follows[0]:
            self.detach(lease)
        lease.open -= count
        if lease.open == 0:
            del self.leases[lease.number]
            lease.payloads = NO_PAYLOADS
            if self.exclusive:
                self.exclusive.pop(lease.number, None)
            self.closed[lease.number] = closed_lease(lease)
            surplus = len(self.closed) - MAX_CLOSED_LEASES
            if surplus > 0 and surplus % FORGET_TOGETHER == 0:
                self._forget_closed(surplus)

    def _forget_closed(self, surplus: int) -> None:
        """Forget the oldest, but for those whose outcomes the head has not confirmed."""
        owed = self.outbox.owed_leases()
        for number in [n for n in islice(self.closed, surplus) if n not in owed]:
            del self.closed[number]


def _ended_shares(executor: Executor) -> list[tuple[int, int]]:
    busy = executor.running.keys() | executor.abandoned.keys()
    return [key for key in executor.shares if key not in busy]


LEAVING: Final = FailureInfo("TASK_CANCELLED", "the worker is shutting down; submit it elsewhere")


def new_state(limits: WorkerLimits) -> WorkerState:
    """Return the state of a worker that has just started."""
    waiting = WaitingOutcomes(limits.spool_memory_bytes, Spool(limits.spool_disk_bytes))
    units = dict(limits.resources.units)
    owned = units.get(GPU, 0)
    gpus = GpuPool(owned, limits.gpu_ids) if owned else None
    return WorkerState(
        limits, limits.slots, units, Outbox(waiting=waiting), gpus, is_mixed=gpus is not None
    )


def shortage_text(demand: ResourceSet, total: Mapping[str, int]) -> str:
    """Say what a demand needs more than there is, e.g. ``gpus: needs 2, has 0``."""
    lacking = demand.shortage(total).items()
    return ", ".join(f"{name}: needs {need:g}, has {have:g}" for name, (need, have) in lacking)
