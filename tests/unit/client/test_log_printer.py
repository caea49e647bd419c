"""Showing a program what its tasks print, from a thread."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from helpers.waiting import aeventually, eventually
from rustray.client import log_printer
from rustray.client.log_printer import LogPrinter, settle, show_logs
from rustray.common.errors import AuthorizationError, HeadUnavailable
from rustray.rpc.api import HeadApi, LogPage
from rustray.task.output import LogRecord


def record(data: bytes, pid: int = 1) -> LogRecord:
    """Something that a task has printed."""
    return LogRecord("t", 1, "stdout", data, 0.0, "w1-0123abcd", pid, "square")


def catch(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return what the program's stdout has; not a fixture, for pytest puts its own back."""
    made = io.StringIO()
    monkeypatch.setattr(sys, "stdout", made)
    return made


def test_lines_are_shown_at_once_and_the_rest_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread before the first; folded lines and a line without an end are not lost."""
    out = catch(monkeypatch)
    printer = LogPrinter(names_worker=False)
    printer.close()
    assert printer._thread is None
    printer = LogPrinter(names_worker=False)
    printer.put([record(b"hello\nsame\n"), record(b"same\n", 2), record(b"same\n", 3)])
    eventually(lambda: "hello" in out.getvalue())
    printer.put([record(b"no end")])
    printer.close()
    assert out.getvalue().splitlines() == [
        "(square pid=1) hello",
        "(square pid=1) same",
        "(square pid=1) no end",
        "(square pid=3) same [repeated 2x across cluster]",
    ]


def test_a_terminal_that_stands_still_stops_the_fetching_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody waits in `put`, what waits is bounded, and the end is bounded in time."""
    monkeypatch.setattr(log_printer, "_JOIN_S", 0.05)
    monkeypatch.setattr(log_printer, "MAX_WAITING_BYTES", 100_000)
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stuck:
        monkeypatch.setattr(sys, "stdout", stuck)
        printer = LogPrinter(names_worker=False)
        printer.put([record(b"x" * 1_000 + b"\n")] * 90)
        assert not printer.is_full
        printer.put([record(b"x" * 1_000 + b"\n")] * 20)
        eventually(lambda: printer.is_full)
        printer.close()
        thread = printer._thread
        assert thread is not None
        os.set_blocking(reader, False)

        def is_over() -> bool:
            with contextlib.suppress(BlockingIOError):
                os.read(reader, 65_536)
            return not thread.is_alive()

        eventually(is_over)
    os.close(reader)


def test_a_stdout_that_is_closed_ends_the_showing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quietly: the program goes on."""
    out = catch(monkeypatch)
    printer = LogPrinter(names_worker=False)
    out.close()
    printer.put([record(b"hello\n")])
    eventually(lambda: printer._is_broken)
    printer.put([record(b"hello\n")])
    printer.close()


class Head:
    """Gives a session's output in parts; an error ends a part."""

    def __init__(self, *parts: Any) -> None:
        self.parts = list(parts)
        self.asked = 0

    async def session_logs(self, _prefix: bytes) -> AsyncIterator[LogPage]:
        self.asked += 1
        part = self.parts.pop(0)
        if isinstance(part, Exception):
            raise part
        yield LogPage((record(part),))
        if self.parts:
            raise HeadUnavailable("away")


async def test_output_goes_on_after_a_lost_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends where somebody else asks for the session, or where it is not allowed."""
    out = catch(monkeypatch)
    pauses: list[int] = []

    async def no_pause(attempt: int, _left_s: float | None) -> int:
        pauses.append(attempt)
        return attempt + 1

    monkeypatch.setattr(log_printer, "back_off", no_pause)
    printer = LogPrinter(names_worker=False)
    head = Head(b"a\n", HeadUnavailable("away"), b"b\n")
    await asyncio.wait_for(show_logs(cast("HeadApi", head), b"p", printer), 10)
    assert (head.asked, pauses) == (3, [0, 1])
    refused = Head(AuthorizationError("no"), b"c\n")
    await asyncio.wait_for(show_logs(cast("HeadApi", refused), b"p", printer), 10)
    assert refused.asked == 1
    await aeventually(lambda: "b" in out.getvalue())
    printer.close()
    assert [line[-1] for line in out.getvalue().splitlines()] == ["a", "b"]


async def test_an_end_waits_for_what_comes_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until it has been quiet for a moment, a second at most."""
    loop = asyncio.get_running_loop()
    printer = LogPrinter(names_worker=False)
    begin = loop.time()
    await settle(printer)
    assert loop.time() - begin >= log_printer.SETTLE_QUIET_S
    monkeypatch.setattr(log_printer, "SETTLE_LIMIT_S", 0.2)
    printer.heard_at = float("inf")
    await asyncio.wait_for(settle(printer), 10)


def test_where_there_can_be_no_thread_it_is_shown_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bug: Python 3.12 starts no threads once the interpreter ends, and `close` failed then."""
    out = catch(monkeypatch)
    monkeypatch.setattr(threading.Thread, "start", _refuse)
    printer = LogPrinter(names_worker=False)
    printer.put([record(b"hello\n")])
    printer.put([record(b"again\n")])
    assert out.getvalue() == ""
    printer.close()
    assert out.getvalue().splitlines() == ["(square pid=1) hello", "(square pid=1) again"]


def _refuse(_: threading.Thread) -> None:
    raise RuntimeError("can't create new thread at interpreter shutdown")
