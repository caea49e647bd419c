"""Immutable pictures of the cluster, for CLI, clients and programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rustray.common.durability import Durability
from rustray.common.errors import PayloadError
from rustray.task.codec import decode_call
from rustray.task.failures import decode_failure
from rustray.task.functions import FunctionInfo
from rustray.task.result import FailureInfo
from rustray.task.spec import Codec
from rustray.task.state import TaskState


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """What is known of an access token that the head has made; never the token itself.

    Attributes:
        token_id: Its ``jti``.
        subject: Whom it names; a renewed token has the same.
        role: What its holder is.
        scopes: What its holder may beyond that, comma-separated; "code" or nothing.
        audience: Kind of node that takes it: head or worker.
        issued_unix_s: When it was made.
        expires_unix_s: When it ends, unless it is renewed.
        renewable_unix_s: Until when it can be.
        created_by: Subject of who asked for it.
    """

    token_id: str
    subject: str
    role: str
    scopes: str
    audience: str
    issued_unix_s: float
    expires_unix_s: float
    renewable_unix_s: float
    created_by: str

    @property
    def ends_unix_s(self) -> float:
        """When it is of no use to anybody any more."""
        return max(self.expires_unix_s, self.renewable_unix_s)


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker says of itself when it registers.

    Attributes:
        worker_id: ``<name>-<8 hex digits>``.
        incarnation: Grows with each start under the same id; the newer one wins.
        name: What the user called it, or the host's name.
        address: host:port of its WorkerService; "" in the embedded cluster.
        resources: Amounts by name (cores, megabytes, ...), as the user writes them.
        labels: Key to value.
        functions: What it offers by name.
        version: rustray's version there.
        pid: Process id.
        host_key: Names the host's boot and process namespace; lets a head on the same host
            find out at once that the process is gone. "" where unknown.
        object_port: Name of the Unix socket by which others of its machine get at its objects.
    """

    worker_id: str
    incarnation: int
    name: str
    address: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    functions: tuple[FunctionInfo, ...] = ()
    version: str = ""
    pid: int = 0
    host_key: str = ""
    object_port: str = ""


@dataclass(frozen=True, slots=True)
class Registered:
    """The head's answer to a registration.

    Attributes:
        session: Number of this session; the stream and each heartbeat carry it.
        heartbeat_interval_s: How often to send a heartbeat.
        lease_ttl_s: How long the head waits for one before it gives the work to others.
        takes_output: The head takes what tasks print.
    """

    session: int
    heartbeat_interval_s: float
    lease_ttl_s: float
    takes_output: bool = False


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Worker to head, beside the stream so that it never waits behind data.

    Attributes:
        sent: Number of the last frame that the worker put on the stream.
        received: Number of the last frame that it took from the stream.
        held: Lease number and count of its unfinished tasks, as of ``received``.
        running: Tasks running now.
        cpu_load_ratio: Load average per core.
        memory_used_mb: Of the worker's processes together.
        is_full: It starts no task, for want of room for results that the head has not taken.
        objects: Some of the values that it keeps.
    """

    worker_id: str
    session: int
    sent: int
    received: int
    held: tuple[tuple[int, int], ...] = ()
    running: int = 0
    cpu_load_ratio: float = 0.0
    memory_used_mb: float = 0.0
    is_full: bool = False
    objects: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """The head's answer.

    Attributes:
        is_known: False: the head does not know this session; register again.
        unneeded: Those of `Heartbeat.objects` that nobody needs any more.
    """

    is_known: bool
    unneeded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as the head sees it.

    Attributes:
        state: "ready", "disconnected" (its lease still runs) or "draining".
        resources: What it owns.
        used: What the tasks leased to it need.
        leased: Tasks leased to it, running or prefetched.
        finished: Tasks it has finished since it joined.
        last_seen_s: Seconds since the last heartbeat.
        host_key, object_port: As it registered, see `WorkerInfo`.
    """

    worker_id: str
    name: str
    address: str
    state: str
    resources: Mapping[str, float]
    used: Mapping[str, float]
    labels: Mapping[str, str]
    functions: tuple[str, ...]
    leased: int
    running: int
    finished: int
    last_seen_s: float
    version: str = ""
    pid: int = 0
    host_key: str = ""
    object_port: str = ""


@dataclass(frozen=True, slots=True)
class ObjectView:
    """A value that stays with a worker.

    Attributes:
        object_id: Its name there.
        task_id, function: What has made it.
        size: Bytes.
        age_s: Seconds since then.
        takers: Tasks that have not ended and take it.
        is_lost: Its worker is lost; it is made again when somebody needs it.
    """

    object_id: str
    task_id: str
    function: str
    size: int
    worker_id: str
    age_s: float
    takers: int = 0
    is_lost: bool = False


@dataclass(frozen=True, slots=True)
class ObjectTotal:
    """What a worker keeps.

    Attributes:
        objects: How many.
        bytes: Of all of them.
        lost: How many of them are lost.
    """

    worker_id: str
    objects: int
    bytes: int
    lost: int


@dataclass(frozen=True, slots=True)
class OfferedFunction:
    """A registered function that workers offer.

    Attributes:
        info: How to call it, as the worker that joined last announced it.
        worker_ids: Who offers it, in name order.
    """

    info: FunctionInfo
    worker_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task as the head sees it; times are wall clock, None where not there yet.

    ``progress`` (0 to 1) and ``message`` are what it said last, while it runs; ``durability`` is
    the level that it was accepted at.
    """

    task_id: str
    function: str
    state: TaskState
    priority: int
    attempts: int
    worker_id: str
    submitted_unix_s: float
    finished_unix_s: float | None = None
    error_code: str = ""
    error_message: str = ""
    progress: float | None = None
    message: str = ""
    durability: Durability = Durability.DEFAULT


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A task that ended badly, as it is kept: with its error and its arguments, still encoded.

    Attributes:
        task_id: 32 hex digits.
        state: FAILED, TIMED_OUT or POISONED.
        attempts: How often it was started.
        worker_id: Where it ran last, or "".
        codec: `Codec` value of the arguments.
        failure: Encoded error.
        arguments: The encoded call; None where it is not kept any more.
    """

    task_id: str
    function: str
    state: TaskState
    priority: int
    attempts: int
    worker_id: str
    submitted_unix_s: float
    finished_unix_s: float
    codec: int
    failure: bytes
    arguments: bytes | None

    @property
    def error(self) -> FailureInfo:
        """What went wrong, decoded; data only."""
        return decode_failure(self.failure)

    def call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Decode the arguments to (args, kwargs).

        Raises:
            PayloadError: they are not kept any more, or they are a pickle, which is not loaded:
                it can run code. Load ``arguments`` yourself if you trust who handed it in.
        """
        if self.arguments is None:
            raise PayloadError("the arguments are not kept any more")
        if self.codec == Codec.PICKLE:
            raise PayloadError("the arguments are a pickle, which is not loaded: it can run code")
        return decode_call(Codec(self.codec), self.arguments)


@dataclass(frozen=True, slots=True)
class TaskPage:
    """One page of a task list.

    Attributes:
        tasks: In order of acceptance.
        next_cursor: Pass it to get the next page; "" at the end.
        total: How many tasks match in all.
    """

    tasks: tuple[TaskView, ...]
    next_cursor: str
    total: int


@dataclass(frozen=True, slots=True)
class WorkerReason:
    """Why one worker does not run the task now (or that it could)."""

    worker_id: str
    is_feasible: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a task is where it is.

    Attributes:
        summary: One sentence for a person.
        position: Tasks ahead of it in its own class queue; -1 if it is not queued.
        workers: A reason per worker.
        advice: What would unblock it, or "".
        durability: The level that it was accepted at.
    """

    task_id: str
    state: TaskState
    summary: str
    position: int = -1
    workers: tuple[WorkerReason, ...] = ()
    advice: str = ""
    durability: Durability = Durability.DEFAULT

    def __str__(self) -> str:
        lines = [f"task {self.task_id} {self.state.name}: {self.summary}"]
        if self.position >= 0:
            lines.append(f"ahead of it in its queue: {self.position}")
        for each in self.workers:
            could = "could run it" if each.is_feasible else "cannot run it"
            lines.append(f"  {each.worker_id} {could}: {each.reason}")
        return "\n".join([*lines, self.advice] if self.advice else lines)


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The cluster at a glance.

    Attributes:
        cluster_id: Of the head's state directory.
        tasks: State name to number of tasks that the head still knows.
        counters: Name to total since the head's start (accepted, finished, retried,
            rejected by reason, ...).
        max_payload_bytes: Of one task's arguments, or a value that is put there; 0: not said.
        max_retries: Re-runs of tasks that say nothing of them; None: not said.
    """

    cluster_id: str
    version: str
    address: str
    uptime_s: float
    security: str
    durability: str
    strategy: str
    workers: int
    tasks: Mapping[str, int]
    resources: Mapping[str, float]
    used: Mapping[str, float]
    counters: Mapping[str, int]
    max_payload_bytes: int = 0
    max_retries: int | None = None
