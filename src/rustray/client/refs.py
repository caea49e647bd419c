"""References to tasks, and the batches that feed them.

A `TaskRef` holds its own outcome once that has arrived, so dropping the reference frees the
result: no table of results, no finaliser, no reference counting of ours. Until then the batch it
was submitted in holds the reference, so that a task nobody waits for runs all the same.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor as FutureExecutor
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Protocol, TypeVar

from rustray.client.failures import error_of, is_interrupt, undecodable
from rustray.client.pauses import Pauses, pausing
from rustray.client.ranges import RangeSet
from rustray.client.streams import Buffer, Reads
from rustray.client.values import Placed, Values
from rustray.client.waiters import Arrivals, LoopWaiter
from rustray.common.durability import Durability
from rustray.common.errors import GetTimeout, ObjectLost, ResourceExhausted, RustRayError, TaskError
from rustray.common.ids import SessionPrefix, TaskId, task_id
from rustray.task import pickling
from rustray.task.codec import decode_value
from rustray.task.inputs import InputId
from rustray.task.runtime_env import Package
from rustray.task.spec import Codec, TaskClass
from rustray.task.state import TaskState

if TYPE_CHECKING:
    from rustray.task.columns import PayloadColumn

T_co = TypeVar("T_co", covariant=True)

PENDING: Final = 0
SUCCEEDED: Final = int(TaskState.SUCCEEDED)
FAILED: Final = int(TaskState.FAILED)
CANCELLED: Final = int(TaskState.CANCELLED)


class Owner(Protocol):
    """What references and batches need of their session.

    Attributes:
        prefix: First 10 bytes of its task ids.
        lock: Guards the open batches and all watchers.
        arrivals: Who waits for outcomes.
        broken: Why no outcome will come any more, or None.
        thread_id: Of the loop thread that results arrive on.
        offline_since_s: Since when the head cannot be reached, or None.
        values: Gets at values that stay with workers; None where all come along.
        pauses: What lets a task that waits for tasks give back its cores; None outside of tasks.
        reads: What is to be told of the consumers of streams.
    """

    prefix: SessionPrefix
    lock: threading.Lock
    arrivals: Arrivals
    broken: RustRayError | None
    thread_id: int
    offline_since_s: float | None
    pauses: Pauses | None
    reads: Reads
    values: Values | None

    def submit(self, entry: ClassEntry, payload: Any) -> TaskRef[Any]:
        """Hand in one task."""

    def seal(self, batch: Batch) -> int:
        """Close the batch for further tasks and return its first sequence."""

    def cancel(self, refs: Sequence[TaskRef[Any]], *, force: bool, recursive: bool = True) -> None:
        """Ask the head to cancel the tasks; those that ended stay as they are."""

    def fetch(self, batch: Any, ref: TaskRef[Any]) -> None:
        """Ask the head for the outcome of a borrowed reference."""


Callback = Callable[["TaskRef[Any]"], None]


class TaskRef(Generic[T_co]):
    """The promise of one task's result; `rustray.get` or ``await`` redeems it.

    ``await ref`` behaves as for an asyncio task: when the awaiting coroutine is cancelled (or
    its ``asyncio.timeout`` passes), the task is cancelled too; ``asyncio.shield(ref)`` and
    `rustray.aget` leave it alone.
    """

    # One of these exists per task: five words, and no method runs when it arrives.
    # `_state` is PENDING or a terminal TaskState; `_data` is in turn the encoded arguments,
    # None while the task is under way, and its outcome: encoded value, `Failure`, or error.
    __slots__ = ("__weakref__", "_batch", "_data", "_index", "_state")

    rebuild: ClassVar[Callable[..., TaskRef[Any]]]
    """Makes one out of a pickle; set by `rustray.client.derived`, which stands above."""
    _batch: Batch
    _data: Any
    __rustray_opaque__ = True
    """Errors name the reference itself, not what in it cannot be pickled."""

    def __init__(self, batch: Batch, index: int, payload: Any) -> None:
        self._batch = batch
        self._index = index
        self._data = payload
        self._state = PENDING

    @property
    def task_id(self) -> TaskId:
        """32 hex digits that name the task for every client and command."""
        return self._batch.id_of(self._index)

    @property
    def is_done(self) -> bool:
        """Whether the outcome has arrived."""
        return self._state != PENDING

    def __await__(self) -> Generator[Any, None, T_co]:
        if self._state == PENDING:
            yield from self._arrived().__await__()
        if type(self._data) is Placed:
            loading = asyncio.get_running_loop().run_in_executor(self.pool, self.outcome)
            return (yield from loading.__await__())
        return self.outcome()

    async def _arrived(self) -> None:
        waiter = LoopWaiter()

        def wake(_ref: TaskRef[Any]) -> None:
            waiter.wake()

        if not self.watch(wake):
            return
        try:
            async with pausing(self._batch.owner.pauses):
                await waiter.sleep(None)
        except asyncio.CancelledError:
            self._batch.owner.cancel([self._batch.origin_of(self)], force=False)
            raise
        finally:
            self.unwatch(wake)

    def outcome(self, timeout_s: float | None = None) -> T_co:
        """Decode the value, or raise the task's error; only once `is_done`.

        Each call decodes anew, so callers do not share a mutable value.

        Args:
            timeout_s: Limit for bringing it here, where it has stayed with a worker.

        Raises:
            GetTimeout: that passed.
            RustRayError: the task's typed error, or PayloadError where the value cannot
                be decoded here.
        """
        if self._state != SUCCEEDED:
            raise self.error()
        codec, data = self._batch.entry.task_class.codec, self._data
        if type(data) is Placed:
            data = self._loaded(data, timeout_s)
        try:
            value: T_co = (
                pickling.loads(data)  # our own task's answer to our own code
                if codec is Codec.PICKLE
                else decode_value(codec, data)
            )
        except BaseException as error:
            if is_interrupt(error):
                raise
            raise undecodable(self.task_id, error) from error
        return value

    @property
    def pool(self) -> FutureExecutor | None:
        """Where a coroutine waits for the value, if that has stayed with a worker."""
        values = self._batch.owner.values
        return None if values is None else values.pool

    def _loaded(self, placed: Placed, timeout_s: float | None) -> Any:
        """Bring a value here that stays with a worker."""
        values = self._batch.owner.values
        if values is None:
            raise ObjectLost("the value is with a worker, and cannot be had from there here")
        try:
            return values.load(placed, timeout_s)
        except TimeoutError:
            raise GetTimeout(
                f"the task has ended, and its value could not be brought here within {timeout_s:g} "
                "s from the worker that keeps it; ask again later"
            ) from None

    def error(self) -> RustRayError:
        """Build the typed error of a task that ended without success."""
        data: Failure | RustRayError = self._data
        if isinstance(data, RustRayError):
            # A new one each time: raising the same instance again would grow its traceback.
            error = type(data)(str(data))
            if isinstance(error, ResourceExhausted) and isinstance(data, ResourceExhausted):
                error.retry_after_s, error.reason = data.retry_after_s, data.reason
            if isinstance(error, TaskError):
                error.task_id = self.task_id
            return error
        codec = self._batch.entry.task_class.codec
        return error_of(data.payload, self.task_id, data.worker_id, data.attempts, codec)

    def watch(self, callback: Callback) -> bool:
        """Ask for one call with this reference when it ends, from the session's thread.

        Returns:
            False if it has ended already: there will be no call.
        """
        return self._batch.watch(self, callback)

    def unwatch(self, callback: Callback) -> None:
        """Take a callback back that may not have been called yet."""
        self._batch.unwatch(self, callback)

    def __reduce__(self) -> Any:
        # Wherever it is unpickled, it asks the head for the outcome.
        which = self._batch.input_of(self._index)
        origin = self._batch.origin_of(self)
        origin._batch.lend(origin)
        if type(self._data) is Placed:
            self._data.hold.is_lent = True
        task_class = self._batch.entry.task_class
        return TaskRef.rebuild, (
            which.prefix,
            which.sequence,
            which.index,
            int(task_class.codec),
            task_class.function,
        )

    def __repr__(self) -> str:
        state = "pending" if self._state == PENDING else TaskState(self._state).name.lower()
        name = self._batch.entry.task_class.function
        return f"TaskRef({name}, {self.task_id}, {state})"


class Failure:
    """The outcome of a task without success, not yet decoded."""

    __slots__ = ("attempts", "payload", "worker_id")

    def __init__(self, payload: bytes, worker_id: str, attempts: int) -> None:
        self.payload = payload
        self.worker_id = worker_id
        self.attempts = attempts


class ClassEntry:
    """A task class as one session knows it.

    Attributes:
        number: The session's number for it.
        submit: The session's, bound once.
        open_batch: Where the next task goes, or None. Guarded by the session's lock.
        deadline_unix_s: When its tasks are ended wherever they are; 0 for never.
        durability: What its tasks ask for.
        packages: Of its environment.
    """

    __slots__ = (
        "code",
        "deadline_unix_s",
        "durability",
        "number",
        "open_batch",
        "owner",
        "packages",
        "submit",
        "task_class",
    )

    def __init__(
        self,
        owner: Owner,
        number: int,
        task_class: TaskClass,
        code: bytes,
        deadline_unix_s: float = 0.0,
        durability: Durability = Durability.DEFAULT,
    ) -> None:
        self.owner = owner
        self.packages: tuple[Package, ...] = ()
        self.deadline_unix_s = deadline_unix_s
        self.durability = durability
        self.submit = owner.submit
        self.number = number
        self.task_class = task_class
        self.code = code
        self.open_batch: Batch | None = None

    def variant(self, deadline_unix_s: float, durability: Durability) -> ClassEntry:
        """Return the entry for tasks of the same class that ask for this."""
        if not (deadline_unix_s or durability):
            return self
        other = ClassEntry(
            self.owner, self.number, self.task_class, self.code, deadline_unix_s, durability
        )
        other.packages = self.packages
        return other

    @property
    def keeps_arguments(self) -> bool:
        """Whether its tasks' arguments are kept until the end: they may be needed again."""
        return self.may_be_lost or self.task_class.is_put

    @property
    def may_be_lost(self) -> bool:
        """Whether its tasks are handed in again where a new head does not know them.

        They were told to be at the head before they were safe there. Of those that run once at
        most nobody could tell whether they have begun.
        """
        is_repeatable = bool(self.task_class.max_retries) and not self.task_class.exclusive
        return self.durability == Durability.MEMORY and is_repeatable


class Batch:
    """Consecutive tasks of one class.

    Attributes:
        first: Sequence of the first task; -1 until the batch is sealed.
        refs: A reference per task; None once that one has ended.
        column: Encoded arguments, from the seal until the head has acked all of them; where they
            may be needed again, until all have ended.
        inputs: Ids of what each task takes, as long as that; None where none takes anything.
        order: Of opening, within the session.
        sent: Tasks ``0`` to ``sent - 1`` have gone out in this session's stream.
        reached: The most that ``sent`` has been.
        unfinished: How many references are not None.
        settled: Which tasks the head has acked or refused.
        asked: Acked ones that the present stream has asked the head for.
        cancels: Tasks that shall be cancelled, with ``force``, and whether what they have handed in
            is spared; None for none.
        lent: Tasks of whose references there are copies elsewhere; None for none.
        taken: References that its tasks take, until the head has all of these tasks.
        buffers: Of streams: what has arrived of the items of each task; None for none.
        full: The same of a batch that has ended: its consumers may not have come for it yet.
    """

    __slots__ = (
        "_watchers",
        "asked",
        "buffers",
        "cancels",
        "column",
        "entry",
        "first",
        "full",
        "inputs",
        "lent",
        "order",
        "owner",
        "reached",
        "refs",
        "sent",
        "settled",
        "size",
        "taken",
        "unfinished",
    )

    def __init__(self, owner: Owner, entry: ClassEntry) -> None:
        self.owner = owner
        self.entry = entry
        self.first = -1
        self.refs: list[TaskRef[Any] | None] = []
        self.size = 0
        self.column: PayloadColumn | None = None
        self.inputs: PayloadColumn | None = None
        self.order = 0
        self.sent = 0
        self.reached = 0
        self.unfinished = 0
        self.settled = RangeSet()
        self.asked: RangeSet | None = None
        self.cancels: dict[int, tuple[bool, bool]] | None = None
        self.buffers: dict[int, Buffer] | None = None
        self.full: dict[int, Buffer] | None = None
        self.lent: set[int] | None = None
        self.taken: list[Any] | None = None
        self._watchers: dict[int, list[Callback]] | None = None

    def id_of(self, index: int) -> TaskId:
        """Return the id of a task; that closes the batch for further ones."""
        first = self.first
        if first < 0:
            first = self.owner.seal(self)
        return task_id(self.owner.prefix, first + index)

    def input_of(self, index: int) -> InputId:
        """Return what names a task's value where another one takes it; closes the batch too."""
        first = self.first
        if first < 0:
            first = self.owner.seal(self)
        return InputId(self.owner.prefix, first + index)

    def origin_of(self, ref: TaskRef[Any]) -> TaskRef[Any]:
        """Return the reference of the task itself."""
        return ref

    def lend(self, ref: TaskRef[Any]) -> None:
        """Note that there is a copy of a reference elsewhere: its value stays."""
        with self.owner.lock:  # the session looks at this when the value has come
            lent = self.lent = self.lent or set()
            lent.add(ref._index)
        if type(ref._data) is Placed:
            ref._data.hold.is_lent = True

    def pursue(self, ref: TaskRef[Any]) -> None:
        """See to it that the outcome comes; of what was handed in here it does by itself."""

    def buffer_of(self, index: int) -> Buffer:
        """Return what has arrived of a stream, from any thread."""
        with self.owner.lock:
            buffers = self.buffers
            if buffers is None:
                buffers = self.full
            if buffers is None:
                buffers = self.buffers = {}
            found = buffers.get(index)
            if found is None:
                window = self.entry.task_class.stream_window
                found = buffers[index] = Buffer(self, index, window)
            return found

    def unsent(self) -> tuple[int, int] | None:
        """Return the first (low, high) that has neither gone out nor been acked, or None."""
        if self.settled.count:
            return next(self.settled.gaps(self.sent, self.size), None)
        return (self.sent, self.size) if self.sent < self.size else None

    def watch(self, ref: TaskRef[Any], callback: Callback) -> bool:
        """See `TaskRef.watch`."""
        with self.owner.lock:
            if ref._state != PENDING:
                return False
            if self.owner.broken is not None:
                raise self.owner.broken
            batch = ref._batch  # a nested session may just have given it another place
            if batch._watchers is None:
                batch._watchers = {}
            batch._watchers.setdefault(ref._index, []).append(callback)
            return True

    def unwatch(self, ref: TaskRef[Any], callback: Callback) -> None:
        """See `TaskRef.unwatch`."""
        with self.owner.lock:
            callbacks = (ref._batch._watchers or {}).get(ref._index, [])
            if callback in callbacks:
                callbacks.remove(callback)

    def take_watchers(
        self, low: int, high: int, ended: list[TaskRef[Any]]
    ) -> list[tuple[TaskRef[Any], Callback]]:
        """Take out who waits for tasks ``low`` to ``high - 1``, which have just ended.

        Called after their states were set: a watcher comes either before the lock is taken
        here, and is found, or after it, and sees the state.
        """
        with self.owner.lock:
            watchers = self._watchers
            if not watchers:
                return []
            found: list[tuple[TaskRef[Any], Callback]] = []
            if len(watchers) < len(ended) == high - low:
                for index in [index for index in watchers if low <= index < high]:
                    ref = ended[index - low]
                    found.extend((ref, callback) for callback in watchers.pop(index))
                return found
            for ref in ended:
                callbacks = watchers.pop(ref._index, None)
                if callbacks:
                    found.extend((ref, callback) for callback in callbacks)
            return found


def run_callback(callback: Callback, ref: TaskRef[Any]) -> None:
    """Run a watcher; its failure must not keep results from the others."""
    try:
        callback(ref)
    except BaseException:  # also a SystemExit: this is the thread that all results arrive on
        kind, error, trace = sys.exc_info()
        assert kind is not None
        threading.excepthook(
            threading.ExceptHookArgs((kind, error, trace, threading.current_thread()))
        )
