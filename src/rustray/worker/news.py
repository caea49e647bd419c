"""What running tasks say of themselves, on its way out of the executor process.

Nothing here happens before the first `TaskContext.progress` or `emit` of the process. From then
on a thread sends what waits, ten times a second at most and a bounded number each time: of a
task's progress the latest, of what it emits as much as there is room for. So no task waits for
anybody who listens, and no loop around ``progress`` floods them.
"""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable
from typing import Final

from rustray.task.frames import LeaseNews
from rustray.worker import wire
from rustray.worker.wire import Chunk

INTERVAL_S: Final = 0.1
MAX_ITEMS: Final = 20
"""Sent in one interval, by all tasks of the executor together."""
MAX_EMITTED: Final = 256
"""Emitted values that may wait."""


class News:
    """Collects, and sends from a thread of its own."""

    def __init__(self, send_waiting: Callable[[], None]) -> None:
        """Prepare.

        Args:
            send_waiting: Sends what `take` returns, in order with the outcomes; any thread.
        """
        self._send_waiting = send_waiting
        self._lock = threading.Lock()
        self._has_some = threading.Event()
        self._waiting: dict[object, LeaseNews] = {}
        self._order = itertools.count()
        self._emitted = 0
        self._dropped = 0
        self._allowance = MAX_ITEMS
        self._renewed_at = 0.0
        self._thread: threading.Thread | None = None

    def progress(self, chunk: Chunk, index: int, fraction: float, message: str) -> None:
        """Note how far a task is; what it said of that before and was not sent is forgotten."""
        offset = chunk.offset + index
        key = (chunk.lease, offset)
        with self._lock:
            self._waiting.pop(key, None)
            self._waiting[key] = LeaseNews(chunk.lease, offset, fraction, message)
        self._wake()

    def emit(self, chunk: Chunk, index: int, name: str, value: bytes) -> None:
        """Note a value that a task tells; dropped and counted if too many wait."""
        with self._lock:
            if self._emitted >= MAX_EMITTED:
                self._dropped += 1
                return
            self._emitted += 1
            item = LeaseNews(chunk.lease, chunk.offset + index, None, name, value)
            self._waiting[next(self._order)] = item
        self._wake()

    def take(self) -> bytes:
        """Return what waits and may go now, as one message; b"" for nothing."""
        with self._lock:
            if not self._waiting:
                return b""
            now = time.monotonic()
            if now >= self._renewed_at + INTERVAL_S:
                self._renewed_at, self._allowance = now, MAX_ITEMS
            keys = list(itertools.islice(self._waiting, self._allowance))
            if not keys:
                return b""
            self._allowance -= len(keys)
            items = [self._waiting.pop(key) for key in keys]
            self._emitted -= sum(1 for item in items if item.fraction is None)
            dropped, self._dropped = self._dropped, 0
        return wire.pack_news(items, dropped)

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="rustray-news", daemon=True)
            self._thread.start()
        if not self._has_some.is_set():
            self._has_some.set()

    def _serve(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            while True:
                self._has_some.wait()
                self._has_some.clear()
                self._send_waiting()
                time.sleep(INTERVAL_S)
                if self._waiting:
                    self._has_some.set()
        except OSError:  # the agent is gone, or closes
            return
