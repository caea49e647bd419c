"""How leases go to workers: with what their tasks take, and some not before all is safe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from rustray.head import joining
from rustray.head.peer import Peer
from rustray.scheduler.cancellation import stops_of
from rustray.scheduler.commands import CancelLease, GrantLease
from rustray.scheduler.credit import credits_of
from rustray.scheduler.makers import has_foreign_inputs
from rustray.scheduler.scheduler import Scheduler
from rustray.scheduler.stream_commands import CreditStream


class Owner(joining.Results, Protocol):
    """What leases are given through; a `HeadDriver` is one.

    Attributes:
        is_executing: What follows from an event is being done.
    """

    scheduler: Scheduler
    is_executing: bool

    @property
    def is_safe(self) -> bool:
        """Whether all that has happened is committed, and synced what has to be."""

    def hold(self, action: Callable[[Any], None], command: Any) -> None:
        """Do something once all that has happened is safe."""

    def tell_worker(self, command: GrantLease | CancelLease | CreditStream) -> None:
        """Hand a command to a worker's session, if it has one now."""


class Granter:
    """Hands leases to their workers' sessions.

    Attributes:
        held: Leases that are not given yet, though the scheduler has granted them.
    """

    def __init__(self, driver: Owner) -> None:
        self.held = 0
        self._driver = driver
        self._joiner = joining.Joiner(driver, self._give_read)
        self._roused: list[Peer] = []

    def give(self, command: GrantLease) -> None:
        """Give a lease, as soon as it may be."""
        if command.follows[0]:
            # Its worker has what it follows, or that is held back still, and goes first.
            if self.held:
                self.held += 1
                self._driver.hold(self._give_held, command)
            else:
                self._driver.tell_worker(command)
            return
        if command.task_class.has_inputs:
            if joining.has_stored(command):
                self.held += 1
                self._joiner.read(command)
                return
            command = joining.joined(command, self._driver.object_token)
        if self._may_go(command):
            self._driver.tell_worker(command)
            return
        self.held += 1
        self._driver.hold(self._give_held, command)

    def rouse(self, worker: Peer) -> None:
        """Have a worker's link ask for a frame, once all that an event brings about is done.

        So what follows a task goes along with it: alone it would come when that has ended.
        """
        if self._driver.is_executing:
            self._roused.append(worker)
        else:
            worker.wake()

    def wake_roused(self) -> None:
        """It is done."""
        while self._roused:
            self._roused.pop().wake()

    def close(self) -> None:
        """Read no more inputs."""
        self._joiner.close()

    def _may_go(self, command: GrantLease) -> bool:
        """Whether a lease may go at once.

        What may run once at most, or not beside itself, is not begun before it is known to be: a
        head after this one could not tell. Nor is what takes what another worker has made: if that
        is lost with this head and that worker, it is made anew, and may be another one.
        """
        task_class = command.task_class
        may_overtake = task_class.max_retries != 0 and not task_class.exclusive
        if may_overtake and not task_class.has_inputs:
            return True
        if self._driver.is_safe:
            return True
        return may_overtake and not self._takes_from_others(command.lease)

    def _takes_from_others(self, number: int) -> bool:
        state = self._driver.scheduler.state
        lease = state.leases.get(number)
        return lease is not None and has_foreign_inputs(state, lease)

    def _give_read(self, command: GrantLease) -> None:
        if self._may_go(command):
            self._give_held(command)
        else:
            self._driver.hold(self._give_held, command)

    def _give_held(self, command: GrantLease) -> None:
        self.held -= 1
        lease = self._driver.scheduler.state.leases.get(command.lease)
        if lease is not None and lease.remaining == lease.count:
            self._driver.tell_worker(command)
            for stop in stops_of(lease):  # what was said of it before it was given came to nothing
                self._driver.tell_worker(stop)
            for credit in credits_of(lease):
                self._driver.tell_worker(credit)
