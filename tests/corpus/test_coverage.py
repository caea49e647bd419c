"""Where each case of groups C, D and G (state) of the corpus is tested, or why it is not."""

from __future__ import annotations

import ast
import re
from typing import Final

import pytest

from helpers.sources import ROOT

HERE: Final = ("test_client_api.py", "test_worker_protocol.py", "test_state.py")
CASES: Final = (
    *(f"C{number}" for number in range(1, 35)),
    *(f"D{number}" for number in range(1, 21)),
    "G12", "G13", "G14",
)  # fmt: skip
ELSEWHERE: Final[dict[str, tuple[str, ...]]] = {
    "C23": ("unit/test_notifications.py::test_a_cursor_whose_events_are_gone_is_refused_by_name",),
    "C34": (
        "e2e/test_semantics.py::test_an_error_that_cannot_travel_is_told_as_text",
        "e2e/test_semantics.py::test_an_argument_that_cannot_travel_is_named",
        "e2e/test_semantics.py::test_a_result_that_cannot_travel_is_named",
        "e2e/test_semantics.py::test_leaving_from_a_task_fails_the_task",
    ),
    "D14": ("e2e/test_semantics.py::test_a_task_may_print_megabytes",),
    "G12": (
        "unit/test_journal.py::test_a_file_that_is_not_right_is_refused",
        "unit/test_journal_files.py::test_a_directory_in_the_place_of_a_file_is_named",
    ),
    "G13": ("unit/common/test_config.py::test_a_bad_file_is_refused_with_key_place_and_range",),
}
"""Tests at another level that cover a case, wholly or in part."""
NOT_APPLICABLE: Final[dict[str, str]] = {
    "C11 quotas": "a tenant has no quota of resources; what is pending is bounded (backpressure)",
    "C9 foreign tenant": "there are no tenants; ids belong to a token's subject (test_owners)",
    "C19": "tasks have no dependencies: an argument is a value, never another task's reference",
    "C24 regular expressions": "filters are exact names; there is no pattern to explode",
    "C29": "a task brings no environment variables; executors inherit their worker's",
    "C30": "a task brings no working directory",
    "C31": "a task has no entry point: workers import what they were started with (--functions)",
    "C32": "there is one queue, it cannot be paused, and there are no tenants",
    "D11": "there are no pools: a worker asks for nothing, the head gives it what it may run",
    "D10": "a worker asks for no leases; what it is given is bounded by its cores as registered",
    "D17": "workers send no metrics with labels; a heartbeat has a fixed set of numbers",
    "D19": "results travel whole in a frame; there are no blob uploads to leave unfinished",
    "D20": "there is no blob quota; large results are bounded by result_disk_mb (test_disk)",
    "G12 NFS and 9p": "a network file system cannot be made here without root and a server",
}
"""What does not exist, and so cannot be got wrong yet."""


def _texts(name: str) -> set[str]:
    """Return all ids of cases in a module's texts: keys of tables, and docstrings."""
    tree = ast.parse((ROOT / "tests" / "corpus" / name).read_text())
    texts = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    return {found for text in texts for found in re.findall(r"\b[CDG]\d+\b", text)}


@pytest.mark.parametrize("case", CASES)
def test_each_case_is_tested_or_has_a_reason(case: str) -> None:
    """None is left out in silence."""
    is_here = any(case in _texts(name) for name in HERE)
    assert is_here or case in ELSEWHERE or case in NOT_APPLICABLE, case


@pytest.mark.parametrize("place", sorted({one for many in ELSEWHERE.values() for one in many}))
def test_the_tests_elsewhere_exist(place: str) -> None:
    """A test that is renamed or removed is missed here."""
    path, _, name = place.partition("::")
    tree = ast.parse((ROOT / "tests" / path).read_text())
    assert name in {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_what_is_not_applicable_is_not_tested_under_its_name() -> None:
    """Once it exists, its reason goes."""
    whole = {case for case in NOT_APPLICABLE if " " not in case}
    assert not whole & set().union(*map(_texts, HERE))
