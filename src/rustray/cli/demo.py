"""``rustray demo``: a head and two workers on this machine, and four jobs that check themselves."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import rustray
from rustray.cli import demo_jobs, exits
from rustray.cli.access import Target
from rustray.cli.demo_cluster import DemoCluster
from rustray.cli.demo_jobs import Advance, JobReport, WrongResult
from rustray.cli.load import Surroundings
from rustray.cli.output import dumps, write_line
from rustray.cli.session import open_head
from rustray.common.errors import CommunicationError, RustRayError

WORKERS: Final = ("demo-a", "demo-b")
_JOIN_WITHIN_S: Final = 20.0


def run_demo(*, keep: bool = False, as_json: bool = False) -> int:
    """Run the demo.

    Args:
        keep: Leave the directory with state and logs behind.
        as_json: Print one JSON value at the end, and all else on stderr.

    Returns:
        0 if every result was right, 1 if one was not.

    Raises:
        KeyboardInterrupt: Ctrl-C, SIGTERM or a closed terminal; every process has been ended.
    """
    console = Console(highlight=False, stderr=as_json)
    directory = Path(tempfile.mkdtemp(prefix="rustray-demo-"))
    started = time.perf_counter()
    try:
        with _interruptible(), DemoCluster(directory) as cluster:
            reports = _run(cluster, console)
        seconds = time.perf_counter() - started
        _conclude(reports, console, seconds)
        if as_json:
            write_line(dumps(_summary(reports, seconds, directory if keep else None)))
    except (WrongResult, RustRayError) as error:
        keep = True
        if as_json:
            code = error.code if isinstance(error, RustRayError) else "WRONG_RESULT"
            write_line(dumps({"error": {"code": code, "message": str(error)}}))
        else:
            Console(stderr=True, highlight=False).print(f"error: {error}", markup=False)
        return exits.TASK_FAILED
    finally:
        if keep:
            console.print(f"state and logs: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return exits.OK


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let a closed terminal and SIGTERM end the demo as Ctrl-C does: with its processes."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(cluster: DemoCluster, console: Console) -> list[JobReport]:
    cores = os.cpu_count() or 1
    each = max(1, cores // len(WORKERS))
    cluster.start_head()
    for name in WORKERS:
        cluster.start_worker(name, each)
    os.environ["RUSTRAY_STATE_DIR"] = str(cluster.state_dir)
    os.environ.pop("RUSTRAY_ADDRESS", None)
    _await_workers(cluster, len(WORKERS))
    console.print(
        f"head {cluster.address} (process {cluster.head_pid}; TLS and JWT on), workers "
        + ", ".join(f"{name} (process {p.pid}, {each} cpus)" for name, p in cluster.workers.items())
    )
    files = demo_jobs.source_files()
    jobs: list[tuple[str, int, Callable[[Advance], JobReport]]] = [
        ("source statistics", len(files), lambda step: demo_jobs.count_sources(files, step)),
        (
            "matrix multiply",
            demo_jobs.BLOCKS,
            lambda step: demo_jobs.multiply_matrices(cluster, step),
        ),
        ("small tasks", demo_jobs.SMALL_TASKS, demo_jobs.run_small_tasks),
        (
            "SIGKILL of a worker",
            demo_jobs.KILL_TASKS,
            lambda step: demo_jobs.survive_a_kill(cluster, WORKERS[1], step),
        ),
    ]
    reports: list[JobReport] = []
    with rustray.init(cluster.address):
        for title, total, job in jobs:
            before = _finished(cluster)
            report = _with_bar(console, title, total, job)
            cluster.check()
            if not report.by_worker:
                report.by_worker = _finished(cluster) - before
            console.print(f"  {report.seconds:.2f} s: {report.detail}", markup=False)
            reports.append(report)
    return reports


def _with_bar(
    console: Console, title: str, total: int, job: Callable[[Advance], JobReport]
) -> JobReport:
    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(title, total=total)
        report = job(lambda done: progress.update(bar, completed=done))
    if not console.is_terminal:
        console.print(f"{title}: {report.tasks:,} tasks")
    return report


def _await_workers(cluster: DemoCluster, count: int) -> None:
    deadline = time.perf_counter() + _JOIN_WITHIN_S
    while True:
        cluster.check()
        ready = cluster.run(_workers(cluster))
        if sum(state == "ready" for state, _ in ready.values()) >= count:
            return
        if time.perf_counter() > deadline:
            logs = "\n".join(cluster.log_tail(name) for name in WORKERS)
            raise CommunicationError(f"only {len(ready)} of {count} workers joined:\n{logs}")
        time.sleep(0.05)


def _finished(cluster: DemoCluster) -> Counter[str]:
    return Counter({name: done for name, (_, done) in cluster.run(_workers(cluster)).items()})


async def _workers(cluster: DemoCluster) -> dict[str, tuple[str, int]]:
    """Return worker id to (state, tasks finished)."""
    around = Surroundings.of_this_process()
    async with open_head(Target(state_dir=str(cluster.state_dir)), around) as session:
        views = await session.api.list_workers()
        return {view.worker_id: (view.state, view.finished) for view in views}


def _summary(reports: list[JobReport], seconds: float, kept: Path | None) -> dict[str, Any]:
    """Return what `demo --json` prints of a demo whose results were all right."""
    jobs = [
        {
            "name": report.name,
            "tasks": report.tasks,
            "seconds": round(report.seconds, 3),
            "detail": report.detail,
            "workers": dict(report.by_worker),
        }
        for report in reports
    ]
    return {
        "jobs": jobs,
        "seconds": round(seconds, 3),
        "directory": None if kept is None else str(kept),
    }


def _conclude(reports: list[JobReport], console: Console, seconds: float) -> None:
    workers = sorted({worker for report in reports for worker in report.by_worker})
    table = Table(title="what ran where (tasks finished)", title_justify="left")
    table.add_column("job")
    for worker in workers:
        table.add_column(worker, justify="right")
    table.add_column("tasks", justify="right")
    table.add_column("seconds", justify="right")
    for report in reports:
        cells = [f"{report.by_worker.get(worker, 0):,}" for worker in workers]
        table.add_row(report.name, *cells, f"{report.tasks:,}", f"{report.seconds:.2f}")
    console.print(table)
    console.print(f"all results right; {seconds:.0f} s in all")
    sys.stdout.flush()
