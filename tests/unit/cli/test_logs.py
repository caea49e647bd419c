"""`rustray logs`: what a task has printed, for people, for files and for programs."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from rustray.cli import call, logs, main
from rustray.cli.access import Access, Target
from rustray.cli.load import Surroundings
from rustray.cli.session import HeadSession
from rustray.client.access import GivenToken
from rustray.common.errors import (
    CommunicationError,
    HeadUnavailable,
    RustRayError,
    TaskNotFound,
    WorkerNotFound,
)
from rustray.rpc.api import HeadApi, LogFilter, LogPage
from rustray.task.output import LogRecord, Stream

TASK = "ab" * 16
Run = Callable[..., tuple[int, bytes, str]]


def record(data: bytes, stream: Stream = "stdout", attempt: int = 1, dropped: int = 0) -> LogRecord:
    """Something that the task has printed."""
    return LogRecord(TASK, attempt, stream, data, 12.5, "w-1", 7, "f", dropped)


class Head:
    """Answers with pages; what is an error is raised in its place."""

    def __init__(self) -> None:
        self.pages: list[LogPage | RustRayError] = []
        self.asked: list[LogFilter] = []

    @asynccontextmanager
    async def open(self, _target: Target, _around: Surroundings) -> AsyncIterator[HeadSession]:
        access = Access("127.0.0.1:8000", None, GivenToken("t"))
        yield HeadSession(cast("HeadApi", self), access)

    async def task_logs(self, where: LogFilter) -> AsyncIterator[LogPage]:
        self.asked.append(where)
        while self.pages:
            page = self.pages.pop(0)
            if isinstance(page, RustRayError):
                raise page
            yield page


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Head:
    """A head that the command talks to."""
    fake = Head()
    monkeypatch.setattr(call, "opener", fake.open)
    return fake


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs the command: (exit code, bytes of stdout, stderr)."""

    def run(*argv: str) -> tuple[int, bytes, str]:
        out, err = io.BytesIO(), io.StringIO()
        stdout = io.TextIOWrapper(out, "utf-8", write_through=True)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            patch.setattr(sys, "stderr", err)
            patch.setattr(sys, "argv", ["rustray", "logs", *argv])
            code = main.run(["logs", *argv])
        return code, out.getvalue(), err.getvalue()

    return run


def test_into_a_pipe_goes_what_was_printed_byte_for_byte(head: Head, run: Run) -> None:
    """Both streams in order; what is missing is said beside it."""
    head.pages = [
        LogPage((record(b"\xff\x00", dropped=9), record(b"\x1b[2Jerr", "stderr")), 1, 9),
        LogPage((record(b"\r\nno end"),), 1, 20),
    ]
    assert run(TASK) == (
        0,
        b"\xff\x00\x1b[2Jerr\r\nno end",
        "9 bytes before this are not kept any more\n",
    )
    assert head.asked == [LogFilter(TASK)]


def test_a_terminal_is_not_harmed(head: Head, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """No escape sequence or control character; characters that were cut are whole again."""
    monkeypatch.setattr(logs, "is_terminal", lambda _: True)
    head.pages = [
        LogPage(
            (record(b"\x1b]0;owned\x07\x1b[31mred\x1b[0m \x9b2J\xc3"), record(b"\xa9\r\n")), 1, 1
        ),
        LogPage((record(b"10%\r20%", attempt=2),), 2, 1),
    ]
    code, out, err = run(TASK)
    assert (code, err) == (0, "attempt 2:\n")
    assert out.decode() == "red \\x9b2Jé\n10%\n20%\n"


@pytest.mark.parametrize(("flag", "shown"), [("--stdout", b"out"), ("--stderr", b"err")])
def test_one_stream_can_be_asked_for(head: Head, run: Run, flag: str, shown: bytes) -> None:
    """And an attempt; the head is asked for just that."""
    head.pages = [LogPage((record(b"out"), record(b"err", "stderr")), 3, 6)]
    assert run(TASK, flag, "--attempt", "3") == (0, shown, "")
    assert head.asked == [LogFilter(TASK, 3)]


def test_json_is_one_value_or_one_a_line(head: Head, run: Run) -> None:
    """For programs: with what a record is, and text where the bytes are some."""
    page = LogPage((record(b"\xffa\n"), record(b"b", "stderr", dropped=2)), 1, 4)
    shown = {
        "attempt": 1, "stream": "stdout", "time": "1970-01-01T00:00:12.500Z", "text": "\\xffa\n",
        "worker_id": "w-1", "pid": 7, "dropped_bytes": 0,
    }  # fmt: skip
    other = {**shown, "stream": "stderr", "text": "b", "dropped_bytes": 2}
    head.pages = [page]
    code, out, _ = run(TASK, "--json")
    assert (code, json.loads(out)) == (0, {"task_id": TASK, "records": [shown, other]})
    head.pages = [page]
    code, out, _ = run(TASK, "--json", "-f")
    assert (code, [json.loads(line) for line in out.splitlines()]) == (0, [shown, other])
    assert run(TASK, "--json")[1] == json.dumps({"task_id": TASK, "records": []}).encode() + b"\n"


def test_following_goes_on_after_a_lost_head(head: Head, run: Run) -> None:
    """From where it was, over the attempts that come."""
    head.pages = [
        LogPage((record(b"a"),), 2, 5),
        HeadUnavailable("away"),
        LogPage((record(b"b"),), 2, 6),
    ]
    assert run(TASK, "--follow")[:2] == (0, b"ab")
    assert head.asked == [
        LogFilter(TASK, follow=True),
        LogFilter(TASK, 2, 5, follow=True, goes_on=True),
    ]


def test_nothing_is_said_to_be_nothing(head: Head, run: Run) -> None:
    """On stderr, with success: a silent task is no error."""
    code, out, err = run(TASK)
    assert (code, out) == (0, b"")
    assert "has no output" in err


ERRORS: dict[str, tuple[int, RustRayError | None, tuple[str, ...]]] = {
    "no such task": (5, TaskNotFound("no task"), (TASK,)),
    "its worker is gone": (5, WorkerNotFound("which is gone"), (TASK,)),
    "its worker is away": (3, CommunicationError("cut off"), (TASK,)),
    "the head is away": (3, HeadUnavailable("no head"), (TASK,)),
    "an attempt that is none": (2, None, (TASK, "--attempt", "0")),
    "both streams only": (2, None, (TASK, "--stdout", "--stderr")),
    "no task id": (2, None, ("nonsense",)),
}


@pytest.mark.parametrize("name", ERRORS)
def test_each_mistake_has_its_exit_code(head: Head, run: Run, name: str) -> None:
    """And a sentence, as JSON where that was asked for, and no traceback."""
    code, error, argv = ERRORS[name]
    for more in ((), ("--json",)):
        head.pages = [error] if error is not None else []
        found, out, err = run(*argv, *more)
        assert found == code
        assert "Traceback" not in err
        shown: Any = json.loads(out) if more else err
        assert shown["error"]["message"] if more else shown.startswith("error: ")
