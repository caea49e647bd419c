"""Passes what executors print on to this process's stderr, without ever waiting for it."""

from __future__ import annotations

import os
import select
import time
from typing import Final

_STDERR: Final = 2
_PIPE_BUF: Final = 4_096  # a pipe that polls as writable takes this much without blocking
_BYTES_PER_S: Final = 1024 * 1024


class OutputForwarder:
    """Copies bytes to stderr, at most 1 MiB a second; what is over that is counted."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._poll.register(_STDERR, select.POLLOUT)
        self._window_end = 0.0
        self._budget = 0
        self._dropped = 0

    def write(self, executor_id: int, data: bytes) -> None:
        """Copy what an executor printed."""
        now = time.monotonic()
        if now >= self._window_end:
            self._window_end, self._budget = now + 1.0, _BYTES_PER_S
            if self._dropped:
                note = f"[rustray: {self._dropped} bytes of executor output left out]\n".encode()
                self._dropped = 0
                self._put(note)
        taken = data[: self._budget]
        self._budget -= len(taken)
        self._dropped += len(data) - len(taken) + self._put(taken)

    def _put(self, data: bytes) -> int:
        """Write without waiting; return how many bytes did not fit."""
        view = memoryview(data)
        try:
            while view and self._poll.poll(0):
                view = view[os.write(_STDERR, view[:_PIPE_BUF]) :]
        except OSError:  # stderr is closed: there is nobody to tell
            return 0
        return len(view)
