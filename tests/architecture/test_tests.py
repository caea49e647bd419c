"""The tests follow their own rules."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from helpers.sources import TESTS, definitions, parsed, place, python_files

_SLEEPING_IS_ITS_JOB = TESTS / "helpers" / "waiting.py"
# A function that a test sends to the cluster may take its time; its line says so.
_MARK = "# the task's work"

_FILES = [path for path in python_files(TESTS) if path != _SLEEPING_IS_ITS_JOB]


def _sleeps(call: ast.Call) -> bool:
    target = call.func
    name = target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")
    if name != "sleep":
        return False
    argument = call.args[0] if call.args else None
    return not (isinstance(argument, ast.Constant) and argument.value == 0)


@pytest.mark.parametrize("path", _FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_sleeps_to_wait(path: Path) -> None:
    """Waiting goes through helpers.waiting; only a task's own work may sleep, and says so."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [
        f"line {node.lineno}: {lines[node.lineno - 1].strip()}"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and _sleeps(node) and _MARK not in lines[node.lineno - 1]
    ]
    assert found == []


@pytest.mark.parametrize("path", _FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_every_test_states_its_fact(path: Path) -> None:
    """Each test function has a docstring: the fact that it shows."""
    silent = [
        place(path, name)
        for name, node in definitions(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and path.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert silent == []
