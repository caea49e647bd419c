"""Every error that a user or a peer can see, in one tree.

Each answers three questions: whose fault is it, does a retry help, and what to
do next (in the message)::

    RustRayError
    ├─ ConfigError              yours: names the key, where its value came from, what is allowed
    ├─ UsageProblem             yours: the command line does not make sense
    ├─ AuthenticationError      yours: no token, or one that is not good (any more)
    ├─ AuthorizationError       yours: the token is good, its role does not allow this
    ├─ CommunicationError       the network's, or a peer that broke the protocol
    │  ├─ HeadUnavailable       no head answers there (a retry helps)
    │  └─ VersionMismatch       two releases that do not fit (says which one to upgrade)
    ├─ WorkerNotFound           yours: no such worker
    ├─ TaskNotFound             yours: no such task, or its result has expired
    │  └─ TaskExpired           it was there, and its result has expired
    ├─ DuplicateTask            yours: the task id is taken by a task with other content
    ├─ DurabilityNotAvailable   yours: the head cannot keep a task as safe as it was asked to
    ├─ NotInTask                yours: `rustray.context()` where no task runs
    ├─ NestedTooDeep            yours: tasks that hand in tasks without end
    ├─ BlockedLoop              yours: a coroutine that blocks its event loop for a task
    ├─ LeaseLost                a lock or permit is not held any more: its holder was silent
    ├─ TaskExecutionFailed      the task's: user code raised (`.cause` has the exception)
    ├─ TaskCancelled            somebody cancelled it
    ├─ TaskTimeout              the task's: a limit or its deadline passed; a TimeoutError
    ├─ GetTimeout               the *wait* ended, the task goes on; a TimeoutError
    ├─ ExecutorDeath            the process that ran it died (`.exit_code`, `.signal`)
    │  ├─ WorkerLost            workers died under it more often than `max_retries`
    │  └─ TaskPoisoned          it killed its executors as often as its crash limit allows
    ├─ TaskOutOfMemory          the task's: it outgrew its `memory_mb`; a MemoryError
    ├─ ResourceNotAvailable     yours: no worker could ever run it (nearest miss named)
    │  └─ FunctionNotFound      yours: no worker offers that function (near names listed)
    ├─ ResourceExhausted        too much at once: quota, size, backpressure (later, a retry helps)
    ├─ PayloadError             yours: an argument or result cannot travel (says which and where)
    ├─ ObjectLost               the value's holders died
    └─ InvariantError           ours: a bug in rustray; please report it

``rpc/status.py`` maps each class to one gRPC status and back.
"""

from __future__ import annotations

from typing import ClassVar


class RustRayError(Exception):
    """Base of every error of rustray.

    Attributes:
        code: Stable name for programs, also sent over the wire.
        retryable: Whether the same call may succeed later unchanged.
        item_index: For an item of `rustray.map`, its place in the input, from 0; else None.
    """

    code: ClassVar[str] = "RUSTRAY"
    retryable: ClassVar[bool] = False
    item_index: int | None = None


class ConfigError(RustRayError):
    """A setting is unknown, malformed or unsafe."""

    code = "CONFIG"


class UsageProblem(RustRayError):
    """The command line does not make sense; the message says what would."""

    code = "USAGE"


class AuthenticationError(RustRayError):
    """The caller did not prove who it is."""

    code = "UNAUTHENTICATED"


class AuthorizationError(RustRayError):
    """The caller is known, and may not do this."""

    code = "PERMISSION_DENIED"


class CommunicationError(RustRayError):
    """The connection failed, or a peer broke the protocol."""

    code = "COMMUNICATION"


class HeadUnavailable(CommunicationError):
    """No head answers at the address."""

    code = "HEAD_UNAVAILABLE"
    retryable = True


class VersionMismatch(CommunicationError):
    """The peer is of a release that speaks no version of the protocol that this one speaks."""

    code = "VERSION_MISMATCH"


class WorkerNotFound(RustRayError):
    """No worker has this id."""

    code = "WORKER_NOT_FOUND"


class TaskNotFound(RustRayError):
    """No task has this id, or its result has expired."""

    code = "TASK_NOT_FOUND"


class TaskExpired(TaskNotFound):
    """The task has ended, and its result was kept for its time to live, or while there was room."""

    code = "TASK_EXPIRED"


class DuplicateTask(RustRayError):
    """The task id or key belongs to a task already, with other content or not to be had twice."""

    code = "DUPLICATE_TASK"


class DurabilityNotAvailable(RustRayError):
    """The head cannot keep a task at the level of durability that was asked for."""

    code = "DURABILITY_NOT_AVAILABLE"


class NotInTask(RustRayError):
    """The calling code belongs to no task."""

    code = "NOT_IN_TASK"


class NestedTooDeep(RustRayError):
    """A task was handed in by a task that stands too deep: a recursion without end, most likely."""

    code = "NESTED_TOO_DEEP"


class BlockedLoop(RustRayError):
    """A coroutine of a task blocks the event loop that its own results need; it is to await."""

    code = "BLOCKED_LOOP"


class LeaseLost(RustRayError):
    """A lock or permit is not held any more, and another may hold it now.

    Its holder was silent for longer than its lease (a pause, a broken network), or has ended.
    """

    code = "LEASE_LOST"


class TaskError(RustRayError):
    """Base of the errors that end one task.

    Attributes:
        task_id: The task, or "" where it is not known.
        worker_id: Where its last attempt ran, or "".
        attempt: Number of that attempt, from 1; 0 if none ever started.
    """

    code = "TASK"

    def __init__(
        self, message: str = "", *, task_id: str = "", worker_id: str = "", attempt: int = 0
    ) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.worker_id = worker_id
        self.attempt = attempt


class TaskExecutionFailed(TaskError):
    """User code raised an exception.

    Attributes:
        cause: The user's exception, rebuilt; None where that is not possible.
        error_type: Qualified name of its class.
        remote_traceback: The traceback as text, from the executor.
    """

    code = "TASK_FAILED"

    def __init__(
        self,
        message: str = "",
        *,
        task_id: str = "",
        worker_id: str = "",
        attempt: int = 0,
        cause: BaseException | None = None,
        error_type: str = "",
        remote_traceback: str = "",
    ) -> None:
        super().__init__(message, task_id=task_id, worker_id=worker_id, attempt=attempt)
        self.cause = cause
        self.error_type = error_type
        self.remote_traceback = remote_traceback


class TaskCancelled(TaskError):
    """The task was cancelled before it ended."""

    code = "TASK_CANCELLED"


class TaskTimeout(TaskError, TimeoutError):
    """A limit of the task itself passed.

    Attributes:
        phase: "queue", "run", "total" or "deadline".
    """

    code = "TASK_TIMEOUT"

    def __init__(
        self,
        message: str = "",
        *,
        task_id: str = "",
        worker_id: str = "",
        attempt: int = 0,
        phase: str = "run",
    ) -> None:
        super().__init__(message, task_id=task_id, worker_id=worker_id, attempt=attempt)
        self.phase = phase


class GetTimeout(RustRayError, TimeoutError):
    """The wait for a result ended; the task itself goes on."""

    code = "GET_TIMEOUT"
    retryable = True


class ExecutorDeath(TaskError):
    """Base of the errors of tasks under which an executor process has died.

    Attributes:
        exit_code: Of the last one; None if it was killed by a signal, or its worker was lost.
        signal: Number of the signal that killed it, or None.
    """

    code = "EXECUTOR_DEATH"
    exit_code: int | None = None
    signal: int | None = None


class WorkerLost(ExecutorDeath):
    """Workers or executors died under the task, and its retries are used up."""

    code = "WORKER_LOST"


class TaskPoisoned(ExecutorDeath):
    """The task killed its executors as often as its crash limit allows.

    The message has how each of them ended, and their last output.
    """

    code = "TASK_POISONED"


class TaskOutOfMemory(TaskError, MemoryError):
    """The task outgrew its ``memory_mb`` and was stopped, and its `oom_retries` are used up.

    Attributes:
        peak: Megabytes (10**6 bytes) that it held when it was stopped.
        limit: Megabytes that it had asked for.
    """

    code = "TASK_OUT_OF_MEMORY"

    def __init__(
        self,
        message: str = "",
        *,
        task_id: str = "",
        worker_id: str = "",
        attempt: int = 0,
        peak: float = 0.0,
        limit: float = 0.0,
    ) -> None:
        super().__init__(message, task_id=task_id, worker_id=worker_id, attempt=attempt)
        self.peak = peak
        self.limit = limit


class ResourceNotAvailable(RustRayError):
    """No worker that exists or could exist can serve the request."""

    code = "RESOURCE_NOT_AVAILABLE"


class FunctionNotFound(ResourceNotAvailable):
    """No worker offers a function of this name."""

    code = "FUNCTION_NOT_FOUND"


class ResourceExhausted(RustRayError):
    """A limit on size, number or rate is reached.

    Attributes:
        retry_after_s: When it is worth trying again, in seconds from now; 0: not known.
        reason: Which limit, as a stable name for programs and counters; "" where it has none.
    """

    code = "RESOURCE_EXHAUSTED"
    retryable = True

    def __init__(self, message: str = "", *, retry_after_s: float = 0.0, reason: str = "") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.reason = reason


class PayloadError(RustRayError):
    """An argument or a result cannot travel; the message says which and where in it."""

    code = "PAYLOAD"


class ObjectLost(RustRayError):
    """The value of a reference is gone with the nodes that held it."""

    code = "OBJECT_LOST"


class InvariantError(RustRayError):
    """A bug in rustray itself."""

    code = "INTERNAL"


def reason_of(error: RustRayError) -> str:
    """Return the stable name of the limit that was reached, or "" where the code says it all."""
    return error.reason if isinstance(error, ResourceExhausted) else ""


def all_error_classes() -> dict[str, type[RustRayError]]:
    """Map each stable code to its class, over the whole tree."""
    found: dict[str, type[RustRayError]] = {}
    pending: list[type[RustRayError]] = [RustRayError]
    while pending:
        cls = pending.pop()
        if "code" in vars(cls):  # not a class made from it, such as a user's exception
            found[cls.code] = cls
        pending.extend(cls.__subclasses__())
    return found
