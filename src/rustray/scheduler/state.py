"""Everything the scheduler knows, and the few operations that all its parts share."""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

from rustray.common.durability import Durability
from rustray.common.records import record
from rustray.common.resources import CPU
from rustray.scheduler.commands import Command, ForgetBatch, ForgetCode
from rustray.scheduler.events import StorageChanged
from rustray.scheduler.leaving import Leaving
from rustray.scheduler.load_balancer import LoadBalancer, WorkerLoad
from rustray.scheduler.ordering import Lots
from rustray.scheduler.records import (
    Batch,
    ClassQueue,
    Delay,
    Lease,
    Part,
    Pending,
    QueueKey,
    SessionTasks,
    Shelf,
    Span,
    StoredOutcome,
    Variant,
    WorkerRecord,
    level_of,
)
from rustray.task.functions import FunctionInfo
from rustray.task.spec import DEFAULT_RETRIES, TaskClass
from rustray.task.state import TaskState


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """The scheduler's knobs.

    Attributes:
        strategy: Name of the load balancing strategy (design §7).
        lease_ttl_s: Silence after which a worker's tasks go to others.
        result_ttl_s: How long a result is kept.
        result_memory_bytes: Results kept in memory at most; delivered ones go first.
        result_disk_bytes: Large results that the shell keeps at most, likewise; 0: it keeps none,
            and all stay in memory.
        letter_memory_bytes: Dead letters, error and arguments, kept at most; likewise.
        max_pending_tasks: Accepted and unfinished tasks at most.
        max_pending_bytes: Their arguments together at most.
        principal_pending_tasks: The same of one principal.
        principal_pending_bytes: Likewise.
        max_payload_bytes: Size of one task's arguments at most.
        max_joined_bytes: The same with all that it takes from others, as far as the head has it:
            they travel in one message.
        max_task_depth: How deep tasks may stand that tasks hand in.
        prefetch_s: How much run time a worker holds beyond its slots.
        max_leased_tasks: Tasks leased to one worker at most.
        seed: For strategies that draw lots.
        first_lease: Number of the first lease; must exceed every number of an earlier head, for
            its workers may still hold some.
        durability: The head's level: of tasks that ask for none.
        stream_ttl_s: How long a generator goes on, or waits, while nobody is there to read it.
        max_retries: Re-runs of tasks that say nothing of them.
    """

    strategy: str = "LeastLoaded"
    lease_ttl_s: float = 10.0
    result_ttl_s: float = 86_400.0
    result_memory_bytes: int = 512 << 20
    result_disk_bytes: int = 0
    letter_memory_bytes: int = 256 << 20
    max_pending_tasks: int = 20_000_000
    max_pending_bytes: int = 8 << 30
    principal_pending_tasks: int = 20_000_000
    principal_pending_bytes: int = 8 << 30
    max_payload_bytes: int = 16 << 20
    max_joined_bytes: int = 28 << 20
    max_task_depth: int = 256
    prefetch_s: float = 0.05
    max_leased_tasks: int = 4_096
    seed: int = 0
    first_lease: int = 1
    durability: Durability = Durability.FULL
    stream_ttl_s: float = 60.0
    max_retries: int = DEFAULT_RETRIES


_SPEAKING = frozenset({TaskState.RUNNING, TaskState.CANCELLING})


@record
class Progress:
    """How far a task said that it is."""

    fraction: float
    message: str


FEW_TIMERS = 4_096


class SchedulerState:
    """The scheduler's data. Invariants are in `invariants.py`.

    Attributes:
        now: Time of the present `handle` call.
        commands: What the present `handle` call has decided so far.
        queues: Class to its queue.
        ready: Heap of (sort key, queue) for queues that may have work; entries may be stale.
        blocked: Queues with waiting tasks for which no worker has room.
        freed: Workers that got room in the present call.
        overfull: Workers with more than they can run at once (candidates for take-back).
        timers: Heap of (time, order, kind, subject).
        results: How tasks ended that succeeded or were cancelled, as long as it is kept; but for
            large results.
        large: Results that the shell keeps.
        staying: What is kept of results that stay with workers: places and arguments.
        storage: How the disk under the journal does.
        unstored: Large ones that it does not have safe yet, by number.
        letters: How tasks ended that ended badly.
        shelves: These four.
        functions: Announced name to description; remembered after the worker has left.
        code: Hash to cloudpickled function, or package of a runtime_env.
        code_bytes: Of all of these; ``code_uses``: how many queues need each.
        pending: What has not ended; ``principals``: the same of each principal that has some.
        ghost: After a restart, stands for the workers of before that have not come back:
            has a lease on everything that one of them may hold. Not one of `workers`.
        awaited: Ids of these workers.
        delayed: QUEUED tasks that pause before another attempt.
        set_aside: QUEUED tasks that lack inputs.
        kept_by: Worker id and object id to the outcomes whose values have stayed there.
        leaving: What becomes of the values of workers that leave, by id.
        to_remake: Those that are lost and needed; empty between events.
        doomed: Those of them whose inputs cannot be had: (batch, offset); empty between events.
        fresh: Leases behind which more may follow now; empty between events.
        orphans: Leased tasks that take what has ended without a value; empty between events.
        jitter: Draws lots for these pauses.
        keep_until_s: After a start at a doubtful time: nothing that is kept expires before.
        exclusive_from_s: After a restart: when no worker of before can run an exclusive task any
            more that it has not told of.
        progress: (batch number, offset) to how far a running task said that it is.
        nested_batches: How many of the batches were handed in by tasks.
        tombstones: Heap of (when it is forgotten, number, batch) of those with nothing left.
        tombstone_bytes: What they take, roughly.
        expired: Session prefix to the last of its tasks whose time is up; see `tombstones`.
        news_allowed: How many events of news may be published at `news_counted_at_s`.
    """

    def __init__(self, settings: SchedulerSettings) -> None:
        self.settings = settings
        self.balancer = LoadBalancer(settings.strategy, seed=settings.seed)
        self.now = 0.0
        self.commands: list[Command] = []
        self.sessions: dict[bytes, SessionTasks] = {}
        self.queues: dict[TaskClass, ClassQueue] = {}
        self.ready: list[tuple[QueueKey, ClassQueue]] = []
        self.blocked: dict[ClassQueue, None] = {}
        self.workers: dict[str, WorkerRecord] = {}
        self.freed: dict[WorkerRecord, None] = {}
        self.overfull: dict[WorkerRecord, None] = {}
        self.leases: dict[int, Lease] = {}
        self.timers: list[tuple[float, int, str, object]] = []
        self.compact_timers_at = FEW_TIMERS
        self.results = Shelf(settings.result_memory_bytes)
        self.large = Shelf(settings.result_disk_bytes)
        self.staying = Shelf(settings.result_memory_bytes)
        self.unstored: dict[int, StoredOutcome] = {}
        self.storage = StorageChanged(is_full=False, is_stalled=False)
        self.letters = Shelf(settings.letter_memory_bytes)
        self.shelves = (self.results, self.large, self.letters, self.staying)
        self.functions: dict[str, FunctionInfo] = {}
        self.code: dict[bytes, bytes] = {}
        self.code_uses: Counter[bytes] = Counter()
        self.code_bytes = self.tombstone_bytes = 0
        self.ghost: WorkerRecord | None = None
        self.awaited: set[str] = set()
        self.counts: Counter[TaskState] = Counter()
        self.counters: Counter[str] = Counter()
        self.jitter = Lots(settings.seed)
        self.delayed = self.set_aside = self.nested_batches = 0
        self.kept_by: dict[str, dict[str, StoredOutcome]] = {}
        self.leaving: dict[str, Leaving] = {}
        self.to_remake: list[StoredOutcome] = []
        self.doomed: deque[tuple[Batch, int]] = deque()
        self.fresh: list[Lease] = []
        self.orphans: list[tuple[Batch, int]] = []
        self.pending = Pending()
        self.principals: dict[str, Pending] = {}
        self.tombstones: list[tuple[float, int, Batch]] = []
        self.expired: dict[bytes, int] = {}
        self.next_lease = settings.first_lease
        self.next_batch = self.next_outcome = self.next_order = self.next_worker = 1
        self.keep_until_s = self.exclusive_from_s = 0.0
        self.progress: dict[tuple[int, int], Progress] = {}
        self.news_allowed = self.news_counted_at_s = 0.0

    # -- finding -----------------------------------------------------------

    def find(self, prefix: bytes, sequence: int) -> tuple[Batch, int] | None:
        """Find a task by its id: (batch, offset), or None.

        Complexity: O(log batches of the session).
        """
        session = self.sessions.get(prefix)
        if session is None:
            return None
        place = bisect_right(session.firsts, sequence) - 1
        if place < 0:
            return None
        batch = session.batches[place]
        offset = sequence - batch.first
        return (batch, offset) if offset < batch.count else None

    def overlapping(self, prefix: bytes, first: int, count: int) -> list[Batch]:
        """Return the session's batches that share sequences with a range, in order."""
        session = self.sessions.get(prefix)
        if session is None:
            return []
        place = max(bisect_right(session.firsts, first) - 1, 0)
        found: list[Batch] = []
        for batch in session.batches[place:]:
            if batch.first >= first + count:
                break
            if batch.first + batch.count > first:
                found.append(batch)
        return found

    def insert(self, batch: Batch) -> None:
        """Enter a batch into its session; appending is the common case."""
        self.nested_batches += batch.queue.task_class.depth > 0
        session = self.sessions.get(batch.prefix)
        if session is None:
            session = self.sessions[batch.prefix] = SessionTasks()
        if not session.firsts or session.firsts[-1] < batch.first:
            session.firsts.append(batch.first)
            session.batches.append(batch)
            return
        place = bisect_right(session.firsts, batch.first)
        session.firsts.insert(place, batch.first)
        session.batches.insert(place, batch)

    def remove(self, batch: Batch) -> None:
        """Forget a batch whose tasks have ended and whose outcomes have expired."""
        self.commands.append(ForgetBatch(batch.number, batch.durability))
        self.nested_batches -= batch.queue.task_class.depth > 0
        session = self.sessions[batch.prefix]
        place = bisect_right(session.firsts, batch.first) - 1
        del session.firsts[place]
        del session.batches[place]
        if not session.firsts:
            del self.sessions[batch.prefix]
        for ended in TaskState:
            self.counts[ended] -= batch.state.count(ended)
        if not batch.is_buried:
            self.leave_queue(batch.queue)

    def leave_queue(self, queue: ClassQueue) -> None:
        """Take a batch that is over off its queue, which goes with the last one."""
        queue.batches -= 1
        if queue.batches == 0 and self.queues.get(queue.task_class) is queue:
            self.drop_queue(queue)

    def enter_queue(self, queue: ClassQueue) -> None:
        """Have a queue for a class that has none."""
        self.queues[queue.task_class] = queue
        self.code_uses.update(queue.task_class.blobs)

    def drop_queue(self, queue: ClassQueue) -> None:
        """Forget a queue, and code that nothing else needs."""
        del self.queues[queue.task_class]
        self.blocked.pop(queue, None)
        self.code_uses.subtract(queue.task_class.blobs)
        self.forget_blobs(queue.task_class)

    def forget_blobs(self, task_class: TaskClass) -> None:
        """Forget code and packages of a class, as far as no queue still needs them."""
        for digest in task_class.blobs:
            if digest in self.code and self.code_uses[digest] <= 0:
                del self.code_uses[digest]
                self.code_bytes -= len(self.code.pop(digest))
                self.commands.append(ForgetCode(digest))

    # -- changing state ----------------------------------------------------

    @property
    def pending_tasks(self) -> int:
        """Tasks that were accepted and have not ended."""
        return self.pending.tasks

    @property
    def pending_bytes(self) -> int:
        """Bytes of their arguments."""
        return self.pending.bytes

    def count_pending(self, batch: Batch, tasks: int, size: int) -> None:
        """Count tasks of a batch, and bytes, as pending (negative: as not any more)."""
        mine = self.principals.get(batch.principal)
        if mine is None:
            mine = self.principals[batch.principal] = Pending()
        whole = self.pending
        whole.tasks += tasks
        whole.bytes += size
        mine.tasks += tasks
        mine.bytes += size
        if tasks < 0:
            whole.ended -= tasks
            mine.ended -= tasks
        if not (mine.tasks or mine.bytes):
            del self.principals[batch.principal]

    def set_state(self, part: Part, new: TaskState) -> None:
        """Move tasks to another state."""
        number = part.high - part.low
        part.batch.state[part.low : part.high] = bytes((new,)) * number
        self.counts[part.state] -= number
        self.counts[new] += number
        if self.progress and new not in _SPEAKING:
            for offset in range(part.low, part.high):
                self.progress.pop((part.batch.number, offset), None)

    def charge(self, worker: WorkerRecord, variant: Variant, number: int) -> None:
        """Account ``number`` tasks to a worker (negative: take them off)."""
        load = worker.load
        task_class = variant.task_class
        level = worker.leased_by_level.get(variant.level)
        if level is None:
            level = worker.leased_by_level[variant.level] = {}
        leased = load.leased
        for name, units in task_class.resources.units.items():
            amount = units * number
            leased[name] = leased.get(name, 0) + amount
            level[name] = level.get(name, 0) + amount
        load.tasks += number
        mine = load.by_class.get(task_class, 0) + number
        if mine:
            load.by_class[task_class] = mine
        else:
            load.by_class.pop(task_class, None)
            if not any(level.values()):
                worker.leased_by_level.pop(variant.level, None)
        self._note_load(worker, is_less=number < 0)

    def wake(self, lease: Lease) -> None:
        """Account a task that has followed another, and runs, or may do so at any time."""
        if lease.is_idle:
            lease.is_idle = False
            lease.worker.followers -= 1
            self.charge(lease.worker, lease.variant, 1)

    def charge_cores(self, worker: WorkerRecord, task_class: TaskClass, number: int) -> None:
        """Account the cores of ``number`` tasks that a worker has (negative: take them off)."""
        amount = task_class.resources.units.get(CPU, 0) * number
        if not amount:
            return
        level = worker.leased_by_level.setdefault(level_of(task_class), {})
        level[CPU] = level.get(CPU, 0) + amount
        leased = worker.load.leased
        leased[CPU] = leased.get(CPU, 0) + amount
        self._note_load(worker, is_less=number < 0)

    def unblock(self, lease: Lease, low: int, high: int) -> None:
        """Account the cores again of tasks, by offsets in the batch, that had given them back."""
        if lease.blocked is None:
            return
        found = lease.blocked.intersection(range(low - lease.low, high - lease.low))
        if found:
            lease.blocked -= found
            self.charge_cores(lease.worker, lease.variant.task_class, len(found))

    def _note_load(self, worker: WorkerRecord, *, is_less: bool) -> None:
        load = worker.load
        load.load = _fullness(load)
        if load.load > 1.0:
            self.overfull[worker] = None
        elif self.overfull:
            self.overfull.pop(worker, None)
        if worker.state == "ready":
            self.balancer.changed(load)
            if is_less:
                self.freed[worker] = None


def _fullness(load: WorkerLoad) -> float:
    """Return what is leased as a fraction of the total, the largest over the resources."""
    highest = 0.0
    for name, units in load.total.items():
        used = load.leased.get(name, 0) / units
        if used > highest:
            highest = used
    return highest


def runs(column: bytes | bytearray, low: int, high: int) -> Iterator[tuple[int, int, int]]:
    """Split ``column[low:high]`` into runs of equal bytes: (start, end, byte)."""
    start = low
    while start < high:
        byte = column[start]
        end = start + 1
        while end < high and column[end] == byte:
            end += 1
        yield start, end, byte
        start = end


def enqueue(state: SchedulerState, queue: ClassQueue) -> None:
    """Note that a queue has work to place."""
    if not queue.is_blocked and queue.queued > 0:
        heapq.heappush(state.ready, (queue.key(), queue))


def push_front(queue: ClassQueue, batch: Batch, low: int, high: int) -> None:
    """Put tasks back at the head of their queue (they have waited before)."""
    spans = queue.spans
    if spans and spans[0].batch is batch and spans[0].low == high:
        spans[0].low = low
    else:
        spans.appendleft(Span(batch, low, high))
    queue.queued += high - low


def hold_back(state: SchedulerState, part: Part, until_s: float) -> bool:
    """Have QUEUED tasks that stand in no queue wait for a time; False if that has passed."""
    if until_s <= state.now:
        return False
    for offset in range(part.low, part.high):
        part.batch.delayed[offset] = Delay(until_s, "")
        heapq.heappush(state.timers, (until_s, state.next_order, "retry", (part.batch, offset)))
        state.next_order += 1
    state.delayed += part.count
    return True


def unqueue(state: SchedulerState, part: Part) -> None:
    """Count out queued tasks that end without a lease; dispatch then skips them."""
    elsewhere = _end_delays(state, part) + _end_missing(state, part)
    part.batch.queue.queued -= part.count - elsewhere


def _end_delays(state: SchedulerState, part: Part) -> int:
    """Forget the pauses of tasks, and return how many there were."""
    delayed = part.batch.delayed
    if not delayed:
        return 0
    found = [offset for offset in range(part.low, part.high) if offset in delayed]
    for offset in found:
        del delayed[offset]
    state.delayed -= len(found)
    return len(found)


def _end_missing(state: SchedulerState, part: Part) -> int:
    """Forget what tasks lack, and return how many lacked something."""
    missing = part.batch.missing
    if not missing:
        return 0
    found = [offset for offset in range(part.low, part.high) if offset in missing]
    for offset in found:
        del missing[offset]
    state.set_aside -= len(found)
    return len(found)


def take_out(state: SchedulerState, part: Part) -> None:
    """Take queued tasks out of their queue; O(its spans), for what happens seldom."""
    batch, low, high = part.batch, part.low, part.high
    queue = batch.queue
    kept: deque[Span] = deque()
    for span in queue.spans:
        if span.batch is not batch or span.high <= low or high <= span.low:
            kept.append(span)
            continue
        if span.low < low:
            kept.append(Span(batch, span.low, low))
        if high < span.high:
            kept.append(Span(batch, high, span.high))
    queue.spans = kept
    unqueue(state, part)


def haunt(state: SchedulerState, part: Part) -> None:
    """Put tasks under a lease of the ghost: a worker that is not back yet may have them."""
    ghost = state.ghost
    assert ghost is not None
    number, batch = state.next_lease, part.batch
    state.next_lease += 1
    variant = batch.queue.variants[0]
    lease = Lease(number, batch, part.low, part.count, 0, ghost, variant, part.count)
    state.leases[number] = ghost.leases[number] = lease
    batch.lease[part.low : part.high] = array("Q", (number,)) * part.count
    state.set_state(part, TaskState.LEASED)
    state.charge(ghost, variant, part.count)
