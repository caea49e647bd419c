"""An executor of an embedded cluster looks for its next chunk while they come quickly."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.waiting import aeventually
from rustray.worker import child_wait
from rustray.worker.child_wait import LOOK_AFTER, LOOK_S, Mailbox
from unit.worker.executor_harness import bench


class Channel:
    """A mailbox for single bytes under a clock of the test's, which counts its looks.

    Attributes:
        now: What the clock says.
        looks: How often it has looked.
        finds: Whether a look finds something.
        look_s: How long one takes.
    """

    def __init__(self, ours: socket.socket, theirs: socket.socket) -> None:
        self.now = 100.0
        self.looks = 0
        self.finds, self.look_s = True, 0.0
        self._ours = ours
        self.mailbox = Mailbox(theirs, 1)
        self.mailbox._poll = self._look

    def perf_counter(self) -> float:
        """Stand in for the module's clock."""
        return self.now

    def _look(self, _timeout: float | None = None) -> list[tuple[int, int]]:
        self.looks += 1
        self.now += self.look_s
        return [(0, 1)] if self.finds else []

    def pass_on(self, count: int) -> None:
        """Send single bytes, and receive each at once."""
        for _ in range(count):
            self._ours.send(b"x")
            assert self.mailbox.receive()[0] == 1


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Channel]:
    """A channel that may look."""
    ours, theirs = socket.socketpair()
    made = Channel(ours, theirs)
    monkeypatch.setattr(child_wait, "time", made)
    monkeypatch.setattr(child_wait, "_may_look", True)
    yield made
    ours.close()
    theirs.close()


def test_it_looks_after_some_that_came_quickly(channel: Channel) -> None:
    """Not before: most that come are not followed by others."""
    channel.pass_on(LOOK_AFTER)
    assert channel.looks == 0
    channel.pass_on(5)
    assert channel.looks == 5


def test_one_that_comes_late_ends_it(channel: Channel) -> None:
    """It looks no longer than it may, sleeps for that one, and does not look for the next ones."""
    channel.pass_on(LOOK_AFTER)
    channel.finds, channel.look_s = False, LOOK_S / 4
    channel.pass_on(1)
    assert channel.looks in (4, 5)  # the sum of four quarters may lack a bit
    before = channel.looks
    channel.pass_on(LOOK_AFTER)
    assert channel.looks == before


def test_large_messages_do_not_count(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come in several pieces, one right behind the other."""
    monkeypatch.setattr(child_wait, "SMALL_BYTES", 0)
    channel.pass_on(3 * LOOK_AFTER)
    assert channel.looks == 0


def test_it_ends_though_a_task_has_stopped_the_clock(
    channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As tests of programs do."""
    monkeypatch.setattr(child_wait, "MAX_LOOKS", 100)
    channel.pass_on(LOOK_AFTER)
    channel.finds = False
    channel.pass_on(1)
    assert channel.looks == 100


def test_it_sleeps_where_it_may_not_look(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """An executor of a worker that is a process of its own."""
    monkeypatch.setattr(child_wait, "_may_look", False)
    channel.pass_on(3 * LOOK_AFTER)
    assert channel.looks == 0


@pytest.mark.parametrize("looks", [True, False])
async def test_an_executor_sleeps_when_nothing_comes_any_more(looks: bool) -> None:
    """It does what comes, looking or not; its process sleeps afterwards, and ends in order."""
    async with bench(looks=looks) as made:
        executor = made.spawn()
        number = made.define(executor, child_may_look)
        for _ in range(4 * LOOK_AFTER):
            lease = made.run(executor, number, ())
            assert await made.values(lease, 1) == [looks]
        stat = Path(f"/proc/{await made.pid_of(executor)}/stat")
        await aeventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S", 10.0)


def child_may_look() -> bool:
    """Say whether this process may look."""
    from rustray.worker import child_wait as here

    return here._may_look
