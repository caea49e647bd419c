"""What the scheduler tells the shell to do: imperatives, carried out in list order.

Order is a promise: a ``Persist…`` command stands before every command that
tells anybody of the fact, so a shell that commits when it meets one never acks what a
power cut could take back. Commands without that dependency (`GrantLease`) may
overlap the commit. Where a command has a ``durability``, that is how safe what it says (or what it
tells) has to be, as the task was submitted; `Durability.DEFAULT` is the head's own level.
"""

from __future__ import annotations

from typing import ClassVar, Final

from rustray.common.durability import Durability
from rustray.common.errors import RustRayError
from rustray.common.records import record
from rustray.scheduler.stream_commands import (
    CreditStream,
    DeliverItems,
    ForgetItems,
    PersistItems,
)
from rustray.scheduler.tombstone_commands import ForgetExpired, PersistExpired
from rustray.scheduler.value_commands import AdoptObject, FreeObject, SurrenderObject
from rustray.task.columns import PayloadColumn
from rustray.task.frames import LeaseNews, Outcome
from rustray.task.inputs import InputValue
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from rustray.task.streams import StreamCredit
from rustray.task.views import TokenInfo

_WRITTEN: Final = Durability.PROCESS


@record
class PersistCode:
    """Commit the code of a function that accepted tasks will need."""

    code_hash: bytes
    code: bytes


@record
class PersistBatch:
    """Commit accepted tasks.

    Attributes:
        batch: Number of the batch, never used again.
        is_pushed: Outcomes go to the session by themselves.
        deadline_unix_s: When they are ended wherever they are; 0 for never.
        principal: Who handed them in.
        inputs: Ids of what each takes from others, or None.
    """

    batch: int
    prefix: bytes
    first: int
    task_class: TaskClass
    payloads: PayloadColumn
    is_pushed: bool
    deadline_unix_s: float = 0.0
    principal: str = ""
    durability: Durability = Durability.DEFAULT
    inputs: PayloadColumn | None = None


@record
class PersistDurability:
    """Commit that a batch, and all that is told of it from now on, has a higher level."""

    batch: int
    durability: Durability


@record
class PersistOutcome:
    """Commit how consecutive tasks of a batch ended.

    Attributes:
        number: Of the outcome, never used again.
        offset: Of the first task in its batch.
        is_large: Keep the results where they can be read again by this number, and answer with
            `ResultsStored`.
        arguments: Of dead letters, one a task.
        fence: Of dead letters: the highest attempt number that one of them has had.
    """

    number: int
    batch: int
    offset: int
    outcome: Outcome
    is_large: bool = False
    arguments: PayloadColumn | None = None
    fence: int = 0
    durability: Durability = Durability.DEFAULT


@record
class PersistRetry:
    """Commit that dead letters are tasks again.

    Attributes:
        number: In one order with those of outcomes: what came before is of an earlier life.
        attempts: How often each was started before.
        fence: Attempt numbers up to this one are of before.
        arguments: One a task.
    """

    number: int
    batch: int
    offset: int
    count: int
    attempts: int
    fence: int
    arguments: PayloadColumn


@record
class PersistPurge:
    """Commit that tasks of an outcome are purged; `ReplaceOutcome` follows."""

    batch: int
    offset: int
    count: int


@record
class ReplaceOutcome:
    """Commit an outcome without the bytes of tasks that are purged."""

    number: int
    payloads: PayloadColumn
    arguments: PayloadColumn


@record
class PersistCancel:
    """Commit that tasks with a worker are to be cancelled, perhaps by killing their executors."""

    batch: int
    offset: int
    count: int
    force: bool = False


@record
class PersistRerun:
    """Commit that a task's budget of re-runs has shrunk.

    Attributes:
        attempt: Number of the attempt that failed.
        reruns: Re-runs used up to now.
    """

    batch: int
    offset: int
    attempt: int
    reruns: int


@record
class PersistOomRerun:
    """Commit that a task's own budget for running out of memory has shrunk.

    Attributes:
        reruns: Re-runs used of it up to now.
    """

    batch: int
    offset: int
    reruns: int


@record
class PersistCrash:
    """Commit that a task has killed its executor, in words for whoever asks why."""

    batch: int
    offset: int
    text: str


@record
class PersistGrant:
    """Commit whether a worker may begin tasks that are to run once at most.

    Attributes:
        is_granted: False: they came back, and had not begun.
    """

    batch: int
    offset: int
    count: int
    is_granted: bool


@record
class PersistWorker:
    """Commit that a worker has joined: after a restart its return is waited for."""

    worker_id: str


@record
class ForgetWorker:
    """Drop a worker that has left or was lost."""

    worker_id: str


@record
class ForgetResults:
    """Drop the results of an outcome that has expired; that its tasks have ended stays known."""

    number: int
    is_large: bool = False
    durability: Durability = Durability.DEFAULT


@record
class ForgetArguments:
    """Drop the arguments of a batch whose tasks have all ended.

    Attributes:
        digests: Of each task's arguments, one after the other, where later ones are compared.
    """

    batch: int
    digests: bytes
    durability: Durability = Durability.DEFAULT


@record
class ForgetBatch:
    """Drop a batch whose tasks have ended and whose outcomes have expired, with all about it."""

    batch: int
    durability: Durability = Durability.DEFAULT


@record
class ForgetCode:
    """Drop a function's code, which no task needs any more."""

    code_hash: bytes


@record
class AcceptTasks:
    """Tell the submitter that these tasks are safe, at this level."""

    prefix: bytes
    first: int
    count: int
    deduplicated: bool = False
    durability: Durability = Durability.FULL


@record
class RejectTasks:
    """Tell the submitter why these tasks were refused."""

    durability: ClassVar[Durability] = Durability.FULL

    prefix: bytes
    first: int
    count: int
    error: RustRayError


@record
class RefuseLetters:
    """Tell who asked why dead letters cannot be retried."""

    prefix: bytes
    first: int
    count: int
    error: RustRayError


@record
class DeliverOutcome:
    """Send an outcome to the session that submitted the tasks, and to whoever waits for them."""

    prefix: bytes
    outcome: Outcome
    is_pushed: bool
    durability: Durability = Durability.FULL


@record
class ReportUnknown:
    """Tell a client that came back that these tasks are not known here."""

    durability: ClassVar[Durability] = Durability.FULL

    prefix: bytes
    first: int
    count: int


@record
class PublishEvents:
    """Note that consecutive tasks entered a state, for subscribers.

    Attributes:
        news: What the one task said in that state; None if it has entered it.
        durability: The tasks' level.
    """

    prefix: bytes
    first: int
    count: int
    state: TaskState
    attempt: int
    worker_id: str
    function: str
    news: LeaseNews | None = None
    durability: Durability = Durability.FULL


@record
class PersistEvents:
    """Commit events under their numbers; the shell's own, for subscribers that come back.

    Attributes:
        revision: Number of the first.
        time_unix_s: When they happened.
    """

    revision: int
    time_unix_s: float
    events: PublishEvents

    @property
    def durability(self) -> Durability:
        """How safe they have to be: in order with all others, so none before it is written."""
        return max(self.events.durability, _WRITTEN)


@record
class PersistToken:
    """Commit what is known of a token; the shell's own."""

    token: TokenInfo


@record
class PersistShared:
    """Commit a row of locks, semaphores, events or queues, in place of the one under its key."""

    key: bytes
    value: bytes


@record
class ForgetShared:
    """Delete such a row."""

    key: bytes


@record
class ForgetTokens:
    """Drop what is known of the tokens that ended before this time; the shell's own."""

    ended_unix_s: float


@record
class ForgetEvents:
    """Drop the events before a revision."""

    revision: int


@record
class GrantLease:
    """Give consecutive tasks to a worker; see `rustray.task.frames.LeaseGrant`.

    Attributes:
        due_s: Monotonic time at which they will be ended, None for never.
        inputs: Of a class that has inputs: what is to be joined to each task's arguments.
        streams: How far those of its streams have come that earlier attempts have begun.
        follows: Lease and offset of the task whose result the only one of them takes; (0, 0) for
            none.
    """

    worker_id: str
    lease: int
    task_class: TaskClass
    attempt: int
    prefix: bytes
    first: int
    payloads: PayloadColumn
    due_s: float | None = None
    inputs: tuple[tuple[InputValue, ...], ...] = ()
    streams: tuple[StreamCredit, ...] = ()
    follows: tuple[int, int] = (0, 0)


@record
class CancelLease:
    """Tell a worker to stop tasks of a lease."""

    worker_id: str
    lease: int
    offset: int
    count: int
    force: bool


@record
class RecallLease:
    """Ask a worker for tasks of a lease that it has not started."""

    worker_id: str
    lease: int
    offset: int
    count: int


@record
class DrainWorker:
    """Tell a worker to leave in order."""

    worker_id: str


@record
class CloseSession:
    """End a worker's session; it will register again and both sides compare notes."""

    worker_id: str
    session: int
    reason: str


@record
class RefuseWorker:
    """Refuse a registration."""

    worker_id: str
    session: int
    error: RustRayError


JournalCommand = (
    PersistBatch
    | PersistDurability
    | PersistOutcome
    | PersistRetry
    | PersistPurge
    | ReplaceOutcome
    | PersistCancel
    | PersistRerun
    | PersistOomRerun
    | PersistCrash
    | PersistGrant
    | PersistCode
    | PersistWorker
    | ForgetResults
    | ForgetArguments
    | ForgetBatch
    | ForgetCode
    | ForgetWorker
    | PersistEvents
    | ForgetEvents
    | PersistToken
    | ForgetTokens
    | PersistShared
    | ForgetShared
    | PersistItems
    | ForgetItems
    | PersistExpired
    | ForgetExpired
)
"""What a journal takes: what `StateRecovered` brings back, and what was told of it."""

Command = (
    JournalCommand
    | AcceptTasks
    | RejectTasks
    | RefuseLetters
    | DeliverOutcome
    | DeliverItems
    | CreditStream
    | ReportUnknown
    | PublishEvents
    | GrantLease
    | CancelLease
    | RecallLease
    | DrainWorker
    | CloseSession
    | FreeObject
    | SurrenderObject
    | AdoptObject
    | RefuseWorker
)
