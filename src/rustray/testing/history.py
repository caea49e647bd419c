"""What happened in a simulation, and the rules that no history may break."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rustray.common.errors import InvariantError, ObjectLost, RustRayError
from rustray.common.records import record
from rustray.common.resources import CPU, GPU, ResourceSet
from rustray.scheduler.commands import GrantLease
from rustray.scheduler.state import SchedulerState
from rustray.task.failures import decode_failure
from rustray.task.frames import Outcome
from rustray.task.inputs import split_parts
from rustray.task.needs import Alternative
from rustray.task.place import Place
from rustray.task.selectors import matches
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from rustray.testing.clock import VirtualClock
from rustray.testing.placing import ValueBook

FREED: Final = "the value was freed: SimTask.free() was called"


@record
class SimNode:
    """What a simulated worker offers.

    Attributes:
        cpus: Cores.
        gpus: GPUs.
        labels: Labels that tasks can ask for.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def amounts(self) -> dict[str, float]:
        """Return its resources."""
        return {CPU: self.cpus, GPU: self.gpus}

    def can_run(self, task_class: TaskClass) -> bool:
        """Whether it has what one of the ways to run a task asks for."""
        total = ResourceSet.of(self.amounts).units
        own = Alternative(task_class.resources, task_class.labels, task_class.label_selector)
        return any(
            not way.resources.shortage(total)
            and all(self.labels.get(key) == value for key, value in way.labels)
            and matches(way.label_selector, self.labels)
            for way in (own, *task_class.fallback)
        )


@record
class HistoryEntry:
    """One thing that happened.

    Attributes:
        at_s: Virtual seconds since the simulation began.
        event: What, e.g. "accepted", "granted", "started", "ended", "worker crashed".
        where: The worker, the head or the link concerned, or "".
        task: Number of the task concerned; -1 for none.
        detail: More about it.
    """

    at_s: float
    event: str
    where: str = ""
    task: int = -1
    detail: str = ""

    def __str__(self) -> str:
        task = f" task {self.task}" if self.task >= 0 else ""
        parts = [self.event + task, self.where, self.detail]
        return f"{self.at_s:10.4f}  " + "  ".join(part for part in parts if part)


@dataclass(slots=True)
class Run:
    """One time that a task's function was called.

    Attributes:
        worker: Where.
        attempt: Number of the attempt, as the task itself sees it.
        started_at_s: Virtual seconds since the simulation began.
        ended_at_s: The same; None while it goes on.
        end: "running", "returned", "raised", "stopped" or "lost" (its process died).
    """

    worker: str
    attempt: int
    started_at_s: float
    ended_at_s: float | None = None
    end: str = "running"


@dataclass(slots=True)
class TaskRecord:
    """All that a simulation knows about one task.

    Attributes:
        outcome: As the client was told it, None before.
        error: Why the head refused the task, None if it did not.
        produced: The encoded results that runs of this task have really had.
        is_expired: The head has dropped the result before the client had it.
        takes: Numbers of the tasks whose results it takes.
        yielded: Of a generator: the items that its runs have really yielded, by index.
        items: Those that the client has received.
        consumed: How many of them its consumer is done with.
        read_every_s: How long the consumer takes for each.
        has_left: The consumer wants no more.
        held: An outcome that came before the last items.
        place: Where the value stays, as the client was told it first; None if it came along.
        freed_before: Tasks up to this number were handed in before it was freed; None: it was not.
        cancelled_in_life: In which of its lives it was cancelled for certain: each but the last
            has ended with a value that stayed.
    """

    number: int
    task_class: TaskClass
    payload: bytes
    takes_s: float | None
    deadline_unix_s: float = 0.0
    runs: list[Run] = field(default_factory=list)
    outcome: Outcome | None = None
    error: RustRayError | None = None
    produced: set[bytes] = field(default_factory=set)
    last_attempt: int = 0
    last_lease: int = 0
    is_accepted: bool = False
    is_sent_again: bool = False
    is_cancel_asked: bool = False
    is_cancelled_safely: bool = False
    is_expired: bool = False
    takes: tuple[int, ...] = ()
    yielded: dict[int, set[bytes]] = field(default_factory=dict)
    items: list[bytes] = field(default_factory=list)
    consumed: int = 0
    read_every_s: float = 0.0
    has_left: bool = False
    held: Outcome | None = None
    place: Place | None = None
    freed_before: int | None = None
    cancelled_in_life: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether the client knows how it ended, and has its value."""
        return self.outcome is not None or self.error is not None or self.is_expired

    @property
    def is_told(self) -> bool:
        """Whether the client knows how it ended, or where its value stays at least."""
        return self.place is not None or self.has_ended


class History:
    """Writes down what happens, and raises when a promise is broken.

    Attributes:
        entries: In order.
        tasks: By number.
        may_expire: Results are so limited that some are dropped before the client has them.
        nodes: What the workers offer, by name.
        frozen: Workers that are paused: their tasks stand still.
        ended_tasks: How many have ended.
        values: Which values stay where, and which of them are lost.
        names: Worker id to the name of the worker.
    """

    def __init__(self, clock: VirtualClock) -> None:
        self.entries: list[HistoryEntry] = []
        self.tasks: list[TaskRecord] = []
        self.may_expire = False
        self.nodes: dict[str, SimNode] = {}
        self.frozen: set[str] = set()
        self.ended_tasks = 0
        self.values = ValueBook()
        self.names: dict[str, str] = {}
        self._clock = clock
        self._start_s = clock.now

    def begin(self) -> None:
        """Count from now on."""
        self._start_s = self._clock.now

    @property
    def now(self) -> float:
        """Virtual seconds since the simulation began."""
        return self._clock.now - self._start_s

    def note(self, event: str, where: str = "", task: int = -1, detail: str = "") -> None:
        """Write something down."""
        self.entries.append(HistoryEntry(self.now, event, where, task, detail))

    def _require(self, condition: Any, task: TaskRecord, text: str) -> None:
        if not condition:
            raise InvariantError(f"task {task.number} {text}")

    # -- what happens, in the order in which it can ----------------------------------------

    def offers(self, worker: str, node: SimNode | float) -> SimNode:
        """A worker is made; returns what it offers."""
        self.nodes[worker] = node if isinstance(node, SimNode) else SimNode(node)
        return self.nodes[worker]

    def granted(self, grant: GrantLease) -> None:
        """The head leases tasks to a worker."""
        for number in range(grant.first, grant.first + len(grant.payloads)):
            task = self.tasks[number]
            where = self.names.get(grant.worker_id, grant.worker_id)
            self.note("granted", where, number, f"attempt {grant.attempt}")
            is_lost = self.values.is_lost(number)
            may_run = is_lost or not task.is_told
            self._require(may_run, task, "was leased after its end had been told")
            # A cancel holds for what had not ended; what ended in spite of it may be made again.
            may_run = is_lost and self.values.lives(number) > task.cancelled_in_life
            may_run = may_run or not task.is_cancelled_safely
            self._require(may_run, task, "was leased after its cancel was confirmed")
            if self.may_expire and task.is_sent_again:
                task.last_attempt = 0  # its end may have expired, and was handed in once more
                task.runs.clear()
            self._require(
                grant.attempt > task.last_attempt,
                task,
                f"was leased as attempt {grant.attempt} after attempt {task.last_attempt}",
            )
            is_fenced = grant.lease > task.last_lease
            self._require(is_fenced, task, f"was leased again under the lease {grant.lease}")
            task.last_attempt, task.last_lease = grant.attempt, grant.lease

    def started(self, number: int, worker: str, attempt: int, payload: bytes) -> Run:
        """A worker calls a task's function."""
        task = self.tasks[number]
        self.note("started", worker, number, f"attempt {attempt}")
        self._check_call(task, payload)
        self._require(
            self.nodes[worker].can_run(task.task_class), task, f"runs on {worker}, and may not"
        )
        may_run = task.task_class.max_retries != 0 or not task.runs
        self._require(may_run, task, "ran twice, with max_retries=0")
        others = [run.worker for run in task.runs if run.end == "running"]
        may_overlap = not task.task_class.exclusive or self.frozen.issuperset(others)
        self._require(may_overlap, task, f"is exclusive, and runs on {', '.join(others)} still")
        run = Run(worker, attempt, self.now)
        task.runs.append(run)
        return run

    def _check_call(self, task: TaskRecord, payload: bytes) -> None:
        """Check that a task got its own arguments, and what the tasks that it takes have made."""
        values: list[bytes] = []
        if task.takes:
            call, *encoded = split_parts(payload)
            payload, values = bytes(call), [bytes(one[1:]) for one in encoded]
        self._require(payload == task.payload, task, "got another task's arguments")
        self._require(len(values) == len(task.takes), task, "did not get all that it takes")
        for number, value in zip(task.takes, values, strict=True):
            has_made = value in self.tasks[number].produced
            self._require(has_made, task, f"got what no run of task {number} has made")

    def cancelled_safely(self, task: TaskRecord, life: int) -> None:
        """The client has been told that a cancel holds, for all but the task's first lives."""
        task.is_cancelled_safely = True
        task.cancelled_in_life = max(task.cancelled_in_life, life)
        self.note("cancel confirmed", "client", task.number)

    def _may_be_cancelled(self, task: TaskRecord) -> bool:
        """Whether somebody has asked to cancel a task, or one that it takes the result of."""
        return task.is_cancel_asked or any(
            self._may_be_cancelled(self.tasks[number]) for number in task.takes
        )

    def yielded(self, number: int, run: Run, index: int, payload: bytes) -> None:
        """A generator yields an item that the head is not known to have."""
        task = self.tasks[number]
        self.note("yielded", run.worker, number, f"item {index}")
        is_within = index < task.consumed + task.task_class.stream_window
        self._require(is_within, task, f"yielded item {index} with {task.consumed} consumed")
        task.yielded.setdefault(index, set()).add(payload)

    def received(self, number: int, first: int, payloads: list[bytes]) -> None:
        """The client has been told items; what it has, or came too early, it leaves out."""
        task = self.tasks[number]
        known = len(task.items) - first
        if not 0 <= known < len(payloads):
            return
        self._require(not task.has_ended, task, "had items after its end had been told")
        for payload in payloads[known:]:
            index = len(task.items)
            is_real = payload in task.yielded.get(index, ())
            self._require(is_real, task, f"has an item {index} that no run of it has yielded")
            task.items.append(payload)
            self.note("received", "client", number, f"item {index}")

    def stopped(self, number: int, run: Run, end: str) -> None:
        """A run is over, and no one but its worker knows."""
        if run.end == "running":
            run.end, run.ended_at_s = end, self.now
            self.note(end, run.worker, number, f"attempt {run.attempt}")

    def accepted(self, number: int) -> None:
        """The client has been told that a task is safe."""
        task = self.tasks[number]
        if not task.is_accepted:
            task.is_accepted = True
            self.note("accepted", "client", number)

    def rejected(self, number: int, error: RustRayError) -> None:
        """The client has been told that a task is refused."""
        task = self.tasks[number]
        self._require(not task.is_accepted, task, f"was refused after it was accepted: {error}")
        may_lack = not isinstance(error, ObjectLost) or self._may_lack(task)
        self._require(may_lack, task, f"was refused for what nobody has let go: {error}")
        self.ended_tasks += not task.has_ended
        task.error = error
        self.note("rejected", "client", number, str(error))

    def placed(self, number: int, place: Place) -> bool:
        """The client has been told where a value stays; whether it did not know of any before."""
        task = self.tasks[number]
        task.is_accepted = True
        self._require(task.task_class.results_stay, task, "has a value with a worker, and may not")
        is_its_own = self.values.task_of(place) == number
        self._require(is_its_own, task, f"has the value {place.object_id}, which was not saved")
        is_first = not task.is_told
        if is_first:
            task.place = place
            where = self.names.get(place.worker_id, place.worker_id)
            self.note("stayed", where, number, place.object_id)
            if task.freed_before is not None:
                self._let_go(task)
        return is_first and not task.has_ended

    def freed(self, number: int) -> None:
        """The client lets go of a result, now or when it is there."""
        task = self.tasks[number]
        self.note("freed", "client", number)
        if task.freed_before is None:
            task.freed_before = len(self.tasks)
            has_value = task.outcome is not None and task.outcome.state is TaskState.SUCCEEDED
            if has_value or (task.place is not None and not task.has_ended):
                self._let_go(task)

    def _let_go(self, task: TaskRecord) -> None:
        self.ended_tasks += not task.has_ended
        task.error = ObjectLost(FREED)

    def not_sent(self, number: int, error: RustRayError) -> None:
        """The client was told that a value cannot be had, though it is not lost."""
        self._require(False, self.tasks[number], f"has a value that cannot be had: {error}")

    def ended(self, number: int, outcome: Outcome) -> None:
        """The client has been told how a task ended, and has what it returned."""
        task = self.tasks[number]
        task.is_accepted = True
        old = task.outcome
        if old is not None:
            is_same = (old.state, old.payloads[0]) == (outcome.state, outcome.payloads[0])
            # Of one whose value was lost the next life may end otherwise.
            is_same = is_same or self.values.lives(number) > 0
            self._require(is_same, task, f"ended as {old.state.name} and as {outcome.state.name}")
            return
        if task.error is not None and task.freed_before is not None:
            return
        if len(task.items) < outcome.items and not task.has_left:
            task.held = outcome
            return
        if task.task_class.stream_window and not task.has_left:
            is_whole = len(task.items) == outcome.items
            self._require(is_whole, task, f"ended with {outcome.items} items, and has more")
        self.ended_tasks += not task.has_ended
        task.outcome = outcome
        where = self.names.get(outcome.worker_id, outcome.worker_id)
        self.note("ended", where, number, outcome.state.name)
        if outcome.state is TaskState.SUCCEEDED:
            is_its_own = outcome.payloads[0] in task.produced
            self._require(is_its_own, task, "has a result that no run of it has had")
            if task.freed_before is not None:
                task.error = ObjectLost(FREED)
        else:
            self._check_failure(task, outcome)
        budgets = (task.task_class.max_retries, task.task_class.oom_retries)
        # Each life has budgets of its own; one that has begun after a value was lost is the last.
        is_last = outcome.state is not TaskState.SUCCEEDED
        lives = max(self.values.lives(number) + is_last, 1)
        is_within = min(budgets) < 0 or outcome.attempts <= (1 + sum(budgets)) * lives
        self._require(is_within, task, f"took {outcome.attempts} attempts, {budgets} retries")

    def _check_failure(self, task: TaskRecord, outcome: Outcome) -> None:
        """Check that a task may have ended so, without a result."""
        if task.place is not None:
            was_lost = self.values.was_lost(task.number)
            self._require(was_lost, task, "had a value, which was not lost, and has failed")
        if outcome.state is TaskState.CANCELLED:
            may_be = self._may_be_cancelled(task)
            self._require(may_be, task, "was cancelled, and nobody asked for that")
        elif decode_failure(outcome.payloads[0]).code == ObjectLost.code:
            self._require(self._may_lack(task), task, "has lost what nobody has let go")

    def _may_lack(self, task: TaskRecord) -> bool:
        """Whether what a task takes, or what that was made of, may have been gone before it."""
        seen, waiting = {task.number}, [task]
        while waiting and not self.may_expire:
            one = waiting.pop()
            for producer in map(self.tasks.__getitem__, one.takes):
                freed = producer.freed_before
                if freed is not None and freed <= one.number:
                    return True
                if producer.number not in seen:
                    seen.add(producer.number)
                    waiting.append(producer)
        return self.may_expire

    def unknown(self, number: int) -> None:
        """The client was told that the head does not know a task that it had accepted."""
        task = self.tasks[number]
        if task.error is not None and task.freed_before is not None:
            return
        self._require(self.may_expire or not task.is_accepted, task, "was accepted and is lost")
        self.ended_tasks += not task.has_ended
        task.is_expired = True
        self.note("expired", "client", number)

    def head_started(self, state: SchedulerState) -> None:
        """A head begins, with what its journal has."""
        told = {task.number: task.place for task in self.tasks if task.place is not None}
        self.values.head_started(state, told)

    def head_lost(self) -> None:
        """The head died: the next one counts attempts from what is committed, fences go on."""
        for task in self.tasks:
            task.last_attempt = 0
