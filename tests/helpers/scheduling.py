"""A bench around the real Scheduler: naive workers, and a ledger of each task's history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from helpers.builders import a_death, a_failure
from rustray.common.ids import SessionPrefix, task_id
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.scheduler.invariants import check
from rustray.scheduler.placed import unknown
from rustray.scheduler.scheduler import Scheduler
from rustray.scheduler.state import SchedulerSettings
from rustray.scheduler.value_commands import AdoptObject, FreeObject, SurrenderObject
from rustray.task.columns import PayloadColumn, PlacedColumn
from rustray.task.failures import encode_failure
from rustray.task.frames import CancelRequest, HeldRange, LeaseOutcome, LeaseRange, Surrendered
from rustray.task.functions import FunctionInfo, Parameter
from rustray.task.inputs import LACKS, InputId, pack_inputs
from rustray.task.needs import Alternative
from rustray.task.place import Place
from rustray.task.result import FailureInfo
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from rustray.task.views import WorkerInfo

PREFIX = b"0123456789"
_PAYLOADS = {TaskState.FAILED: a_failure(), TaskState.LEASED: a_death()}
ANYTHING = FunctionInfo("f", (Parameter("args", "args", False),))


def object_name(number: int, life: int) -> str:
    """Return what the value of a task is called at its worker."""
    return f"{task_id(SessionPrefix(PREFIX), number)}-{life}"


@dataclass
class NaiveWorker:
    """What a worker holds: lease number to its unfinished offsets; the values that it keeps.

    Attributes:
        asked: Values that the head has asked it to send.
        is_dead: Its process has ended.
    """

    worker_id: str
    session: int
    incarnation: int = 1
    held: dict[int, set[int]] = field(default_factory=dict)
    grants: dict[int, c.GrantLease] = field(default_factory=dict)
    is_open: bool = False
    is_draining: bool = False
    values: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    adopting: list[AdoptObject] = field(default_factory=list)
    is_dead: bool = False

    @property
    def address(self) -> str:
        """Where other workers reach it."""
        return f"{self.worker_id}:1"

    def place(self, object_id: str) -> PlacedColumn:
        """Say that it keeps a value."""
        place = Place(object_id, 1 << 20, self.worker_id, address=self.address)
        return PlacedColumn.of_item(place.pack())


class Bench:
    """Feeds events, checks every invariant after each, and keeps the ledger.

    Attributes:
        ended: Task sequence to the terminal states it was reported in since it was accepted or
            retried on request (one, if all is well).
        accepted: Sequences that were accepted.
        attempts: Sequence to attempt numbers granted, in order.
        fences: Sequence to the number of its newest lease.
        commands: Those of the last event.
    """

    def __init__(self, **settings: object) -> None:
        self.scheduler = Scheduler(SchedulerSettings(**settings))  # type: ignore[arg-type]
        self.now = 1000.0
        self.workers: dict[str, NaiveWorker] = {}
        self.ended: dict[int, list[TaskState]] = {}
        self.accepted: set[int] = set()
        self.rejected: dict[int, str] = {}
        self.attempts: dict[int, list[int]] = {}
        self.fences: dict[int, int] = {}
        self.grant_order: list[int] = []
        self.next_sequence = 0
        self.next_session = 1
        self.commands: list[c.Command] = []

    # -- feeding -------------------------------------------------------------

    def feed(self, event: e.Event) -> list[c.Command]:
        """Feed one event, apply its commands to the naive workers, check all invariants."""
        self.commands = self.scheduler.handle(event, self.now)
        persisted: set[int] = set()
        for command in self.commands:
            self._apply(command, persisted)
        check(self.scheduler.state)
        return self.commands

    def _apply(self, command: c.Command, persisted: set[int]) -> None:
        match command:
            case c.AcceptTasks():
                self.accepted.update(range(command.first, command.first + command.count))
            case c.RejectTasks():
                for number in range(command.first, command.first + command.count):
                    self.rejected[number] = command.error.code
            case c.PersistOutcome():
                first = command.outcome.first
                for number in range(first, first + len(command.outcome.payloads)):
                    persisted.add(number)
                    self.ended.setdefault(number, []).append(command.outcome.state)
            case c.PersistRetry():
                self._retry(command)
            case c.DeliverOutcome():
                first = command.outcome.first
                numbers = set(range(first, first + len(command.outcome.payloads)))
                assert numbers <= persisted or not numbers - set(self.ended), "ack before commit"
            case c.GrantLease():
                self._grant(command)
            case FreeObject() | SurrenderObject() | AdoptObject():
                self._tell_of_value(command)

    def _tell_of_value(self, command: FreeObject | SurrenderObject | AdoptObject) -> None:
        worker = self.workers.get(command.worker_id)
        if worker is None:
            return
        match command:
            case FreeObject():
                worker.values.discard(command.object_id)
            case SurrenderObject():
                worker.asked.append(command.object_id)
            case AdoptObject():
                worker.adopting.append(command)

    def _retry(self, command: c.PersistRetry) -> None:
        sessions = self.scheduler.state.sessions.values()
        (batch,) = (
            one for known in sessions for one in known.batches if one.number == command.batch
        )
        for offset in range(command.offset, command.offset + command.count):
            assert self.ended.pop(batch.first + offset), "what has not ended was retried"

    def _grant(self, command: c.GrantLease) -> None:
        worker = self.workers[command.worker_id]
        assert worker.is_open, "work was given to a worker without a session"
        self._check_place(command)
        worker.held[command.lease] = set(range(len(command.payloads)))
        worker.grants[command.lease] = command
        for number in range(command.first, command.first + len(command.payloads)):
            history = self.attempts.setdefault(number, [])
            assert not history or history[-1] < command.attempt, "attempt numbers must grow"
            history.append(command.attempt)
            assert self.fences.get(number, 0) < command.lease, "fences must grow"
            self.fences[number] = command.lease
            self.grant_order.append(number)
            assert number not in self.ended, "a task was given out after its end"

    def _check_place(self, command: c.GrantLease) -> None:
        """Check that a worker was given what it has the labels and the size for."""
        found = self.scheduler.state.find(command.prefix, command.first)
        assert found is not None
        asked, granted = found[0].queue.task_class, command.task_class
        ways: list[TaskClass | Alternative] = [asked, *asked.fallback]
        way = ways[granted.alternative]
        assert way.resources == granted.resources, "what was granted is none of the ways"
        record = self.scheduler.state.workers[command.worker_id]
        labels = record.info.labels
        assert not way.resources.shortage(record.load.total), "the worker is too small"
        assert all(labels.get(key) == value for key, value in way.labels)
        for key, expression in way.label_selector:
            values = expression.removeprefix("!").removeprefix("in(").removesuffix(")").split(",")
            assert (labels.get(key) in values) is not expression.startswith("!"), expression

    # -- what happens ----------------------------------------------------------

    def submit(self, count: int, task_class: TaskClass | None = None, size: int = 3) -> range:
        """Submit fresh tasks; returns their sequences."""
        first = self.next_sequence
        self.next_sequence += count
        payloads = PayloadColumn.of([b"x" * size] * count)
        self.feed(e.TasksSubmitted(PREFIX, first, task_class or TaskClass("f"), payloads, True))
        return range(first, first + count)

    def submit_taking(
        self, taken: Sequence[Sequence[int]], task_class: TaskClass | None = None
    ) -> range:
        """Submit fresh tasks that take the results of others: their sequences, for each task."""
        first, count = self.next_sequence, len(taken)
        self.next_sequence += count
        payloads = PayloadColumn.of([b"xxx"] * count)
        inputs = PayloadColumn.of(
            [pack_inputs(InputId(PREFIX, number) for number in each) for each in taken]
        )
        task_class = replace(task_class or TaskClass("f"), has_inputs=True)
        self.feed(e.TasksSubmitted(PREFIX, first, task_class, payloads, True, inputs=inputs))
        return range(first, first + count)

    def join(
        self,
        worker_id: str = "w-1",
        cpus: float = 2,
        *,
        incarnation: int = 1,
        functions: Sequence[FunctionInfo] = (ANYTHING,),
        labels: Mapping[str, str] | None = None,
        gpus: float = 0,
    ) -> NaiveWorker:
        """Register a worker and open its stream with an honest list of what it holds."""
        resources = {"cpu_cores": cpus, "gpus": gpus}
        worker = self.workers.get(worker_id)
        if worker is None or worker.incarnation != incarnation:
            worker = self.workers[worker_id] = NaiveWorker(worker_id, 0, incarnation)
        worker.session = self.next_session
        worker.is_open = False
        self.next_session += 1
        info = WorkerInfo(
            worker_id,
            incarnation,
            worker_id,
            worker.address,
            resources,
            labels or {},
            tuple(functions),
        )
        self.feed(e.WorkerJoined(info, worker.session))
        self.hello(worker)
        return worker

    def hello(self, worker: NaiveWorker) -> None:
        """Open the stream of a registered worker."""
        held = tuple(
            HeldRange(
                number,
                offset,
                1,
                worker.grants[number].prefix,
                worker.grants[number].first + offset,
                worker.grants[number].attempt,
                worker.grants[number].task_class.alternative,
                worker.grants[number].follows[0],
            )
            for number, offsets in worker.held.items()
            for offset in sorted(offsets)
        )
        worker.is_open = True
        self.report(worker, held=held)

    def report(self, worker: NaiveWorker, **parts: object) -> None:
        """Send a worker's frame."""
        event = e.WorkerReported(
            worker.worker_id,
            worker.session,
            parts.get("held"),  # type: ignore[arg-type]
            tuple(parts.get("outcomes", ())),  # type: ignore[arg-type]
            tuple(parts.get("returned", ())),  # type: ignore[arg-type]
            tuple(parts.get("started", ())),  # type: ignore[arg-type]
            worker.is_draining,
            bool(parts.get("has_drained", False)),
            tuple(parts.get("news", ())),  # type: ignore[arg-type]
            tuple(parts.get("blocked", ())),  # type: ignore[arg-type]
            tuple(parts.get("resumed", ())),  # type: ignore[arg-type]
            tuple(parts.get("items", ())),  # type: ignore[arg-type]
        )
        self.feed(event)

    def end(
        self,
        worker: NaiveWorker,
        lease: int,
        offset: int,
        count: int = 1,
        state: TaskState = TaskState.SUCCEEDED,
        run_us: int = 1000,
        payload: bytes | None = None,
    ) -> None:
        """Report that tasks of a lease have ended; a FAILED one has raised a ValueError."""
        self._no_longer_held(worker, lease, offset, count)
        if payload is None:
            payload = _PAYLOADS.get(state, b"r")
        payloads = PayloadColumn.of([payload] * count)
        self.report(worker, outcomes=[LeaseOutcome(lease, offset, state, payloads, run_us)])

    def end_placed(self, worker: NaiveWorker, lease: int, offset: int) -> str:
        """Report that a task has ended, and that its value stays; returns the value's name."""
        self._no_longer_held(worker, lease, offset, 1)
        grant = worker.grants[lease]
        name = object_name(grant.first + offset, grant.attempt)
        worker.values.add(name)
        column = worker.place(name)
        outcome = LeaseOutcome(lease, offset, TaskState.SUCCEEDED, column, 1000)
        self.report(worker, outcomes=[outcome])
        return name

    def lack_input(self, worker: NaiveWorker, lease: int, offset: int, object_id: str) -> None:
        """Report that a task could not have a value that it takes."""
        self._no_longer_held(worker, lease, offset, 1)
        info = FailureInfo("OBJECT_LOST", "an input could not be had", phase=LACKS + object_id)
        column = PayloadColumn.of([encode_failure(info)])
        self.report(worker, outcomes=[LeaseOutcome(lease, offset, TaskState.LEASED, column, 0)])

    def surrender(
        self, worker: NaiveWorker, object_id: str, value: bytes | None = b"v", trouble: str = ""
    ) -> None:
        """Send a value to the head that a worker was asked for; None: it is gone."""
        is_there = object_id in worker.values and value is not None
        column = PayloadColumn.of([value or b""]) if is_there and not trouble else None
        item = Surrendered(object_id, column, trouble, is_gone=not (is_there or trouble))
        if item.is_gone:
            worker.values.discard(object_id)
        self.feed(e.ValuesSurrendered(worker.worker_id, worker.session, (item,)))

    def adopt(self, worker: NaiveWorker, trouble: str = "") -> str:
        """Have a worker take over the first value that it was asked to; returns its new name."""
        order = worker.adopting.pop(0)
        holder = self.workers[order.place.worker_id]
        is_there = order.place.object_id in holder.values and not trouble
        column = worker.place(order.name) if is_there else None
        if is_there:
            worker.values.add(order.name)
        item = Surrendered(order.place.object_id, column, trouble or "" if is_there else "gone")
        self.feed(e.ValuesSurrendered(worker.worker_id, worker.session, (item,)))
        return order.name

    def drain(self, worker: NaiveWorker) -> None:
        """Send a worker away in good order."""
        self.feed(e.DrainRequested(worker.worker_id))

    def leave(self, worker: NaiveWorker) -> None:
        """Let a worker go that has nothing more to do."""
        self.report(worker, is_draining=True, has_drained=True)

    def ask_what_is_needed(self, worker: NaiveWorker) -> None:
        """Have a worker let go of the values that the head does not know."""
        worker.values.difference_update(
            unknown(self.scheduler.state, worker.worker_id, tuple(worker.values))
        )

    def _no_longer_held(self, worker: NaiveWorker, lease: int, offset: int, count: int) -> None:
        held = worker.held.get(lease, set())
        held.difference_update(range(offset, offset + count))
        if not held:
            worker.held.pop(lease, None)

    def give_back(self, worker: NaiveWorker, lease: int, offset: int, count: int) -> None:
        """Give tasks back unstarted."""
        held = worker.held.get(lease, set())
        held.difference_update(range(offset, offset + count))
        if not held:
            worker.held.pop(lease, None)
        self.report(worker, returned=[LeaseRange(lease, offset, count)])

    def finish_one(self, worker: NaiveWorker) -> bool:
        """End the oldest task that a worker holds; False if it holds none."""
        if not worker.held:
            return False
        lease = min(worker.held)
        self.end(worker, lease, min(worker.held[lease]))
        return True

    def run_all(self, limit: int = 100_000) -> None:
        """Let the open workers end everything they get."""
        for _ in range(limit):
            busy = [w for w in self.workers.values() if w.is_open and w.held]
            if not busy:
                return
            for worker in busy:
                self.finish_one(worker)
        raise AssertionError("the work never ends")

    def heartbeat(self, worker: NaiveWorker) -> None:
        """Send an honest heartbeat."""
        held = tuple((number, len(offsets)) for number, offsets in worker.held.items())
        self.feed(e.HeartbeatReceived(worker.worker_id, worker.session, held, 0))

    def disconnect(self, worker: NaiveWorker) -> None:
        """Break a worker's stream."""
        worker.is_open = False
        self.feed(e.WorkerDisconnected(worker.worker_id, worker.session))

    def die(self, worker: NaiveWorker) -> None:
        """Let a worker's process die, for certain."""
        worker.is_open, worker.is_dead = False, True
        worker.held.clear()
        worker.values.clear()
        self.feed(e.WorkerDied(worker.worker_id, worker.session))

    def cancel(self, first: int, count: int = 1, force: bool = False) -> None:
        """Cancel a range."""
        self.feed(e.CancelRequested(CancelRequest(PREFIX, first, count, force)))

    def retry(self, first: int, count: int = 1, horizon: int | None = None) -> None:
        """Retry dead letters on request."""
        up_to = self.scheduler.state.next_outcome - 1 if horizon is None else horizon
        self.feed(e.RetryRequested((e.LetterRange(PREFIX, first, count),), up_to))

    def purge(self, first: int, count: int = 1) -> None:
        """Purge dead letters; the ids of a batch of which nothing is left are free again."""
        up_to = self.scheduler.state.next_outcome - 1
        batches = self.scheduler.state.overlapping(PREFIX, first, count)
        self.feed(e.PurgeRequested((e.LetterRange(PREFIX, first, count),), up_to))
        gone = {one.batch for one in self.commands if isinstance(one, c.ForgetBatch)}
        for batch in batches:
            if batch.number in gone:
                for number in range(batch.first, batch.first + batch.count):
                    self.attempts.pop(number, None)
                    self.ended.pop(number, None)
                    self.accepted.discard(number)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, with the timer firing as the shell would let it."""
        target = self.now + seconds
        while True:
            due = self.scheduler.next_deadline()
            if due is None or due > target:
                break
            self.now = max(self.now, due)
            self.feed(e.TimePassed())
        self.now = target

    def state_of(self, number: int) -> TaskState:
        """Return a task's present state."""
        found = self.scheduler.task(PREFIX, number)
        assert found is not None
        return found.state

    def counts(self) -> Counter[TaskState]:
        """Count tasks by state."""
        return Counter(self.scheduler.state.counts)
