"""`rustray.Pool`: the standard library's ``multiprocessing.Pool``, on a cluster.

Calls go through an `Executor`, maps through the engine of `rustray.map`. As in the standard library
a map goes on whether somebody asks for its results or not: a thread drives each one that runs.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any, Final, Generic, NoReturn, Self, TypeVar

from rustray.client.executor import Executor
from rustray.client.map_iterator import MapIterator
from rustray.client.map_jobs import Arrivals, MapJobThread, Sink, users_error, value_of
from rustray.client.resolver import Resolver

T = TypeVar("T")

RUN: Final = "RUN"
CLOSE: Final = "CLOSE"
TERMINATE: Final = "TERMINATE"


class AsyncResult(Generic[T]):
    """What the asynchronous methods of `Pool` return, as ``multiprocessing.pool.AsyncResult``."""

    def __init__(
        self,
        callbacks: Resolver,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> None:
        self._callbacks = callbacks
        self._callback = callback
        self._error_callback = error_callback
        self._event = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None

    def ready(self) -> bool:
        """Whether the call has ended."""
        return self._event.is_set()

    def successful(self) -> bool:
        """Whether it has ended without an exception.

        Raises:
            ValueError: it has not ended.
        """
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._error is None

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it has ended, or so many seconds."""
        self._event.wait(timeout)

    def get(self, timeout: float | None = None) -> T:
        """Return the result when it is there, or raise what the call has raised.

        Raises:
            multiprocessing.TimeoutError: it was not there after so many seconds.
        """
        if not self._event.wait(timeout):
            raise PoolTimeout(f"the result was not there after {timeout:g} s")
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[no-any-return]

    def _end(self, value: Any, error: BaseException | None) -> None:
        """Take the outcome; the callback runs before anybody sees it."""
        self._value, self._error = value, error
        callback = self._callback if error is None else self._error_callback
        if callback is None:
            self._event.set()
        else:
            self._callbacks.put(partial(self._call_back, partial(callback, error or value)))

    def _call_back(self, callback: Callable[[], object]) -> None:
        try:
            callback()
        finally:
            self._event.set()

    def _take(self, future: Future[Any]) -> None:
        """Take the outcome of a future that is done."""
        try:
            error = future.exception()
        except CancelledError as cancelled:
            error = cancelled
        if isinstance(error, CancelledError):
            # No `Exception`, and nobody who knows the standard library's pool expects it.
            error = RuntimeError("the call was cancelled before it had ended")
        self._end(None if error is not None else future.result(), error)


class PoolTimeout(multiprocessing.TimeoutError, TimeoutError):
    """A result was not there in time; what it is of goes on."""


class _ListSink(Sink):
    """Collects results for an `AsyncResult`; the first error counts."""

    def __init__(self, result: AsyncResult[list[Any]]) -> None:
        self._result = result
        self._values: list[Any] = []
        self._error: BaseException | None = None

    def add(self, batch: list[Any]) -> None:
        """See `Sink`."""
        if self._error is None:
            try:
                self._values.extend(value_of(value, users_error) for value in batch)
            except BaseException as error:
                self._error = error

    def end(self, error: BaseException | None) -> None:
        """See `Sink`."""
        self._result._end(self._values, self._error or error)


class IMapIterator(Arrivals[T]):
    """What `Pool.imap` returns: an iterator whose ``next`` takes a timeout."""

    def __init__(self) -> None:
        super().__init__(users_error, PoolTimeout)


class Pool:
    """A ``multiprocessing.Pool`` whose calls run in a cluster.

    Exceptions come as the user raised them, with the remote traceback as ``__cause__``. Where the
    standard library would hang, because a process died under a call, that call raises. On a
    cluster, calls of a lost worker run again (3 times); on this machine nothing runs twice.

    Args:
        processes: Calls at once; None takes all slots there are.
        initializer: Called in each executor process before its first call.
        initargs: Its arguments.
        maxtasksperchild: None; executors are not replaced by number of calls.
        context: Taken and ignored: executors are not started by ``multiprocessing``.
        address: As for `Executor`: a cluster, the session of `rustray.init`, or one of its own.

    Raises:
        ValueError: ``processes`` is below 1, or ``maxtasksperchild`` was given.
        TypeError: ``initializer`` is not callable.
        HeadUnavailable: no head answers at the address.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: object = None,
        *,
        address: str | None = None,
    ) -> None:
        if processes is not None and processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None:
            raise ValueError(
                "maxtasksperchild is not supported: executor processes serve everybody; free what "
                "the function holds when it returns"
            )
        arguments = tuple(initargs)
        self._executor = Executor(
            address, max_workers=processes, initializer=initializer, initargs=arguments
        )
        self._state = RUN
        self._lock = threading.Lock()
        self._jobs: set[MapJobThread] = set()
        self._callbacks = Resolver()

    # ---- calls ------------------------------------------------------------------------

    def apply(
        self,
        func: Callable[..., T],
        args: Sequence[Any] = (),
        kwds: Mapping[str, Any] | None = None,
    ) -> T:
        """Call ``func(*args, **kwds)`` in the cluster and return its result."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., T],
        args: Sequence[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[T]:
        """`apply` without waiting.

        Args:
            func, args, kwds: The call.
            callback: Called with the result, in a thread of the pool.
            error_callback: Called with the exception instead.
        """
        self._check_running()
        result: AsyncResult[T] = AsyncResult(self._callbacks, callback, error_callback)
        self._executor.submit(func, *args, **(kwds or {})).add_done_callback(result._take)
        return result

    # ---- maps -------------------------------------------------------------------------

    def map(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int | None = None
    ) -> list[T]:
        """Call ``func`` for each item and return the results in order.

        Args:
            func: The function.
            iterable: Read to the end at once.
            chunksize: Items that travel together; None adapts it, see `rustray.map`.
        """
        return self.map_async(func, iterable, chunksize).get()

    def map_async(
        self,
        func: Callable[[Any], T],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[list[T]]:
        """`map` without waiting; see `apply_async` for the callbacks."""
        return self._collect(func, iterable, chunksize, (callback, error_callback), is_star=False)

    def starmap(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
    ) -> list[T]:
        """`map` with items that are the arguments: ``func(*item)``."""
        return self.starmap_async(func, iterable, chunksize).get()

    def starmap_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[list[T]]:
        """`starmap` without waiting."""
        return self._collect(func, iterable, chunksize, (callback, error_callback), is_star=True)

    def imap(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int | None = None
    ) -> IMapIterator[T]:
        """`map` as an iterator.

        As in the standard library the pool reads the input and runs the calls whether results
        are asked for or not; `rustray.map` reads no further than its consumer needs.
        """
        return self._iterate(func, iterable, chunksize, is_ordered=True)

    def imap_unordered(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int | None = None
    ) -> IMapIterator[T]:
        """`imap` with results in the order in which they end."""
        return self._iterate(func, iterable, chunksize, is_ordered=False)

    # ---- the end ----------------------------------------------------------------------

    def close(self) -> None:
        """Take no more calls; what was handed in goes on."""
        if self._state == RUN:
            self._state = CLOSE

    def terminate(self) -> None:
        """Take no more calls, and cancel what has not ended."""
        with self._lock:
            self._state = TERMINATE
            jobs = list(self._jobs)
        for job in jobs:
            job.stop()
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._executor.cancel_running()

    def join(self) -> None:
        """Wait for the end of everything, after `close` or `terminate`.

        Raises:
            ValueError: the pool has not been closed.
        """
        if self._state == RUN:
            raise ValueError("Pool is still running")
        with self._lock:
            jobs = list(self._jobs)
        for job in jobs:
            job.thread.join()
        self._executor.shutdown(wait=True)
        self._callbacks.stop()

    def __enter__(self) -> Self:
        self._check_running()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.terminate()

    def __reduce__(self) -> NoReturn:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __repr__(self) -> str:
        return f"<rustray.Pool state={self._state} on {self._executor!r}>"

    # ---- inside -----------------------------------------------------------------------

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")

    def _collect(
        self,
        func: Callable[..., T],
        iterable: Iterable[Any],
        chunksize: int | None,
        callbacks: tuple[Any, Any],
        *,
        is_star: bool,
    ) -> AsyncResult[list[T]]:
        self._check_running()
        items = list(iterable)
        result: AsyncResult[list[T]] = AsyncResult(self._callbacks, *callbacks)
        source = iter(map(tuple, items) if is_star else items)
        self._start(func, source, chunksize, _ListSink(result), is_star=is_star)
        return result

    def _iterate(
        self,
        func: Callable[[Any], T],
        iterable: Iterable[Any],
        chunksize: int | None,
        *,
        is_ordered: bool,
    ) -> IMapIterator[T]:
        self._check_running()
        results: IMapIterator[T] = IMapIterator()
        self._start(func, iter(iterable), chunksize, results, is_ordered=is_ordered)
        return results

    def _start(
        self,
        func: Callable[..., Any],
        source: Iterator[Any],
        chunksize: int | None,
        sink: Sink,
        *,
        is_star: bool = False,
        is_ordered: bool = True,
    ) -> None:
        if chunksize is not None and chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize}")
        map_job = self._executor.map_job(
            func, is_star=is_star, is_ordered=is_ordered, chunk_size=chunksize
        )
        job = MapJobThread(MapIterator(map_job, source, runtime=self._executor.runtime), sink)
        with self._lock:
            self._check_running()
            self._jobs = {other for other in self._jobs if not other.has_ended}
            self._jobs.add(job)
            job.thread.start()
