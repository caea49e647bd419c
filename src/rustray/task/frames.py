"""The columnar frames that streams carry, as plain values.

The in-process cluster passes these objects as they are; ``rpc/codec.py`` turns
them into protobuf and back. One frame carries everything that waited for the
stream to become free. ``number`` counts a session's frames from 1 in each direction,
``ack`` is the number of the last frame received from the other side: a duplicate is
dropped by its number, a gap ends the session, and what was never acked is sent
again in the next one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from rustray.common.durability import Durability
from rustray.common.records import record
from rustray.task.columns import PayloadColumn
from rustray.task.output import OutputAnswer, OutputQuestion
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from rustray.task.streams import LeaseItems, StreamCredit, StreamItems, StreamRead

MAX_NEWS_TEXT: Final = 256
"""Characters of a message of progress, or of an emitted value's name."""
MAX_NEWS_VALUE: Final = 4_096
"""Encoded bytes of an emitted value."""


@record
class ClassDefinition:
    """Introduces a task class under a small number, once per session and direction.

    Attributes:
        number: The sender's number for the class; 1 to 2**31 - 1.
        task_class: The class.
        code: The cloudpickled function where the receiver does not have it yet, else b"".
        packages: Packages of its environment that the receiver does not have yet.
    """

    number: int
    task_class: TaskClass
    code: bytes = b""
    packages: tuple[bytes, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of what travels along."""
        return len(self.code) + sum(map(len, self.packages))


@record
class Submission:
    """Consecutive tasks of one class, client to head.

    Attributes:
        class_number: From an earlier (or this frame's) `ClassDefinition`.
        first: Sequence of the first task under the session's prefix.
        payloads: Arguments, one item a task.
        deadline_unix_s: When they are ended wherever they are; 0 for never.
        durability: How safe they have to be before acceptance and outcomes are told.
        inputs: One item a task, of a class that has inputs: `rustray.task.inputs.pack_inputs`.
    """

    class_number: int
    first: int
    payloads: PayloadColumn
    deadline_unix_s: float = 0.0
    durability: Durability = Durability.DEFAULT
    inputs: PayloadColumn | None = None


@record
class TaskRange:
    """Consecutive tasks of a session: ``first`` to ``first + count - 1``."""

    first: int
    count: int


@record
class AcceptedRange:
    """Tasks ``first`` to ``first + count - 1`` were accepted.

    Attributes:
        durability: At which level: the one that was asked for, or a higher one.
    """

    first: int
    count: int
    durability: Durability = Durability.DEFAULT


@record
class Rejection:
    """Tasks that the head refused, and the typed error.

    Attributes:
        retry_after_s: Above 0: refused for the time being; when to hand them in again, from now.
        reason: Which limit was reached, or "".
    """

    first: int
    count: int
    code: str
    message: str
    retry_after_s: float = 0.0
    reason: str = ""


@record
class Outcome:
    """Consecutive tasks that ended alike, head to client.

    Attributes:
        first: Sequence of the first task.
        state: The terminal state that all of them reached.
        payloads: One item a task: the encoded value, or an encoded `FailureInfo`.
        worker_id: Where they ran, or "".
        attempts: How often each was started.
        items: Of a stream, which is never one of several: how many items it has yielded.
    """

    first: int
    state: TaskState
    payloads: PayloadColumn
    worker_id: str
    attempts: int
    items: int = 0


@record
class CancelRequest:
    """Cancel consecutive tasks.

    Attributes:
        prefix: 10 bytes; b"" means the session's own.
        first: Sequence of the first.
        count: How many.
        force: Kill the executor instead of asking the task to stop.
        spares_children: Leave alone what the tasks have handed in themselves.
    """

    prefix: bytes
    first: int
    count: int
    force: bool = False
    spares_children: bool = False

    @property
    def stop(self) -> int:
        """Sequence after the last."""
        return self.first + self.count


@dataclass(slots=True)
class ClientFrame:
    """Client to head."""

    number: int = 0
    ack: int = 0
    classes: list[ClassDefinition] = field(default_factory=list)
    submissions: list[Submission] = field(default_factory=list)
    cancels: list[CancelRequest] = field(default_factory=list)
    follow: list[TaskRange] = field(default_factory=list)
    """After a reconnect: acked tasks whose outcomes the client still waits for."""
    reads: list[StreamRead] = field(default_factory=list)
    """How far the consumers of streams have come."""
    released: list[TaskRange] = field(default_factory=list)
    """Results that the session does not need any more; only those count that their worker keeps."""
    token: str = ""
    """A renewed access token, before the one that opened the stream ends."""

    @property
    def has_content(self) -> bool:
        """Whether it is more than an ack, and is to be acked itself."""
        others = self.cancels or self.follow or self.classes or self.reads or self.released
        return bool(self.submissions or others)


@dataclass(slots=True)
class HeadFrame:
    """Head to client."""

    number: int = 0
    ack: int = 0
    accepted: list[AcceptedRange] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    unknown: list[TaskRange] = field(default_factory=list)
    """Answer to `ClientFrame.follow`: tasks that this head does not know."""
    items: list[StreamItems] = field(default_factory=list)
    """Of streams; they come before the outcomes of the same frame."""

    @property
    def has_content(self) -> bool:
        """Whether it is more than an ack, and is to be acked itself."""
        others = self.accepted or self.rejected or self.unknown or self.items
        return bool(self.outcomes or others)


@record
class LeaseGrant:
    """Head to worker: run these consecutive tasks, all under one attempt number.

    Attributes:
        lease: The head's number of this grant, never reused: it is the fence.
        class_number: From a `ClassDefinition` on this session.
        attempt: Attempt number of every task in it, from 1.
        prefix: Task ids' session prefix, 10 bytes.
        first: Task ids' first sequence.
        payloads: Arguments, one item a task.
        time_left_s: Until the tasks' limit from acceptance on; 0 for none.
        streams: How far those of its streams have come that earlier attempts have begun.
        follows: Lease and offset of a task of the same worker: its result is the input of the only
            task here, whose arguments lack it. (0, 0) for none.
    """

    lease: int
    class_number: int
    attempt: int
    prefix: bytes
    first: int
    payloads: PayloadColumn
    time_left_s: float = 0.0
    streams: tuple[StreamCredit, ...] = ()
    follows: tuple[int, int] = (0, 0)


@record
class LeaseRange:
    """Tasks ``offset`` to ``offset + count - 1`` of one lease."""

    lease: int
    offset: int
    count: int


@record
class HeldRange:
    """Tasks of one lease that a worker answers for, in the words of any head, also of a new one.

    Attributes:
        lease: The number that it was granted under.
        offset: Position of the first in the lease.
        prefix: Task ids' session prefix.
        first: Task id's sequence of the first.
        attempt: Attempt number of the lease.
        alternative: Which of the ways to run them that their class allows was granted.
        follows: Of one task that was granted behind the one whose result it takes: the lease of
            that; else 0.
    """

    lease: int
    offset: int
    count: int
    prefix: bytes
    first: int
    attempt: int
    alternative: int = 0
    follows: int = 0


@record
class LeaseCancel:
    """Head to worker: stop these tasks; ``force`` kills the executor at once."""

    lease: int
    offset: int
    count: int
    force: bool = False


@record
class LeaseOutcome:
    """Worker to head: consecutive tasks of a lease that ended alike.

    Attributes:
        lease: The grant they ran under.
        offset: Position of the first in the lease.
        state: SUCCEEDED, FAILED, CANCELLED or TIMED_OUT; or LEASED for "the executor died
            under it" (the head decides whether to retry).
        payloads: One item a task: encoded value or encoded `FailureInfo`.
        run_us: Run time of all of them together, in microseconds.
    """

    lease: int
    offset: int
    state: TaskState
    payloads: PayloadColumn
    run_us: int


@record
class LeaseNews:
    """Worker to head: what a running task says of itself; not kept, and lost if it cannot travel.

    Attributes:
        lease: The grant it runs under.
        offset: Its position in the lease.
        fraction: How far it is, 0 to 1; None for an emitted value.
        text: Progress: what it says beside the number, or ""; emitted: the name.
        value: Emitted: the value, as msgpack.
    """

    lease: int
    offset: int
    fraction: float | None
    text: str
    value: bytes = b""

    def check(self) -> None:
        """Refuse what no task can have said.

        Raises:
            ValueError: a field is out of range, or of another type.
        """
        if type(self.lease) is not int or type(self.offset) is not int or self.lease < 0:
            raise ValueError("news of no lease")
        if type(self.text) is not str or len(self.text) > MAX_NEWS_TEXT:
            raise ValueError(f"a text in news has more than {MAX_NEWS_TEXT} characters")
        if type(self.value) is not bytes or len(self.value) > MAX_NEWS_VALUE:
            raise ValueError(f"a value in news has more than {MAX_NEWS_VALUE} bytes")
        if self.fraction is None:
            if not self.text:
                raise ValueError("an emitted value without a name")
        elif type(self.fraction) is not float or not 0.0 <= self.fraction <= 1.0:
            raise ValueError(f"progress {self.fraction!r:.80} is outside 0 to 1")


@record
class Surrendered:
    """Worker to head: a value that it kept, or was to take over, as it was asked.

    Attributes:
        object_id: Its name where it was.
        payloads: The value, or its new place; None where it cannot be had.
        trouble: Why not; "" with the value.
        is_gone: It is not there (any more).
    """

    object_id: str
    payloads: PayloadColumn | None = None
    trouble: str = ""
    is_gone: bool = False


@record
class Adoption:
    """Head to worker: take over a value from a worker that leaves.

    Attributes:
        name: What it is called from then on.
        place: Where it is, packed.
        token: Opens it there.
    """

    name: str
    place: bytes
    token: str = ""


@dataclass(slots=True)
class AssignFrame:
    """Head to worker."""

    number: int = 0
    ack: int = 0
    classes: list[ClassDefinition] = field(default_factory=list)
    leases: list[LeaseGrant] = field(default_factory=list)
    cancels: list[LeaseCancel] = field(default_factory=list)
    recall: list[LeaseRange] = field(default_factory=list)
    """Give these back if they have not started (take-back for a higher priority or idle peer)."""
    drain: bool = False
    """Take no more work, finish what runs, give back the rest, then leave."""
    output: list[OutputQuestion] = field(default_factory=list)
    """What tasks have printed; for the worker's shell, its core does not look at them."""
    credits: list[StreamCredit] = field(default_factory=list)
    """How far the consumers of streams have come."""
    free: list[str] = field(default_factory=list)
    """Values that nobody needs any more; for the worker's shell, as `surrender`."""
    surrender: list[str] = field(default_factory=list)
    """Values that are to be sent here."""
    adopt: list[Adoption] = field(default_factory=list)
    """Values to take over; for the worker's shell too, which answers as to `surrender`."""


@dataclass(slots=True)
class WorkerFrame:
    """Worker to head."""

    number: int = 0
    ack: int = 0
    held: list[HeldRange] | None = None
    """First frame of a session only: everything leased to the worker that it still answers for:
    not started, running, or finished with an outcome that the head has not acked."""
    outcomes: list[LeaseOutcome] = field(default_factory=list)
    returned: list[LeaseRange] = field(default_factory=list)
    """Given back unstarted, never to be started by this worker."""
    started: list[LeaseRange] = field(default_factory=list)
    """Running, for tasks that have been running for a while."""
    blocked: list[LeaseRange] = field(default_factory=list)
    """Running, and waiting for tasks of their own: they hold no core meanwhile."""
    resumed: list[LeaseRange] = field(default_factory=list)
    """Those that wait no more, and hold their cores again."""
    news: list[LeaseNews] = field(default_factory=list)
    items: list[LeaseItems] = field(default_factory=list)
    """Of streams; they come before the outcomes of the same frame."""
    surrendered: list[Surrendered] = field(default_factory=list)
    """Only in frames without a number, as `output`: the head asks again in the next session."""
    draining: bool = False
    """The worker takes no more work (it was told to stop); repeated in every frame from then on."""
    drained: bool = False
    """The last frame: the worker holds nothing any more and leaves."""
    printing: list[bytes] = field(default_factory=list)
    """Prefixes of sessions that have begun to print; only in frames without a number, as `output`:
    these are not acked, and lost with their stream."""
    output: list[OutputAnswer] = field(default_factory=list)
    token: str = ""


@record
class NestedItem:
    """A message of the session of one task that hands in tasks itself.

    Attributes:
        channel: The worker's number for the session, used once in a stream.
        opens: (lease, offset) of the task; None but in the first item.
        data: An encoded frame: `ClientFrame` to the head, `HeadFrame` from it.
        ends: The session is over.
        code, message: Why; "" for an orderly end.
    """

    channel: int
    opens: tuple[int, int] | None = None
    data: bytes = b""
    ends: bool = False
    code: str = ""
    message: str = ""


@dataclass(slots=True)
class NestedFrame:
    """Worker to head and back: what waits of all these sessions."""

    number: int = 1
    items: list[NestedItem] = field(default_factory=list)
    token: str = ""
