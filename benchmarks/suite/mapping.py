"""The map over many small items: each system by its own way of doing that."""

from __future__ import annotations

import time
from typing import Any

from suite import tasks
from suite.plan import Params
from suite.processes import CpuMeter
from suite.systems import System

_WARM_CHUNKS = 3


def map_items(system: System, params: Params) -> dict[str, Any]:
    """Map an increment over numbers; fewer where all of them would take too long."""
    system.load()
    system.start()
    chunk = int(params["chunk"])
    expected_s = float("inf")
    for _ in range(_WARM_CHUNKS):  # the first one starts processes and loads code
        begin = time.perf_counter()
        _map(system, chunk)
        expected_s = (time.perf_counter() - begin) * params["tasks"] / chunk
    is_short = expected_s > params["budget_s"]
    number = int(params["fewer_tasks"] if is_short else params["tasks"])
    meter = CpuMeter(system.roles())
    begin = time.perf_counter()
    _map(system, number)
    took_s = time.perf_counter() - begin
    return {
        "value": number / took_s,
        "tasks": number,
        "is_fewer": is_short,
        "cpu_us_per_task": meter.us_per_task(number),
    }


def _map(system: System, number: int) -> None:
    results = system.map(tasks.increment, range(number))
    if results != list(range(1, number + 1)):
        raise RuntimeError("the results are not those of the items")
