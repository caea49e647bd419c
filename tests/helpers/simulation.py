"""A cluster in virtual time: the real head and the real worker cores over a bad network.

One heap of timed calls drives the real `HeadDriver`, `WorkerPeer` and `Scheduler` on one side and
real `WorkerManager`s and `ReconnectManager`s on the other. Between them frames and heartbeats
are delayed, dropped, duplicated and cut off; workers crash and executors die. Everything
follows from the seed.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any

from rustray.common.resources import ResourceSet
from rustray.head.connections import ConnectionManager
from rustray.head.core import Start
from rustray.head.driver import HeadDriver
from rustray.head.journal_store import JournalStore
from rustray.head.notifications import NotificationManager
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.scheduler.invariants import check
from rustray.scheduler.scheduler import Scheduler
from rustray.scheduler.state import SchedulerSettings
from rustray.task.columns import PayloadColumn
from rustray.task.frames import CancelRequest, LeaseOutcome, LeaseRange
from rustray.task.functions import FunctionInfo, Parameter
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from rustray.task.views import WorkerInfo
from rustray.worker import events as w
from rustray.worker.manager import WorkerManager
from rustray.worker.reconnect import ReconnectManager
from rustray.worker.state import WorkerLimits

PREFIX = b"simulation"
ANYTHING = FunctionInfo("f", (Parameter("args", "args", False),))
HEARTBEAT_S = 2.0


class VirtualLoop:
    """The part of an event loop that the cores' shells use, on a virtual clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._heap: list[tuple[float, int, Handle]] = []
        self._order = count()

    def time(self) -> float:
        """Return virtual seconds."""
        return self.now

    def call_at(self, when: float, call: Callable[..., object], *args: object) -> Handle:
        """Arrange a call."""
        handle = Handle(call, args)
        heapq.heappush(self._heap, (max(when, self.now), next(self._order), handle))
        return handle

    def call_later(self, delay: float, call: Callable[..., object], *args: object) -> Handle:
        """Arrange a call after a delay."""
        return self.call_at(self.now + delay, call, *args)

    def call_soon(self, call: Callable[..., object], *args: object) -> Handle:
        """Arrange a call now, after this one."""
        return self.call_at(self.now, call, *args)

    def create_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine that never really waits."""
        try:
            coroutine.send(None)
        except StopIteration:
            return
        raise AssertionError("a simulated coroutine waited")

    def run_until(self, when: float, after_each: Callable[[], None]) -> None:
        """Run everything that is due up to a time."""
        while self._heap and self._heap[0][0] <= when:
            self.now, _, handle = heapq.heappop(self._heap)
            if not handle.is_cancelled:
                handle.call(*handle.args)
                after_each()
        self.now = when


@dataclass
class Handle:
    """An arranged call."""

    call: Callable[..., object]
    args: tuple[object, ...]
    is_cancelled: bool = False

    def cancel(self) -> None:
        """Do not make the call."""
        self.is_cancelled = True


@dataclass
class Faults:
    """How bad the network is; probabilities a frame, seconds otherwise."""

    drop: float = 0.0
    duplicate: float = 0.0
    delay_s: float = 0.002
    spike: float = 0.0
    spike_s: float = 0.5


class Wire:
    """One direction of a stream: frames arrive late, twice, or not at all."""

    def __init__(self, sim: Simulation, worker: SimWorker, pump: Any) -> None:
        self.sim, self.worker, self.pump = sim, worker, pump
        self.other: Any = None
        self.is_closed = False
        self._is_turning = False

    def wake(self) -> None:
        """Send what waits, in the next turn."""
        if not self._is_turning and not self.is_closed:
            self._is_turning = True
            self.sim.loop.call_soon(self._turn)

    wake_now = wake

    def _turn(self) -> None:
        self._is_turning = False
        while not self.is_closed:
            frame = self.pump.next_frame()
            if frame is None:
                return
            self.send(frame)

    def send(self, frame: object) -> None:
        """Put a frame on the wire."""
        sim, faults = self.sim, self.sim.faults
        if self.worker.is_cut or sim.random.random() < faults.drop:
            sim.seen["dropped"] += 1
            return
        copies = 2 if sim.random.random() < faults.duplicate else 1
        for _ in range(copies):
            delay = sim.random.random() * faults.delay_s
            if sim.random.random() < faults.spike:
                delay += sim.random.random() * faults.spike_s
            sim.loop.call_later(delay, self._arrive, frame)

    def _arrive(self, frame: object) -> None:
        if not self.is_closed and not self.worker.is_cut:
            self.other.pump.on_frame(frame)

    async def close(self) -> None:
        """End the stream on both sides."""
        for end in (self, self.other):
            if not end.is_closed:
                end.is_closed = True
                end.pump.on_closed(None)


class WorkerPump:
    """The worker's end of a session."""

    def __init__(self, worker: SimWorker, session: int) -> None:
        self.worker, self.session = worker, session

    def next_frame(self) -> object:
        """Return the manager's next frame."""
        if self.worker.session is not self or self.worker.is_dead:
            return None
        return self.worker.manager.take_frame(self.worker.sim.loop.now)

    def on_frame(self, frame: Any) -> None:
        """Hand a frame to the manager."""
        if self.worker.session is self:
            self.worker.apply(w.FrameReceived(self.session, frame))

    def on_closed(self, error: object) -> None:
        """Tell the manager, and try again after a pause."""
        if self.worker.session is self:
            self.worker.lose_session()


@dataclass
class SimExecutor:
    """A fake executor: runs what it is given one after the other."""

    executor_id: int
    queue: list[tuple[w.DispatchTasks, int]]
    running: tuple[int, int] | None = None
    is_gone: bool = False


class SimWorker:
    """A worker process: the real manager, fake executors."""

    def __init__(self, sim: Simulation, name: str, cpus: float) -> None:
        self.sim, self.name = sim, name
        self.incarnation = 0
        self.cpus = cpus
        self.is_cut = False
        self.is_dead = True
        self.start()

    def start(self) -> None:
        """Start the process (anew)."""
        self.incarnation += 1
        self.is_dead = False
        resources = ResourceSet.of({"cpu_cores": self.cpus})
        self.manager = WorkerManager(WorkerLimits(resources))
        self.reconnect = ReconnectManager(f"{self.name}/{self.incarnation}")
        self.executors: dict[int, SimExecutor] = {}
        self.session: WorkerPump | None = None
        self.wire: Wire | None = None
        self.timer: Handle | None = None
        self.apply(w.PoolStarted())
        self.sim.loop.call_soon(self.connect, self.incarnation)

    def die(self, is_certain: bool) -> None:
        """Kill the process; the head may or may not learn of it at once."""
        session, self.session = self.session, None
        self.is_dead = True
        for executor in self.executors.values():
            executor.is_gone = True
        wire, self.wire = self.wire, None
        if wire is not None and not wire.is_closed:
            wire.is_closed = wire.other.is_closed = True
            wire.other.pump.on_closed(None)
        if is_certain and session is not None and not self.sim.is_head_down:
            self.sim.driver.handle(e.WorkerDied(self.name, session.session))

    # -- the session ---------------------------------------------------------

    def connect(self, incarnation: int) -> None:
        """Register and open the stream; fails while the network is cut."""
        if self.is_dead or incarnation != self.incarnation or self.session is not None:
            return
        loop = self.sim.loop
        if self.is_cut or self.sim.is_head_down:
            loop.call_later(self.reconnect.pause_after_failure(loop.now), self.connect, incarnation)
            return
        number = self.sim.next_session
        self.sim.next_session += 1
        info = WorkerInfo(
            self.name, self.incarnation, self.name, "", {"cpu_cores": self.cpus},
            functions=(ANYTHING,),
        )  # fmt: skip
        self.sim.driver.handle(e.WorkerJoined(info, number))
        pump = self.session = WorkerPump(self, number)
        self.reconnect.session_opened(loop.now)
        self.manager_apply_session(number)
        peer = self.sim.connections.open_worker(self.name, number)
        mine, theirs = Wire(self.sim, self, pump), Wire(self.sim, self, peer)
        mine.other, theirs.other = theirs, mine
        self.wire = mine
        peer.attach(theirs)
        mine.wake()
        loop.call_later(HEARTBEAT_S, self.beat, pump)

    def manager_apply_session(self, number: int) -> None:
        """Open the session in the core."""
        self.apply(w.SessionOpened(number))

    def lose_session(self) -> None:
        """The stream is over."""
        session, self.session, self.wire = self.session, None, None
        assert session is not None
        self.apply(w.SessionClosed(session.session))
        loop = self.sim.loop
        pause = self.reconnect.pause_after_failure(loop.now)
        loop.call_later(pause, self.connect, self.incarnation)

    def hang_up(self) -> None:
        """End the stream from this side."""
        if self.wire is not None:
            self.sim.loop.create_task(self.wire.close())

    def beat(self, pump: WorkerPump) -> None:
        """Send a heartbeat beside the stream, over the same bad network."""
        if self.session is not pump or self.is_dead:
            return
        sim = self.sim
        sim.loop.call_later(HEARTBEAT_S, self.beat, pump)
        if self.is_cut or sim.random.random() < sim.faults.drop:
            return
        sent, received, held, running = self.manager.heartbeat()
        sim.loop.call_later(
            sim.random.random() * sim.faults.delay_s, self._beat_arrives,
            pump, sent, received, held, running,
        )  # fmt: skip

    def _beat_arrives(
        self,
        pump: WorkerPump,
        sent: int,
        received: int,
        held: tuple[tuple[int, int], ...],
        running: int,
    ) -> None:
        if self.sim.is_head_down:
            return
        driver = self.sim.driver
        peer = driver.workers.get(self.name)
        in_step = peer is not None and peer.compare(sent, received)
        driver.handle(
            e.HeartbeatReceived(self.name, pump.session, held if in_step else None, running)
        )
        is_known = driver.scheduler.knows_session(self.name, pump.session)
        if self.session is pump and not is_known:
            self.hang_up()

    # -- the core's commands ---------------------------------------------------

    def apply(self, event: w.Event) -> None:
        """Feed the core and carry out its commands."""
        if self.is_dead:
            return
        for command in self.manager.handle(event, self.sim.loop.now):
            self._carry_out(command)
        self.manager.check()
        if self.wire is not None and self.manager.has_frame:
            self.wire.wake()
        self._set_timer()

    def _set_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        due = self.manager.next_deadline()
        self.timer = None
        if due is not None:
            self.timer = self.sim.loop.call_at(due, self.apply, w.TimePassed())

    def _carry_out(self, command: w.Command) -> None:
        loop = self.sim.loop
        match command:
            case w.StartExecutor():
                executor = SimExecutor(command.executor_id, [])
                self.executors[command.executor_id] = executor
                loop.call_later(0.005, self._ready, executor)
            case w.DispatchTasks():
                executor = self.executors[command.executor_id]
                executor.queue += [(command, i) for i in range(len(command.payloads))]
                if executor.running is None:
                    self._run_next(executor)
            case w.Interrupt():
                self._interrupt(command)
            case w.Reclaim():
                executor = self.executors[command.executor_id]
                loop.call_later(0.0005, self._reclaim, executor)
            case w.KillExecutor():
                self._exit(self.executors[command.executor_id], command.signal)
            case w.CloseSession():
                loop.call_soon(self._close_if, command.session)
            case _:
                pass

    def _close_if(self, number: int) -> None:
        if self.session is not None and self.session.session == number:
            self.hang_up()

    def _ready(self, executor: SimExecutor) -> None:
        if not executor.is_gone:
            self.apply(w.ExecutorReady(executor.executor_id, 1))

    def _run_next(self, executor: SimExecutor) -> None:
        if not executor.queue or executor.is_gone:
            executor.running = None
            return
        chunk, index = executor.queue.pop(0)
        executor.running = (chunk.lease, chunk.offset + index)
        number = chunk.first + index
        duration = self.sim.duration_of(number)
        self.sim.started(number, self, duration)
        self.sim.loop.call_later(duration, self._ended, executor, chunk, index, duration)

    def _ended(
        self, executor: SimExecutor, chunk: w.DispatchTasks, index: int, duration: float
    ) -> None:
        if executor.is_gone or executor.running != (chunk.lease, chunk.offset + index):
            return
        if self.sim.random.random() < self.sim.executor_deaths:
            self._exit(executor, 9)
            return
        payload = b"result of " + chunk.payloads[index]
        outcome = LeaseOutcome(
            chunk.lease, chunk.offset + index, TaskState.SUCCEEDED,
            PayloadColumn.of([payload]), int(duration * 1e6),
        )  # fmt: skip
        self._run_next(executor)
        self.apply(w.ExecutorReported(executor.executor_id, [outcome]))

    def _interrupt(self, command: w.Interrupt) -> None:
        executor = self.executors[command.executor_id]
        if executor.running == (command.lease, command.offset):
            self._run_next(executor)
        else:
            kept = [
                (chunk, i)
                for chunk, i in executor.queue
                if (chunk.lease, chunk.offset + i) != (command.lease, command.offset)
            ]
            if len(kept) == len(executor.queue):
                return
            executor.queue[:] = kept
        outcome = LeaseOutcome(
            command.lease, command.offset, TaskState.CANCELLED, PayloadColumn.of([b"c"]), 1
        )
        self.sim.loop.call_soon(self._report, executor, outcome)

    def _report(self, executor: SimExecutor, outcome: LeaseOutcome) -> None:
        if not executor.is_gone:
            self.apply(w.ExecutorReported(executor.executor_id, [outcome]))

    def _reclaim(self, executor: SimExecutor) -> None:
        if executor.is_gone:
            return
        ranges = [LeaseRange(chunk.lease, chunk.offset + i, 1) for chunk, i in executor.queue]
        executor.queue.clear()
        self.apply(w.ExecutorReturned(executor.executor_id, ranges))

    def _exit(self, executor: SimExecutor, signum: int) -> None:
        if executor.is_gone:
            return
        executor.is_gone = True
        self.sim.loop.call_soon(
            self.apply, w.ExecutorExited(executor.executor_id, None, signum, executor.running, "")
        )


class SimJournal:
    """A journal on a real database, with commits that take virtual time and die with the head."""

    level = "full"

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.appended = 0
        self.committed = 0
        self.on_commit: Callable[[], None] = lambda: None
        self.is_dead = False
        self._waiting: list[c.JournalCommand] = []
        self._is_committing = False

    def append(self, command: c.JournalCommand) -> None:
        """Take a command for the next commit."""
        self._waiting.append(command)
        self.appended += 1
        if not self._is_committing:
            self._is_committing = True
            self.sim.loop.call_soon(self._start)

    def _start(self) -> None:
        group, self._waiting = self._waiting, []
        delay = self.sim.random.random() * self.sim.commit_s
        self.sim.loop.call_later(delay, self._commit, self.appended, group)

    def _commit(self, number: int, group: list[c.JournalCommand]) -> None:
        if self.is_dead:
            return
        self.sim.store.commit(group)
        self.committed = number
        self._is_committing = bool(self._waiting)
        self.on_commit()
        if self._is_committing:
            self._start()


class SimClient:
    """A client on a good network: it notes every answer."""

    def __init__(self) -> None:
        self.accepted: set[int] = set()
        self.ends: dict[int, list[tuple[TaskState, bytes]]] = {}

    def accept(self, command: c.AcceptTasks) -> None:
        """Note an ack."""
        self.accepted.update(range(command.first, command.first + command.count))

    def reject(self, command: c.RejectTasks) -> None:
        """Nothing in the simulation may be refused."""
        raise AssertionError(f"refused: {command.error}")

    def deliver(self, command: c.DeliverOutcome) -> None:
        """Note an outcome."""
        for index, payload in enumerate(command.outcome.payloads):
            number = command.outcome.first + index
            self.ends.setdefault(number, []).append((command.outcome.state, payload))

    def unknown(self, command: c.ReportUnknown) -> None:
        """Nothing in the simulation is unknown."""
        raise AssertionError("unknown tasks")


class Simulation:
    """One run.

    Attributes:
        seen: Counts what happened; `check_end` judges it.
        unacked: Tasks that had been handed in and not acked when a head died: nothing was promised.
    """

    def __init__(self, seed: int, *, tasks: int = 300, workers: int = 3) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.loop = VirtualLoop()
        self.faults = Faults()
        self.executor_deaths = 0.0
        self.tasks = tasks
        self.seen: Counter[str] = Counter()
        self.runs: Counter[int] = Counter()
        self.cancelled: set[int] = set()
        self.unacked: set[int] = set()
        self.next_session = 1
        self.strategy = self.random.choice(STRATEGY_NAMES)
        self.commit_s = self.random.choice([0.0, 0.001, 0.05])
        self.result_memory_bytes = self.random.choice([600, 1 << 30])
        self.store = JournalStore(":memory:", "full", self.loop.time)
        self.is_head_down = False
        self.batches: list[e.TasksSubmitted] = []
        self.client = SimClient()
        self._start_head()
        self.workers = [SimWorker(self, f"w-{i}", 1 + i % 3) for i in range(workers)]

    def _start_head(self) -> None:
        """Start the head (anew), with what the journal has."""
        # As a real head: no lease number of an earlier one comes again.
        first_lease = int(self.loop.now * 1000) << 20
        settings = SchedulerSettings(
            seed=self.seed,
            strategy=self.strategy,
            first_lease=first_lease,
            result_memory_bytes=self.result_memory_bytes,
        )
        self.journal = SimJournal(self)
        self.driver = HeadDriver(
            Scheduler(settings),
            NotificationManager(),
            self.journal,
            self.loop,  # type: ignore[arg-type]
        )
        self.connections = ConnectionManager(self.driver)
        self.driver.clients[PREFIX] = self.client
        self.is_head_down = False
        recovered = self.store.load(22.0)
        start = Start(self.store.epoch_ms, is_first=self.store.starts == 1)
        self.driver.notifications.go_on(self.store.events, start.revision)
        if recovered is not None:
            self.driver.handle(recovered)
        for batch in self.batches:
            self._bring_again(batch)

    def _bring_again(self, batch: e.TasksSubmitted) -> None:
        """What a client does that comes back: hand in what was not acked, ask for the rest."""
        numbers = range(batch.first, batch.first + len(batch.payloads))
        if not self.client.accepted.issuperset(numbers):
            self.driver.handle(batch)
            return
        for number in numbers:
            if number not in self.client.ends:
                self.driver.handle(e.FollowRequested(PREFIX, number, 1))

    def kill_head(self) -> None:
        """End the head's process with what it has not committed; another one starts later."""
        if self.is_head_down:
            return
        self.is_head_down = self.journal.is_dead = True
        for batch in self.batches:
            numbers = range(batch.first, batch.first + len(batch.payloads))
            self.unacked.update(set(numbers) - self.client.accepted)
        self.driver.close()
        for worker in self.workers:
            if worker.wire is not None and not worker.wire.is_closed:
                worker.wire.is_closed = worker.wire.other.is_closed = True
                worker.lose_session()
        self.loop.call_later(self.random.random() * 30.0, self._start_head)

    def duration_of(self, number: int) -> float:
        """Return a task's run time: mostly tiny, some long; a property of the task."""
        draw = Random(self.seed * 1_000_003 + number).random()
        return 0.0002 if draw < 0.7 else 0.02 if draw < 0.95 else 1.5

    def started(self, number: int, worker: SimWorker, duration: float) -> None:
        """Note that a task starts somewhere."""
        assert number not in self.client.ends or self.client.ends[number], "ran after its end"
        self.runs[number] += 1

    def run(self, *, chaos_s: float = 30.0, calm_s: float = 120.0) -> None:
        """Submit during a time of faults, then let the network heal and everything end."""
        faults = self.faults
        faults.drop = self.random.choice([0.0, 0.01, 0.05])
        faults.duplicate = self.random.choice([0.0, 0.05])
        faults.spike = self.random.choice([0.0, 0.05])
        self.executor_deaths = self.random.choice([0.0, 0.002])
        first = 0
        while first < self.tasks:
            size = min(self.random.randint(1, 60), self.tasks - first)
            when = self.loop.now + self.random.random() * chaos_s * 0.7
            self.loop.call_at(when, self._submit, first, size)
            first += size
        for _ in range(self.random.randint(2, 8)):
            when = self.loop.now + self.random.random() * chaos_s
            self.loop.call_at(when, self._nemesis)
        self.loop.run_until(self.loop.now + chaos_s, self._after_each)
        self.faults = Faults()
        self.executor_deaths = 0.0
        for worker in self.workers:
            worker.is_cut = False
            if worker.is_dead:
                worker.start()
        self.loop.run_until(self.loop.now + calm_s, self._after_each)
        self.check_end()

    def _after_each(self) -> None:
        self.seen["steps"] += 1
        if self.seen["steps"] % 50 == 0 and not self.is_head_down:
            check(self.driver.scheduler.state)

    def _submit(self, first: int, size: int) -> None:
        task_class = TaskClass("f", priority=self.random.choice([0, 0, 0, 5]), max_retries=-1)
        payloads = PayloadColumn.of([b"task %d" % n for n in range(first, first + size)])
        self.batches.append(e.TasksSubmitted(PREFIX, first, task_class, payloads, True))
        if not self.is_head_down:
            self.driver.handle(self.batches[-1])

    def _nemesis(self) -> None:
        worker = self.random.choice(self.workers)
        kind = self.random.choice(["kill", "vanish", "cut", "hang up", "cancel", "drain", "head"])
        self.seen[kind] += 1
        if kind == "head":
            self.kill_head()
        if self.is_head_down and kind in ("cancel", "drain"):
            return
        if kind in ("kill", "vanish") and not worker.is_dead:
            worker.die(is_certain=kind == "kill")
            self.loop.call_later(self.random.random() * 20.0, self._restart, worker)
        elif kind == "cut":
            worker.is_cut = True
            self.loop.call_later(self.random.random() * 25.0, self._heal, worker)
        elif kind == "hang up":
            worker.hang_up()
        elif kind == "cancel":
            number = self.random.randrange(self.tasks)
            if number in self.client.accepted:
                self.cancelled.add(number)
                force = self.random.random() < 0.5
                self.driver.handle(e.CancelRequested(CancelRequest(PREFIX, number, 1, force)))
        elif kind == "drain" and worker.name in self.driver.scheduler.state.workers:
            self.driver.handle(e.DrainRequested(worker.name))
            self.loop.call_later(15.0, self._replace, worker)

    def _restart(self, worker: SimWorker) -> None:
        if worker.is_dead:
            worker.start()

    def _replace(self, worker: SimWorker) -> None:
        """What an operator does after a drain: end the process, start it again."""
        if not worker.is_dead:
            worker.die(is_certain=True)
        worker.start()

    def _heal(self, worker: SimWorker) -> None:
        worker.is_cut = False

    def check_end(self) -> None:
        """Every accepted task has ended exactly once, with its own result."""
        check(self.driver.scheduler.state)
        assert self.client.accepted == set(range(self.tasks)), "not every task was accepted"
        missing = self.client.accepted - set(self.client.ends)
        assert not missing, f"{len(missing)} tasks never ended, e.g. {min(missing)}"
        for number, ends in self.client.ends.items():
            assert len(ends) == 1, f"task {number} ended {len(ends)} times"
            state, payload = ends[0]
            if state is TaskState.SUCCEEDED:
                assert payload == b"result of task %d" % number, "a result went to another task"
            else:
                assert state is TaskState.CANCELLED, (number, state)
                assert number in self.cancelled


STRATEGY_NAMES = [
    "LeastLoaded",
    "RoundRobin",
    "Random",
    "WeightedRoundRobin",
    "PowerOfTwoChoices",
    "BinPack",
    "Spread",
    "LocalityAware",
]
