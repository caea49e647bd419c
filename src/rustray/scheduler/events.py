"""What the head's shell tells the scheduler: facts, in the past tense."""

from __future__ import annotations

from rustray.common.durability import Durability
from rustray.common.records import record
from rustray.task.columns import PayloadColumn
from rustray.task.frames import (
    CancelRequest,
    HeldRange,
    LeaseNews,
    LeaseOutcome,
    LeaseRange,
    Outcome,
    Surrendered,
)
from rustray.task.spec import TaskClass
from rustray.task.streams import LeaseItems, StreamRead
from rustray.task.views import WorkerInfo


@record
class TasksSubmitted:
    """A client handed in consecutive tasks of one class.

    Attributes:
        prefix: First 10 bytes of their ids.
        first: Sequence of the first.
        task_class: What they are; validated.
        payloads: Arguments, one item a task, at least one.
        is_pushed: Whether outcomes go to the session of this prefix by themselves.
        uses_default_resources: The caller said nothing of resources.
        deadline_unix_s: When they are ended wherever they are, as the caller said it; 0 for never.
        time_left_s: How long that is from now on, 0 or less if it is over; None for never.
        rejects_known: Tasks that are there already are an error, not the answer.
        principal: Who hands them in: the subject of a token.
        durability: The level that is asked for.
        horizon: Of what an attempt of a task hands in: number of the outcome that came next when
            the attempt began. What an earlier attempt had handed in, and had ended before without a
            value, is not taken for the same.
        inputs: Ids of what each task takes from others, if its class says that it does.
        near: The worker of the task that hands them in; "" where that is no task.
    """

    prefix: bytes
    first: int
    task_class: TaskClass
    payloads: PayloadColumn
    is_pushed: bool
    uses_default_resources: bool = False
    deadline_unix_s: float = 0.0
    time_left_s: float | None = None
    rejects_known: bool = False
    principal: str = ""
    durability: Durability = Durability.DEFAULT
    horizon: int = 0
    inputs: PayloadColumn | None = None
    near: str = ""


@record
class CodeReceived:
    """A client sent the code of a function: SHA-256 and cloudpickle bytes."""

    code_hash: bytes
    code: bytes


@record
class CancelRequested:
    """Somebody who may wants tasks stopped."""

    request: CancelRequest


@record
class OutcomesDelivered:
    """The client has confirmed outcomes, so they go first when memory is short."""

    prefix: bytes
    first: int
    count: int


@record
class ResultsStored:
    """The shell has large results safe, and can read them again.

    Attributes:
        numbers: Of their outcomes; see `PersistOutcome`.
    """

    numbers: tuple[int, ...]


@record
class StorageChanged:
    """The disk under the journal has become better or worse.

    Attributes:
        is_full: Less than the reserve is free.
        is_stalled: More waits to be committed than may wait.
    """

    is_full: bool
    is_stalled: bool


@record
class FollowRequested:
    """A client came back and asks for tasks ``first`` to ``first + count - 1`` of its session."""

    prefix: bytes
    first: int
    count: int


@record
class ItemsRead:
    """The consumer of a stream has come so far; see `rustray.task.streams.StreamRead`."""

    prefix: bytes
    read: StreamRead


@record
class ClientLeft:
    """The stream of a session has ended; the client may come back."""

    prefix: bytes


@record
class LetterRange:
    """Consecutive tasks of a session, some of which may be dead letters."""

    prefix: bytes
    first: int
    count: int


@record
class RetryRequested:
    """Somebody wants dead letters to be tasks again.

    Attributes:
        horizon: Number of an outcome; what ended later is left as it is, so that the same request
            can be made again, and one for all ends.
    """

    ranges: tuple[LetterRange, ...]
    horizon: int


@record
class PurgeRequested:
    """Somebody wants dead letters to be forgotten; see `RetryRequested`."""

    ranges: tuple[LetterRange, ...]
    horizon: int


@record
class WorkerJoined:
    """A worker registered (anew, or again after a broken connection)."""

    info: WorkerInfo
    session: int


@record
class WorkerReported:
    """A frame of a worker's stream; the first of a session carries what it holds."""

    worker_id: str
    session: int
    held: tuple[HeldRange, ...] | None
    outcomes: tuple[LeaseOutcome, ...]
    returned: tuple[LeaseRange, ...]
    started: tuple[LeaseRange, ...]
    is_draining: bool
    has_drained: bool
    news: tuple[LeaseNews, ...] = ()
    blocked: tuple[LeaseRange, ...] = ()
    resumed: tuple[LeaseRange, ...] = ()
    items: tuple[LeaseItems, ...] = ()


@record
class HeartbeatReceived:
    """A worker is alive.

    Attributes:
        held: Lease number and unfinished count; None if frames were under way, so that
            the list cannot be compared.
        running: Tasks running now, as the worker says.
        is_full: It starts nothing, for want of room for results that were not taken from it.
    """

    worker_id: str
    session: int
    held: tuple[tuple[int, int], ...] | None
    running: int
    is_full: bool = False


@record
class WorkerDisconnected:
    """A worker's stream ended without a goodbye; its leases run on."""

    worker_id: str
    session: int


@record
class WorkerDied:
    """It is certain that the worker's process is gone."""

    worker_id: str
    session: int


@record
class DrainRequested:
    """An operator wants a worker to leave in order."""

    worker_id: str


@record
class RecoveredBatch:
    """A batch as the journal has it; see `PersistBatch`.

    Attributes:
        payloads: None once all its tasks have ended.
        digests: Of each task's arguments; None where nobody will compare them.
        age_s: Seconds since it was accepted.
        deadline_unix_s, time_left_s, principal, inputs: See `TasksSubmitted`.
        durability: The level that it was accepted at; DEFAULT where an older head has not noted it.
    """

    batch: int
    prefix: bytes
    first: int
    count: int
    task_class: TaskClass
    payloads: PayloadColumn | None
    digests: list[bytes] | None
    is_pushed: bool
    age_s: float
    deadline_unix_s: float = 0.0
    time_left_s: float | None = None
    principal: str = ""
    durability: Durability = Durability.DEFAULT
    inputs: PayloadColumn | None = None


@record
class RecoveredOutcome:
    """An outcome as the journal has it; see `PersistOutcome`.

    Attributes:
        count: How many tasks ended so.
        outcome: Without payloads if the results have expired; with a `StoredColumn` if they are
            large.
        age_s: Seconds since it arrived.
        arguments: Of dead letters.
        fence: Likewise.
    """

    number: int
    batch: int
    offset: int
    count: int
    outcome: Outcome
    is_expired: bool
    age_s: float
    arguments: PayloadColumn | None = None
    fence: int = 0


@record
class RecoveredRetry:
    """A retry on request as the journal has it; see `PersistRetry`.

    Attributes:
        arguments: None once all tasks of the batch have ended again.
        age_s: Seconds since it was asked for.
    """

    number: int
    batch: int
    offset: int
    count: int
    attempts: int
    fence: int
    arguments: PayloadColumn | None
    age_s: float


@record
class RecoveredItems:
    """Items of a stream as the journal has them; see `PersistItems`."""

    batch: int
    offset: int
    first: int
    payloads: PayloadColumn


@record
class StateRecovered:
    """A head has started with the journal of an earlier one; the first event, if it comes at all.

    Attributes:
        batches: In order of acceptance.
        outcomes: In order of arrival.
        cancels: (batch, offset, count, by force) of tasks that are to be cancelled.
        reruns: (batch, offset, attempt, reruns), the latest of each task last.
        oom_reruns: (batch, offset, re-runs for want of memory).
        crashes: (batch, offset, text) of executors that tasks have killed, in order.
        grants: (batch, offset, count, is granted) of tasks that run once at most, in order.
        codes: Hash to code.
        workers: Who had joined, and may hold tasks still.
        grace_s: How long they have to come back.
        starts: How many heads have started with this journal, the present one included.
        retries: Of dead letters, by number.
        purges: (batch, offset, count) of dead letters that are to be forgotten.
        is_clock_sure: The wall clock has gone on from times in the journal: ages are right.
        items: Of streams, in order of arrival.
        reads: (batch, offset, consumed) of streams.
        expired: (session, last sequence number, whose) of tasks that are past; the latest last.
    """

    batches: tuple[RecoveredBatch, ...]
    outcomes: tuple[RecoveredOutcome, ...]
    cancels: tuple[tuple[int, int, int, int], ...]
    reruns: tuple[tuple[int, int, int, int], ...]
    oom_reruns: tuple[tuple[int, int, int], ...]
    crashes: tuple[tuple[int, int, str], ...]
    grants: tuple[tuple[int, int, int, int], ...]
    codes: tuple[tuple[bytes, bytes], ...]
    workers: tuple[str, ...]
    grace_s: float
    starts: int
    retries: tuple[RecoveredRetry, ...] = ()
    purges: tuple[tuple[int, int, int], ...] = ()
    is_clock_sure: bool = False
    items: tuple[RecoveredItems, ...] = ()
    reads: tuple[tuple[int, int, int], ...] = ()
    expired: tuple[tuple[bytes, int, str], ...] = ()


@record
class ValueWanted:
    """Somebody wants a value that has stayed with its worker, and cannot have it there.

    Attributes:
        object_id: Its name there; nothing happens if it is another one by now.
    """

    prefix: bytes
    sequence: int
    object_id: str


@record
class ValuesSurrendered:
    """A worker has sent values that it was asked for, or says why not."""

    worker_id: str
    session: int
    values: tuple[Surrendered, ...]


@record
class ResultsReleased:
    """A session does not need consecutive results any more; only those count that are placed."""

    prefix: bytes
    first: int
    count: int


@record
class TimePassed:
    """`Scheduler.next_deadline` has been reached."""


Event = (
    TasksSubmitted
    | CodeReceived
    | CancelRequested
    | RetryRequested
    | PurgeRequested
    | OutcomesDelivered
    | ResultsStored
    | StorageChanged
    | FollowRequested
    | ItemsRead
    | ClientLeft
    | ValueWanted
    | ValuesSurrendered
    | ResultsReleased
    | WorkerJoined
    | WorkerReported
    | HeartbeatReceived
    | WorkerDisconnected
    | WorkerDied
    | StateRecovered
    | DrainRequested
    | TimePassed
)
