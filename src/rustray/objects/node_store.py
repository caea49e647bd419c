"""NodeStore: the object store of one node; carries out what `ObjectStore` decides.

Use it on one event loop. Writing to memory and disk happens in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, assert_never

from rustray.common.errors import ObjectLost, ResourceExhausted
from rustray.objects import records as core
from rustray.objects.records import StoreLimits
from rustray.objects.segment import Part, Segment
from rustray.objects.spill_files import DamagedFile, SpillFiles
from rustray.objects.store import ObjectStore

logger = logging.getLogger("rustray.objects")

DISK_RETRY_S: Final = 5.0
REASON: Final = "OBJECT_STORE"


class NodeStore:
    """Keeps objects in sealed memory, sends them to disk, brings them back.

    Attributes:
        core: The accounts; look, do not touch.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: StoreLimits,
        files: SpillFiles | None = None,
        on_pause: Callable[[bool], None] | None = None,
    ) -> None:
        """Start empty.

        Args:
            loop: Where all of it is used.
            limits: How much it keeps, and where the thresholds are.
            files: The disk; None: there is none to use, whatever the limits say.
            on_pause: Told when no more tasks should start, and when they may again.
        """
        self.core = ObjectStore(limits)
        self._loop = loop
        self._files = files
        self._on_pause = on_pause
        self._was_paused = False
        self._segments: dict[str, Segment] = {}
        self._writers: dict[str, asyncio.Future[None]] = {}
        self._readers: defaultdict[str, deque[asyncio.Future[None]]] = defaultdict(deque)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rustray-objects")
        self._retry: asyncio.TimerHandle | None = None
        self._is_closed = False
        if files is not None:
            loop.run_in_executor(self._thread, _sweep, files)

    # ── For those who have objects, or want them ──────────────────────────────────────────

    async def put(self, object_id: str, parts: Sequence[Part]) -> Segment:
        """Copy bytes into the store; they must not change meanwhile.

        Returns:
            What they are in now.

        Raises:
            ResourceExhausted: there is no room, and none to be made.
            ValueError: the id is taken, or there are no bytes.
        """
        size = sum(map(len, parts))
        await self._reserve(object_id, size)
        try:
            segment = await asyncio.to_thread(Segment.write, parts)
        except OSError as error:
            self._run(self.core.abort(object_id))
            raise ResourceExhausted(
                f"the system has no memory for an object of {size} bytes: {error}", reason=REASON
            ) from error
        except BaseException:
            self._run(self.core.abort(object_id))
            raise
        self._commit(object_id, segment)
        return segment

    async def adopt(self, object_id: str, segment: Segment) -> None:
        """Keep what somebody else has written; the segment is the store's from now on.

        Raises:
            ResourceExhausted: there is no room, and none to be made; the segment is closed.
            ValueError: the id is taken.
        """
        try:
            await self._reserve(object_id, segment.size)
        except BaseException:
            segment.close()
            raise
        self._commit(object_id, segment)

    def take_over(self, object_id: str, segment: Segment) -> None:
        """Keep what somebody else has written, now; the segment is the store's from then on.

        The memory is used already, so this goes beyond the limit as far as the disk has room for
        what has to leave then. What it raises leaves the segment to the caller.

        Raises:
            ResourceExhausted, ObjectLost, ValueError: no room; closed; the id is taken.
        """
        self._check_open()
        commands = self.core.take_over(object_id, segment.size)
        if commands is None:
            raise ResourceExhausted("the object store of this node is full", reason=REASON)
        self._segments[object_id] = segment
        self._run(commands)

    @contextlib.asynccontextmanager
    async def hold(self, object_id: str) -> AsyncIterator[Segment]:
        """Have an object in memory as long as the block lasts; restores it if it is on disk.

        A view of the segment may be kept longer: its memory stays, but then counts nowhere.

        Raises:
            ObjectLost: it is not here, or what the disk had of it is damaged.
            ResourceExhausted: there is no room to restore it, or the disk cannot be read now.
        """
        await self._pin(object_id)
        try:
            yield self._segments[object_id]
        finally:
            if not self._is_closed:
                self._run(self.core.unpin(object_id))

    def in_memory(self, object_id: str) -> Segment | None:
        """Return an object that is in memory, as one that is used now; None: see `hold`."""
        if self._is_closed or object_id not in self._segments:
            return None
        try:
            self.core.pin(object_id)  # at once, for it is in memory
        except KeyError:
            return None  # it was freed, and somebody holds it
        self._run(self.core.unpin(object_id))
        return self._segments.get(object_id)

    def free(self, object_id: str) -> None:
        """Forget an object; who has it mapped keeps it. An unknown one is no error."""
        self._run([] if self._is_closed else self.core.free(object_id))

    def __contains__(self, object_id: str) -> bool:
        return object_id in self.core

    async def close(self) -> None:
        """Let go of everything, and remove the files."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._retry is not None:
            self._retry.cancel()
        gone = ObjectLost("the object store of this node has been closed")
        for waiting in [*self._writers.values(), *_all(self._readers.values())]:
            if not waiting.done():
                waiting.set_exception(gone)
        if self._files is not None:
            await self._loop.run_in_executor(self._thread, self._files.close)
        self._thread.shutdown(wait=False)
        for segment in self._segments.values():
            segment.close()
        self._segments.clear()

    # ── Waiting for the core ──────────────────────────────────────────────────────────────

    async def _reserve(self, object_id: str, size: int) -> None:
        self._check_open()
        commands = self.core.reserve(object_id, size)
        granted = self._writers[object_id] = self._loop.create_future()
        self._run(commands)
        try:
            await granted
        except asyncio.CancelledError:
            self._take_back(object_id, granted)
            raise

    def _take_back(self, object_id: str, granted: asyncio.Future[None]) -> None:
        """Give up a reservation, whether it was granted just now or not yet."""
        is_known = self._writers.pop(object_id, None) is not None
        was_granted = granted.done() and not granted.cancelled() and granted.exception() is None
        if (is_known or was_granted) and not self._is_closed:
            self._run(self.core.abort(object_id))

    def _commit(self, object_id: str, segment: Segment) -> None:
        if self._is_closed:
            segment.close()
            self._check_open()
        self._segments[object_id] = segment
        self._run(self.core.commit(object_id))

    async def _pin(self, object_id: str) -> None:
        self._check_open()
        try:
            commands = self.core.pin(object_id)
        except KeyError:
            raise ObjectLost(
                f"object {object_id} is not on this node: it was freed, or never was here"
            ) from None
        pinned = self._loop.create_future()
        self._readers[object_id].append(pinned)
        self._run(commands)
        try:
            await pinned
        except asyncio.CancelledError:
            is_pinned = pinned.done() and not pinned.cancelled() and pinned.exception() is None
            if is_pinned and not self._is_closed:
                self._run(self.core.unpin(object_id))
            raise

    def _check_open(self) -> None:
        if self._is_closed:
            raise ObjectLost("the object store of this node has been closed")

    # ── Carrying out ──────────────────────────────────────────────────────────────────────

    def _run(self, commands: list[core.Command]) -> None:
        waiting = deque(commands)
        while waiting:
            waiting.extend(self._carry_out(waiting.popleft()))
        if self.core.is_paused != self._was_paused:
            self._was_paused = self.core.is_paused
            if self._on_pause is not None:
                self._on_pause(self._was_paused)

    def _carry_out(self, command: core.Command) -> list[core.Command]:
        object_id = command.object_id
        match command:
            case core.Granted():
                if not _settle(self._writers.pop(object_id), None):
                    return self.core.abort(object_id)
            case core.Refused(_, text):
                self._refuse(object_id, text)
            case core.Ready():
                if not _settle(self._next_reader(object_id), None):
                    return self.core.unpin(object_id)
            case core.Lost():
                gone = ObjectLost(
                    f"object {object_id} is lost: it was freed meanwhile, or what the disk had of "
                    "it is damaged (the log of the node says so)"
                )
                _settle(self._next_reader(object_id), gone)
            case _:
                self._move(command)
        return []

    def _move(self, command: core.Spill | core.Restore | core.DropMemory | core.DropDisk) -> None:
        object_id = command.object_id
        match command:
            case core.DropMemory():
                self._segments.pop(object_id).close()
            case core.Spill():
                self._spill(object_id)
            case core.Restore():
                self._restore(object_id)
            case core.DropDisk():
                if self._files is not None:
                    self._loop.run_in_executor(self._thread, self._files.drop, object_id)
            case _:
                assert_never(command)

    def _refuse(self, object_id: str, text: str) -> None:
        error = ResourceExhausted(text, reason=REASON)
        writer = self._writers.pop(object_id, None)
        _settle(writer if writer is not None else self._next_reader(object_id), error)

    def _next_reader(self, object_id: str) -> asyncio.Future[None]:
        waiting = self._readers[object_id]
        first = waiting.popleft()
        if not waiting:
            del self._readers[object_id]
        return first

    def _spill(self, object_id: str) -> None:
        assert self._files is not None, "a store without a disk has no room on it"
        segment = self._segments[object_id]
        done = self._loop.run_in_executor(self._thread, self._files.write, object_id, segment)
        done.add_done_callback(lambda future: self._spilled(object_id, future))

    def _spilled(self, object_id: str, done: asyncio.Future[None]) -> None:
        if self._is_closed:
            return
        error = done.exception()
        if error is not None and not isinstance(error, OSError):
            raise error
        if error is not None:
            logger.error("an object cannot be written to disk, it stays in memory: %s", error)
            if self._retry is None:
                self._retry = self._loop.call_later(DISK_RETRY_S, self._try_again)
        self._run(self.core.spilled(object_id, error is None))

    def _try_again(self) -> None:
        self._retry = None
        self._run(self.core.try_disk_again())

    def _restore(self, object_id: str) -> None:
        assert self._files is not None
        done = self._loop.run_in_executor(self._thread, self._files.read, object_id)
        done.add_done_callback(lambda future: self._restored(object_id, future))

    def _restored(self, object_id: str, done: asyncio.Future[Segment]) -> None:
        if self._is_closed:
            if done.exception() is None:
                done.result().close()
            return
        error = done.exception()
        if error is None:
            self._segments[object_id] = done.result()
        elif isinstance(error, DamagedFile):
            logger.error("object %s is lost: %s", object_id, error)
        elif isinstance(error, OSError):
            logger.error("object %s cannot be read from disk now: %s", object_id, error)
            self._run(self.core.restore_failed(object_id, f"it cannot be read now: {error}"))
            return
        else:
            raise error
        self._run(self.core.restored(object_id, error is None))


def _sweep(files: SpillFiles) -> None:
    try:
        gone = files.sweep()
    except OSError as error:
        logger.warning("cannot look for objects of dead nodes: %s", error)
        return
    if gone:
        logger.info("removed the objects of dead nodes: %s", ", ".join(gone))


def _settle(waiting: asyncio.Future[None], error: Exception | None) -> bool:
    """Wake who waits; False if nobody does any more."""
    if waiting.done():
        return False
    if error is None:
        waiting.set_result(None)
    else:
        waiting.set_exception(error)
    return True


def _all(
    queues: Iterable[deque[asyncio.Future[None]]],
) -> Iterator[asyncio.Future[None]]:
    for queue in queues:
        yield from queue
