"""What an `Executor` raises, and its maps in chunks that size themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError
from typing import Any, Final, Protocol, TypeVar

from rustray.client.calls import InitializerFailed
from rustray.client.context import Runtime
from rustray.client.failures import original_exception
from rustray.client.map_iterator import MapIterator, MapJob
from rustray.client.map_jobs import Arrivals, MapJobThread, users_error
from rustray.client.map_plan import Failed
from rustray.client.refs import Failure, TaskRef
from rustray.common.errors import TaskCancelled, TaskPoisoned, WorkerLost

T = TypeVar("T")

_INITIALIZER_FAILED: Final = "rustray.client.calls.InitializerFailed"


class Mapper(Protocol):
    """What a map needs of its `Executor`; see there."""

    runtime: Runtime

    def map_job(self, fn: Callable[..., Any], **settings: Any) -> MapJob:
        """Make a map whose calls run as those of the executor do."""

    def begin_map(self, job: MapJobThread) -> None:
        """Start it."""

    def end_map(self, job: MapJobThread) -> None:
        """Take note that it has ended."""

    def refuse_all(self, reason: str) -> None:
        """Refuse everything from now on."""


def adaptive_map(
    executor: Mapper,
    fn: Callable[..., T],
    iterables: tuple[Iterable[Any], ...],
    timeout_s: float | None,
) -> Iterator[T]:
    """Start all calls and return an iterator over their results; see `Executor.map`."""
    end_s = None if timeout_s is None else time.monotonic() + timeout_s
    calls = list(zip(*iterables, strict=False))
    map_job = executor.map_job(fn, is_star=True)
    results: MapIterator[T] = MapIterator(map_job, iter(calls), runtime=executor.runtime)
    arrivals: Arrivals[T] = Arrivals(lambda failed: _error_of(executor, failed), TimeoutError)
    job = MapJobThread(results, arrivals, executor.end_map)
    executor.begin_map(job)
    return _results(job, arrivals, end_s)


def broken_pool(reason: str, cause: BaseException | None = None) -> BrokenExecutor:
    """Build the error of a call under which a process has died."""
    # Imported late: it loads multiprocessing, which only a failure is worth.
    from concurrent.futures.process import BrokenProcessPool

    error = BrokenProcessPool(reason)
    error.__cause__ = cause
    return error


def error_of_call(executor: Mapper, ref: TaskRef[Any]) -> BaseException:
    """Build what the future of a call gets that did not succeed."""
    error = ref.error()
    data = ref._data
    if isinstance(data, Failure):
        original = original_exception(data.payload, ref._batch.entry.task_class.codec)
        if getattr(error, "error_type", "") == _INITIALIZER_FAILED:
            reason = f"the initializer failed in an executor process: {error}"
            executor.refuse_all(reason)
            return broken_pool(reason, original)
        if original is not None:
            return original
    if isinstance(error, WorkerLost | TaskPoisoned):
        return broken_pool(str(error), error)
    if isinstance(error, TaskCancelled):
        return CancelledError(str(error))
    return error


def _results(job: MapJobThread, arrivals: Arrivals[T], end_s: float | None) -> Iterator[T]:
    """Yield the results of a map; who leaves, or meets an error, ends it."""
    try:
        while True:
            left_s = None if end_s is None else max(end_s - time.monotonic(), 0.0)
            try:
                yield arrivals.next(left_s)
            except StopIteration:
                return
    finally:
        job.stop()


def _error_of(executor: Mapper, failed: Failed) -> BaseException:
    error = users_error(failed)
    if isinstance(error, InitializerFailed):
        reason = f"the initializer failed in an executor process: {error}"
        executor.refuse_all(reason)
        return broken_pool(reason, error)
    if isinstance(error, WorkerLost | TaskPoisoned):
        return broken_pool(str(error), error)
    if isinstance(error, StopIteration):
        return RuntimeError("a call raised StopIteration")
    return error
