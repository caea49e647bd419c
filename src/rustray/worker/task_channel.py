"""How locks, semaphores, events and queues work in the code of a task."""

from __future__ import annotations

import asyncio
from typing import Final

from rustray.coordination.messages import Answer, Request
from rustray.coordination.packing import pack_request, unpack_answer
from rustray.worker.calls import COORDINATE
from rustray.worker.context import calls_of, context


class TaskChannel:
    """Asks for the task that the calling code belongs to; the attempt is the holder."""

    def call(self, request: Request) -> Answer:
        """Ask, and block until the answer is here.

        Raises:
            NotInTask: no task runs here.
            RustRayError: what the head says.
        """
        calls, lease, offset = calls_of(context())
        return unpack_answer(calls.call(COORDINATE, lease, offset, pack_request(request)))

    async def acall(self, request: Request) -> Answer:
        """`call` for coroutines; being cancelled takes the request back."""
        calls, lease, offset = calls_of(context())
        number, future = calls.start(COORDINATE, lease, offset, pack_request(request))
        try:
            return unpack_answer(await asyncio.wrap_future(future))
        except BaseException:
            calls.cancel(number)
            raise


channel: Final = TaskChannel()
