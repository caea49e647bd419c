"""The agent with real executor processes, against a head in memory."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256

import cloudpickle

from helpers.waiting import aeventually
from helpers.worker_head import FakeWorkerHead
from rustray.task.codec import decode_failure, decode_value, encode_call
from rustray.task.frames import AssignFrame, ClassDefinition, LeaseCancel
from rustray.task.spec import Codec, TaskClass
from rustray.task.state import TaskState
from rustray.worker.agent import WorkerAgent
from rustray.worker.config import WorkerConfig


class Node:
    """A worker with real processes, and the head that feeds it."""

    def __init__(self) -> None:
        self.head = FakeWorkerHead(heartbeat_s=1.0, lease_ttl_s=10.0)
        config = WorkerConfig(cpus=2, memory_mb=100)
        self.agent = WorkerAgent(self.head, config)  # type: ignore[arg-type]

    def run(self, function: object, *calls: tuple[object, ...], timeout_s: float = 0.0) -> int:
        """Lease one task per call of a function that travels as code; returns the lease."""
        code = cloudpickle.dumps(function)
        task_class = TaskClass(
            "f", code_hash=sha256(code).digest(), codec=Codec.PICKLE, timeout_s=timeout_s
        )
        link = self.head.link
        assert link is not None
        if task_class not in link.numbers:
            link.numbers[task_class] = len(link.numbers) + 1
            definition = ClassDefinition(link.numbers[task_class], task_class, code)
            link.send(AssignFrame(classes=[definition]))
        return self.head.grant([encode_call(Codec.PICKLE, call, {}) for call in calls], task_class)

    async def ended(self, lease: int, offset: int = 0) -> tuple[TaskState | None, bytes]:
        """Wait for the outcome of a task."""
        await aeventually(lambda: (lease, offset) in self.head.told, 20.0)
        return self.head.told[(lease, offset)]


@asynccontextmanager
async def a_node() -> AsyncIterator[Node]:
    """Run a node, and leave nothing behind."""
    # Executors cannot import this file, so its functions have to travel whole.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    node = Node()
    running = asyncio.create_task(node.agent.run())
    try:
        await node.agent.wait_connected()
        yield node
    finally:
        await node.agent.stop()
        await running
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def double(x: int) -> int:
    """Return twice the argument."""
    return 2 * x


def stay(seconds: float) -> None:
    """Run for a while."""
    time.sleep(seconds)  # the task's work


def end_process(how: int) -> None:
    """Kill the executor from within."""
    os.kill(os.getpid(), how)


async def test_ten_thousand_tasks_come_back_in_order() -> None:
    """Values return under the right lease and offset."""
    async with a_node() as node:
        lease = node.run(double, *[(i,) for i in range(10_000)])
        await aeventually(lambda: len(node.head.told) == 10_000, 30.0)
        values = [decode_value(Codec.PICKLE, node.head.told[(lease, i)][1]) for i in range(10_000)]
        assert values == [2 * i for i in range(10_000)]


async def test_a_killed_executor_costs_only_its_own_task() -> None:
    """A segfault is reported with its signal, the neighbours and later tasks succeed."""
    async with a_node() as node:
        good = node.run(double, *[(i,) for i in range(200)])
        bad = node.run(end_process, (int(signal.SIGSEGV),))
        more = node.run(double, *[(i,) for i in range(200)])
        state, payload = await node.ended(bad)
        assert (state, decode_failure(payload).signal) == (TaskState.LEASED, 11)
        await aeventually(lambda: len(node.head.told) == 401, 20.0)
        others = {s for (n, _), (s, _) in node.head.told.items() if n in (good, more)}
        assert others == {TaskState.SUCCEEDED}


async def test_limits_and_cancels_end_real_tasks() -> None:
    """A run limit and a cancel stop sleeping tasks long before they would end."""
    async with a_node() as node:
        late = node.run(stay, (60.0,), timeout_s=0.2)
        unwanted = node.run(stay, (60.0,))
        await aeventually(lambda: node.agent.manager.running == 2)
        assert node.head.link is not None
        node.head.link.send(AssignFrame(cancels=[LeaseCancel(unwanted, 0, 1)]))
        assert (await node.ended(late))[0] is TaskState.TIMED_OUT
        assert (await node.ended(unwanted))[0] is TaskState.CANCELLED


async def test_a_drain_lets_running_tasks_finish() -> None:
    """What runs ends well, what waits goes back, and no process is left."""
    async with a_node() as node:
        lease = node.run(stay, *[(0.3,)] * 5)
        await aeventually(lambda: node.agent.manager.running == 2)
        await node.agent.drain()
        states = [node.head.told[(lease, i)][0] for i in range(5)]
        assert states == [TaskState.SUCCEEDED] * 2 + [None] * 3
        assert node.head.frames[-1].drained
