"""`rustray.Executor`: the standard library's executor, on a cluster.

Futures are real `concurrent.futures.Future` objects. A future whose task has been handed to the
cluster counts as running and cannot be cancelled any more, as in `ProcessPoolExecutor`; so
no more tasks are handed over than keep the cluster busy for some tens of milliseconds
(`Windows`), and the rest waits here, where ``cancel()`` is certain.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from rustray.client import context
from rustray.client.addresses import check_address
from rustray.client.call_classes import CallClasses, ChunkOf
from rustray.client.executor_maps import adaptive_map, broken_pool, error_of_call
from rustray.client.map_iterator import MapJob
from rustray.client.map_jobs import MapJobThread
from rustray.client.options import function_name
from rustray.client.refs import SUCCEEDED, ClassEntry, TaskRef
from rustray.client.resolver import Resolver
from rustray.client.windows import FULL, Window, Windows
from rustray.common.errors import (
    PayloadError,
    RustRayError,
)
from rustray.task.codec import encode_call
from rustray.task.spec import Codec

T = TypeVar("T")

_log: Final = logging.getLogger("rustray.client")

# A bigger result is decoded beside the loop thread, which has heartbeats to send.
_BIG_RESULT_BYTES: Final = 64 << 10


class _Work(NamedTuple):
    future: Future[Any]
    entry: ClassEntry
    payload: bytes
    window: Window


class Executor(concurrent.futures.Executor):
    """A `concurrent.futures.Executor` whose calls run in a cluster.

    Exceptions come as the user raised them, with the remote traceback as ``__cause__``. When
    an executor process dies under a call, that call's future gets a `BrokenExecutor`
    (`BrokenProcessPool`, to be exact) and all others go on. On a cluster, calls of a lost
    worker run again (3 times); on this machine, as in the standard library, nothing runs twice.

    Attributes:
        runtime: What it stands on.

    Args:
        address: ``rustray://host:port``; None takes ``RUSTRAY_ADDRESS``, else the session of
            `rustray.init` if there is one, else an embedded cluster of its own.
        max_workers: Slots of the embedded cluster, or limit of calls at once on a cluster; None
            takes all there are.
        initializer: Called in each executor process before its first call.
        initargs: Its arguments.

    Raises:
        ValueError: ``max_workers`` is not positive.
        TypeError: ``initializer`` is not callable, or the address no text.
        HeadUnavailable: no head answers at the address.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        max_workers: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        check_address(address, "max_workers")
        _check_settings(max_workers, initializer)
        context.refuse_in_executor()
        self.runtime, is_own = _runtime_for(address, max_workers)
        self._session = self.runtime.session
        self._max_workers = max_workers or self.runtime.count_slots()
        is_embedded = not self.runtime.address
        self._retries = 0 if is_embedded else self._session.default_retries
        is_strict = max_workers is not None and not (is_own and is_embedded)
        self._limit = max_workers if is_strict else None
        self._windows = Windows(self._max_workers, is_strict)
        given = (initializer, initargs) if initializer is not None else None
        self._classes = CallClasses(self._session, self._retries, given)
        self._broken: str | None = None
        self._is_shutdown = False
        self._frees_itself = False
        self._lock = threading.Lock()
        self._drained = threading.Condition(self._lock)
        self._pending: deque[_Work] = deque()
        self._in_flight = 0
        self._out: set[TaskRef[Any]] = set()
        self._maps: set[MapJobThread] = set()
        self._resolver: Resolver | None = None
        self._finalizer = weakref.finalize(self, _close_beside, self.runtime) if is_own else None
        _live.add(self)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Schedule ``fn(*args, **kwargs)``; its arguments are pickled before this returns.

        Raises:
            RuntimeError: after `shutdown`, or while the interpreter ends.
            BrokenExecutor: the initializer failed.
        """
        future: Future[T] = Future()
        try:
            entry, call_args, kind = self._classes.entry_of(fn, args)
            payload = encode_call(Codec.PICKLE, call_args, kwargs)
        except Exception as error:
            with self._lock:
                self._check_open()
            future.set_exception(error)
            return future
        with self._lock:
            self._check_open()
            self._pending.append(_Work(future, entry, payload, self._windows.window_of(kind)))
            ready = self._hand_over()
        _run_all(ready)
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
    ) -> Iterator[T]:
        """Like the built-in ``map``, with all calls submitted at once and results in order.

        Args:
            fn: Called with one item of each iterable.
            *iterables: Read to the end before this returns.
            timeout: Seconds from this call after which an unfinished result raises
                TimeoutError.
            chunksize: Calls that travel together as one task. None adapts it on a cluster (see
                `rustray.map`), and is 1 on this machine: here nothing runs twice, so a process
                that dies would take the other calls of its chunk along.

        Raises:
            ValueError: ``chunksize`` is below 1.
        """
        if chunksize is None:
            if self._retries:
                return adaptive_map(self, fn, iterables, timeout)
            chunksize = 1
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout)
        calls = zip(*iterables, strict=False)
        chunks = iter(lambda: list(itertools.islice(calls, chunksize)), [])
        return _flatten(super().map(ChunkOf(fn), chunks, timeout=timeout))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and free the embedded cluster when the last one has ended.

        Args:
            wait: Return only then.
            cancel_futures: Cancel all calls that have not been handed to the cluster.
        """
        cancelled: list[Future[Any]] = []
        if wait and self._is_own_thread():
            wait = False  # a callback of ours: it would wait for its own end
        with self._lock:
            self._is_shutdown = True
            jobs = list(self._maps) if cancel_futures else []
            if cancel_futures:
                cancelled = [work.future for work in self._pending]
                self._pending.clear()
        for job in jobs:
            job.stop()
        for future in cancelled:
            if future.cancel():
                future.set_running_or_notify_cancel()
        with self._lock:
            if not wait and self._is_busy():
                self._frees_itself = True
                return
            while self._is_busy():
                self._drained.wait()
        self._release(beside=not wait)

    def cancel_running(self) -> None:
        """Cancel the calls that the cluster has; those that wait here are left alone."""
        with self._lock:
            running = list(self._out)
        if running and self._session.broken is None:
            self._session.cancel(running, force=False)

    def map_job(self, fn: Callable[..., Any], **settings: Any) -> MapJob:
        """Make a map whose calls run as those of this executor do; see `MapJob`."""
        options = {"name": function_name(fn), "max_retries": self._retries, "executor": "process"}
        called = self._classes.initialized(fn)
        return MapJob(called, options=options, at_once=self._limit, **settings)

    def begin_map(self, job: MapJobThread) -> None:
        """Start a map, which `shutdown` then waits for."""
        with self._lock:
            self._check_open()
            self._maps.add(job)
            job.thread.start()

    def end_map(self, job: MapJobThread) -> None:
        """Take note that a map has ended."""
        with self._lock:
            self._maps.discard(job)
            is_last = self._frees_itself and not self._is_busy()
            if not self._is_busy():
                self._drained.notify_all()
        if is_last:
            self._release(beside=True)

    def _is_busy(self) -> bool:
        return bool(self._in_flight or self._pending or self._maps)

    def __repr__(self) -> str:
        where = self.runtime.address or "embedded cluster"
        return f"<rustray.Executor on {where}, {self._max_workers} workers>"

    def _is_own_thread(self) -> bool:
        ident = threading.get_ident()
        resolver = self._resolver
        return ident == self._session.thread_id or (
            resolver is not None and ident == resolver.thread_id
        )

    def _check_open(self) -> None:
        if self._broken is not None:
            raise broken_pool(self._broken)
        if self._is_shutdown:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _is_exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        if self._session.broken is not None:
            raise RuntimeError(str(self._session.broken))

    def _hand_over(self) -> list[Callable[[], None]]:
        """Hand tasks to the cluster up to the window; the lock is held.

        Returns:
            What to do without the lock: resolve futures that have ended already.
        """
        ready: list[Callable[[], None]] = []
        windows = self._windows
        while self._pending and windows.load < FULL:
            future, entry, payload, window = self._pending.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                ref = self._session.submit(entry, payload)
                is_watched = ref.watch(partial(self._ended, future, window))
            except RustRayError as closed:
                ready.append(partial(future.set_exception, closed))
                continue
            self._in_flight += 1
            if not window.in_flight:
                window.restart(time.monotonic())
            windows.begin(window)
            self._out.add(ref)
            if not is_watched:
                ready.append(partial(self._resolve, future, window, ref))
        if not self._is_busy():
            self._drained.notify_all()
        return ready

    def _ended(self, future: Future[Any], window: Window, ref: TaskRef[Any]) -> None:
        """Take an outcome, on the loop thread."""
        # A user's callback may do anything, also block: not on the loop thread.
        size = len(ref._data) if type(ref._data) is bytes else 0
        may_block = future._done_callbacks or size > _BIG_RESULT_BYTES  # type: ignore[attr-defined]
        if may_block and self._resolver is None:
            # At the interpreter's end there are no new threads any more, since Python 3.12.
            with contextlib.suppress(RuntimeError):
                self._resolver = Resolver()
        if may_block and self._resolver is not None:
            self._resolver.put(partial(self._resolve, future, window, ref))
        else:
            self._resolve(future, window, ref)

    def _resolve(self, future: Future[Any], window: Window, ref: TaskRef[Any]) -> None:
        """Set the future, then hand over what its end makes room for."""
        try:
            self._set(future, ref)
        finally:
            # Whatever a user's callback or class did: the call is over.
            del future
            with self._lock:
                self._in_flight -= 1
                self._out.discard(ref)
                self._windows.end(window, time.monotonic())
                ready = self._hand_over()
                is_last = self._frees_itself and not self._is_busy()
            _run_all(ready)
            if is_last:
                self._release(beside=True)

    def _set(self, future: Future[Any], ref: TaskRef[Any]) -> None:
        value: Any = None
        error: BaseException | None = None
        if ref._state == SUCCEEDED:
            try:
                value = ref.outcome()
            except PayloadError as undecodable:
                error = undecodable
        else:
            error = error_of_call(self, ref)
        with contextlib.suppress(InvalidStateError):  # the program has set it itself
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)

    def refuse_all(self, reason: str) -> None:
        """Refuse everything from now on."""
        with self._lock:
            self._broken = self._broken or reason
            waiting = [work.future for work in self._pending]
            self._pending.clear()
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(broken_pool(reason))

    def _release(self, *, beside: bool) -> None:
        """Close the embedded cluster; beside: not in this thread, which may be its own."""
        if self._resolver is not None:
            self._resolver.stop()
        if self._finalizer is None or self._finalizer.detach() is None:
            return
        if beside:
            _close_beside(self.runtime)
        else:
            self.runtime.close()

    def wait_idle(self) -> None:
        """Wait until every submitted call has ended."""
        with self._lock:
            while self._is_busy() and self._session.broken is None:
                self._drained.wait(1.0)


def _check_settings(max_workers: int | None, initializer: object) -> None:
    if max_workers is not None and max_workers <= 0:
        raise ValueError("max_workers must be greater than 0")
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be a callable")


def _runtime_for(address: str | None, max_workers: int | None) -> tuple[context.Runtime, bool]:
    """Return (where calls run, whether it belongs to this executor)."""
    if address is None:
        present = context.current_runtime()
        if present is not None:
            return present, False
        address = os.environ.get("RUSTRAY_ADDRESS") or None
    if address is None:
        return context.start_runtime(None, num_cpus=max_workers), True
    return context.start_runtime(address), True


def _flatten(lists: Iterator[list[T]]) -> Iterator[T]:
    """Yield the items of the lists without keeping what was yielded."""
    for items in lists:
        items.reverse()
        while items:
            yield items.pop()


def _run_all(work: list[Callable[[], None]]) -> None:
    for run in work:
        run()


def _close_beside(runtime: context.Runtime) -> None:
    """Close a runtime from a thread that is neither the caller's nor its own."""
    threading.Thread(target=runtime.close, name="rustray-close", daemon=False).start()


_live: weakref.WeakSet[Executor] = weakref.WeakSet()
_is_exiting = False


def _finish_at_exit() -> None:
    """Let submitted calls end before the interpreter does, as the standard library does."""
    global _is_exiting
    _is_exiting = True
    for executor in list(_live):
        executor.wait_idle()
        executor.shutdown()


with contextlib.suppress(RuntimeError):  # imported while the interpreter ends
    # The one hook that runs before daemon threads stop; `concurrent.futures` uses it as well.
    threading._register_atexit(_finish_at_exit)  # type: ignore[attr-defined]
