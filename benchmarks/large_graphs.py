"""Graphs of a million tasks: what they cost in time and memory, also over a kill -9 of the head.

    python benchmarks/large_graphs.py [--shapes layers,tree,chain,fan-in]
                                      [--where embedded,memory,full]
                                      [--nodes 1000000] [--long 10000] [--kill]

``layers``: layers of 1,000, each task takes two results of the layer before. ``tree``: half as many
leaves as ``--nodes``, added up ten at a time. ``chain`` and ``fan-in``: ``--long`` tasks, one after
the other, or all taken by one. ``embedded`` is a cluster in the own process; the others are a head
of that durability and a worker of two cores, over TLS. ``--kill`` ends the head with SIGKILL when a
third of the time that the run took before has passed, and starts another one in its place.
``--quick`` only shows that the tool works.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from suite.cluster import Cluster
from suite.samples import run_apart

import rustray

SHAPES: Final = ("layers", "tree", "chain", "fan-in")
WHERE: Final = ("embedded", "memory", "full")
_LAYER: Final = 1_000
_WIDTH: Final = 10
_LIMIT_S: Final = 3_600
Figures = dict[str, float]


@rustray.remote
def leaf(number: int) -> int:
    """Begin."""
    return number & 1


@rustray.remote
def add(*numbers: int) -> int:
    """Go on."""
    return sum(numbers) & 0xFFFF


def layers(count: int) -> tuple[list[Any], int]:
    """Hand in layers; returns the last references, and how many tasks there are."""
    width = min(_LAYER, max(count // 10, 1))
    level = [leaf.remote(number) for number in range(width)]
    for _ in range(count // width - 1):
        level = [add.remote(level[at], level[at - 1]) for at in range(width)]
    return level, count // width * width


def tree(count: int) -> tuple[list[Any], int]:
    """Hand in a tree."""
    level = [leaf.remote(number) for number in range(count // 2)]
    total = len(level)
    while len(level) > 1:
        level = [add.remote(*level[at : at + _WIDTH]) for at in range(0, len(level), _WIDTH)]
        total += len(level)
    return level, total


def chain(count: int) -> tuple[list[Any], int]:
    """Hand in a chain."""
    last: Any = leaf.remote(1)
    for _ in range(count - 1):
        last = add.remote(last)
    return [last], count


def fan_in(count: int) -> tuple[list[Any], int]:
    """Hand in many, and one that takes them all."""
    return [add.remote(*[leaf.remote(number) for number in range(count)])], count + 1


_MAKERS: Final = {"layers": layers, "tree": tree, "chain": chain, "fan-in": fan_in}


def main() -> int:
    """Run it, or be one sample."""
    options = _parser().parse_args()
    if options.quick:
        options.nodes, options.long = 2_000, 200
    if options.sample:
        print(json.dumps(sample(*options.sample.split(","))))
        return 0
    print("| graph | tasks | head | kill -9 | submit s | total s | us a task | client B | head B |")
    print("|---" * 9 + "|")
    for shape in options.shapes.split(","):
        for where in options.where.split(","):
            count = options.nodes if shape in ("layers", "tree") else options.long
            found = _in_own_process(shape, where, count, 0.0)
            _show(shape, where, found, "")
            if options.kill and where == "full":
                after_s = found["total s"] / 3
                _show(shape, where, _in_own_process(shape, where, count, after_s), "yes")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="large_graphs.py", description=__doc__)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--where", default=",".join(WHERE))
    parser.add_argument("--nodes", type=int, default=1_000_000, help="of layers and tree")
    parser.add_argument("--long", type=int, default=10_000, help="of chain and fan-in")
    parser.add_argument("--kill", action="store_true", help="also with a kill -9 of a full head")
    parser.add_argument("--quick", action="store_true", help="small: only tries the tool out")
    parser.add_argument("--sample", help=argparse.SUPPRESS)
    return parser


def _in_own_process(shape: str, where: str, count: int, kill_s: float) -> Figures:
    command = [sys.executable, os.path.abspath(__file__), "--sample"]
    command.append(f"{shape},{where},{count},{kill_s}")
    return run_apart(command, _LIMIT_S)


def _show(shape: str, where: str, found: Figures, killed: str) -> None:
    total = found["tasks"]
    cells = [shape, f"{total:,.0f}", where, killed, f"{found['submit s']:.1f}"]
    cells += [f"{found['total s']:.1f}", f"{found['total s'] / total * 1e6:.0f}"]
    cells += [f"{found[name] / total:.0f}" if name in found else "" for name in ("own", "head")]
    print(f"| {' | '.join(cells)} |", flush=True)


def sample(shape: str, where: str, count: str, kill_s: str) -> Figures:
    """Measure one graph in this process."""
    with _cluster(where) as cluster:
        rustray.get([leaf.remote(number) for number in range(100)])
        pids = {"own": os.getpid()} | ({"head": cluster.head_pid} if cluster else {})
        before = {name: _resident(pid) for name, pid in pids.items()}
        if cluster is not None and float(kill_s):
            threading.Timer(float(kill_s), cluster.replace_head).start()
            pids.pop("head")
        begin = time.perf_counter()
        ends, total = _MAKERS[shape](int(count))
        found: Figures = {"tasks": total, "submit s": time.perf_counter() - begin}
        peak = dict(before)
        while rustray.wait(ends, num_returns=len(ends), timeout=0.2)[1]:
            peak |= {name: max(peak[name], _resident(pid)) for name, pid in pids.items()}
        rustray.get(ends)
        found["total s"] = time.perf_counter() - begin
        return found | {name: peak[name] - before[name] for name in pids}


@contextmanager
def _cluster(where: str) -> Iterator[Cluster | None]:
    if where == "embedded":
        with rustray.init(num_cpus=2):
            yield None
        return
    cluster = Cluster(Path.cwd(), where)
    cluster.start(executors=2)
    try:
        with rustray.init(cluster.address):
            yield cluster
    finally:
        cluster.stop()


def _resident(pid: int) -> int:
    """Return the bytes of a process that are in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
