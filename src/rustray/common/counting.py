"""Counters of what was refused: a total, and why. See docs/errors.md."""

from __future__ import annotations

from collections import Counter

from rustray.common.errors import RustRayError, reason_of


def count_refused(counters: Counter[str], family: str, error: RustRayError, count: int = 1) -> None:
    """Count a refusal: all of its family, by the error's code, and by its reason if it has one.

    Args:
        counters: Where.
        family: What was refused, e.g. "calls_refused".
        error: Why.
        count: How many at once.
    """
    counters[family] += count
    counters[f"{family}_{error.code.lower()}"] += count
    reason = reason_of(error)
    if reason:
        counters[f"{family}_{reason.lower()}"] += count
