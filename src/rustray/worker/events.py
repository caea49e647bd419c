"""What the worker's shell tells its core (facts), and what the core tells the shell to do.

Every command is carried out in list order. Leases numbered `DIRECT_LEASES` and above are
the worker's own: tasks that came through its WorkerService and not from the head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

from rustray.common.records import record
from rustray.task.columns import PayloadColumn
from rustray.task.frames import AssignFrame, LeaseNews, LeaseOutcome, LeaseRange
from rustray.task.runtime_env import RuntimeEnv
from rustray.task.spec import ExecutorKind, TaskClass
from rustray.task.streams import LeaseItems

DIRECT_LEASES: Final = 1 << 63
"""First lease number of the worker's own tasks; the head's numbers stay below."""


@record
class PoolStarted:
    """The executor pool can spawn from now on."""


@record
class SessionOpened:
    """The head registered the worker, and the stream of this session is about to open.

    Attributes:
        asked_at: When the worker asked for it.
        lease_ttl_s: How long after it has heard of the worker the head leaves it its tasks.
    """

    session: int
    asked_at: float = 0.0
    lease_ttl_s: float = math.inf


@record
class HeartbeatAnswered:
    """The head knows the session, and has taken a heartbeat that was sent at ``asked_at``."""

    session: int
    asked_at: float


@record
class SessionClosed:
    """The stream of this session is over; ``is_orderly`` if the other side ended it on purpose."""

    session: int
    is_orderly: bool = False


@record
class FrameReceived:
    """A frame of the head arrived on the stream of this session."""

    session: int
    frame: AssignFrame


@record
class DirectSubmitted:
    """Somebody asked this very worker to run one task.

    Attributes:
        lease: From `DIRECT_LEASES` on, never used twice.
        task_class: What it is.
        prefix: Of its id, as who asked knows it.
        sequence: The rest of that.
        payload: Encoded arguments.
    """

    lease: int
    task_class: TaskClass
    prefix: bytes
    sequence: int
    payload: bytes


@record
class DirectCancelled:
    """Whoever asked for the task of this direct lease does not wait any more."""

    lease: int


@record
class ExecutorReady:
    """A spawned executor takes tasks from now on."""

    executor_id: int
    pid: int


@record
class ExecutorReported:
    """An executor finished tasks."""

    executor_id: int
    outcomes: list[LeaseOutcome]


@record
class ExecutorTold:
    """Tasks of an executor said something of themselves.

    Attributes:
        dropped: How much more they have said than could be sent.
    """

    executor_id: int
    news: list[LeaseNews]
    dropped: int = 0


@record
class TaskBlocked:
    """A task of an executor waits for tasks that it has handed in itself."""

    executor_id: int
    lease: int
    offset: int


@record
class TaskWoke:
    """It waits no more, and asks to go on."""

    executor_id: int
    lease: int
    offset: int


@record
class ExecutorYielded:
    """Generators of an executor have yielded items, in order for each."""

    executor_id: int
    items: list[LeaseItems]


@record
class ExecutorReturned:
    """An executor's answer to `Reclaim`: all that it had not started, possibly nothing.

    If ``is_asked`` is false: what cannot take the result of the task that it follows there. With
    ``running``, the task that it runs: it has not answered, and what is behind was taken from it.
    """

    executor_id: int
    ranges: list[LeaseRange]
    is_asked: bool = True
    running: LeaseRange | None = None


@record
class ExecutorExited:
    """An executor is gone.

    Attributes:
        exit_code: Its exit status, None if a signal killed it.
        signal: The signal, None if it exited.
        running: (lease, offset) of the task it ran, None if it ran none.
        log_tail: The last lines it wrote.
    """

    executor_id: int
    exit_code: int | None
    signal: int | None
    running: tuple[int, int] | None
    log_tail: str = ""


@record
class MemoryExceeded:
    """A task with a memory limit holds more than that.

    Attributes:
        lease: Of the task that the measurement was for, which may have ended meanwhile.
        peak: Bytes that it holds.
        limit: Bytes that it may hold.
    """

    executor_id: int
    lease: int
    offset: int
    peak: int
    limit: int


@record
class SheafWritten:
    """A sheaf of outcomes is on disk, or the disk has refused it."""

    number: int
    is_stored: bool


@record
class SheafRead:
    """A sheaf of outcomes was read back; None: it was damaged."""

    number: int
    outcomes: list[LeaseOutcome] | None


@record
class StoreChanged:
    """The store of objects sends so much to disk that no task should start, or not any more."""

    is_paused: bool


@record
class KeepingChanged:
    """The worker keeps values that others may need, or none any more."""

    is_keeping: bool


@record
class DrainRequested:
    """The worker is to leave in order.

    Attributes:
        timeout_s: How long running tasks may go on; None takes the worker's default.
    """

    timeout_s: float | None = None


@record
class TimePassed:
    """`WorkerManager.next_deadline` has been reached."""


Event = (
    PoolStarted
    | SessionOpened
    | HeartbeatAnswered
    | SessionClosed
    | FrameReceived
    | DirectSubmitted
    | DirectCancelled
    | ExecutorReady
    | ExecutorReported
    | ExecutorTold
    | TaskBlocked
    | TaskWoke
    | ExecutorYielded
    | ExecutorReturned
    | ExecutorExited
    | MemoryExceeded
    | SheafWritten
    | SheafRead
    | DrainRequested
    | StoreChanged
    | KeepingChanged
    | TimePassed
)


@record
class StartExecutor:
    """Spawn an executor under a number that was never used before.

    Attributes:
        concurrency: Tasks that it may run at once; 1 for the kind PROCESS.
    """

    executor_id: int
    kind: ExecutorKind
    concurrency: int


@record
class DefineClass:
    """Introduce a task class to an executor, before the first task of it."""

    executor_id: int
    class_number: int
    task_class: TaskClass
    code: bytes


class Setting(NamedTuple):
    """How an executor process is to be set up for the tasks that it is given next.

    Attributes:
        threads: What libraries of numerics are told to use: the task's cores, at least one.
        gpu_ids: GPUs that it may see, as the drivers call them; None: as the worker itself.
        alternative: Which of the ways to run them that their class allows was granted.
        runtime_env: What their process is to be like; None: as the worker.
    """

    threads: int = 1
    gpu_ids: tuple[str, ...] | None = None
    alternative: int = 0
    runtime_env: RuntimeEnv | None = None


PLAIN: Final = Setting()
"""Of an executor that was just started."""


@record
class PrepareExecutor:
    """Set an executor up for the tasks that follow."""

    executor_id: int
    setting: Setting


@record
class KeepPackage:
    """Put a package of a runtime_env on disk, before the first executor that needs it."""

    digest: bytes
    content: bytes


@record
class DropPackage:
    """Nothing here needs a package any more: remove it, packed and unpacked."""

    digest: bytes


@dataclass(slots=True)
class DispatchTasks:
    """Hand consecutive tasks of one lease to an executor; the core forgets it.

    Attributes:
        offset: Position of the first in its lease.
        first: Sequence of the first in its client session.
        due: When they will be stopped, as monotonic time; infinite for never.
        have, consumed: Of a stream, which comes alone: items to pass over; its window's begin.
        follows: Lease and offset of the task before, whose result it takes there; or (0, 0).
    """

    executor_id: int
    class_number: int
    lease: int
    offset: int
    attempt: int
    prefix: bytes
    first: int
    payloads: PayloadColumn
    due: float = math.inf
    have: int = 0
    consumed: int = 0
    follows: tuple[int, int] = (0, 0)


@record
class CreditTask:
    """Tell a generator how many of its items are consumed."""

    executor_id: int
    lease: int
    offset: int
    consumed: int


@record
class WatchMemory:
    """Measure an executor from now on, until `UnwatchMemory`, for the task that it is given next.

    Attributes:
        limit: Bytes that it may hold more than it holds now.
    """

    executor_id: int
    pid: int
    lease: int
    offset: int
    limit: int


@record
class UnwatchMemory:
    """The task has ended, or its executor has."""

    executor_id: int


@record
class Interrupt:
    """Ask one task of an executor to stop; on ``is_notice`` only if it does not look by itself."""

    executor_id: int
    lease: int
    offset: int
    is_notice: bool = False


@record
class ResumeTask:
    """Let a task of an executor go on that has waited: it holds its cores again."""

    executor_id: int
    lease: int
    offset: int


@record
class Reclaim:
    """Take back what the executor has not started."""

    executor_id: int


@record
class KillExecutor:
    """Send a signal to an executor that is not needed or does not obey."""

    executor_id: int
    signal: int


@record
class GuardExecutor:
    """Have the zygote kill an executor at ``until``, though nobody should tell it; inf: never."""

    executor_id: int
    until: float


@record
class WriteSheaf:
    """Write outcomes to disk under a number that was never used before; `SheafWritten` follows."""

    number: int
    outcomes: list[LeaseOutcome]


@record
class ReadSheaf:
    """Read outcomes back, and remove them from disk; `SheafRead` follows."""

    number: int


@record
class DropSheaf:
    """Remove outcomes from disk that were written in vain."""

    number: int


@record
class CloseSession:
    """End the session: the head broke the protocol, or frames were lost."""

    session: int
    reason: str


@record
class DeliverDirect:
    """A task of `DirectSubmitted` ended; state LEASED means that its executor died."""

    outcome: LeaseOutcome


@record
class Leave:
    """The worker is drained (or has waited long enough): stop."""


Command = (
    StartExecutor
    | DefineClass
    | PrepareExecutor
    | KeepPackage
    | DropPackage
    | DispatchTasks
    | CreditTask
    | WatchMemory
    | UnwatchMemory
    | Interrupt
    | ResumeTask
    | Reclaim
    | KillExecutor
    | GuardExecutor
    | WriteSheaf
    | ReadSheaf
    | DropSheaf
    | CloseSession
    | DeliverDirect
    | Leave
)
