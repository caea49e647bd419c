"""The measurements: each takes a system that is loaded, not started, and returns its figures.

Every result has ``value``, in the workload's unit; the rest explains it.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import IO, Any, Final

from suite import tasks
from suite.mapping import map_items
from suite.plan import MIB, Params
from suite.processes import CpuMeter, pss_bytes, tree, wait_until_quiet
from suite.systems import Submit, System

_WARM_TASKS: Final = 1000
_WARM_CALLS: Final = 30

Figures = dict[str, Any]


def one_at_a_time(system: System, params: Params) -> Figures:
    """Submit a task and wait for its result, again and again."""
    submit = _started(system)
    times: list[float] = []
    begin = now = time.perf_counter()
    meter = CpuMeter(system.roles())
    while now - begin < params["seconds"]:
        before = time.perf_counter()
        system.gather([submit()])
        now = time.perf_counter()
        times.append(now - before)
    return {
        "value": len(times) / sum(times),
        "tasks": len(times),
        "p50_us": round(statistics.median(times) * 1e6, 1),
        "p99_us": round(sorted(times)[int(len(times) * 0.99)] * 1e6, 1),
        "cpu_us_per_task": meter.us_per_task(len(times)),
    }


def in_flight(system: System, params: Params) -> Figures:
    """Submit a window of tasks, collect their results, and start over."""
    return _windows(system, _started(system), params)


def burst(system: System, params: Params) -> Figures:
    """Submit all tasks at once and fetch each result; fewer where that would take too long."""
    submit = _started(system)
    begin = time.perf_counter()
    _run(system, submit, _WARM_TASKS)
    expected_s = (time.perf_counter() - begin) * params["tasks"] / _WARM_TASKS
    is_short = expected_s > params["budget_s"]
    number = int(params["fewer_tasks"] if is_short else params["tasks"])
    meter = CpuMeter(system.roles())
    begin = time.perf_counter()
    refs = [submit() for _ in range(number)]
    submitted = time.perf_counter()
    results = system.gather(refs)
    end = time.perf_counter()
    _check_count(results, number)
    return {
        "value": number / (end - begin),
        "tasks": number,
        "is_fewer": is_short,
        "submit_s": round(submitted - begin, 3),
        "cpu_us_per_task": meter.us_per_task(number),
    }


def argument(system: System, params: Params) -> Figures:
    """Send a payload with every task."""
    _started(system)
    payload = os.urandom(int(params["size"]))
    submit = system.prepare(tasks.take)
    return _with_volume(_windows(system, lambda: submit(payload), params), params)


def result(system: System, params: Params) -> Figures:
    """Have every task return a payload."""
    _started(system)
    size = int(params["size"])
    submit = system.prepare(tasks.give)
    return _with_volume(_windows(system, lambda: submit(size), params), params)


def stream(system: System, params: Params) -> Figures:
    """Have a generator task yield small items, and take them one by one."""
    _started(system)
    number = int(params["items"])
    _check_count(list(system.stream(tasks.count_up, number)), number)
    meter = CpuMeter(system.roles())
    times: list[float] = []
    for _ in range(int(params["streams"])):
        begin = time.perf_counter()
        for expected, item in enumerate(system.stream(tasks.count_up, number)):
            if item != expected:
                raise RuntimeError(f"item {expected} is {item}")
        times.append(time.perf_counter() - begin)
    total = number * len(times)
    return {
        "value": number / statistics.median(times),
        "items": total,
        "cpu_us_per_item": meter.us_per_task(total),
    }


def four_clients(system: System, params: Params) -> Figures:
    """Let several client processes submit windows of tasks at the same time."""
    _started(system)
    command = [
        sys.executable, "-m", "suite.client", _name_of(system), system.address,
        str(params["seconds"]), str(int(params["window"])),
    ]  # fmt: skip
    clients = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(int(params["clients"]))
    ]
    try:
        for client in clients:
            _line_of(client.stdout)
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("go\n")
            client.stdin.flush()
        figures = [json.loads(_line_of(client.stdout)) for client in clients]
    finally:
        for client in clients:
            assert client.stdin is not None
            client.stdin.close()
    for client in clients:
        client.wait(30)
    number = sum(each["tasks"] for each in figures)
    span = max(each["end"] for each in figures) - min(each["begin"] for each in figures)
    return {"value": number / span, "tasks": number, "each": [each["tasks"] for each in figures]}


def start_to_result(system: System, _params: Params) -> Figures:
    """Start everything and get one result, as a program would; importing counts apart."""
    begin = time.perf_counter()
    system.load()
    loaded = time.perf_counter()
    system.start()
    system.gather([system.prepare(tasks.noop)()])
    end = time.perf_counter()
    return {
        "value": end - loaded,
        "import_s": round(loaded - begin, 3),
        "with_import_s": round(end - begin, 3),
    }


def queue_memory(system: System, params: Params) -> Figures:
    """Queue tasks that nobody runs, and see by how much client and head have grown."""
    system.is_queue_only = True
    system.load()
    system.start()
    submit = system.prepare(tasks.take)
    number, size = int(params["tasks"]), int(params["size"])
    refs = [submit(_payload(i, size)) for i in range(_WARM_TASKS)]
    before = _settled_pss()
    refs += [submit(_payload(i, size)) for i in range(number)]
    after = _settled_pss()
    return {"value": (after - before) / number, "tasks": number, "refs": len(refs)}


def idle_memory(system: System, params: Params) -> Figures:
    """Let it run some tasks, calm down, and see what it holds."""
    _started(system)
    time.sleep(params["settle_s"])
    is_quiet = wait_until_quiet(tree(os.getpid()), within_s=20.0)
    pids = system.service_pids()
    return {
        "value": pss_bytes(pids) / 1e6,
        "processes": len(pids),
        "is_quiet": is_quiet,
        "has_client": os.getpid() in pids,
        "by_role": {
            role: round(pss_bytes(members) / 1e6, 1) for role, members in system.roles().items()
        },
    }


MEASURES: Final[dict[str, Callable[[System, Params], Figures]]] = {
    each.__name__: each
    for each in (
        one_at_a_time,
        in_flight,
        burst,
        map_items,
        argument,
        result,
        stream,
        four_clients,
        start_to_result,
        queue_memory,
        idle_memory,
    )
}


def windows_for(
    system: System, submit: Submit, seconds: float, window: int, least: int = 1
) -> tuple[int, int, float, float]:
    """Run whole windows until time and number are reached: (tasks, windows, begin, end)."""
    done = 0
    begin = now = time.monotonic()
    while done < least or now - begin < seconds:
        _run(system, submit, window)
        done += 1
        now = time.monotonic()
    return done * window, done, begin, now


def _windows(system: System, submit: Submit, params: Params) -> Figures:
    window = int(params["window"])
    _run(system, submit, window)
    meter = CpuMeter(system.roles())
    number, windows, begin, end = windows_for(
        system, submit, params["seconds"], window, int(params["windows"])
    )
    return {
        "value": number / (end - begin),
        "tasks": number,
        "windows": windows,
        "cpu_us_per_task": meter.us_per_task(number),
    }


def _with_volume(figures: Figures, params: Params) -> Figures:
    figures["mib_per_s"] = round(figures["value"] * params["size"] / MIB, 1)
    return figures


def _started(system: System) -> Submit:
    """Start a system and run the no-op until it is warm; return what submits the no-op."""
    system.load()
    system.start()
    submit = system.prepare(tasks.noop)
    for _ in range(_WARM_CALLS):
        system.gather([submit()])
    _run(system, submit, _WARM_TASKS)
    return submit


def _run(system: System, submit: Submit, number: int) -> None:
    _check_count(system.gather([submit() for _ in range(number)]), number)


def _check_count(results: list[Any], number: int) -> None:
    if len(results) != number:
        raise RuntimeError(f"{number} tasks gave {len(results)} results")


def _settled_pss() -> int:
    pids = tree(os.getpid())
    if not wait_until_quiet(pids, within_s=90.0):
        raise RuntimeError("the queue does not come to rest")
    gc.collect()
    return pss_bytes(pids)


def _payload(number: int, size: int) -> bytes:
    # Different bytes, so that no system can keep one copy for all.
    return number.to_bytes(8, "little") + bytes(size - 8)


def _line_of(stream: IO[str] | None) -> str:
    assert stream is not None
    line = stream.readline()
    if not line:
        raise RuntimeError("a client process ended before its result")
    return line


def _name_of(system: System) -> str:
    from suite.systems import CLASSES

    return next(name for name, kind in CLASSES.items() if kind is type(system))
