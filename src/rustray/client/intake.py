"""Where any thread hands in tasks, which must stay at two microseconds.

A task is a reference that is appended to the open batch of its class. The batch is sealed, and its
tasks numbered, when the loop thread takes it, when it is full, or when somebody asks for an id.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from rustray.client.derived import Borrowed, Borrower
from rustray.client.ledger import Ledger
from rustray.client.pauses import Pauses
from rustray.client.refs import PENDING, Batch, ClassEntry, TaskRef
from rustray.client.releases import Releases
from rustray.client.runtime_envs import Packer
from rustray.client.streams import Reads
from rustray.client.throttle import Throttle
from rustray.client.values import Hold, Placed, Values
from rustray.client.waiters import Arrivals
from rustray.common.durability import Durability
from rustray.common.errors import PayloadError, RustRayError
from rustray.common.ids import PREFIX_BYTES, SessionPrefix, task_id
from rustray.task.columns import PayloadColumn, PlacedColumn
from rustray.task.flat import FlatValue
from rustray.task.spec import DEFAULT_RETRIES, TaskClass

MAX_BATCH_TASKS: Final = 4_096
# A batch is joined into one blob; sealing it at a big item bounds that to 64 MiB and the item.
BIG_PAYLOAD_BYTES: Final = 16 << 10
# Columns count bytes in 32 bits.
MAX_PAYLOAD_BYTES: Final = 2 << 30
_LAST_INDEX: Final = MAX_BATCH_TASKS - 1
_new_ref = object.__new__


class Intake:
    """The part of a session that any thread may use; what is private here the session shares.

    Attributes:
        prefix: First 10 bytes of its task ids.
        lock: Guards open batches, watchers, waiters and the order of batches.
        arrivals: Who waits for outcomes.
        broken: Why it can take nothing any more, or None.
        thread_id: Of the loop thread, where nobody may block for a result.
        values: Gets at values that stay with workers.
        lets_stay: Whether results of its own tasks may.
        keeper: Gives large values to workers; None: they go through the head.
        max_payload_bytes: Most that the way to the head can carry as one item.
        released: Tasks whose values are not needed here any more.
        holds: What is held of others.
        offline_since_s: Since when the head cannot be reached (`time.monotonic`), or None.
        pack: Copies large arguments to where they wait; see `rustray.client.sharing.share`.
        pauses: What lets a task that waits for tasks give back its cores; None outside of tasks.
        reads: What is to be told of the consumers of streams.
        borrower: Asks the head about references of others; None before it is connected.
        default_retries: The head's ``max_retries``, as far as it has said so.
    """

    def __init__(
        self,
        rouse: Callable[[], None],
        thread_id: int = 0,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
        throttle: Throttle | None = None,
        prefix: SessionPrefix | None = None,
    ) -> None:
        """Make a session that is not connected.

        Args:
            rouse: Called from any thread when `fill` has something again.
            thread_id: `threading.get_ident` of the loop thread.
            max_payload_bytes: Most that the way to the head can carry as one item.
            throttle: Has tasks handed in again that are refused for now; None: they fail.
            prefix: Of its task ids; None makes one.
        """
        self.envs = Packer()
        self.prefix = prefix or SessionPrefix(secrets.token_bytes(PREFIX_BYTES))
        self.lock = threading.Lock()
        self.arrivals = Arrivals(self.lock)
        self.broken: RustRayError | None = None
        self.thread_id = thread_id
        self.offline_since_s: float | None = None
        self.pauses: Pauses | None = None
        self._ledger = Ledger(self.prefix, self.lock, self.arrivals, self._placed)
        self.reads = Reads(rouse)
        self._rouse = rouse
        self.max_payload_bytes = max_payload_bytes
        self.pack: Callable[[Any], Any] = bytes
        self._throttle = throttle or Throttle(None)
        self._make_batch = Batch
        self._is_idle, self._next_sequence = False, 0
        self._entries: dict[TaskClass, ClassEntry] = {}
        self._open: dict[Batch, None] = {}
        self._outbox: deque[Batch] = deque()
        self._cancels: deque[tuple[Batch, int]] = deque()
        self._opened = 0
        self.borrower: Borrower | None = None
        self.values: Values | None = None
        self.lets_stay, self.default_retries = False, DEFAULT_RETRIES
        self.keeper: Any = None
        self.released = Releases()
        self.holds: weakref.WeakSet[Hold] = weakref.WeakSet()

    def define(
        self,
        task_class: TaskClass,
        code: bytes,
        deadline_unix_s: float = 0.0,
        durability: Durability = Durability.DEFAULT,
        runtime_env: Mapping[str, Any] | None = None,
        *,
        may_stay: bool = False,
    ) -> ClassEntry:
        """Return the session's entry for a class; equal ones share one, but for what follows it.

        Args:
            task_class: The class.
            code: Of its function, where that travels.
            deadline_unix_s, durability, runtime_env: Of its tasks; see `Submission`, `Packer`.
            may_stay: Large results may stay with their worker, where that is possible.

        Raises:
            PayloadError: the code is too much for the way to the head, or packing failed.
        """
        if task_class.inherits_retries:
            task_class = replace(task_class, max_retries=self.default_retries)
        if may_stay and self.lets_stay and task_class.may_run_again:
            task_class = replace(task_class, results_stay=True)
        task_class, packages = self.envs.apply(task_class, runtime_env)
        if len(code) > self.max_payload_bytes:
            what = f"the parts of the code of {task_class.function}"
            raise _too_big(task_class, len(code), self.max_payload_bytes, what)
        with self.lock:
            entry = self._entries.get(task_class)
            if entry is None:
                number = len(self._entries) + 1
                entry = self._entries[task_class] = ClassEntry(self, number, task_class, code)
                entry.packages = packages
        return entry.variant(deadline_unix_s, durability)

    def submit(self, entry: ClassEntry, payload: Any) -> TaskRef[Any]:
        """Hand in one task.

        Args:
            entry: From `define` of this session.
            payload: Encoded arguments: bytes, or a `FlatValue`; of a class with inputs that and the
                references that it takes.

        Raises:
            PayloadError: the arguments are more than the way to the head can carry.
            RustRayError: the session is closed (the reason why).

        Complexity: O(1), without I/O; wakes the loop thread if that had nothing to do.
        """
        is_big = len(payload) > BIG_PAYLOAD_BYTES
        if is_big:
            payload = _pack(payload, entry, self.max_payload_bytes, self.pack)
        with self.lock:
            batch = entry.open_batch or self._open_batch(entry)
            refs = batch.refs
            index = len(refs)
            # One append makes the task exist: a Ctrl-C before it leaves nothing behind.
            ref: TaskRef[Any] = _new_ref(TaskRef)  # four stores cost half of what __init__ does
            ref._batch = batch
            ref._index = index
            ref._data = payload
            ref._state = PENDING
            refs.append(ref)
            if is_big or index >= _LAST_INDEX:
                self._seal_through(batch)
            if not self._is_idle:
                return ref
            self._is_idle = False
        self._rouse()
        return ref

    def submit_taking(
        self, entry: ClassEntry, payload: bytes | FlatValue, taken: Sequence[TaskRef[Any]]
    ) -> TaskRef[Any]:
        """Hand in a task that takes the results of others.

        Args:
            entry: From `define` of this session; its class has inputs.
            payload: Encoded arguments, with slots.
            taken: Whose results go into the slots, in order.

        Raises:
            PayloadError, RustRayError: as `submit`.
        """
        is_big = len(payload) > BIG_PAYLOAD_BYTES
        if is_big:
            payload = _pack(payload, entry, self.max_payload_bytes, self.pack)
        for ref in taken:
            batch = ref._batch.origin_of(ref)._batch
            if batch.first >= 0:
                continue
            with self.lock:
                mine = entry.open_batch
                must_wait = mine is not None and mine.order < batch.order
                # What is taken is handed in before what takes it.
                if batch.owner is self and batch.first < 0 and must_wait:
                    self._seal_through(batch)
            if batch.owner is not self:
                batch.owner.seal(batch)
        new = self.submit(entry, (payload, taken))
        if is_big:
            self.seal(new._batch)
        return new

    def submit_placed(self, entry: ClassEntry, column: PlacedColumn) -> TaskRef[Any]:
        """Hand in a value that is with a worker; it is alone in its batch."""
        with self.lock:
            if entry.open_batch is not None:
                self._seal_through(entry.open_batch)
            batch = self._open_batch(entry)
            ref: TaskRef[Any] = TaskRef(batch, 0, None)
            batch.refs.append(ref)
            batch.column = column
            self._seal_through(batch)
            is_idle, self._is_idle = self._is_idle, False
        if is_idle:
            self._rouse()
        return ref

    def fetch(self, batch: Borrowed, ref: TaskRef[Any]) -> None:
        """Ask the head for the outcome of a borrowed reference."""
        if self.borrower is None or self.broken is not None:
            raise self.broken or RustRayError("the session is not connected")
        self.borrower.fetch(batch, ref)

    def _placed(self, batch: Batch, index: int, column: PayloadColumn) -> list[Placed]:
        """Return what stands for a value that stays with a worker, alone in a list."""
        sequence = batch.first + index
        name = task_id(self.prefix, sequence)
        hold = Hold(column[0], name, partial(self._release, sequence))
        self.holds.add(hold)
        with self.lock:
            hold.is_lent = index in (batch.lent or ())
        return [Placed(hold)]

    def _release(self, sequence: int, hold: Hold) -> None:
        """Have a worker let go of a value; a finaliser may call it anywhere: no lock is taken."""
        if hold.is_lent:
            return
        self.released.add(sequence)
        if not self.released.is_told:
            self.released.is_told = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: the head frees it in time
                self._rouse()

    def release_all(self) -> None:
        """Let go of what is held here, for the session ends."""
        for hold in list(self.holds):
            hold.let_go()

    def seal(self, batch: Batch) -> int:
        """Close the batch for further tasks; returns its first sequence."""
        with self.lock:
            if batch.first < 0:
                self._seal_through(batch)
        return batch.first

    def cancel(self, refs: Sequence[TaskRef[Any]], *, force: bool, recursive: bool = True) -> None:
        """Ask the head to cancel tasks of this session; those that ended stay as they are."""
        borrowed = [ref.task_id for ref in refs if isinstance(ref._batch, Borrowed)]
        if borrowed and self.borrower is not None:
            self.borrower.cancel(borrowed, force)
        with self.lock:
            for ref in refs:
                batch = ref._batch
                if ref._state != PENDING or isinstance(batch, Borrowed):
                    continue
                if batch.first < 0:
                    self._seal_through(batch)
                _want_stopped(batch, ref._index, force, recursive)
                self._cancels.append((batch, ref._index))
            is_needed = (self._is_idle or self._throttle.is_on) and bool(self._cancels)
            self._is_idle = self._is_idle and not is_needed
        if is_needed:
            self._rouse()

    def after_fork(self, error: RustRayError) -> None:
        """Make the copy in a forked child refuse everything; its loop thread is not there."""
        self.lock = threading.Lock()
        self.broken = error
        for batch in self._open:
            batch.entry.open_batch = None
        self._is_idle = False

    def _open_batch(self, entry: ClassEntry) -> Batch:
        if self.broken is not None:
            raise self.broken
        batch = entry.open_batch = self._make_batch(self, entry)
        self._opened += 1
        batch.order = self._opened
        self._open[batch] = None
        return batch

    def _seal_through(self, batch: Batch) -> None:
        """Seal what was opened before the batch, then itself: what came first goes first."""
        for other in list(self._open):
            self._seal(other)
            if other is batch:
                return

    def _seal(self, batch: Batch) -> None:
        """Number the batch's tasks; the lock is held."""
        batch.entry.open_batch = None
        self._open.pop(batch, None)
        size = len(batch.refs)
        batch.size = batch.unfinished = size
        batch.first = self._next_sequence
        self._next_sequence += size
        self._ledger.add(batch)
        self._outbox.append(batch)
        self.released.note_sealed(batch)


def _want_stopped(batch: Batch, index: int, force: bool, recursive: bool) -> None:
    wanted = batch.cancels
    if wanted is None:  # the loop thread may set it to None again at any time
        wanted = batch.cancels = {}
    was_forced, was_shallow = wanted.get(index, (False, True))
    wanted[index] = (force or was_forced, was_shallow and not recursive)


def _pack(payload: Any, entry: ClassEntry, limit: int, pack: Callable[[Any], Any]) -> Any:
    if len(payload) > limit:
        raise _too_big(entry.task_class, len(payload), limit)
    return pack(payload)


def _too_big(task_class: TaskClass, size: int, limit: int, what: str = "") -> PayloadError:
    what = what or f"the arguments of one task of {task_class.function}"
    if task_class.is_put:
        what = "the parts of a value"
    return PayloadError(
        f"{what} take {size} bytes, at most {limit} can travel; pass a path or a smaller piece "
        "instead, and load large data inside the function"
    )
