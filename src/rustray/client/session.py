"""A client's session: what it has handed in, and the frames made of it.

Threads hand in tasks (`rustray.client.intake`). Everything else happens per batch on the loop
thread, which fills frames from the batches and applies what the head answers. A batch is kept
until each of its tasks has ended, its arguments until the head has acked them; so after a lost
connection `restart` knows what to send again and what to ask for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import replace
from typing import Any, Final

from rustray.client.intake import Intake
from rustray.client.ledger import ask_for
from rustray.client.refs import Batch, ClassEntry
from rustray.client.sharing import column_of
from rustray.common.errors import RustRayError
from rustray.task.columns import PayloadColumn
from rustray.task.frames import (
    CancelRequest,
    ClassDefinition,
    ClientFrame,
    HeadFrame,
    Submission,
    TaskRange,
)
from rustray.task.inputs import pack_inputs

MAX_FRAME_TASKS: Final = 4_096
MAX_FRAME_BYTES: Final = 1 << 20
MAX_FRAME_RANGES: Final = 16_384
"""Of cancels, and of tasks that are asked for: a head takes a few times as many in all."""
FULL_FRAME_TASKS: Final = 1_024


class ClientSession(Intake):
    """All tasks that one client hands in under one id prefix."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """See `Intake`."""
        super().__init__(*args, **kwargs)
        self._follow: list[TaskRange] = []

    # ---- loop thread: out -------------------------------------------------------------

    def fill(self, frame: ClientFrame, defined: set[int | bytes]) -> bool:
        """Put what waits into the frame, up to its bounds.

        Args:
            frame: Without content so far.
            defined: Numbers of classes, and hashes of packages, that this stream knows; grows.

        Returns:
            Whether the frame has content now.
        """
        if self._follow:
            frame.follow, self._follow = _split_off(self._follow, MAX_FRAME_RANGES)
        tasks_left, bytes_left = self._allowance(), MAX_FRAME_BYTES
        while (
            tasks_left > 0
            and bytes_left > 0
            and (self._outbox or (self._open and self._seal_open()))
        ):
            batch = self._outbox[0]
            gap = batch.unsent()
            if gap is None:
                self._outbox.popleft()
                continue
            column = batch.column if batch.column is not None else _build_column(batch)
            low, high = gap
            stop = _fitting(batch, column, (low, min(high, low + tasks_left)), bytes_left)
            if stop == low:
                if frame.submissions:
                    break
                stop = low + 1  # one item over the bound travels alone
            entry = batch.entry
            if entry.number not in defined:
                bytes_left = _introduce(entry, frame, defined, bytes_left)
                if bytes_left <= 0:
                    break  # big code travels alone, its tasks follow
            part = column.slice(low, stop)
            frame.submissions.append(_submission(batch, low, part))
            _note_sent(batch, low, stop, self._cancels)
            tasks_left -= stop - low
            bytes_left -= len(part.blob)
        self._throttle.note_sent(frame.submissions)
        if self.reads.has_some or self.released.has_some or self._cancels:
            _fill_words(frame, self)
        return frame.has_content

    def rest(self) -> bool:
        """Go idle, so that the next thing handed in rouses; False if something came just now."""
        with self.lock:
            has_words = bool(self._cancels or self._follow or self.reads.has_some)
            has_words = has_words or self.released.has_some
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
            self.released.restart()
            for batch in self._ledger.unfinished():
                self._follow.extend(ask_for(batch))
                self._cancels.extend((batch, index) for index in batch.cancels or ())
            self.reads.restart(self._ledger.unfinished())

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
        if (self._throttle.is_on or frame.rejected) and self._throttle.take(frame):
            self._rouse()
        if self._ledger.apply(frame):
            self._throttle.must_requeue = True
            self._rouse()
        if self.released.ripen():
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
            borrower, self.borrower = self.borrower, None
            self._is_idle = False
        for batch in self._ledger.unfinished():
            for low, high in list(batch.settled.gaps(0, batch.size)) if unsent else ():
                self._ledger.fail(batch, low, high, unsent or error)
            self._ledger.fail(batch, 0, batch.size, error)
        if borrower is not None:
            borrower.close(error)
        self.arrivals.wake(everyone=True)


def _fitting(batch: Batch, column: PayloadColumn, gap: tuple[int, int], size: int) -> int:
    """Return the end of those tasks whose arguments, and whose inputs, fit into so many bytes."""
    low, stop = gap
    columns = (column,) if batch.inputs is None else (column, batch.inputs)
    for each in columns:
        limit = (each.ends[low - 1] if low else 0) + size
        stop = bisect_right(each.ends, limit, low, stop)
    return stop


def _split_off(waiting: list[TaskRange], limit: int) -> tuple[list[TaskRange], list[TaskRange]]:
    return waiting[:limit], waiting[limit:]


def _fill_reads(frame: ClientFrame, session: ClientSession) -> None:
    """Say how far consumers are; a generator that nobody iterates over any more is cancelled."""
    for buffer in session.reads.fill(frame):
        refs = buffer.batch.refs
        ref = refs[buffer.index] if refs else None
        if ref is not None:
            session.cancel([ref], force=False)


def _fill_words(frame: ClientFrame, session: ClientSession) -> None:
    """Say what there is to say of tasks that were handed in before."""
    if session.reads.has_some:
        _fill_reads(frame, session)
    if session.released.has_some:
        session.released.fill(frame, session._opened)
    if session._cancels:
        _fill_cancels(frame, session._cancels)


def _introduce(
    entry: ClassEntry, frame: ClientFrame, defined: set[int | bytes], bytes_left: int
) -> int:
    """Define a class for this stream; returns the bytes left, 0 if it needs a frame of its own."""
    fresh = tuple(each.content for each in entry.packages if each.digest not in defined)
    definition = ClassDefinition(entry.number, entry.task_class, entry.code, fresh)
    if definition.size > bytes_left and (frame.submissions or frame.classes):
        return 0
    defined.add(entry.number)
    defined.update(each.digest for each in entry.packages)
    frame.classes.append(definition)
    return bytes_left - definition.size


def _submission(batch: Batch, low: int, part: PayloadColumn) -> Submission:
    entry, first = batch.entry, batch.first + low
    inputs = batch.inputs.slice(low, low + len(part)) if batch.inputs is not None else None
    return Submission(entry.number, first, part, entry.deadline_unix_s, entry.durability, inputs)


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
    items = [b"" if ref is None else ref._data for ref in refs]
    if batch.entry.task_class.has_inputs:
        calls: list[Any] = [item or (b"", ()) for item in items]
        batch.inputs = PayloadColumn.of([_packed(taken) for _, taken in calls])
        batch.taken = [taken for _, taken in calls]
        items = [payload for payload, _ in calls]
    column = batch.column = column_of(items)
    for ref in refs:
        if ref is not None:
            ref._data = None
    return column


def _packed(taken: Any) -> bytes:
    """Encode the ids of what a task takes; they may be encoded already."""
    if isinstance(taken, bytes):
        return taken
    return pack_inputs(ref._batch.input_of(ref._index) for ref in taken)
