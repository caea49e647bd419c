"""The results of a map, as an iterator that its consumer drives.

Input is read and handed in while somebody asks for results, and nowhere else. So nothing is read
far ahead, the input is only ever touched by the consumer's own thread, and a consumer that leaves
ends it all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Generic, Self, TypeVar

from rustray.client import context, waiting
from rustray.client.failures import is_interrupt
from rustray.client.map_plan import Encoded, Failed, MapPlan
from rustray.client.map_run import MapFunction, MapRun
from rustray.client.map_tuner import ChunkTuner
from rustray.client.pauses import blocking, waiter_of
from rustray.client.remote import RemoteFunction
from rustray.client.waiters import ThreadWaiter, deadline_after
from rustray.common.errors import GetTimeout, PayloadError, RustRayError, TaskExecutionFailed
from rustray.task import pickling

T = TypeVar("T")
E = TypeVar("E", bound=RustRayError)
Function = Callable[..., T] | RemoteFunction[Any, T] | str

RESULT_KINDS: Final = (Encoded, Failed)


class MapJob:
    """What a map was asked to do, checked, and not begun.

    Args:
        fn: A function, a remote function, or the name of a registered one.
        is_star: An item is a tuple of arguments.
        is_ordered: Results in the order of the items.
        chunk_size: Items that travel together; None finds out.
        read_ahead: Most items that are read before their results are taken.
        options: As `rustray.remote` takes.
        at_once: Most chunks under way.

    Attributes:
        length: How many items there will be; negative where that is not known.
    """

    def __init__(
        self,
        fn: Function[Any],
        *,
        is_star: bool,
        is_ordered: bool = True,
        chunk_size: int | None = None,
        read_ahead: int | None = None,
        options: Mapping[str, Any] | None = None,
        at_once: int | None = None,
    ) -> None:
        self.function = MapFunction(fn, options, is_star=is_star)
        if read_ahead is not None and (isinstance(read_ahead, bool) or read_ahead < 1):
            raise ValueError(f"read_ahead must be at least 1 item, not {read_ahead!r:.80}")
        tuner = ChunkTuner(chunk_size, self.function.target_s)
        self.length = -1
        self.plan = MapPlan(
            tuner,
            self.function.rules,
            is_ordered=is_ordered,
            read_ahead=read_ahead,
            at_once=at_once,
        )

    def hint(self, held: int) -> int:
        """Return how many results are to come, for ``__length_hint__``.

        Args:
            held: Results that were taken from the plan and not given to anybody.
        """
        if self.length < 0:
            return NotImplemented  # type: ignore[no-any-return]
        return max(self.length - self.plan.items_taken + held, 0)

    def begin(self, runtime: context.Runtime | None) -> MapRun:
        """Make the run, in the runtime's session or the program's."""
        session = context.ensure_session() if runtime is None else runtime.session
        behind = context.current_runtime() if runtime is None else runtime
        self.function.take_default(session.default_retries)
        self.plan.rules = self.function.rules
        return MapRun(session, self.function, self.plan, behind)


class MapIterator(Generic[T]):
    """The results of `rustray.map`: an iterator of one thread.

    An item's error is raised at its place, and the iterator goes on with the next item if it is
    asked again. `close` (also by ``with``, and when the last reference goes) cancels what is under
    way.
    """

    def __init__(
        self,
        job: MapJob,
        source: Iterator[Any],
        *,
        return_exceptions: bool = False,
        runtime: context.Runtime | None = None,
    ) -> None:
        self._job = job
        self._source = source
        self._returns = return_exceptions
        self._runtime = runtime
        self._run: MapRun | None = None
        self._values: list[Any] = []
        self._is_closed = False

    def __iter__(self) -> Self:
        return self

    def __length_hint__(self) -> int:
        return self._job.hint(len(self._values))

    def __next__(self) -> T:
        # `next` without a limit, written out: this is what an item costs its consumer.
        run = self._run
        if run is None or run.mail.arrived or not self._values:
            self._fill(None)
        value: Any = self._values.pop()
        if type(value) in RESULT_KINDS:
            return resolve(value, self._returns)  # type: ignore[no-any-return]
        return value  # type: ignore[no-any-return]

    def next(self, timeout: float | None = None) -> T:
        """Return the next result.

        Args:
            timeout: Seconds to wait for it; None waits for ever.

        Raises:
            StopIteration: there are no more.
            GetTimeout: the time passed; ask again later.
            RustRayError: how the item failed; ``item_index`` is its place in the input.
            Exception: whatever the input raised, after the results of what came before.
        """
        value = self.next_raw(timeout)
        if type(value) in RESULT_KINDS:
            return resolve(value, self._returns)  # type: ignore[no-any-return]
        return value  # type: ignore[no-any-return]

    def next_raw(self, timeout: float | None = None) -> Any:
        """Return the next result as it is in the plan: a value, `Encoded` or `Failed`."""
        if self._run is None or self._run.mail.arrived or not self._values:
            self._fill(timeout)
        return self._values.pop()

    def next_batch(self) -> list[Any]:
        """Return the results that are there, at least one, as `next_raw` does.

        Raises:
            StopIteration: there are no more.
        """
        if self._run is None or self._run.mail.arrived or not self._values:
            self._fill(None)
        values, self._values = self._values, []
        values.reverse()
        return values

    def stop(self) -> None:
        """Have the thread that waits for results find the end, whichever thread calls."""
        self._is_closed = True
        if self._run is not None:
            self._run.mail.wake()

    def close(self) -> None:
        """Cancel what is under way and read no more; idempotent."""
        self._is_closed = True
        self._values = []
        self._source = iter(())
        if self._run is not None:
            self._run.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_run", None) is not None and self._run is not None:
            self._run.abandon()

    def _fill(self, timeout: float | None) -> None:
        """Hand in what there is room for; without values, wait until there are some."""
        if self._is_closed:
            raise StopIteration
        deadline = deadline_after(timeout)
        waiter: ThreadWaiter | None = None
        run = self._run or self._begin()
        while not self._is_closed:
            run.absorb()
            values = None if self._values else run.plan.take()
            if values is not None:
                values.reverse()
                self._values = values
            # Handed in after the results were taken, so that there is room for it.
            run.read(self._source, run.slots())
            if self._values:
                return
            if run.plan.is_exhausted:
                self._end(run)
            if run.mail.arrived or run.plan.has_results():
                continue
            if waiter is None:
                waiting._check_may_block(run.waiting_refs())
                waiter = waiter_of(run.pauses)
                run.mail.wake = waiter.wake
                continue  # something may have come before anybody was to be woken
            if not self._sleep(run, waiter, deadline):
                raise GetTimeout(f"the next result was not there after {timeout:g} s; ask again")
        raise StopIteration  # another thread has called `stop`

    def _begin(self) -> MapRun:
        run = self._job.begin(self._runtime)
        behind = run.behind
        if behind is not None:
            behind.count_slots()
        self._run = run
        return run

    @staticmethod
    def _sleep(run: MapRun, waiter: ThreadWaiter, deadline: float | None) -> bool:
        """Sleep until something has come or a pause is over; False if the deadline came first."""
        due_s = run.plan.next_due_s()
        with blocking(run.pauses):
            if due_s is None or (deadline is not None and deadline < due_s):
                return waiter.sleep(deadline)
            waiter.sleep(due_s)
        return True

    def _end(self, run: MapRun) -> None:
        self._is_closed = True
        error, run.source_error = run.source_error, None
        if error is not None:
            raise error
        raise StopIteration


def resolve(value: Encoded | Failed, returns_exceptions: bool) -> Any:
    """Decode a result, or raise (or return) the item's error."""
    try:
        if isinstance(value, Encoded):
            return decode(value)
        error: RustRayError = error_of_item(value)
    except PayloadError as undecodable:
        error = undecodable
    if returns_exceptions:
        return error
    raise error


def decode(value: Encoded) -> Any:
    """Decode a result.

    Raises:
        PayloadError: it cannot be decoded in this process.
    """
    try:
        return pickling.loads(value.data)
    except BaseException as error:  # code of the user's classes has run in there
        if is_interrupt(error):
            raise
        text = (
            f"the result of an item cannot be decoded here: {type(error).__name__}: {error}; is "
            "the class of the value importable in this program?"
        )
        raise _placed(PayloadError(text), value.index) from error


def error_of_item(failed: Failed) -> RustRayError:
    """Build the error of an item."""
    error = failed.make()
    if isinstance(error, StopIteration | StopAsyncIteration):
        # It would end the loop over the results, as if there were no more.
        ended = TaskExecutionFailed(f"{type(error).__name__}: {error}")
        ended.__cause__ = error
        error = ended
    return _placed(error, failed.index)


def _placed(error: E, index: int) -> E:
    error.item_index = index
    error.add_note(f"item {index} of the map's input")
    return error
