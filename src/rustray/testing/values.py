"""Values that stay with simulated workers: the real desk and store, without files and sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from rustray.common.errors import CommunicationError, ObjectLost
from rustray.objects.node_store import NodeStore
from rustray.objects.records import StoreLimits
from rustray.objects.segment import Segment
from rustray.task.columns import PayloadColumn, SharedColumn
from rustray.task.frames import LeaseOutcome
from rustray.task.inputs import PLACED, InputLost, Load, join_parts, loaded, split_parts
from rustray.task.place import Place
from rustray.testing.network import Network
from rustray.worker.object_desk import ObjectDesk

ASK_AFTER_S: Final = 5.0
"""Sooner than a real worker does, so that what is kept in vain is gone within a short history."""
FETCH_S: Final = 0.02
"""How long it takes to take a value over."""
_ROOM_BYTES: Final = 1 << 40
"""Memory is not simulated: nothing goes to a disk, and nothing is refused."""


class SimSegment(Segment):
    """A value in the simulation's own memory: it has no descriptor."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value
        self.size = len(value)

    def view(self) -> memoryview:
        """See `Segment`."""
        return memoryview(self._value)

    def close(self) -> None:
        """See `Segment`; there is nothing to close."""


class SimStore(NodeStore):
    """The real accounts of a node's objects."""

    @property
    def names(self) -> set[str]:
        """What is here."""
        return set(self._segments)

    def look(self, object_id: str) -> bytes | None:
        """Return a value at once, None if it is not here."""
        segment = self._segments.get(object_id)
        return None if segment is None else bytes(segment.view())


class SimNodes:
    """The way from anybody to a worker's values, as `WorkerService.FetchObject` is."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._desks: dict[str, tuple[str, SimDesk]] = {}

    def enter(self, name: str, worker_id: str, desk: SimDesk) -> None:
        """A worker's process is there."""
        self._desks[worker_id] = (name, desk)

    def leave(self, worker_id: str) -> None:
        """It is gone, with all that it kept."""
        self._desks.pop(worker_id, None)

    def read(self, source: str, place: Place) -> bytes | None:
        """Return a value from where it is; None: it is not there (any more).

        Args:
            source: Who asks: "client" or a worker's name.
            place: What, and where.

        Raises:
            CommunicationError: that worker is dead or frozen, or the network between is cut.
        """
        found = self._desks.get(place.worker_id)
        if found is None or not self._network.is_open(source, found[0]):
            raise CommunicationError(f"no way from {source} to {place.worker_id}")
        return found[1].look(place.object_id)

    def kept(self) -> dict[str, set[str]]:
        """Return worker ids, and the names of what they keep."""
        return {worker_id: desk.names for worker_id, (_, desk) in self._desks.items()}


class SimDesk(ObjectDesk):
    """The real desk of a worker; what it has no direct way to, nobody on its machine has either.

    Args:
        name: The worker's, as the network calls it.
        worker_id: What it has registered with.
        nodes: The ways to others.
        on_keeping: See `ObjectDesk`.
    """

    def __init__(
        self, name: str, worker_id: str, nodes: SimNodes, on_keeping: Callable[[bool], None]
    ) -> None:
        super().__init__(worker_id, name, self._bring_over, on_keeping)
        self.address = f"{name}:7450"
        self.ask_after_s = ASK_AFTER_S
        self._name, self._nodes = name, nodes

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin, as `open` does, but without a socket and limits of the system."""
        self._loop, self._max_objects = loop, 1 << 20
        self.store = self._values = SimStore(loop, StoreLimits(_ROOM_BYTES))
        self._nodes.enter(self._name, self._worker_id, self)

    def end(self) -> None:
        """The process is gone."""
        self._nodes.leave(self._worker_id)

    @property
    def names(self) -> set[str]:
        """What is here, copies of others' values too."""
        return self._values.names

    def look(self, object_id: str) -> bytes | None:
        """Return a value, None if it is not here."""
        return self._values.look(object_id)

    def settle(self, outcome: LeaseOutcome, task: tuple[str, int] | None) -> LeaseOutcome:
        """See `ObjectDesk`; what does not stay travels as the protocol's codec would make it."""
        outcome = super().settle(outcome, task)
        if type(outcome.payloads) is SharedColumn:
            column = PayloadColumn.of([bytes(outcome.payloads[0])])
            outcome = LeaseOutcome(
                outcome.lease, outcome.offset, outcome.state, column, outcome.run_us
            )
        return outcome

    def load(self, place: bytes, token: str) -> memoryview:
        """Bring what a task of this worker takes; a copy stays for a while, as with a real one.

        Raises:
            InputLost: it cannot be had from where it is.
        """
        where = Place.unpack(place)
        value = self._values.look(where.object_id)
        if value is None:
            value = self._from_other(where)
            self._values.take_over(where.object_id, SimSegment(value))
            self._arrived[where.object_id] = self._loop.time()
        return memoryview(value)

    async def _bring_over(self, place: Place, token: str) -> Segment:
        """Stand in for the network of a real desk; it takes its time."""
        arrived: asyncio.Future[None] = self._loop.create_future()
        self._loop.call_later(FETCH_S, arrived.set_result, None)
        await arrived
        value = self._nodes.read(self._name, place)
        if value is None:
            raise ObjectLost(f"it is not at {place.worker_id} any more")
        return SimSegment(value)

    def _from_other(self, place: Place) -> bytes:
        try:
            found = self._nodes.read(self._name, place)
        except CommunicationError as error:
            raise InputLost(place.object_id, f"an input could not be had: {error}") from None
        if found is None:
            text = f"an input could not be had: it is not at {place.worker_id} any more"
            raise InputLost(place.object_id, text)
        return found


def resolved(payload: bytes, load: Load) -> bytes:
    """Return an encoded call with the values of all its inputs, wherever these are.

    Raises:
        InputLost: one of them cannot be had.
    """
    call, *encoded = split_parts(payload)
    parts = [bytes(call)]
    for one in encoded:
        if one[0] == PLACED:
            codec, value = loaded(one, load)
            parts.append(bytes((codec,)) + bytes(value))
        else:
            parts.append(bytes(one))
    return join_parts(parts)
