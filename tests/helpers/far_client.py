"""A client on the far side of a bad link: hands tasks in, and says how they ended.

python -m helpers.far_client HOST FOLDER PORT TASKS LARGE LARGE_BYTES
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter
from pathlib import Path

import rustray

_WAVES = 6
_TRIES = 10


async def _connect(host: str, port: int) -> rustray.HeadNode:
    """Connect; a first handshake that loses a packet fails, for gRPC gives it one second."""
    for _ in range(_TRIES):
        with contextlib.suppress(rustray.HeadUnavailable):
            head = rustray.HeadNode(host, port, connect_timeout_s=30)
            await head.connect()
            return head
    raise SystemExit(f"no connection in {_TRIES} tries")


async def main(host: str, folder: str, port: int, count: int, large: int, size: int) -> None:
    """Print one JSON object: how often tasks were started, and the head's counters."""
    small = [rustray.TaskSpec("add", [number, 1]) for number in range(count)]
    big = [rustray.TaskSpec("fill", [folder, number, size]) for number in range(large)]
    attempts: Counter[int] = Counter()
    head = await _connect(host, port)
    try:
        for wave in range(_WAVES):
            specs = [*small[wave::_WAVES], *big[wave::_WAVES]]
            tasks = await head.submit_tasks_batch(specs)
            results = await asyncio.gather(*(head.get_task_result(task, 120) for task in tasks))
            for spec, result in zip(specs, results, strict=True):
                assert result is not None
                value = result.unwrap()
                if spec.function_name == "add":
                    assert value == spec.args[0] + 1
                else:
                    assert len(value) == size + 4
                attempts[result.attempts] += 1
        status = await head.get_status()
    finally:
        await head.close()
    print(json.dumps({"attempts": attempts, "counters": dict(status.counters)}))


if __name__ == "__main__":
    Path(sys.argv[2], "go").touch()
    numbers = [int(text) for text in sys.argv[3:]]
    asyncio.run(main(sys.argv[1], sys.argv[2], numbers[0], numbers[1], numbers[2], numbers[3]))
