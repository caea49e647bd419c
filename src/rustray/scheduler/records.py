"""The scheduler's mutable records; private to this package.

The unit is the batch: consecutive tasks of one class, as a client handed them in. What
differs from task to task stands in columns (one byte of state, eight of lease), what
rarely differs in sparse dicts, so that a queued task costs some ten bytes beside its
payload, and a thousand tasks change state in one slice assignment.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from rustray.common.durability import Durability
from rustray.common.records import record
from rustray.scheduler.dependants import NOBODY, Dependants
from rustray.scheduler.load_balancer import WorkerLoad
from rustray.task.columns import PayloadColumn
from rustray.task.place import Place
from rustray.task.selectors import Selector
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from rustray.task.views import WorkerInfo

Level = tuple[int, int]
"""Priority and depth: what is begun within a task goes before what nobody waits for yet, or tasks
that wait for their own would pile up."""
QueueKey = tuple[int, int, int, int]

DIGEST_BYTES = 16
"""Of what is kept of a task's arguments, to compare them with others."""
QUEUED_BYTE = bytes([TaskState.QUEUED])
LEASED_BYTE = bytes([TaskState.LEASED])


def level_of(task_class: TaskClass) -> Level:
    """Return the level of a class's tasks."""
    return (task_class.priority, task_class.depth)


@dataclass(slots=True, eq=False)
class StoredOutcome:
    """How consecutive tasks of a batch ended; kept until its time or the memory is up.

    Attributes:
        number: Order of arrival over the whole head.
        offset: Position of the first in the batch.
        payloads: Encoded values or failures, one a task.
        finished_at_s: Monotonic time.
        is_large: The shell keeps the payloads; a `StoredColumn` once it has them safe.
        index: Its place in the batch's ``outcomes``.
        live: Tasks whose present outcome it is: not those retried or purged since.
        arguments: Of dead letters and of values that stay with a worker, one a task, to run again.
        pins: Tasks that have not ended and take one of these results: it is kept as long.
        is_overdue: It would have gone but for the pins, and stands on no shelf's queue.
        fence: Of dead letters: the highest attempt number that one of them has had.
        is_delivered: The client has confirmed it.
        is_evicted: The payloads are dropped already.
        item_bytes: Of items that its tasks have yielded, and nobody has consumed.
        place: Where its value is, which has stayed with its worker; then it is of one task.
        has_stayed: There was such a place; it is on a shelf of its own.
        is_lost: That worker is lost, or has let go of the value.
        is_released: It goes as soon as no task takes it, and nothing made of it may be lost.
        trouble: Why its worker cannot send it here, though it has it; "" while it may.
        is_wanted: Somebody has asked for the value, and could not have it there.
    """

    number: int
    batch: Batch
    offset: int
    state: TaskState
    payloads: PayloadColumn
    worker_id: str
    attempts: int
    finished_at_s: float
    index: int
    live: int
    is_large: bool = False
    arguments: PayloadColumn | None = None
    fence: int = 0
    is_delivered: bool = False
    is_evicted: bool = False
    pins: int = 0
    is_overdue: bool = False
    item_bytes: int = 0
    place: Place | None = None
    has_stayed: bool = False
    is_lost: bool = False
    is_wanted: bool = False
    is_released: bool = False
    trouble: str = ""


@record
class Delay:
    """A pause before another attempt, until monotonic time ``due_s``.

    Attributes:
        reason: What was raised; "" where an earlier attempt of an exclusive task may still run.
    """

    due_s: float
    reason: str


@dataclass(slots=True, eq=False)
class Pending:
    """What a principal, or the whole head, has accepted and not ended.

    Attributes:
        tasks: How many.
        bytes: Their arguments; those of a batch count until its last task has ended.
        ended: How many have ended.
        pace: Ends a second of late; with ``marked_at_s`` and ``marked_ended``, see `backpressure`.
    """

    tasks: int = 0
    bytes: int = 0
    ended: int = 0
    pace: float = 0.0
    marked_at_s: float = 0.0
    marked_ended: int = 0


@dataclass(slots=True, eq=False)
class Shelf:
    """Outcomes of one kind that are kept.

    Attributes:
        limit_bytes: How many bytes there may be.
        queue: All of them, in order of time.
        delivered: Those that their client has; they go first.
        bytes: What is there.
        spent: How many in ``queue`` are evicted already.
    """

    limit_bytes: int
    queue: deque[StoredOutcome] = field(default_factory=deque)
    delivered: deque[StoredOutcome] = field(default_factory=deque)
    bytes: int = 0
    spent: int = 0


@dataclass(slots=True, eq=False)
class Revived:
    """What differs for those tasks of a batch that were retried on request: columns, 0 for others.

    Attributes:
        since_s: Monotonic time of the last request; limits of time count from there.
        attempts: How often it was started before.
        fence: Attempt numbers up to this one are of before.
    """

    since_s: array[float]
    attempts: array[int]
    fence: array[int]

    @classmethod
    def of(cls, count: int) -> Revived:
        """Return columns for a batch of which nothing was retried yet."""
        zeros = bytes(4 * count)
        return cls(array("d", bytes(8 * count)), array("I", zeros), array("I", zeros))


@dataclass(slots=True, eq=False)
class Stream:
    """What one generator task has yielded.

    Attributes:
        items: Those that are not consumed, in order and without a gap: (index, payloads).
        have: Index of the next item that may come.
        consumed: Items that the consumer is done with; not above ``have``.
        bytes: Of ``items``.
        has_left: The consumer wants no more.
    """

    items: deque[tuple[int, PayloadColumn]] = field(default_factory=deque)
    have: int = 0
    consumed: int = 0
    bytes: int = 0
    has_left: bool = False


@dataclass(slots=True, eq=False)
class Batch:
    """Consecutive tasks of one class.

    Attributes:
        number: Order of acceptance over the whole head.
        prefix: First 10 bytes of the task ids.
        first: Sequence of the first task.
        count: Number of tasks.
        queue: The class queue they belong to.
        payloads: Arguments; None once every task has ended. Where tasks were retried on request,
            it may hold nothing for the others.
        is_pushed: Outcomes go to the session by themselves.
        state: One `TaskState` byte a task.
        lease: A task's lease number while a worker has it; its index in ``outcomes`` once
            it has ended; 0 while it is queued.
        grants: Offset to number of leases so far, where that is not 0; the attempt number.
        reruns: Offset to number of re-runs after a failure, where that is not 0.
        failed: Offset to the last attempt that has failed and was charged, where there is one.
        oom_reruns: How many of these were for want of memory, where that is not 0.
        outcomes: How they ended, in order of arrival; None where expired.
        unfinished: Tasks that have not ended.
        kept: Outcomes that have not expired.
        accepted_at_s: Monotonic time.
        begun: Tasks of ``max_retries=0`` that a worker may have begun under an earlier head; None:
            there never were any.
        lost_attempts: Attempts that may have been under way when a head died.
        digests: Of each task's arguments, where the caller may have chosen the ids.
        is_overdue: Its queue limit has passed: what comes back unstarted ends.
        delayed: Offset to when and why, for QUEUED tasks that pause before another attempt and
            stand in no queue.
        deadline_s: Monotonic time at which it is ended wherever it is, or None.
        crashes: Offset to how it has killed its executors, in words.
        revived: About tasks that were retried on request; None while there are none.
        forced: Tasks whose executor is to be killed, for they were cancelled by force.
        principal: Who handed it in: the subject of a token.
        near: The worker of the task that handed it in; "" where that is none, or not known now.
        durability: How safe it is before anything is told of it.
        inputs: Ids of what each task takes from others; None where none takes anything.
        missing: Offset to how many of these are not there yet, for QUEUED tasks that stand in no
            queue for that reason; see `inputs`.
        dependants: Which tasks wait for which of these.
        streams: Offset to what a generator task has yielded, where that is something.
        released: Tasks whose values nobody needs but those that take them; None: none yet.
        lacks: Offset, and the id of a task whose value it takes, to how often it could not have it.
        known_until_s, is_buried: See `tombstones`.
        heirs: Offset to how many living values that stay with workers were made of its own.
        left_s: Of streams: since when nobody reads them, as monotonic time; None while a session
            of theirs is there.
    """

    number: int
    prefix: bytes
    first: int
    count: int
    queue: ClassQueue
    payloads: PayloadColumn | None
    is_pushed: bool
    accepted_at_s: float
    state: bytearray = field(default_factory=bytearray)
    lease: array[int] = field(default_factory=lambda: array("Q"))
    grants: dict[int, int] = field(default_factory=dict)
    reruns: dict[int, int] = field(default_factory=dict)
    failed: dict[int, int] = field(default_factory=dict)
    oom_reruns: dict[int, int] = field(default_factory=dict)
    outcomes: list[StoredOutcome | None] = field(default_factory=list)
    unfinished: int = 0
    kept: int = 0
    lost_attempts: int = 0
    begun: set[int] | None = None
    digests: list[bytes] | None = None
    is_overdue: bool = False
    delayed: dict[int, Delay] = field(default_factory=dict)
    crashes: dict[int, list[str]] = field(default_factory=dict)
    forced: frozenset[int] = frozenset()
    deadline_s: float | None = None
    revived: Revived | None = None
    principal: str = ""
    near: str = ""
    durability: Durability = Durability.FULL
    inputs: PayloadColumn | None = None
    missing: dict[int, int] = field(default_factory=dict)
    dependants: Dependants[Batch] = NOBODY
    streams: dict[int, Stream] = field(default_factory=dict)
    left_s: float | None = None
    released: set[int] | None = None
    lacks: dict[int, dict[str, int]] = field(default_factory=dict)
    heirs: dict[int, int] = field(default_factory=dict)
    known_until_s: float = -inf
    is_buried: bool = False

    def add_dependant(self, place: int, batch: Batch, offset: int) -> None:
        """Note that a task of another batch waits for one of these."""
        if self.dependants is NOBODY:
            self.dependants = Dependants()
        self.dependants.add(place, batch, offset)

    def release(self, offset: int) -> None:
        """Note that nobody needs this value but those that take it."""
        if self.released is None:
            self.released = set()
        self.released.add(offset)

    def is_past(self, offset: int, limit_s: float, now: float) -> bool:
        """Whether a limit of time that counts from a task's acceptance, or retry, has passed."""
        since_s = self.revived.since_s[offset] if self.revived is not None else 0.0
        return now >= (since_s or self.accepted_at_s) + limit_s

    def __post_init__(self) -> None:
        self.state = bytearray(self.count)
        self.lease = array("Q", bytes(8 * self.count))
        self.unfinished = self.count

    @property
    def due_s(self) -> float | None:
        """When what has not ended is ended, as monotonic time; None for never."""
        limit_s = self.queue.task_class.total_timeout_s
        limits = [] if self.deadline_s is None else [self.deadline_s]
        if limit_s:
            limits.append(self.accepted_at_s + limit_s)
        return min(limits, default=None)

    def due_of(self, low: int, high: int) -> float | None:
        """When the last of some tasks is ended: `due_s`, or later where they were retried."""
        if self.revived is None:
            return self.due_s
        limit_s = self.queue.task_class.total_timeout_s
        limits = [] if self.deadline_s is None else [self.deadline_s]
        if limit_s:
            limits.append(max(self.accepted_at_s, *self.revived.since_s[low:high]) + limit_s)
        return min(limits, default=None)


@record
class Part:
    """Offsets ``low`` to ``high - 1`` of a batch, all in one state."""

    batch: Batch
    low: int
    high: int
    state: TaskState

    @property
    def count(self) -> int:
        """Number of tasks."""
        return self.high - self.low

    def singles(self) -> list[Part]:
        """Split into parts of one task."""
        return [Part(self.batch, i, i + 1, self.state) for i in range(self.low, self.high)]


@dataclass(slots=True, eq=False)
class Span:
    """Offsets ``low`` to ``high - 1`` of a batch, waiting in a class queue."""

    batch: Batch
    low: int
    high: int


@dataclass(slots=True, eq=False)
class Variant:
    """One way to run the tasks of a queue; most have one only.

    Attributes:
        task_class: What workers are told of it; the queue's own class where there is one way.
        preference: What labels of a worker had better be: this variant is for those where they
            are, and a later one for the others.
        prefetches: Whether a worker may be given more than it can run now.
        shape: What decides whether a worker can run it: equal shapes fit alike.
        room_of: What the load balancer asks about a worker.
        capacity: Worker id to how many tasks fit into it empty (0: it cannot run them);
            filled on demand.
        level: Of its tasks.
    """

    task_class: TaskClass
    preference: Selector
    shape: tuple[object, ...]
    prefetches: bool = True
    room_of: Callable[[WorkerLoad], int] | None = None
    capacity: dict[str, int] = field(default_factory=dict)
    level: Level = field(init=False)

    def __post_init__(self) -> None:
        self.level = level_of(self.task_class)


@dataclass(slots=True, eq=False)
class ClassQueue:
    """All waiting tasks of one class, first come first served.

    Attributes:
        spans: What waits; a task in it may have been cancelled meanwhile (its state says).
        queued: Tasks that really wait.
        mean_run_s: Moving average of the run time; below 0 while not known.
        is_blocked: No worker had room the last time; one that gets room looks itself.
        variants: How they may run; the first for which a worker has room.
        shape: What decides where they can run: queues of equal shapes fit alike.
        level: Of its tasks.
    """

    task_class: TaskClass
    order: int
    variants: tuple[Variant, ...]
    shape: tuple[object, ...]
    spans: deque[Span] = field(default_factory=deque)
    queued: int = 0
    mean_run_s: float = -1.0
    is_blocked: bool = False
    batches: int = 0
    level: Level = field(init=False)

    def __post_init__(self) -> None:
        self.level = level_of(self.task_class)

    def key(self) -> QueueKey:
        """Sort key: higher priority first, then what was handed in by tasks, then the oldest."""
        oldest = self.spans[0].batch.number if self.spans else 0
        return (-self.task_class.priority, -self.task_class.depth, oldest, self.order)


@dataclass(slots=True, eq=False)
class Lease:
    """A grant of consecutive tasks of one batch, under one attempt number, to one worker.

    Attributes:
        number: The fence; never reused.
        low: Offset of its first task in the batch.
        variant: How they run.
        remaining: Tasks of it that have neither ended nor been given back.
        horizon: Number of the outcome that came next when it was granted, or taken over.
        blocked: Offsets in it that wait for tasks of their own and hold no core; None for none.
        is_behind: It is of one task, which follows another: see `following`.
        is_idle: What that makes is not there yet, and the task holds nothing of its worker.
        is_adopted: Nobody knew it, and its worker brought it back: see `recovery.adopt`.
        is_halfway: With its end half of the chain that was leased at once is done: more may follow.
        followers: Leases of those that follow tasks of this one; None for none.
    """

    number: int
    batch: Batch
    low: int
    count: int
    attempt: int
    worker: WorkerRecord
    variant: Variant
    remaining: int
    horizon: int = 0
    blocked: set[int] | None = None
    is_behind: bool = False
    is_idle: bool = False
    is_adopted: bool = False
    is_halfway: bool = False
    followers: list[Lease] | None = None


@dataclass(slots=True, eq=False)
class WorkerRecord:
    """A worker that holds a session or whose leases still run.

    Attributes:
        info: As it registered.
        session: Number of its present session.
        load: What the load balancer sees.
        state: "joining" (registered, stream not open), "ready", "disconnected" or "draining".
        expires_at_s: End of its leases unless a heartbeat renews them.
        leases: Number to lease, oldest first.
        running: Lease number to offsets that the worker reported as started.
        leased_by_level: Level to units leased, for windows that ignore lower ones.
        recall_until_s: No further take-back before this time.
        is_thought_of: There is a timer to look again whether it has too little to do.
        is_lost: Its tasks are being given to others.
        is_doubted: Its leases ran out while the head was frozen, and it is looked at once more.
        look_s: When it is looked at next.
        finished: Tasks it has ended.
        functions: Names it offers.
        is_full: It starts nothing until the head has taken results from it.
        followers: Leases of its tasks that wait for others of it, see `following`.
    """

    info: WorkerInfo
    session: int
    load: WorkerLoad
    state: str
    expires_at_s: float
    last_seen_s: float
    functions: frozenset[str]
    leases: dict[int, Lease] = field(default_factory=dict)
    running: dict[int, set[int]] = field(default_factory=dict)
    leased_by_level: dict[Level, dict[str, int]] = field(default_factory=dict)
    recall_until_s: float = 0.0
    is_thought_of: bool = False
    is_doubted: bool = False
    look_s: float = 0.0
    is_lost: bool = False
    finished: int = 0
    reported_running: int = 0
    is_full: bool = False
    followers: int = 0

    @property
    def worker_id(self) -> str:
        """The worker's id."""
        return self.info.worker_id


@dataclass(slots=True, eq=False)
class SessionTasks:
    """The batches of one id prefix, by first sequence (two lists in step, for bisection)."""

    firsts: list[int] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
