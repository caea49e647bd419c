"""What the scheduler tells the shell to do: imperatives, carried out in list order.

Order is a promise: a ``Persist…`` command stands before every command that
tells anybody of the fact, so a shell that commits when it meets one never acks what a
power cut could take back. Commands without that dependency (`GrantLease`) may
overlap the commit.
"""

from __future__ import annotations

from dataclasses import dataclass

from rustray.common.errors import RustRayError
from rustray.task.columns import PayloadColumn
from rustray.task.frames import Outcome
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState


@dataclass(frozen=True, slots=True)
class PersistBatch:
    """Commit accepted tasks."""

    prefix: bytes
    first: int
    task_class: TaskClass
    payloads: PayloadColumn


@dataclass(frozen=True, slots=True)
class PersistOutcome:
    """Commit how tasks ended."""

    prefix: bytes
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class PersistCancel:
    """Commit that tasks with a worker are to be cancelled."""

    prefix: bytes
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class AcceptTasks:
    """Tell the submitter that these tasks are safe."""

    prefix: bytes
    first: int
    count: int
    deduplicated: bool = False


@dataclass(frozen=True, slots=True)
class RejectTasks:
    """Tell the submitter why these tasks were refused."""

    prefix: bytes
    first: int
    count: int
    error: RustRayError


@dataclass(frozen=True, slots=True)
class DeliverOutcome:
    """Send an outcome to the session that submitted the tasks, and to whoever waits for them."""

    prefix: bytes
    outcome: Outcome
    is_pushed: bool


@dataclass(frozen=True, slots=True)
class ReportUnknown:
    """Tell a client that came back that these tasks are not known here."""

    prefix: bytes
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class PublishEvents:
    """Note that consecutive tasks entered a state, for subscribers."""

    prefix: bytes
    first: int
    count: int
    state: TaskState
    attempt: int
    worker_id: str
    function: str


@dataclass(frozen=True, slots=True)
class GrantLease:
    """Give consecutive tasks to a worker; see `rustray.task.frames.LeaseGrant`."""

    worker_id: str
    lease: int
    task_class: TaskClass
    attempt: int
    prefix: bytes
    first: int
    payloads: PayloadColumn


@dataclass(frozen=True, slots=True)
class CancelLease:
    """Tell a worker to stop tasks of a lease."""

    worker_id: str
    lease: int
    offset: int
    count: int
    force: bool


@dataclass(frozen=True, slots=True)
class RecallLease:
    """Ask a worker for tasks of a lease that it has not started."""

    worker_id: str
    lease: int
    offset: int
    count: int


@dataclass(frozen=True, slots=True)
class DrainWorker:
    """Tell a worker to leave in order."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class CloseSession:
    """End a worker's session; it will register again and both sides compare notes."""

    worker_id: str
    session: int
    reason: str


@dataclass(frozen=True, slots=True)
class RefuseWorker:
    """Refuse a registration."""

    worker_id: str
    session: int
    error: RustRayError


Command = (
    PersistBatch
    | PersistOutcome
    | PersistCancel
    | AcceptTasks
    | RejectTasks
    | DeliverOutcome
    | ReportUnknown
    | PublishEvents
    | GrantLease
    | CancelLease
    | RecallLease
    | DrainWorker
    | CloseSession
    | RefuseWorker
)
