"""What large values cost, beside Ray and Dask, and a transfer beside a bare TLS socket.

``python benchmarks/data.py [--rounds N] [--systems rustray,ray] [--mib 10] [--put-mib 100]`` prints
medians in milliseconds; a round runs every system once, in turn, each in a process of its own, and
the transfer once. ``--quick`` takes small values and one round: it only shows that the tool works.
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
from suite.plan import MIB
from suite.samples import run_apart
from suite.systems import CLASSES, System

SYSTEMS: Final = ("rustray", "rustray-embedded", "ray", "dask")
TRANSFER: Final = "transfer"
_TIMES: Final = 9
_WARM: Final = 20
_LIMIT_S: Final = 300
_CORES: Final = 2
_GOALS: Final = (("argument ms", 2.0), ("result ms", 2.0), ("put + get ms", 1.0))
"""Times Ray that are to be reached at least."""
_TRANSFER_GOAL: Final = 0.7

Figures = dict[str, float]


def main() -> int:
    """Run it, or be one sample."""
    options = _parser().parse_args()
    if options.quick:
        options.rounds, options.mib, options.put_mib = 1, 1, 2
    if options.sample == TRANSFER:
        from suite.transfer import measure

        print(json.dumps(measure(Path.cwd(), options.put_mib * MIB, _TIMES)))
        return 0
    if options.sample:
        print(json.dumps(_sample(options.sample, options.mib * MIB, options.put_mib * MIB)))
        return 0
    machine.use_cores(_CORES)
    kinds = (*options.systems.split(","), TRANSFER)
    samples: dict[str, list[Figures]] = {kind: [] for kind in kinds}
    for number in range(options.rounds):
        turn = number % len(kinds)
        for kind in kinds[turn:] + kinds[:turn]:
            samples[kind].append(_in_own_process(kind, options))
    show({kind: _medians(found) for kind, found in samples.items()}, options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="data.py", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--systems", default=",".join(SYSTEMS), help=f"of: {', '.join(SYSTEMS)}")
    parser.add_argument("--mib", type=int, default=10, help="size of arguments and results")
    parser.add_argument("--put-mib", type=int, default=100, help="size of puts and transfers")
    parser.add_argument("--quick", action="store_true", help="small: only tries the tool out")
    parser.add_argument("--sample", choices=(*SYSTEMS, TRANSFER), help=argparse.SUPPRESS)
    return parser


def _in_own_process(kind: str, options: argparse.Namespace) -> Figures:
    command = [
        sys.executable, os.path.abspath(__file__), "--sample", kind,
        "--mib", str(options.mib), "--put-mib", str(options.put_mib),
    ]  # fmt: skip
    return run_apart(command, _LIMIT_S)


def _medians(samples: list[Figures]) -> Figures:
    return {name: statistics.median(one[name] for one in samples) for name in samples[0]}


def _sample(name: str, size: int, put_size: int) -> Figures:
    """Measure one system in this process."""
    import numpy as np

    system = CLASSES[name](Path.cwd())
    system.load()
    system.start()
    try:
        array = np.random.default_rng(1).random(size // 8)
        take, give = system.prepare(tasks.take_array), system.prepare(tasks.give_array)

        def argument() -> None:
            (seen,) = system.gather([take(array)])
            assert seen == len(array)

        def result() -> None:
            (found,) = system.gather([give(len(array))])
            assert found[-1] == len(array) - 1

        figures = {"argument ms": _median_ms(argument), "result ms": _median_ms(result)}
        put = _putter(name, system)
        if put is not None:
            large = np.random.default_rng(2).random(put_size // 8)
            try:
                figures["put + get ms"] = _median_ms(lambda: _check(put(large), large))
            except Exception as error:
                if type(error).__name__ != "PayloadError":
                    raise
                print(f"{name} takes no value of that size: {error}", file=sys.stderr)
        return figures
    finally:
        system.stop()


def _check(found: Any, large: Any) -> None:
    assert found[-1] == large[-1]
    assert len(found) == len(large)


def _putter(name: str, system: System) -> Callable[[Any], Any] | None:
    """Return what puts a value and gets it back; None where there is no such thing."""
    inner: Any = system
    if name == "dask":
        client = inner._client
        return lambda value: client.gather(client.scatter(value, hash=False))
    module = inner._ray if name == "ray" else inner._rustray
    if not hasattr(module, "put"):
        return None
    return lambda value: module.get(module.put(value))


def _median_ms(run: Callable[[], None]) -> float:
    """Return the median time of a call, once it is warm."""
    until = time.perf_counter() + 2.0
    for _ in range(_WARM):
        run()
        if time.perf_counter() > until:
            break
    times = []
    for _ in range(_TIMES):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e3


def show(medians: dict[str, Figures], options: argparse.Namespace) -> None:
    """Print the table, the transfer, and what is to be reached."""
    print(
        f"{options.mib} MiB as argument and result, put + get of {options.put_mib} MiB; medians of "
        f"{options.rounds} rounds, milliseconds; in brackets: times as fast as Ray\n"
    )
    ray = medians.get("ray", {})
    columns = [name for name, _ in _GOALS]
    print("| system | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for kind, found in medians.items():
        if kind != TRANSFER:
            cells = [_cell(found.get(name), ray.get(name)) for name in columns]
            print(f"| {kind} | " + " | ".join(cells) + " |")
    moved = medians[TRANSFER]
    print(f"\n{options.put_mib} MiB from node to node, loopback, TLS + token:")
    for name, value in moved.items():
        print(f"  {name:28}{value:,.2f}")
    print()
    for name, bound in _GOALS:
        own, peer = medians.get("rustray", {}).get(name), ray.get(name)
        if own is not None and peer is not None:
            print(f"{name} >= {bound:g} x Ray: {'pass' if peer / own >= bound else 'FAIL'}")
    share = moved["share of the bare socket"]
    verdict = "pass" if share >= _TRANSFER_GOAL else "FAIL"
    print(f"transfer >= {_TRANSFER_GOAL:.0%} of a bare TLS socket: {verdict}")


def _cell(value: float | None, base: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.2f}" + (f" ({base / value:.2f}x)" if base else "")


if __name__ == "__main__":
    sys.exit(main())
