"""Where the head's state is kept beside memory, and when it is safe there.

The driver appends what the scheduler wants to be committed, in order, and holds back whatever
tells somebody of it until the commit. A journal commits groups: all that was appended while the
commit before was under way goes together in the next. So there is one sync for thousands of
tasks under load, and no wait for a timer when there is just one.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from rustray.scheduler.commands import JournalCommand, PersistOutcome

logger = logging.getLogger("rustray.head")

MAX_WAITING: Final = 100_000
"""Commands (each a batch, or how a part of one ended) that wait to be committed."""
MAX_WAITING_BYTES: Final = 256 << 20
"""Bytes of results that do; arguments have a bound of their own, `max_pending_bytes`."""


class Journal(Protocol):
    """Takes commands in order, and says up to which of them they are safe.

    Attributes:
        level: "full" (survives a power cut), "process" (survives the death of the process), or
            "memory" (survives nothing).
        appended: Number of the last command appended.
        committed: Number of the last command that is as safe as the level promises.
        on_commit: Called on the event loop when `committed` has grown.
    """

    level: str
    appended: int
    committed: int
    on_commit: Callable[[], None]

    def append(self, command: JournalCommand) -> None:
        """Take one command."""


class MemoryJournal:
    """Durability level "memory": the scheduler's own state is the record."""

    level = "memory"
    appended = 0
    committed = 0

    def __init__(self) -> None:
        self.on_commit: Callable[[], None] = _nothing

    def append(self, command: JournalCommand) -> None:
        """Keep nothing beside what the scheduler holds: that is what this level promises."""


class Store(Protocol):
    """What commits; `rustray.head.journal_store.JournalStore` is one."""

    def commit(self, commands: Sequence[JournalCommand]) -> None:
        """Commit all or nothing, and return when it is safe."""

    def tidy(self) -> bool:
        """Do a little of what can wait, and return whether there is more of it."""

    def close(self) -> None:
        """Let go of the files."""


class GroupCommitJournal:
    """Commits in a thread of its own, group by group.

    Attributes:
        is_stalled: More waits for the disk than may wait.
        on_stall: Called on the event loop with whether it is stalled now, when that changes.
    """

    def __init__(
        self,
        store: Store,
        level: str,
        loop: asyncio.AbstractEventLoop,
        *,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """Start the thread.

        Args:
            store: Where to commit.
            level: What it promises.
            loop: On which everything but the commits happens.
            on_failure: Called on the loop when a commit failed: nothing is safe from then on, and
                the head has to stop without telling anybody that it is.
        """
        self.level = level
        self.appended = 0
        self.committed = 0
        self.on_commit: Callable[[], None] = _nothing
        self._loop = loop
        self._store = store
        self._on_failure = on_failure
        self.is_stalled = False
        self.on_stall: Callable[[bool], None] = _ignore
        self._waiting: list[JournalCommand] = []
        self._waiting_bytes = self._committing_bytes = 0
        self._is_planned = False
        self._is_committing = False
        self._has_failed = False
        self._groups: queue.SimpleQueue[tuple[int, list[JournalCommand]] | None]
        self._groups = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="rustray-journal", daemon=True)
        self._thread.start()

    def append(self, command: JournalCommand) -> None:
        """Take one command; it is committed with all others of this turn of the loop."""
        self._waiting.append(command)
        self.appended += 1
        if type(command) is PersistOutcome:
            self._waiting_bytes += command.outcome.payloads.size_bytes
        if not self.is_stalled and (
            self.appended - self.committed > MAX_WAITING
            or self._waiting_bytes + self._committing_bytes > MAX_WAITING_BYTES
        ):
            self._note_stall(True)
        if not (self._is_planned or self._is_committing or self._has_failed):
            self._is_planned = True
            self._loop.call_soon(self._start)

    def _start(self) -> None:
        self._is_planned = False
        if self._waiting and not (self._is_committing or self._has_failed):
            self._is_committing = True
            group, self._waiting = self._waiting, []
            self._committing_bytes, self._waiting_bytes = self._waiting_bytes, 0
            self._groups.put((self.appended, group))

    def _note_stall(self, is_stalled: bool) -> None:
        self.is_stalled = is_stalled
        if is_stalled:
            logger.warning("the disk does not keep up: no new tasks are accepted until it does")
        self.on_stall(is_stalled)

    def _run(self) -> None:
        while True:
            number, error = 0, None
            try:
                while self._groups.empty() and self._store.tidy():
                    pass
                item = self._groups.get()
                if item is None:
                    return
                number, group = item
                self._store.commit(group)
            except BaseException as caught:
                error = caught
            try:
                self._loop.call_soon_threadsafe(self._done, number, error)
            except RuntimeError:  # the loop has closed: nobody is there to be told
                return
            if error is not None:
                return

    def _done(self, number: int, error: BaseException | None) -> None:
        self._is_committing = False
        if error is not None:
            # Never again: after a failed sync nobody knows what the disk has (PostgreSQL's lesson
            # of 2018), so the next start reads what is really there.
            self._has_failed = True
            logger.critical("the journal cannot be written, so the head stops: %r", error)
            self._on_failure(error)
            return
        self.committed = number
        self._committing_bytes = 0
        try:
            self.on_commit()
            if (
                self.is_stalled
                and self.appended - number <= MAX_WAITING // 2
                and (self._waiting_bytes <= MAX_WAITING_BYTES // 2)
            ):
                self._note_stall(False)
        finally:
            self._start()

    async def close(self) -> None:
        """Commit what waits, end the thread, close the store."""
        if self._waiting:
            group, self._waiting = self._waiting, []
            self._groups.put((self.appended, group))
        self._groups.put(None)
        await asyncio.to_thread(self._thread.join)
        await asyncio.sleep(0)  # the last commit's news have been left to the loop
        self._store.close()


def _nothing() -> None:
    """Stand in until somebody wants to know."""


def _ignore(_: bool) -> None:
    """Likewise."""
