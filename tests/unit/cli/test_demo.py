"""The demo's functions and processes."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rustray.cli import demo, demo_cluster, demo_jobs, main
from rustray.cli.demo_functions import increment, matrix_multiply, slow_square, source_statistics
from rustray.common.errors import CommunicationError


def test_statistics_count_words_and_used_identifiers(tmp_path: Path):
    """Words count everywhere, identifiers only where compiled code uses them."""
    path = tmp_path / "a.py"
    path.write_text("# word word\ndef f(alpha):\n    return alpha + beta.gamma\n")
    words, names = source_statistics(str(path))
    assert words == {"word": 2, "def": 1, "alpha": 2, "return": 1, "beta": 1, "gamma": 1}
    assert names == {"alpha": 1, "beta": 1, "gamma": 1, "f": 1}


@pytest.mark.parametrize("source", [b"def (", b"x = '\0'", b"\xff\xfe"])
def test_a_file_that_does_not_compile_has_no_identifiers(tmp_path: Path, source: bytes):
    """Odd files of the standard library's own tests do not end the demo."""
    path = tmp_path / "a.py"
    path.write_bytes(source)
    assert source_statistics(str(path))[1] == {}


def test_blocks_of_rows_give_the_product():
    """The product of lists is the same by blocks and at once, and the same as numpy's."""
    numpy = pytest.importorskip("numpy")
    left, right = [[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 10]]
    whole = matrix_multiply(left, right)
    assert matrix_multiply(left[:1], right) + matrix_multiply(left[1:], right) == whole
    assert (matrix_multiply(numpy.array(left), numpy.array(right)) == whole).all()


def test_the_small_functions_do_what_they_say():
    """The functions behind the counted tasks are right themselves."""
    assert increment(41) == 42
    assert slow_square(7, 0.0) == 49


def test_the_standard_library_is_found():
    """The input is the installed standard library, without what others installed into it."""
    files = demo_jobs.source_files()
    assert len(files) > 500
    assert not any("site-packages" in path for path in files)


def test_a_head_that_cannot_start_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A failed start carries the end of the process's log, and leaves no process behind."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        pytest.raises(CommunicationError, match="did not start"),
        demo_cluster.DemoCluster(tmp_path) as cluster,
    ):
        cluster.start_head()


def test_a_process_that_ended_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The demo does not wait for a worker that is gone."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with demo_cluster.DemoCluster(tmp_path) as cluster:
        cluster.start_worker("w", 1)
        cluster.workers["w"].wait()
        with pytest.raises(CommunicationError, match="w ended with code 1"):
            cluster.check()


def test_with_json_stdout_has_one_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """What each job did, or the error; all else that is said goes to stderr."""
    reports = [demo_jobs.JobReport("count", 3, 0.5, "all equal", Counter({"w-1": 3}))]
    answers: list[Any] = [reports, demo_jobs.WrongResult("one is missing"), reports]

    def run(_cluster: object, console: Any) -> Any:
        console.print("it works")
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(demo, "_run", run)
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: str(tmp_path / "demo"))
    assert main.run(["demo", "--json", "--keep"]) == 0
    told = capsys.readouterr()
    shown = json.loads(told.out)
    expected = {"name": "count", "tasks": 3, "seconds": 0.5, "detail": "all equal"}
    assert shown["jobs"] == [{**expected, "workers": {"w-1": 3}}]
    assert shown["directory"] == str(tmp_path / "demo")
    assert "it works" in told.err
    assert main.run(["demo", "--json"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out) == {"error": {"code": "WRONG_RESULT", "message": "one is missing"}}
    assert main.run(["demo"]) == 0
    told = capsys.readouterr()
    assert "it works" in told.out
    assert "all results right" in told.out
