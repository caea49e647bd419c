"""Where the project's sources are, parsed once."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"
PACKAGE = SRC / "rustray"
TESTS = ROOT / "tests"

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def python_files(folder: Path) -> list[Path]:
    """Return the hand-written Python files under a folder."""
    return [path for path in sorted(folder.rglob("*.py")) if "_pb2" not in path.name]


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Yield every function and class with its dotted name, outer ones first."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Definition):
            yield prefix + node.name, node
            yield from definitions(node, f"{prefix}{node.name}.")
        else:
            yield from definitions(node, prefix)


def place(path: Path, name: str) -> str:
    """Name a definition for a message or an allow-list: ``src/rustray/x.py::Class.method``."""
    return f"{path.relative_to(ROOT).as_posix()}::{name}"
