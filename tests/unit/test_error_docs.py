"""`docs/errors.md` names every reason code, every limit's reason, and every counter of the head."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.sources import ROOT
from rustray.common.errors import all_error_classes
from rustray.rpc.status import STATUS
from rustray.scheduler import stale

PAGE = (ROOT / "docs" / "errors.md").read_text()
NAMED = frozenset(re.findall(r"`([A-Za-z_]+)`", PAGE))
SOURCES = sorted((ROOT / "src" / "rustray").rglob("*.py"))
HEAD = [path for path in SOURCES if path.parent.name in ("head", "scheduler")]


def strings(node: ast.AST) -> Iterator[str]:
    """Yield the texts that an expression is made of."""
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


def counters(path: Path) -> Iterator[str]:
    """Yield the names of counters in a module; of those that are composed, their first part."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Subscript) and "counters" in ast.unparse(node.value):
            yield from filter(re.compile("_*[a-z][a-z_]*").fullmatch, strings(node.slice))
        elif isinstance(node, ast.Call) and "count_refused" in ast.unparse(node.func):
            yield from strings(node.args[1])


@pytest.mark.parametrize("code", sorted(all_error_classes()))
def test_the_page_has_each_code_with_its_class_and_status(code: str) -> None:
    """As they are in the tables of the source."""
    cls = all_error_classes()[code]
    assert f"| `{code}` | `{cls.__name__}` | {STATUS[cls].name} |" in PAGE


def test_the_page_names_no_other_code() -> None:
    """What is gone from the source is gone from the page."""
    listed = re.findall(r"^\| `([A-Z_]+)` \| `", PAGE, re.MULTILINE)
    assert sorted(listed) == sorted(all_error_classes())


def test_each_limit_has_a_reason_and_the_page_names_it() -> None:
    """There is no ResourceExhausted without a reason, and none that the page does not explain."""
    found: set[str] = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "ResourceExhausted"):
                continue
            reasons = [each.value for each in node.keywords if each.arg == "reason"]
            assert reasons, f"{path}:{node.lineno} has no reason"
            found.update(text for reason in reasons for text in strings(reason))
    assert {"DISK_FULL", "CALL_TASKS"} <= found <= NAMED


@pytest.mark.parametrize("path", HEAD, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_page_names_each_counter(path: Path) -> None:
    """Also those that are composed of a family and a reason."""
    for name in counters(path):
        assert name.rstrip("_") in NAMED or name == "stale_", name


def test_the_page_names_each_reason_of_a_stale_report() -> None:
    """And the families that have them."""
    assert {*stale.REASONS, "stale_reports", "stale_news", "stale_heartbeats"} <= NAMED


def test_the_page_names_each_reason_of_a_closed_stream_and_a_refused_worker() -> None:
    """As the source has them."""
    found: set[str] = set()
    for path in HEAD:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func).rpartition(".")[2]
            if name == "shut":
                found.update(strings(node.args[1]))
            elif name == "_refuse" and path.name == "membership.py":
                found.update(strings(node.args[2]))
    assert {"frame_gap", "slow_reader", "incarnation"} <= found <= NAMED
