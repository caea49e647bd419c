"""What simulated tasks find around them: `rustray.context`, and where their news go."""

from __future__ import annotations

from array import array
from itertools import count

from rustray.common.errors import NotInTask
from rustray.task.codec import decode_value
from rustray.task.spec import Codec
from rustray.testing.history import History
from rustray.worker.calls import Calls
from rustray.worker.news import News
from rustray.worker.wire import Chunk, RunChunk


class SimNews(News):
    """Takes what tasks say of themselves into the history; subscribers are not simulated."""

    def __init__(self, history: History) -> None:
        super().__init__(lambda: None)
        self._history = history

    def progress(self, chunk: Chunk, index: int, fraction: float, message: str) -> None:
        """See `News`."""
        self._history.note("progress", task=chunk.first + index, detail=f"{fraction:g} {message}")

    def emit(self, chunk: Chunk, index: int, name: str, value: bytes) -> None:
        """See `News`."""
        shown = decode_value(Codec.MSGPACK, value)
        self._history.note("emitted", task=chunk.first + index, detail=f"{name}={shown!r}")


class SimHost:
    """What `rustray.context` asks of the executor (`rustray.worker.context.Host`)."""

    def __init__(self, history: History) -> None:
        self.news: News = SimNews(history)
        self._numbers = count(1)
        self._cancelled: set[tuple[int, int]] = set()
        self._look: set[tuple[int, int]] = set()

    @property
    def calls(self) -> Calls:
        """See `Host`.

        Raises:
            NotInTask: a simulation has no locks, semaphores, events and queues.
        """
        raise NotInTask("a SimCluster has no locks, semaphores, events and queues")

    def chunk_of(self, run: RunChunk) -> Chunk:
        """Return tasks as an executor sees them."""
        return Chunk(
            next(self._numbers), run.lease, run.first, run.class_number, run.offset, run.attempt,
            run.prefix, array("I"), 0, 0, b"", run.deadline_unix_s, have=run.have,
            consumed=run.consumed, follows=run.follows,
        )  # fmt: skip

    def current(self) -> None:
        """See `Host`: the task is always found by its context."""

    def is_cancelled(self, number: int, index: int) -> bool:
        """See `Host`."""
        self._look.add((number, index))
        return (number, index) in self._cancelled

    def cancel(self, chunk: Chunk, index: int) -> bool:
        """Raise a task's flag; whether the task looks at it by itself."""
        self._cancelled.add((chunk.number, index))
        return (chunk.number, index) in self._look
