"""Composition root of ``rustray worker``: agent, service, signals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

from rustray.rpc.api import HeadApi
from rustray.worker.agent import WorkerAgent
from rustray.worker.config import WorkerConfig
from rustray.worker.service import WorkerService

logger = logging.getLogger("rustray.worker")


class Server(Protocol):
    """A WorkerService that listens."""

    @property
    def address(self) -> str:
        """Where others reach it: host:port."""

    async def stop(self) -> None:
        """Stop listening."""


Serve = Callable[[WorkerService, WorkerConfig, str], Awaitable[Server | None]]
"""Puts the service of the worker with this id on the wire, at the configured address and port."""


async def run_worker(
    config: WorkerConfig,
    head: HeadApi,
    *,
    serve: Serve | None = None,
    head_address: str = "",
    version: str = "",
    on_start: Callable[[WorkerAgent], None] | None = None,
) -> None:
    """Run a worker until it is told to stop.

    The first SIGTERM or SIGINT drains it, the second one stops it at once.

    Args:
        config: What it offers.
        head: The head to work for.
        serve: Listens for direct calls; None: nobody can call the worker.
        head_address: For its status.
        version: rustray's version, for registration and status.
        on_start: Called once, when the function modules have been imported.

    Raises:
        ConfigError: a function module cannot be imported, the port is taken.
        AuthorizationError: the token does not allow to be a worker.
    """
    agent = WorkerAgent(head, config, version=version)
    server = None
    if serve is not None:
        service = WorkerService(agent, head=head_address, version=version)
        server = await serve(service, config, agent.worker_id)
        agent.address = server.address if server is not None else ""
    ending: list[asyncio.Task[None]] = []
    try:
        with _signals(lambda: _end(agent, ending)):
            await _run(agent, on_start)
    finally:
        for task in ending:
            await task
        if server is not None:
            await server.stop()


async def _run(agent: WorkerAgent, on_start: Callable[[WorkerAgent], None] | None) -> None:
    running = asyncio.create_task(agent.run(), name="rustray-worker")
    loaded = asyncio.create_task(agent.wait_loaded())
    try:
        await asyncio.wait({running, loaded}, return_when=asyncio.FIRST_COMPLETED)
        if on_start is not None and loaded.done():
            on_start(agent)
        await running
    finally:
        loaded.cancel()
        if not running.done():
            running.cancel()
            await asyncio.wait({running})


def _end(agent: WorkerAgent, ending: list[asyncio.Task[None]]) -> None:
    if not ending:
        logger.info("told to stop: finishing what runs; once more stops at once")
        ending.append(asyncio.create_task(agent.drain()))
    else:
        ending.append(asyncio.create_task(agent.stop()))


@contextlib.contextmanager
def _signals(handler: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
