"""Sizes: what does not fit in the head is split at a seam.

A function counts without its docstring, a class and a module count whole.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from helpers.sources import PACKAGE, Definition, definitions, parsed, place, python_files

_FUNCTION_LINES = 60
_CLASS_LINES = 300
_MODULE_LINES = 500

# place -> why it may be longer. Keep it empty; what is here has a date and a reason.
_ALLOWED: dict[str, str] = {}


def _lines(node: Definition) -> int:
    assert node.end_lineno is not None
    lines = node.end_lineno - node.lineno + 1
    first = node.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    if is_docstring and not isinstance(node, ast.ClassDef):
        assert first.end_lineno is not None
        lines -= first.end_lineno - first.lineno + 1
    return lines


@pytest.mark.parametrize(
    "path", python_files(PACKAGE), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_module_stays_within_its_budget(path: Path) -> None:
    """Module, classes and functions stay within their budgets or on the allow-list."""
    over = {}
    lines = len(path.read_text(encoding="utf-8").splitlines())
    if lines > _MODULE_LINES:
        over[place(path, "")] = lines
    for name, node in definitions(parsed(path)):
        limit = _CLASS_LINES if isinstance(node, ast.ClassDef) else _FUNCTION_LINES
        if _lines(node) > limit:
            over[place(path, name)] = _lines(node)
    assert {where: lines for where, lines in over.items() if where not in _ALLOWED} == {}
