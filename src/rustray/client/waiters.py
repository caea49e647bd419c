"""Sleeping until a result is there: one waiter per blocked caller, never one per task.

A waiter is woken from the loop thread of a session. `ThreadWaiter` blocks a thread in a
way that Ctrl-C interrupts; `LoopWaiter` suspends a coroutine of any event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


SLICE_S = 0.1
"""After so long a thread notices that something was thrown into it."""


class Waiter(Protocol):
    """What the loop thread pokes.

    Attributes:
        failed: References that ended without success since the owner looked last; a waiter
            that asked for failures gets those of all tasks, not only of its own.
    """

    failed: list[Any]

    def wake(self) -> None:
        """Let the owner go on; any number of times, from any thread."""


class ThreadWaiter:
    """Blocks one thread until `wake`."""

    __slots__ = ("_gate", "failed")

    def __init__(self) -> None:
        self.failed: list[Any] = []
        self._gate = threading.Lock()
        self._gate.acquire()

    def wake(self) -> None:
        """Open the gate."""
        try:  # noqa: SIM105 - once per result that somebody waits for: `suppress` costs a µs
            self._gate.release()
        except RuntimeError:  # two sessions may wake at once; the second has nothing to do
            pass

    def wake_for(self, _ref: Any) -> None:
        """`wake`, as a watcher of a reference."""
        self.wake()

    def sleep(self, deadline: float | None) -> bool:
        """Wait for `wake`; a signal handler (Ctrl-C) runs meanwhile and may raise.

        Args:
            deadline: On `time.monotonic`'s clock, or None for no limit.

        Returns:
            False if the deadline came first.
        """
        if deadline is None:
            return self._gate.acquire()
        left = deadline - time.monotonic()
        if left <= 0:
            return self._gate.acquire(blocking=False)
        return self._gate.acquire(timeout=min(left, threading.TIMEOUT_MAX))


class SlicedWaiter(ThreadWaiter):
    """Blocks a thread that has to notice an interrupt, as those of tasks in threads have.

    What is thrown into a thread is raised when it runs next, and a lock that is not free keeps it
    from that; in a main thread signals do it.
    """

    __slots__ = ()

    def sleep(self, deadline: float | None) -> bool:
        """See `ThreadWaiter`."""
        while deadline is None or deadline - time.monotonic() > SLICE_S:
            if self._gate.acquire(timeout=SLICE_S):
                return True
        return super().sleep(deadline)


class LoopMailbox:
    """Resolves futures of one event loop, with one wake-up for all that wait.

    ``call_soon_threadsafe`` writes to a pipe each time; a thousand awaited references
    that end together shall cost one write.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._lock = threading.Lock()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_scheduled = False

    def post(self, future: asyncio.Future[None]) -> None:
        """Resolve the future soon, from its own loop; a closed loop is left alone."""
        with self._lock:
            self._waiting.append(future)
            if self._is_scheduled:
                return
            self._is_scheduled = True
        loop = self._loop()
        if loop is None or loop.is_closed():
            return
        with contextlib.suppress(RuntimeError):  # it closed at this moment: nobody waits there
            loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            self._is_scheduled = False
            ready, self._waiting = self._waiting, deque()
        for future in ready:
            if not future.done():
                future.set_result(None)


_mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopMailbox] = (
    weakref.WeakKeyDictionary()
)
_mailboxes_lock = threading.Lock()


def mailbox_of(loop: asyncio.AbstractEventLoop) -> LoopMailbox:
    """Return the loop's mailbox, made at the first call."""
    with _mailboxes_lock:
        mailbox = _mailboxes.get(loop)
        if mailbox is None:
            mailbox = _mailboxes[loop] = LoopMailbox(loop)
        return mailbox


class LoopWaiter:
    """Suspends one coroutine until `wake`; used by that coroutine alone."""

    __slots__ = ("_future", "_mailbox", "failed")

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.failed: list[Any] = []
        self._mailbox = mailbox_of(loop)
        self._future: asyncio.Future[None] = loop.create_future()

    def wake(self) -> None:
        """Post to the loop of the owner."""
        self._mailbox.post(self._future)

    async def sleep(self, deadline: float | None) -> bool:
        """Wait for `wake`.

        Args:
            deadline: On `time.monotonic`'s clock, or None for no limit.

        Returns:
            False if the deadline came first.
        """
        future = self._future
        if not future.done():
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            await asyncio.wait((future,), timeout=left)
        if not future.done():
            return False
        self._future = future.get_loop().create_future()
        return True


_FOR_EVER_S = 1e9


def deadline_after(timeout_s: float | None, name: str = "timeout") -> float | None:
    """Turn a timeout in seconds into a deadline; None, and one beyond all bounds, is None.

    Args:
        timeout_s: The timeout.
        name: What the caller's parameter is called.

    Raises:
        ValueError: negative, or not a number.
    """
    if timeout_s is None:
        return None
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float):
        raise ValueError(f"{name} must be a number of seconds or None, not {timeout_s!r:.80}")
    if not timeout_s >= 0:
        raise ValueError(f"{name} must be at least 0 seconds, not {timeout_s}")
    return None if timeout_s > _FOR_EVER_S else time.monotonic() + timeout_s


def first_failed(waiter: Waiter, own: Sequence[Any], known: set[int]) -> Any | None:
    """Take the noted failures from the waiter and return one that is among its own.

    Args:
        waiter: Its `failed` list is emptied.
        own: The references it waits for.
        known: Cache of their identities, filled at the first failure.
    """
    failed = waiter.failed
    if failed and not known:
        known.update(map(id, own))
    while failed:  # the loop thread may append meanwhile: pop, never swap
        ref = failed.pop()
        if id(ref) in known:
            return ref
    return None


class Arrivals:
    """Who waits for some number of outcomes, or for any failure.

    Attributes:
        finished: How many tasks of the session have ended.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self.finished = 0
        self._lock = lock
        self._counted: list[tuple[int, Waiter]] = []
        self._failures: list[Waiter] = []

    def wake_at(self, count: int, waiter: Waiter) -> None:
        """Wake the waiter once when `finished` has reached ``count``, or the session closes."""
        with self._lock:
            if self.finished < count:
                self._counted.append((count, waiter))
                return
        waiter.wake()

    def note_failures(self, waiter: Waiter) -> None:
        """Tell the waiter of each task that ends without success, until `forget`."""
        with self._lock:
            self._failures.append(waiter)

    def forget(self, waiter: Waiter) -> None:
        """Undo `wake_at` and `note_failures`."""
        with self._lock:
            self._counted = [pair for pair in self._counted if pair[1] is not waiter]
            self._failures = [other for other in self._failures if other is not waiter]

    def failed(self, refs: list[Any]) -> None:
        """Pass on which tasks have just ended without success."""
        for waiter in self._failures:
            waiter.failed.extend(refs)
            waiter.wake()

    def wake(self, everyone: bool = False) -> None:
        """Wake those whose number is reached."""
        if not self._counted:
            return
        with self._lock:
            due = [pair for pair in self._counted if everyone or pair[0] <= self.finished]
            if due:
                self._counted = [pair for pair in self._counted if pair not in due]
        for _, waiter in due:
            waiter.wake()
