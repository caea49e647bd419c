"""Values that stay with workers, and how a program gets at them.

On one machine it maps what the worker has, from whichever thread asks. From elsewhere the value is
sent straight from that worker, and through the head where there is no other way. When a reference
is gone, and was not given to anybody else, the worker may let go of its value.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from concurrent import futures
from typing import Final, Protocol

from rustray.client.failures import error_of
from rustray.client.loop_thread import LoopThread
from rustray.common.errors import (
    CommunicationError,
    HeadUnavailable,
    ObjectLost,
    ResourceExhausted,
    RustRayError,
)
from rustray.common.ids import TaskId
from rustray.objects import own_port
from rustray.objects.segment import remembered
from rustray.rpc.api import HeadApi, RawResult
from rustray.task.inputs import WHOLE, view_of_part
from rustray.task.place import Place
from rustray.task.spec import Codec
from rustray.task.state import TaskState

MAP_LIMIT_S: Final = 60.0
"""How long a worker of this machine may take to bring a value back from its disk."""
TRIES: Final = 3
"""Places that are tried before a value is taken for lost."""
_RETRY_FIRST_S: Final = 0.2
_RETRY_CAP_S: Final = 2.0


class Hold:
    """What keeps a value with its worker: as long as it is referred to here.

    Attributes:
        place: Where it is, packed.
        task_id: Of the task that made it.
        is_lent: Others may have a reference too: it stays for its time to live.
        mapped: Finds it again where it is mapped here, so that all who look share its memory.
    """

    __slots__ = ("__weakref__", "_release", "is_lent", "mapped", "place", "task_id")

    def __init__(
        self,
        place: bytes,
        task_id: TaskId,
        release: Callable[[Hold], None] | None = None,
        *,
        is_lent: bool = False,
    ) -> None:
        self.place = place
        self.task_id = task_id
        self.is_lent = is_lent
        self.mapped: Callable[[], memoryview | None] | None = None
        self._release = release

    def let_go(self) -> None:
        """The value is not needed here any more; once."""
        release, self._release = self._release, None
        if release is not None:
            release(self)

    def __del__(self) -> None:
        self.let_go()


class Placed:
    """Stands for the value of a reference that stays with a worker.

    Attributes:
        hold: Keeps it there.
        which: Which of the values of its task; `rustray.task.inputs.WHOLE` for its only one.
    """

    __slots__ = ("hold", "which")

    def __init__(self, hold: Hold, which: int = WHOLE) -> None:
        self.hold = hold
        self.which = which

    def part(self, index: int) -> Placed:
        """Return what stands for one of several values."""
        return Placed(self.hold, index)

    @property
    def size(self) -> int:
        """Bytes of all that its task has returned."""
        return Place.unpack(self.hold.place).size

    def cut(self, whole: bytes | memoryview) -> bytes | memoryview:
        """Return this value out of all that its task has returned."""
        return whole if self.which == WHOLE else view_of_part(whole, self.which)


_SHUT_DOWN: Final = (
    "rustray was shut down before this program had the value, which was with a worker: get what "
    "you need of large results before that"
)


class Values(Protocol):
    """Gets at values that stay with workers."""

    @property
    def pool(self) -> futures.Executor | None:
        """Where coroutines wait for them; None: the loop's own threads."""

    def load(self, placed: Placed, timeout_s: float | None) -> bytes | memoryview:
        """Return an encoded value, from any thread but the session's; blocks until it is here.

        Raises:
            TimeoutError: it was not here in time.
            RustRayError: it cannot be had (any more); says why.
        """


def mapped(place: Place, timeout_s: float | None = None) -> memoryview | None:
    """Map what a worker of this machine has; None: it cannot be had so."""
    if not place.port:
        return None
    limit_s = MAP_LIMIT_S if timeout_s is None else min(max(timeout_s, 0.001), MAP_LIMIT_S)
    try:
        segment = own_port.PORTS.take(place.port, place, timeout_s=limit_s)
        try:
            return segment.view()
        finally:
            segment.close()
    except (RustRayError, OSError, ValueError):
        return None  # there are other ways, and they say what is wrong


class SessionValues:
    """For a program's session."""

    def __init__(self, api: HeadApi, thread: LoopThread) -> None:
        """Prepare.

        Args:
            api: The head.
            thread: Of the session.
        """
        self._api = api
        self._thread = thread
        self.pool = futures.ThreadPoolExecutor(8, thread_name_prefix="rustray-values")

    def close(self) -> None:
        """Bring nothing any more."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    def load(self, placed: Placed, timeout_s: float | None) -> bytes | memoryview:
        """See `Values`."""
        hold = placed.hold
        found: bytes | memoryview | None = hold.mapped() if hold.mapped is not None else None
        if found is None:
            found = self._load(hold, timeout_s)
            if isinstance(found, memoryview):
                hold.mapped = remembered(found)
        return placed.cut(found)

    def _load(self, hold: Hold, timeout_s: float | None) -> bytes | memoryview:
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        found = mapped(Place.unpack(hold.place), timeout_s)
        if found is not None:
            return found
        left_s = None if until_s is None else max(until_s - time.monotonic(), 0.0)
        if not self._thread.is_running:
            raise CommunicationError(_SHUT_DOWN)
        try:
            return self._thread.call(self._bring(hold), left_s)
        except futures.CancelledError:  # rustray.shutdown(), by another thread
            raise CommunicationError(_SHUT_DOWN) from None

    async def _bring(self, hold: Hold) -> bytes | memoryview:
        """Have a value sent here; where it is not any more, it may be made again meanwhile."""
        missing = ""
        for _ in range(TRIES):
            raw = await self._located(hold.task_id, missing)
            if not raw.is_placed:
                return raw.payload
            place = Place.unpack(raw.payload)
            found = await asyncio.get_running_loop().run_in_executor(self.pool, mapped, place)
            if found is not None:
                hold.place = raw.payload
                return found
            try:
                segment = await self._api.fetch_object(place, raw.object_token)
                try:
                    return segment.view()
                finally:
                    segment.close()
            except ObjectLost:
                missing = place.object_id
                continue
            except CommunicationError:
                return (await self._told(lambda: self._api.get_result(hold.task_id, None))).payload
            except OSError as error:
                raise ResourceExhausted(
                    f"there is no memory here for a value of {place.size} bytes: {error}",
                    reason="OBJECT_STORE",
                ) from error
        raise ObjectLost(
            f"the value of task {hold.task_id} was lost {TRIES} times in a row while it was fetched"
        )

    async def _located(self, task_id: TaskId, missing: str) -> RawResult:
        return await self._told(lambda: self._api.locate_result(task_id, None, missing))

    async def _told(self, ask: Callable[[], Awaitable[RawResult]]) -> RawResult:
        """Ask again and again until the task has ended, and the head is there to say so."""
        attempt = 0
        while True:
            try:
                raw = await ask()
            except HeadUnavailable:
                cap = min(_RETRY_CAP_S, _RETRY_FIRST_S * 2**attempt)
                attempt = min(attempt + 1, 16)
                await asyncio.sleep(random.uniform(0, cap))  # noqa: S311 - jitter, no secret
                continue
            if raw.state is TaskState.SUCCEEDED:
                return raw
            if raw.state.is_terminal:
                raise failed_again(raw)


def failed_again(raw: RawResult) -> RustRayError:
    """Return the error for a value whose task was run again for it, and failed."""
    return error_of(raw.payload, raw.task_id, raw.worker_id, raw.attempts, Codec(raw.codec))
