"""A client's session: what it has handed in, and the frames made of it.

Threads hand in tasks with `ClientSession.submit`, which must stay at two microseconds: it appends
a reference to the open batch of its class. Everything else happens per batch on the loop thread,
which fills frames from the batches and applies what the head answers. A batch is kept until each
of its tasks has ended, its arguments until the head has acked them; so after a lost connection
`restart` knows what to send again and what to ask for.
"""

from __future__ import annotations

import secrets
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from rustray.client.ledger import Ledger, ask_for
from rustray.client.pauses import Pauses
from rustray.client.refs import PENDING, Batch, ClassEntry, TaskRef
from rustray.client.sharing import column_of
from rustray.client.throttle import Throttle
from rustray.client.waiters import Arrivals
from rustray.common.durability import Durability
from rustray.common.errors import PayloadError, RustRayError
from rustray.common.ids import PREFIX_BYTES, SessionPrefix
from rustray.task.columns import PayloadColumn
from rustray.task.frames import (
    CancelRequest,
    ClassDefinition,
    ClientFrame,
    HeadFrame,
    Submission,
    TaskRange,
)
from rustray.task.spec import TaskClass

MAX_BATCH_TASKS: Final = 4_096
MAX_FRAME_TASKS: Final = 4_096
MAX_FRAME_BYTES: Final = 1 << 20
MAX_FRAME_RANGES: Final = 16_384
"""Of cancels, and of tasks that are asked for: a head takes a few times as many in all."""
FULL_FRAME_TASKS: Final = 1_024
# A batch is joined into one blob; sealing it at a big item bounds that to 64 MiB and the item.
BIG_PAYLOAD_BYTES: Final = 16 << 10
# Columns count bytes in 32 bits.
MAX_PAYLOAD_BYTES: Final = 2 << 30
_LAST_INDEX: Final = MAX_BATCH_TASKS - 1
_new_ref = object.__new__
Refs = Sequence[TaskRef[Any]]


class ClientSession:
    """All tasks that one client hands in under one id prefix.

    Attributes:
        prefix: First 10 bytes of its task ids.
        lock: Guards open batches, watchers, waiters and the order of batches.
        arrivals: Who waits for outcomes.
        broken: Why it can take nothing any more, or None.
        thread_id: Of the loop thread, where nobody may block for a result.
        offline_since_s: Since when the head cannot be reached (`time.monotonic`), or None.
        pack: Copies large arguments to where they wait; see `rustray.client.sharing.share`.
        pauses: What lets a task that waits for tasks give back its cores; None outside of tasks.
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
        self.prefix = prefix or SessionPrefix(secrets.token_bytes(PREFIX_BYTES))
        self.lock = threading.Lock()
        self.arrivals = Arrivals(self.lock)
        self.broken: RustRayError | None = None
        self.thread_id = thread_id
        self.offline_since_s: float | None = None
        self.pauses: Pauses | None = None
        self._ledger = Ledger(self.prefix, self.lock, self.arrivals)
        self._rouse = rouse
        self._max_bytes = max_payload_bytes
        self.pack: Callable[[Any], Any] = bytes
        self._throttle = throttle or Throttle(None)
        self._make_batch = Batch
        self._is_idle, self._next_sequence = False, 0
        self._entries: dict[TaskClass, ClassEntry] = {}
        self._open: dict[Batch, None] = {}
        self._outbox: deque[Batch] = deque()
        self._cancels: deque[tuple[Batch, int]] = deque()
        self._follow: list[TaskRange] = []

    # ---- any thread -------------------------------------------------------------------

    def define(
        self,
        task_class: TaskClass,
        code: bytes,
        deadline_unix_s: float = 0.0,
        durability: Durability = Durability.DEFAULT,
    ) -> ClassEntry:
        """Return the session's entry for a class; equal ones share one, but for what follows it.

        Args:
            task_class: The class.
            code: Of its function, where that travels.
            deadline_unix_s, durability: Of its tasks, see `Submission`.

        Raises:
            PayloadError: the code is more than the way to the head can carry.
        """
        if len(code) > self._max_bytes:
            raise _too_big(f"the code of {task_class.function}", len(code), self._max_bytes)
        with self.lock:
            entry = self._entries.get(task_class)
            if entry is None:
                number = len(self._entries) + 1
                entry = self._entries[task_class] = ClassEntry(self, number, task_class, code)
        if not (deadline_unix_s or durability):
            return entry
        return ClassEntry(self, entry.number, task_class, code, deadline_unix_s, durability)

    def submit(self, entry: ClassEntry, payload: Any) -> TaskRef[Any]:
        """Hand in one task.

        Args:
            entry: From `define` of this session.
            payload: Encoded arguments: bytes, or a `FlatValue`.

        Raises:
            PayloadError: the arguments are more than the way to the head can carry.
            RustRayError: the session is closed (the reason why).

        Complexity: O(1), without I/O; wakes the loop thread if that had nothing to do.
        """
        is_big = len(payload) > BIG_PAYLOAD_BYTES
        if is_big:
            payload = _pack(payload, entry, self._max_bytes, self.pack)
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

    def seal(self, batch: Batch) -> int:
        """Close the batch for further tasks; returns its first sequence."""
        with self.lock:
            if batch.first < 0:
                self._seal_through(batch)
        return batch.first

    def cancel(self, refs: Sequence[TaskRef[Any]], *, force: bool, recursive: bool = True) -> None:
        """Ask the head to cancel tasks of this session; those that ended stay as they are."""
        with self.lock:
            for ref in refs:
                if ref._state != PENDING:
                    continue
                batch = ref._batch
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

    # ---- loop thread: out -------------------------------------------------------------

    def fill(self, frame: ClientFrame, defined: set[int]) -> bool:
        """Put what waits into the frame, up to its bounds.

        Args:
            frame: Without content so far.
            defined: Numbers of classes that this stream knows; grows.

        Returns:
            Whether the frame has content now.
        """
        if self._follow:
            frame.follow = self._follow[:MAX_FRAME_RANGES]
            del self._follow[:MAX_FRAME_RANGES]
        tasks_left, bytes_left = self._allowance(), MAX_FRAME_BYTES
        while tasks_left > 0 and bytes_left > 0 and (self._outbox or self._seal_open()):
            batch = self._outbox[0]
            gap = batch.unsent()
            if gap is None:
                self._outbox.popleft()
                continue
            column = batch.column if batch.column is not None else _build_column(batch)
            low, high = gap
            limit = (column.ends[low - 1] if low else 0) + bytes_left
            stop = bisect_right(column.ends, limit, low, min(high, low + tasks_left))
            if stop == low:
                if frame.submissions:
                    break
                stop = low + 1  # one item over the bound travels alone
            entry = batch.entry
            if entry.number not in defined:
                if len(entry.code) > bytes_left and frame.submissions:
                    break
                bytes_left -= _introduce(entry, frame, defined)
                if bytes_left <= 0:
                    break  # big code travels alone, its tasks follow
            part = column.slice(low, stop)
            frame.submissions.append(_submission(batch, low, part))
            _note_sent(batch, low, stop, self._cancels)
            tasks_left -= stop - low
            bytes_left -= len(part.blob)
        self._throttle.note_sent(frame.submissions)
        if self._cancels:
            _fill_cancels(frame, self._cancels)
        return bool(frame.submissions or frame.classes or frame.follow or frame.cancels)

    def rest(self) -> bool:
        """Go idle, so that the next thing handed in rouses; False if something came just now."""
        with self.lock:
            has_words = bool(self._cancels or self._follow)
            if self._throttle.is_waiting():
                self._is_idle = False  # nothing new need rouse: the throttle does, in time
                return not has_words
            has_tasks = self._open or self._outbox or self._throttle.must_requeue
            self._is_idle = not (has_tasks or has_words)
        return self._is_idle

    @property
    def has_unfinished(self) -> bool:
        """Whether a task has been handed in and has not ended."""
        return bool(self._open or self._ledger.unfinished())

    def has_full_frame(self) -> bool:
        """Whether so much waits that a frame of its own is worth it."""
        with self.lock:
            return bool(self._outbox or self._cancels or self._follow) or any(
                len(batch.refs) >= FULL_FRAME_TASKS for batch in self._open
            )

    def restart(self) -> None:
        """Begin a new stream: everything unacked goes out again, the rest is asked for."""
        self._throttle.forget_probe()
        with self.lock:
            self._is_idle = False
            self._outbox = deque(self._ledger.unsettled())
            self._cancels.clear()
            self._follow = []
            for batch in self._ledger.unfinished():
                self._follow.extend(ask_for(batch))
                self._cancels.extend((batch, index) for index in batch.cancels or ())

    def _allowance(self) -> int:
        """Return how many tasks may be handed in with the next frame."""
        if self._throttle.is_waiting():
            return 0
        if self._throttle.must_requeue:
            self._throttle.must_requeue = False
            with self.lock:
                self._outbox = deque(self._ledger.unsettled())
        return MAX_FRAME_TASKS

    def _seal_open(self) -> bool:
        with self.lock:
            for batch in list(self._open):
                self._seal(batch)
            return bool(self._outbox)

    # ---- loop thread: in --------------------------------------------------------------

    def apply(self, frame: HeadFrame) -> None:
        """Take what the head says; what concerns no unfinished task of ours is ignored."""
        if self._throttle.take(frame):
            self._rouse()
        if self._ledger.apply(frame):
            self._throttle.must_requeue = True
            self._rouse()

    def close(self, error: RustRayError, unsent: RustRayError | None = None) -> None:
        """Fail everything unfinished and refuse what comes; idempotent.

        Args:
            error: What the tasks that are left end with, and what later ones are refused with.
            unsent: The same for those that the head has not acked; None: as the others.
        """
        with self.lock:
            if self.broken is not None:
                return
            self.broken = error
            for batch in list(self._open):
                self._seal(batch)
            self._outbox.clear()
            self._is_idle = False
        for batch in self._ledger.unfinished():
            for low, high in list(batch.settled.gaps(0, batch.size)) if unsent else ():
                self._ledger.fail(batch, low, high, unsent or error)
            self._ledger.fail(batch, 0, batch.size, error)
        self.arrivals.wake(everyone=True)


def _want_stopped(batch: Batch, index: int, force: bool, recursive: bool) -> None:
    wanted = batch.cancels
    if wanted is None:  # the loop thread may set it to None again at any time
        wanted = batch.cancels = {}
    was_forced, was_shallow = wanted.get(index, (False, True))
    wanted[index] = (force or was_forced, was_shallow and not recursive)


def _introduce(entry: ClassEntry, frame: ClientFrame, defined: set[int]) -> int:
    """Define a class for this stream, and return the size of its code."""
    defined.add(entry.number)
    frame.classes.append(ClassDefinition(entry.number, entry.task_class, entry.code))
    return len(entry.code)


def _submission(batch: Batch, low: int, part: PayloadColumn) -> Submission:
    entry, first = batch.entry, batch.first + low
    return Submission(entry.number, first, part, entry.deadline_unix_s, entry.durability)


def _note_sent(batch: Batch, low: int, stop: int, cancels: deque[tuple[Batch, int]]) -> None:
    """Count tasks as sent. Their cancels follow, each time: what was refused was not cancelled."""
    batch.sent = stop
    batch.reached = max(batch.reached, stop)
    if batch.cancels:
        with batch.owner.lock:
            cancels.extend((batch, index) for index in batch.cancels if low <= index < stop)


def _fill_cancels(frame: ClientFrame, cancels: deque[tuple[Batch, int]]) -> None:
    """Take cancels, and merge neighbours; `_note_sent` brings those of unsent tasks again."""
    taken = deque(dict.fromkeys(cancels))
    cancels.clear()
    while taken:
        if len(frame.cancels) >= MAX_FRAME_RANGES:
            cancels.extendleft(reversed(taken))  # for the next frame
            return
        batch, index = taken.popleft()
        wanted = batch.cancels
        if batch.unfinished == 0 or wanted is None or batch.refs[index] is None:
            continue  # it has ended
        if index >= batch.reached:
            continue
        one = CancelRequest(b"", batch.first + index, 1, *wanted[index])
        last = frame.cancels[-1] if frame.cancels else None
        if last and replace(last, first=one.first, count=1) == one and last.stop == one.first:
            frame.cancels[-1] = replace(last, count=last.count + 1)
        else:
            frame.cancels.append(one)


def _build_column(batch: Batch) -> PayloadColumn:
    """Join the arguments that the references of a fresh batch hold, and take them out of these."""
    refs = batch.refs
    column = batch.column = column_of([b"" if ref is None else ref._data for ref in refs])
    for ref in refs:
        if ref is not None:
            ref._data = None
    return column


def _pack(payload: Any, entry: ClassEntry, limit: int, pack: Callable[[Any], Any]) -> Any:
    if len(payload) > limit:
        what = f"the arguments of one task of {entry.task_class.function}"
        raise _too_big(what, len(payload), limit)
    return pack(payload)


def _too_big(what: str, size: int, limit: int) -> PayloadError:
    return PayloadError(
        f"{what} take {size} bytes, at most {limit} can travel; pass a path or a smaller piece "
        "instead, and load large data inside the function"
    )
