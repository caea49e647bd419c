"""`rustray.progress`: how far something is, in a terminal or a notebook."""

from __future__ import annotations

import operator
import sys
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, Self, TextIO, TypeVar, overload

from rustray.client.refs import TaskRef
from rustray.client.waiters import ThreadWaiter
from rustray.client.waiting import _check_may_block

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

T = TypeVar("T")

DRAW_EVERY_S: Final = 0.1
LINE_EVERY_S: Final = 10.0


class Bar(Protocol):
    """Something that shows how far it is."""

    def draw(self, count: int) -> None:
        """Show that so many are done."""

    def close(self, count: int) -> None:
        """Show the last state, and leave it there."""


class Progress(Generic[T]):
    """What `progress` returns: the items of what it was given, counted as they come.

    Attributes:
        count: How many have come.
    """

    def __init__(
        self,
        source: Iterator[T] | AsyncIterator[T],
        bar: Bar | None,
    ) -> None:
        self.count = 0
        self._source = source
        self._bar = bar
        self._draw_at_s = 0.0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        try:
            value = next(self._source)  # type: ignore[arg-type]
        except BaseException as error:
            self._failed(error)
            raise
        self._step()
        return value

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            value = await anext(self._source)  # type: ignore[arg-type]
        except BaseException as error:
            self._failed(error)
            raise
        self._step()
        return value

    def close(self) -> None:
        """Leave the bar as it is; idempotent."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close(self.count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _failed(self, error: BaseException) -> None:
        """An item of a map that failed counts; after anything else there is no more."""
        if getattr(error, "item_index", None) is not None:
            self._step()
        else:
            self.close()

    def _step(self) -> None:
        self.count += 1
        if self._bar is not None and (now := time.monotonic()) >= self._draw_at_s:
            self._draw_at_s = now + DRAW_EVERY_S
            self._bar.draw(self.count)


@overload
def progress(
    items: AsyncIterable[T],
    *,
    total: int | None = None,
    desc: str = "",
    show: bool | None = None,
    file: TextIO | None = None,
) -> Progress[T]: ...
@overload
def progress(
    items: Iterable[T],
    *,
    total: int | None = None,
    desc: str = "",
    show: bool | None = None,
    file: TextIO | None = None,
) -> Progress[T]: ...
def progress(
    items: Any,
    *,
    total: int | None = None,
    desc: str = "",
    show: bool | None = None,
    file: TextIO | None = None,
) -> Progress[Any]:
    """Go through items and show how far it is.

    It goes around whatever is iterated: ``for result in progress(rustray.map(fn, items))``.

    Args:
        items: Anything to iterate, `rustray.map` and `rustray.amap` included. A list of task
            references gives these in the order in which the tasks end.
        total: How many there will be; None asks the items, which may not know.
        desc: What the bar is about.
        show: None shows a bar in terminals and notebooks and nothing elsewhere; True shows
            lines of text elsewhere; False shows nothing.
        file: Where to write; None writes to stderr.

    Raises:
        TypeError: it cannot be iterated.
    """
    if total is None:
        total = operator.length_hint(items, -1)
        total = None if total < 0 else total
    source: Any
    if isinstance(items, AsyncIterable):
        source = aiter(items)
    elif _are_refs(items):
        source = _ended(items)
    else:
        source = iter(items)
    return Progress(source, _bar(total, desc, show, file))


def _bar(total: int | None, desc: str, show: bool | None, file: TextIO | None) -> Bar | None:
    if show is False:
        return None
    if file is None and "ipykernel" in sys.modules and "IPython" in sys.modules:
        return NotebookBar(total, desc)
    stream = sys.stderr if file is None else file
    if stream is not None and stream.isatty():
        return TerminalBar(total, desc, stream)
    return LineBar(total, desc, stream) if show and stream is not None else None


class TerminalBar:
    """A bar of rich's; it begins at the first item."""

    def __init__(self, total: int | None, desc: str, stream: TextIO) -> None:
        self._total = total
        self._desc = desc
        self._stream = stream
        self._progress: RichProgress | None = None
        self._task: Any = None
        self._is_refused = False

    def draw(self, count: int) -> None:
        """See `Bar`."""
        if self._progress is None and not self._is_refused:
            self._start()
        if self._progress is not None:
            self._progress.update(self._task, completed=count, refresh=True)

    def close(self, count: int) -> None:
        """See `Bar`."""
        if self._progress is not None:
            # What did not say how much it was has all that came.
            total = count if self._total is None else self._total
            self._progress.update(self._task, completed=count, total=total, refresh=True)
            self._progress.stop()
            self._progress = None

    def _start(self) -> None:
        from rich.console import Console
        from rich.errors import LiveError
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        shown = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(file=self._stream),
            auto_refresh=False,
        )
        self._task = shown.add_task(self._desc, total=self._total)
        try:
            shown.start()
        except LiveError:  # another one is on this terminal: it has the line
            self._is_refused = True
            return
        self._progress = shown


class NotebookBar:
    """HTML that is replaced in place: works in every notebook, with no widgets installed."""

    def __init__(self, total: int | None, desc: str) -> None:
        self._total = total
        self._desc = desc
        self._began_s = time.monotonic()
        self._handle: Any = None

    def draw(self, count: int) -> None:
        """See `Bar`."""
        from importlib import import_module

        display: Any = import_module("IPython.display")
        shown = display.HTML(self._html(count))
        if self._handle is None:
            self._handle = display.display(shown, display_id=True)
        else:
            self._handle.update(shown)

    def close(self, count: int) -> None:
        """See `Bar`."""
        self.draw(count)

    def _html(self, count: int) -> str:
        from html import escape

        size = f' value="{count}" max="{self._total}"' if self._total else ""
        text = _words(count, self._total, "", time.monotonic() - self._began_s)
        return f"{escape(self._desc)} <progress{size}></progress> {escape(text)}"


class LineBar:
    """Lines of text, for logs: one each ten seconds, and the last."""

    def __init__(self, total: int | None, desc: str, stream: TextIO) -> None:
        self._total = total
        self._desc = desc
        self._stream = stream
        self._began_s = time.monotonic()
        self._line_at_s = self._began_s + LINE_EVERY_S

    def draw(self, count: int) -> None:
        """See `Bar`."""
        now = time.monotonic()
        if now >= self._line_at_s:
            self._line_at_s = now + LINE_EVERY_S
            self._write(count)

    def close(self, count: int) -> None:
        """See `Bar`."""
        self._write(count)

    def _write(self, count: int) -> None:
        text = _words(count, self._total, self._desc, time.monotonic() - self._began_s)
        print(text, file=self._stream, flush=True)


def _words(count: int, total: int | None, desc: str, took_s: float) -> str:
    share = f" of {total:,} ({count / total:.0%})" if total else ""
    head = f"{desc}: " if desc else ""
    return f"{head}{count:,}{share} in {took_s:.1f} s"


def _are_refs(items: object) -> bool:
    return (
        isinstance(items, Sized)
        and isinstance(items, Iterable)
        and len(items) > 0
        and all(type(item) is TaskRef for item in items)
    )


def _ended(refs: Iterable[TaskRef[Any]]) -> Iterator[TaskRef[Any]]:
    """Yield references in the order in which their tasks end, however they do."""
    arrived: deque[TaskRef[Any]] = deque()
    waiter = ThreadWaiter()
    missing: dict[TaskRef[Any], None] = {}

    def put(ref: TaskRef[Any]) -> None:
        arrived.append(ref)
        waiter.wake()

    try:
        for ref in refs:
            missing[ref] = None
            if not ref.watch(put):
                arrived.append(ref)
        while missing:
            while not arrived:
                _check_may_block(list(missing))
                waiter.sleep(None)
            ref = arrived.popleft()
            missing.pop(ref, None)
            yield ref
    finally:
        for ref in missing:
            ref.unwatch(put)
