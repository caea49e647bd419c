"""The simulated head: the real driver, scheduler, peers and journal store, in virtual time."""

from __future__ import annotations

import logging
from asyncio.events import _get_running_loop, _set_running_loop
from collections.abc import Callable
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any, cast

from rustray.common.durability import Durability
from rustray.common.errors import CommunicationError, TaskNotFound
from rustray.common.ids import task_id
from rustray.head.connections import ConnectionManager
from rustray.head.core import Start
from rustray.head.driver import HeadDriver
from rustray.head.journal_store import JournalStore
from rustray.head.notifications import NotificationManager
from rustray.head.value_service import ValueService, unneeded
from rustray.head.waits import ResultWaiters
from rustray.rpc.api import RawResult
from rustray.scheduler import commands as c
from rustray.scheduler.events import (
    DrainRequested,
    Event,
    HeartbeatReceived,
    ValuesSurrendered,
    WorkerJoined,
)
from rustray.scheduler.invariants import check
from rustray.scheduler.scheduler import Scheduler
from rustray.scheduler.state import SchedulerSettings
from rustray.scheduler.value_commands import FreeObject
from rustray.scheduler.view import TaskSnapshot
from rustray.security.roles import Caller, Role
from rustray.task.views import Heartbeat, HeartbeatReply, WorkerInfo
from rustray.testing.clock import WALL_OFFSET_S, ProcessLoop, Timer, VirtualClock
from rustray.testing.history import History
from rustray.testing.network import Network
from rustray.testing.placing import PREFIX
from rustray.testing.stream import Stream

HEAD = "head"
GRACE_S = 22.0
"""How long a restarted head waits for the workers of before, as the real one."""


class SimJournal:
    """The real store behind commits that take virtual time and die with the head."""

    level = "full"

    def __init__(
        self, store: JournalStore, loop: ProcessLoop, random: Random, commit_s: float
    ) -> None:
        self.appended = self.to_sync = 0
        self.committed = self.synced = 0
        self.on_commit: Callable[[], None] = lambda: None
        self._store, self._loop, self._random = store, loop, random
        self._commit_s = commit_s
        self._waiting: list[c.JournalCommand] = []
        self._under_way: list[c.JournalCommand] = []
        self._is_committing = False

    def append(
        self, command: c.JournalCommand, durability: Durability = Durability.DEFAULT
    ) -> None:
        """Take a command for the next commit; all are synced here."""
        self._waiting.append(command)
        self.appended += 1
        self.to_sync = self.appended
        if not self._is_committing:
            self._is_committing = True
            self._loop.call_soon(self._start)

    def _start(self) -> None:
        self._under_way, self._waiting = self._waiting, []
        self._loop.call_later(self._random.random() * self._commit_s, self._commit, self.appended)

    def _commit(self, number: int) -> None:
        group, self._under_way = self._under_way, []
        self._store.commit(group)
        self.committed = self.synced = number
        self._is_committing = bool(self._waiting)
        self.on_commit()
        if self._is_committing:
            self._start()

    def die(self) -> None:
        """The head is killed: the commit under way may have reached the disk, and nobody knows."""
        if self._under_way and self._random.random() < 0.5:
            self._store.commit(self._under_way)


class ObservedDriver(HeadDriver):
    """The real driver; what it decides is compared with what was promised."""

    history: History

    def handle(self, event: Event) -> list[c.Command]:
        """See `HeadDriver.handle`."""
        is_joining = type(event) is WorkerJoined
        if is_joining or (
            type(event) is ValuesSurrendered
            and self.scheduler.knows_session(event.worker_id, event.session)
        ):
            self.history.values.on_event(event)
        commands = super().handle(event)
        for command in commands:
            kind = type(command)
            if kind is c.GrantLease:
                self.history.granted(cast("c.GrantLease", command))
            elif kind in _OF_VALUES:
                self.history.values.on_command(command)
        return commands


_OF_VALUES = frozenset({c.PersistOutcome, c.ReplaceOutcome, c.ForgetWorker, FreeObject})


class HeadLoop(ProcessLoop):
    """The head's event loop: what its services await of asyncio finds it running."""

    def run(self, timer: Timer) -> None:
        """See `ProcessLoop.run`."""
        before = _get_running_loop()
        _set_running_loop(self)
        try:
            super().run(timer)
        finally:
            _set_running_loop(before)


class SimValues(ValueService):
    """The real answers to who asks for values that stay with workers."""

    def __init__(self, driver: HeadDriver) -> None:
        waiters = ResultWaiters()
        driver.on_outcome, driver.on_items = waiters.on_outcome, waiters.on_items
        self._driver = driver
        # Of the core they need no more than who waits.
        self._core = cast("Any", SimpleNamespace(waiters=waiters))
        self._caller = Caller("user:simulation", Role.SUBMIT, frozenset(), float("inf"), "")

    def _snapshot(self, prefix: bytes, sequence: int) -> TaskSnapshot:
        found = self._driver.scheduler.task(prefix, sequence)
        if found is None:
            raise TaskNotFound(f"task {sequence} is not known")
        return found


class SimHead:
    """The head's process.

    Attributes:
        driver: Of its present life; look, do not touch.
        is_up: Whether it runs (it may be paused).
    """

    def __init__(
        self,
        clock: VirtualClock,
        network: Network,
        history: History,
        random: Random,
        settings: SchedulerSettings,
        commit_s: float,
    ) -> None:
        self._clock, self._network, self._history = clock, network, history
        self._random = random
        self._settings = settings
        self.commit_s = commit_s
        self.lease_ttl_s = settings.lease_ttl_s
        self.store = JournalStore(":memory:", "full", lambda: clock.now + WALL_OFFSET_S)
        self._next_session = 1
        self._streams: list[Stream] = []
        self.start()

    def start(self) -> None:
        """Start the process, with what the journal has."""
        self.is_up = True
        self.loop = self._network.loops[HEAD] = HeadLoop(self._clock)
        recovered = self.store.load(GRACE_S)
        # As a real head: no lease number of an earlier one comes again.
        start = Start(self.store.epoch_ms, is_first=self.store.starts == 1)
        settings = replace(self._settings, first_lease=start.first_lease)
        self._journal = SimJournal(self.store, self.loop, self._random, self.commit_s)
        self.driver = ObservedDriver(
            Scheduler(settings), NotificationManager(), self._journal, self.loop
        )
        self.driver.history = self._history
        self.driver.clock_offset_s = WALL_OFFSET_S
        self.driver.wall_clock = lambda: self.loop.time() + WALL_OFFSET_S
        self.driver.notifications.go_on(self.store.events, start.revision)
        self._connections = ConnectionManager(self.driver)
        self._values = SimValues(self.driver)
        self._streams = []
        if recovered is not None:
            self.driver.handle(recovered)
        self._history.head_started(self.driver.scheduler.state)
        self.check()

    def crash(self) -> None:
        """Kill the process with what it has not committed."""
        self.is_up = False
        self._journal.die()
        self._history.head_lost()
        self.loop.kill()
        for stream in self._streams:
            stream.die_at(HEAD)

    def check(self) -> None:
        """Verify the scheduler's invariants.

        Raises:
            InvariantError: names the rule that is broken.
        """
        if self.is_up:
            check(self.driver.scheduler.state)

    # -- what workers and clients ask ------------------------------------------------------

    async def register(self, info: WorkerInfo, reply: Callable[[int | None], None]) -> None:
        """Register a worker, as the service does; ``reply`` gets the session, None if refused."""
        session = self._next_session
        self._next_session += 1
        for command in self.driver.handle(WorkerJoined(info, session)):
            if isinstance(command, c.RefuseWorker):
                reply(None)
                return
        await self.driver.safe()
        reply(session)

    def open_worker(self, worker: str, session: int, stream: Stream) -> None:
        """Open a worker's stream."""
        try:
            peer = self._connections.open_worker(worker, session)
        except CommunicationError:
            stream.tell_end(HEAD, is_orderly=False)
            return
        self._keep(stream)
        peer.attach(stream.join(HEAD, self.loop, peer))

    def open_client(self, prefix: bytes, stream: Stream) -> None:
        """Open a client's stream."""
        peer = self._connections.open_client(prefix, True)
        self._keep(stream)
        peer.attach(stream.join(HEAD, self.loop, peer))

    def _keep(self, stream: Stream) -> None:
        self._streams = [s for s in self._streams if not s.ends[HEAD].is_closed]
        self._streams.append(stream)

    def drain(self, worker: str) -> None:
        """Send a worker away in order; without effect if it is not known."""
        if worker in self.driver.scheduler.state.workers:
            self.driver.handle(DrainRequested(worker))

    def heartbeat(self, beat: Heartbeat) -> HeartbeatReply:
        """Take a heartbeat, as the service does."""
        worker, scheduler = beat.worker_id, self.driver.scheduler
        peer = self.driver.workers.get(worker)
        in_step = peer is not None and peer.compare(beat.sent, beat.received)
        held = beat.held if in_step else None
        self.driver.handle(HeartbeatReceived(worker, beat.session, held, beat.running))
        is_known = scheduler.knows_session(worker, beat.session)
        asked = beat.objects if in_step and is_known else ()
        return HeartbeatReply(is_known, unneeded(self.driver, worker, asked))

    async def value_of(
        self, number: int, timeout_s: float, missing: str, *, takes_places: bool
    ) -> RawResult:
        """Answer who asks for a task's result, or for where its value is, as the service does.

        Raises:
            RustRayError: it has expired, or cannot be sent.
        """
        name = task_id(PREFIX, number)
        if takes_places:
            return await self._values.locate_result(name, timeout_s, missing)
        return await self._values.get_result(name, timeout_s)


class TroubleHandler(logging.Handler):
    """Collects the errors that rustray's shells only log: in a simulation they are failures."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(logging.ERROR)
        self._clock = clock

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record."""
        error = record.exc_info[1] if record.exc_info else None
        self._clock.trouble.append(error or RuntimeError(record.getMessage()))
