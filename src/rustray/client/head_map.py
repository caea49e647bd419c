"""`HeadNode.map`: a registered function over many items, without code and without pickle."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rustray.client.submission import Submitter
from rustray.common.errors import ResourceExhausted, RustRayError, TaskNotFound
from rustray.common.ids import TaskId
from rustray.rpc.api import HeadApi
from rustray.task.result import TaskResult
from rustray.task.spec import TaskSpec

AT_ONCE: Final = 64
LONGEST_PAUSE_S: Final = 5.0
_CANCEL_WITHIN_S: Final = 5.0


@dataclass(slots=True)
class _Item:
    index: int
    task_id: TaskId | None
    waiting: asyncio.Task[Any] | None
    error: RustRayError | None


class HeadMap:
    """One map.

    Args:
        head: Where the tasks go.
        make: From an item to its task.
        items: The input; may be endless.
        at_once: Most tasks that are handed in and whose results have not been taken.
    """

    def __init__(
        self, head: MapCalls, make: Callable[[Any], TaskSpec], items: Iterator[Any], at_once: int
    ) -> None:
        if isinstance(at_once, bool) or at_once < 1:
            raise ValueError(f"at_once must be at least 1 task, not {at_once!r:.80}")
        self._head = head
        self._make = make
        self._items = items
        self._at_once = at_once
        self._next = 0
        self._is_at_end = False
        self._source_error: Exception | None = None
        self._running: deque[_Item] = deque()

    async def results(self, *, ordered: bool, return_exceptions: bool) -> AsyncIterator[Any]:
        """Yield results; see `HeadNode.map`."""
        try:
            while await self._fill():
                item = await (self._first() if ordered else self._any())
                value = await self._value_of(item)
                if item.error is not None and not return_exceptions:
                    raise item.error
                yield value
            if self._source_error is not None:
                raise self._source_error
        finally:
            await self._leave()

    async def _fill(self) -> bool:
        """Hand in more when half of what may be out has come; False if there is nothing left."""
        room = self._at_once - len(self._running)
        if not self._is_at_end and 2 * room >= self._at_once:
            specs = self._read(room)
            for answer in await self._submit(specs):
                self._running.append(self._start(answer))
        return bool(self._running)

    def _read(self, count: int) -> list[TaskSpec]:
        specs: list[TaskSpec] = []
        try:
            for item in itertools.islice(self._items, count):
                specs.append(self._make(item))
        except Exception as error:
            self._source_error = error
        self._is_at_end = len(specs) < count
        return specs

    async def _submit(self, specs: list[TaskSpec]) -> list[TaskId | RustRayError]:
        """Hand in; what the head does not take for now is handed in again when it says so."""
        answers: list[TaskId | RustRayError] = list(await self._head.submit_answers(specs))
        while True:
            again = [
                place
                for place, answer in enumerate(answers)
                if isinstance(answer, ResourceExhausted) and answer.retry_after_s > 0
            ]
            if not again:
                return answers
            first = answers[again[0]]
            assert isinstance(first, ResourceExhausted)
            await asyncio.sleep(min(first.retry_after_s, LONGEST_PAUSE_S))
            once_more = await self._head.submit_answers([specs[place] for place in again])
            for place, answer in zip(again, once_more, strict=True):
                answers[place] = answer

    def _start(self, answer: TaskId | RustRayError) -> _Item:
        index, self._next = self._next, self._next + 1
        if isinstance(answer, RustRayError):
            return _Item(index, None, None, answer)
        waiting = asyncio.create_task(self._head.get_task_result(answer))
        return _Item(index, answer, waiting, None)

    async def _first(self) -> _Item:
        item = self._running[0]
        if item.waiting is not None:
            await asyncio.wait((item.waiting,))
        return self._running.popleft()

    async def _any(self) -> _Item:
        while True:
            for item in self._running:
                if item.waiting is None or item.waiting.done():
                    self._running.remove(item)
                    return item
            waiting = [item.waiting for item in self._running if item.waiting is not None]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)

    async def _value_of(self, item: _Item) -> Any:
        """Return the value, or the error, which is then the item's too."""
        if item.waiting is not None:
            result: TaskResult | None = await item.waiting
            if result is None:
                text = f"the head does not know task {item.task_id} any more; hand it in again"
                item.error = TaskNotFound(text)
            elif result.error is None:
                return result.value
            else:
                item.error = result.error
        error = item.error
        assert error is not None
        error.item_index = item.index
        error.add_note(f"item {item.index} of the map's input")
        return error

    async def _leave(self) -> None:
        """Cancel what is out: whoever consumed the results has left, or an item has failed."""
        left = [(item.waiting, item.task_id) for item in self._running if item.waiting]
        self._running.clear()
        open_ids = [task_id for waiting, task_id in left if task_id and not waiting.done()]
        for waiting, _ in left:
            waiting.cancel()
        await asyncio.gather(*(waiting for waiting, _ in left), return_exceptions=True)
        if open_ids:
            # It is a courtesy: a head that is away must not hold up who leaves.
            with contextlib.suppress(RustRayError, TimeoutError):
                async with asyncio.timeout(_CANCEL_WITHIN_S):
                    await self._head.cancel_tasks(open_ids)


def spec_maker(
    function_name: str, is_star: bool, options: dict[str, Any]
) -> Callable[[Any], TaskSpec]:
    """Return what makes a task of an item.

    Raises:
        ValueError: the name or an option is bad.
        TypeError: there is no such option.
    """
    for taken in ("args", "kwargs", "task_id", "idempotency_key", "function_name"):
        if taken in options:
            raise ValueError(f"{taken} is each item's own: it cannot be an option of the map")
    TaskSpec(function_name, **options)
    if is_star:
        return lambda item: TaskSpec(function_name, item, **options)
    return lambda item: TaskSpec(function_name, (item,), **options)


def joined(iterables: tuple[Iterable[Any], ...]) -> Iterator[Any]:
    """Return the items: of one input as they are, of several as tuples."""
    return iter(iterables[0]) if len(iterables) == 1 else zip(*iterables, strict=False)


class MapCalls:
    """The part of `HeadNode` that maps."""

    _submitter: Submitter

    def map(
        self,
        function_name: str,
        iterable: Iterable[Any],
        *more_iterables: Iterable[Any],
        ordered: bool = True,
        return_exceptions: bool = False,
        at_once: int = AT_ONCE,
        **options: Any,
    ) -> AsyncIterator[Any]:
        """Call a registered function for each item: ``async for value in head.map(name, items)``.

        Each item is a task of its own, handed in with others in one call; nothing is pickled.
        (For many small items `rustray.map` is faster: it sends chunks.)

        Args:
            function_name: Name that workers announced.
            iterable: The first arguments; may be endless.
            *more_iterables: Further arguments; the shortest ends it.
            ordered: Results in the order of the items; False: as they end.
            return_exceptions: Yield the error of an item in its place; else it is raised, and
                ends the map.
            at_once: Most tasks that are handed in and whose results have not been taken. Leaving
                early (``aclose()``) cancels them.
            **options: Fields of `TaskSpec` for all of them.

        Raises:
            RustRayError: how an item failed; ``item_index`` is its place in the input.
            ValueError: an option is out of range.
        """
        iterables = (iterable, *more_iterables)
        make = spec_maker(function_name, len(iterables) > 1, options)
        run = HeadMap(self, make, joined(iterables), at_once)
        return run.results(ordered=ordered, return_exceptions=return_exceptions)

    async def submit_answers(self, specs: Sequence[TaskSpec]) -> list[TaskId | RustRayError]:
        """Hand in tasks; returns the id or the refusal of each."""
        return await self._submitter.submit(self._connected, specs)

    async def cancel_tasks(self, task_ids: Sequence[str]) -> None:
        """Cancel tasks with one call; those that have ended stay as they are."""
        await self._connected.cancel(list(task_ids), False)

    async def get_task_result(
        self, task_id: str, timeout_s: float | None = None
    ) -> TaskResult | None:
        """See `HeadNode.get_task_result`."""
        raise NotImplementedError

    @property
    def _connected(self) -> HeadApi:
        raise NotImplementedError
