"""Cores decide, shells do."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from helpers.sources import PACKAGE, parsed, python_files

_CORES = [
    *python_files(PACKAGE / "common"),
    *python_files(PACKAGE / "task"),
    *python_files(PACKAGE / "scheduler"),
    *python_files(PACKAGE / "coordination"),
    PACKAGE / "worker" / "manager.py",
    PACKAGE / "worker" / "reconnect.py",
]

_ASYNC = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)


@pytest.mark.parametrize("path", _CORES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_core_has_nothing_async(path: Path) -> None:
    """A core is plain functions: nothing in it can wait."""
    lines = [node.lineno for node in ast.walk(parsed(path)) if isinstance(node, _ASYNC)]
    assert lines == []


@pytest.mark.parametrize(
    "path",
    [path for path in python_files(PACKAGE) if path.name == "__init__.py"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_sub_packages_are_only_namespaces(path: Path) -> None:
    """An ``__init__.py`` below the root holds a docstring, so importing one module loads one."""
    if path == PACKAGE / "__init__.py":
        return  # the lazy root; test_imports holds it
    if path == PACKAGE / "testing" / "__init__.py":
        return  # what users import; nothing else in rustray imports any of it
    body = parsed(path).body
    assert [type(node).__name__ for node in body] in ([], ["Expr"])
