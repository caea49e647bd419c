"""``python -m chaos``: run the nemesis, or check a kept history again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from chaos import namespaces, report, soak
from chaos.checker import check
from chaos.faults import BY_NAME, MIX
from chaos.history import read
from chaos.run import RULES, Plan, draw_seed, run


def main(arguments: list[str]) -> int:
    """Run; the exit code is 0 without violations, 1 with some, 130 after Ctrl-C."""
    given = _parser().parse_args(arguments)
    if given.check is not None:
        verdict = check(read(given.check), RULES)
        print(report.of_verdict(verdict))
        return 1 if verdict.violations else 0
    if given.seed is None:
        given.seed = draw_seed()
    if not given.no_namespaces and not namespaces.is_inside() and not namespaces.missing():
        rest = [*arguments, "--seed", str(given.seed)]
        namespaces.enter(rest)
    mix = tuple(BY_NAME[name] for name in given.faults.split(",")) if given.faults else MIX
    if given.kill_heads:
        mix = (BY_NAME["kill_head"],)
    plan = Plan(
        given.seed,
        given.minutes * 60,
        given.workers,
        given.clients,
        given.in_flight,
        mix,
        given.dir,
        replay=_replay(given),
        head_kills=given.kill_heads,
        acts="batch,once,remote,keyed,visit,graph,nest" if given.kill_heads else "",
    )
    if given.soak:
        return _soak(soak.plan_of(plan), given)
    print(report.before(plan), flush=True)
    outcome = run(plan)
    print(report.after(plan, outcome), flush=True)
    if outcome.was_interrupted:
        return 130
    return 1 if outcome.verdict.violations else 0


def _soak(plan: Plan, given: argparse.Namespace) -> int:
    print(f"soak: seed {plan.seed}, {given.soak} tasks; again: {plan.replay}", flush=True)
    outcome, found = soak.run_soak(plan, given.soak, given.per_round)
    if outcome.was_interrupted or outcome.verdict.violations:
        print(report.after(plan, outcome), flush=True)
    text = soak.report(plan, outcome, found)
    print(text, flush=True)
    if given.report is not None:
        given.report.write_text(text)
    if outcome.was_interrupted:
        return 130
    return 1 if outcome.verdict.violations or found.growing() else 0


def _replay(given: argparse.Namespace) -> str:
    more = f" ARGS='--faults {given.faults}'" if given.faults else ""
    if given.kill_heads:
        return f"make chaos-heads SEED={given.seed} KILLS={given.kill_heads}"
    if given.soak:
        return f"make soak SEED={given.seed} TASKS={given.soak}"
    return f"make chaos SEED={given.seed} MINUTES={given.minutes:g}{more}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="of the plan; default: one is drawn, and printed")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long faults are injected")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--in-flight", type=int, default=120, help="open tasks of each client")
    parser.add_argument("--faults", default="", help=f"only these: {','.join(BY_NAME)}")
    parser.add_argument(
        "--kill-heads", type=int, default=0, metavar="N", help="only kill the head, N times"
    )
    parser.add_argument("--soak", type=int, default=0, metavar="TASKS", help="run in rounds")
    parser.add_argument("--per-round", type=int, default=80_000, help="tasks of a soak's round")
    parser.add_argument("--report", type=Path, help="where a soak writes what came of it")
    parser.add_argument("--dir", type=Path, help="where the run's directory is made")
    parser.add_argument("--no-namespaces", action="store_true", help="loopback only")
    parser.add_argument("--check", type=Path, metavar="DIR", help="check a kept history again")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
