"""References whose outcomes do not come by the session's stream.

*Parts* are the values of a task with ``num_returns``: they have theirs when the task has its own.
A *borrowed* reference has come out of a pickle: an argument, a result, or a file brought it here,
and the head is asked for its outcome when somebody waits for it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any, Final

from rustray.client.refs import (
    CANCELLED,
    FAILED,
    PENDING,
    SUCCEEDED,
    Batch,
    Callback,
    ClassEntry,
    Failure,
    Owner,
    TaskRef,
    run_callback,
)
from rustray.client.values import Hold, Placed
from rustray.common.errors import (
    HeadUnavailable,
    InvariantError,
    PayloadError,
    RustRayError,
    TaskCancelled,
)
from rustray.common.ids import SessionPrefix, TaskId, task_id
from rustray.rpc.api import HeadApi
from rustray.task.inputs import WHOLE, InputId, part_of, split_parts
from rustray.task.spec import Codec, TaskClass

_RETRY_FIRST_S: Final = 0.2
_RETRY_CAP_S: Final = 2.0


class _Derived(Batch):
    """A batch that is sealed from the start, and that no ledger has."""

    __slots__ = ()

    def lend(self, ref: TaskRef[Any]) -> None:
        """See `Batch`; what is here came from elsewhere, or goes with its task."""
        if type(ref._data) is Placed:
            ref._data.hold.is_lent = True

    def _end(self, ended: list[tuple[TaskRef[Any], int, Any]]) -> None:
        """Give references their outcomes: (reference, state, data); on the loop thread."""
        owner = self.owner
        for ref, state, data in ended:
            ref._data = data
            ref._state = state  # last, for other threads look at it first
        refs = [ref for ref, _, _ in ended]
        owner.arrivals.finished += len(refs)
        failed = [ref for ref, state, _ in ended if state != SUCCEEDED]
        if failed:
            owner.arrivals.failed(failed)
        low = min(ref._index for ref in refs)
        high = max(ref._index for ref in refs) + 1
        for ref, callback in self.take_watchers(low, high, refs):
            run_callback(callback, ref)
        owner.arrivals.wake()


class Parts(_Derived):
    """The values of one task, each under a reference of its own."""

    __slots__ = ("_task",)

    def __init__(self, task: TaskRef[Any], count: int) -> None:
        super().__init__(task._batch.owner, task._batch.entry)
        self.first, self.size = 0, count
        self._task = task
        self.refs = [TaskRef(self, index, None) for index in range(count)]

    def id_of(self, index: int) -> TaskId:
        """See `Batch`."""
        return self._task.task_id

    def input_of(self, index: int) -> InputId:
        """See `Batch`."""
        whole = self._task._batch.input_of(self._task._index)
        return InputId(whole.prefix, whole.sequence, index)

    def origin_of(self, ref: TaskRef[Any]) -> TaskRef[Any]:
        """See `Batch`."""
        return self._task

    def take_over(self, task: TaskRef[Any]) -> None:
        """Give the parts their outcomes, for the task has ended."""
        self._end(self._outcomes(task))

    def _outcomes(self, task: TaskRef[Any]) -> list[tuple[TaskRef[Any], int, Any]]:
        refs = [ref for ref in self.refs if ref is not None]
        self.refs = []
        state, data = task._state, task._data
        if state != SUCCEEDED:
            return [(ref, state, data) for ref in refs]
        if type(data) is Placed:
            task._data = b""  # it is kept as long as one of these
            return [(ref, state, data.part(ref._index)) for ref in refs]
        try:
            values = split_parts(data)
            if len(values) != len(refs):
                raise ValueError(f"{len(values)} values came, and not {len(refs)}")
        except ValueError as error:
            lost = PayloadError(f"the values of task {task.task_id} cannot be read: {error}")
            return [(ref, FAILED, lost) for ref in refs]
        task._data = b""  # each value is kept as long as its own reference
        return [(ref, state, bytes(value)) for ref, value in zip(refs, values, strict=True)]


def parts_of(task: TaskRef[Any], count: int) -> list[TaskRef[Any]]:
    """Return references to the values of a task that has just been handed in."""
    parts = Parts(task, count)
    refs = [ref for ref in parts.refs if ref is not None]
    if not task.watch(parts.take_over):
        for ref, state, data in parts._outcomes(task):  # nobody can wait for them yet
            ref._data, ref._state = data, state
    return refs


# ── Borrowed ──────────────────────────────────────────────────────────────────────────────────


def _not_looked_for() -> Owner:
    # By name, for it stands above: a task that was given a reference need not have used it yet.
    import_module("rustray.client.context")
    return Borrowed.find_owner()


class Borrowed(_Derived):
    """One reference that has come out of a pickle.

    Attributes:
        find_owner: Returns this process's session; set by `rustray.client.context`.
        prefix, sequence: Id of the task.
        which: Which of its values; `WHOLE` for its only one.
    """

    __slots__ = ("_found_owner", "_is_asked", "prefix", "sequence", "which")

    find_owner: Callable[[], Owner] = staticmethod(_not_looked_for)

    def __init__(
        self, prefix: bytes, sequence: int, which: int, codec: Codec, function: str
    ) -> None:
        self._found_owner: Owner | None = None
        self._is_asked = False
        super().__init__(None, _entry_of(function, codec))  # type: ignore[arg-type]
        self.first, self.size = 0, 1
        self.prefix, self.sequence, self.which = prefix, sequence, which

    @property
    def owner(self) -> Owner:
        """This process's session, found when it is needed: a reference may only pass through."""
        if self._found_owner is None:
            self._found_owner = Borrowed.find_owner()
        return self._found_owner

    @owner.setter
    def owner(self, owner: Owner | None) -> None:
        self._found_owner = owner

    def id_of(self, index: int) -> TaskId:
        """See `Batch`."""
        return task_id(SessionPrefix(self.prefix), self.sequence)

    def input_of(self, index: int) -> InputId:
        """See `Batch`."""
        return InputId(self.prefix, self.sequence, self.which)

    def pursue(self, ref: TaskRef[Any]) -> None:
        """Have the head asked for the outcome, once."""
        if not self._is_asked:
            self._is_asked = True
            self.owner.fetch(self, ref)

    def watch(self, ref: TaskRef[Any], callback: Callback) -> bool:
        """See `Batch`."""
        is_pending = super().watch(ref, callback)
        self.pursue(ref)
        return is_pending

    def fail(self, ref: TaskRef[Any], error: RustRayError) -> None:
        """End it without the head's answer."""
        state = CANCELLED if isinstance(error, TaskCancelled) else FAILED
        self._end([(ref, state, error)])

    def follow(self, ref: TaskRef[Any], other: TaskRef[Any]) -> None:
        """End it as a task of ours that has taken its result and returned it."""
        self.entry = _entry_of(self.entry.task_class.function, Codec.PICKLE)
        self._end([(ref, other._state, other._data)])

    def take_placed(self, ref: TaskRef[Any], place: bytes) -> None:
        """End it with a value that stays with a worker."""
        hold = Hold(place, self.id_of(0))
        self._end([(ref, SUCCEEDED, Placed(hold, self.which))])

    def take(self, ref: TaskRef[Any], state: int, payload: bytes, failure: Failure) -> None:
        """End it with the head's answer."""
        if state != SUCCEEDED:
            self._end([(ref, state, failure)])
            return
        try:
            value = payload if self.which == WHOLE else part_of(payload, self.which)
        except ValueError as error:
            self.fail(ref, PayloadError(f"the value cannot be read: {error}"))
            return
        self._end([(ref, state, value)])


@lru_cache(maxsize=256)
def _entry_of(function: str, codec: Codec) -> ClassEntry:
    return ClassEntry(_NOBODY, 0, TaskClass(function, codec=codec), b"")


class _Nobody:
    def submit(self, entry: ClassEntry, payload: bytes) -> TaskRef[Any]:
        raise InvariantError("a task was handed in under a borrowed reference")


_NOBODY: Final[Any] = _Nobody()


def borrow(prefix: bytes, sequence: int, which: int, codec: int, function: str) -> TaskRef[Any]:
    """Rebuild a reference out of a pickle."""
    return TaskRef(Borrowed(prefix, sequence, which, Codec(codec), function), 0, None)


TaskRef.rebuild = staticmethod(borrow)


class Borrower:
    """Asks the head for the outcomes of borrowed references, on the session's loop."""

    def __init__(self, api: HeadApi) -> None:
        """Prepare; on the loop thread."""
        self._api = api
        self._loop = asyncio.get_running_loop()
        self._open: dict[asyncio.Task[None], TaskRef[Any]] = {}
        self._closed: RustRayError | None = None

    def fetch(self, batch: Borrowed, ref: TaskRef[Any]) -> None:
        """Have the outcome of a reference brought, from any thread."""
        self._loop.call_soon_threadsafe(self._start, batch, ref)

    def cancel(self, ids: list[TaskId], force: bool) -> None:
        """Have tasks cancelled, from any thread; what cannot be is left as it is."""
        asyncio.run_coroutine_threadsafe(self._api.cancel(ids, force), self._loop)

    def close(self, error: RustRayError) -> None:
        """Fail what has not come; on the loop thread."""
        self._closed = error
        for task, ref in list(self._open.items()):
            task.cancel()
            if ref._state == PENDING:
                ref._batch.fail(ref, error)  # type: ignore[attr-defined]
        self._open.clear()

    def _start(self, batch: Borrowed, ref: TaskRef[Any]) -> None:
        if self._closed is not None:
            batch.fail(ref, self._closed)
            return
        task = self._loop.create_task(self._bring(batch, ref), name="rustray-borrowed")
        self._open[task] = ref
        task.add_done_callback(lambda done: self._open.pop(done, None))

    async def _bring(self, batch: Borrowed, ref: TaskRef[Any]) -> None:
        attempt = 0
        while True:
            try:
                raw = await self._api.locate_result(batch.id_of(0), None)
            except HeadUnavailable:
                cap = min(_RETRY_CAP_S, _RETRY_FIRST_S * 2**attempt)
                attempt = min(attempt + 1, 16)
                await asyncio.sleep(random.uniform(0, cap))  # noqa: S311 - jitter, no secret
                continue
            except RustRayError as error:
                batch.fail(ref, error)
                return
            if raw.state.is_terminal:
                break
        batch.entry = _entry_of(batch.entry.task_class.function, Codec(raw.codec))
        failure = Failure(raw.payload, raw.worker_id, raw.attempts)
        if raw.is_placed:
            batch.take_placed(ref, raw.payload)
            return
        batch.take(ref, int(raw.state), raw.payload, failure)
