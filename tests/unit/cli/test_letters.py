"""``rustray tasks retry``, ``export`` and ``purge`` against a head in memory."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable

import pytest

from rustray.cli import call, main
from rustray.rpc.api import LetterCursor, LetterFilter
from rustray.task.codec import encode_call, encode_failure
from rustray.task.result import FailureInfo
from rustray.task.spec import Codec
from rustray.task.state import TaskState
from rustray.task.views import DeadLetter
from unit.cli.fake_head import ESC, FakeHead

A, B = "a" * 32, "b" * 32
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> FakeHead:
    """Return a head that every command of this test talks to."""
    fake = FakeHead()
    monkeypatch.setattr(call, "opener", fake.open)
    return fake


@pytest.fixture
def rustray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command line: (exit code, stdout, stderr)."""

    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rustray", *argv])
        code = main.run(list(argv))
        captured = capsys.readouterr()
        assert "Traceback (most recent" not in captured.err
        return code, captured.out, captured.err

    return run


def a_letter(codec: Codec, arguments: bytes | None) -> DeadLetter:
    """Make a dead letter."""
    info = FailureInfo("TASK_FAILED", f"boom {ESC}", "builtins.ValueError", "Traceback ...")
    return DeadLetter(
        A, "f", TaskState.FAILED, 0, 2, "w-1", 1.7e9, 1.7e9 + 1, codec, encode_failure(info),
        arguments,
    )  # fmt: skip


def test_retry_by_filter_goes_on_until_the_end(head: FakeHead, rustray: Run) -> None:
    """Call by call with the same horizon; one line says how many."""
    code, out, err = rustray("tasks", "retry", "--state", "failed", "--function", "f")
    assert (code, out, err) == (0, "retried 6 tasks\n", "")
    where = LetterFilter((), (TaskState.FAILED,), "f")
    assert head.asked[1:] == [
        ("retry", where, LetterCursor("", 9), False),
        ("retry", where, LetterCursor("5.0", 9), False),
    ]
    assert head.asked[0][3], "asks for a horizon first, without changing anything"


def test_retry_by_id_gives_each_its_verdict(head: FakeHead, rustray: Run) -> None:
    """An unknown id is exit code 5, the others are retried all the same."""
    head.results[A] = None  # type: ignore[assignment]
    code, out, err = rustray("tasks", "retry", A, B)
    assert (code, out) == (5, "retried 1 task\n")
    assert B in err
    assert "\x1b" not in err
    code, out, _ = rustray("tasks", "retry", A, B, "--json")
    shown = json.loads(out)
    assert (code, shown["retried"], shown["unchanged"], shown["refusal"]) == (5, 1, [], None)
    assert [(one["task_id"], one["code"]) for one in shown["errors"]] == [(B, "TASK_NOT_FOUND")]


def test_a_head_that_takes_no_more_is_exit_code_3(head: FakeHead, rustray: Run) -> None:
    """Backpressure in the middle of a retry is an error, and says how far it came."""
    head.exhausted = True
    code, _, err = rustray("tasks", "retry", "--state", "FAILED")
    assert code == 3
    assert "2 tasks were retried" in err


def test_purge_asks_or_wants_yes(
    head: FakeHead, rustray: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal it takes --yes; at one, only a yes purges."""
    code, _, err = rustray("tasks", "purge", "--state", "FAILED")
    assert code == 2
    assert "6 dead letters" in err
    assert "--yes" in err
    assert all(dry_run for _, _, _, dry_run in head.asked)
    assert rustray("tasks", "purge", "--older-than", "2h", "--yes")[:2] == (0, "purged 6 tasks\n")
    assert head.asked[-1][1] == LetterFilter(min_age_s=7200.0)
    monkeypatch.setattr("rustray.cli.letters.is_terminal", lambda _: True)
    for answer, printed in (("n\n", ""), ("\n", ""), ("yes\n", "purged 6 tasks\n")):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        assert rustray("tasks", "purge", "--function", "f")[:2] == (0, printed)


def test_there_may_be_nothing_to_purge(head: FakeHead, rustray: Run) -> None:
    """That is said and is no mistake; an id that is unknown is one, and has its own words."""
    head.per_page = 0
    code, out, err = rustray("tasks", "purge", "--state", "FAILED")
    assert (code, out) == (0, "")
    assert "no such dead letters" in err
    assert all(dry_run for _, _, _, dry_run in head.asked)
    code, out, _ = rustray("tasks", "purge", "--state", "FAILED", "--json")
    assert (code, json.loads(out)["purged"]) == (0, 0)
    assert rustray("tasks", "purge", B)[0] == 5


def test_export_prints_one_object_a_line(head: FakeHead, rustray: Run) -> None:
    """Data is decoded, a pickle and what JSON cannot say come as bytes, nothing is unpickled."""
    head.letters = [
        a_letter(Codec.JSON, b'[[1,"x"],{"k":null}]'),
        a_letter(Codec.MSGPACK, encode_call(Codec.MSGPACK, (b"raw",), {})),
        a_letter(Codec.PICKLE, b"cos\nsystem\n(S'false'\ntR."),
        a_letter(Codec.JSON, None),
    ]
    code, out, _ = rustray("tasks", "export")
    lines = [json.loads(line) for line in out.splitlines()]
    assert (code, len(lines)) == (0, 4)
    assert (lines[0]["args"], lines[0]["kwargs"], lines[0]["codec"]) == (
        [1, "x"], {"k": None}, "json",
    )  # fmt: skip
    assert lines[0]["error"]["error_type"] == "builtins.ValueError"
    assert "arguments_base64" not in lines[0]
    assert lines[1]["arguments_base64"]
    assert (lines[2]["codec"], "args" in lines[2]) == ("pickle", False)
    assert lines[2]["arguments_base64"].startswith("Y29z")
    assert lines[3]["args"] is None
    code, out, _ = rustray("tasks", "export", "--json")
    assert (code, json.loads(out), out.count("\n")) == (0, lines, 1)


def test_export_with_json_prints_one_value(head: FakeHead, rustray: Run) -> None:
    """An empty array if there is nothing; of letters that an error cuts off the error alone."""
    assert rustray("tasks", "export", "--json")[:2] == (0, "[]\n")
    head.letters = [a_letter(Codec.JSON, None)]
    head.exhausted = True
    code, out, _ = rustray("tasks", "export", "--json")
    assert (code, json.loads(out)["error"]["code"]) == (3, "RESOURCE_EXHAUSTED")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        pytest.param(("retry",), "say which tasks", id="nothing"),
        pytest.param(("purge", "--yes"), "say which tasks", id="purge-nothing"),
        pytest.param(("retry", A, "--state", "FAILED"), "give ids, or say", id="both"),
        pytest.param(("retry", "xyz"), "32 hexadecimal", id="no-id"),
        pytest.param(("export", "--state", "SUCCEEDED"), "none of FAILED", id="state"),
        pytest.param(("export", "--older-than", "soon"), "not a duration", id="age"),
    ],
)
def test_mistakes_are_exit_code_2(
    head: FakeHead, rustray: Run, argv: tuple[str, ...], said: str
) -> None:
    """A wrong line says what would be right, and touches nothing."""
    code, out, err = rustray("tasks", *argv)
    assert (code, out) == (2, "")
    assert said in err
    assert head.asked == []
