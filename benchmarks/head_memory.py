"""What a head's memory comes to with a million queued tasks and a thousand slow subscribers.

    python benchmarks/head_memory.py [--tasks 1000000] [--subscribers 1000] [--ceiling-mb 768]

A real head with TLS, tokens and its journal at `full`; no worker, so that everything stays queued.
A slow subscriber asks for all events, takes the first message, and reads no more. Prints the
resident memory after each step as JSON, and ends with 1 if it ever was above the ceiling.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import rustray
from rustray import HeadNode, TaskState

STREAMS_PER_CONNECTION = 80
READY = re.compile(r"head ready at rustray://([^:]+):(\d+)")
ARGUMENT = "x" * 40


@rustray.remote
def work(number: int, text: str) -> int:
    """Never runs here: there is no worker."""
    return number + len(text)


def memory_mb(pid: int) -> dict[str, int]:
    """Return resident memory now and at most, in MiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = {
        key: int(value) // 1024 for key, value in re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", text)
    }
    return {"now": found["VmRSS"], "most": found["VmHWM"]}


async def latency_ms(head: HeadNode) -> float:
    """Return how long a look at the cluster takes, the worst of some."""
    worst = 0.0
    for _ in range(20):
        start = time.perf_counter()
        await head.get_status()
        worst = max(worst, time.perf_counter() - start)
    return round(worst * 1000, 1)


async def be_slow(stack: AsyncExitStack, port: int, count: int) -> list[Any]:
    """Open subscriptions that take one event and read no more."""
    slow: list[Any] = []
    while len(slow) < count:
        head = await stack.enter_async_context(HeadNode("127.0.0.1", port))
        for _ in range(min(STREAMS_PER_CONNECTION, count - len(slow))):
            events = head.subscribe(cursor=0)
            await anext(events)
            slow.append(events)
    return slow


def submit(port: int, count: int) -> float:
    """Queue tasks; returns how long it took."""
    start = time.perf_counter()
    context = rustray.init(f"rustray://127.0.0.1:{port}")
    refs = [work.remote(number, ARGUMENT) for number in range(count)]
    while refs:  # until the head has them all
        status = asyncio.run(_status(port))
        if status.tasks["QUEUED"] >= count:
            break
        time.sleep(0.2)
    took_s = time.perf_counter() - start
    context.__exit__(None, None, None)
    return took_s


async def _status(port: int) -> Any:
    async with HeadNode("127.0.0.1", port) as head:
        return await head.get_status()


async def watch(port: int, pid: int, subscribers: int, steps: dict[str, Any]) -> None:
    """Add slow subscribers, then have a flood of events overtake them."""
    async with AsyncExitStack() as stack:
        head = await stack.enter_async_context(HeadNode("127.0.0.1", port))
        slow = await be_slow(stack, port, subscribers)
        steps["slow subscribers"] = {**memory_mb(pid), "status_ms": await latency_ms(head)}
        cancelled = 0
        views = await head.list_tasks(states=[TaskState.QUEUED], limit=20_000)
        for low in range(0, len(views), 1_000):
            names = [view.task_id for view in views[low : low + 1_000]]
            cancelled += len(await head._connected.cancel(names, False))
        steps["20,000 single events more"] = {
            **memory_mb(pid), "status_ms": await latency_ms(head), "cancelled": cancelled,
        }  # fmt: skip
        for events in slow:
            await events.aclose()


def main() -> int:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--subscribers", type=int, default=1_000)
    parser.add_argument("--ceiling-mb", type=int, default=768)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as state:
        os.environ["RUSTRAY_STATE_DIR"] = state
        command = [sys.executable, "-u", "-m", "rustray", "head", "--port", "0"]
        head = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=state)
        try:
            assert head.stdout is not None
            found = READY.search(head.stdout.readline())
            assert found is not None
            port = int(found[2])
            steps: dict[str, Any] = {"idle": memory_mb(head.pid)}
            took_s = submit(port, given.tasks)
            steps[f"{given.tasks:,} queued"] = {**memory_mb(head.pid), "took_s": round(took_s, 1)}
            asyncio.run(watch(port, head.pid, given.subscribers, steps))
            most = memory_mb(head.pid)["most"]
        finally:
            head.terminate()
            head.wait(30)
    verdict = {"steps_mb": steps, "most_mb": most, "ceiling_mb": given.ceiling_mb}
    print(json.dumps({**verdict, "is_held": most <= given.ceiling_mb}, indent=2))
    return 0 if most <= given.ceiling_mb else 1


if __name__ == "__main__":
    raise SystemExit(main())
