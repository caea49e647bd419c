"""How a task ended, as users see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rustray.common.errors import RustRayError
from rustray.task.state import TaskState


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The outcome of one task.

    Attributes:
        task_id: 32 hex digits.
        state: A terminal state, or the present one where nobody waited for the end.
        value: What the function returned; None unless the state is SUCCEEDED.
        error: The typed error of a task that did not succeed, else None.
        worker_id: Where the last attempt ran, or "".
        attempts: How often it was started; 1 for a task that nothing happened to.
    """

    task_id: str
    state: TaskState
    value: Any = None
    error: RustRayError | None = None
    worker_id: str = ""
    attempts: int = 0

    def unwrap(self) -> Any:
        """Return the value, or raise the error.

        Raises:
            RustRayError: the task's typed error.
        """
        if self.error is not None:
            raise self.error
        return self.value


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """One step in the life of a task.

    Attributes:
        revision: Position in the head's event order; a subscriber that comes back with it
            as cursor gets what followed.
        task_id: 32 hex digits.
        state: The state that was entered; the present one where the task said something.
        attempt: Number of the attempt concerned, 0 before the first.
        worker_id: The worker concerned, or "".
        function: Name of the function.
        time_unix_s: Wall clock of the head.
        kind: "state"; "progress" for what `rustray.context().progress` said, or "emit".
        progress: How far the task is, 0 to 1; None for other kinds.
        message: What it said beside that, or "".
        name: Of an emitted value, or "".
        value: The emitted value. (From a `HeadApi` still encoded as msgpack.)
    """

    revision: int
    task_id: str
    state: TaskState
    attempt: int
    worker_id: str
    function: str
    time_unix_s: float
    kind: Literal["state", "progress", "emit"] = "state"
    progress: float | None = None
    message: str = ""
    name: str = ""
    value: Any = None


def qualified_name(cls: type) -> str:
    """Return ``module.QualName``."""
    return f"{cls.__module__}.{cls.__qualname__}"


@dataclass(frozen=True, slots=True)
class FailureInfo:
    """Why an attempt failed, as it travels: text and numbers, never a pickle the head would load.

    Attributes:
        code: `RustRayError.code` of the error that the user will see.
        message: What happened, and what to do.
        error_type: Qualified class name of the user's exception, e.g. ``builtins.ValueError``.
        traceback: Remote traceback as text, bounded.
        cause: Encoded `FailureInfo` of ``__cause__``; b"" for none.
        pickled: The exception itself, pickled; only for tasks whose codec is PICKLE.
        phase: For timeouts: queue, run or total.
        exit_code: Of an executor that died, else None.
        signal: Signal number that killed it, else None.
        memory_peak: Bytes that a task held which outgrew its memory, else None.
        memory_limit: Bytes that it was allowed, else None.
        error_bases: Qualified names of the classes that ``error_type`` derives from, nearest first.
        origin: Id of the task that failed so, where this one did not run for it was to take what
            that returns; "" for a task that failed itself.
    """

    code: str
    message: str
    error_type: str = ""
    traceback: str = ""
    cause: bytes = b""
    pickled: bytes = b""
    phase: str = ""
    exit_code: int | None = None
    signal: int | None = None
    memory_peak: int | None = None
    memory_limit: int | None = None
    error_bases: tuple[str, ...] = ()
    origin: str = ""
