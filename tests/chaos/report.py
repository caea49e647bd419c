"""What a run prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from chaos.checker import Verdict, reasons

if TYPE_CHECKING:
    from chaos.run import Outcome, Plan

_SHOWN: Final = 25


def before(plan: Plan) -> str:
    """Say what begins."""
    return (
        f"chaos: seed {plan.seed}, {plan.seconds:g} s of faults, {plan.workers} workers, "
        f"{plan.clients} clients; again: {plan.replay}"
    )


def after(plan: Plan, outcome: Outcome) -> str:
    """Say what came of it."""
    lines = ["", f"faults: {_shown(outcome.faults)}"]
    lines += [f"SKIPPED {name}: {why}" for name, why in outcome.skipped.items()]
    lines.append(of_verdict(outcome.verdict))
    if outcome.was_interrupted:
        lines.append(f"interrupted after {outcome.seconds:.0f} s; nothing was checked")
    elif outcome.verdict.violations:
        lines.append(f"FAILED with seed {plan.seed}; again: {plan.replay}")
        lines.append(f"histories and logs: {outcome.directory}")
    else:
        lines.append(
            f"no violation; seed {plan.seed}, {sum(outcome.faults.values())} faults, "
            f"{len(outcome.skipped)} kinds skipped, {outcome.seconds:.0f} s"
        )
    return "\n".join(lines)


def of_verdict(verdict: Verdict) -> str:
    """Show figures and violations."""
    figures = [f"  {name}: {count}" for name, count in sorted(verdict.figures.items())]
    lines = ["figures:", *figures]
    if verdict.violations:
        lines.append(f"VIOLATIONS: {_shown(reasons(verdict.violations))}")
        lines += [f"  {violation}" for violation in verdict.violations[:_SHOWN]]
        more = len(verdict.violations) - _SHOWN
        lines += [f"  and {more} more"] if more > 0 else []
    return "\n".join(lines)


def _shown(counts: Mapping[str, int] | Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
