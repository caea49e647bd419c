"""The core's hands: one queue of events in, commands carried out in order.

It owns the `WorkerManager`, the executor pool and the one timer. Everything happens on the event
loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Final, Protocol, assert_never

from rustray.common.damping import Damper
from rustray.common.errors import CommunicationError, InvariantError
from rustray.task.columns import SharedColumn
from rustray.task.frames import LeaseNews, LeaseOutcome
from rustray.task.functions import FunctionInfo
from rustray.task.spec import ExecutorKind, TaskClass
from rustray.task.streams import LeaseItems
from rustray.worker import events
from rustray.worker.executor import ExecutorExit, PoolListener, RunChunk
from rustray.worker.manager import WorkerManager
from rustray.worker.memory_groups import MemoryGroups
from rustray.worker.memory_watch import MemoryWatch
from rustray.worker.nested import NestedSessions
from rustray.worker.process_groups import ProcessGroups
from rustray.worker.process_watch import ProcessWatch
from rustray.worker.records import NEVER
from rustray.worker.spool_files import SpoolFiles, SpoolKeeper
from rustray.worker.state import WorkerLimits
from rustray.worker.waking import LinkWaker

logger = logging.getLogger("rustray.worker")

FULL_PAUSE_S: Final = 30.0
"""How often it is said at most that no more tasks start."""


class Packages(Protocol):
    """Where packages of runtime environments are."""

    def take(self, command: events.KeepPackage | events.DropPackage) -> None:
        """Keep or remove one."""


class Pool(Protocol):
    """What the worker needs of an `ExecutorPool`; tests bring their own."""

    async def start(self) -> tuple[FunctionInfo, ...]:
        """Start, and say which functions there are."""

    def spawn(self, executor_id: int, kind: ExecutorKind, concurrency: int) -> None:
        """Start an executor."""

    def define(
        self, executor_id: int, class_number: int, task_class: TaskClass, code: bytes
    ) -> None:
        """Introduce a class to it."""

    def prepare(self, executor_id: int, setting: events.Setting) -> None:
        """Set it up for the tasks that follow."""

    @property
    def packages(self) -> Packages:
        """Those of runtime environments."""

    def run(self, executor_id: int, chunk: RunChunk) -> None:
        """Give it tasks."""

    def reclaim(self, executor_id: int) -> None:
        """Ask for what it has not started."""

    def interrupt(
        self, executor_id: int, lease: int, offset: int, *, is_notice: bool = False
    ) -> None:
        """Ask it to stop one task."""

    def credit(self, executor_id: int, lease: int, offset: int, consumed: int) -> None:
        """Tell a generator how many of its items are consumed."""

    def kill(self, executor_id: int, signum: int) -> None:
        """Signal it."""

    def relay(self, executor_id: int, kind: int, channel: int, body: bytes) -> None:
        """Send a message to a task that hands in tasks."""

    def guard(self, executor_id: int, until: float) -> None:
        """Have it killed at that time, whatever becomes of this process."""

    async def close(self, grace_s: float = 2.0) -> None:
        """End all executors."""


Rare = (
    events.CreditTask
    | events.KeepPackage
    | events.DropPackage
    | events.GuardExecutor
    | events.CloseSession
    | events.DeliverDirect
    | events.Leave
)
PoolFactory = Callable[[PoolListener], Pool]


class Owner(Protocol):
    """What the core's commands ask of the agent."""

    def wake_link(self) -> None:
        """There is a frame for the head, and nothing else to do before it."""

    def settle_large(self, outcome: LeaseOutcome) -> LeaseOutcome:
        """Keep a large result here, if it may stay."""

    def close_session(self, number: int) -> None:
        """End this session, if it is still the present one."""

    def leave(self) -> None:
        """The work is over."""


class WorkerDriver:
    """Feeds the core and carries out its commands; a `PoolListener`.

    Attributes:
        manager: The core; look, do not touch.
        pool: The executors.
        nested: Carries what tasks hand in themselves.
        failure: The bug that ended everything, None while all is well.
    """

    def __init__(
        self,
        owner: Owner,
        limits: WorkerLimits,
        pool_factory: PoolFactory,
        spool_files: SpoolFiles | None = None,
    ) -> None:
        self.manager = WorkerManager(limits)
        self.pool = pool_factory(self)
        self.nested = NestedSessions(lambda *what: self.pool.relay(*what), self.apply)
        self.failure: InvariantError | None = None
        self._loop: asyncio.AbstractEventLoop
        self._memory: MemoryWatch
        self._processes: ProcessWatch
        self._owner, self._spool_files = owner, spool_files
        self._spool: SpoolKeeper | None = None
        self._commands: deque[events.Command] = deque()
        self._is_executing = self._was_full = False
        self._full = Damper(FULL_PAUSE_S)
        self._is_closed = True
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_s = 0.0
        self._direct: dict[int, asyncio.Future[LeaseOutcome]] = {}
        # Their fences grow over restarts too, up to 16 thousand direct tasks a millisecond.
        self._direct_leases = count(events.DIRECT_LEASES + (time.time_ns() // 1_000_000 << 14))

    def open(
        self,
        loop: asyncio.AbstractEventLoop,
        groups: MemoryGroups | None = None,
        lacking: str = "",
        processes: ProcessGroups | None = None,
    ) -> None:
        """Begin to take events; nothing before this counts.

        Args:
            loop: On which all happens.
            groups: In which the kernel holds memory limits, if it does.
            lacking: Why it does not, where it should.
            processes: In which the kernel bounds the processes of executors, if it does.
        """
        self._loop = loop
        self._waker = LinkWaker(loop, self._owner.wake_link)
        self._memory = MemoryWatch(loop, self.apply, groups=groups, lacking=lacking)
        self._processes = ProcessWatch(loop, processes)
        if self._spool_files is not None:
            self._spool = SpoolKeeper(loop, self._spool_files, self.apply)
        self._is_closed = False

    async def start(self) -> tuple[FunctionInfo, ...]:
        """Start the pool; returns the functions that its modules registered.

        Raises:
            ConfigError: a function module cannot be imported.
        """
        functions = await self.pool.start()
        self.apply(events.PoolStarted())
        return functions

    async def close(self, grace_s: float) -> None:
        """End executors and timer; direct callers get an error."""
        self._is_closed = True
        self._waker.close()
        if self._timer is not None:
            self._timer.cancel()
        self._memory.close()
        for waiter in self._direct.values():
            if not waiter.done():
                waiter.set_exception(CommunicationError("the worker has stopped"))
        await self.pool.close(grace_s)
        await self._processes.release()
        await self._memory.release()
        if self._spool is not None:
            await self._spool.close()

    def apply(self, event: events.Event) -> None:
        """Tell the core what happened, now, and do what it answers."""
        if self.failure is not None or self._is_closed:
            return
        try:
            commands = self.manager.handle(event, self._loop.time())
        except Exception as error:
            # A wounded core must not go on deciding; the head gives the work to others.
            logger.exception("the worker's core failed on %s", type(event).__name__)
            self.failure = InvariantError(f"the worker's core failed: {error!r}")
            self.failure.__cause__ = error
            self._owner.leave()
            return
        if commands:
            self._commands.extend(commands)
            self._execute()
        self.set_timer()
        if self.manager.is_full is not self._was_full:
            self._tell_full()
        if self.manager.has_frame and not self._is_executing:
            self._waker.wake(self.manager.may_wait)

    def note_store(self, is_paused: bool) -> None:
        """The store of objects is nearly full, or not any more."""
        self.apply(events.StoreChanged(is_paused))

    def _tell_full(self) -> None:
        self._was_full = self.manager.is_full
        if not self._full.tells(self._was_full, self._loop.time()):
            return
        if self._was_full:
            logger.warning(
                "no more tasks start: results that the head has not taken fill the memory that is "
                "for them (worker.spool_memory_mb), and the disk takes no more of them "
                "(worker.spool_disk_mb), or not so fast"
            )
        else:
            logger.warning("tasks start again: there is room for their results")

    def _execute(self) -> None:
        # A command may call back at once (an executor that is gone): its commands come after.
        if self._is_executing:
            return
        self._is_executing = True
        try:
            while self._commands:
                command = self._commands.popleft()
                try:
                    self._carry_out(command)
                except InvariantError as error:
                    # The executor has died meanwhile; its exit is about to be (or was) told.
                    logger.debug("%s was in vain: %s", type(command).__name__, error)
        finally:
            self._is_executing = False

    def _carry_out(self, command: events.Command) -> None:
        pool = self.pool
        match command:
            case events.DispatchTasks():
                due_s = 0.0 if command.due == NEVER else self._unix_s(command.due)
                pool.run(command.executor_id, _chunk_of(command, due_s))
            case events.DefineClass():
                pool.define(
                    command.executor_id, command.class_number, command.task_class, command.code
                )
            case events.PrepareExecutor():
                pool.prepare(command.executor_id, command.setting)
            case events.StartExecutor():
                pool.spawn(command.executor_id, command.kind, command.concurrency)
            case events.Interrupt(executor_id, lease, offset, is_notice):
                pool.interrupt(executor_id, lease, offset, is_notice=is_notice)
            case events.Reclaim():
                pool.reclaim(command.executor_id)
            case events.ResumeTask():
                self.nested.resume(command)
            case events.KillExecutor():
                pool.kill(command.executor_id, command.signal)
            case (
                events.WatchMemory()
                | events.UnwatchMemory()
                | events.WriteSheaf()
                | events.ReadSheaf()
                | events.DropSheaf()
            ):
                self._carry_out_beside(command)
            case _:
                self._carry_out_rare(command)

    def _carry_out_beside(
        self,
        command: events.WatchMemory
        | events.UnwatchMemory
        | events.WriteSheaf
        | events.ReadSheaf
        | events.DropSheaf,
    ) -> None:
        """What happens in a thread beside the loop."""
        spool = self._spool
        match command:
            case events.WatchMemory():
                self._memory.add(command)
            case events.UnwatchMemory():
                self._memory.remove(command.executor_id)
            case events.WriteSheaf():
                assert spool is not None  # the core was told that there is a disk
                spool.write(command)
            case events.ReadSheaf():
                assert spool is not None
                spool.read(command)
            case events.DropSheaf():
                assert spool is not None
                spool.drop(command)
            case _:
                assert_never(command)

    def _unix_s(self, at: float) -> float:
        """Return what the wall clock will show at this time of the loop."""
        return time.time() + at - self._loop.time()

    def _carry_out_rare(self, command: Rare) -> None:
        match command:
            case events.KeepPackage() | events.DropPackage():
                self.pool.packages.take(command)
            case events.CreditTask(executor_id, lease, offset, consumed):
                self.pool.credit(executor_id, lease, offset, consumed)
            case events.GuardExecutor():
                self.pool.guard(command.executor_id, command.until)
            case events.CloseSession():
                logger.warning("closing session %d: %s", command.session, command.reason)
                self._owner.close_session(command.session)
            case events.DeliverDirect():
                waiter = self._direct.pop(command.outcome.lease, None)
                if waiter is not None and not waiter.done():
                    waiter.set_result(command.outcome)
            case events.Leave():
                self._owner.leave()
            case _:
                assert_never(command)

    def set_timer(self) -> None:
        """Arrange for the core's next deadline."""
        due = self.manager.next_deadline()
        if due is None:
            return
        if self._timer is not None:
            if self._timer_due_s <= due:
                return
            self._timer.cancel()
        self._timer_due_s = due
        self._timer = self._loop.call_at(due, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self.apply(events.TimePassed())

    # ── What the pool tells (PoolListener) ────────────────────────────────────────────────

    def executor_ready(self, executor_id: int, pid: int) -> None:
        """See `PoolListener`."""
        self._processes.add(executor_id, pid)
        self.apply(events.ExecutorReady(executor_id, pid))

    def executor_reported(self, executor_id: int, outcomes: list[LeaseOutcome]) -> None:
        """See `PoolListener`."""
        for index, outcome in enumerate(outcomes):
            if type(outcome.payloads) is SharedColumn:
                outcomes[index] = self._owner.settle_large(outcome)
        self.apply(events.ExecutorReported(executor_id, outcomes))

    def executor_returned(self, event: events.ExecutorReturned) -> None:
        """See `PoolListener`."""
        self.apply(event)

    def executor_told(self, executor_id: int, news: list[LeaseNews], dropped: int) -> None:
        """See `PoolListener`."""
        self.apply(events.ExecutorTold(executor_id, news, dropped))

    def executor_relayed(self, executor_id: int, kind: int, channel: int, body: bytes) -> None:
        """See `PoolListener`."""
        self.nested.take(executor_id, kind, channel, body)

    def executor_yielded(self, executor_id: int, items: list[LeaseItems]) -> None:
        """See `PoolListener`."""
        self.apply(events.ExecutorYielded(executor_id, items))

    def executor_exited(self, executor_id: int, exit: ExecutorExit) -> None:  # noqa: A002
        """See `PoolListener`."""
        self.nested.forget(executor_id)
        self._processes.remove(executor_id, was_killed=exit.exit_code != 0)
        outgrown = self._memory.has_ended(executor_id, exit.signal)
        if outgrown is not None:
            self.apply(outgrown)
        how = exit.exit_code, exit.signal, exit.running, exit.log_tail
        self.apply(events.ExecutorExited(executor_id, *how))

    # ── Tasks from the WorkerService ──────────────────────────────────────────────────────

    async def run_direct(
        self, task_class: TaskClass, prefix: bytes, sequence: int, payload: bytes
    ) -> LeaseOutcome:
        """Run one task on this worker, past the head; state LEASED: its executor died.

        Raises:
            CommunicationError: the worker stopped.
            asyncio.CancelledError: the caller gave up; the task is cancelled.
        """
        lease = next(self._direct_leases)
        waiter: asyncio.Future[LeaseOutcome] = self._loop.create_future()
        self._direct[lease] = waiter
        self.apply(events.DirectSubmitted(lease, task_class, prefix, sequence, payload))
        try:
            return await waiter
        finally:
            if self._direct.pop(lease, None) is not None:
                self.apply(events.DirectCancelled(lease))


def _chunk_of(command: events.DispatchTasks, deadline_unix_s: float) -> RunChunk:
    return RunChunk(
        command.class_number,
        command.lease,
        command.offset,
        command.attempt,
        command.prefix,
        command.first,
        command.payloads,
        deadline_unix_s,
        command.have,
        command.consumed,
        command.follows,
    )
