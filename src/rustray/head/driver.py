"""The driver: sole owner of the scheduler.

It reads the clock, feeds events in, and carries the commands out in order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, get_args

from rustray.common.durability import Durability
from rustray.common.errors import InvariantError, ObjectLost, ResourceExhausted
from rustray.head.granting import Granter
from rustray.head.journal import Journal, MemoryJournal
from rustray.head.notifications import NotificationManager
from rustray.head.output import OutputRelay
from rustray.head.refusals import Refusals
from rustray.scheduler.commands import (
    AcceptTasks,
    CancelLease,
    CloseSession,
    Command,
    DeliverOutcome,
    DrainWorker,
    ForgetArguments,
    ForgetBatch,
    ForgetEvents,
    ForgetResults,
    GrantLease,
    JournalCommand,
    PersistBatch,
    PersistDurability,
    PersistOutcome,
    PublishEvents,
    RecallLease,
    RefuseLetters,
    RefuseWorker,
    RejectTasks,
    ReportUnknown,
)
from rustray.scheduler.events import Event, ResultsStored, StorageChanged, TimePassed
from rustray.scheduler.scheduler import Scheduler
from rustray.scheduler.stream_commands import (
    CreditStream,
    DeliverItems,
    ForgetItems,
    PersistItems,
)
from rustray.scheduler.tombstone_commands import ForgetExpired, PersistExpired
from rustray.scheduler.value_commands import AdoptObject, FreeObject, SurrenderObject
from rustray.security.wall_clock import unix_s
from rustray.task.columns import PayloadColumn, StoredColumn
from rustray.task.place import Place

logger = logging.getLogger("rustray.head")

_FULL: Final = Durability.FULL  # a name of this module is found faster than a member of an enum
_MEMORY: Final = Durability.MEMORY


class WorkerOutbox(Protocol):
    """What the driver hands to a worker's session."""

    def grant(self, command: GrantLease) -> None:
        """Send a lease."""

    def cancel(self, command: CancelLease) -> None:
        """Send a cancel."""

    def recall(self, command: RecallLease) -> None:
        """Ask for unstarted work."""

    def credit(self, command: CreditStream) -> None:
        """Say how far a stream has come."""

    def tell_of_value(self, command: FreeObject | SurrenderObject | AdoptObject) -> None:
        """Have it let go of a value that it keeps, send it here, or take one over."""

    def drain(self) -> None:
        """Tell the worker to leave in order."""

    def close(self, session: int, reason: str) -> None:
        """End this session."""

    def compare(self, sent: int, received: int) -> bool:
        """Compare frame numbers; whether nothing is under way."""


class ClientOutbox(Protocol):
    """What the driver hands to a client's session."""

    def accept(self, command: AcceptTasks) -> None:
        """Ack tasks."""

    def reject(self, command: RejectTasks) -> None:
        """Refuse tasks."""

    def deliver(self, command: DeliverOutcome) -> None:
        """Send an outcome."""

    def deliver_items(self, command: DeliverItems) -> None:
        """Send items of a stream."""

    def unknown(self, command: ReportUnknown) -> None:
        """Say which tasks are not known."""


class ResultSource(Protocol):
    """Where large results are; `rustray.head.result_reader.ResultReader` is one."""

    async def read(self, column: StoredColumn) -> PayloadColumn:
        """Return what a column stands for."""


class HeadDriver:
    """Runs one scheduler on one event loop.

    Attributes:
        scheduler: The pure core; others read it, only the driver changes it.
        workers: Worker id to the outbox of its present session.
        clients: Session prefix to the outbox of its present stream.
        refusals: Which tasks were refused for the time being; `output` asks what tasks print.
        on_outcome: Called with each `DeliverOutcome`; wakes unary calls that wait.
        on_items: Likewise with each `DeliverItems`.
        object_token: Opens a place for somebody; "" where there are no tokens.
        results: Reads large results back; None where all are in memory.
        loop: Its clock is the scheduler's; a simulation brings a virtual one.
        clock_offset_s: Wall clock minus monotonic clock at the start, for what people see.
        wall_clock: Unix seconds, by which deadlines are judged.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        notifications: NotificationManager,
        journal: Journal,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.scheduler = scheduler
        self.notifications = notifications
        self.journal = journal
        self.workers: dict[str, WorkerOutbox] = {}
        self.clients: dict[bytes, ClientOutbox] = {}
        self.on_outcome: Callable[[DeliverOutcome], None] | None = None
        self.on_items: Callable[[DeliverItems], None] | None = None
        self.refusals, self.output = Refusals(), OutputRelay()
        self.results: ResultSource | None = None
        self.object_token: Callable[[Place, str], str] = no_token
        self.loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_s = 0.0
        self._deferred: deque[Command] = deque()
        self.is_executing = False
        self.grants = Granter(self)
        # What tells of a fact waits, in order, until the journal has committed up to the first
        # number, and synced up to the second; leases do not wait.
        self._held: deque[tuple[int, int, Callable[[Any], None], Any]] = deque()
        self._waiters: deque[tuple[int, int, asyncio.Future[None]]] = deque()
        self._large: deque[tuple[int, int]] = deque()
        # (A kind of it that a test makes may well let others wait for it.)
        self._keeps_nothing = type(journal) is MemoryJournal
        self._tell_once_safe = self._once_safe(self._tell_client)
        journal.on_commit = self._on_commit
        self._publish = self._once_safe(notifications.publish)
        notifications.on_drop = self._forget_events
        self._actions = _actions_of(self)
        self.clock_offset_s = time.time() - self.loop.time()
        self.wall_clock: Callable[[], float] = unix_s

    def now(self) -> float:
        """Return monotonic seconds, the scheduler's time."""
        return self.loop.time()

    def handle(self, event: Event) -> list[Command]:
        """Feed one event and carry out what follows from it.

        Returns:
            The commands, all carried out.

        Raises:
            WorkerNotFound: an operator named a worker that does not exist.
        """
        commands = self.scheduler.handle(event, self.loop.time())
        if self.is_executing:
            # A command's effect has come back as an event (a stream broke while it was written
            # to): what follows from it comes after all that follows from what was before.
            self._deferred.extend(commands)
            return commands
        actions = self._actions
        self.is_executing = True
        try:
            for command in commands:
                action = actions[type(command)]
                if action is not None:
                    action(command)
            while self._deferred:
                command = self._deferred.popleft()
                action = actions[type(command)]
                if action is not None:
                    action(command)
        finally:
            self.is_executing = False
        self.grants.wake_roused()
        self._arm_timer()
        return commands

    def time_left_s(self, deadline_unix_s: float) -> float | None:
        """Return how long it is until a moment of the wall clock; None for 0, which is never."""
        return deadline_unix_s - self.wall_clock() if deadline_unix_s else None

    # -- commits ---------------------------------------------------------------

    @property
    def is_safe(self) -> bool:
        """Whether all that has happened is committed, and synced what has to be."""
        journal = self.journal
        return journal.committed == journal.appended and journal.synced >= journal.to_sync

    async def safe(self, level: Durability = Durability.FULL) -> None:
        """Wait until all that has happened up to now is as safe as it was asked to be.

        At the level PROCESS that is without the syncs; at MEMORY there is no wait.
        """
        journal = self.journal
        to_sync = journal.to_sync if level == Durability.FULL else 0
        if level <= Durability.MEMORY or (
            journal.committed == journal.appended and journal.synced >= to_sync
        ):
            return
        waiter: asyncio.Future[None] = self.loop.create_future()
        self._waiters.append((journal.appended, to_sync, waiter))
        await waiter

    def _forget_events(self, revision: int) -> None:
        self.journal.append(ForgetEvents(revision))

    def _once_safe(self, action: Callable[[Any], None]) -> Callable[[Any], None]:
        """Make an action wait for the commit of what came before, as its ``durability`` says.

        All that waits is in one order. Only what need not be safe at all overtakes it.
        """
        if self._keeps_nothing:
            return action
        journal, held = self.journal, self._held

        def act(command: Any) -> None:
            level = command.durability
            to_sync = journal.to_sync if level == _FULL else 0
            is_waiting = held or journal.committed != journal.appended or journal.synced < to_sync
            if is_waiting and level != _MEMORY:
                held.append((journal.appended, to_sync, action, command))
            else:
                action(command)

        return act

    def _on_commit(self) -> None:
        committed, synced = self.journal.committed, self.journal.synced
        held, waiters = self._held, self._waiters
        while held and held[0][0] <= committed and held[0][1] <= synced:
            _, _, action, command = held.popleft()
            try:
                action(command)
            except Exception:  # a bug of ours: what others wait for must not wait for ever
                logger.exception("could not carry out %s", type(command).__name__)
        stored: list[int] = []
        while self._large and self._large[0][0] <= committed:
            stored.append(self._large.popleft()[1])
        if stored:
            self.handle(ResultsStored(tuple(stored)))
        while waiters and waiters[0][0] <= committed and waiters[0][1] <= synced:
            waiter = waiters.popleft()[2]
            if not waiter.done():
                waiter.set_result(None)

    def note_storage(self, *, is_full: bool | None = None, is_stalled: bool | None = None) -> None:
        """Tell the scheduler how the disk under the journal does; None: as before."""
        known = self.scheduler.state.storage
        self.handle(
            StorageChanged(
                known.is_full if is_full is None else is_full,
                known.is_stalled if is_stalled is None else is_stalled,
            )
        )

    async def read_results(self, column: StoredColumn) -> PayloadColumn:
        """Read large results back.

        Raises:
            TaskNotFound: they have expired meanwhile.
            ObjectLost: their file is missing or damaged.
        """
        if self.results is None:
            raise InvariantError("a large result was put away, and nobody can read it")
        try:
            return await self.results.read(column)
        except ObjectLost:
            self.scheduler.state.counters["results_lost"] += len(column)
            raise

    # -- carrying out ------------------------------------------------------------

    def _append_as_asked(self, command: Any) -> None:
        self.journal.append(command, command.durability)

    def _persist_outcome(self, command: PersistOutcome) -> None:
        self.journal.append(command, command.durability)
        if command.is_large:
            self._large.append((self.journal.appended, command.number))

    def _reject(self, command: RejectTasks) -> None:
        if isinstance(command.error, ResourceExhausted):
            self.refusals.note(command)
            self._tell_client(command)  # it rests on no fact, and the disk may be why
        else:
            self.refusals.settle(command)
            self._tell_once_safe(command)

    def _accept(self, command: AcceptTasks) -> None:
        self.refusals.settle(command)
        self._tell_once_safe(command)

    def hold(self, action: Callable[[Any], None], command: Any) -> None:
        """Do something once all that has happened is safe, in order with what waits for that."""
        self._held.append((self.journal.appended, self.journal.to_sync, action, command))

    def _deliver(self, command: DeliverOutcome) -> None:
        client = self.clients.get(command.prefix) if command.is_pushed else None
        if client is not None:
            client.deliver(command)
        if self.on_outcome is not None:
            self.on_outcome(command)

    def _deliver_items(self, command: DeliverItems) -> None:
        client = self.clients.get(command.prefix) if command.is_pushed else None
        if client is not None:
            client.deliver_items(command)
        if self.on_items is not None:
            self.on_items(command)

    def _number(self, command: PublishEvents) -> None:
        """Note events under their numbers, and tell of them once they are safe."""
        kept = self.notifications.number(command, self.loop.time() + self.clock_offset_s)
        if command.news is None:
            self.journal.append(kept, kept.durability)
        self._publish(kept)

    def _tell_events(self, command: PublishEvents) -> None:
        """The same where nothing is kept."""
        self.notifications.tell(command, self.loop.time() + self.clock_offset_s)

    def _tell_client(self, command: AcceptTasks | RejectTasks | ReportUnknown) -> None:
        client = self.clients.get(command.prefix)
        if client is None:
            return  # A unary call reads its verdict from the returned commands.
        match command:
            case AcceptTasks():
                client.accept(command)
            case RejectTasks():
                client.reject(command)
            case ReportUnknown():
                client.unknown(command)

    def tell_worker(self, command: ToWorker) -> None:
        """Hand a command to a worker's session, if it has one now."""
        worker = self.workers.get(command.worker_id)
        if worker is not None:  # its stream is gone; when it comes back both sides compare notes
            _pass_on(worker, command)

    def free(self, command: FreeObject) -> None:
        """Have a worker let go of a value, once it is certain that no head will look for it."""
        if self.is_safe:
            self.tell_worker(command)
        else:
            self.hold(self.tell_worker, command)

    def _log_refusal(self, command: RefuseWorker) -> None:
        logger.warning("%s", command.error)

    def _arm_timer(self) -> None:
        due = self.scheduler.next_deadline()
        if due is None:
            return
        if self._timer is not None:
            if due >= self._timer_due_s:
                return
            self._timer.cancel()
        self._timer_due_s = due
        self._timer = self.loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.handle(TimePassed())

    def close(self) -> None:
        """Stop the timer, and what is being read."""
        self.grants.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


ToWorker = (
    GrantLease
    | CancelLease
    | RecallLease
    | CreditStream
    | FreeObject
    | SurrenderObject
    | AdoptObject
    | DrainWorker
    | CloseSession
)


def _pass_on(worker: WorkerOutbox, command: ToWorker) -> None:
    """Hand a command to the session of its worker."""
    match command:
        case GrantLease():
            worker.grant(command)
        case CancelLease():
            worker.cancel(command)
        case RecallLease():
            worker.recall(command)
        case CreditStream():
            worker.credit(command)
        case FreeObject() | SurrenderObject() | AdoptObject():
            worker.tell_of_value(command)
        case DrainWorker():
            worker.drain()
        case CloseSession():
            logger.warning("closing session of %s: %s", command.worker_id, command.reason)
            worker.close(command.session, command.reason)


_Action = Callable[[Any], None]


def _actions_of(driver: HeadDriver) -> dict[type[Command], _Action | None]:
    """Return what is done about each kind of command; None: nothing.

    By class and not by `match`, which tries one class after the other: this is per batch.
    """
    return {
        **_commits_of(driver),
        DeliverOutcome: driver._once_safe(driver._deliver),
        DeliverItems: driver._once_safe(driver._deliver_items),
        CreditStream: driver.tell_worker,
        PublishEvents: driver._tell_events if driver._keeps_nothing else driver._number,
        AcceptTasks: driver._accept,
        RejectTasks: driver._reject,
        RefuseLetters: None,  # whoever made the event reads its answer from what `handle` returns
        ReportUnknown: driver._tell_once_safe,
        GrantLease: driver.grants.give,
        CancelLease: driver.tell_worker,
        RecallLease: driver.tell_worker,
        DrainWorker: driver.tell_worker,
        CloseSession: driver.tell_worker,
        FreeObject: driver.free,
        SurrenderObject: driver.tell_worker,
        AdoptObject: driver.tell_worker,
        RefuseWorker: driver._log_refusal,
    }


def _commits_of(driver: HeadDriver) -> dict[type[Command], _Action | None]:
    """Return the part of it that the journal keeps."""
    if driver._keeps_nothing:
        return dict.fromkeys(get_args(JournalCommand))
    return {
        **dict.fromkeys(get_args(JournalCommand), driver.journal.append),
        **dict.fromkeys(_AS_ASKED, driver._append_as_asked),
        PersistOutcome: driver._persist_outcome,
    }


_AS_ASKED = (
    PersistBatch,
    PersistDurability,
    ForgetArguments,
    ForgetResults,
    ForgetBatch,
    PersistItems,
    ForgetItems,
    PersistExpired,
    ForgetExpired,
)
"""Is as safe as its task was asked to be; the rest of what is committed as the head has it."""


def no_token(_place: Place, _subject: str) -> str:
    """Stand in where there are no tokens."""
    return ""
