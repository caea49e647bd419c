"""Watches how much room the disk under the state directory has left."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

logger = logging.getLogger("rustray.head")

LOOK_EVERY_S: Final = 1.0
_MARGIN: Final = 1.1
"""So much more than the reserve has to be free before new tasks are taken again."""


def free_bytes(path: Path) -> int:
    """Return what this process may still write there.

    Raises:
        OSError: the file system does not answer.
    """
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


class DiskWatch:
    """Says when less than the reserve is free, and when there is room again.

    Attributes:
        is_full: As of the last look.
    """

    def __init__(
        self,
        path: Path,
        reserve_bytes: int,
        on_change: Callable[[bool], None],
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        """Know what to watch; `look` before anything is accepted.

        Args:
            path: Of the directory.
            reserve_bytes: What has to stay free.
            on_change: Called on the event loop with whether the disk is full now.
            free: How to find out.
        """
        self.is_full = False
        self._path = path
        self._reserve = reserve_bytes
        self._on_change = on_change
        self._free = free

    async def look(self) -> None:
        """Find out, in a thread: a file system may take its time."""
        try:
            free = await asyncio.to_thread(self._free, self._path)
        except OSError as error:
            # The next commit will tell whether the disk is there; this is no reason to stop.
            logger.warning("cannot see how much room %s has: %s", self._path, error)
            return
        is_full = free < self._reserve * (_MARGIN if self.is_full else 1.0)
        if is_full == self.is_full:
            return
        self.is_full = is_full
        if is_full:
            logger.warning(
                "%s has %d MB left, less than the reserve of %d MB ([scheduler] disk_reserve_mb): "
                "no new tasks are accepted until there is more",
                self._path, free // 1_000_000, self._reserve // 1_000_000,
            )  # fmt: skip
        else:
            logger.info("%s has room again, so tasks are accepted again", self._path)
        self._on_change(is_full)

    async def run(self) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()
