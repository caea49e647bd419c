"""The spool on disk: one file a sheaf, in a directory of this worker's own.

The files are no record that anybody could start from: they end with the process that wrote them, as
the attempts do whose outcomes they hold. So nothing is synced, and the digests of what was written
stay in memory, where nobody who can reach the disk can reach them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgpack

from rustray.objects.own_directory import CREATE, READ, OwnDirectory
from rustray.task.columns import ENDS_TYPECODE, PayloadColumn, PlacedColumn
from rustray.task.frames import LeaseOutcome
from rustray.task.state import TaskState
from rustray.worker.events import DropSheaf, ReadSheaf, SheafRead, SheafWritten, WriteSheaf

logger = logging.getLogger("rustray.worker")


class SpoolFiles:
    """The files; for one thread at a time.

    Args:
        root: Where the workers of this machine have their directories; made when it is needed.
        worker_id: Names this worker's.
    """

    def __init__(self, root: Path, worker_id: str) -> None:
        self._own = OwnDirectory(root, worker_id, "worker.spool_dir")
        self._digests: dict[int, bytes] = {}

    def sweep(self) -> list[str]:
        """Remove what workers have left behind that are dead; returns their names."""
        return self._own.sweep()

    def write(self, number: int, outcomes: list[LeaseOutcome]) -> None:
        """Write a sheaf.

        Raises:
            OSError: the directory or the file cannot be written, or the disk is full.
        """
        self._own.make()
        content = _encode(outcomes)
        path = self._path(number)
        try:
            with open(os.open(path, CREATE, 0o600), "wb") as file:
                file.write(content)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        self._digests[number] = hashlib.sha256(content).digest()

    def read(self, number: int) -> list[LeaseOutcome]:
        """Read a sheaf and remove it, whatever is found.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not what was written.
        """
        path = self._path(number)
        digest = self._digests.pop(number)
        try:
            with open(os.open(path, READ), "rb") as file:
                content = file.read()
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        if hashlib.sha256(content).digest() != digest:
            raise ValueError(f"its SHA-256 is not that of what was written ({len(content)} bytes)")
        return _decode(content)

    def drop(self, number: int) -> None:
        """Remove a sheaf that is not needed."""
        self._digests.pop(number, None)
        with contextlib.suppress(OSError):
            self._path(number).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove all of it."""
        self._own.close()

    def _path(self, number: int) -> Path:
        return self._own.path / f"{number}.sheaf"


def _encode(outcomes: list[LeaseOutcome]) -> bytes:
    rows = [
        (o.lease, o.offset, int(o.state), o.run_us, isinstance(p, PlacedColumn), *_column(p))
        for o in outcomes
        for p in (o.payloads,)
    ]
    packed: bytes = msgpack.packb(rows, use_bin_type=True)
    return packed


def _column(payloads: PayloadColumn) -> tuple[int, bytes, bytes]:
    return payloads.base, payloads.ends.tobytes(), payloads.blob


def _decode(content: bytes) -> list[LeaseOutcome]:
    # The digest was right, so these are the very bytes that `_encode` has made.
    found = []
    rows = msgpack.unpackb(content, raw=False)
    for lease, offset, state, run_us, is_placed, base, ends, blob in rows:
        column: array[int] = array(ENDS_TYPECODE)
        column.frombytes(ends)
        payloads = (PlacedColumn if is_placed else PayloadColumn)(blob, column, base)
        found.append(LeaseOutcome(lease, offset, TaskState(state), payloads, run_us))
    return found


class SpoolKeeper:
    """Carries out the core's orders in a thread, one after the other.

    Args:
        loop: Where orders come from and answers go to.
        files: What to do them with.
        answer: Takes the core's events.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        files: SpoolFiles,
        answer: Callable[[SheafWritten | SheafRead], None],
    ) -> None:
        self._loop = loop
        self._files = files
        self._answer = answer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rustray-spool")
        self._last_trouble = ""
        self._loop.run_in_executor(self._thread, self._sweep)

    def write(self, order: WriteSheaf) -> None:
        """Write a sheaf; the answer comes later."""
        done = self._loop.run_in_executor(
            self._thread, self._files.write, order.number, order.outcomes
        )
        done.add_done_callback(lambda future: self._written(order.number, future))

    def read(self, order: ReadSheaf) -> None:
        """Read a sheaf; the answer comes later."""
        done = self._loop.run_in_executor(self._thread, self._files.read, order.number)
        done.add_done_callback(lambda future: self._was_read(order.number, future))

    def drop(self, order: DropSheaf) -> None:
        """Remove a sheaf."""
        self._loop.run_in_executor(self._thread, self._files.drop, order.number)

    async def close(self) -> None:
        """End the thread, and remove all files."""
        await self._loop.run_in_executor(self._thread, self._files.close)
        self._thread.shutdown(wait=False)

    def _sweep(self) -> None:
        try:
            gone = self._files.sweep()
        except OSError as error:
            logger.warning("cannot look for spools of dead workers: %s", error)
            return
        if gone:
            logger.info("removed the spools of dead workers: %s", ", ".join(gone))

    def _written(self, number: int, done: asyncio.Future[None]) -> None:
        error = done.exception()
        if error is not None and not isinstance(error, OSError):
            raise error
        text = str(error or "")
        if text and text != self._last_trouble:
            logger.error(
                "the spool of results cannot be written, they stay in memory, and no more tasks "
                "start when that is full: %s",
                text,
            )
        elif self._last_trouble and not text:
            logger.warning("the spool of results can be written again")
        self._last_trouble = text
        self._answer(SheafWritten(number, error is None))

    def _was_read(self, number: int, done: asyncio.Future[list[LeaseOutcome]]) -> None:
        error = done.exception()
        if error is None:
            self._answer(SheafRead(number, done.result()))
            return
        if not isinstance(error, OSError | ValueError):
            raise error
        logger.error(
            "results were damaged on disk, in sheaf %d of the spool: %s; their tasks count as "
            "lost, and run again as far as max_retries allows",
            number,
            error,
        )
        self._answer(SheafRead(number, None))
