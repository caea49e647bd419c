"""The four jobs of the demo; each checks its own result."""

from __future__ import annotations

import asyncio
import contextlib
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import rustray
from rustray.cli.demo_cluster import DemoCluster
from rustray.cli.demo_functions import increment, matrix_multiply, source_statistics
from rustray.task.result import TaskResult
from rustray.task.spec import TaskSpec
from rustray.task.state import TaskState

SMALL_TASKS: Final = 100_000
MATRIX: Final = 1_000
MATRIX_WITHOUT_NUMPY: Final = 160
BLOCKS: Final = 10
KILL_TASKS: Final = 300
KILL_PAUSE_S: Final = 0.02
KILL_AFTER: Final = 75
_RESULT_WITHIN_S: Final = 60.0

Advance = Callable[[int], None]
"""Says how many tasks have ended so far."""


class WrongResult(Exception):
    """The cluster's result differs from the plain one, or a result is missing."""


@dataclass(slots=True)
class JobReport:
    """What a job did.

    Attributes:
        seconds: From the first submit to the last result.
        detail: One line for people.
        by_worker: Tasks by worker id, where the job knows it itself.
    """

    name: str
    tasks: int
    seconds: float
    detail: str
    by_worker: Counter[str] = field(default_factory=Counter)


def source_files() -> list[str]:
    """List every .py file of the installed standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = (path for path in root.rglob("*.py") if "site-packages" not in path.parts)
    return sorted(str(path) for path in found if path.is_file())


def count_sources(files: Sequence[str], advance: Advance) -> JobReport:
    """Count words and identifiers of the files, and compare with a plain run in this process.

    Raises:
        WrongResult: the two differ.
    """
    count = rustray.remote(source_statistics)
    started = time.perf_counter()
    refs = [count.remote(path) for path in files]
    rest = list(refs)
    while rest:
        _, rest = rustray.wait(rest, num_returns=min(len(rest), 50), timeout=0.5)
        advance(len(refs) - len(rest))
    words, names = _reduce(rustray.get(refs))
    seconds = time.perf_counter() - started
    plain_started = time.perf_counter()
    plain_words, plain_names = _reduce([source_statistics(path) for path in files])
    plain_seconds = time.perf_counter() - plain_started
    if (words, names) != (plain_words, plain_names):
        raise WrongResult("the statistics differ from those of a plain run")
    common = ", ".join(f"{name} {n:,}" for name, n in names.most_common(3))
    return JobReport(
        "source statistics",
        len(files),
        seconds,
        f"{words.total():,} words, {len(names):,} identifiers ({common}); equal to a plain run, "
        f"which took {plain_seconds:.1f} s",
    )


def _reduce(parts: Sequence[tuple[dict[str, int], dict[str, int]]]) -> tuple[Counter[str], ...]:
    words: Counter[str] = Counter()
    names: Counter[str] = Counter()
    for part_words, part_names in parts:
        words.update(part_words)
        names.update(part_names)
    return words, names


def multiply_matrices(cluster: DemoCluster, advance: Advance) -> JobReport:
    """Multiply two matrices in blocks of rows by the registered function.

    Raises:
        WrongResult: it is not what one multiplication in this process gives.
    """
    try:
        import numpy
    except ImportError:
        return cluster.run(_multiply_lists(cluster, advance))
    random = numpy.random.default_rng(1)
    # Whole numbers whose products a float32 holds exactly: the check is for equality.
    left = random.integers(0, 100, (MATRIX, MATRIX)).astype(numpy.float32)
    right = random.integers(0, 100, (MATRIX, MATRIX)).astype(numpy.float32)
    step = MATRIX // BLOCKS
    calls = [[left[i : i + step], right] for i in range(0, MATRIX, step)]
    started = time.perf_counter()
    results = cluster.run(run_by_name(cluster, "matrix_multiply", calls, advance, batch=2))
    seconds = time.perf_counter() - started
    product = numpy.vstack([result.unwrap() for result in results])
    if not numpy.array_equal(product, left @ right):
        raise WrongResult("the product differs from numpy's")
    detail = f"{MATRIX} x {MATRIX} in {BLOCKS} blocks of rows; equal to numpy's product"
    return JobReport("matrix multiply", BLOCKS, seconds, detail, _by_worker(results))


async def _multiply_lists(cluster: DemoCluster, advance: Advance) -> JobReport:
    size = MATRIX_WITHOUT_NUMPY
    left = [[(i * 7 + j * 3) % 100 for j in range(size)] for i in range(size)]
    right = [[(i * 5 + j * 11) % 100 for j in range(size)] for i in range(size)]
    step = size // BLOCKS
    started = time.perf_counter()
    calls = [[left[i : i + step], right] for i in range(0, size, step)]
    results = await run_by_name(cluster, "matrix_multiply", calls, advance)
    seconds = time.perf_counter() - started
    product = [row for result in results for row in result.unwrap()]
    if product != matrix_multiply(left, right):
        raise WrongResult("the product differs from a plain one")
    detail = f"{size} x {size} of plain lists (numpy is not installed); equal to a plain product"
    return JobReport("matrix multiply", len(calls), seconds, detail, _by_worker(results))


async def run_by_name(
    cluster: DemoCluster,
    function: str,
    calls: Sequence[list[Any]],
    advance: Advance,
    batch: int = 1_000,
) -> list[TaskResult]:
    """Run a registered function once per argument list, and return the results in order.

    Args:
        cluster: Where.
        function: Its name.
        calls: Positional arguments of each task.
        advance: Told how many have ended.
        batch: Tasks per submit; few where the arguments are big.
    """
    async with rustray.HeadNode(cluster.host, cluster.port) as head:
        ids: list[str] = []
        for low in range(0, len(calls), batch):
            specs = [TaskSpec(function, args=call) for call in calls[low : low + batch]]
            ids += await head.submit_tasks_batch(specs)
        results: dict[str, TaskResult] = {}

        async def fetch(task_id: str) -> None:
            found = await head.get_task_result(task_id, timeout_s=_RESULT_WITHIN_S)
            if found is None:
                raise WrongResult(f"the result of task {task_id} is missing")
            results[task_id] = found
            advance(len(results))

        await asyncio.gather(*(fetch(task_id) for task_id in ids))
        return [results[task_id] for task_id in ids]


def run_small_tasks(advance: Advance) -> JobReport:
    """Run 100,000 tasks that add one, each with a reference and a result of its own.

    Raises:
        WrongResult: a result is wrong.
    """
    add = rustray.remote(increment)
    rustray.get(add.remote(0))
    started = time.perf_counter()
    refs = [add.remote(number) for number in range(SMALL_TASKS)]
    done = 0
    for low in range(0, SMALL_TASKS, 5_000):
        part = rustray.get(refs[low : low + 5_000])
        if part != list(range(low + 1, low + len(part) + 1)):
            raise WrongResult(f"a result of the small tasks from {low} on is wrong")
        done += len(part)
        advance(done)
    seconds = time.perf_counter() - started
    return JobReport(
        "small tasks", SMALL_TASKS, seconds, f"{SMALL_TASKS / seconds:,.0f} tasks/s, all correct"
    )


def survive_a_kill(cluster: DemoCluster, victim: str, advance: Advance) -> JobReport:
    """Kill a worker in the middle of a run; every result has to arrive, once.

    Raises:
        WrongResult: one is missing, wrong, or was completed twice.
    """
    return cluster.run(_survive_a_kill(cluster, victim, advance))


async def _survive_a_kill(cluster: DemoCluster, victim: str, advance: Advance) -> JobReport:
    watch = _EndWatch(cluster)
    watching = asyncio.create_task(watch.run())
    killed: list[int] = []

    def on_progress(done: int) -> None:
        advance(done)
        if done >= KILL_AFTER and not killed:
            killed.append(cluster.kill_worker(victim))

    try:
        await watch.subscribed()
        started = time.perf_counter()
        calls = [[number, KILL_PAUSE_S] for number in range(KILL_TASKS)]
        results = await run_by_name(cluster, "slow_square", calls, on_progress)
        seconds = time.perf_counter() - started
        await watch.all_ended([result.task_id for result in results])
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    if [result.unwrap() for result in results] != [n * n for n in range(KILL_TASKS)]:
        raise WrongResult("a result of the run with the kill is wrong")
    again = sum(result.attempts > 1 for result in results)
    return JobReport(
        "SIGKILL of a worker",
        KILL_TASKS,
        seconds,
        f"worker {victim} (process {killed[0]}) killed after {KILL_AFTER} results; all "
        f"{KILL_TASKS} results arrived, each once; {again} tasks were started again elsewhere",
        _by_worker(results),
    )


class _EndWatch:
    """Counts, from the head's events, how often each task ended."""

    def __init__(self, cluster: DemoCluster) -> None:
        self._cluster = cluster
        self._ended: Counter[str] = Counter()
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Count until cancelled."""
        async with rustray.HeadNode(self._cluster.host, self._cluster.port) as head:
            async for event in head.subscribe(functions=["slow_square"]):
                if TaskState(event.state).is_terminal:
                    self._ended[event.task_id] += 1
                    self._changed.set()

    async def subscribed(self) -> None:
        """Return when the events flow: the end of a task of our own has been seen."""
        deadline = time.perf_counter() + _RESULT_WITHIN_S
        while not self._ended and time.perf_counter() < deadline:
            await run_by_name(self._cluster, "slow_square", [[0, 0.0]], lambda done: None)
            await self._wait(0.2)

    async def all_ended(self, task_ids: Sequence[str]) -> None:
        """Wait for the end of each task.

        Raises:
            WrongResult: one did not end, or ended twice.
        """
        deadline = time.perf_counter() + 5.0
        while any(not self._ended[task_id] for task_id in task_ids):
            if time.perf_counter() > deadline:
                raise WrongResult("some tasks have a result, but no event says that they ended")
            await self._wait(0.2)
        twice = sum(self._ended[task_id] != 1 for task_id in task_ids)
        if twice:
            raise WrongResult(f"{twice} tasks ended more than once")

    async def _wait(self, within_s: float) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), within_s)


def _by_worker(results: Sequence[TaskResult]) -> Counter[str]:
    return Counter(result.worker_id for result in results)
