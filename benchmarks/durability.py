"""What durability costs: the same work at each level of the head, on this machine, in turn.

``python benchmarks/durability.py [--rounds N]`` prints medians; a round runs every level once.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from suite import tasks
from suite.cluster import Cluster

LEVELS: Final = ("memory", "process", "full")
_BURST: Final = 100_000
_ACKS: Final = 200
_EXECUTORS: Final = 2


def main() -> int:
    """Run it, or be one sample."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sample", choices=LEVELS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sample:
        print(json.dumps(sample(options.sample)))
        return 0
    found: dict[str, list[dict[str, float]]] = {level: [] for level in LEVELS}
    for number in range(options.rounds):
        for level in LEVELS[number % 3 :] + LEVELS[: number % 3]:
            with tempfile.TemporaryDirectory() as directory:
                done = subprocess.run(
                    [sys.executable, os.path.abspath(__file__), "--sample", level],
                    cwd=directory,
                    env={**os.environ, "RUSTRAY_STATE_DIR": f"{directory}/state"},
                    stdout=subprocess.PIPE,
                    text=True,
                    timeout=180,
                    check=True,
                )
            found[level].append(json.loads(done.stdout))
    show(found)
    return 0


def show(found: dict[str, list[dict[str, float]]]) -> None:
    """Print the medians, and each level's share of the speed of "memory"."""
    figures = list(found["memory"][0])
    base = {name: statistics.median(one[name] for one in found["memory"]) for name in figures}
    print("TLS + JWT; medians of", len(found["memory"]), "rounds")
    print(f"{'level':10}" + "".join(f"{name:>24}" for name in figures))
    for level, samples in found.items():
        row = f"{level:10}"
        for name in figures:
            value = statistics.median(one[name] for one in samples)
            row += (
                f"{value:>16,.1f} ({value / base[name]:4.2f})" if base[name] else f"{value:>24,.1f}"
            )
        print(row)


def sample(level: str) -> dict[str, float]:
    """Measure one level in this process's directory."""
    import rustray

    directory = Path.cwd()
    cluster = Cluster(directory, level)
    cluster.start(executors=_EXECUTORS)
    try:
        with rustray.init(cluster.address):
            function = rustray.remote(wait_for_resources=True)(tasks.noop)
            rustray.get([function.remote() for _ in range(1000)])
            return {
                "burst tasks/s": _burst(rustray, function),
                "one at a time/s": _alone(rustray, function),
                "ack us": _ack(cluster.address),
                "bare sync us": _bare_sync(directory) if level == "full" else 0.0,
            }
    finally:
        cluster.stop()


def _burst(rustray: object, function: object) -> float:
    begin = time.perf_counter()
    refs = [function.remote() for _ in range(_BURST)]  # type: ignore[attr-defined]
    rustray.get(refs)  # type: ignore[attr-defined]
    return _BURST / (time.perf_counter() - begin)


def _alone(rustray: object, function: object) -> float:
    count = 1000
    begin = time.perf_counter()
    for _ in range(count):
        rustray.get(function.remote())  # type: ignore[attr-defined]
    return count / (time.perf_counter() - begin)


def _ack(address: str) -> float:
    """Return the median time of a single unary submit, in microseconds."""
    import asyncio

    from rustray import HeadNode, TaskSpec

    async def measure() -> float:
        host, _, port = address.removeprefix("rustray://").rpartition(":")
        async with HeadNode(host, int(port)) as head:
            times = []
            for _ in range(_ACKS):
                spec = TaskSpec("nobody_has_this", wait_for_resources=True)
                begin = time.perf_counter()
                await head.submit_task(spec)
                times.append(time.perf_counter() - begin)
            return statistics.median(times) * 1e6

    return asyncio.run(measure())


def _bare_sync(directory: Path) -> float:
    """Return the median time of a bare synced commit of SQLite on the same disk."""
    db = sqlite3.connect(directory / "bare.db", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE t (x)")
    times = []
    for _ in range(_ACKS):
        begin = time.perf_counter()
        db.execute("INSERT INTO t VALUES (zeroblob(200))")
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e6


if __name__ == "__main__":
    sys.exit(main())
