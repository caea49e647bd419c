"""Count the Python calls that one task costs in the program's process, embedded.

A measure of speed that hardly depends on what else the machine does: it shows the small losses that
a benchmark hides. Compare two checkouts, each in the same environment:

    PYTHONPATH=old/src python benchmarks/calls.py --json old.json
    PYTHONPATH=new/src python benchmarks/calls.py --against old.json

Calls count, not what is done in them; how often a loop looks for events does depend on the machine,
so event loops are counted apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

import rustray

_ROUNDS: Final = 5
_LOOPS: Final = ("selectors.py", "spinning.py", "asyncio/")
_LEAST: Final = 0.2
"""Calls a task below which a function is not shown."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, print, and compare."""
    parser = argparse.ArgumentParser(prog="calls.py", description=__doc__)
    parser.add_argument("--in-flight", action="store_true", help="1,000 at a time, not one")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the counts there")
    parser.add_argument("--against", type=Path, metavar="PATH", help="show what differs from these")
    options = parser.parse_args(arguments)
    found = _count(options.in_flight)
    loops = sum(count for name, count in found.items() if any(each in name for each in _LOOPS))
    print(f"{sum(found.values()) - loops:.1f} calls a task, and {loops:.1f} of event loops")
    if options.json is not None:
        options.json.write_text(json.dumps(found))
    if options.against is not None:
        _show(json.loads(options.against.read_text()), found)
    return 0


def _count(is_in_flight: bool) -> dict[str, float]:
    """Return calls a task by function: of the round with the fewest."""
    counts: Counter[CodeType] = Counter()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            counts[frame.f_code] += 1

    threading.setprofile(note)
    sys.setprofile(note)
    rounds: list[Counter[CodeType]] = []
    tasks = 5_000 if is_in_flight else 300
    try:
        with rustray.init(num_cpus=2):
            submit = rustray.remote(_noop).remote
            _run(submit, tasks, is_in_flight)
            for _ in range(_ROUNDS):
                counts.clear()
                _run(submit, tasks, is_in_flight)
                rounds.append(counts.copy())
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    named: Counter[str] = Counter()
    for code, count in min(rounds, key=Counter.total).items():
        named[_name(code)] += count
    return {name: count / tasks for name, count in named.items()}


def _noop(_number: int = 0) -> None:
    """Do nothing."""


def _run(submit: Callable[..., Any], tasks: int, is_in_flight: bool) -> None:
    if not is_in_flight:
        for number in range(tasks):
            rustray.get(submit(number))
        return
    for _ in range(tasks // 1_000):
        rustray.get([submit(number) for number in range(1_000)])


def _name(code: CodeType) -> str:
    path = Path(code.co_filename)
    return f"{path.parent.name}/{path.name}:{code.co_name}"


def _show(before: dict[str, float], now: dict[str, float]) -> None:
    changes = {name: now.get(name, 0.0) - before.get(name, 0.0) for name in before | now}
    for name, change in sorted(changes.items(), key=lambda item: -item[1]):
        if abs(change) >= _LEAST:
            print(f"{change:+8.2f} {before.get(name, 0.0):8.2f} {now.get(name, 0.0):8.2f}  {name}")


if __name__ == "__main__":
    sys.exit(main())
