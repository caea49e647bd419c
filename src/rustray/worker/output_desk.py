"""The book's hands: its clock and its timer, and frames for the head."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from rustray.task.frames import WorkerFrame
from rustray.task.output import OutputPiece, OutputQuestion
from rustray.worker.output_book import LIVE_PAUSE_S, OutputBook


class FrameSource(Protocol):
    """The worker's core, as far as it has frames for the head."""

    def take_frame(self, now: float) -> WorkerFrame | None:
        """Return the next one, if there is one."""


class OutputDesk:
    """Takes what tasks print, and has the stream ask for a frame when there is one.

    Attributes:
        book: The core; look, do not touch.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        """Prepare.

        Args:
            wake: Has the stream ask for a frame, later.
        """
        self.book = OutputBook()
        self._wake = wake
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._has_some = False
        self._is_first = False

    def close(self) -> None:
        """Take no more, and stop the timer."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()

    def session_opened(self, takes_output: bool) -> None:
        """See `OutputBook.session_opened`."""
        self.book.session_opened(takes_output)
        self._has_some = False

    def printed(self, pieces: list[OutputPiece]) -> None:
        """Take what executors have printed."""
        if not self._is_closed:
            self.book.add(pieces, _now())
            self._arrange()

    def asked(self, questions: Sequence[OutputQuestion]) -> None:
        """Take questions of the head."""
        if not self._is_closed:
            for question in questions:
                self.book.ask(question, _now())
            self._arrange()

    def next_frame(self, other: FrameSource) -> WorkerFrame | None:
        """Return a frame of output, or one of the core's: in turn, if both have some."""
        if not self._has_some:
            return other.take_frame(_now())
        self._is_first = not self._is_first
        frame = self.take_frame() if self._is_first else None
        return frame or other.take_frame(_now()) or self.take_frame()

    def take_frame(self) -> WorkerFrame | None:
        """Return what waits for the head, in a frame without a number; None if nothing does."""
        if not self._has_some or self._is_closed:
            return None
        self._has_some = False
        printing, output = self.book.take(_now())
        self._arrange()
        return WorkerFrame(printing=printing, output=output) if printing or output else None

    def _arrange(self) -> None:
        """Wake the stream now or in time."""
        if self._has_some or self._is_closed:
            return
        timer, now = self._timer, _now()
        if timer is not None and timer.when() <= now + LIVE_PAUSE_S:
            return  # soon enough
        due = self.book.next_due()
        if due is None:
            return
        if due <= now:
            self._has_some = True
            self._wake()
        elif timer is None or due < timer.when():
            if timer is not None:
                timer.cancel()
            self._timer = asyncio.get_running_loop().call_at(due, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._arrange()


def _now() -> float:
    return asyncio.get_running_loop().time()
