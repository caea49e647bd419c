"""What reaches a terminal or a program: cleaned text, valid JSON, light processes."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rustray.cli
from rustray.cli.output import dumps, utc
from rustray.common.errors import PayloadError
from rustray.common.terminal import clean

DIRTY = [
    ("plain", "plain"),
    ("大 é", "大 é"),
    ("\x1b[31mred\x1b[0m", "red"),
    ("\x1b]0;title\x07x", "x"),
    ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
    ("\x1b]52;c;unterminated", ""),
    ("\x9b31mred", "red"),
    ("\x1bcreset", "reset"),
    ("a\x1b", "a\\x1b"),
    ("a\nb\tc", "a\\nb\\tc"),
    ("a\rb", "a\\rb"),
    ("a\u202eb", "a\\u202eb"),
    ("nul\0", "nul\\x00"),
    ("half\udcff", "half\\udcff"),
]


@pytest.mark.parametrize(("text", "expected"), DIRTY)
def test_text_is_cleaned_of_what_steers_a_terminal(text: str, expected: str):
    """F10: escape sequences go, other control characters are shown by their number."""
    assert clean(text) == expected


def test_lines_may_be_kept():
    """A traceback keeps its lines, and loses its colours all the same."""
    assert clean("a\n\tb\x1b[1m\x07", keep_lines=True) == "a\n\tb\\x07"


def test_whatever_a_task_returns_is_valid_json():
    """What JSON lacks becomes text, numbers or lists; NaN does not slip through."""
    value = {
        "nan": float("nan"),
        1: (1, 2),
        "bytes": b"\xff",
        "set": {2, 1},
        "time": datetime.date(2020, 1, 2),
        "complex": 1j,
    }
    assert json.loads(dumps(value), parse_constant=pytest.fail) == {
        "nan": "nan",
        "1": [1, 2],
        "bytes": "/w==",
        "set": [1, 2],
        "time": "2020-01-02",
        "complex": "1j",
    }


def test_arrays_become_lists():
    """A numpy array is shown as what it holds."""
    numpy = pytest.importorskip("numpy")
    assert json.loads(dumps(numpy.eye(2))) == [[1.0, 0.0], [0.0, 1.0]]


def test_a_bottomless_value_is_an_error():
    """Regression: it was cut in silence, and a program took that for the value."""
    value: list[object] = []
    for _ in range(10_000):
        value = [value]
    with pytest.raises(PayloadError, match="nested deeper"):
        dumps(value)


@pytest.mark.parametrize(("unix_s", "expected"), [(None, None), (0, "1970-01-01T00:00:00.000Z")])
def test_times_are_utc(unix_s: float | None, expected: str | None):
    """Times are ISO 8601 in UTC; none stays none."""
    assert utc(unix_s) == expected
    assert utc(1e300) is None


def test_head_and_worker_start_without_the_command_line_framework():
    """The long-lived processes never load typer, rich or pydantic."""
    code = (
        "import sys, rustray.cli.main, rustray.cli.serve, rustray.cli.load\n"
        "heavy = {'typer', 'click', 'rich', 'pydantic', 'grpc'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(rustray.cli.__file__).parents[2])}
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=False)
    assert found.returncode == 0, found.stderr
