"""Reading a stream by calls: for whoever has a task's id and no session of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rustray.common.errors import AuthorizationError, ObjectLost, PayloadError
from rustray.rpc.api import RawResult
from rustray.scheduler.events import ItemsRead
from rustray.scheduler.streams import items_from
from rustray.scheduler.view import TaskSnapshot
from rustray.task.streams import StreamRead

if TYPE_CHECKING:
    from rustray.head.core import HeadCore
    from rustray.security.roles import Caller

LONGEST_WAIT_S: Final = 300.0
"""A call without a limit is answered after this time at the latest; callers ask again."""
MAX_ITEMS_AT_ONCE: Final = 4_096
MAX_BYTES_AT_ONCE: Final = 1 << 20


class StreamService:
    """The part of HeadService that is about the items of generators."""

    _core: HeadCore
    _caller: Caller

    def _look(self, task_id: str) -> tuple[bytes, int, TaskSnapshot]:
        raise NotImplementedError

    async def get_items(
        self, task_id: str, first: int, timeout_s: float | None
    ) -> tuple[RawResult, list[bytes]]:
        """Wait for items of a stream; those before the first are consumed by that.

        Of a task that a session has handed in the session is the consumer: what it has consumed
        is gone, and nothing is consumed here.
        """
        driver, waiters = self._core.driver, self._core.waiters
        wait_s = min(LONGEST_WAIT_S if timeout_s is None else timeout_s, LONGEST_WAIT_S)
        deadline = driver.now() + wait_s
        prefix, sequence, found = self._look(task_id)
        if not self._core.sessions.may_use(prefix, self._caller):
            raise AuthorizationError(
                f"task {task_id} was handed in with another token than that of "
                f"{self._caller.subject}: that one may consume its items, or an administrator"
            )
        if found.items < 0:
            raise PayloadError(f"task {task_id} is no generator: it has one result")
        if not found.is_pushed:
            driver.handle(ItemsRead(prefix, StreamRead(sequence, first)))
        while True:
            _, _, found = self._look(task_id)
            items = self._items(prefix, sequence, first)
            left_s = deadline - driver.now()
            if items or found.state.is_terminal or left_s <= 0:
                await driver.safe(found.durability)  # what could be taken back is not told
                payload = found.payload or b""
                return RawResult(
                    found.task_id, found.state, found.codec, payload, found.worker_id,
                    found.attempts,
                ), items  # fmt: skip
            await waiters.wait(prefix, sequence, left_s)

    def _items(self, prefix: bytes, sequence: int, first: int) -> list[bytes]:
        place = self._core.driver.scheduler.state.find(prefix, sequence)
        if place is None:
            return []
        stream = place[0].streams.get(place[1])
        if stream is not None and first < stream.consumed:
            raise ObjectLost(
                f"the first {stream.consumed} items of the task were consumed already: a stream "
                "has one consumer"
            )
        return _bounded(items_from(*place, first))


def _bounded(items: list[bytes]) -> list[bytes]:
    size = 0
    for count, item in enumerate(items[:MAX_ITEMS_AT_ONCE]):
        size += len(item)
        if size > MAX_BYTES_AT_ONCE and count:
            return items[:count]
    return items[:MAX_ITEMS_AT_ONCE]
