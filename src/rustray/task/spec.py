"""What a user asks for (`TaskSpec`), and what tasks of one kind share (`TaskClass`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any, Final, Literal, Protocol, runtime_checkable

from rustray.common import ids
from rustray.common.durability import parse_durability
from rustray.common.resources import CPU, ResourceSet
from rustray.task.names import MAX_NAME, check_label, check_name
from rustray.task.needs import MAX_ALTERNATIVES, Alternative, ResourceRequirements
from rustray.task.retries import RetryOn, exception_names
from rustray.task.runtime_env import RuntimeEnv
from rustray.task.selectors import Selector
from rustray.task.streams import STREAMING, check_window, window_of

MIN_PRIORITY: Final = -(1 << 31)
MAX_PRIORITY: Final = (1 << 31) - 1
MAX_RETRIES_LIMIT: Final = 1_000_000
MAX_SECONDS: Final = 10 * 365 * 86_400.0
MAX_UNIX_S: Final = 253_402_300_800.0
"""The year 10,000."""
MAX_DEPTH: Final = 1_000_000
MAX_RETURNS: Final = 10_000
DEFAULT_RETRIES: Final = 3
DEFAULT_CRASH_LIMIT: Final = 3


@runtime_checkable
class Moment(Protocol):
    """A `datetime.datetime`; that module has a clock, which nothing here may touch."""

    @property
    def tzinfo(self) -> object:
        """Its time zone; None where that is not said."""

    def timestamp(self) -> float:
        """Return it as seconds of Unix time."""


class Codec(IntEnum):
    """How a payload is encoded; the head only carries this number."""

    PICKLE = 1
    """Pickle protocol 5, cloudpickle where needed: only where the token's scope allows code."""
    JSON = 2
    """UTF-8 JSON, for programs of any language."""
    MSGPACK = 3
    """msgpack with rustray's extension types (task/codec.py): the default for data."""


class ExecutorKind(IntEnum):
    """Where in a worker the function runs."""

    PROCESS = 1
    """One task at a time in an executor process."""
    THREAD = 2
    """A thread of a shared executor process: for blocking I/O."""
    ASYNC = 3
    """A coroutine on the event loop of a shared executor process."""


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task for a registered function, as `HeadNode.submit_task` takes it.

    Attributes:
        function_name: Name that workers announced.
        args: Positional arguments: data that msgpack or JSON can carry.
        kwargs: Keyword arguments.
        resource_requirements: Needs; None takes what the function declared, else one core.
        priority: int32; higher runs first, equal ones first come first served.
        max_retries: Re-runs after a lost worker or executor; None takes the head's default (3).
        timeout_s: Limit of one attempt's run.
        queue_timeout_s: Limit of the wait for a worker.
        total_timeout_s: Limit from acceptance to the end, retries included.
        task_id: Id to use instead of a new one. The same id with the same content is
            the same task (it does not run twice); with other content it is an error.
        wait_for_resources: Queue a request that no present worker could ever serve.
        retry_exceptions: Re-run the function also when it raises: True for any exception, or
            the classes (or their names) that an ``except`` clause would have; out of the budget of
            ``max_retries``.
        retry_delay_s: Pause before such a re-run; None: one that doubles from 1 s to 600 s, with
            full jitter.
        crash_limit: Executor processes that it may kill before it ends as POISONED.
        oom_retries: Re-runs after it outgrew its ``memory_mb``, beside ``max_retries``; -1: no
            limit.
        deadline: Moment at which it is ended wherever it is: seconds of Unix time, or a datetime
            with a time zone.
        idempotency_key: Your own name for what is to be done, instead of ``task_id``: as long as a
            task of yours is known under it, handing it in again runs nothing again.
        on_duplicate: "use_existing" answers with the id of the task that exists already under the
            id or key, if its content is the same; "reject" makes that an error.
        exclusive: It must never overlap with another attempt of itself: a worker that has lost
            the head stops it before the head gives it to another one. It runs in a process.
        lifetime: "detached" keeps its result for its full time also after its client has it;
            otherwise such results are the first to go when the head runs short of room.
        durability: What it survives once it is accepted, and how safe its outcome is when that is
            told: "full" (power cuts), "process" (``kill -9`` of the head) or "memory" (neither);
            None: the head's own level. A head without a journal has "memory" only.
        num_returns: 1, or "streaming": the function is a generator, and its items arrive while it
            runs; `HeadNode.stream_task_result` has them.
        generator_backpressure_num_objects: Items of a generator that may be yielded and not
            consumed before it waits; None takes 128.

    Raises:
        ValueError: a field is out of range; the message names it and the range.
    """

    function_name: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    resource_requirements: ResourceRequirements | None = None
    priority: int = 0
    max_retries: int | None = None
    timeout_s: float | None = None
    queue_timeout_s: float | None = None
    total_timeout_s: float | None = None
    task_id: str | None = None
    wait_for_resources: bool = False
    retry_exceptions: bool | type[BaseException] | str | Sequence[type[BaseException] | str] = False
    retry_delay_s: float | None = None
    crash_limit: int = DEFAULT_CRASH_LIMIT
    oom_retries: int | None = 0
    deadline: float | Moment | None = None
    idempotency_key: str | None = None
    on_duplicate: Literal["use_existing", "reject"] = "use_existing"
    exclusive: bool = False
    lifetime: Literal["detached"] | None = None
    durability: Literal["full", "process", "memory"] | None = None
    num_returns: Literal[1, "streaming"] = 1
    generator_backpressure_num_objects: int | None = None

    def __post_init__(self) -> None:
        check_name("function_name", self.function_name)
        check_arguments(self.args, self.kwargs)
        check_requirements(self.resource_requirements)
        check_priority(self.priority)
        check_retries(self.max_retries)
        check_retries(self.oom_retries, "oom_retries")
        exception_names(self.retry_exceptions)
        check_delay(self.retry_delay_s)
        check_crash_limit(self.crash_limit)
        check_exclusive(self.exclusive, ExecutorKind.PROCESS)
        check_lifetime(self.lifetime)
        parse_durability(self.durability)
        if self.num_returns not in (1, STREAMING) or isinstance(self.num_returns, bool):
            raise ValueError(f"num_returns must be 1 or 'streaming', not {self.num_returns!r:.80}")
        window_of(self.num_returns, self.generator_backpressure_num_objects)
        check_seconds("timeout_s", self.timeout_s)
        check_seconds("queue_timeout_s", self.queue_timeout_s)
        check_seconds("total_timeout_s", self.total_timeout_s)
        deadline_unix_s(self.deadline)
        if self.task_id is not None:
            ids.split_task_id(self.task_id)
        if self.idempotency_key is not None:
            check_name("idempotency_key", self.idempotency_key)
            if self.task_id is not None:
                raise ValueError("give either a task_id or an idempotency_key, not both")
        if self.on_duplicate not in ("use_existing", "reject"):
            raise ValueError(
                f"on_duplicate must be 'use_existing' or 'reject', not {self.on_duplicate!r:.80}"
            )


@dataclass(frozen=True, slots=True)
class TaskClass:
    """All that tasks of one kind share; equal classes queue together.

    Attributes:
        function: Registered name, or the qualified name of a function sent as code.
        code_hash: SHA-256 of the cloudpickled function, or b"" for a registered one.
        nargs: Number of positional arguments, for the check against the signature;
            -1 where that is not known (code) and not checked.
        kwarg_names: Names of the keyword arguments, in name order.
        resources: Demand of one task while it runs.
        labels: (key, value) pairs that a worker must carry, in key order.
        priority: int32, higher first.
        max_retries: Re-runs after infrastructure loss; -1 means without limit.
        retry_exceptions: Which exceptions of user code are retried too, in the same budget.
        retry_delay_s: Pause before such a retry; None means one that grows
            (`rustray.task.retries.pause_s`).
        crash_limit: Executors that a task may kill before it is POISONED; -1 means without limit.
        timeout_s: Run limit of an attempt; 0 means none.
        queue_timeout_s: Limit of waiting for a worker; 0 means none.
        total_timeout_s: Limit from acceptance on; 0 means none.
        codec: Encoding of arguments and result.
        executor: Where in a worker it runs.
        wait_for_resources: Accept although no present worker could ever run it.
        oom_retries: Re-runs after it outgrew its memory, beside ``max_retries``; -1: no limit.
        exclusive: Two attempts of a task never overlap; only for processes.
        is_detached: Results stay their full time, also after their client has them.
        label_selector: What further labels of a worker must be (`rustray.task.selectors`).
        label_selector_soft: What they had better be.
        fallback: Other ways to run it, in this order, where no worker has room for the first.
        alternative: In what a head grants: which of the ways it is, 0 for the first. The fields
            above are those of this way then.
        depth: How many tasks stand above it; the head sets it.
        inherits_priority: In what a task hands in: the head fills in the priority of that task.
        inherits_retries: In what is handed in: the head fills in its own ``max_retries``.
        has_inputs: Some of its arguments are what other tasks return (`rustray.task.inputs`).
        num_returns: How many values it returns that have references of their own; 1: one value.
        is_put: It is no call: its argument is its result, from the start.
        stream_window: Of a generator task: items that it may have yielded and nobody consumed; 0:
            it returns one value.
        results_stay: Large results may stay with their worker (`rustray.task.place`).
        needs_function: A registered function that code which travels calls.
        runtime_env: What its process is to be like; None: as its worker.
        blobs: Hashes of all that travels once for many tasks: code and packages.
    """

    function: str
    code_hash: bytes = b""
    nargs: int = -1
    kwarg_names: tuple[str, ...] = ()
    resources: ResourceSet = field(default_factory=lambda: ResourceSet.of({CPU: 1}))
    labels: tuple[tuple[str, str], ...] = ()
    priority: int = 0
    max_retries: int = DEFAULT_RETRIES
    retry_exceptions: RetryOn = False
    retry_delay_s: float | None = None
    crash_limit: int = DEFAULT_CRASH_LIMIT
    timeout_s: float = 0.0
    queue_timeout_s: float = 0.0
    total_timeout_s: float = 0.0
    codec: Codec = Codec.MSGPACK
    executor: ExecutorKind = ExecutorKind.PROCESS
    wait_for_resources: bool = False
    oom_retries: int = 0
    exclusive: bool = False
    is_detached: bool = False
    label_selector: Selector = ()
    label_selector_soft: Selector = ()
    fallback: tuple[Alternative, ...] = ()
    alternative: int = 0
    depth: int = 0
    inherits_priority: bool = False
    inherits_retries: bool = False
    has_inputs: bool = False
    num_returns: int = 1
    is_put: bool = False
    stream_window: int = 0
    results_stay: bool = False
    needs_function: str = ""
    runtime_env: RuntimeEnv | None = None
    blobs: tuple[bytes, ...] = field(init=False, repr=False, compare=False, default=())
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        # Classes key dictionaries on the hot path: hash once the fields in which two of a program
        # may differ alone. Those of one hash are compared field by field at each look.
        fields = (
            self.function, self.code_hash, self.nargs, self.kwarg_names, self.resources,
            self.labels, self.priority, self.max_retries, self.timeout_s, self.codec, self.executor,
            self.wait_for_resources, self.exclusive, self.label_selector, self.fallback,
            self.alternative, self.depth, self.has_inputs, self.num_returns, self.is_put,
            self.stream_window, self.runtime_env,
        )  # fmt: skip
        object.__setattr__(self, "_hash", hash(fields))
        own = (self.code_hash,) if self.code_hash else ()
        packages = self.runtime_env.packages if self.runtime_env is not None else ()
        object.__setattr__(self, "blobs", (*own, *packages))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[type[TaskClass], tuple[Any, ...]]:
        # The hash of a text differs from process to process, so it must not travel.
        return TaskClass, tuple(getattr(self, f.name) for f in fields(self) if f.init)

    @property
    def offered_function(self) -> str:
        """The registered function that its worker has to offer; "" for none."""
        return self.needs_function if self.code_hash else self.function

    @property
    def needs_code(self) -> bool:
        """Whether it takes a token that allows code: its function travels, or its environment."""
        is_code = bool(self.code_hash) or self.codec is Codec.PICKLE
        return is_code or self.runtime_env is not None

    @property
    def may_run_again(self) -> bool:
        """Whether its tasks can be run again when what they have returned is lost."""
        is_once = self.max_retries == 0 or self.exclusive
        return not (is_once or self.is_detached or self.is_put or self.stream_window)

    @property
    def lets_go(self) -> bool:
        """Whether a result goes when the session that wanted it needs it no more."""
        return self.results_stay or self.is_put

    def validate(self) -> None:
        """Check every field, as the head does for what a peer defined.

        Raises:
            ValueError: a field is out of range; the message names it and the range.
        """
        check_name("function", self.function)
        if self.needs_function:
            check_name("needs_function", self.needs_function)
        check_priority(self.priority)
        check_retries(self.max_retries)
        check_retries(self.oom_retries, "oom_retries")
        check_crash_limit(self.crash_limit)
        check_delay(self.retry_delay_s)
        exception_names(self.retry_exceptions)
        for name in ("timeout_s", "queue_timeout_s", "total_timeout_s"):
            value = getattr(self, name)
            if value:
                check_seconds(name, value)
        check_exclusive(self.exclusive, self.executor)
        if not 0 <= self.depth <= MAX_DEPTH:
            raise ValueError(f"depth {self.depth} is outside 0 to {MAX_DEPTH}")
        check_returns(self.num_returns)
        if self.results_stay and not self.may_run_again:
            raise ValueError("results can stay with a worker only of tasks that may run again")
        check_window(self.stream_window, is_process=self.executor is ExecutorKind.PROCESS)
        if len(self.code_hash) not in (0, 32):
            raise ValueError(f"code_hash must be 0 or 32 bytes, not {len(self.code_hash)}")
        if len(self.kwarg_names) > MAX_NAME or len(self.labels) > MAX_NAME:
            raise ValueError(f"at most {MAX_NAME} keyword arguments and labels are allowed")
        if self.runtime_env is not None:
            self.runtime_env.check()
        if len(self.fallback) > MAX_ALTERNATIVES:
            raise ValueError(f"at most {MAX_ALTERNATIVES} alternatives are allowed")


def check_requirements(needs: object) -> None:
    """Refuse what is neither None nor a `ResourceRequirements`.

    Raises:
        ValueError: as said.
    """
    if needs is not None and not isinstance(needs, ResourceRequirements):
        raise ValueError(
            "resource_requirements must be a ResourceRequirements, such as "
            f"ResourceRequirements(cpu_cores=2), not {needs!r:.80}"
        )


def check_lifetime(lifetime: object) -> None:
    """Refuse what is neither None nor "detached".

    Raises:
        ValueError: as said.
    """
    if lifetime not in (None, "detached"):
        raise ValueError(f"lifetime must be None or 'detached', not {lifetime!r:.80}")


def check_returns(num_returns: object) -> None:
    """Refuse what is no whole number from 1 to 10,000.

    Raises:
        ValueError: as said.
    """
    is_number = isinstance(num_returns, int) and not isinstance(num_returns, bool)
    if not (is_number and 1 <= num_returns <= MAX_RETURNS):  # type: ignore[operator]
        raise ValueError(f"num_returns must be 1 to {MAX_RETURNS}, not {num_returns!r:.80}")


def check_exclusive(exclusive: object, executor: ExecutorKind) -> None:
    """Refuse what is no bool, and exclusive tasks that could not be stopped.

    Raises:
        ValueError: as said.
    """
    if not isinstance(exclusive, bool):
        raise ValueError(f"exclusive must be True or False, not {exclusive!r:.80}")
    if exclusive and executor is not ExecutorKind.PROCESS:
        raise ValueError(
            "an exclusive task runs in a process (executor='process'): threads and coroutines "
            "cannot be stopped for sure"
        )


def check_arguments(args: object, kwargs: object) -> None:
    """Refuse what would become other arguments than were meant: a text would be its letters.

    Raises:
        ValueError: ``args`` is no list of arguments, or ``kwargs`` no mapping from names.
    """
    if type(args) is not tuple and type(args) is not list:
        is_one = isinstance(args, (str, bytes, bytearray, Mapping, Set))
        if is_one or not isinstance(args, Collection):
            raise ValueError(
                f"args must be a list of the positional arguments, not a {type(args).__name__}; "
                "put a single argument into a list too"
            )
    if not isinstance(kwargs, Mapping):
        raise ValueError(
            f"kwargs must be a mapping from names to values, not a {type(kwargs).__name__}"
        )
    for name in kwargs:
        if not isinstance(name, str):
            raise ValueError(f"kwargs: {name!r:.80} is not the name of an argument")


def check_labels(task_class: TaskClass) -> None:
    """Refuse what `check_label` refuses, in a class with all its alternatives.

    Raises:
        ValueError: as said.
    """
    for labels in (task_class.labels, *(each.labels for each in task_class.fallback)):
        for key, value in labels:
            check_label(key, value)


def check_priority(priority: object) -> None:
    """Refuse what is not an int32.

    Raises:
        ValueError: as said.
    """
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise ValueError(f"priority must be a whole number, not {priority!r:.80}")
    if not MIN_PRIORITY <= priority <= MAX_PRIORITY:
        raise ValueError(f"priority {priority} is outside {MIN_PRIORITY} to {MAX_PRIORITY}")


def check_retries(max_retries: object, field_name: str = "max_retries") -> None:
    """Refuse what is not None, -1 (no limit), or 0 to a million.

    Raises:
        ValueError: as said.
    """
    if max_retries is None:
        return
    if isinstance(max_retries, bool) or not isinstance(max_retries, int):
        raise ValueError(f"{field_name} must be a whole number, not {max_retries!r:.80}")
    if not -1 <= max_retries <= MAX_RETRIES_LIMIT:
        raise ValueError(
            f"{field_name} {max_retries} is outside -1 (no limit) to {MAX_RETRIES_LIMIT}"
        )


def check_crash_limit(crash_limit: object) -> None:
    """Refuse what is neither -1 (no limit) nor 1 to a million.

    Raises:
        ValueError: as said.
    """
    if isinstance(crash_limit, bool) or not isinstance(crash_limit, int):
        raise ValueError(f"crash_limit must be a whole number, not {crash_limit!r:.80}")
    if crash_limit != -1 and not 1 <= crash_limit <= MAX_RETRIES_LIMIT:
        raise ValueError(
            f"crash_limit {crash_limit} is neither -1 (no limit) nor 1 to {MAX_RETRIES_LIMIT}"
        )


def check_delay(retry_delay_s: object) -> None:
    """Refuse what is neither None nor a finite number of seconds from 0 to ten years.

    Raises:
        ValueError: as said.
    """
    if retry_delay_s != 0 or isinstance(retry_delay_s, bool):
        check_seconds("retry_delay_s", retry_delay_s)


def deadline_unix_s(deadline: object) -> float:
    """Return a deadline as seconds of Unix time, 0 for None.

    Raises:
        ValueError: neither a positive number nor a datetime with a time zone.
    """
    if deadline is None:
        return 0.0
    if isinstance(deadline, Moment):
        if deadline.tzinfo is None:
            raise ValueError("deadline: the datetime needs a time zone, such as timezone.utc")
        deadline = deadline.timestamp()
    if isinstance(deadline, bool) or not isinstance(deadline, int | float):
        raise ValueError(f"deadline must be Unix time or a datetime, not {deadline!r:.80}")
    if not 0 < deadline < MAX_UNIX_S:
        raise ValueError(f"deadline={deadline} is not a moment in seconds of Unix time")
    return float(deadline)


def check_seconds(field_name: str, seconds: object) -> None:
    """Refuse what is neither None nor a positive, finite number of seconds up to ten years.

    Raises:
        ValueError: as said.
    """
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise ValueError(f"{field_name} must be a number of seconds, not {seconds!r:.80}")
    if not 0 < seconds <= MAX_SECONDS:  # which NaN is not either
        raise ValueError(
            f"{field_name}={seconds} is outside (0, {MAX_SECONDS:g}] seconds; "
            "leave it out for no limit"
        )
