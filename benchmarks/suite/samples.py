"""Takes samples: one fresh process each, in turn, with a time limit; nothing outlives them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from suite.child import ERROR_FILE, RESULT_FILE
from suite.plan import Workload
from suite.processes import end_all_children

_BENCHMARKS: Final = Path(__file__).resolve().parents[1]
_SOURCE: Final = _BENCHMARKS.parent / "src"
_FOREIGN: Final = ("RUSTRAY_", "RAY_", "DASK_")
"""The user's own settings for these systems are not what is compared."""
_ERROR_CHARS: Final = 500
_ONE_THREAD: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement.

    Attributes:
        value: In the workload's unit; None if it failed.
        figures: All that the measurement says, ``value`` included.
        seconds: How long the process ran.
        error: Why there is no value.
    """

    round: int
    workload: str
    system: str
    value: float | None
    seconds: float
    figures: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it for the results file."""
        return asdict(self)


def take_all(
    workloads: Sequence[Workload],
    systems: Sequence[str],
    *,
    rounds: int,
    is_quick: bool,
    on_start: Callable[[str], None],
) -> Iterator[Sample]:
    """Take every sample; each round runs each system once on each workload, in another order."""
    for number in range(rounds):
        for workload in workloads:
            chosen = [name for name in workload.systems if name in systems]
            turn = number % max(len(chosen), 1)
            for system in chosen[turn:] + chosen[:turn]:
                on_start(f"round {number + 1}/{rounds}  {workload.name}  {system}")
                yield take(number, workload, system, is_quick=is_quick)


def take(number: int, workload: Workload, system: str, *, is_quick: bool) -> Sample:
    """Take one sample; its processes and its directory are gone afterwards."""
    # Short and in /tmp: Ray's socket names in there may have 107 bytes in all.
    directory = Path(tempfile.mkdtemp(prefix="rtb-", dir="/tmp"))
    begin = time.monotonic()
    try:
        error = _run(workload, system, directory, is_quick=is_quick)
        seconds = round(time.monotonic() - begin, 2)
        written = directory / RESULT_FILE
        if not written.exists():
            return Sample(number, workload.name, system, None, seconds, error=error)
        # With a value the error is about the stop, which was not measured.
        figures: dict[str, Any] = json.loads(written.read_text())
        return Sample(number, workload.name, system, figures["value"], seconds, figures)
    finally:
        end_all_children()
        shutil.rmtree(directory, ignore_errors=True)


def _run(workload: Workload, system: str, directory: Path, *, is_quick: bool) -> str:
    """Run the process to its end; say what went wrong, or ""."""
    params = json.dumps(workload.params_for(is_quick=is_quick))
    log = directory / "child.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "suite.child", workload.name, system, params],
            cwd=directory,
            env=environment(directory),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            # Ctrl-C reaches the parent alone, which then ends them in order.
            start_new_session=True,
        )
        try:
            code = process.wait(workload.limit_s)
        except subprocess.TimeoutExpired:
            return f"no result within {workload.limit_s:g} s"
    if (directory / ERROR_FILE).exists():
        return (directory / ERROR_FILE).read_text()[:_ERROR_CHARS]
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    return f"exit code {code}: {''.join(last)[:_ERROR_CHARS]}"


def run_apart(command: Sequence[str], limit_s: float) -> dict[str, float]:
    """Run a command in a directory of its own, and return the figures of its last line.

    Raises:
        subprocess.SubprocessError: it failed, or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="rtb-", dir="/tmp") as directory:
        done = subprocess.run(
            command,
            cwd=directory,
            env=environment(Path(directory)),
            stdout=subprocess.PIPE,
            text=True,
            timeout=limit_s,
            check=True,
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def environment(directory: Path) -> dict[str, str]:
    """Return a sample's environment: its own state, one thread a library, no settings of others."""
    env = {key: text for key, text in os.environ.items() if not key.startswith(_FOREIGN)}
    # Else each sample compiles rustray's modules, and those of the peers, which are installed, not.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    paths = [str(_BENCHMARKS), str(_SOURCE), env.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    env["RUSTRAY_STATE_DIR"] = str(directory / "state")
    env["RAY_USAGE_STATS_ENABLED"] = "0"
    env["DASK_CONFIG"] = str(directory)
    env["XDG_CONFIG_HOME"] = str(directory)
    env["TMPDIR"] = str(directory)
    for name in _ONE_THREAD:
        env[name] = "1"
    return env
