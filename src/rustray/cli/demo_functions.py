"""The functions that ``rustray demo`` runs; its workers are started with this module.

Light on purpose: every executor imports it.
"""

from __future__ import annotations

import re
import time
import warnings
from collections import Counter
from types import CodeType
from typing import Any, Final

from rustray.task.functions import function

_WORD: Final = re.compile(r"[A-Za-z]{2,}")


def source_statistics(path: str) -> tuple[dict[str, int], dict[str, int]]:
    """Count the words of a Python file, and the identifiers that its functions and classes use.

    Returns:
        Word (lower case) to count, and identifier to the number of functions, classes and
        modules that use it; no identifiers for a file that does not compile.
    """
    with open(path, "rb") as opened:
        source = opened.read()
    words = Counter(_WORD.findall(source.decode("utf-8", "replace").lower()))
    names: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pending = [compile(source, path, "exec", dont_inherit=True)]
        except (SyntaxError, ValueError):
            return dict(words), {}
    while pending:
        code = pending.pop()
        names.update({*code.co_names, *code.co_varnames, *code.co_freevars})
        pending += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
    return dict(words), dict(names)


def increment(number: int) -> int:
    """Return the next number: a task as small as a task can be."""
    return number + 1


@function("matrix_multiply")
def matrix_multiply(rows: Any, matrix: Any) -> Any:
    """Multiply a block of rows by a matrix; numpy arrays, or lists of lists of numbers."""
    if isinstance(rows, list):
        columns = list(zip(*matrix, strict=True))
        return [
            [sum(map(_product, zip(row, column, strict=True))) for column in columns]
            for row in rows
        ]
    return rows @ matrix


@function("slow_square")
def slow_square(number: int, pause_s: float) -> int:
    """Wait a moment, as a task that does something would, and return the square."""
    time.sleep(pause_s)
    return number * number


def _product(pair: tuple[float, float]) -> float:
    return pair[0] * pair[1]
