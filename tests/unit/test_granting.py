"""How leases go to workers: chains in one frame, and behind what they follow."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.scheduling import ANYTHING
from rustray.head.connections import ConnectionManager
from rustray.head.driver import HeadDriver
from rustray.head.journal import MemoryJournal
from rustray.head.notifications import NotificationManager
from rustray.scheduler.events import TasksSubmitted, WorkerJoined
from rustray.scheduler.scheduler import Scheduler
from rustray.task.columns import PayloadColumn
from rustray.task.frames import LeaseOutcome, WorkerFrame
from rustray.task.inputs import InputId, pack_inputs
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from rustray.task.views import WorkerInfo
from rustray.testing.clock import ProcessLoop, VirtualClock
from unit.test_peers import PREFIX, Pending, Pull

LINK = TaskClass("f", has_inputs=True)


class Chain:
    """A head with one worker that runs the first task of a chain of six."""

    def __init__(self, journal: Any) -> None:
        loop = ProcessLoop(VirtualClock())
        self.driver = HeadDriver(Scheduler(), NotificationManager(), journal, loop)
        peers = ConnectionManager(self.driver)
        info = WorkerInfo("w", 1, "w", "", {"cpu_cores": 1}, functions=(ANYTHING,))
        self.driver.handle(WorkerJoined(info, 1))
        self.link = Pull(peers.open_worker("w", 1))
        self.link.pump.attach(self.link)
        self.link.pump.on_frame(WorkerFrame(number=1, held=[]))
        column = PayloadColumn.of([b"x"])
        self.driver.handle(TasksSubmitted(PREFIX, 0, TaskClass("f"), column, is_pushed=True))
        for number in range(1, 6):
            takes = PayloadColumn.of([pack_inputs([InputId(PREFIX, number - 1)])])
            self.driver.handle(TasksSubmitted(PREFIX, number, LINK, column, True, inputs=takes))

    def end_first(self) -> None:
        """Have the worker report the first task's end; its frames begin anew."""
        [first] = [lease for frame in self.link.frames for lease in frame.leases]
        self.link.frames.clear()
        value = PayloadColumn.of([b"value"])
        outcome = LeaseOutcome(first.lease, 0, TaskState.SUCCEEDED, value, 1)
        self.link.pump.on_frame(WorkerFrame(number=2, outcomes=[outcome]))

    def granted(self) -> list[list[int]]:
        """Return the numbers of the tasks that were leased, frame by frame."""
        frames = [[lease.first for lease in frame.leases] for frame in self.link.frames]
        return [one for one in frames if one]


def test_a_lease_and_what_follows_it_are_in_one_frame() -> None:
    """Bug: the first went alone; where it was quick, the others came too late, and went back."""
    chain = Chain(MemoryJournal())
    chain.end_first()
    assert chain.granted() == [[1, 2, 3, 4, 5]]


def test_what_follows_a_lease_that_is_held_back_waits_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bug: it went at once, and the worker, which had not what it follows, gave it back."""
    journal = Pending()
    chain = Chain(journal)
    journal.commit()
    # As where another worker has made what the first takes.
    monkeypatch.setattr(chain.driver.grants, "_may_go", lambda _: False)
    chain.end_first()
    assert chain.granted() == []
    journal.commit()
    assert [number for frame in chain.granted() for number in frame] == [1, 2, 3, 4, 5]
    assert chain.driver.grants.held == 0
