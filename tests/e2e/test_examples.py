"""The programs in ``examples/`` that check their own results run as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("map_reduce", "('the', 120)"),
        ("tree_reduce", "sum of squares: 332833500"),
        ("parameter_sweep", "runs were not needed"),
        ("cholesky", "differs from numpy by"),
    ],
)
def test_an_example_runs(name: str, says: str) -> None:
    """It ends well, and prints what it found."""
    if name == "cholesky":
        pytest.importorskip("numpy")
    program = [sys.executable, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(program, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert says in done.stdout
