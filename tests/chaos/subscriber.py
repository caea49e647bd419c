"""Follows all events: ``python -m chaos.subscriber HOST PORT STREAM PAUSE_S``.

A slow one (PAUSE_S above 0) reads with pauses, until the head drops it, and comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import Any

import rustray
from chaos.history import REFUSED_EXIT, Writer, own_writer

_PIECE = 200
_PATIENCE_S = 0.5


async def follow(host: str, port: int, stream: str, pause_s: float) -> None:
    """Write down every event, and each break in their numbers that the head has announced."""
    history, stop = own_writer(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    following = asyncio.create_task(_follow(history, host, port, stream, pause_s))
    await asyncio.wait(
        {following, asyncio.create_task(stop.wait())}, return_when=asyncio.FIRST_COMPLETED
    )
    if following.done():
        following.result()
    following.cancel()


async def _follow(history: Writer, host: str, port: int, stream: str, pause_s: float) -> None:
    log = _Log(history, stream)
    cursor = 0
    while True:
        try:
            async with rustray.HeadNode(host, port) as head:
                begin, cursor = cursor, 0
                async for event in head.subscribe(cursor=begin):
                    log.add(event)
                    if pause_s:
                        await _pause(pause_s)
        except (rustray.CommunicationError, rustray.ResourceExhausted) as error:
            log.flush()
            history.write("reset", stream=stream, reason=type(error).__name__)
            cursor = -1 if isinstance(error, rustray.ResourceExhausted) else 0
        except rustray.AuthenticationError as error:
            print(f"subscriber ends: {error}", file=sys.stderr, flush=True)
            os._exit(REFUSED_EXIT)
        await _pause(_PATIENCE_S)


class _Log:
    """Collects what arrives together, so that it costs one line and one sync."""

    def __init__(self, history: Writer, stream: str) -> None:
        self._history, self._stream = history, stream
        self._events: list[list[Any]] = []

    def add(self, event: rustray.TaskEvent) -> None:
        if not self._events:
            asyncio.get_running_loop().call_soon(self.flush)
        self._events.append(_short(event))
        if len(self._events) >= _PIECE:
            self.flush()

    def flush(self) -> None:
        events, self._events = self._events, []
        if events:
            self._history.write("events", stream=self._stream, ev=events)


def _short(event: rustray.TaskEvent) -> list[Any]:
    return [event.revision, event.task_id, event.state.name, event.attempt]


async def _pause(seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), seconds)


if __name__ == "__main__":
    asyncio.run(follow(sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])))
