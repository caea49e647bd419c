"""One session with the head, as the stream sees it."""

from __future__ import annotations

import asyncio
from typing import Protocol

from rustray.common.errors import RustRayError
from rustray.task.frames import AssignFrame, WorkerFrame


class SessionOwner(Protocol):
    """What a session needs of its agent."""

    def next_frame(self, session: HeadSession) -> WorkerFrame | None:
        """Return the next frame for this session's stream."""

    def frame_received(self, session: HeadSession, frame: AssignFrame) -> None:
        """Take a frame of this session's stream."""


class HeadSession:
    """The `FramePump` of one session: a late call of an old stream cannot reach the new one.

    Attributes:
        number: The head's number for it.
        ended: Done when it is over: why, or None for an orderly end.
        was_orderly: The head ended the stream on purpose.
    """

    def __init__(self, owner: SessionOwner, number: int) -> None:
        self.number = number
        self.was_orderly = False
        self.ended: asyncio.Future[RustRayError | None]
        self.ended = asyncio.get_running_loop().create_future()
        self._owner = owner

    def end(self, error: RustRayError | None) -> None:
        """End it from this side; idempotent."""
        if not self.ended.done():
            self.ended.set_result(error)

    # ── FramePump ─────────────────────────────────────────────────────────────────────────

    def next_frame(self) -> WorkerFrame | None:
        """See `FramePump`."""
        return None if self.ended.done() else self._owner.next_frame(self)

    def on_frame(self, frame: AssignFrame) -> None:
        """See `FramePump`."""
        if not self.ended.done():
            self._owner.frame_received(self, frame)

    def on_closed(self, error: RustRayError | None) -> None:
        """See `FramePump`."""
        if not self.ended.done():
            self.was_orderly = error is None
            self.ended.set_result(error)
