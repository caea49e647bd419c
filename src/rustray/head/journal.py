"""Where the head's state is kept beside memory, and when it is safe there.

The driver appends what the scheduler wants to be committed, in order, and holds back whatever
tells somebody of it until the commit. A journal commits groups: all that was appended while the
commit before was under way goes together in the next. So there is one sync for thousands of
tasks under load, and no wait for a timer when there is just one. A group is as safe as the safest
in it has to be: one in which nothing asks for a sync goes without. A sync is one of all that was
committed before, so that what has to be safe never rests on what is not.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from rustray.common.durability import Durability
from rustray.scheduler.commands import JournalCommand, PersistOutcome
from rustray.scheduler.stream_commands import PersistItems

logger = logging.getLogger("rustray.head")

_FULL: Final = Durability.FULL
_DEFAULT: Final = Durability.DEFAULT

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
        to_sync: Number of the last command that has to be synced.
        committed: Number of the last command that is committed: it survives the process.
        synced: Number of the last command that is committed and synced.
        on_commit: Called on the event loop when `committed` has grown, and perhaps `synced`.
    """

    level: str
    appended: int
    to_sync: int
    committed: int
    synced: int
    on_commit: Callable[[], None]

    def append(self, command: JournalCommand, durability: Durability = Durability.DEFAULT) -> None:
        """Take one command, and how safe it has to be."""


class MemoryJournal:
    """Durability level "memory": the scheduler's own state is the record."""

    level = "memory"
    appended = to_sync = committed = synced = 0

    def __init__(self) -> None:
        self.on_commit: Callable[[], None] = _nothing

    def append(self, command: JournalCommand, durability: Durability = Durability.DEFAULT) -> None:
        """Keep nothing beside what the scheduler holds: that is what this level promises."""


class Store(Protocol):
    """What commits; `rustray.head.journal_store.JournalStore` is one."""

    def commit(self, commands: Sequence[JournalCommand], is_synced: bool) -> None:
        """Commit all or nothing, and return when it is committed (and synced, with all before)."""

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
        least: Durability = Durability.DEFAULT,
    ) -> None:
        """Start the thread.

        Args:
            store: Where to commit.
            level: What it promises.
            loop: On which everything but the commits happens.
            on_failure: Called on the loop when a commit failed: nothing is safe from then on, and
                the head has to stop without telling anybody that it is.
            least: The highest level of a task that is there already.
        """
        self.level = level
        self.appended = self.to_sync = 0
        self.committed = self.synced = 0
        # What belongs to no task, or is not told apart: as safe as the safest task has to be.
        self._default = max(Durability[level.upper()], least)
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
        self._groups: queue.SimpleQueue[tuple[int, list[JournalCommand], bool] | None]
        self._groups = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="rustray-journal", daemon=True)
        self._thread.start()

    def append(self, command: JournalCommand, durability: Durability = _DEFAULT) -> None:
        """Take one command; it is committed with all others of this turn of the loop."""
        self._waiting.append(command)
        self.appended += 1
        if durability > self._default:
            self._default = durability
        if (durability or self._default) == _FULL:
            self.to_sync = self.appended
        if type(command) is PersistOutcome:
            self._waiting_bytes += command.outcome.payloads.size_bytes
        elif type(command) is PersistItems:
            self._waiting_bytes += command.payloads.size_bytes
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
            self._committing_bytes, self._waiting_bytes = self._waiting_bytes, 0
            self._put_group()

    def _put_group(self) -> None:
        group, self._waiting = self._waiting, []
        self._groups.put((self.appended, group, self.to_sync > self.synced))

    def _note_stall(self, is_stalled: bool) -> None:
        self.is_stalled = is_stalled
        if is_stalled:
            logger.warning("the disk does not keep up: no new tasks are accepted until it does")
        self.on_stall(is_stalled)

    def _run(self) -> None:
        while True:
            number, is_synced, error = 0, False, None
            try:
                while self._groups.empty() and self._store.tidy():
                    pass
                item = self._groups.get()
                if item is None:
                    return
                number, group, is_synced = item
                self._store.commit(group, is_synced)
            except BaseException as caught:
                error = caught
            try:
                self._loop.call_soon_threadsafe(self._done, number, is_synced, error)
            except RuntimeError:  # the loop has closed: nobody is there to be told
                return
            if error is not None:
                return

    def _done(self, number: int, is_synced: bool, error: BaseException | None) -> None:
        self._is_committing = False
        if error is not None:
            # Never again: after a failed sync nobody knows what the disk has (PostgreSQL's lesson
            # of 2018), so the next start reads what is really there.
            self._has_failed = True
            logger.critical("the journal cannot be written, so the head stops: %r", error)
            self._on_failure(error)
            return
        self.committed = number
        if is_synced:
            self.synced = number
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
            self._put_group()
        self._groups.put(None)
        await asyncio.to_thread(self._thread.join)
        await asyncio.sleep(0)  # the last commit's news have been left to the loop
        self._store.close()


def _nothing() -> None:
    """Stand in until somebody wants to know."""


def _ignore(_: bool) -> None:
    """Likewise."""
