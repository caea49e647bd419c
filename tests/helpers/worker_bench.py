"""A bench around the real WorkerManager: naive executors, a naive head, and a ledger of both.

The head's end of the stream delivers, loses and repeats frames as it is told. The ledger
notes what became of every task that the worker was ever given, and `assert_all_told` says
whether each was told exactly once.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256

from rustray.common.resources import CPU, GPU, UNIT, ResourceSet
from rustray.task.columns import PayloadColumn
from rustray.task.frames import (
    AssignFrame,
    ClassDefinition,
    HeldRange,
    LeaseCancel,
    LeaseGrant,
    LeaseOutcome,
    LeaseRange,
    WorkerFrame,
)
from rustray.task.inputs import split_parts
from rustray.task.runtime_env import RuntimeEnv
from rustray.task.spec import ExecutorKind, TaskClass
from rustray.task.state import TaskState
from rustray.worker import events as e
from rustray.worker.blocking import may_start
from rustray.worker.manager import WorkerManager
from rustray.worker.state import WorkerLimits

PREFIX = b"0123456789"
Key = tuple[int, int]
PACKAGES = {sha256(content).digest(): content for content in (b"a" * 500, b"b" * 600, b"c" * 700)}
"""What there is to be sent as packages of runtime environments."""


def a_class(
    name: str = "f",
    *,
    cpu: float = 1,
    priority: int = 0,
    kind: ExecutorKind = ExecutorKind.PROCESS,
    timeout_s: float = 0.0,
    max_retries: int = 3,
    depth: int = 0,
    env: RuntimeEnv | None = None,
    **resources: float,
) -> TaskClass:
    """Return a task class that needs this."""
    return TaskClass(
        name,
        resources=ResourceSet.of({CPU: cpu, **resources}),
        priority=priority,
        executor=kind,
        timeout_s=timeout_s,
        max_retries=max_retries,
        depth=depth,
        runtime_env=env,
    )


@dataclass
class FakeExecutor:
    """Runs what it is given when it is told to; the first task is the running one."""

    executor_id: int
    kind: ExecutorKind
    is_ready: bool = False
    classes: dict[int, TaskClass] = field(default_factory=dict)
    tasks: dict[Key, TaskClass] = field(default_factory=dict)
    owes_answer: bool = False
    is_silent: bool = False
    is_late: bool = False
    """What counted as running when the rest was taken had not begun, and may be given back yet."""
    interrupts: list[Key] = field(default_factory=list)
    notices: list[Key] = field(default_factory=list)
    signal: int | None = None
    guard: float = math.inf
    setting: e.Setting = e.PLAIN
    seen: set[object] = field(default_factory=set)
    gpus: dict[Key, tuple[str, ...]] = field(default_factory=dict)
    along: dict[Key, Key] = field(default_factory=dict)
    """Tasks that take the result of the one before them, and which that is."""
    unrun: list[Key] = field(default_factory=list)
    """What it does not run for it has not what they take, and has not said so yet."""
    waiting: dict[Key, bool] = field(default_factory=dict)
    """Tasks that wait for others; true once they want to go on."""


@dataclass
class WorkerBench:
    """Feeds events, checks every invariant after each, and keeps the ledger.

    Attributes:
        executors: Those alive.
        told: What the head learned of each task: the state, or None for given back.
        started: Tasks that the head was told run.
        result: What each task returns.
        writing: Sheaves under way to disk.
        disk: Those that are there.
        reading: Those that are wanted back.
        damaged: Tasks whose outcomes were lost on disk.
    """

    total: dict[str, float]
    memory_bytes: int = 128_000_000
    disk_bytes: int = 0
    result: bytes = b"r"
    now: float = 100.0
    writing: dict[int, list[LeaseOutcome]] = field(default_factory=dict)
    disk: dict[int, list[LeaseOutcome]] = field(default_factory=dict)
    reading: list[int] = field(default_factory=list)
    damaged: set[Key] = field(default_factory=set)
    packages: dict[bytes, bytes] = field(default_factory=dict)
    executors: dict[int, FakeExecutor] = field(default_factory=dict)
    told: dict[Key, TaskState | None] = field(default_factory=dict)
    repeats: Counter[Key] = field(default_factory=Counter)
    started: list[LeaseRange] = field(default_factory=list)
    granted: dict[int, tuple[int, TaskClass]] = field(default_factory=dict)
    follows: dict[int, Key] = field(default_factory=dict)
    runs: Counter[Key] = field(default_factory=Counter)
    order: list[Key] = field(default_factory=list)
    direct: list[LeaseOutcome] = field(default_factory=list)
    closed: list[e.CloseSession] = field(default_factory=list)
    held: list[HeldRange] | None = None
    has_left: bool = False
    has_drained: bool = False
    session: int | None = None
    last_session: int = 0
    sent: int = 0
    received: int = 0
    next_lease: int = 1
    next_sequence: int = 0
    numbers: dict[TaskClass, int] = field(default_factory=dict)
    sent_packages: set[bytes] = field(default_factory=set)
    package_bytes: int = 2_000_000_000
    last_frame: AssignFrame | None = None

    def __post_init__(self) -> None:
        self.limits = WorkerLimits(
            ResourceSet.of(self.total), 4, 8, 30.0, self.memory_bytes, self.disk_bytes,
            package_bytes=self.package_bytes,
        )  # fmt: skip
        self.manager = WorkerManager(self.limits)

    # ── Feeding ───────────────────────────────────────────────────────────────────────────

    def feed(self, event: e.Event) -> list[e.Command]:
        """Hand the core an event, carry out what it answers, check everything."""
        commands = self.manager.handle(event, self.now)
        for command in commands:
            self._carry_out(command)
        self.manager.check()
        self.check_use()
        self._check_priorities(commands)
        return commands

    def _carry_out(self, command: e.Command) -> None:
        match command:
            case e.StartExecutor():
                assert command.executor_id not in self.executors
                self.executors[command.executor_id] = FakeExecutor(
                    command.executor_id, command.kind
                )
            case e.DefineClass():
                executor = self.executors[command.executor_id]
                assert command.class_number not in executor.classes
                executor.classes[command.class_number] = command.task_class
            case e.DispatchTasks():
                self._dispatch(command)
            case e.Reclaim():
                executor = self.executors[command.executor_id]
                assert not executor.is_silent, "it has nothing more to give"
                executor.owes_answer = True
            case e.Interrupt():
                executor = self.executors[command.executor_id]
                asked = executor.notices if command.is_notice else executor.interrupts
                asked.append((command.lease, command.offset))
            case e.KillExecutor():
                self.executors[command.executor_id].signal = command.signal
            case e.WriteSheaf() | e.ReadSheaf() | e.DropSheaf():
                self._use_disk(command)
            case _:
                self._carry_out_rare(command)

    def _carry_out_rare(self, command: e.Command) -> None:
        match command:
            case e.PrepareExecutor():
                executor = self.executors[command.executor_id]
                executor.setting = command.setting
            case e.KeepPackage():
                assert command.digest not in self.packages
                self.packages[command.digest] = command.content
            case e.DropPackage():
                del self.packages[command.digest]
            case e.CloseSession():
                self.closed.append(command)
                self.session = None
            case e.ResumeTask():
                executor = self.executors[command.executor_id]
                executor.waiting.pop((command.lease, command.offset), None)
            case e.GuardExecutor():
                self.executors[command.executor_id].guard = command.until
            case e.DeliverDirect():
                self.direct.append(command.outcome)
            case e.Leave():
                assert not self.has_left
                self.has_left = True

    def _use_disk(self, command: e.WriteSheaf | e.ReadSheaf | e.DropSheaf) -> None:
        number = command.number
        match command:
            case e.WriteSheaf():
                assert number not in self.disk | self.writing
                self.writing[number] = command.outcomes
            case e.ReadSheaf():
                assert number in self.disk
                self.reading.append(number)
            case e.DropSheaf():
                del self.disk[number]

    def _dispatch(self, command: e.DispatchTasks) -> None:
        executor = self.executors[command.executor_id]
        assert executor.is_ready
        assert executor.signal is None
        task_class = executor.classes[command.class_number]
        count, granted_class = self.granted.get(command.lease, (1, task_class))
        assert granted_class == task_class
        assert command.offset >= 0
        assert command.offset + len(command.payloads) <= count
        for position, payload in enumerate(command.payloads):
            key = (command.lease, command.offset + position)
            assert key not in self.told
            executor.along.pop(key, None)
            if command.follows[0]:
                assert self.follows[command.lease] == command.follows
                assert list(executor.tasks)[-1] == command.follows, "it does not come after that"
                executor.along[key] = command.follows
            elif self.follows.get(command.lease, (0, 0))[0]:
                payload, value = map(bytes, split_parts(payload))
                assert value[1:] == self.result
            if command.lease < e.DIRECT_LEASES:
                assert payload == str(command.first + position).encode()
            self.runs[key] += 1
            self.order.append(key)
            executor.tasks[key] = task_class
            if executor.setting.gpu_ids is not None:
                executor.gpus[key] = executor.setting.gpu_ids
        assert executor.setting.alternative == task_class.alternative
        assert executor.setting.runtime_env == task_class.runtime_env
        if task_class.runtime_env is not None:
            assert set(task_class.runtime_env.packages) <= self.packages.keys(), "no package"
        if executor.kind is ExecutorKind.PROCESS:
            setting = executor.setting
            assert setting.threads == max(1, int(task_class.resources.amounts().get(CPU, 0)))
            executor.seen.add((setting.gpu_ids or (), setting.runtime_env))
            assert len(executor.seen) == 1, "a process was given other GPUs, or another environment"

    def check_use(self) -> None:
        """Check, from what the executors hold, that no resource is used twice."""
        used: Counter[str] = Counter()
        for executor in self.executors.values():
            holds = list(executor.tasks.items())
            for key, task_class in holds[:1] if executor.kind is ExecutorKind.PROCESS else holds:
                needs = dict(task_class.resources.units)
                if key in executor.waiting:
                    needs.pop(CPU, None)
                used.update(needs)
        for name, units in used.items():
            assert units <= self.limits.resources.units.get(name, 0), f"{name} is overcommitted"
        self._check_gpus()

    def _check_gpus(self) -> None:
        """Check that whole GPUs have one task, and parts of one are no more than it."""
        used: Counter[str] = Counter()
        for executor in self.executors.values():
            holds = list(executor.tasks.items())
            for key, task_class in holds[:1] if executor.kind is ExecutorKind.PROCESS else holds:
                need = task_class.resources.units.get(GPU, 0)
                ids = executor.gpus.get(key, ())
                assert len(set(ids)) == len(ids) == -(-need // UNIT)
                for index, gpu_id in enumerate(ids):
                    used[gpu_id] += min(UNIT, need - index * UNIT)
        for gpu_id, units in used.items():
            assert units <= UNIT, f"GPU {gpu_id} is given out for {units}"

    def _check_priorities(self, commands: list[e.Command]) -> None:
        lanes = self.manager._state.backlog.lanes.values()
        for command in commands:
            if isinstance(command, e.DispatchTasks) and command.executor_id in self.executors:
                executor = self.executors[command.executor_id]
                mine = executor.classes[command.class_number]
                if mine.executor is not ExecutorKind.PROCESS:
                    continue
                for lane in lanes:
                    is_alike = lane.key[1:3] + lane.key[5:] == (
                        mine.resources, mine.executor, mine.runtime_env,
                    )  # fmt: skip
                    is_alike = is_alike and may_start(self.manager._state, lane)
                    assert not (is_alike and lane.key.priority > mine.priority), "overtaken"

    # ── The pool ──────────────────────────────────────────────────────────────────────────

    def start(self) -> WorkerBench:
        """Start the pool, with every executor ready at once, and open a session."""
        self.feed(e.PoolStarted())
        self.make_ready()
        self.open()
        return self

    def make_ready(self) -> None:
        """Let all executors that were started become ready."""
        for executor in list(self.executors.values()):
            if not executor.is_ready:
                executor.is_ready = True
                self.feed(e.ExecutorReady(executor.executor_id, 1000 + executor.executor_id))

    def finish(
        self,
        executor_id: int,
        count: int = 1,
        state: TaskState = TaskState.SUCCEEDED,
        run_us: int = 10,
        *,
        is_large: bool = False,
    ) -> None:
        """Let an executor end its first tasks, reported as it would: runs of one lease.

        Nobody can take a large result in the executor: what follows is given back, bit by bit
        with `tell_unrun`. After a failure it is given back at once.
        """
        executor = self.executors[executor_id]
        executor.is_silent = executor.is_late = False
        keys = list(executor.tasks)[:count]
        is_end = is_large or state is not TaskState.SUCCEEDED
        if is_end:
            after = [n for n, key in enumerate(keys) if executor.along.get(key) in keys]
            keys = keys[: after[0]] if after else keys
        ended = set(keys) if is_end else set()
        outcomes: list[LeaseOutcome] = []
        while keys:
            lease, low = keys[0]
            high = low
            while keys and keys[0] == (lease, high):
                executor.waiting.pop(keys[0], None)
                del executor.tasks[keys.pop(0)]
                high += 1
            column = PayloadColumn.of([self.result] * (high - low))
            outcomes.append(LeaseOutcome(lease, low, state, column, run_us * (high - low)))
        self.feed(e.ExecutorReported(executor_id, outcomes))
        self._give_up(executor, ended)
        if not is_large:
            self.tell_unrun(executor_id)

    def _give_up(self, executor: FakeExecutor, ended: set[Key]) -> None:
        """Let an executor give back what follows tasks that have not succeeded, and so on."""
        for key in list(executor.tasks):
            if executor.along.get(key) in ended:
                ended.add(key)
                del executor.tasks[key]
                self.runs[key] -= 1
                executor.unrun.append(key)

    def tell_unrun(self, executor_id: int, most: int = 1_000_000) -> None:
        """Let an executor tell of what it does not run, in order."""
        executor = self.executors.get(executor_id)
        if executor is not None and executor.unrun:
            told, executor.unrun = executor.unrun[:most], executor.unrun[most:]
            ranges = [LeaseRange(*key, 1) for key in told]
            self.feed(e.ExecutorReturned(executor_id, ranges, is_asked=False))

    def finish_all(self, run_us: int = 10) -> None:
        """Run until no executor holds anything and nothing can start."""
        for _ in range(100_000):
            for executor_id in list(self.executors):
                self.tell_unrun(executor_id)
            busy = [x for x in self.executors.values() if x.tasks and x.signal is None]
            self.make_ready()
            for executor in [x for x in self.executors.values() if x.owes_answer]:
                self.answer(executor.executor_id)
            for executor in [x for x in self.executors.values() if x.signal is not None]:
                self.die(executor.executor_id)
            if not busy and not any(x.tasks for x in self.executors.values()):
                return
            for executor in busy:
                if executor.executor_id in self.executors and executor.tasks:
                    self.finish(executor.executor_id, len(executor.tasks), run_us=run_us)
        raise AssertionError("the worker never comes to rest")

    def block(self, executor_id: int, position: int = 0) -> None:
        """Let a task of an executor wait for others."""
        executor = self.executors[executor_id]
        key = list(executor.tasks)[position]
        executor.waiting[key] = False
        self.feed(e.TaskBlocked(executor_id, *key))

    def wake(self, executor_id: int, position: int = 0) -> None:
        """Let a task that waits ask to go on."""
        executor = self.executors[executor_id]
        key = list(executor.waiting)[position]
        executor.waiting[key] = True
        self.feed(e.TaskWoke(executor_id, *key))

    def answer(self, executor_id: int) -> None:
        """Let an executor answer a reclaim: all but the running task goes back."""
        executor = self.executors[executor_id]
        executor.owes_answer = False
        ranges = []
        for key in list(executor.tasks)[1:]:
            del executor.tasks[key]
            self.runs[key] -= 1
            ranges.append(LeaseRange(*key, 1))
        self.feed(e.ExecutorReturned(executor_id, ranges))

    def take_back(self, executor_id: int, begun: int, *, is_late: bool = False) -> None:
        """Take what an executor has not begun that does not answer; the last of the others runs.

        If it ``is_late``, it has not begun that one either, and may give it back.
        """
        executor = self.executors[executor_id]
        executor.owes_answer, executor.is_silent, executor.is_late = False, True, is_late
        *_, running = keys = list(executor.tasks)[:begun]
        ranges = []
        for key in list(executor.tasks)[len(keys) :]:
            del executor.tasks[key]
            self.runs[key] -= 1
            ranges.append(LeaseRange(*key, 1))
        self.feed(e.ExecutorReturned(executor_id, ranges, running=LeaseRange(*running, 1)))

    def answer_late(self, executor_id: int) -> None:
        """Let an executor give back what it has not begun after all."""
        executor = self.executors[executor_id]
        executor.is_silent = executor.is_late = False
        ranges = []
        for key in list(executor.tasks):
            del executor.tasks[key]
            self.runs[key] -= 1
            ranges.append(LeaseRange(*key, 1))
        self.feed(e.ExecutorReturned(executor_id, ranges, is_asked=False))

    def obey(self, executor_id: int) -> None:
        """Let an executor end the tasks that it was asked to stop."""
        executor = self.executors[executor_id]
        asked = [*executor.notices, *executor.interrupts]
        executor.notices.clear()
        executor.interrupts.clear()
        for key in asked:
            executor.waiting.pop(key, None)
            if executor.tasks.pop(key, None) is not None:
                executor.is_silent = False
                column = PayloadColumn.of([b"stopped"])
                outcome = LeaseOutcome(*key, TaskState.CANCELLED, column, 5)
                self.feed(e.ExecutorReported(executor_id, [outcome]))
                self._give_up(executor, {key})
                self.tell_unrun(executor_id)

    def die(self, executor_id: int, *, knows_task: bool = True) -> None:
        """Let an executor die, of the signal it was sent or of a fault of its own."""
        self.tell_unrun(executor_id)  # what it has sent is read first
        executor = self.executors.pop(executor_id)
        keys = list(executor.tasks)
        is_single = executor.kind is ExecutorKind.PROCESS
        present = (keys[-1] if executor.is_silent else keys[0]) if keys else None
        for key in keys if is_single else ():
            self.runs[key] -= key != present
        running = present if knows_task and is_single else None
        self.feed(e.ExecutorExited(executor_id, None, executor.signal or 11, running, "tail\n"))

    def advance(self, seconds: float) -> None:
        """Let time pass, with every deadline of the core on its time."""
        end = self.now + seconds
        for _ in range(10_000):
            due = self.manager.next_deadline()
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            self.feed(e.TimePassed())
        else:
            raise AssertionError("the core's deadlines never end")
        self.now = end

    # ── The disk ──────────────────────────────────────────────────────────────────────────

    def write(self, *, is_stored: bool = True) -> None:
        """Let the disk take the first sheaf that is under way, or refuse it."""
        number = min(self.writing)
        outcomes = self.writing.pop(number)
        if is_stored:
            self.disk[number] = outcomes
        self.feed(e.SheafWritten(number, is_stored))

    def read(self, *, is_whole: bool = True) -> None:
        """Let the disk give the first sheaf back that is wanted, whole or not."""
        number = self.reading.pop(0)
        outcomes = self.disk.pop(number)
        if not is_whole:
            for one in outcomes:
                places = range(one.offset, one.offset + len(one.payloads))
                self.damaged.update((one.lease, place) for place in places)
        self.feed(e.SheafRead(number, outcomes if is_whole else None))

    def settle_disk(self) -> None:
        """Let the disk do all that it was asked for."""
        while self.writing or self.reading:
            if self.writing:
                self.write()
            if self.reading:
                self.read()

    # ── The head ──────────────────────────────────────────────────────────────────────────

    def open(self, *, asked_at: float = 0.0, lease_ttl_s: float = math.inf) -> None:
        """Open a session."""
        self.last_session += 1
        self.session = self.last_session
        self.sent = self.received = 0
        self.numbers.clear()
        self.sent_packages.clear()
        self.last_frame = None
        self.feed(e.SessionOpened(self.session, asked_at, lease_ttl_s))

    def close(self, *, is_orderly: bool = False) -> None:
        """Break the session; what was not delivered is lost."""
        session, self.session = self.session, None
        assert session is not None
        self.feed(e.SessionClosed(session, is_orderly))

    def send(self, frame: AssignFrame) -> None:
        """Number and deliver a frame to the worker."""
        assert self.session is not None
        self.sent += 1
        frame.number, frame.ack = self.sent, self.received
        self.last_frame = frame
        self.feed(e.FrameReceived(self.session, frame))

    def grant(
        self,
        count: int = 1,
        task_class: TaskClass | None = None,
        *,
        time_left_s: float = 0.0,
        follows: Key = (0, 0),
    ) -> int:
        """Lease new tasks to the worker; returns the lease number."""
        task_class = task_class or a_class()
        lease, first = self.next_lease, self.next_sequence
        self.next_lease += 1
        self.next_sequence += count
        frame = AssignFrame()
        if task_class not in self.numbers:
            self.numbers[task_class] = len(self.numbers) + 1
            frame.classes.append(
                ClassDefinition(self.numbers[task_class], task_class, b"", self._fresh(task_class))
            )
        payloads = PayloadColumn.of([str(first + i).encode() for i in range(count)])
        number = self.numbers[task_class]
        frame.leases.append(
            LeaseGrant(lease, number, 1, PREFIX, first, payloads, time_left_s, (), follows)
        )
        self.follows[lease] = follows
        self.granted[lease] = (count, task_class)
        self.send(frame)
        return lease

    def _fresh(self, task_class: TaskClass) -> tuple[bytes, ...]:
        """Return the packages that this session has not sent yet."""
        env = task_class.runtime_env
        names = () if env is None else env.packages
        fresh = tuple(name for name in names if name not in self.sent_packages)
        self.sent_packages.update(fresh)
        return tuple(PACKAGES[name] for name in fresh)

    def cancel(self, lease: int, offset: int = 0, count: int = 1, *, force: bool = False) -> None:
        """Cancel tasks."""
        self.send(AssignFrame(cancels=[LeaseCancel(lease, offset, count, force)]))

    def recall(self, lease: int, offset: int, count: int) -> None:
        """Ask for tasks that have not started."""
        self.send(AssignFrame(recall=[LeaseRange(lease, offset, count)]))

    def collect(self) -> list[WorkerFrame]:
        """Take and receive all frames that wait."""
        frames = []
        while (frame := self.manager.take_frame(self.now)) is not None:
            self.receive(frame)
            frames.append(frame)
        return frames

    def ack(self) -> None:
        """Confirm all frames that have arrived."""
        self.send(AssignFrame())

    def deliver_all(self) -> None:
        """Let disk, stream and executors work until everything has been told."""
        for _ in range(100_000):
            self.settle_disk()
            self.finish_all()
            self.ack()
            frames = self.collect()
            is_busy = any(x.tasks for x in self.executors.values())
            if not (frames or self.writing or self.reading or is_busy):
                return
        raise AssertionError("the worker never comes to rest")

    def lose_frame(self) -> bool:
        """Take a frame that never arrives, so that the session must end."""
        frame = self.manager.take_frame(self.now)
        self.manager.check()
        return frame is not None

    def receive(self, frame: WorkerFrame) -> None:
        """Take one frame as the head does."""
        assert frame.number == self.received + 1
        assert (frame.held is not None) == (frame.number == 1)
        self.received = frame.number
        if frame.held is not None:
            self.held = frame.held
        new: Counter[Key] = Counter()
        for outcome in frame.outcomes:
            for offset in range(outcome.offset, outcome.offset + len(outcome.payloads)):
                new[(outcome.lease, offset)] += 1
                self._note((outcome.lease, offset), outcome.state)
        for item in frame.returned:
            for offset in range(item.offset, item.offset + item.count):
                new[(item.lease, offset)] += 1
                self._note((item.lease, offset), None)
        assert all(number == 1 for number in new.values()), "told twice in one frame"
        self.started += frame.started
        self.has_drained = self.has_drained or frame.drained

    def _note(self, key: Key, state: TaskState | None) -> None:
        count, _ = self.granted[key[0]]
        assert 0 <= key[1] < count, "a task that was never granted"
        if key in self.told:
            self.repeats[key] += 1
            if key in self.damaged:
                return
            assert self.told[key] == state, "told differently the second time"
        self.told[key] = state

    def assert_all_told(self) -> None:
        """Check that of every task that was granted the head knows what became."""
        everything = {(n, o) for n, (count, _) in self.granted.items() for o in range(count)}
        assert set(self.told) == everything
