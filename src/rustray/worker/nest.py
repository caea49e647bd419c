"""What an executor does for tasks that hand in tasks (`rustray.task.relay.Host`)."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

from rustray.task import relay
from rustray.task.relay import Seat
from rustray.worker import wire
from rustray.worker.context import shared_task
from rustray.worker.wire import Chunk

Key = tuple[int, int]
"""Chunk number and index."""


class Nest:
    """Knows which task the calling code belongs to, and opens the channel at the first need.

    Attributes:
        seats: Tasks under way that have handed in tasks, or looked for the way to.
        waiting: How many of the tasks wait for tasks of their own.
    """

    def __init__(
        self,
        control: socket.socket,
        current: Callable[[], tuple[Chunk, int] | None],
        thread_id: int,
        limit: int,
    ) -> None:
        """Prepare.

        Args:
            control: To the agent; the channel's other end travels on it.
            current: Says what runs, where only one task does at a time.
            thread_id: Of the thread that tasks run in; 0 where there are several.
            limit: Bytes that the head takes as one value.
        """
        self.seats: dict[Key, Seat] = {}
        self.waiting = 0
        self.limit = limit
        self._control = control
        self._current = current
        self._thread_id = thread_id
        self._pid = os.getpid()
        self._lock = threading.Lock()
        relay.serve(self)

    def seat(self) -> Seat | None:
        """See `Host`."""
        found = shared_task.get() or self._current()
        if found is None or os.getpid() != self._pid:
            return None
        chunk, index = found
        key = (chunk.number, index)
        seat = self.seats.get(key)
        if seat is None:
            fresh = Seat(
                chunk.prefix,
                chunk.first + index,
                chunk.attempt,
                chunk.lease,
                chunk.offset + index,
                self._thread_id,
            )
            seat = self.seats.setdefault(key, fresh)
        return seat

    def open_channel(self) -> int:
        """See `Host`."""
        mine, theirs = socket.socketpair()
        with theirs:
            packet = wire.CONTROL.pack(wire.RELAY, 0, 0, 0)
            socket.send_fds(self._control, [packet], [theirs.fileno()])
        return mine.detach()

    def note_waiting(self, change: int) -> None:
        """See `Host`."""
        with self._lock:
            self.waiting += change

    def leave(self, key: Key, *, waits: bool) -> None:
        """A task's code has ended.

        Args:
            key: Which.
            waits: Return only when the head has all that it has handed in.
        """
        seat = self.seats.pop(key, None)
        if seat is not None and seat.leave is not None:
            seat.leave(waits)
