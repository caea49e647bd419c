"""`RefGenerator`: what ``f.remote(...)`` of a generator task returns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Generic, TypeVar

from rustray.client import waiting
from rustray.client.pauses import blocking, pausing
from rustray.client.refs import PENDING, SUCCEEDED, TaskRef
from rustray.client.streams import Buffer
from rustray.client.waiters import LoopWaiter, ThreadWaiter, deadline_after
from rustray.common.errors import GetTimeout, PayloadError
from rustray.common.ids import TaskId

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class ItemRef(TaskRef[T_co]):
    """An item of a stream, which is here already: `rustray.get` returns it at once."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        raise PayloadError(
            "the reference of a generator's item cannot be sent inside of another value: pass it "
            "as an argument of its own, f.remote(ref), or its value, rustray.get(ref)"
        )

    def __repr__(self) -> str:
        return f"ItemRef({self._batch.entry.task_class.function}, of {self.task_id})"


class RefGenerator(Generic[T]):
    """The items of one generator task, in order, as they arrive.

    Iterate over it, with ``for`` or ``async for``: each step gives a reference to an item that is
    here already. `values` gives the items themselves. The generator on its worker runs ahead of
    that by its window, and waits then. Where it raises, the last step gives a reference whose `get`
    raises that error; the items before it stay good.

    `close`, or dropping the object, ends the generator. One consumer at a time.
    """

    __slots__ = ("__weakref__", "_buffer", "_has_failed", "_ref")
    __rustray_opaque__ = True

    def __init__(self, ref: TaskRef[Any]) -> None:
        self._ref = ref
        self._buffer: Buffer = ref._batch.buffer_of(ref._index)
        self._has_failed = False

    @property
    def task_id(self) -> TaskId:
        """32 hex digits that name the task for every client and command."""
        return self._ref.task_id

    def completed(self) -> TaskRef[int]:
        """Return the task's own reference: its value is the number of its items.

        It ends when the last item has arrived here, so somebody has to take the items.
        """
        return self._ref

    def next(self, timeout: float | None = None) -> TaskRef[T]:
        """Return the reference of the next item.

        Args:
            timeout: Seconds to wait for it; None waits for ever.

        Raises:
            StopIteration: there are no more.
            GetTimeout: the time passed; the generator goes on.
        """
        found = self._step()
        if found is not None:
            return found
        deadline = deadline_after(timeout)
        waiting._check_may_block([self._ref])
        waiter = ThreadWaiter()
        with _Waiting(self, waiter):
            while True:
                found = self._step()
                if found is not None:
                    return found
                with blocking(self._ref._batch.owner.pauses):
                    is_woken = waiter.sleep(deadline)
                if not is_woken:
                    raise GetTimeout(f"no item had come after {timeout:g} s; it goes on")

    async def anext(self, timeout: float | None = None) -> TaskRef[T]:  # noqa: ASYNC109
        """`next` for coroutines; raises StopAsyncIteration in the end."""
        try:
            found = self._step()
            if found is not None:
                return found
            deadline = deadline_after(timeout)
            waiter = LoopWaiter()
            with _Waiting(self, waiter):
                while True:
                    found = self._step()
                    if found is not None:
                        return found
                    async with pausing(self._ref._batch.owner.pauses):
                        is_woken = await waiter.sleep(deadline)
                    if not is_woken:
                        raise GetTimeout(f"no item had come after {timeout:g} s; it goes on")
        except StopIteration:
            raise StopAsyncIteration from None

    def __iter__(self) -> Iterator[TaskRef[T]]:
        return self

    def __next__(self) -> TaskRef[T]:
        return self.next()

    def __aiter__(self) -> AsyncIterator[TaskRef[T]]:
        return self

    async def __anext__(self) -> TaskRef[T]:
        return await self.anext()

    def values(self) -> Values[T]:
        """Return the items themselves, for ``for`` or ``async for``; raises where they fail."""
        return Values(self)

    def close(self) -> None:
        """End the generator, wherever it is; what has arrived and was not taken is dropped."""
        buffer = self._buffer
        if buffer.has_left or self._has_failed:
            return
        is_over = self._ref._state != PENDING and buffer.taken >= buffer.received
        buffer.leave()
        if not is_over:
            self._ref._batch.owner.reads.note(buffer)

    def __del__(self) -> None:
        buffer = getattr(self, "_buffer", None)
        if buffer is not None:
            self.close()

    def __enter__(self) -> RefGenerator[T]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise PayloadError("a stream has one consumer: send the items' values, not the generator")

    def __repr__(self) -> str:
        name = self._ref._batch.entry.task_class.function
        return f"RefGenerator({name}, {self.task_id}, {self._buffer.taken} items taken)"

    def _step(self) -> TaskRef[T] | None:
        """Return the next reference if it is here.

        Raises:
            StopIteration: there are no more.
        """
        buffer, ref = self._buffer, self._ref
        if buffer.has_left:
            raise StopIteration
        has_ended = ref._state != PENDING  # looked at first: items come before that
        item = buffer.take()
        if item is not None:
            if buffer.must_tell or (has_ended and buffer.taken == buffer.received):
                self._ref._batch.owner.reads.note(buffer)
            found: ItemRef[T] = ItemRef(ref._batch, ref._index, item)
            found._state = SUCCEEDED
            return found
        if not has_ended:
            return None
        if ref._state == SUCCEEDED or self._has_failed:
            raise StopIteration
        self._has_failed = True
        return ref


class Values(Generic[T]):
    """The items of a stream, not their references."""

    def __init__(self, refs: RefGenerator[T]) -> None:
        self._refs = refs

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return self._refs.next().outcome()

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        return (await self._refs.anext()).outcome()


class _Waiting:
    """Has a waiter woken when an item arrives, or the task ends."""

    def __init__(self, refs: RefGenerator[Any], waiter: ThreadWaiter | LoopWaiter) -> None:
        self._ref, self._buffer, self._waiter = refs._ref, refs._buffer, waiter

    def _wake(self, _ref: TaskRef[Any]) -> None:
        self._waiter.wake()

    def __enter__(self) -> None:
        self._buffer.wake = self._waiter.wake
        self._ref.watch(self._wake)

    def __exit__(self, *exc_info: object) -> None:
        self._buffer.wake = None
        self._ref.unwatch(self._wake)
