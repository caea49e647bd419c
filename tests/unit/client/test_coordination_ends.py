"""What becomes of those who wait for locks and items when their session ends."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import rustray
from helpers.waiting import aeventually, eventually
from rustray.client.channels import SessionChannel
from rustray.client.coordination import current_channel
from rustray.common.errors import LeaseLost
from rustray.head.embedded import EmbeddedHead

pytestmark = pytest.mark.slow


@contextlib.asynccontextmanager
async def two_nodes() -> AsyncIterator[tuple[rustray.HeadNode, rustray.HeadNode]]:
    """Two connections to one head."""
    head = EmbeddedHead()
    await head.start()
    nodes = [rustray.HeadNode.over(head.api()) for _ in range(2)]
    try:
        yield nodes[0], nodes[1]
    finally:
        for node in nodes:
            await node.close()
        await head.close()


def under_way(channel: Any) -> int:
    """Return how many requests have no answer yet."""
    return len(channel._coordinator._open)


@pytest.mark.parametrize("make", [rustray.Lock, rustray.Semaphore])
def test_shutdown_gives_nothing_to_a_thread_that_waits(
    make: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """It gets LeaseLost, not what the session itself lets go of; nobody was silent for too long."""
    outcomes: list[object] = []

    def wait() -> None:
        try:
            outcomes.append(second.acquire())
        except LeaseLost as error:
            outcomes.append(str(error))

    with rustray.init(num_cpus=1):
        first, second = make("x"), make("x")
        assert first.acquire()
        channel = current_channel()
        assert isinstance(channel, SessionChannel)
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        eventually(lambda: under_way(channel))
    thread.join(10)
    assert [str(outcome)[:22] for outcome in outcomes] == ["this session has ended"]
    assert "the lease is lost" not in caplog.text


async def test_a_node_that_closes_gives_nothing_to_its_own_waits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What it lets go of is for others."""
    async with two_nodes() as (node, other):
        assert await node.lock("x").aacquire()
        waits = [
            asyncio.create_task(node.lock("x").aacquire()),
            asyncio.create_task(node.event("e").await_()),
            asyncio.create_task(node.queue("q").aget()),
        ]
        next_one = asyncio.create_task(other.lock("x").aacquire())
        await aeventually(lambda: under_way(node) == 3 and under_way(other) == 1)
        await node.close()
        outcomes = await asyncio.wait_for(asyncio.gather(*waits, return_exceptions=True), 10)
        assert [type(outcome) for outcome in outcomes] == [LeaseLost] * 3
        assert await asyncio.wait_for(next_one, 10)
    assert "the lease is lost" not in caplog.text
