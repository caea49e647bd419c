"""What the head has a worker do with values: send one to it, or take one over from another worker.

The answers go in frames without a number: what was not sent when a session ends, the head asks for
again in the next one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from rustray.common.errors import ObjectLost, RustRayError
from rustray.task.columns import PayloadColumn, PlacedColumn
from rustray.task.frames import Adoption, Surrendered, WorkerFrame
from rustray.task.place import MAX_SENT_BYTES, Place
from rustray.worker.object_desk import ObjectDesk

FRAME_BYTES: Final = 1 << 20
MAX_AT_ONCE: Final = 8
"""Values that are under way, or wait to be sent: so many are copied at most."""

Errand = Callable[[], Awaitable[Surrendered]]


class ValueErrands:
    """See the module; for one event loop.

    Attributes:
        answers: What `take_frame` returns.
    """

    def __init__(self, worker_id: str, desk: ObjectDesk, wake: Callable[[], None]) -> None:
        """Prepare.

        Args:
            worker_id: Whose.
            desk: Has the values.
            wake: Called when `take_frame` has something.
        """
        self.answers: list[Surrendered] = []
        self._worker_id, self._desk, self._wake = worker_id, desk, wake
        self._busy = 0
        self._waiting: deque[Errand] = deque()
        self._running: set[asyncio.Task[None]] = set()

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin."""
        self._loop = loop

    def close(self) -> None:
        """Do nothing more."""
        self._waiting.clear()
        for task in self._running:
            task.cancel()

    def surrender(self, object_ids: Sequence[str]) -> None:
        """Have values sent to the head."""
        self._waiting.extend(partial(self._surrendered, object_id) for object_id in object_ids)
        self._start()

    def adopt(self, adoptions: Sequence[Adoption]) -> None:
        """Have values taken over from other workers."""
        self._waiting.extend(partial(self._adopted, one) for one in adoptions)
        self._start()

    def _start(self) -> None:
        while self._waiting and self._busy < MAX_AT_ONCE:
            self._busy += 1  # until the answer has gone
            errand = self._waiting.popleft()
            task = self._loop.create_task(self._run(errand), name="rustray-errand")
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run(self, errand: Errand) -> None:
        self.answers.append(await errand())
        self._wake()

    async def _surrendered(self, object_id: str) -> Surrendered:
        store = self._desk.store
        assert store is not None
        try:
            async with store.hold(object_id) as segment:
                if segment.size <= MAX_SENT_BYTES:
                    return Surrendered(object_id, PayloadColumn.of([bytes(segment.view())]))
                address = self._desk.address
                text = (
                    f"the value takes {segment.size} bytes, and at most {MAX_SENT_BYTES} can "
                    f"travel through the head; there is no direct way to {self._worker_id}"
                    f"{f' at {address}' if address else ''}"
                )
                return Surrendered(object_id, trouble=text)
        except ObjectLost:
            return Surrendered(object_id, is_gone=True)
        except (RustRayError, OSError) as error:
            return Surrendered(object_id, trouble=f"{self._worker_id} cannot send it: {error}")

    async def _adopted(self, one: Adoption) -> Surrendered:
        place = Place.unpack(one.place)  # it was looked at when the frame came
        try:
            new = await self._desk.take_over(place, one.token, one.name)
        except (RustRayError, OSError, ValueError) as error:
            text = f"{self._worker_id} cannot take it over: {error}"
            return Surrendered(place.object_id, trouble=text)
        return Surrendered(place.object_id, PlacedColumn.of_item(new))

    def take_frame(self) -> WorkerFrame | None:
        """Return answers, in a frame without a number; None if there are none."""
        if not self.answers:
            return None
        taken, size = 0, 0
        while taken < len(self.answers) and size < FRAME_BYTES:
            column = self.answers[taken].payloads
            size += 0 if column is None else column.size_bytes
            taken += 1
        frame = WorkerFrame(surrendered=self.answers[:taken])
        self._drop(taken)
        return frame

    def session_closed(self) -> None:
        """What was not sent will be asked for again."""
        self._drop(len(self.answers))

    def _drop(self, count: int) -> None:
        del self.answers[:count]
        self._busy -= count
        self._start()
