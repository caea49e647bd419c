"""A thread for what may block: results' callbacks of the user."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Final

_log: Final = logging.getLogger("rustray.client")


class Resolver:
    """A thread that sets results which could block, one after the other."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="rustray-callbacks", daemon=True)
        self._thread.start()
        self.thread_id = self._thread.ident

    def put(self, work: Callable[[], object]) -> None:
        """Do something after what was put before."""
        self._queue.put(work)

    def stop(self) -> None:
        """End after what is queued; what comes later is not run."""
        self._queue.put(None)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                work()
            except BaseException:
                _log.exception("a callback of a future failed")
            del work
