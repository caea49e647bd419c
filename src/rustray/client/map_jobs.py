"""Maps that go on whether somebody asks for their results or not: each in a thread of its own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, Self, TypeVar

from rustray.client.failures import original_exception
from rustray.client.map_iterator import MapIterator, decode
from rustray.client.map_plan import Encoded, Failed
from rustray.task.spec import Codec

T = TypeVar("T")

TERMINATED: Final = "this was cut off before it had ended"


class MapJobThread:
    """A map that runs, and the thread that drives it.

    Args:
        results: Of the map.
        sink: Where they go.
        on_end: Called when all of them are there.
    """

    def __init__(
        self,
        results: MapIterator[Any],
        sink: Sink,
        on_end: Callable[[MapJobThread], None] | None = None,
    ) -> None:
        self._results = results
        self._sink = sink
        self._on_end = on_end
        self._is_stopped = False
        self.has_ended = False
        self.thread = threading.Thread(target=self._run, name="rustray-map", daemon=True)

    def stop(self) -> None:
        """End it soon: what is under way is cancelled."""
        self._is_stopped = True
        self._results.stop()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            while True:
                self._sink.add(self._results.next_batch())
        except StopIteration:
            if self._is_stopped:
                error = RuntimeError(TERMINATED)
        except BaseException as raised:
            error = RuntimeError(TERMINATED) if self._is_stopped else raised
        finally:
            self._results.close()
            self._sink.end(error)
            self.has_ended = True
            if self._on_end is not None:
                self._on_end(self)


class Sink:
    """Where the results of a job go."""

    def add(self, batch: list[Any]) -> None:
        """Take values, `Encoded` and `Failed`."""
        raise NotImplementedError

    def end(self, error: BaseException | None) -> None:
        """There are no more; the error is what the input raised."""
        raise NotImplementedError


class Arrivals(Sink, Generic[T]):
    """Results of a job in the order in which they come, for one consumer.

    Args:
        error_of: Builds what is raised for an item that failed.
        timed_out: Builds what is raised when one is not there in time.
    """

    def __init__(
        self,
        error_of: Callable[[Failed], BaseException],
        timed_out: Callable[[str], BaseException],
    ) -> None:
        self._error_of = error_of
        self._timed_out = timed_out
        self._changed = threading.Condition()
        self._batches: deque[list[Any]] = deque()
        self._values: list[Any] = []
        self._is_over = False
        self._error: BaseException | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        return self.next()

    def next(self, timeout: float | None = None) -> T:
        """Return the next result.

        Raises:
            StopIteration: there are no more.
            Exception: as `timed_out` has it; it was not there after so many seconds.
        """
        if not self._values:
            values = self._next_batch(timeout)
            values.reverse()
            self._values = values
        return value_of(self._values.pop(), self._error_of)  # type: ignore[no-any-return]

    def add(self, batch: list[Any]) -> None:
        """See `Sink`."""
        with self._changed:
            self._batches.append(batch)
            self._changed.notify()

    def end(self, error: BaseException | None) -> None:
        """See `Sink`."""
        with self._changed:
            self._error = error
            self._is_over = True
            self._changed.notify_all()

    def _next_batch(self, timeout: float | None) -> list[Any]:
        with self._changed:
            if not self._changed.wait_for(lambda: self._batches or self._is_over, timeout):
                raise self._timed_out(f"the next result was not there after {timeout:g} s")
            if self._batches:
                return self._batches.popleft()
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration


def value_of(value: Any, error_of: Callable[[Failed], BaseException]) -> Any:
    """Decode a result, or raise the error of an item that failed."""
    kind = type(value)
    if kind is Encoded:
        return decode(value)
    if kind is Failed:
        raise error_of(value)
    return value


def users_error(failed: Failed) -> BaseException:
    """Return what the user's code has raised, as the standard library has it; else our error."""
    error: BaseException | None = None
    if failed.payload is not None:
        error = original_exception(failed.payload, Codec.PICKLE)
    return error if error is not None else failed.make()
