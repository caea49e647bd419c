"""What a head answers, in the words of the domain.

`HeadApi` has two implementations: ``head/service.py`` (the head itself) and
``rpc/head_client.py`` (a client's stub over gRPC). An embedded cluster hands the first to its
client directly; nobody else can tell the difference.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rustray.common.durability import Durability
from rustray.common.errors import RustRayError
from rustray.coordination.messages import Answer, Request
from rustray.objects.segment import Segment
from rustray.task.output import LogRecord
from rustray.task.place import Place
from rustray.task.result import TaskEvent
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from rustray.task.views import (
    ClusterStatus,
    DeadLetter,
    Explanation,
    Heartbeat,
    HeartbeatReply,
    ObjectTotal,
    ObjectView,
    OfferedFunction,
    Registered,
    TaskPage,
    TokenInfo,
    WorkerInfo,
    WorkerView,
)

if TYPE_CHECKING:
    from rustray.security.enrollment import Enrollment


@dataclass(frozen=True, slots=True)
class SubmitItem:
    """One task of a unary submit.

    Attributes:
        prefix: First 10 bytes of its id.
        sequence: Last 48 bits of its id.
        task_class: What it is.
        payload: Encoded arguments.
        uses_default_resources: The caller named no resources: the function's own apply.
        uses_default_retries: The caller named no max_retries: the head's default applies.
        deadline_unix_s: When it is ended wherever it is; 0 for never.
        idempotency_key: Stands for its id, if not "": the head makes one of it.
        rejects_duplicate: A task that exists already under the id is an error, not the answer.
        durability: How safe it has to be before its acceptance and its outcome are told.
    """

    prefix: bytes
    sequence: int
    task_class: TaskClass
    payload: bytes
    uses_default_resources: bool = False
    uses_default_retries: bool = False
    deadline_unix_s: float = 0.0
    idempotency_key: str = ""
    rejects_duplicate: bool = False
    durability: Durability = Durability.DEFAULT


@dataclass(frozen=True, slots=True)
class SubmitVerdict:
    """What became of one `SubmitItem`.

    Attributes:
        task_id: 32 hex digits.
        error: None if it was accepted.
        deduplicated: The same task had been accepted before.
        durability: The level that it is accepted at: what was asked for, or more.
    """

    task_id: str
    error: RustRayError | None = None
    deduplicated: bool = False
    durability: Durability = Durability.DEFAULT


@dataclass(frozen=True, slots=True)
class RawResult:
    """A task's outcome before it is decoded.

    Attributes:
        codec: `Codec` value of the payload.
        payload: Encoded value, or encoded `FailureInfo`; b"" while not terminal.
        progress: How far the task said that it is, 0 to 1; None if it did not, or has ended.
        message: What it said beside that, or "".
        is_placed: The payload is a `rustray.task.place.Place`, packed: the value stays there.
        object_token: Opens it.
        num_returns: How many values the task returns; several are joined in the payload.
    """

    task_id: str
    state: TaskState
    codec: int
    payload: bytes
    worker_id: str
    attempts: int
    progress: float | None = None
    message: str = ""
    is_placed: bool = False
    object_token: str = ""
    num_returns: int = 1


@dataclass(frozen=True, slots=True)
class CancelVerdict:
    """What a cancel did.

    Attributes:
        state: After it (CANCELLING until the worker confirms); None beside an error.
    """

    task_id: str
    state: TaskState | None
    error: RustRayError | None = None


@dataclass(frozen=True, slots=True)
class TaskHolder:
    """An attempt of a task that holds, or wants to hold, something of `rustray.coordination`.

    Attributes:
        worker_id: Where it runs.
        lease: Number of its lease.
        offset: Its position in that.
    """

    worker_id: str
    lease: int
    offset: int


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which dead letters: those named, or all that fit; an empty field means all.

    Attributes:
        task_ids: If there are any, no other field is looked at.
        states: Of FAILED, TIMED_OUT and POISONED.
        min_age_s: Only those that ended at least so long ago.
    """

    task_ids: tuple[str, ...] = ()
    states: tuple[TaskState, ...] = ()
    function: str = ""
    min_age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LetterCursor:
    """How far a request that takes several calls has come.

    Attributes:
        after: Position behind the last letter that was looked at; "" at the start.
        horizon: Letters of after the first call are left alone; 0 in the first call.
    """

    after: str = ""
    horizon: int = 0


@dataclass(frozen=True, slots=True)
class LetterVerdict:
    """What became of one task that was named in a retry or purge.

    Attributes:
        state: After the call; None: no such task is known.
        is_changed: Whether it was a dead letter, and is none any more.
        error: Why it could not be done; None also for a task that is no dead letter.
    """

    task_id: str
    state: TaskState | None
    is_changed: bool
    error: RustRayError | None = None


@dataclass(frozen=True, slots=True)
class LetterAnswer:
    """What one call of retry or purge did.

    Attributes:
        verdicts: One for each task that was named, in order.
        changed: How many dead letters were retried or purged.
        horizon: For `LetterCursor`: what makes the same call do nothing twice.
        error: The first reason why others were not.
        next: What to pass to go on; None at the end.
    """

    verdicts: tuple[LetterVerdict, ...]
    changed: int
    horizon: int
    error: RustRayError | None = None
    next: LetterCursor | None = None


@dataclass(frozen=True, slots=True)
class LetterPage:
    """Some dead letters, in order of their end (or as they were named).

    Attributes:
        next: What to pass to go on; None at the end.
    """

    letters: tuple[DeadLetter, ...]
    next: LetterCursor | None = None


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events a subscriber wants; an empty field means all.

    Attributes:
        cursor: Revision after which to start; -1 means from now on.
    """

    task_ids: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    states: tuple[TaskState, ...] = ()
    cursor: int = -1


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks to list; an empty field means all."""

    states: tuple[TaskState, ...] = ()
    function: str = ""
    worker_id: str = ""


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which output of a task.

    Attributes:
        attempt: Of which attempt; 0 for the newest one.
        cursor: Bytes of that attempt's output that are known already.
        follow: Go on until the task has ended.
        goes_on: Where an attempt is named: after it come those that followed, or will follow.
    """

    task_id: str
    attempt: int = 0
    cursor: int = 0
    follow: bool = False
    goes_on: bool = False


@dataclass(frozen=True, slots=True)
class LogPage:
    """Some output, in order.

    Attributes:
        attempt: Of a task's: the attempt that it is of.
        cursor: Bytes of that attempt's output up to here, for `LogFilter`.
    """

    records: tuple[LogRecord, ...]
    attempt: int = 0
    cursor: int = 0


class FramePump(Protocol):
    """One end of a frame stream: the link asks it for frames and hands it what arrives.

    All calls come from the event loop's thread.
    """

    def next_frame(self) -> Any | None:
        """Return all that waits to be sent as one bounded frame, or None if nothing does."""

    def on_frame(self, frame: Any) -> None:
        """Take a frame from the other side."""

    def on_closed(self, error: RustRayError | None) -> None:
        """Learn that the stream is over; None after an orderly end. Called once."""


class Link(Protocol):
    """A frame stream under a `FramePump`."""

    def wake(self) -> None:
        """Say that `FramePump.next_frame` has something; event loop's thread only.

        Nothing in flight: it is sent now. A write in flight: it is collected when that
        write has completed.
        """

    def wake_now(self) -> None:
        """`wake`, from a callback of the loop that has nothing left to do.

        A link within one process then hands over at once, and saves a turn of the loop.
        """

    async def close(self) -> None:
        """End the stream in an orderly way; idempotent."""


class HeadApi(Protocol):
    """Everything that a head does for clients, workers and the command line.

    Every method raises a `RustRayError` of the class that fits, and nothing else.
    """

    async def register_worker(self, info: WorkerInfo) -> Registered: ...
    async def heartbeat(self, beat: Heartbeat) -> HeartbeatReply: ...
    async def open_worker_stream(self, worker_id: str, session: int, pump: FramePump) -> Link: ...
    async def open_nested_stream(self, worker_id: str, session: int, pump: FramePump) -> Link: ...
    async def open_client_stream(self, prefix: bytes, pump: FramePump) -> Link: ...
    async def submit(self, items: Sequence[SubmitItem]) -> list[SubmitVerdict]: ...
    async def get_result(self, task_id: str, timeout_s: float | None) -> RawResult:
        """Wait until the task has ended, or the timeout (None: the server's longest wait).

        Returns:
            The outcome; with a state that is not terminal if the wait ended first.

        Raises:
            TaskNotFound: no such task, or its result has expired.
        """

    async def locate_result(
        self, task_id: str, timeout_s: float | None, missing: str = ""
    ) -> RawResult:
        """Do as `get_result`, but for a value that stays with a worker say where it is.

        Args:
            task_id: As there.
            timeout_s: As there.
            missing: Name of an object that could not be had where it was said to be.
        """

    async def fetch_object(self, place: Place, token: str) -> Segment:
        """Have a value sent straight from the worker that keeps it.

        Raises:
            ObjectLost: it is not there, or came damaged.
            CommunicationError: there is no way to that worker from here.
        """

    async def get_items(
        self, task_id: str, first: int, timeout_s: float | None
    ) -> tuple[RawResult, list[bytes]]:
        """Wait until a stream has an item, or has ended, or the timeout.

        Args:
            task_id: 32 hex digits.
            first: Index of the item; those before it are consumed by that.
            timeout_s: As for `get_result`.

        Returns:
            The task as it stands, and its encoded items from ``first`` on, not always all of them;
            none if it has ended before that item, or the wait has.

        Raises:
            TaskNotFound: no such task, or its result has expired.
            PayloadError: it is no stream.
            ObjectLost: these items were consumed already.
        """

    async def cancel(self, task_ids: Sequence[str], force: bool) -> list[CancelVerdict]: ...
    async def retry(
        self, where: LetterFilter, cursor: LetterCursor, dry_run: bool = False
    ) -> LetterAnswer:
        """Make tasks of dead letters, or only count them.

        Done again with the same cursor and horizon, it does nothing more.
        """

    async def purge(
        self, where: LetterFilter, cursor: LetterCursor, dry_run: bool = False
    ) -> LetterAnswer:
        """Forget dead letters, with error and arguments, or only count them."""

    async def export(self, where: LetterFilter, cursor: LetterCursor) -> LetterPage:
        """Return some dead letters with error and arguments."""

    async def coordinate(self, request: Request) -> Answer:
        """Carry out a request for a lock, semaphore, event or queue.

        It waits for some seconds at most, and says then that it is `Verdict.WAITING`.
        """

    async def coordinate_for_task(self, task: TaskHolder, request: Request) -> Answer:
        """Carry out a request of a task that runs on the calling worker."""

    async def explain(self, task_id: str) -> Explanation: ...
    async def list_tasks(self, where: TaskFilter, cursor: str, limit: int) -> TaskPage: ...
    async def list_workers(self) -> list[WorkerView]: ...

    async def list_objects(self, limit: int) -> tuple[list[ObjectView], list[ObjectTotal]]:
        """List the largest values that stay with workers, and what each worker keeps."""

    async def list_functions(self) -> list[OfferedFunction]: ...
    async def drain_worker(self, worker_id: str) -> None: ...
    async def status(self) -> ClusterStatus: ...
    def subscribe(self, where: EventFilter) -> AsyncIterator[list[TaskEvent]]:
        """Stream events in revision order.

        Raises:
            ResourceExhausted: the subscriber was too slow; come back with the last revision.
            RustRayError (code OUT_OF_RANGE text): the cursor is older than what is kept.
        """

    def task_logs(self, where: LogFilter) -> AsyncIterator[LogPage]:
        """Stream what a task has printed, and goes on to print.

        Raises:
            TaskNotFound: no such task, or not that attempt of it.
            WorkerNotFound: the worker that had the output is gone.
            CommunicationError: that worker is away, or does not answer.
        """

    def session_logs(self, prefix: bytes) -> AsyncIterator[LogPage]:
        """Stream what the tasks of one client session print from now on, for ever.

        Raises:
            AuthorizationError: the session is another token's.
        """

    async def renew_token(self) -> str:
        """Return a fresh access token for the caller, with the same rights."""

    async def create_token(
        self, role: str, ttl_s: float, allow_code: bool, audience: str = "head"
    ) -> str: ...
    async def list_tokens(self) -> list[TokenInfo]: ...
    async def enroll_worker(self, worker_id: str, signing_request: bytes) -> Enrollment:
        """Give a worker on another machine what its own service needs."""
