"""Medians, ratios, and what they say about the goals."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from suite.plan import BY_NAME, GOALS, SYSTEMS, WORKLOADS, Goal

_OURS: Final = ("rustray", "rustray-embedded", "rustray-core")


@dataclass(frozen=True, slots=True)
class Cell:
    """A system on a workload.

    Attributes:
        median: Of the samples that have a value; None if none has.
        spread: Half of (largest - smallest), as a fraction of the median.
        samples: How many have a value.
        failures: Error of each that has none.
        is_fewer: It was given fewer tasks than the others.
        tasks: Largest number of tasks in a sample, 0 where that means nothing.
    """

    median: float | None
    spread: float
    samples: int
    failures: tuple[str, ...]
    is_fewer: bool
    tasks: int


Cells = Mapping[tuple[str, str], Cell]


def summarize(samples: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Cell]:
    """Return (workload, system) to cell; the samples are as in the results file."""
    grouped: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for sample in samples:
        grouped.setdefault((sample["workload"], sample["system"]), []).append(sample)
    return {key: _cell(group) for key, group in grouped.items()}


def _cell(group: list[Mapping[str, Any]]) -> Cell:
    good = [sample for sample in group if sample["value"] is not None]
    values = [float(sample["value"]) for sample in good]
    median = statistics.median(values) if values else None
    spread = (max(values) - min(values)) / 2 / median if median else 0.0
    return Cell(
        median,
        spread,
        len(values),
        tuple(sample["error"] for sample in group if sample["value"] is None),
        any(sample["figures"].get("is_fewer", False) for sample in good),
        max((sample["figures"].get("tasks", 0) for sample in good), default=0),
    )


def advantage(cells: Cells, workload: str, peer: str) -> float | None:
    """Return how many times better networked rustray is than a peer; None if not known."""
    if peer in _OURS:
        return None
    ours = cells.get((workload, "rustray"))
    theirs = cells.get((workload, peer))
    if ours is None or theirs is None or not ours.median or not theirs.median:
        return None
    ratio = ours.median / theirs.median
    return ratio if BY_NAME[workload].is_rate else 1 / ratio


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal, and what was measured; ``is_met`` is None where that was not."""

    goal: Goal
    measured: float | None
    is_met: bool | None

    @property
    def word(self) -> str:
        """One word for tables."""
        return "not measured" if self.is_met is None else "pass" if self.is_met else "FAIL"


def judge(cells: Cells) -> list[Verdict]:
    """Compare the medians with the goals."""
    return [_verdict(cells, goal) for goal in GOALS]


def _verdict(cells: Cells, goal: Goal) -> Verdict:
    cell = cells.get(goal.value)
    measured = cell.median if cell else None
    if goal.against is not None:
        base = cells.get(goal.against)
        divisor = base.median if base else None
        measured = measured / divisor if measured is not None and divisor else None
    if measured is None:
        return Verdict(goal, None, None)
    is_met = measured >= goal.bound if goal.is_least else measured <= goal.bound
    return Verdict(goal, measured, is_met)


def as_json(cells: Cells) -> dict[str, Any]:
    """Return medians, ratios and verdicts for the results file."""
    medians: dict[str, dict[str, Any]] = {}
    ratios: dict[str, dict[str, float]] = {}
    for workload in WORKLOADS:
        for system in SYSTEMS:
            cell = cells.get((workload.name, system))
            if cell is None:
                continue
            medians.setdefault(workload.name, {})[system] = cell.median
            ratio = advantage(cells, workload.name, system)
            if ratio is not None:
                ratios.setdefault(workload.name, {})[system] = round(ratio, 3)
    goals = [
        {
            "goal": verdict.goal.title,
            "bound": verdict.goal.bound,
            "unit": verdict.goal.unit,
            "kind": "at least" if verdict.goal.is_least else "at most",
            "measured": verdict.measured,
            "verdict": verdict.word,
        }
        for verdict in judge(cells)
    ]
    return {"medians": medians, "rustray_times_better_than": ratios, "goals": goals}
