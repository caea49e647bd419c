"""Certificates that are renewed while their server runs, by a clock that the test moves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from helpers.waiting import aeventually
from rustray.common.errors import ConfigError, HeadUnavailable
from rustray.security.certificates import ServerIdentity, load_server_identity
from rustray.security.renewal import DAY_S, HEAD_BEFORE_S, keep_identity
from rustray.security.state_dir import StateDir

NOW = 1_800_000_000.0


class Server:
    """Remembers what it was told to show, and whom it asked."""

    def __init__(self, state: StateDir) -> None:
        self.now = NOW
        self.looks = 0
        self.shown: list[ServerIdentity] = []
        self.errors: list[Exception] = []
        self.first = load_server_identity(state, ["127.0.0.1"], NOW)
        self._state = state

    def clock(self) -> float:
        self.looks += 1
        return self.now

    async def load(self, now_unix_s: float) -> ServerIdentity:
        if self.errors:
            raise self.errors.pop(0)
        return load_server_identity(self._state, ["127.0.0.1"], now_unix_s)

    async def look(self, times: int = 3) -> None:
        """Wait until it has looked at its certificate so often."""
        before = self.looks
        await aeventually(lambda: self.looks >= before + times)


@contextlib.asynccontextmanager
async def _keeping(server: Server) -> AsyncIterator[None]:
    keeping = keep_identity(
        server.first, server.load, server.shown.append,
        before_s=HEAD_BEFORE_S, clock=server.clock, check_s=0.001,
    )  # fmt: skip
    task = asyncio.create_task(keeping)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_certificate_is_renewed_a_month_before_its_end_and_again(state: StateDir) -> None:
    """Nothing before, one new one then, and the same for that one; the authority stays."""
    server = Server(state)
    async with _keeping(server):
        server.now = NOW + 59 * DAY_S
        await server.look()
        assert server.shown == []
        server.now = NOW + 61 * DAY_S
        await aeventually(lambda: len(server.shown) == 1)
        await server.look()
        server.now = NOW + 122 * DAY_S
        await aeventually(lambda: len(server.shown) == 2)
        await server.look()
    assert [one.expires_unix_s for one in server.shown] == [NOW + 151 * DAY_S, NOW + 212 * DAY_S]
    assert {one.ca_pem for one in (server.first, *server.shown)} == {server.first.ca_pem}


async def test_what_cannot_be_renewed_now_is_tried_again_and_said(
    state: StateDir, caplog: pytest.LogCaptureFixture
) -> None:
    """A head that is away, or a disk that is full, has a month to come back."""
    server = Server(state)
    server.errors = [HeadUnavailable("it is away"), ConfigError("no room"), OSError("broken")]
    server.now = NOW + 61 * DAY_S
    async with _keeping(server):
        await aeventually(lambda: len(server.shown) == 1)
    for words in ("it is away", "no room", "broken", "ends in 29.0 days"):
        assert words in caplog.text
