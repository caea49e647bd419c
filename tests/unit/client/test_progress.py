"""`rustray.progress`: what it shows and what it passes on."""

from __future__ import annotations

import io
import operator
import os
import pty
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

import rustray
from helpers.client_session import on_loop
from helpers.fake_head import FakeHead
from rustray.client import progress as module
from rustray.client.progress import LineBar, NotebookBar, progress


class Terminal(io.StringIO):
    """A text that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_it_passes_on_what_it_goes_around() -> None:
    """Items in order; and nothing is written where nobody looks."""
    out = io.StringIO()
    assert list(progress(range(5), file=out)) == [0, 1, 2, 3, 4]
    assert list(progress(iter("ab"), file=out, show=False)) == ["a", "b"]
    assert list(progress(range(3), file=Terminal(), show=False)) == [0, 1, 2]
    assert out.getvalue() == ""


def test_what_cannot_be_iterated_is_refused() -> None:
    """At the call."""
    with pytest.raises(TypeError, match="int"):
        progress(3)  # type: ignore[call-overload]


def test_lines_are_written_where_asked() -> None:
    """The last one always."""
    out = io.StringIO()
    assert list(progress(range(5), desc="squares", show=True, file=out)) == [0, 1, 2, 3, 4]
    assert out.getvalue().startswith("squares: 5 of 5 (100%) in 0.")
    assert out.getvalue().count("\n") == 1
    out = io.StringIO()
    assert list(progress((x for x in [1]), show=True, file=out)) == [1]
    assert out.getvalue().startswith("1 in 0.")


def test_lines_come_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock, not by the items."""
    now = 100.0
    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: now))
    out = io.StringIO()
    bar = LineBar(None, "", out)
    for second in range(25):
        now = 100.0 + second
        bar.draw(second)
    bar.close(25)
    assert [line.split()[0] for line in out.getvalue().splitlines()] == ["10", "20", "25"]


def test_a_terminal_has_a_bar() -> None:
    """On a real one: description, number and total, and the cursor comes back."""
    parent, child = pty.openpty()
    with os.fdopen(child, "w") as stream:
        assert list(progress(range(7), desc="[bold] items", file=stream)) == list(range(7))
        stream.flush()
        shown = ""
        while "\x1b[?25h" not in shown:  # the last thing that it says
            shown += os.read(parent, 100_000).decode(errors="replace")
    os.close(parent)
    assert "[bold] items" in shown
    assert "7/7" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_two_bars_at_once_do_not_hurt() -> None:
    """The inner one of two loops may go without."""
    out = Terminal()
    found = [
        (a, b)
        for a in progress(range(2), desc="outer", file=out)
        for b in progress(range(2), desc="inner", file=out)
    ]
    assert found == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert "2/2" in out.getvalue()


def test_an_error_of_the_items_closes_the_bar() -> None:
    """And passes through."""

    def source() -> Iterator[int]:
        yield 1
        raise LookupError("cut")

    out = io.StringIO()
    shown = progress(source(), show=True, file=out)
    assert next(shown) == 1
    with pytest.raises(LookupError):
        next(shown)
    assert out.getvalue().startswith("1 in")


def test_leaving_early_closes_the_bar() -> None:
    """By break, close or with."""
    out = io.StringIO()
    for value in progress(range(10), show=True, file=out):
        if value == 2:
            break
    assert out.getvalue().startswith("3 of 10 (30%)")
    with progress(range(10), show=True, file=out) as shown:
        next(shown)
    assert out.getvalue().splitlines()[1].startswith("1 of 10 (10%)")


def test_a_notebook_has_html_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """One display, updated in place, with the text escaped."""
    shown: list[str] = []

    class Handle:
        def update(self, html: str) -> None:
            shown.append(html)

    def display(html: str, display_id: bool) -> Handle:
        assert display_id
        shown.append(html)
        return Handle()

    fake: Any = types.ModuleType("IPython.display")
    fake.HTML = lambda text: text
    fake.display = display
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    assert list(progress(range(3), desc="a < b")) == [0, 1, 2]
    assert shown[0].startswith('a &lt; b <progress value="1" max="3"></progress> 1 of 3 (33%)')
    assert '<progress value="3" max="3">' in shown[-1]
    bar = NotebookBar(None, "")
    bar.draw(5)
    assert "<progress></progress> 5 in" in shown[-1]


def test_a_map_says_how_long_it_is(head: FakeHead) -> None:
    """Where its shortest input does; errors of items count, and do not end it."""
    out = io.StringIO()
    results = rustray.map(divmod, range(10), [1, 1, 0, 1])
    assert operator.length_hint(results) == 4
    shown = progress(results, show=True, file=out)
    assert [next(shown), next(shown)] == [(0, 0), (1, 0)]
    with pytest.raises(ZeroDivisionError):
        next(shown)
    assert operator.length_hint(results) == 1
    assert list(shown) == [(3, 0)]
    assert out.getvalue().startswith("4 of 4 (100%)")
    assert operator.length_hint(rustray.map(abs, (x for x in "ab")), -1) == -1


async def test_an_asynchronous_map_works_too(head: FakeHead) -> None:
    """With ``async for``."""
    out = io.StringIO()
    assert [x async for x in progress(rustray.amap(abs, range(5)), show=True, file=out)] == [
        0, 1, 2, 3, 4,
    ]  # fmt: skip
    assert out.getvalue().startswith("5 of 5 (100%)")


def test_references_come_as_their_tasks_end(head: FakeHead) -> None:
    """However they do, each once; a later one that ends first comes first."""
    square = rustray.remote(lambda x: 1 / x)
    head.hold = True
    refs = [square.remote(x) for x in (1, 0, 2)]
    shown = progress(refs, total=3)
    on_loop(lambda: head.held.reverse() or head.release(1))  # type: ignore[func-returns-value]
    assert next(shown) is refs[2]
    on_loop(head.release)
    rest = list(shown)
    assert set(rest) == {refs[0], refs[1]}
    assert list(progress(refs)) == refs
    assert list(progress([])) == []
