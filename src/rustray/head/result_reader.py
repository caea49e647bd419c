"""Reads large results back from their files, off the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from pathlib import Path

from rustray.common.errors import HeadUnavailable, ObjectLost, TaskExpired
from rustray.head.journal_rows import connect_reader
from rustray.head.result_files import SUFFIX, DamagedFile, read_file
from rustray.task.columns import PayloadColumn, StoredColumn

logger = logging.getLogger("rustray.head")

PAUSES_S = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Between the tries to read a result while the machine is short of something; the last again and
again: what is there is not told to be lost, however long that takes."""
_SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM)


class ResultReader:
    """One thread with a connection of its own: one result is in its hands at a time."""

    def __init__(self, database: Path) -> None:
        """Know the database; it is opened with the first read."""
        self._database = database
        self._files = Path(f"{database}{SUFFIX}")
        self._db: sqlite3.Connection | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rustray-results")
        self._is_closing = threading.Event()

    async def read(self, column: StoredColumn) -> PayloadColumn:
        """Return what a column stands for.

        Raises:
            TaskExpired: the result has expired meanwhile.
            ObjectLost: its file is missing, damaged or cannot be read.
            HeadUnavailable: the head stops, and could not read it by then.
        """
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.read_now, column)

    def read_now(self, column: StoredColumn) -> PayloadColumn:
        """Do as `read`, in this thread."""
        try:
            whole = self._read_patiently(column.number)
        except (DamagedFile, OSError, sqlite3.Error, ValueError) as error:
            logger.error("a result is lost: %s", error)
            raise ObjectLost(
                "the result was kept in a file of the head's, and that is missing or damaged (the "
                "head's log names it): run the task again, or have the head's operator look for "
                "the file in a backup"
            ) from error
        if whole is None:
            raise TaskExpired("the result has expired (it was kept for its time to live)")
        return whole.slice(column.skip, column.skip + len(column))

    def _read_patiently(self, number: int) -> PayloadColumn | None:
        """Read it, again and again while the machine is only short of something."""
        for pause_s in chain(PAUSES_S, repeat(PAUSES_S[-1])):
            try:
                return self._read_whole(number)
            except (OSError, sqlite3.OperationalError) as error:
                if not _is_shortage(error):
                    raise
                logger.warning("a result cannot be read now: %s", error)
            if self._is_closing.wait(pause_s):
                break
        raise HeadUnavailable("the head stops, and the result could not be read; ask again")

    def _read_whole(self, number: int) -> PayloadColumn | None:
        found = self._row(number)
        if found is None:
            return None
        digest, ends, base = found
        size = int.from_bytes(ends[-4:], "little") - base
        try:
            content = read_file(self._files, number, digest, size)
        except DamagedFile:
            if self._row(number) is None:
                return None  # it has expired between the two looks
            raise
        return PayloadColumn.from_wire(content, ends, base)

    def _row(self, number: int) -> tuple[bytes, bytes, int] | None:
        if self._db is None:
            self._db = connect_reader(self._database)
        query = (
            "SELECT digest, ends, base FROM outcome JOIN large ON large.id = outcome.id "
            "WHERE outcome.id = ?"
        )
        found: tuple[bytes, bytes, int] | None = self._db.execute(query, (number,)).fetchone()
        return found

    async def close(self) -> None:
        """Let go of the thread and the connection."""
        await asyncio.to_thread(self.close_now)

    def close_now(self) -> None:
        """Do as `close`, and block until the read that is under way has ended."""
        self._is_closing.set()
        self._pool.shutdown()
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()


def _is_shortage(error: OSError | sqlite3.OperationalError) -> bool:
    """Whether the file may well be there and whole."""
    if isinstance(error, OSError):
        return error.errno in _SHORT_OF
    return error.sqlite_errorcode & 0xFF in _BUSY
