"""The planted bugs apply, and the fastest test of each notices; `make planted` runs them all."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from helpers.sources import ROOT


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "planted_bugs", ROOT / "tools" / "planted_bugs.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["planted_bugs"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


TOOL = _tool()
BUGS = TOOL.load_all([])


def test_there_is_a_bug_of_each_kind() -> None:
    """B1 to B8, and no test is named for a bug that is not there."""
    kinds = {bug.name.partition("_")[0] for bug in BUGS}
    assert {f"b{number}" for number in range(1, 9)} <= kinds


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_noticed(tmp_path: Path, bug: object) -> None:
    """Its edits apply to the source as it is, and its fastest test goes red."""
    TOOL.plant(bug, tmp_path, (bug.quick,))  # type: ignore[attr-defined]


def test_an_edit_that_no_longer_applies_is_an_error(tmp_path: Path) -> None:
    """A text that is not there, or there twice, stops everything."""
    (tmp_path / "f.py").write_text("a\nb\nb\n")
    for old in ("c", "b", ""):
        with pytest.raises(TOOL.PlantError, match="and not once"):
            TOOL.Edit("f.py", old, "x").apply(tmp_path)
    with pytest.raises(TOOL.PlantError, match="0 times"):
        TOOL.Edit("gone.py", "a", "x").apply(tmp_path)


@pytest.mark.slow
def test_a_bug_that_nobody_notices_is_an_error(tmp_path: Path) -> None:
    """An edit that changes nothing leaves its test green, and that is what is said."""
    first = BUGS[0].edits[0]
    edit = TOOL.Edit(first.file, first.old, first.old)
    bug = TOOL.Bug("b0", "no bug", (edit,), BUGS[0].kills, BUGS[0].quick)
    with pytest.raises(TOOL.PlantError, match="nobody noticed"):
        TOOL.plant(bug, tmp_path, (bug.quick,))
