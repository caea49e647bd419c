"""The shell of the coordination core: its clock, its journal, and when attempts end."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from rustray.common.errors import (
    HeadUnavailable,
    LeaseLost,
    ResourceExhausted,
    RustRayError,
)
from rustray.coordination.core import Coordination
from rustray.coordination.messages import (
    Action,
    Answer,
    Asked,
    Command,
    Drop,
    Event,
    HolderEnded,
    HolderSeen,
    Keep,
    Recovered,
    Reply,
    Request,
    TimePassed,
    Verdict,
)
from rustray.coordination.state import Settings
from rustray.head.driver import HeadDriver
from rustray.rpc.api import TaskHolder
from rustray.scheduler.commands import ForgetShared, PersistShared
from rustray.scheduler.records import Lease
from rustray.task.state import TaskState

logger = logging.getLogger("rustray.head")

ONE_WAIT_S: Final = 30.0
"""A call answers after this time at the latest; whoever still waits asks again."""
GRACE_S: Final = 5.0
"""What holders have beyond their lease to find a head that was restarted."""
DISK_RETRY_S: Final = 5.0
LOOK_S: Final = 0.05
"""While tasks hold something, their ends are looked for so often."""
SESSION: Final = b"s"
TASK: Final = b"t"
_TASK: Final = struct.Struct(">QI")
_OPEN_STATES: Final = frozenset({TaskState.LEASED, TaskState.RUNNING, TaskState.CANCELLING})


class CoordinationDriver:
    """Runs the core beside the scheduler's driver: same loop, same clock, same journal."""

    def __init__(self, driver: HeadDriver, settings: Settings) -> None:
        """Begin without anything in use.

        Args:
            driver: Its journal is written, its scheduler says which attempts run.
            settings: Of the core.
        """
        self.core = Coordination(settings)
        self._driver = driver
        self._loop = driver.loop
        self._waiters: dict[tuple[bytes, int, int], asyncio.Future[Answer]] = {}
        self._tasks: dict[bytes, bool] = {}  # holder to whether its attempt has been seen
        self._timer: asyncio.TimerHandle | None = None
        self._look: asyncio.TimerHandle | None = None

    def restore(self, rows: Iterable[tuple[bytes, bytes]], task_grace_s: float) -> None:
        """Take up what an earlier head has kept.

        Args:
            rows: Of the journal.
            task_grace_s: How long the workers of then have to come back.
        """
        grace_s = max(self.core.state.settings.lease_s + GRACE_S, task_grace_s)
        self.handle(Recovered(tuple(rows), grace_s))
        for holder in self.core.state.holders.values():
            if not holder.has_lease:
                self._watch(holder.key, is_seen=False)

    async def ask(self, request: Request, owner: str, *, has_lease: bool = True) -> Answer:
        """Carry out a request; returns once what it rests on is as safe as the head keeps things.

        Raises:
            RustRayError: it is refused, or its holder has ended meanwhile.
        """
        storage = self._driver.scheduler.state.storage
        if request.action is Action.PUT and (storage.is_full or storage.is_stalled):
            raise ResourceExhausted(
                "the head's disk has no room for items now, or does not keep up: put them again "
                "later; what is in queues can be taken",
                retry_after_s=DISK_RETRY_S,
                reason="DISK_FULL" if storage.is_full else "DISK_SLOW",
            )
        key = (request.holder, request.lane, request.number)
        waiter = self._waiters.get(key)
        if waiter is None:
            waiter = self._waiters[key] = self._loop.create_future()
        self.handle(Asked(request, owner, has_lease))
        if not has_lease and request.holder in self.core.state.holders:
            self._watch(request.holder, is_seen=True)
        await asyncio.wait({waiter}, timeout=ONE_WAIT_S)
        if waiter.cancelled():
            raise HeadUnavailable("the head is stopping")
        await self._driver.safe()
        if not waiter.done():
            return Answer(Verdict.WAITING, lease_s=self.core.state.settings.lease_s)
        return waiter.result()

    async def ask_for_task(self, task: TaskHolder, request: Request) -> Answer:
        """Carry out the request of a running task.

        Raises:
            LeaseLost: the attempt is not the present one (any more).
            HeadUnavailable: it is not known yet whether it is.
            RustRayError: as `ask`.
        """
        lease = self._lease_of(task.lease, task.offset)
        if lease is None or lease.worker.worker_id != task.worker_id:
            if task.worker_id in self._driver.scheduler.state.awaited:
                raise HeadUnavailable("the head was restarted, and does not know yet who runs what")
            raise LeaseLost(
                "this attempt of the task is not the present one (any more), or the task was given "
                "to the worker directly, past the head: it cannot hold locks, semaphores or items"
            )
        holder = TASK + _TASK.pack(task.lease, task.offset)
        request = replace(request, holder=holder)
        return await self.ask(request, lease.batch.principal, has_lease=False)

    def handle(self, event: Event) -> None:
        """Feed one event, and carry out what follows."""
        now = self._loop.time()
        for command in self.core.handle(event, now):
            self._carry_out(command)
        self._arm_timer()

    def _carry_out(self, command: Command) -> None:
        match command:
            case Keep():
                self._driver.journal.append(PersistShared(command.key, command.value))
            case Drop():
                self._driver.journal.append(ForgetShared(command.key))
            case Reply():
                waiter = self._waiters.pop((command.holder, command.lane, command.number), None)
                if waiter is None or waiter.done():
                    return  # nobody waits for it; who asks again gets it
                if isinstance(command.outcome, RustRayError):
                    waiter.set_exception(command.outcome)
                    waiter.exception()  # its caller may have gone
                else:
                    waiter.set_result(command.outcome)

    def _arm_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.core.next_deadline()
        if due is not None:
            self._timer = self._loop.call_at(due, self.handle, TimePassed())

    # -- attempts --------------------------------------------------------------

    def _lease_of(self, number: int, offset: int) -> Lease | None:
        """Return the lease under which a task runs; None if that is not so."""
        state = self._driver.scheduler.state
        lease = state.leases.get(number)
        if lease is None or lease.worker is state.ghost or not 0 <= offset < lease.count:
            return None
        place = lease.low + offset
        batch = lease.batch
        is_open = batch.state[place] in _OPEN_STATES and batch.lease[place] == number
        return lease if is_open else None

    def _watch(self, holder: bytes, *, is_seen: bool) -> None:
        self._tasks[holder] = is_seen
        if self._look is None:
            self._look = self._loop.call_later(LOOK_S, self._look_at_tasks)

    def _look_at_tasks(self) -> None:
        self._look = None
        for holder, is_seen in list(self._tasks.items()):
            if holder not in self.core.state.holders:
                del self._tasks[holder]
            elif self._lease_of(*_TASK.unpack(holder[len(TASK) :])) is None:
                if is_seen:  # else its worker may come back yet
                    del self._tasks[holder]
                    self.handle(HolderEnded(holder))
            elif not is_seen:
                self._tasks[holder] = True
                self.handle(HolderSeen(holder))
        if self._tasks:
            self._look = self._loop.call_later(LOOK_S, self._look_at_tasks)

    def close(self) -> None:
        """Stop timers; who waits learns that the head stops."""
        for timer in (self._timer, self._look):
            if timer is not None:
                timer.cancel()
        for waiter in self._waiters.values():
            waiter.cancel()
