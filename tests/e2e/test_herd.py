"""All workers and clients come back at once after a `kill -9` of the head (F30)."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

import rustray
from helpers.cluster import Cluster
from helpers.herd import Pulse, herd_of
from helpers.waiting import aeventually
from rustray.head.app import RECONNECT_CAP_S
from rustray.rpc.head_client import connect
from rustray.security.local import find_local_credentials
from rustray.security.state_dir import StateDir

pytestmark = pytest.mark.slow

WORKERS = int(os.environ.get("HERD_WORKERS", "50"))
"""`make herd` says 200."""
CLIENTS = WORKERS // 4
TASKS_EACH = 2
LEASE_TTL_S = 10.0
BOUND_S = LEASE_TTL_S + RECONNECT_CAP_S
"""A restarted head waits so long for the workers of before."""


async def test_a_herd_comes_back_at_once_and_loses_no_lease(tmp_path: Path) -> None:
    """Each is let in within the bound, has its leases again, and the head answers meanwhile."""
    count = WORKERS * TASKS_EACH
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        async with AsyncExitStack() as stack:
            stack.enter_context(cluster.as_own())
            herd = await stack.enter_async_context(herd_of(cluster, WORKERS))
            clients = [await stack.enter_async_context(cluster.head_node()) for _ in range(CLIENTS)]
            await aeventually(lambda: herd.connected == WORKERS, 60)
            tasks = [
                (client, task)
                for number, client in enumerate(clients)
                for task in await client.submit_tasks_batch(
                    [rustray.TaskSpec("echo", [str(n)]) for n in range(number, count, CLIENTS)]
                )
            ]
            assert len(tasks) == count
            await aeventually(lambda: herd.running == WORKERS, 60)
            own = find_local_credentials(StateDir(cluster.state_dir))

            await asyncio.to_thread(cluster.restart_head)
            back_at = time.monotonic()
            watcher = await connect(own.address, token_source=own.token, ca_pem=own.ca_pem)
            stack.push_async_callback(watcher.close)
            pulse = Pulse(watcher)

            async def all_are_back() -> bool:
                await pulse.beat()
                return herd.connected == WORKERS

            await aeventually(all_are_back, BOUND_S)
            took_s = time.monotonic() - back_at
            herd.release()
            results = await asyncio.gather(
                *(client.get_task_result(task, 60) for client, task in tasks)
            )
            assert all(result is not None and result.attempts == 1 for result in results)
            counters = dict((await watcher.status()).counters)
        assert counters["workers_joined"] == WORKERS
        assert counters["tasks_adopted"] >= WORKERS
        for name in ("workers_lost", "workers_refused", "tasks_requeued_after_restart"):
            assert not counters.get(name), counters
        # Heartbeats go the same way: a head that answers later than this loses its workers.
        assert pulse.slowest_s < LEASE_TTL_S / 2
        slowest_ms = pulse.slowest_s * 1000
        print(
            f"{WORKERS} workers were back after {took_s:.1f} s; the slowest of {pulse.answers} "
            f"answers took {slowest_ms:.0f} ms"
        )
        assert cluster.head is not None
        assert "Traceback" not in cluster.head.text()
