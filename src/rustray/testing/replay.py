"""Seeds: which to try, and how to try one again."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import Final

SEED_VARIABLE: Final = "RUSTRAY_SIM_SEED"


def seeds(count: int, *, first: int = 0) -> Sequence[int]:
    """Return the seeds that a test shall try.

    Args:
        count: How many.
        first: The first of them.

    Returns:
        ``first`` to ``first + count - 1``; or only the seed that the environment variable
        ``RUSTRAY_SIM_SEED`` names, as the command does that a failure prints.

    Raises:
        ValueError: the variable is set to something else than a whole number.
    """
    chosen = os.environ.get(SEED_VARIABLE)
    if not chosen:
        return range(first, first + count)
    try:
        return (int(chosen),)
    except ValueError:
        raise ValueError(f"{SEED_VARIABLE}={chosen!r} must be a whole number") from None


def replay_command(seed: int) -> str:
    """Return the command that runs the present test, or program, with a seed."""
    python = os.path.basename(sys.executable) or "python"
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    words = [python, "-m", "pytest", test] if test else [python, *sys.argv]
    return f"{SEED_VARIABLE}={seed} {shlex.join(words)}"
