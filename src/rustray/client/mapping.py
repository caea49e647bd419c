"""`rustray.map` and `rustray.amap`: a function over many items, lazily."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from operator import length_hint
from typing import Any, TypeVar

from rustray.client import context
from rustray.client.map_async import AsyncMapIterator
from rustray.client.map_iterator import Function, MapIterator, MapJob

__all__ = ["AsyncMapIterator", "MapIterator", "amap", "amap_over", "map", "map_over"]

T = TypeVar("T")


def map(  # noqa: A001 - it is the map
    fn: Function[T],
    iterable: Iterable[Any],
    *more_iterables: Iterable[Any],
    ordered: bool = True,
    return_exceptions: bool = False,
    chunk_size: int | None = None,
    read_ahead: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> MapIterator[T]:
    """Like the built-in ``map``, in the cluster: call a function for each item, lazily.

    Items travel in chunks, of a size that adapts itself to about 50 ms of work. Nothing is read
    before the first result is asked for, and never more than keeps the cluster busy.

    Args:
        fn: A function, a remote function, or the name of one that workers have registered.
        iterable: The items; may be endless.
        *more_iterables: Further arguments, item by item; the shortest ends it.
        ordered: Results in the order of the items; False: as they end.
        return_exceptions: Yield the error of an item in its place, instead of raising it.
        chunk_size: Items that travel together; None adapts it.
        read_ahead: Most items to be read before their results are taken; None: some chunks.
        options: As `rustray.remote` takes. Limits of time are of a chunk, and a chunk that hits
            ``timeout_s`` is split.

    Returns:
        An iterator. It raises the error of an item at its place (an instance of the user's class,
        with ``item_index`` and the remote traceback), and goes on with the next one if asked.
        Leaving it (``close()``, ``with``, or no reference any more) cancels what is under way.

    Raises:
        TypeError: ``fn`` is no function, or an input no iterable.
        ValueError: an option, ``chunk_size`` or ``read_ahead`` out of range.
    """
    settings = {
        "ordered": ordered,
        "return_exceptions": return_exceptions,
        "chunk_size": chunk_size,
        "read_ahead": read_ahead,
        "options": options,
    }
    return map_over(None, fn, (iterable, *more_iterables), settings)


def amap(
    fn: Function[T],
    iterable: Iterable[Any] | AsyncIterable[Any],
    *more_iterables: Iterable[Any] | AsyncIterable[Any],
    ordered: bool = True,
    return_exceptions: bool = False,
    chunk_size: int | None = None,
    read_ahead: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> AsyncMapIterator[T]:
    """`map` for coroutines: ``async for result in rustray.amap(fn, items)``.

    Inputs may be asynchronous iterables too. An ``aclose()`` that was forgotten happens when the
    last reference goes.
    """
    settings = {
        "ordered": ordered,
        "return_exceptions": return_exceptions,
        "chunk_size": chunk_size,
        "read_ahead": read_ahead,
        "options": options,
    }
    return amap_over(None, fn, (iterable, *more_iterables), settings)


def map_over(
    runtime: context.Runtime | None,
    fn: Function[T],
    iterables: tuple[Iterable[Any], ...],
    settings: Mapping[str, Any],
) -> MapIterator[T]:
    """Make the iterator of `map`; see there."""
    given = dict(settings)
    returns = given.pop("return_exceptions", False)
    given["is_ordered"] = given.pop("ordered", True)
    job = MapJob(fn, is_star=len(iterables) > 1, **given)
    job.length = _length(iterables)
    return MapIterator(job, _joined(iterables), return_exceptions=returns, runtime=runtime)


def amap_over(
    runtime: context.Runtime | None,
    fn: Function[T],
    iterables: tuple[Iterable[Any] | AsyncIterable[Any], ...],
    settings: Mapping[str, Any],
) -> AsyncMapIterator[T]:
    """Make the iterator of `amap`; see there."""
    given = dict(settings)
    returns = given.pop("return_exceptions", False)
    given["is_ordered"] = given.pop("ordered", True)
    job = MapJob(fn, is_star=len(iterables) > 1, **given)
    job.length = _length(iterables)
    source: Iterator[Any] | AsyncIterator[Any]
    if any(isinstance(each, AsyncIterable) for each in iterables):
        source = _joined_async(iterables)
    else:
        source = _joined(iterables)  # type: ignore[arg-type]
    return AsyncMapIterator(job, source, return_exceptions=returns, runtime=runtime)


def _length(iterables: Iterable[object]) -> int:
    """Return how many items there will be, or a negative number."""
    known = [length for each in iterables if (length := length_hint(each, -1)) >= 0]
    return min(known, default=-1)


def _joined(iterables: tuple[Iterable[Any], ...]) -> Iterator[Any]:
    return iter(iterables[0]) if len(iterables) == 1 else zip(*iterables, strict=False)


async def _joined_async(
    iterables: tuple[Iterable[Any] | AsyncIterable[Any], ...],
) -> AsyncIterator[Any]:
    readers = [_reader(each) for each in iterables]
    is_one = len(readers) == 1
    while True:
        row = []
        for read in readers:
            try:
                row.append(await read())
            except (StopAsyncIteration, StopIteration):
                return
        yield row[0] if is_one else tuple(row)


def _reader(source: Iterable[Any] | AsyncIterable[Any]) -> Callable[[], Any]:
    if isinstance(source, AsyncIterable):
        return aiter(source).__anext__
    read_now = iter(source).__next__
    end = object()

    async def read() -> Any:
        # A StopIteration cannot leave a coroutine.
        value = next(iter(read_now, end), end)
        if value is end:
            raise StopAsyncIteration
        return value

    return read
