"""What users hold: functions to hand in, and the tasks that come of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

from rustray.client.failures import error_of
from rustray.client.options import check_options, imply_streaming, task_class
from rustray.client.remote import RemoteFunction
from rustray.common.errors import RustRayError, TaskNotFound
from rustray.common.ids import TaskId, task_id
from rustray.task.codec import decode_value, encode_call
from rustray.task.inputs import Slot
from rustray.task.spec import Codec, TaskClass, deadline_unix_s
from rustray.task.state import TaskState
from rustray.testing.history import Run, TaskRecord
from rustray.testing.placing import PREFIX

if TYPE_CHECKING:
    from rustray.testing.history import HistoryEntry

Duration = float | Callable[..., float]


class Cluster(Protocol):
    """What functions and tasks need of their cluster."""

    def remote(
        self,
        function: Callable[..., Any] | RemoteFunction[..., Any],
        *,
        takes_s: Duration | None = None,
        **options: Any,
    ) -> SimFunction:
        """Make a function run in the simulation."""

    def hand_in(
        self, function: SimFunction, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> SimTask:
        """Hand in one task."""

    def wait_for(self, task: SimTask, within_s: float) -> None:
        """Let time pass until a task has ended."""

    def cancel(self, task: SimTask, *, force: bool = False) -> None:
        """Ask the head to cancel a task."""

    def leave(self, task: SimTask) -> None:
        """Have the consumer of a generator want no more."""

    def free(self, task: SimTask) -> None:
        """Let go of a result."""

    def entries_of(self, task: SimTask) -> list[HistoryEntry]:
        """Return what happened to a task."""

    @property
    def is_head_up(self) -> bool:
        """Whether the head runs."""

    def name_of(self, worker_id: str) -> str:
        """Return a worker's name."""


class SimFunction:
    """A function whose calls run in the simulation: ``f.remote(...)`` hands in one.

    Attributes:
        task_class: What its tasks are.
        code: What stands for the function inside the cluster.
    """

    def __init__(
        self,
        cluster: Cluster,
        number: int,
        function: Callable[..., Any] | RemoteFunction[..., Any],
        takes_s: Duration | None,
        options: dict[str, Any],
    ) -> None:
        check_options(options)
        if isinstance(function, RemoteFunction):
            options = {**function._options, **options}
            function = function._function
        if not callable(function):
            raise TypeError(f"a simulated task is a function, not {function!r:.80}")
        options = imply_streaming(function, options)
        is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        if takes_s is not None and is_async:
            raise TypeError(
                "an async function takes the time that it awaits: leave takes_s out, and use "
                "asyncio.sleep()"
            )
        self._cluster = cluster
        self._options = options
        self.function: Callable[..., Any] = function
        self.takes_s = takes_s
        self.deadline_unix_s = deadline_unix_s(options.get("deadline"))
        self.code = b"function %d" % number
        made: TaskClass = task_class(function, sha256(self.code).digest(), options)
        self.task_class = replace(made, results_stay=made.may_run_again)

    def options(self, **overrides: Any) -> SimFunction:
        """Return the same function with other options; see `rustray.remote`.

        Raises:
            ValueError: an unknown option, or a value out of range.
        """
        options = {**self._options, **overrides}
        return self._cluster.remote(self.function, takes_s=self.takes_s, **options)

    def remote(self, /, *args: Any, **kwargs: Any) -> SimTask:
        """Hand in one task; a `SimTask` among the arguments stands for its result.

        Raises:
            PayloadError: an argument cannot travel.
        """
        return self._cluster.hand_in(self, args, kwargs)

    def map(self, items: Iterable[Any]) -> list[SimTask]:
        """Hand in one task for each item."""
        return [self.remote(item) for item in items]

    def duration_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
        """Return how long a call takes, in virtual seconds.

        Raises:
            ValueError: ``takes_s`` is, or returns, no number of seconds.
        """
        takes_s = self.takes_s
        seconds = takes_s(*args, **kwargs) if callable(takes_s) else takes_s
        if seconds is not None and not 0.0 <= seconds < float("inf"):
            raise ValueError(f"takes_s={seconds!r} must be a number of seconds, 0 or more")
        return seconds


class SimTask:
    """One task of a simulation, as its client knows it."""

    def __init__(self, cluster: Cluster, record: TaskRecord) -> None:
        self._cluster = cluster
        self._record = record

    def __repr__(self) -> str:
        function = self._record.task_class.function
        return f"<task {self.number} ({function}) {self.state.name}, {len(self.runs)} runs>"

    @property
    def number(self) -> int:
        """Position in the order of submission, from 0; the history names the task so."""
        return self._record.number

    @property
    def task_id(self) -> TaskId:
        """32 hex digits, as `rustray.context` shows it to the task."""
        return task_id(PREFIX, self.number)

    @property
    def is_accepted(self) -> bool:
        """Whether the client has been told that the task is safe."""
        return self._record.is_accepted

    @property
    def is_running(self) -> bool:
        """Whether its function runs now, on some worker."""
        return any(run.end == "running" for run in self.runs)

    @property
    def is_done(self) -> bool:
        """Whether the client knows how it ended, and has what it returned."""
        return self._record.has_ended

    @property
    def is_freed(self) -> bool:
        """Whether `free` was called."""
        return self._record.freed_before is not None

    @property
    def holder(self) -> str:
        """The worker that its value stayed with first, as the client was told; "" if it did not."""
        place = self._record.place
        return "" if place is None else self._cluster.name_of(place.worker_id)

    @property
    def state(self) -> TaskState:
        """The end that the client was told; before that RUNNING or QUEUED."""
        if self._record.error is not None:
            return TaskState.FAILED
        if self._record.outcome is not None:
            return self._record.outcome.state
        return TaskState.RUNNING if self.is_running else TaskState.QUEUED

    @property
    def runs(self) -> list[Run]:
        """Every time its function was called, also those that nobody learned of."""
        return self._record.runs

    @property
    def attempts(self) -> int:
        """How often it was started as far as the head knows; 0 until it has ended."""
        return self._record.outcome.attempts if self._record.outcome else 0

    @property
    def worker(self) -> str:
        """Name of the worker that runs it or ran it last, "" before it began."""
        return self.runs[-1].worker if self.runs else ""

    @property
    def history(self) -> list[HistoryEntry]:
        """All that happened to it."""
        return self._cluster.entries_of(self)

    @property
    def error(self) -> RustRayError | None:
        """The typed error that it ended with; None if it succeeded or has not ended."""
        record = self._record
        if record.is_expired:
            return TaskNotFound(f"the result of task {self.number} has expired")
        if record.outcome is None or record.outcome.state is TaskState.SUCCEEDED:
            return record.error
        outcome = record.outcome
        return error_of(
            outcome.payloads[0], self.task_id, outcome.worker_id, outcome.attempts, Codec.PICKLE
        )

    def result(self, within_s: float = 600.0) -> Any:
        """Let time pass until it has ended, and return what its function returned.

        Args:
            within_s: Virtual seconds to wait at most.

        Raises:
            TimeoutError: it did not end in that time; says why, as far as the head knows.
            RustRayError: the typed error that it ended with, as `rustray.get` raises it.
        """
        self._cluster.wait_for(self, within_s)
        error = self.error
        if error is not None:
            raise error
        assert self._record.outcome is not None
        return decode_value(Codec.PICKLE, self._record.outcome.payloads[0])

    @property
    def items(self) -> list[Any]:
        """What of a generator has arrived."""
        return [decode_value(Codec.PICKLE, item) for item in self._record.items]

    def read_every(self, seconds: float) -> None:
        """Have the consumer of a generator take so long for each item; infinity: read no more."""
        self._record.read_every_s = seconds

    def leave(self) -> None:
        """Have the consumer of a generator want no more, which ends it."""
        self._cluster.leave(self)

    def free(self) -> None:
        """Let go of its result, now or when it is there, as `rustray.free` does.

        `result` raises `ObjectLost` then. Tasks that take it get it still, if they were handed in
        before.
        """
        self._cluster.free(self)

    def cancel(self, *, force: bool = False) -> None:
        """Ask the head to cancel it, as `rustray.cancel` does; time has to pass for that."""
        self._cluster.cancel(self, force=force)


def record_of(
    number: int, function: SimFunction, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> TaskRecord:
    """Write up a call that is to be handed in, with slots for the results that it takes."""
    task_class = function.task_class
    takes_s = function.duration_of(args, kwargs)
    taken: list[int] = []

    def placed(value: Any) -> Any:
        if not isinstance(value, SimTask):
            return value
        taken.append(value.number)
        return Slot(len(taken) - 1)

    args = tuple(map(placed, args))
    kwargs = {name: placed(value) for name, value in kwargs.items()}
    if taken:
        task_class = replace(task_class, has_inputs=True)
    payload = encode_call(task_class.codec, args, kwargs)
    record = TaskRecord(number, task_class, payload, takes_s, function.deadline_unix_s)
    record.takes = tuple(taken)
    return record
