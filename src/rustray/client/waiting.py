"""Blocking for results: `get`, `wait` and their async twins.

However many references a caller waits for, it sleeps on one waiter: first until the last missing
task has ended, then until the last of those that are still missing then. A task that fails wakes
it at once.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from operator import attrgetter
from typing import Any, Final

from rustray.client.outcomes import outcomes
from rustray.client.pauses import Pauses, blocking, pausing, waiter_of
from rustray.client.refs import PENDING, SUCCEEDED, Owner, TaskRef
from rustray.client.values import Placed
from rustray.client.waiters import (
    LoopWaiter,
    ThreadWaiter,
    deadline_after,
    first_failed,
)
from rustray.common.errors import BlockedLoop, GetTimeout, RustRayError

Refs = Sequence[TaskRef[Any]]

_WELL: Final = frozenset((PENDING, SUCCEEDED))
# What is asked of each of thousands of references is asked without a frame for each.
_state_of: Final = attrgetter("_state")
_owner_of: Final = attrgetter("_batch.owner")
_thread_of: Final = attrgetter("thread_id")


def get_one(ref: TaskRef[Any], timeout_s: float | None) -> Any:
    """Wait for one task and return its value; see `rustray.get`."""
    if timeout_s is None:
        if ref._state == PENDING:
            _collect([ref], None)
        return ref.outcome()
    return get_many([ref], timeout_s)[0]


def get_many(refs: Refs, timeout_s: float | None) -> list[Any]:
    """Wait for all and return their values in order; see `rustray.get`."""
    deadline = deadline_after(timeout_s)
    missing = _missing_or_raise(refs)
    if missing:
        _collect(missing, timeout_s)
    return _outcomes(refs, deadline)


def _outcomes(refs: Refs, deadline: float | None) -> list[Any]:
    """Decode the values of tasks that have ended; those that stay with workers come until then."""
    if deadline is None or not any(type(ref._data) is Placed for ref in refs):
        return outcomes(refs)
    return [ref.outcome(max(deadline - time.monotonic(), 0.0)) for ref in refs]


async def aget_many(refs: Refs, timeout_s: float | None) -> list[Any]:
    """`get_many` for coroutines; being cancelled leaves the tasks alone."""
    deadline = deadline_after(timeout_s)
    missing = _missing_or_raise(refs)
    if missing:
        waiter = LoopWaiter()
        known: set[int] = set()
        async with pausing(_pauses_of(missing)):
            with _Watch(missing, waiter) as watch:
                while watch.wait_for_next():
                    if not await waiter.sleep(deadline):
                        raise _timed_out(timeout_s, watch.missing)
                    _raise_failure(waiter, missing, known)
    for ref in refs:
        if type(ref._data) is Placed:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(ref.pool, _outcomes, refs, deadline)
    return outcomes(refs)


def wait_some(refs: Refs, num_returns: int, timeout_s: float | None) -> tuple[list[Any], list[Any]]:
    """Wait until so many have ended; see `rustray.wait`."""
    _check_wait(refs, num_returns)
    deadline = deadline_after(timeout_s)
    missing = [ref for ref in refs if ref._state == PENDING]
    needed = num_returns - (len(refs) - len(missing))
    if needed > 0:
        if timeout_s != 0:
            _check_may_block(missing)
        pauses = _pauses_of(missing)
        waiter = waiter_of(pauses)
        with _blocking(pauses, timeout_s), _Counter(missing, waiter) as counter:
            while counter.arm(needed):
                if not waiter.sleep(deadline):
                    break
    return _split(refs, num_returns)


async def await_some(
    refs: Refs, num_returns: int, timeout_s: float | None
) -> tuple[list[Any], list[Any]]:
    """`wait_some` for coroutines."""
    _check_wait(refs, num_returns)
    deadline = deadline_after(timeout_s)
    missing = [ref for ref in refs if ref._state == PENDING]
    needed = num_returns - (len(refs) - len(missing))
    if needed > 0:
        waiter = LoopWaiter()
        async with pausing(_pauses_of(missing) if timeout_s != 0 else None):
            with _Counter(missing, waiter) as counter:
                while counter.arm(needed):
                    if not await waiter.sleep(deadline):
                        break
    return _split(refs, num_returns)


def _collect(missing: list[TaskRef[Any]], timeout_s: float | None) -> None:
    """Block until all have succeeded; raise the first failure."""
    deadline = deadline_after(timeout_s)
    if timeout_s != 0:
        _check_may_block(missing)
    pauses = _pauses_of(missing)
    if pauses is None:  # the code belongs to no task
        _sleep_for(missing, ThreadWaiter(), deadline, timeout_s)
        return
    with _blocking(pauses, timeout_s):
        _sleep_for(missing, waiter_of(pauses), deadline, timeout_s)


def _blocking(pauses: Pauses | None, timeout_s: float | None) -> AbstractContextManager[None]:
    """Let a task give back its cores while it waits, if the code belongs to one."""
    return blocking(pauses if timeout_s != 0 else None)


def _pauses_of(missing: list[TaskRef[Any]]) -> Pauses | None:
    return missing[0]._batch.owner.pauses if missing else None


def _sleep_for(
    missing: list[TaskRef[Any]],
    waiter: ThreadWaiter,
    deadline: float | None,
    timeout_s: float | None,
) -> None:
    if len(missing) == 1:
        _await_one(missing[0], waiter, deadline, timeout_s)
        return
    known: set[int] = set()
    with _Watch(missing, waiter) as watch:
        while watch.wait_for_next():
            if not waiter.sleep(deadline):
                raise _timed_out(timeout_s, watch.missing)
            _raise_failure(waiter, missing, known)


def _await_one(
    ref: TaskRef[Any], waiter: ThreadWaiter, deadline: float | None, timeout_s: float | None
) -> None:
    """Block until one has ended, however it did: the shortest way there is."""
    has_ended = False
    try:
        if ref.watch(waiter.wake_for) and not waiter.sleep(deadline):
            raise _timed_out(timeout_s, [ref])
        has_ended = True
    finally:
        if not has_ended:
            ref.unwatch(waiter.wake_for)


class _Watch:
    """A waiter on the last missing reference, and on failures of the others."""

    def __init__(self, missing: list[TaskRef[Any]], waiter: ThreadWaiter | LoopWaiter) -> None:
        self.missing = list(missing)
        self._waiter = waiter
        self._owners = _owners(missing) if len(missing) > 1 else {}
        self._watched: TaskRef[Any] | None = None

    def __enter__(self) -> _Watch:
        for owner in self._owners:
            owner.arrivals.note_failures(self._waiter)
        if self._owners and not _WELL.issuperset(map(_state_of, self.missing)):
            _raise_first_failed(self.missing)  # it failed before we listened
        return self

    def wait_for_next(self) -> bool:
        """Move on to the last one that is missing; False if none is."""
        missing = self.missing
        while missing:
            last = missing[-1]
            if last._state != PENDING:
                missing.pop()
            elif last is self._watched or last.watch(self._wake):
                self._watched = last
                return True
        self._watched = None
        return False

    def __exit__(self, *exc_info: object) -> None:
        if self._watched is not None:
            self._watched.unwatch(self._wake)
        for owner in self._owners:
            owner.arrivals.forget(self._waiter)

    def _wake(self, _ref: TaskRef[Any]) -> None:
        self._waiter.wake()


class _Counter:
    """A waiter on a number of arrivals."""

    def __init__(self, missing: list[TaskRef[Any]], waiter: ThreadWaiter | LoopWaiter) -> None:
        self._missing = missing
        self._waiter = waiter
        self._owners = _owners(missing)
        self._found = 0
        for ref in missing:
            ref._batch.pursue(ref)

    def __enter__(self) -> _Counter:
        return self

    def arm(self, needed: int) -> bool:
        """Ask to be woken when ``needed`` can have arrived; False if they have.

        The number of arrivals is read before the references are looked at, so that one in
        between counts twice and wakes early, rather than never. Where several sessions
        may bring what is needed, any arrival wakes.
        """
        before = {owner: owner.arrivals.finished for owner in self._owners}
        missing = [ref for ref in self._missing if ref._state == PENDING]
        self._found += len(self._missing) - len(missing)
        self._missing = missing
        lacking = needed - self._found
        if lacking <= 0:
            return False
        for owner, finished in before.items():
            if owner.broken is not None and any(ref._batch.owner is owner for ref in missing):
                raise owner.broken
            owner.arrivals.forget(self._waiter)
            owner.arrivals.wake_at(finished + (lacking if len(before) == 1 else 1), self._waiter)
        return True

    def __exit__(self, *exc_info: object) -> None:
        for owner in self._owners:
            owner.arrivals.forget(self._waiter)


def _owners(refs: Iterable[TaskRef[Any]]) -> dict[Owner, None]:
    """Return the sessions of the references, each once."""
    return dict.fromkeys(map(_owner_of, refs))


def _missing_or_raise(refs: Refs) -> list[TaskRef[Any]]:
    missing = [ref for ref in refs if ref._state == PENDING]
    if len(missing) < len(refs):
        _raise_first_failed(refs)
    return missing


def _raise_first_failed(refs: Refs) -> None:
    for ref in refs:
        if ref._state not in _WELL:
            raise ref.error()


def _raise_failure(
    waiter: ThreadWaiter | LoopWaiter, own: list[TaskRef[Any]], known: set[int]
) -> None:
    failed = first_failed(waiter, own, known)
    if failed is not None:
        raise failed.error()


def _check_may_block(missing: list[TaskRef[Any]]) -> None:
    """Refuse to block the thread that results arrive on; warn about blocking an event loop."""
    if threading.get_ident() in map(_thread_of, _owners(missing)):
        raise RustRayError(
            "blocking for a result inside a callback of rustray would wait for itself; "
            "do it in another thread"
        )
    if asyncio._get_running_loop() is None:
        return
    if _pauses_of(missing) is not None:
        raise BlockedLoop(
            "rustray.get() and rustray.wait() would block the event loop that this task runs on, "
            "and others beside it: use `await ref`, await rustray.aget() or await rustray.await_()"
        )
    # In a notebook a loop always runs, and its cells are meant to block.
    if "ipykernel" not in sys.modules:
        warnings.warn(
            "rustray.get() and rustray.wait() block the running event loop: "
            "use `await ref`, rustray.aget() or rustray.await_() instead",
            RuntimeWarning,
            stacklevel=5,
        )


def _check_wait(refs: Refs, num_returns: int) -> None:
    if not isinstance(num_returns, int) or num_returns < 1:
        raise ValueError(f"num_returns must be a whole number of at least 1, not {num_returns!r}")
    if num_returns > len(refs):
        raise ValueError(f"num_returns={num_returns}, but there are only {len(refs)} references")
    if len(set(map(id, refs))) != len(refs):
        raise ValueError("a reference stands in the list twice")


def check_fetch_local(fetch_local: object) -> None:
    """Refuse what is no bool.

    Raises:
        ValueError: as said.
    """
    if not isinstance(fetch_local, bool):
        raise ValueError(f"fetch_local must be True or False, not {fetch_local!r:.80}")


def _split(refs: Refs, num_returns: int) -> tuple[list[Any], list[Any]]:
    """Return (at most ``num_returns`` that have ended, the others), order kept."""
    ready: list[Any] = []
    rest: list[Any] = []
    for ref in refs:
        (ready if ref._state != PENDING and len(ready) < num_returns else rest).append(ref)
    return ready, rest


def _timed_out(timeout_s: float | None, missing: list[TaskRef[Any]]) -> GetTimeout:
    left = sum(ref._state == PENDING for ref in missing)
    tasks = "1 task" if left == 1 else f"{left} tasks"
    for owner in _owners(missing):
        if owner.offline_since_s is not None:
            away_s = time.monotonic() - owner.offline_since_s
            return GetTimeout(
                f"{tasks} had not ended after {timeout_s:g} s, and the head has not been reachable "
                f"for {away_s:.0f} s; see whether it runs, and ask again later"
            )
    hint = ""
    if any(owner.pauses is None for owner in _owners(missing)):  # a program's, and no task's
        hint = "; rustray.explain(ref) says what one waits for"
    return GetTimeout(
        f"{tasks} had not ended after {timeout_s:g} s; they go on, ask again later{hint}"
    )
