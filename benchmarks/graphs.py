"""What graphs of tasks cost, beside Ray and Dask.

``python benchmarks/graphs.py [--rounds N] [--systems rustray,ray]`` prints medians in seconds: a
chain of dependent tasks, a tree-reduce, and one task that takes many references. A round runs every
system once, in turn, each in a process of its own. ``--quick`` only shows that the tool works.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from suite import machine, tasks
from suite.samples import run_apart
from suite.systems import CLASSES, System

SYSTEMS: Final = ("rustray", "rustray-embedded", "ray", "dask")
_LIMIT_S: Final = 600
_CORES: Final = 2
_WIDTH: Final = 10
"""Inputs of one task of the tree."""
_GOALS: Final = {"ray": 3.0, "dask": 5.0}
"""Times as fast as these, at least."""

Figures = dict[str, float]


def main() -> int:
    """Run it, or be one sample."""
    options = _parser().parse_args()
    if options.quick:
        options.rounds, options.chain, options.leaves = 1, 20, 100
    if options.sample:
        print(json.dumps(_sample(options.sample, options.chain, options.leaves)))
        return 0
    machine.use_cores(_CORES)
    kinds = options.systems.split(",")
    samples: dict[str, list[Figures]] = {kind: [] for kind in kinds}
    for number in range(options.rounds):
        turn = number % len(kinds)
        for kind in kinds[turn:] + kinds[:turn]:
            samples[kind].append(_in_own_process(kind, options))
    show({kind: _medians(found) for kind, found in samples.items()}, options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="graphs.py", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--systems", default=",".join(SYSTEMS), help=f"of: {', '.join(SYSTEMS)}")
    parser.add_argument("--chain", type=int, default=1_000, help="tasks of the chain")
    parser.add_argument("--leaves", type=int, default=10_000, help="of the tree and the fan-in")
    parser.add_argument("--quick", action="store_true", help="small: only tries the tool out")
    parser.add_argument("--sample", choices=SYSTEMS, help=argparse.SUPPRESS)
    return parser


def _in_own_process(kind: str, options: argparse.Namespace) -> Figures:
    command = [
        sys.executable, os.path.abspath(__file__), "--sample", kind,
        "--chain", str(options.chain), "--leaves", str(options.leaves),
    ]  # fmt: skip
    return run_apart(command, _LIMIT_S)


def _medians(samples: list[Figures]) -> Figures:
    return {name: statistics.median(one[name] for one in samples) for name in samples[0]}


def _sample(name: str, length: int, leaves: int) -> Figures:
    """Measure one system in this process."""
    system = CLASSES[name](Path.cwd())
    system.load()
    system.start()
    try:
        more, add = system.prepare(tasks.more), system.prepare(tasks.add)
        fan_in = add
        if name == "dask":  # its scheduler walks arguments; a list is what its manual shows
            listed = system.prepare(tasks.add_listed)
            fan_in = lambda *refs: listed(list(refs))  # noqa: E731
        system.gather([more(0) for _ in range(20)])
        return {
            "chain s": _timed(lambda: _chain(system, more, length), length),
            "tree s": _timed(lambda: _tree(system, more, add, leaves), leaves),
            "fan-in s": _timed(lambda: _fan_in(system, more, fan_in, leaves), leaves),
        }
    finally:
        system.stop()


def _timed(run: Callable[[], int], expected: int) -> float:
    begin = time.perf_counter()
    found = run()
    taken = time.perf_counter() - begin
    assert found == expected, (found, expected)
    return taken


def _chain(system: System, more: Callable[..., Any], length: int) -> int:
    last = more(0)
    for _ in range(length - 1):
        last = more(last)
    (found,) = system.gather([last])
    return int(found)


def _tree(system: System, more: Callable[..., Any], add: Callable[..., Any], leaves: int) -> int:
    level = [more(0) for _ in range(leaves)]
    while len(level) > 1:
        level = [add(*level[at : at + _WIDTH]) for at in range(0, len(level), _WIDTH)]
    (found,) = system.gather(level)
    return int(found)


def _fan_in(system: System, more: Callable[..., Any], add: Callable[..., Any], leaves: int) -> int:
    (found,) = system.gather([add(*[more(0) for _ in range(leaves)])])
    return int(found)


def show(medians: dict[str, Figures], options: argparse.Namespace) -> None:
    """Print the table, and what is to be reached."""
    print(
        f"chain of {options.chain} tasks, tree over {options.leaves} leaves ({_WIDTH} inputs a "
        f"task), fan-in of {options.leaves} references; medians of {options.rounds} rounds, "
        "seconds; in brackets: times as fast as Ray\n"
    )
    base = medians.get("ray", {})
    columns = list(next(iter(medians.values())))
    print("| system | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for kind, found in medians.items():
        cells = [
            f"{found[name]:.3f}" + (f" ({base[name] / found[name]:.1f}x)" if base else "")
            for name in columns
        ]
        print(f"| {kind} | " + " | ".join(cells) + " |")
    print()
    own = medians.get("rustray", {})
    for peer, bound in _GOALS.items():
        for name in columns:
            if own and peer in medians:
                ratio = medians[peer][name] / own[name]
                verdict = "pass" if ratio >= bound else "FAIL"
                print(f"{name} >= {bound:g} x {peer}: {ratio:.1f} {verdict}")


if __name__ == "__main__":
    sys.exit(main())
