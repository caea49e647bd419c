"""How long a waiting command puts up with a head that is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from rustray.cli.call import Call
from rustray.cli.output import Output
from rustray.cli.patience import OUTAGE_S, Patience, with_head
from rustray.common.errors import AuthenticationError, GetTimeout, HeadUnavailable

AWAY = HeadUnavailable("no head answers at h:1")


class Clock:
    """Goes on by itself with each pause."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.pauses: list[float] = []
        monkeypatch.setattr(asyncio, "sleep", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that the test's pauses move."""
    return Clock(monkeypatch)


class Heads:
    """A call whose connections fail or work as the test says."""

    def __init__(self, *found: BaseException | None) -> None:
        self.found = list(found)

    @asynccontextmanager
    async def head(self) -> AsyncIterator[Any]:
        error = self.found.pop(0)
        if error is not None:
            raise error
        yield self


def _with(heads: Heads, patience: Patience, use: Any) -> Any:
    return with_head(cast("Call", heads), patience, use)


async def _answer(_: Any) -> str:
    return "answer"


async def test_it_tries_again_and_says_so_once(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """The note names the head and the limit; a second one says that it is back."""
    patience = Patience(Output(), 30.0, clock)
    assert await _with(Heads(AWAY, AWAY, AWAY, None), patience, _answer) == "answer"
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("no head answers at h:1; waiting up to 30 s") == 1
    assert told.err.count("the head is back") == 1
    assert len(clock.pauses) == 3


async def test_without_a_limit_each_outage_has_one(clock: Clock) -> None:
    """A minute for each, and not for all of them together."""
    patience = Patience(Output(), None, clock)
    for _ in range(3):
        clock.now += OUTAGE_S - 1.0
        await patience.endure(AWAY)
        patience.heard()
    with pytest.raises(HeadUnavailable, match="h:1"):
        await _with(Heads(*[AWAY] * 1_000), patience, _answer)
    assert sum(clock.pauses[3:]) == pytest.approx(OUTAGE_S)


async def test_the_users_limit_is_the_limit(clock: Clock) -> None:
    """Shorter or longer than what an outage may last."""
    for limit_s in (0.5, 300.0):
        clock.pauses.clear()
        with pytest.raises(HeadUnavailable, match="h:1"):
            await _with(Heads(*[AWAY] * 1_000), Patience(Output(), limit_s, clock), _answer)
        assert sum(clock.pauses) == pytest.approx(limit_s)


@pytest.mark.parametrize("error", [AuthenticationError("no"), GetTimeout("not yet")])
async def test_no_other_error_is_waited_for(clock: Clock, error: Exception) -> None:
    """Least of all that the task has not ended in time."""

    async def fail(_: Any) -> None:
        raise error

    with pytest.raises(type(error)):
        await _with(Heads(None, None), Patience(Output(), 5.0, clock), fail)
    assert clock.pauses == []


async def test_a_head_that_hangs_does_not_hang_the_command() -> None:
    """A connection that neither stands nor fails ends with the limit."""

    class Hanging(Heads):
        @asynccontextmanager
        async def head(self) -> AsyncIterator[Any]:
            await asyncio.Event().wait()
            yield self

    with pytest.raises(HeadUnavailable, match="--timeout"):
        await _with(Hanging(), Patience(Output(), 0.01), _answer)
