"""What a worker keeps: results of its tasks, what programs on its machine put, copies of others'.

The head says what is needed no more (`free`), and is asked now and then about what has been here
for a while, so that nothing stays for ever because a message was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Final

from rustray.common.errors import ObjectLost, ResourceExhausted
from rustray.objects.node_store import NodeStore
from rustray.objects.port import ObjectPort, new_name
from rustray.objects.port_client import PortClient
from rustray.objects.segment import Segment
from rustray.task.columns import PayloadColumn, PlacedColumn, SharedColumn
from rustray.task.failures import encode_failure
from rustray.task.frames import LeaseOutcome
from rustray.task.place import MAX_SENT_BYTES, PUT_PREFIX, Place, is_put_name
from rustray.task.result import FailureInfo
from rustray.task.state import TaskState

logger = logging.getLogger("rustray.worker")

ASK_AFTER_S: Final = 60.0
"""How long a value is here before the head is asked whether somebody needs it."""
ASK_LEAVING_AFTER_S: Final = 5.0
"""The same once the worker leaves; what is handed in just now, the head may not know yet."""
MAX_ASKED: Final = 1_000
NEIGHBOUR_S: Final = 30.0
"""How long another worker of this machine may take, before the value is sent for by network."""
PUT_ASK_AFTER_S: Final = 3_600.0
"""What was put may be handed in late, by a program that is cut off or throttled."""

Fetch = Callable[[Place, str], Awaitable[Segment]]
"""Brings the object of a place, which a token opens, from another machine."""


class ObjectDesk:
    """See the module; for one event loop.

    Attributes:
        store: The objects; None before `open`.
        port_name: Name of the Unix socket for those of this machine.
        port: The same once it is there; "" for none.
        address, tls_name: See `rustray.task.place.Place`.
        ask_after_s: How long a value is here before the head is asked about it.
    """

    def __init__(
        self, worker_id: str, host_key: str, fetch: Fetch, on_keeping: Callable[[bool], None]
    ) -> None:
        """Prepare.

        Args:
            worker_id: Whose.
            host_key: Its machine.
            fetch: See `Fetch`.
            on_keeping: Told when values are kept that others may need, and when none are any more.
        """
        self.store: NodeStore | None = None
        self.port_name, self.port = new_name(), ""
        self.address = self.tls_name = ""
        self._worker_id, self._host_key = worker_id, host_key
        self._fetch, self._on_keeping = fetch, on_keeping
        self._listener: ObjectPort | None = None
        self._others = PortClient()
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="rustray-neighbours")
        self._bringing: dict[str, asyncio.Task[None]] = {}
        self._arrived: dict[str, float] = {}
        self._kept: set[str] = set()  # those of the former that are no copies
        self._max_objects = 0
        self.ask_after_s = ASK_AFTER_S

    def open(self, loop: asyncio.AbstractEventLoop, store: NodeStore) -> None:
        """Begin; where there can be no socket, nobody on this machine gets at it without a copy."""
        self._loop, self.store = loop, store
        # Each has a descriptor; as many are left for all else.
        self._max_objects = max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2, 64)
        try:
            self._listener = ObjectPort(loop, self.port_name, self)
            self.port = self.port_name
        except OSError as error:
            logger.warning("objects of this worker can only be had by network: %s", error)

    async def close(self) -> None:
        """Let go of all of it."""
        if self._listener is not None:
            self._listener.close()
        for task in self._bringing.values():
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self.store is not None:
            await self.store.close()

    # ── Keeping ───────────────────────────────────────────────────────────────────────────

    def settle(self, outcome: LeaseOutcome, task: tuple[str, int] | None) -> LeaseOutcome:
        """Keep a large result of a task (id, lease); None: it is not to stay."""
        column = outcome.payloads
        assert isinstance(column, SharedColumn)
        if task is not None and outcome.state is TaskState.SUCCEEDED:
            kept = self.keep(object_id_of(*task), column)
            if kept is column and column.size_bytes > MAX_SENT_BYTES:
                kept = _no_room(column.size_bytes)
                return replace(outcome, state=TaskState.FAILED, payloads=kept)
            return replace(outcome, payloads=kept)
        if isinstance(column.owner, Segment):
            column.owner.close()
            column.owner = None
        return outcome

    def keep(self, object_id: str, column: SharedColumn) -> PayloadColumn:
        """Keep a result here; returns what travels in its stead, or itself, if there is no room."""
        segment = column.owner
        assert isinstance(segment, Segment)
        assert self.store is not None
        column.owner = None
        if len(self._arrived) >= self._max_objects or object_id in self._arrived:
            segment.close()
            return column
        try:
            self.store.take_over(object_id, segment)
        except (ResourceExhausted, ObjectLost):
            segment.close()
            return column
        self._note_kept(object_id)
        return PlacedColumn.of_item(self._place(object_id, segment.size).pack())

    async def put_in(self, object_id: str, segment: Segment) -> bytes:
        """See `rustray.objects.port.Objects`."""
        assert self.store is not None
        if len(self._arrived) >= self._max_objects:
            segment.close()
            raise ResourceExhausted(
                "the worker keeps as many values as it may have files open; drop references that "
                "are not needed any more, or allow it more files",
                reason="OBJECT_STORE",
            )
        size = segment.size
        if not is_put_name(object_id):
            segment.close()
            raise ValueError(f"a value that is put has a name that begins with {PUT_PREFIX!r}")
        await self.store.adopt(object_id, segment)
        self._note_kept(object_id)
        return self._place(object_id, size).pack()

    async def take_over(self, place: Place, token: str, name: str) -> bytes:
        """Keep a value from now on that another worker keeps; returns its packed place.

        Args:
            place: Where it is.
            token: Opens it there.
            name: What it is called from then on.

        Raises:
            ObjectLost, CommunicationError, ResourceExhausted: see `hold`.
        """
        assert self.store is not None
        if name not in self.store:
            await self._bring(place, token, name)
        self._note_kept(name)
        return self._place(name, place.size).pack()

    def _note_kept(self, object_id: str) -> None:
        self._arrived[object_id] = self._loop.time()
        was_keeping = bool(self._kept)
        self._kept.add(object_id)
        if not was_keeping:
            self._on_keeping(True)

    def _place(self, object_id: str, size: int) -> Place:
        return Place(
            object_id, size, self._worker_id, self._host_key, self.port, self.address, self.tls_name
        )

    def free(self, object_ids: Sequence[str]) -> None:
        """Let go of values; unknown ones are no error."""
        for object_id in object_ids:
            self._arrived.pop(object_id, None)
            if self.store is not None:
                self.store.free(object_id)
            if object_id in self._kept:
                self._kept.remove(object_id)
                if not self._kept:
                    self._on_keeping(False)

    def doubtful(self, is_leaving: bool) -> tuple[str, ...]:
        """Return some values that have been here for a while: is anybody in need of them?"""
        now = self._loop.time()

        def patience_s(name: str) -> float:
            if is_leaving:
                return ASK_LEAVING_AFTER_S
            return PUT_ASK_AFTER_S if name.startswith(PUT_PREFIX) else self.ask_after_s

        found = (name for name, since in self._arrived.items() if now > since + patience_s(name))
        asked = tuple(islice(found, MAX_ASKED))
        for object_id in asked:  # the next time it is the turn of others
            self._arrived[object_id] = now
        return asked

    # ── Handing out ───────────────────────────────────────────────────────────────────────

    def in_memory(self, place: bytes) -> Segment | None:
        """Return the value of a packed place, if it is in memory here."""
        if self.store is None:
            return None
        try:
            return self.store.in_memory(Place.unpack(place).object_id)
        except ValueError:
            return None

    @contextlib.asynccontextmanager
    async def hold_at(self, place: bytes, token: str) -> AsyncIterator[Segment]:
        """See `rustray.objects.port.Objects`."""
        try:
            where = Place.unpack(place)
        except ValueError as error:
            raise ObjectLost(f"a reference to a value cannot be read: {error}") from None
        async with self.hold(where, token) as segment:
            yield segment

    @contextlib.asynccontextmanager
    async def hold(self, place: Place, token: str = "") -> AsyncIterator[Segment]:
        """Have a value here, wherever it is, as long as the block lasts.

        Raises:
            ObjectLost: it is not where it should be.
            CommunicationError: its node cannot be reached.
            ResourceExhausted: there is no room for it.
        """
        assert self.store is not None
        if place.object_id not in self.store:
            if place.worker_id == self._worker_id:
                raise ObjectLost(f"value {place.object_id} is not here any more")
            await self._bring(place, token, place.object_id)
        async with self.store.hold(place.object_id) as segment:
            yield segment

    async def _bring(self, place: Place, token: str, name: str) -> None:
        """Have another node's value here, under a name; one is brought once at a time."""
        bringing = self._bringing.get(name)
        if bringing is None:
            bringing = self._loop.create_task(self._copy(place, token, name), name="rustray-bring")
            self._bringing[name] = bringing
            bringing.add_done_callback(lambda _: self._bringing.pop(name, None))
        await asyncio.shield(bringing)

    async def _copy(self, place: Place, token: str, name: str) -> None:
        assert self.store is not None
        if len(self._arrived) >= self._max_objects:
            raise ResourceExhausted("the worker keeps too many values", reason="OBJECT_STORE")
        segment = await self._from_neighbour(place, token)
        if segment is None:
            try:
                segment = await self._fetch(place, token)
            except OSError as error:
                raise ResourceExhausted(
                    f"no memory for a value of {place.size} bytes: {error}", reason="OBJECT_STORE"
                ) from error
        await self.store.adopt(name, segment)
        self._arrived[name] = self._loop.time()

    async def _from_neighbour(self, place: Place, token: str) -> Segment | None:
        """Map what another worker of this machine has; None: it cannot be had so."""
        if place.host_key != self._host_key or not (place.port and self._host_key):
            return None
        with contextlib.suppress(OSError, ValueError):
            ask = partial(self._others.take, place.port, place, token, NEIGHBOUR_S)
            return await self._loop.run_in_executor(self._threads, ask)
        return None


def object_id_of(task_id: str, lease: int) -> str:
    """Return the name of what a task has returned under a lease; no other has it, ever."""
    return f"{task_id}-{lease:x}"


def _no_room(size: int) -> PayloadColumn:
    text = (
        f"the function succeeded, but its result takes {size} bytes: too many to travel to the "
        "head, and the worker's store of objects has no room for them (worker.object_memory_mb, "
        "worker.object_disk_mb). Drop references that are not needed, or raise these"
    )
    return PayloadColumn.of([encode_failure(FailureInfo(ResourceExhausted.code, text))])
