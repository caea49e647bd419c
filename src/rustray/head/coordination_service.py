"""What one caller may do with locks, semaphores, events and queues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rustray.common.errors import AuthorizationError
from rustray.coordination.messages import Action, Answer, Request
from rustray.head.coordination import SESSION
from rustray.rpc.api import TaskHolder
from rustray.task.spec import Codec

if TYPE_CHECKING:
    from rustray.head.core import HeadCore
    from rustray.security.roles import Caller


class CoordinationService:
    """What one caller may do with locks, semaphores, events and queues."""

    _core: HeadCore
    _caller: Caller

    async def coordinate(self, request: Request) -> Answer:
        """Carry out a request of the caller's own session."""
        if request.action is Action.PUT and "code" not in self._caller.scopes:
            _refuse_pickles(request.items)
        request = replace(request, holder=SESSION + request.holder)
        return await self._core.shared.ask(request, self._caller.subject)

    async def coordinate_for_task(self, task: TaskHolder, request: Request) -> Answer:
        """Carry out a request of a task that the caller runs."""
        self._core.workers.check(task.worker_id, self._caller)
        return await self._core.shared.ask_for_task(task, request)


def _refuse_pickles(items: Sequence[bytes]) -> None:
    if any(item[:1] == bytes((Codec.PICKLE,)) for item in items):
        raise AuthorizationError(
            "this token may not send pickles, and a queue carries them as others do: use "
            "Queue(..., codec='msgpack'), or ask for a token with --allow-code"
        )
