"""The session of one attempt of a task that hands in tasks.

All attempts of a task use the same ids, in the order of their calls: so the same call with the same
content meets the task that an earlier attempt has handed in. Where the content differs, or that
task has ended without a value, the head refuses it. From there on the attempt uses ids of its own,
and what is left of the others is cancelled.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final
from weakref import WeakSet

from rustray.client.derived import Borrowed, borrow
from rustray.client.keeping import OwnKeeper
from rustray.client.options import pickle_function
from rustray.client.refs import Batch, ClassEntry, TaskRef
from rustray.client.session import ClientSession
from rustray.client.throttle import Throttle
from rustray.client.values import Hold, Placed
from rustray.client.waiting import get_one
from rustray.common.errors import DuplicateTask, RustRayError
from rustray.common.ids import TaskId, child_prefix, split_task_id
from rustray.common.resources import ResourceSet
from rustray.objects import own_port
from rustray.task import relay
from rustray.task.columns import PlacedColumn
from rustray.task.flat import FlatValue
from rustray.task.frames import CancelRequest, ClientFrame, HeadFrame, Rejection
from rustray.task.inputs import Slot, same
from rustray.task.pickling import PROTOCOL
from rustray.task.place import Place
from rustray.task.relay import Seat
from rustray.task.spec import Codec, TaskClass

MAX_PAYLOAD_BYTES: Final = (32 << 20) - (128 << 10)
"""What a message of the agent's stream carries, but for what is around it."""
REGION_BITS: Final = 32
MAX_REGION: Final = 60_000
_MAX_REGIONS_CANCELLED: Final = 100


class NestedBatch(Batch):
    """Consecutive tasks of one class, whose ids the head may refuse."""

    __slots__ = ()

    def id_of(self, index: int) -> TaskId:
        """See `Batch`; later attempts wait for the head, so that the id is one for good."""
        session, ref = self.owner, self.refs[index] if index < len(self.refs) else None
        found = super().id_of(index)
        assert isinstance(session, NestedSession)
        if ref is None or not session.is_again or session.is_settled(ref):
            return found
        session.wait_settled(ref)
        return Batch.id_of(ref._batch, ref._index)


class NestedSession(ClientSession):
    """Hands in tasks for one attempt of a task.

    Attributes:
        seat: The task.
        is_again: It is not the task's first attempt.
    """

    def __init__(
        self, rouse: Callable[[], None], thread_id: int, throttle: Throttle, seat: Seat
    ) -> None:
        prefix = child_prefix(seat.prefix, seat.sequence)
        super().__init__(rouse, thread_id, MAX_PAYLOAD_BYTES, throttle, prefix)
        self._make_batch = NestedBatch
        self.values, self.lets_stay = self, bool(own_port.name())
        if self.lets_stay:
            self.keeper = OwnKeeper(min(relay.host().limit, MAX_PAYLOAD_BYTES))
        self.pool = None
        self.seat = seat
        self._own_region = min(seat.attempt, MAX_REGION) << REGION_BITS
        self.is_again = seat.attempt > 1
        self._has_diverged = False
        self._copies: WeakSet[Hold] = WeakSet()
        self._orders: list[CancelRequest] = []
        self._sent_orders: list[CancelRequest] = []
        self._changed: asyncio.Event | None = None
        if self.is_again:
            # What earlier attempts have handed in under ids of their own.
            low = max(1, seat.attempt - _MAX_REGIONS_CANCELLED) << REGION_BITS
            if low < self._own_region:
                self._orders.append(CancelRequest(b"", low, self._own_region - low))

    # ---- any thread -------------------------------------------------------------------

    def _open_batch(self, entry: ClassEntry) -> Batch:
        # One at a time, so that sequences are the order of calls, whatever the loop thread does.
        for other in list(self._open):
            self._seal(other)
        return super()._open_batch(entry)

    def submit_taking(
        self, entry: ClassEntry, payload: bytes | FlatValue, taken: Sequence[TaskRef[Any]]
    ) -> TaskRef[Any]:
        """See `Intake`; what is taken has its id for good by then."""
        for ref in taken if self.is_again else ():
            ref._batch.id_of(ref._index)
        return super().submit_taking(entry, payload, taken)

    def fetch(self, batch: Borrowed, ref: TaskRef[Any]) -> None:
        """See `Intake`: a task that takes no core has the result come by this session's stream."""
        other = self._copy_of(ref, may_stay=True)
        follow = partial(self._bring, batch, ref)
        if not other.watch(follow):
            follow(other)

    def _bring(self, batch: Borrowed, ref: TaskRef[Any], other: TaskRef[Any]) -> None:
        if type(other._data) is Placed:
            self._copies.add(other._data.hold)
        batch.follow(ref, other)

    def drop_copies(self) -> None:
        """Let go of what was fetched for this task: nobody else can have a reference to it."""
        for hold in list(self._copies):
            hold.is_lent = False
            hold.let_go()

    def _copy_of(self, ref: TaskRef[Any], *, may_stay: bool = False) -> TaskRef[Any]:
        """Hand in a task that returns what another one has returned."""
        code, code_hash = pickle_function(same)
        no_needs = ResourceSet.of({})
        task_class = TaskClass(
            "rustray.get", code_hash, resources=no_needs, codec=Codec.PICKLE, has_inputs=True
        )
        call = pickle.dumps(((Slot(0),), {}), PROTOCOL)
        entry = self.define(task_class, code, may_stay=may_stay)
        return self.submit_taking(entry, call, (ref,))

    def load(self, placed: Placed, timeout_s: float | None) -> Any:
        """See `rustray.client.values.Values`; the task's worker brings what it does not have."""
        hold = placed.hold
        try:
            segment = own_port.take(Place.unpack(hold.place), "")
            try:
                return placed.cut(segment.view())
            finally:
                segment.close()
        except (RustRayError, OSError, ValueError):
            prefix, sequence = split_task_id(hold.task_id)
            ref = borrow(prefix, sequence, placed.which, int(Codec.PICKLE), "rustray.get")
            copy = self._copy_of(ref)
            get_one(copy, timeout_s)
            return copy._data

    def wait_settled(self, ref: TaskRef[Any]) -> None:
        """Wait until a task has its id for good; set by who connects the session."""
        raise NotImplementedError

    def is_settled(self, ref: TaskRef[Any]) -> bool:
        """Whether the head has taken or refused a task."""
        batch = ref._batch
        return ref.is_done or self.broken is not None or ref._index in batch.settled

    # ---- loop thread ------------------------------------------------------------------

    def fill(self, frame: ClientFrame, defined: set[int | bytes]) -> bool:
        """See `ClientSession`."""
        has_content = super().fill(frame, defined)
        if not self._orders:
            return has_content
        frame.cancels.extend(self._orders)
        self._sent_orders += self._orders
        self._orders = []
        return True

    def rest(self) -> bool:
        """See `ClientSession`."""
        return super().rest() and not self._orders

    def restart(self) -> None:
        """See `ClientSession`; whether cancels have arrived nobody knows, so they go again."""
        super().restart()
        self._orders = self._sent_orders + self._orders
        self._sent_orders = []

    def apply(self, frame: HeadFrame) -> None:
        """See `ClientSession`; what is refused for its id gets another one."""
        taken = [one for one in frame.rejected if self._is_taken(one)]
        if taken:
            frame.rejected = [one for one in frame.rejected if not self._is_taken(one)]
            self._diverge(taken)
        super().apply(frame)
        if self._changed is not None:
            self._changed.set()

    def _is_taken(self, refused: Rejection) -> bool:
        return refused.code == DuplicateTask.code and refused.first < self._own_region

    def _diverge(self, taken: list[Rejection]) -> None:
        with self.lock:
            if not self._has_diverged:
                self._has_diverged = True
                for other in list(self._open):
                    self._seal(other)
                self._orders.append(self._unclaimed())
                self._next_sequence = self._own_region
        for refused in taken:
            self._orders.append(CancelRequest(b"", refused.first, refused.count))
            for batch, low, high in self._ledger.spans(refused.first, refused.count):
                self._move(batch, low, high)
        self._rouse()

    def _unclaimed(self) -> CancelRequest:
        """Return what cancels the tasks of earlier attempts that this one has not handed in."""
        return CancelRequest(b"", self._next_sequence, (1 << REGION_BITS) - self._next_sequence)

    def _move(self, batch: Batch, low: int, high: int) -> None:
        """Hand tasks in again under ids of this attempt."""
        with self.lock:
            taken, payloads = self._ledger.withdraw(batch, low, high)
            if taken:
                self._seal_moved(batch, taken, payloads)
        self._ledger.let_go(batch)

    def _seal_moved(
        self, batch: Batch, taken: list[tuple[int, TaskRef[Any]]], payloads: list[Any]
    ) -> None:
        moved = NestedBatch(self, batch.entry)
        moved.taken = batch.taken
        watchers = batch._watchers or {}
        for place, ((index, ref), payload) in enumerate(zip(taken, payloads, strict=True)):
            if index in watchers:
                moved._watchers = moved._watchers or {}
                moved._watchers[place] = watchers.pop(index)
            if batch.cancels and index in batch.cancels:
                moved.cancels = moved.cancels or {}
                moved.cancels[place] = batch.cancels.pop(index)
            ref._data = payload
            ref._index = place
            ref._batch = moved
            moved.refs.append(ref)
        if type(batch.column) is PlacedColumn:  # alone in its batch, and not the value itself
            moved.column = batch.column
        self._seal(moved)

    # ---- the end ----------------------------------------------------------------------

    @property
    def is_owed(self) -> bool:
        """Whether the head has not said yet that it has all that was handed in."""
        with self.lock:
            if self._open or self._outbox or self._orders:
                return True
        return any(
            batch.refs[index] is not None and index not in batch.settled
            for batch in self._ledger.unfinished()
            for index in range(batch.size)
        )

    async def settle(self) -> None:
        """Return when the head has all that was handed in, or the session is closed."""
        changed = self._changed = asyncio.Event()
        while self.is_owed and self.broken is None:
            changed.clear()
            await changed.wait()

    async def settled(self, ref: TaskRef[Any]) -> None:
        """Return when the head has taken or refused a task."""
        changed = self._changed = self._changed or asyncio.Event()
        while not self.is_settled(ref):
            changed.clear()
            await changed.wait()

    def close(self, error: RustRayError, unsent: RustRayError | None = None) -> None:
        """See `ClientSession`; who waits for the head's word waits no more."""
        super().close(error, unsent)
        if self._changed is not None:
            self._changed.set()

    @property
    def has_let_go(self) -> bool:
        """Whether it lets go of values, and the head may not have heard of all of them."""
        return self.released.is_owed or self.released.has_told

    @property
    def refers(self) -> bool:
        """Whether there are references here to large values that nobody else has any to."""
        return any(not hold.is_lent for hold in self.holds)

    def end(self) -> None:
        """The attempt has ended: what only earlier ones have handed in is not wanted any more."""
        # (What it refers to still is on its way to somebody in its result.)
        if self.is_again and not self._has_diverged:
            self._has_diverged = True
            self._orders.append(self._unclaimed())
