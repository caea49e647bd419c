"""What the agent does for the calls of its tasks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from rustray.common.errors import CommunicationError
from rustray.coordination.messages import Action
from rustray.coordination.packing import pack_answer, unpack_request
from rustray.rpc.api import HeadApi, TaskHolder
from rustray.rpc.coordination_calls import Coordinator

_FEW: Final = 64


class TaskCoordination:
    """The locks, semaphores, events and queues of this worker's tasks."""

    def __init__(self, head: HeadApi, worker_id: str, leases: Callable[[], set[int]]) -> None:
        """Begin.

        Args:
            head: Whom to ask.
            worker_id: This worker.
            leases: Numbers of those that it has tasks of.
        """
        self._head = head
        self._worker_id = worker_id
        self._leases = leases
        self._holders: dict[tuple[int, int], Coordinator] = {}
        self._prune_at = _FEW
        self._is_closed = False

    async def handle(self, lease: int, offset: int, body: bytes) -> bytes:
        """Carry out one request of a task (`rustray.worker.calls_port.Handler`).

        Raises:
            RustRayError: what the head says.
        """
        request = unpack_request(body)
        if self._is_closed:
            raise CommunicationError("the worker is stopping")
        holder = self._holders.get((lease, offset))
        if holder is None:
            self._prune()
            task = TaskHolder(self._worker_id, lease, offset)
            ask = partial(self._head.coordinate_for_task, task)
            holder = self._holders[lease, offset] = Coordinator(ask, b"task", renews=False)
        answer = await holder.call(request)
        if request.action is Action.GET and answer.items:
            # When the attempt ends, the head must know that it had them.
            await holder.confirm()
        return pack_answer(answer)

    async def close(self) -> None:
        """Take no more requests, and leave what is under way."""
        self._is_closed = True
        for holder in self._holders.values():
            await holder.close()

    def _prune(self) -> None:
        """Forget the numbers of attempts that have ended."""
        if len(self._holders) < self._prune_at:
            return
        present = self._leases()
        self._holders = {key: holder for key, holder in self._holders.items() if key[0] in present}
        self._prune_at = _FEW + 2 * len(self._holders)
