"""Many workers in one process: real agents over real connections, whose tasks cost nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from helpers.cluster import Cluster
from helpers.worker_head import FakePool
from rustray.rpc.head_client import GrpcHeadClient, connect
from rustray.security.local import find_local_join
from rustray.security.state_dir import StateDir
from rustray.worker.agent import WorkerAgent
from rustray.worker.config import WorkerConfig
from rustray.worker.executor import PoolListener


class Herd:
    """Workers that hold what they are given until `release`.

    Attributes:
        agents: All of them.
    """

    def __init__(self) -> None:
        self.agents: list[WorkerAgent] = []
        self._pools: list[FakePool] = []
        self._runs: list[asyncio.Task[None]] = []

    @property
    def connected(self) -> int:
        """How many have a session now."""
        return sum(agent.state == "ready" for agent in self.agents)

    @property
    def running(self) -> int:
        """How many tasks run."""
        return sum(len(tasks) for pool in self._pools for tasks in pool.executors.values())

    def release(self) -> None:
        """End what runs, and from now on at once what comes."""
        for pool in self._pools:
            pool.is_held = False
            for executor_id in list(pool.executors):
                pool.release(executor_id)

    def start(self, head: GrpcHeadClient, name: str) -> None:
        """Start one worker of one core."""
        config = WorkerConfig(cpus=1, memory_mb=100, name=name, functions=("herd",))
        agent = WorkerAgent(head, config, version="herd", pool_factory=self._pool)  # type: ignore[arg-type]
        self.agents.append(agent)
        self._runs.append(asyncio.create_task(agent.run()))

    def _pool(self, listener: PoolListener) -> FakePool:
        pool = FakePool(listener)
        pool.is_held = True
        self._pools.append(pool)
        return pool

    async def stop(self) -> None:
        """End them all at once."""
        await asyncio.gather(*(agent.stop() for agent in self.agents))
        await asyncio.gather(*self._runs)


@asynccontextmanager
async def herd_of(cluster: Cluster, count: int) -> AsyncIterator[Herd]:
    """Run so many workers, each with a connection of its own to the cluster's head."""
    join = find_local_join(StateDir(cluster.state_dir))
    async with AsyncExitStack() as stack:
        herd = Herd()
        stack.push_async_callback(herd.stop)
        for number in range(count):
            head = await connect(cluster.address, token_source=join.token, ca_pem=join.ca_pem)
            stack.push_async_callback(head.close)
            herd.start(head, f"w{number}")
        yield herd


class Pulse:
    """Asks a head for its status again and again, and notes how long it took to answer.

    Attributes:
        slowest_s: The longest answer since the head was there again; 0 before.
        answers: How many there were.
    """

    def __init__(self, head: GrpcHeadClient) -> None:
        self._head = head
        self.slowest_s = 0.0
        self.answers = 0

    async def beat(self) -> None:
        """Ask once."""
        asked = time.monotonic()
        await self._head.status()
        self.answers += 1
        self.slowest_s = max(self.slowest_s, time.monotonic() - asked)
