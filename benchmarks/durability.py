"""What durability costs: the same work at each level of the head, on this machine, in turn.

``python benchmarks/durability.py [--rounds N]`` prints medians; a round runs every level once,
a restart of a head with a long queue, and Celery with a Redis that syncs each write
(``--without-celery`` leaves that out; it needs redis-server).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from suite import tasks
from suite.cluster import Cluster
from suite.samples import environment

import rustray

LEVELS: Final = ("memory", "process", "full")
RESTART: Final = "restart"
CELERY: Final = "celery"
_BURST: Final = 100_000
_ALONE: Final = 1000
_ACKS: Final = 200
_EXECUTORS: Final = 2
_QUEUED: Final = 1_000_000
_CELERY_BURST: Final = 5_000
_PAYLOAD: Final = bytes(100)

Figures = dict[str, float]


def main() -> int:
    """Run it, or be one sample."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-celery", action="store_true", help="leave Celery out")
    parser.add_argument("--sample", choices=(*LEVELS, RESTART, CELERY), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sample:
        others = {RESTART: restart, CELERY: celery}
        measured = others.get(options.sample, lambda: at_level(options.sample))()
        print(json.dumps(measured))
        return 0
    kinds = (*LEVELS, RESTART) if options.without_celery else (*LEVELS, RESTART, CELERY)
    samples: dict[str, list[Figures]] = {kind: [] for kind in kinds}
    for number in range(options.rounds):
        turn = number % len(kinds)
        for kind in kinds[turn:] + kinds[:turn]:
            samples[kind].append(_in_own_process(kind))
    show({kind: _medians(found) for kind, found in samples.items()}, options.rounds)
    return 0


def _in_own_process(kind: str) -> Figures:
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [sys.executable, os.path.abspath(__file__), "--sample", kind],
            cwd=directory,
            env=environment(Path(directory)),
            stdout=subprocess.PIPE,
            text=True,
            timeout=180,
            check=True,
        )
    found: Figures = json.loads(done.stdout)
    return found


def _medians(samples: list[Figures]) -> Figures:
    return {name: statistics.median(one[name] for one in samples) for name in samples[0]}


def show(medians: dict[str, Figures], rounds: int) -> None:
    """Print a table of the levels, the restart, and what issue and promise ask for."""
    print(f"TLS + JWT; medians of {rounds} rounds; in brackets: times the figure of memory\n")
    base = medians["memory"]
    print("| level | " + " | ".join(base) + " |")
    print("|---" * (len(base) + 1) + "|")
    for level in LEVELS:
        cells = [f"{v:,.0f} ({v / base[name]:.2f})" for name, v in medians[level].items()]
        print(f"| {level} | " + " | ".join(cells) + " |")
    peer = medians.get(CELERY)
    if peer is not None:
        cells = [f"{peer[n]:,.0f} ({peer[n] / base[n]:.4f})" if n in peer else "" for n in base]
        print("| Celery, Redis syncs each write, no encryption | " + " | ".join(cells) + " |")
    after = medians[RESTART]
    print(f"\nrestart with {_QUEUED:,} queued tasks of {len(_PAYLOAD)} B, full: ", end="")
    print(", ".join(f"{name} {value:,.2f}" for name, value in after.items()))
    full = medians["full"]
    bound = 2 * full["bare commit us"] + 1000
    goals = {
        "burst at full >= 0.70 x memory": full["burst tasks/s"] / base["burst tasks/s"] >= 0.7,
        "ack at full <= 2 x bare synced commit + 1 ms": full["ack us"] <= bound,
        "restart <= 15 s": after["ready after s"] <= 15.0,
        "journal <= 1.5 x payload + 64 B": after["journal B/task"] <= 1.5 * len(_PAYLOAD) + 64,
    }
    if peer is not None:
        name = "burst tasks/s"
        goals["burst at full >= 100 x Celery"] = full[name] >= 100 * peer[name]
    print()
    for goal, holds in goals.items():
        print(f"{goal:50}{'pass' if holds else 'FAIL'}")


def at_level(level: str) -> Figures:
    """Measure one level in this process's directory."""
    cluster = Cluster(Path.cwd(), level)
    cluster.start(executors=_EXECUTORS)
    try:
        with rustray.init(cluster.address):
            function = rustray.remote(wait_for_resources=True)(tasks.noop)
            rustray.get([function.remote() for _ in range(1000)])
            figures = {"burst tasks/s": _burst(function), "one at a time/s": _alone(function)}
        # By a program that does nothing else: two event loops share one thread of gRPC's.
        return {**figures, **_acks(cluster.address)}
    finally:
        cluster.stop()


def celery() -> Figures:
    """Measure Celery in this process's directory, with fewer tasks, or it takes minutes."""
    from suite.celery_peer import CeleryPeer

    peer = CeleryPeer(Path.cwd(), executors=_EXECUTORS)
    try:
        for one in [peer.noop.delay() for _ in range(100)]:
            one.get()
        begin = time.perf_counter()
        for one in [peer.noop.delay() for _ in range(_CELERY_BURST)]:
            one.get()
        burst = _CELERY_BURST / (time.perf_counter() - begin)
        begin = time.perf_counter()
        for _ in range(_ALONE):
            peer.noop.delay().get()
        return {"burst tasks/s": burst, "one at a time/s": _ALONE / (time.perf_counter() - begin)}
    finally:
        peer.stop()


def _burst(function: Any) -> float:
    begin = time.perf_counter()
    rustray.get([function.remote() for _ in range(_BURST)])
    return _BURST / (time.perf_counter() - begin)


def _alone(function: Any) -> float:
    begin = time.perf_counter()
    for _ in range(_ALONE):
        rustray.get(function.remote())
    return _ALONE / (time.perf_counter() - begin)


def _acks(address: str) -> Figures:
    """Return the median times of a single unary submit and of a bare commit, in microseconds.

    In turn: a disk, and a core, that have just been idle take longer than those that are busy.
    """

    async def measure() -> Figures:
        acks, commits = [], []
        with contextlib.closing(_bare_database()) as db:
            async with _head(address) as head:
                for _ in range(_ACKS):
                    spec = rustray.TaskSpec("nobody_has_this", wait_for_resources=True)
                    begin = time.perf_counter()
                    await head.submit_task(spec)
                    acked = time.perf_counter()
                    db.execute("INSERT INTO t VALUES (zeroblob(200))")
                    acks.append(acked - begin)
                    commits.append(time.perf_counter() - acked)
        medians = statistics.median(acks), statistics.median(commits)
        return {"ack us": medians[0] * 1e6, "bare commit us": medians[1] * 1e6}

    return asyncio.run(measure())


def restart() -> Figures:
    """Kill a head with a long queue, and start it again in the same place."""
    directory = Path.cwd()
    cluster = Cluster(directory, "full")
    cluster.start(executors=0)
    try:
        with rustray.init(cluster.address):
            function = rustray.remote(wait_for_resources=True)(tasks.noop)
            refs = [function.remote(_PAYLOAD) for _ in range(_QUEUED)]
            while asyncio.run(_queued(cluster.address)) < len(refs):
                time.sleep(0.1)
        cluster.kill_head()
        files = (directory / "state").glob("journal.db*")
        size = sum(file.stat().st_size for file in files)
        begin = time.perf_counter()
        cluster.start(executors=0)
        ready_s = time.perf_counter() - begin
        if asyncio.run(_queued(cluster.address)) != _QUEUED:
            raise RuntimeError("tasks are missing after the restart")
    finally:
        cluster.stop()
    return {
        "ready after s": ready_s,
        "journal B/task": size / _QUEUED,
    }


async def _queued(address: str) -> int:
    async with _head(address) as head:
        return (await head.get_status()).tasks["QUEUED"]


def _head(address: str) -> rustray.HeadNode:
    host, _, port = address.removeprefix("rustray://").rpartition(":")
    return rustray.HeadNode(host, int(port))


def _bare_database() -> sqlite3.Connection:
    """Open a database on the same disk, whose commits are synced."""
    db = sqlite3.connect("bare.db", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE t (x)")
    return db


if __name__ == "__main__":
    sys.exit(main())
