"""Locks, semaphores, events and queues of a `HeadNode`."""

from __future__ import annotations

from rustray.client.channels import NodeChannel, new_coordinator
from rustray.client.coordination import Event, Lock, Semaphore
from rustray.client.queues import Queue
from rustray.rpc.api import HeadApi
from rustray.rpc.coordination_calls import Coordinator


class CoordinationCalls:
    """What a `HeadNode` has for them: objects for coroutines, held by this connection."""

    _allow_pickle: bool
    _coordinator: Coordinator | None = None

    @property
    def _connected(self) -> HeadApi:
        raise NotImplementedError

    def lock(self, name: str, *, namespace: str = "") -> Lock:
        """Return a `rustray.Lock` for coroutines: ``async with head.lock("ledger") as lock``."""
        return Lock(name, namespace=namespace).over(self._channel())

    def semaphore(self, name: str, value: int = 1, *, namespace: str = "") -> Semaphore:
        """Return a `rustray.Semaphore` for coroutines."""
        return Semaphore(name, value, namespace=namespace).over(self._channel())

    def event(self, name: str, *, namespace: str = "") -> Event:
        """Return a `rustray.Event` for coroutines."""
        return Event(name, namespace=namespace).over(self._channel())

    def queue(
        self, name: str, maxsize: int = 0, *, namespace: str = "", codec: str = "msgpack"
    ) -> Queue:
        """Return a `rustray.Queue` for coroutines; it decodes pickles only if the node may."""
        made = Queue(name, maxsize, namespace=namespace, codec=codec).over(self._channel())
        made.allow_pickle = self._allow_pickle
        return made

    def _channel(self) -> NodeChannel:
        if self._coordinator is None or self._coordinator.is_closed:
            self._coordinator = new_coordinator(self._connected)
        return NodeChannel(self._coordinator)

    async def _end_coordination(self) -> None:
        """Free all that is held."""
        coordinator, self._coordinator = self._coordinator, None
        if coordinator is not None:
            await coordinator.close()
