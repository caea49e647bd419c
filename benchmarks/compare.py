"""Compare rustray with Ray, Dask distributed and ProcessPoolExecutor on this machine.

Every sample is a fresh process; a round runs every system once on every workload.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from suite import machine, summary, tables
from suite.plan import SYSTEMS, WORKLOADS, Workload
from suite.processes import adopt_orphans, end_all_children
from suite.samples import Sample, take_all

_HERE: Final = Path(__file__).resolve().parent
_README: Final = _HERE / "README.md"
_SCHEMA: Final = 1
_CORES: Final = 2
_INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 if a sample failed, 130 if it was interrupted, else 0."""
    options = _parser().parse_args(arguments)
    if options.source is not None:
        results = json.loads(options.source.read_text())
    else:
        results = _measure(options)
        _write(options.json or _default_path(options, results), results)
    print(tables.plain(results))
    if not results.get("is_complete", True):
        return _INTERRUPTED
    if options.write_readme:
        tables.write_readme(_README, results)
    return 1 if any(sample["value"] is None for sample in results["samples"]) else 0


def _default_path(options: argparse.Namespace, results: Mapping[str, Any]) -> Path:
    """Name the results file; a run of a part does not replace that of the whole."""
    is_whole = len(options.only) == len(WORKLOADS) and len(options.systems) == len(SYSTEMS)
    mark = "-quick" if options.quick else "" if is_whole and results["is_complete"] else "-part"
    return _HERE / "results" / f"{results['date'][:10]}-{platform.node()}{mark}.json"


def _parser() -> argparse.ArgumentParser:
    names = ", ".join(dict.fromkeys(workload.group for workload in WORKLOADS))
    parser = argparse.ArgumentParser(prog="compare.py", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few tasks: only tries the tool out")
    parser.add_argument("--rounds", type=_positive, help="rounds (default 5, with --quick 1)")
    parser.add_argument(
        "--only", type=_workloads, default=WORKLOADS, metavar="WORKLOAD,...", help=f"of: {names}"
    )
    parser.add_argument(
        "--systems",
        type=_systems,
        default=tuple(SYSTEMS),
        metavar="SYSTEM,...",
        help=f"of: {', '.join(SYSTEMS)}",
    )
    parser.add_argument(
        "--cores", type=_positive, default=_CORES, help=f"cores for all (default {_CORES})"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="PATH",
        help="results file (default results/<date>-<host>.json)",
    )
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="PATH", help="measure nothing: take this file"
    )
    parser.add_argument(
        "--write-readme", action="store_true", help="put the tables into README.md beside this"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _workloads(text: str) -> tuple[Workload, ...]:
    wanted = text.split(",")
    known = {name for workload in WORKLOADS for name in (workload.name, workload.group)}
    _refuse_unknown(wanted, sorted(known))
    return tuple(w for w in WORKLOADS if w.name in wanted or w.group in wanted)


def _systems(text: str) -> tuple[str, ...]:
    wanted = text.split(",")
    _refuse_unknown(wanted, list(SYSTEMS))
    return tuple(wanted)


def _refuse_unknown(wanted: Sequence[str], known: Sequence[str]) -> None:
    for name in wanted:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    """Take the samples; Ctrl-C and SIGTERM end with what there is so far."""
    rounds = options.rounds or (1 if options.quick else 5)
    cores = machine.use_cores(options.cores)
    results: dict[str, Any] = {
        "schema": _SCHEMA,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "is_quick": options.quick,
        "rounds": rounds,
        "machine": machine.describe(cores),
        "versions": machine.versions(),
        "systems": {
            name: {"title": info.title, "setting": info.setting, "security": info.security}
            for name, info in SYSTEMS.items()
            if name in options.systems
        },
        "workloads": {
            workload.name: {
                "title": workload.title,
                "unit": workload.unit,
                "params": workload.params_for(is_quick=options.quick),
                "limit_s": workload.limit_s,
            }
            for workload in options.only
        },
    }
    samples, results["is_complete"] = _take(options, rounds)
    results.update(summary.as_json(summary.summarize(samples)))
    results["samples"] = samples
    return results


def _take(options: argparse.Namespace, rounds: int) -> tuple[list[dict[str, Any]], bool]:
    """Return the samples as they go into the results file, and whether these are all."""
    adopt_orphans()
    # SIGINT too: a shell's background jobs start with it ignored.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _interrupt)
    samples: list[dict[str, Any]] = []
    try:
        for sample in take_all(
            options.only,
            options.systems,
            rounds=rounds,
            is_quick=options.quick,
            on_start=_note,
        ):
            samples.append(sample.as_json())
            _note(_said(sample), is_done=True)
    except KeyboardInterrupt:
        _note("\ninterrupted: these are the results so far", is_done=True)
        return samples, False
    finally:
        end_all_children()
    return samples, True


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _said(sample: Sample) -> str:
    if sample.value is None:
        return f" FAILED after {sample.seconds:g} s: {sample.error}"
    return f" {tables.number(sample.value)}  ({sample.seconds:g} s)"


def _note(text: str, *, is_done: bool = False) -> None:
    print(text, end="\n" if is_done else "", file=sys.stderr, flush=True)


def _write(path: Path, results: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
