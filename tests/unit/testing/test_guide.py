"""The programs of docs/testing.md do what the page says."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from helpers.sources import ROOT
from rustray.testing import FAULTS, SimCluster

_PAGE = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
_BLOCKS = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", _PAGE, re.M | re.S))


def _tests(name: str) -> list[Callable[[], None]]:
    space: dict[str, Any] = {"__name__": name.removesuffix(".py")}
    exec(compile(_BLOCKS[name], name, "exec"), space)
    return [value for key, value in space.items() if key.startswith("test_")]


def test_the_page_has_programs() -> None:
    """All blocks of Python have a name, or they would not be run."""
    assert len(_BLOCKS) == _PAGE.count("```python") == 4


@pytest.mark.parametrize("name", sorted(_BLOCKS))
def test_a_program_of_the_page_runs(name: str) -> None:
    """The block's tests pass as they are printed."""
    tests = _tests(name)
    assert tests
    for test in tests:
        test()


def test_the_page_names_every_fault() -> None:
    """The table names what a cluster can do to itself, and what it names is there."""
    table = _PAGE.partition("| Call |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`(\w+)\(", table))
    assert all(callable(getattr(SimCluster, name)) for name in named)
    assert {fault for fault in FAULTS if fault != "one_way"} <= named
