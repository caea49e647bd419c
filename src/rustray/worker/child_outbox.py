"""How an executor sends outcomes: results of quick tasks together, large ones in shared memory."""

from __future__ import annotations

import os
import socket
import threading
import time
from array import array
from collections.abc import Callable
from typing import Final, cast

from rustray.common.errors import ResourceExhausted
from rustray.task.columns import ENDS_TYPECODE, PayloadColumn
from rustray.task.failures import encode_failure
from rustray.task.inputs import WHOLE, InputValue, join_call
from rustray.task.result import FailureInfo
from rustray.task.spec import Codec
from rustray.task.state import TaskState
from rustray.worker import wire
from rustray.worker.sharing import SHARED_BYTES, Item, ResultSender
from rustray.worker.wire import Chunk

SUCCEEDED: Final = int(TaskState.SUCCEEDED)
FAILED: Final = int(TaskState.FAILED)
MAX_COPIED_BYTES: Final = 28 << 20
"""What has found no shared memory is copied through the socket up to this size."""


def no_memory(size: int) -> str:
    """Say of a result that is too large to be copied that there is no memory for it."""
    return f"takes {size} bytes, for which the machine has no (shared) memory left"


class Sender:
    """Writes to the agent, blocking; in a forked copy of the executor it ends that copy.

    User code may fork and let the copy return from the task: it must never speak in the
    executor's name.
    """

    def __init__(self, data: socket.socket) -> None:
        self._write = data.sendall
        self._is_forked = False
        os.register_at_fork(after_in_child=self._note_fork)

    def _note_fork(self) -> None:
        self._is_forked = True

    def send(self, message: bytes) -> None:
        """Write bytes; blocks while the channel is full."""
        if self._is_forked:
            os._exit(0)
        self._write(message)


class Outbox:
    """Sends outcomes; the results of one chunk that wait are in `items`.

    The main thread appends to `items` without a lock; taking from its front happens under
    `lock` only, so that the control thread may flush while a task runs.

    Attributes:
        items: Encoded results of consecutive tasks of the chunk, not sent yet; of large ones
            only the last may be one.
        done: ``done[0]``: when the last of them ended (`time.perf_counter`).
        last: Lease, offset and result of the task that ended last, if it succeeded and the result
            is a small one: what follows it takes that.
        lock: Held while something is taken or sent.
        news: Returns what goes before the next outcome; None as long as no task says anything.
    """

    def __init__(
        self, sender: Sender, results: ResultSender, mark_end: Callable[[int, int], None]
    ) -> None:
        """Send over a sender.

        Args:
            sender: Writes to the agent.
            results: Sends large results.
            mark_end: Says of a task (lease, offset) that it prints no more.
        """
        self._send = sender.send
        self._results = results
        self._mark_end = mark_end
        self._chunk: Chunk | None = None
        self._base = 0
        self._since = 0.0
        self.items: list[Item] = []
        self.done = [0.0]
        self.last: tuple[int, int, bytes] | None = None
        self.news: Callable[[], bytes] | None = None
        self.lock = threading.Lock()
        os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        self.lock = threading.Lock()

    def begin(self, chunk: Chunk) -> None:
        """Enter a chunk; that of before is flushed."""
        with self.lock:
            self._chunk = chunk
            self._base = 0
            self._since = self.done[0] = time.perf_counter()

    def flush(self) -> None:
        """Send the results that wait, as one outcome."""
        with self.lock:
            self._flush_locked()

    def flush_ended(self) -> None:
        """`flush` in the thread that runs the tasks, where none runs right now."""
        with self.lock:
            if self.items and self._chunk is not None:
                last = self._chunk.offset + self._base + len(self.items) - 1
                self._mark_end(self._chunk.lease, last)
            self._flush_locked()

    def send_news(self) -> None:
        """Send what tasks say of themselves."""
        with self.lock:
            self._send_news_locked()

    def _send_news_locked(self) -> None:
        if self.news is not None and (message := self.news()):
            self._send(message)

    def _flush_locked(self) -> None:
        count = len(self.items)
        if not count or self._chunk is None:
            return
        if self.news is not None:
            self._send_news_locked()
        taken = self.items[:count]
        del self.items[:count]
        done = self.done[0]
        chunk, base = self._chunk, self._base
        self._base = base + count
        run_us = int((done - self._since) * 1e6)
        self._since = done
        offset = chunk.offset + base
        item = taken[-1]
        self.last = None
        if type(item) is bytes and len(item) < SHARED_BYTES:
            self.last = chunk.lease, offset + count - 1, item
        memory = self._results.send(item)
        if memory is None and len(taken[-1]) > MAX_COPIED_BYTES:
            self._send_without_last(taken, offset, run_us)
            return
        if memory is None:
            small = [bytes(each) for each in taken] if len(taken[-1]) >= SHARED_BYTES else taken
        else:
            small = taken[:-1]
        small_us = run_us * len(small) // count
        message = b""
        if small:
            message = wire.pack_outcome(
                chunk.number, chunk.lease, offset, SUCCEEDED, small_us, cast("list[bytes]", small)
            )
        if memory is not None:
            message += wire.pack_outcome_shared(
                chunk.number, chunk.lease, offset + count - 1, SUCCEEDED, run_us - small_us, *memory
            )
        self._send(message)

    def _send_without_last(self, taken: list[Item], offset: int, run_us: int) -> None:
        """Send results, of which the last, a large one, has found no memory: it is a failure."""
        chunk = self._chunk
        assert chunk is not None
        small, at = cast("list[bytes]", taken[:-1]), offset + len(taken) - 1
        if small:
            self._send(
                wire.pack_outcome(chunk.number, chunk.lease, offset, SUCCEEDED, run_us, small)
            )
        text = f"the result {no_memory(len(taken[-1]))}"
        failure = encode_failure(FailureInfo(ResourceExhausted.code, text))
        self._send(wire.pack_outcome(chunk.number, chunk.lease, at, FAILED, 0, [failure]))

    def send_item(self, offset: int, index: int, item: bytes) -> None:
        """Send an item that a generator of the chunk has yielded.

        Args:
            offset: The task's place in the chunk.
            index: The item's.
            item: Its encoded value.
        """
        with self.lock:
            self._send_news_locked()
            chunk = self._chunk
            assert chunk is not None
            self._send(
                wire.pack_item(chunk.number, chunk.lease, chunk.offset + offset, index, item)
            )

    def send_other(self, state: TaskState, payload: bytes) -> None:
        """Send how the task after the results that wait ended, and those before it."""
        with self.lock:
            self._flush_locked()
            self._send_news_locked()
            chunk, base = self._chunk, self._base
            assert chunk is not None
            self._mark_end(chunk.lease, chunk.offset + base)
            now = time.perf_counter()
            run_us = int((now - self._since) * 1e6)
            self._since = self.done[0] = now
            self._base = base + 1
            self.last = None
            self._send(
                wire.pack_outcome(
                    chunk.number, chunk.lease, chunk.offset + base, state, run_us, [payload]
                )
            )

    def join_last(self, chunk: Chunk, codec: Codec) -> bool:
        """Put the result of the task before into the call of the one that follows it, if it can."""
        last = self.last
        if last is None or last[:2] != chunk.follows:
            return False
        call = bytes(chunk.data[chunk.start : chunk.ends[0] + chunk.shift])
        value = InputValue(int(codec), PayloadColumn.of([last[2]]), WHOLE)
        chunk.data = join_call(call, [value])
        chunk.ends, chunk.start, chunk.shift = array(ENDS_TYPECODE, [len(chunk.data)]), 0, 0
        return True

    def send_unrun(self, chunk: Chunk) -> None:
        """Say that a chunk of one task is not run."""
        with self.lock:
            self._send(wire.pack_unrun(chunk.number))

    def unreported(self) -> int:
        """Return the index of the first task of the chunk without an outcome or result."""
        with self.lock:
            return self._base + len(self.items)
