"""What the executors that run several tasks at once have in common: backlog and reports."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from rustray.task.state import TaskState
from rustray.worker import context, wire
from rustray.worker.callee import Callee
from rustray.worker.cell import IDLE, INDEX, Cell
from rustray.worker.child_base import (
    CALL,
    ResultTooBig,
    Runner,
    check_size,
    describe_failure,
)
from rustray.worker.child_outbox import no_memory
from rustray.worker.context import TaskInterrupt
from rustray.worker.nest import Nest
from rustray.worker.wire import Chunk

Key = tuple[int, int]
"""Chunk number and index."""
Outcome = tuple[TaskState, bytes | tuple[int, int]]
"""State and payload; for a large result the number and size of the memory that has it."""


class Entry:
    """One task that waits or runs."""

    __slots__ = ("callee", "chunk", "index", "key", "payload", "started")

    def __init__(self, chunk: Chunk, callee: Callee, index: int, payload: bytes) -> None:
        self.chunk = chunk
        self.callee = callee
        self.index = index
        self.payload = payload
        self.key: Key = (chunk.number, index)
        self.started = 0.0


class SharedRunner(Runner):
    """Keeps the backlog; subclasses run up to ``concurrency`` of its entries at once.

    `lock` guards `backlog`, `active`, `cancelled`, and `asked` (who looks whether it is to stop).
    """

    def __init__(
        self,
        data: socket.socket,
        control: socket.socket,
        cell: Cell,
        max_result_bytes: int,
        concurrency: int,
    ) -> None:
        super().__init__(data, control, cell, max_result_bytes)
        self.concurrency = max(1, concurrency)
        self.lock = threading.Lock()
        self.backlog: deque[Entry] = deque()
        self.active: dict[Key, Any] = {}
        self.cancelled: set[Key] = set()
        self.asked: set[Key] = set()
        self._last = 0
        self._reclaimed = 0
        self._outgoing: deque[bytes] = deque()
        self._send_lock = threading.Lock()
        self._take_news: Callable[[], bytes] | None = None
        context.serve(self)
        self.nest = Nest(control, self.current, 0, max_result_bytes)

    def accept(self, messages: list[tuple[int, int, bytes, int, int]]) -> None:
        """Take definitions and chunks that arrived."""
        for kind, number, data, start, stop in messages:
            if kind == wire.DEFINE:
                self.functions.define(number, wire.unpack_definition(data, start, stop))
            elif kind == wire.SETUP:
                # Its variables are the process's, and so nobody's where several tasks run.
                self.take_setup(wire.unpack_setup(data, start, stop))
            elif kind == wire.RUN:
                self._accept_chunk(wire.unpack_run(number, data, start))
            elif kind == wire.RUN_SHARED:
                self._accept_chunk(self.take_shared(number, data, start))

    def _accept_chunk(self, chunk: Chunk) -> None:
        callee = self.functions.callees[chunk.class_number]
        chunk.setup = self.setup
        entries = []
        start = chunk.start
        for index, end in enumerate(chunk.ends):
            stop = end + chunk.shift
            entries.append(Entry(chunk, callee, index, chunk.data[start:stop]))
            start = stop
        chunk.data = b""  # the entries have their parts
        with self.lock:
            self._last = chunk.number
            if chunk.number > self._reclaimed:
                self.backlog.extend(entries)

    def begin(self, entry: Entry, handle: Any) -> None:
        """Note that an entry starts (`lock` is held)."""
        entry.started = time.perf_counter()
        self.active[entry.key] = handle
        self.cell.words[INDEX] = IDLE
        if len(self.active) == 1:
            self.cell.begin(entry.chunk.lease, entry.chunk.offset)
            self.cell.words[INDEX] = entry.index

    def finish(self, entry: Entry) -> None:
        """Note that an entry has ended."""
        with self.lock:
            self.active.pop(entry.key, None)
            self.cancelled.discard(entry.key)
            self.asked.discard(entry.key)
            self.cell.words[INDEX] = IDLE

    def succeed(self, entry: Entry, value: Any) -> Outcome:
        """Encode a result; raises what the encoder raises, or `ResultTooBig`.

        Large ones are written here, where nobody else can change the value meanwhile.
        """
        item = entry.callee.encode(value)
        check_size(len(item), self.limit, entry.callee)
        memory = self.results.send(item)
        if memory is None and len(item) > self.limit:
            raise ResultTooBig(no_memory(len(item)))
        return TaskState.SUCCEEDED, memory or bytes(item)

    def check_cancelled(self, entry: Entry) -> None:
        """Raise `TaskInterrupt` for a task that was cancelled before it started."""
        if entry.key in self.cancelled:
            raise TaskInterrupt

    def current(self) -> None:
        """See `Host.current`: which one, only `shared_task` knows."""
        return

    def is_cancelled(self, number: int, index: int) -> bool:
        """See `Host.is_cancelled`."""
        key = (number, index)
        with self.lock:
            if key in self.active:
                self.asked.add(key)
            return key in self.cancelled

    def queue_report(self, entry: Entry, outcome: Outcome) -> None:
        """Put an outcome among what `flush` sends."""
        chunk = entry.chunk
        state, payload = outcome
        run_us = int((time.perf_counter() - entry.started) * 1e6)
        offset = chunk.offset + entry.index
        if isinstance(payload, bytes):
            message = wire.pack_outcome(chunk.number, chunk.lease, offset, state, run_us, [payload])
        else:
            message = wire.pack_outcome_shared(
                chunk.number, chunk.lease, offset, state, run_us, *payload
            )
        self._outgoing.append(message)

    def flush(self) -> None:
        """Send what is queued; who finds another thread sending leaves it to that one."""
        while self._outgoing and self._send_lock.acquire(blocking=False):
            try:
                batch = [self._outgoing.popleft() for _ in range(len(self._outgoing))]
                if self._take_news is not None:
                    batch.insert(0, self._take_news())
                self.sender.send(b"".join(batch))
            finally:
                self._send_lock.release()

    def news_begins(self, take: Callable[[], bytes]) -> None:
        """See `Runner.news_begins`."""
        self._take_news = take

    def send_news(self) -> None:
        """See `Runner.send_news`."""
        with self._send_lock:
            if self._take_news is not None and (message := self._take_news()):
                self.sender.send(message)
        self.flush()

    def reclaim(self, upto: int) -> tuple[int, int]:
        """See `Runner.reclaim`."""
        with self.lock:
            self._reclaimed = max(self._reclaimed, upto)
            gone = [entry.key for entry in self.backlog if entry.key[0] <= upto]
            for _ in gone:
                self.backlog.popleft()
            return gone[0] if gone else (self._last, wire.ALL)

    def interrupt(self, number: int, index: int, is_notice: bool) -> None:
        """See `Runner.interrupt`."""
        key = (number, index)
        with self.lock:
            if key in self.active:
                self.cancelled.add(key)
                if not (is_notice and key in self.asked):
                    self.stop_active(key)
                return
            waits = number > self._last
            for entry in self.backlog:
                if entry.key == key:
                    waits = True
            if waits:
                self.cancelled.add(key)

    def stop_active(self, key: Key) -> None:
        """Stop a task that runs (`lock` is held)."""
        raise NotImplementedError


def cancelled_outcome(entry: Entry) -> Outcome:
    """Return the outcome of a cancelled task."""
    return describe_failure(TaskInterrupt(), CALL, entry.callee, None)
