"""What the READMEs say is true: their programs run as written, and the two are in step."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.sources import ROOT
from helpers.waiting import eventually

# The installed command, as ./install.sh puts it beside the interpreter.
_RUSTRAY = str(Path(sys.executable).with_name("rustray"))
_BLOCK = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^    (?:\./|rustray )[^#\n]*", re.MULTILINE)


def _readme(name: str = "README.md") -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _programs(name: str = "README.md") -> dict[str, str]:
    return dict(_BLOCK.findall(_readme(name)))


def _environment(folder: Path) -> dict[str, str]:
    env = {key: text for key, text in os.environ.items() if not key.startswith("RUSTRAY_")}
    env.pop("PYTHONPATH", None)  # what the README does not set must not be needed
    return {**env, "RUSTRAY_STATE_DIR": str(folder / "state")}


def _run(folder: Path, *command: str) -> str:
    answer = subprocess.run(
        command,
        cwd=folder,
        env=_environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@contextlib.contextmanager
def _started(folder: Path, name: str, *arguments: str) -> Iterator[Path]:
    """Run ``rustray NAME ...`` in the background; yield the file with its output."""
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [_RUSTRAY, name, *arguments],
            cwd=folder,
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield log
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def _write_programs(folder: Path, **replaced: str) -> None:
    for name, text in _programs().items():
        for old, new in replaced.items():
            text = text.replace(old.lstrip("_"), new)
        (folder / name).write_text(text, encoding="utf-8")


def test_readme_begins_with_the_two_commands() -> None:
    """The first lines of both READMEs are the demo and the tests."""
    for name in ("README.md", "README.zh-CN.md"):
        first, second = _readme(name).splitlines()[:2]
        assert first.split()[:2] == ["./start.sh", "demo"]
        assert second.split()[0] == "./test.sh"


def test_readmes_are_in_step() -> None:
    """Both READMEs show the same programs and the same commands, and have the same sections."""
    assert _programs("README.zh-CN.md") == _programs()
    commands = [_COMMAND.findall(_readme(name)) for name in ("README.md", "README.zh-CN.md")]
    assert [text.strip() for text in commands[0]] == [text.strip() for text in commands[1]]
    sections = [_readme(name).count("\n## ") for name in ("README.md", "README.zh-CN.md")]
    assert sections[0] == sections[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("squares.py", "[0, 1, 4, 9, 16, 25, 36, 49, 64, 81]\n1 ready, 9 to go\n"),
        ("executor.py", "1024\n249500250000\n"),
    ],
)
def test_embedded_programs_run_as_written(tmp_path: Path, program: str, said: str) -> None:
    """The programs that need no cluster run in a fresh interpreter and print what they should."""
    _write_programs(tmp_path)
    assert _run(tmp_path, sys.executable, program) == said


@pytest.mark.slow
def test_registered_functions_run_as_written(tmp_path: Path) -> None:
    """Head, worker, submit and the client program of the README work together as shown."""
    with _started(tmp_path, "head", "--port", "0") as log:
        found = eventually(
            lambda: re.search(r"rustray://127\.0\.0\.1:(\d+)", log.read_text()),
            30,
            what="the head says where it listens",
        )
        assert found is not None
        _write_programs(tmp_path, _8000=found[1])
        with _started(tmp_path, "worker", "--port", "0", "--functions", "mytasks"):
            submit = (_RUSTRAY, "submit", "matrix_multiply", "3", "3", "--wait")
            eventually(
                lambda: json.loads(_run(tmp_path, _RUSTRAY, "status", "--json"))["workers"],
                30,
                what="the worker has joined",
            )
            assert "[6.0, 9.0, 12.0]" in _run(tmp_path, *submit)
            said = _run(tmp_path, sys.executable, "client.py")
    assert "20" in said
    assert said.count("'resized'") == 3
