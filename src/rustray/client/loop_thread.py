"""An event loop in a thread of its own, for programs that have none or do not lend theirs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from rustray.client.spinning import SpinningLoop
from rustray.common.errors import RustRayError

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for other threads.

    Attributes:
        loop: Its event loop.
        is_running: Until `stop`.
        thread_id: `threading.get_ident` of the thread.
    """

    def __init__(self, name: str = "rustray", *, spins: bool = False) -> None:
        """Start the thread.

        Args:
            name: Of the thread.
            spins: Look for events a while before sleeping (`rustray.client.spinning`).
        """
        self.loop = SpinningLoop() if spins else asyncio.new_event_loop()
        self.is_running = True
        # A daemon: interpreter exit must not wait for it; `stop` runs from atexit before.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self.thread_id = self._thread.ident or 0

    def call(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Run a coroutine there and wait for it; Ctrl-C cancels it.

        Raises:
            TimeoutError: it took longer; it has been cancelled.
            RustRayError: the thread is stopped.
        """
        if not self.is_running:
            work.close()
            raise RustRayError("the event loop thread of this session has been stopped")
        if threading.get_ident() == self.thread_id:
            work.close()
            raise RustRayError("this call would wait for the very thread that it is made in")
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(timeout_s)
        except BaseException:
            future.cancel()
            raise

    def stop(self, timeout_s: float = 5.0) -> None:
        """Cancel what runs there, and end the thread; idempotent."""
        if not self.is_running:
            return
        self.is_running = False
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self._finish()

    def _finish(self) -> None:
        pending = asyncio.all_tasks(self.loop)
        for task in pending:
            task.cancel()
        if pending:
            self.loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        self.loop.close()
