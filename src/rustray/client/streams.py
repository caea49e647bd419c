"""Items of streams between the connection and who iterates."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from rustray.task.columns import PayloadColumn
from rustray.task.frames import ClientFrame, Outcome
from rustray.task.streams import WINDOW_BYTES, StreamRead

TELL_BYTES: Final = WINDOW_BYTES // 4
"""So many bytes are consumed at most before the head is told."""
_FEW: Final = 4
"""The head is told of what is consumed this many times a window."""


class Fed(Protocol):
    """What a buffer knows of the batch of its task; see `rustray.client.refs.Batch`."""

    first: int
    reached: int
    refs: list[Any]
    buffers: dict[int, Buffer] | None


class Buffer:
    """What has arrived of one stream, and is not taken.

    The loop thread adds, one consumer at a time takes.

    Attributes:
        received: Index of the next item that may arrive.
        taken: Items that the consumer has taken.
        has_left: The consumer wants no more.
        held: The outcome, if it came before the last items.
        wake: Called when something has arrived; None while nobody waits.
    """

    __slots__ = (
        "_items", "_told", "_untold_bytes", "_window", "batch", "has_left", "held", "index",
        "received", "taken", "wake",
    )  # fmt: skip

    def __init__(self, batch: Fed, index: int, window: int) -> None:
        self.batch = batch
        self._window = window
        self.index = index
        self.received = 0
        self.taken = 0
        self.has_left = False
        self.held: Outcome | None = None
        self.wake: Callable[[], None] | None = None
        self._items: deque[bytes] = deque()
        self._told = 0
        self._untold_bytes = 0

    def add(self, first: int, payloads: PayloadColumn) -> None:
        """Take items that arrived; those that are here already are left out, and so is a gap.

        After a reconnect items may come before the head has been told what is missing; it sends
        them again after that.
        """
        known = self.received - first
        if known < 0 or known >= len(payloads):
            return
        self.received = first + len(payloads)
        if not self.has_left:
            self._items.extend(payloads.slice(known, len(payloads)))
        wake = self.wake
        if wake is not None:
            wake()

    def take(self) -> bytes | None:
        """Return the next item, None if none is here."""
        try:
            item = self._items.popleft()
        except IndexError:
            return None
        self.taken += 1
        self._untold_bytes += len(item)
        return item

    @property
    def must_tell(self) -> bool:
        """Whether the head should learn how much is consumed."""
        few = self.taken - self._told >= max(self._window // _FEW, 1)
        return few or self._untold_bytes >= TELL_BYTES

    def leave(self) -> None:
        """Want no more."""
        self.has_left = True
        self._items.clear()

    def read(self, *, is_new_connection: bool = False) -> StreamRead:
        """Return what the head is to be told."""
        self._told, self._untold_bytes = self.taken, 0
        have = self.received if is_new_connection and not self.has_left else -1
        return StreamRead(self.batch.first + self.index, self.taken, have, self.has_left)


class Reads:
    """What a session has to tell of its consumers.

    `note` may be called from any thread, also while an object is being deleted: it takes no lock.

    Attributes:
        has_some: Whether there is something. Set after that was noted, and unset before it is told.
    """

    def __init__(self, rouse: Callable[[], None]) -> None:
        self._rouse = rouse
        self._noted: deque[Buffer] = deque()
        self._again: list[Buffer] = []
        self.has_some = False

    def note(self, buffer: Buffer) -> None:
        """Have the head told how far a consumer is."""
        self._noted.append(buffer)
        self.has_some = True
        with contextlib.suppress(RuntimeError):  # the session has closed: nobody is to be told
            self._rouse()

    def restart(self, batches: Iterable[Fed]) -> None:
        """Begin a new connection: ask for what is missing of all streams that have not ended."""
        found = [buffer for batch in batches if batch.buffers for buffer in batch.buffers.values()]
        for buffer in found:
            buffer.held = None
        self._again = [one for one in found if one.index < one.batch.reached]
        self.has_some = self.has_some or bool(self._again)

    def fill(self, frame: ClientFrame) -> list[Buffer]:
        """Put all of it into a frame, behind the tasks of the frame.

        Returns:
            Whose consumers have left: their tasks are to be cancelled.
        """
        self.has_some = False
        again, self._again = self._again, []
        frame.reads += [buffer.read(is_new_connection=True) for buffer in again]
        left: list[Buffer] = []
        for buffer in dict.fromkeys(self._noted.popleft() for _ in range(len(self._noted))):
            if buffer.has_left:
                left.append(buffer)
            # What the head has not been given yet has no items; its cancel follows it.
            if buffer.batch.first >= 0 and buffer.index < buffer.batch.reached:
                frame.reads.append(buffer.read())
        return left
