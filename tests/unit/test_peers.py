"""Acks and confirmations: both ends of a client's stream, on a virtual clock."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from helpers.scheduling import ANYTHING
from rustray.client.connection import MAX_UNCONFIRMED, _Stream
from rustray.client.session import ClientSession
from rustray.common.durability import Durability
from rustray.common.errors import CommunicationError, RustRayError
from rustray.head.client_peer import ACK_FRAMES
from rustray.head.connections import ConnectionManager
from rustray.head.driver import HeadDriver
from rustray.head.journal import MemoryJournal
from rustray.head.notifications import NotificationManager
from rustray.head.worker_peer import MAX_STALLED_BEATS
from rustray.scheduler.commands import JournalCommand
from rustray.scheduler.events import CancelRequested, TasksSubmitted, WorkerJoined
from rustray.scheduler.scheduler import Scheduler
from rustray.scheduler.state import SchedulerSettings
from rustray.task.columns import PayloadColumn
from rustray.task.frames import (
    AcceptedRange,
    CancelRequest,
    ClassDefinition,
    ClientFrame,
    HeadFrame,
    LeaseOutcome,
    Outcome,
    Submission,
    WorkerFrame,
)
from rustray.task.inputs import InputId, pack_inputs
from rustray.task.spec import Codec, TaskClass
from rustray.task.state import TaskState
from rustray.task.views import WorkerInfo
from rustray.testing.clock import ProcessLoop, VirtualClock

PREFIX = b"0123456789"
CODE = b"code"
CALL = TaskClass("f", hashlib.sha256(CODE).digest(), codec=Codec.PICKLE)


@dataclass
class Pull:
    """A link that takes frames when it is asked to."""

    pump: Any
    frames: list[Any] = field(default_factory=list)
    is_closed: bool = False

    def wake(self) -> None:
        while (frame := self.pump.next_frame()) is not None:
            self.frames.append(frame)

    wake_now = wake

    async def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def loop() -> ProcessLoop:
    """A loop in virtual time."""
    return ProcessLoop(VirtualClock())


def pass_time(loop: ProcessLoop, seconds: float) -> None:
    """Let virtual time pass."""
    limit = loop.clock.now + seconds
    while loop.clock.step(limit):
        pass


@pytest.fixture
def link(loop: ProcessLoop) -> Pull:
    """A client's link at a head without workers."""
    driver = HeadDriver(Scheduler(), NotificationManager(), MemoryJournal(), loop)
    peer = ConnectionManager(driver).open_client(PREFIX, may_send_code=True)
    pull = Pull(peer)
    peer.attach(pull)
    return pull


def submission(first: int) -> Submission:
    """One task."""
    return Submission(1, first, PayloadColumn.of([b"x"]))


def definition(code: bytes = CODE) -> ClassDefinition:
    """Its class."""
    return ClassDefinition(1, CALL, code)


def test_an_ack_is_not_acked(link: Pull, loop: ProcessLoop) -> None:
    """Regression: head and client acked each other's acks, 14 a second, for ever."""
    first = ClientFrame(number=1, classes=[definition()], submissions=[submission(0)])
    link.pump.on_frame(first)
    pass_time(loop, 1.0)
    assert [frame.ack for frame in link.frames] == [1]
    link.pump.on_frame(ClientFrame(number=2, ack=1))
    pass_time(loop, 10.0)
    assert len(link.frames) == 1


def test_several_frames_are_acked_at_once(link: Pull) -> None:
    """A client that waits for confirmation need not wait for the timer."""
    for number in range(1, ACK_FRAMES + 1):
        classes = [definition()] if number == 1 else []
        frame = ClientFrame(number=number, classes=classes, submissions=[submission(number)])
        link.pump.on_frame(frame)
    assert [frame.ack for frame in link.frames] == [ACK_FRAMES]


def test_an_ack_of_the_future_ends_the_stream(link: Pull, loop: ProcessLoop) -> None:
    """A client that acks what was never sent is cut off, and nothing counts as delivered."""
    with pytest.raises(CommunicationError, match="never sent"):
        link.pump.on_frame(ClientFrame(number=1, ack=5))
    pass_time(loop, 0.0)


def test_code_that_is_not_what_it_says_is_refused(link: Pull) -> None:
    """A false hash would put another function in the place of everybody's."""
    frame = ClientFrame(number=1, classes=[definition(b"evil")], submissions=[submission(0)])
    link.pump.on_frame(frame)
    assert [(r.first, r.code) for r in link.frames[0].rejected] == [(0, "PAYLOAD")]
    assert "hash" in link.frames[0].rejected[0].message


async def test_a_client_waits_for_confirmation_and_goes_on() -> None:
    """After so many frames the next one collects until the head has said that it has some."""
    session = ClientSession(lambda: None)
    entry = session.define(CALL, CODE)
    stream = _Stream(session)
    for _ in range(MAX_UNCONFIRMED):
        session.submit(entry, b"x")
        assert stream.next_frame() is not None
    for _ in range(3):
        session.submit(entry, b"x")
    assert stream.next_frame() is None
    stream.on_frame(HeadFrame(number=1, ack=1))
    frame = stream.next_frame()
    assert frame is not None
    assert [len(part.payloads) for part in frame.submissions] == [3]


async def test_acks_alone_do_not_count_as_unconfirmed() -> None:
    """What the head will never confirm must not hold anything back, nor be acked again."""
    session = ClientSession(lambda: None)
    stream = _Stream(session)
    for number in range(1, 2 * MAX_UNCONFIRMED):
        outcome = Outcome(0, TaskState.SUCCEEDED, PayloadColumn.of([b"x"]), "w", 1)
        stream.on_frame(HeadFrame(number=number, outcomes=[outcome]))
        stream._is_ack_ripe = True
        assert stream.next_frame() is not None
    session.submit(session.define(CALL, CODE), b"x")
    assert stream.next_frame() is not None


def test_what_was_never_acked_says_so_when_a_session_closes() -> None:
    """Tasks that the head may not have end with another error than those that it has."""
    session = ClientSession(lambda: None)
    entry = session.define(CALL, CODE)
    stream_defined: set[int | bytes] = set()
    acked = session.submit(entry, b"x")
    session.fill(ClientFrame(), stream_defined)
    session.apply(HeadFrame(accepted=[AcceptedRange(0, 1)]))
    unsent = session.submit(entry, b"x")
    session.close(RustRayError("gone on"), RustRayError("never sent"))
    assert (str(acked.error()), str(unsent.error())) == ("gone on", "never sent")


class Pending(MemoryJournal):
    """A journal whose commits are let through by hand."""

    level = "full"

    def append(self, command: JournalCommand, durability: Durability = Durability.DEFAULT) -> None:
        self.appended += 1
        if durability in (Durability.DEFAULT, Durability.FULL):
            self.to_sync = self.appended

    def commit(self) -> None:
        """Commit everything, and sync it."""
        self.committed = self.synced = self.appended
        self.on_commit()


def test_a_report_is_acked_after_its_commit_and_not_with_what_it_leads_to(
    loop: ProcessLoop,
) -> None:
    """Regression: the next lease, sent at once, acked the report; a kill then cost a second run."""
    journal = Pending()
    driver = HeadDriver(Scheduler(), NotificationManager(), journal, loop)
    peers = ConnectionManager(driver)
    info = WorkerInfo("w", 1, "w", "", {"cpu_cores": 1}, functions=(ANYTHING,))
    driver.handle(WorkerJoined(info, 1))
    link = Pull(peers.open_worker("w", 1))
    link.pump.attach(link)
    link.pump.on_frame(WorkerFrame(number=1, held=[]))
    plain = TaskClass("f")
    for first in range(40):
        payloads = PayloadColumn.of([b"x"])
        driver.handle(TasksSubmitted(PREFIX, first, plain, payloads, is_pushed=True))
    journal.commit()
    [grant, *_] = [lease for frame in link.frames for lease in frame.leases]
    sent = len(link.frames)
    value = PayloadColumn.of([b"value"])
    outcome = LeaseOutcome(grant.lease, 0, TaskState.SUCCEEDED, value, 1)
    link.pump.on_frame(WorkerFrame(number=2, outcomes=[outcome]))
    assert {frame.ack for frame in link.frames[sent:]} == {1}
    journal.commit()
    pass_time(loop, 1.0)
    assert link.frames[-1].ack == 2


@pytest.mark.parametrize("careful", [TaskClass("f", max_retries=0), TaskClass("f", exclusive=True)])
def test_what_runs_at_most_once_is_not_handed_out_before_its_commit(
    loop: ProcessLoop, careful: TaskClass
) -> None:
    """A head after this one must know that it may have begun; other tasks need not wait."""
    journal = Pending()
    driver = HeadDriver(Scheduler(), NotificationManager(), journal, loop)
    peers = ConnectionManager(driver)
    info = WorkerInfo("w", 1, "w", "", {"cpu_cores": 2}, functions=(ANYTHING,))
    driver.handle(WorkerJoined(info, 1))
    link = Pull(peers.open_worker("w", 1))
    link.pump.attach(link)
    link.pump.on_frame(WorkerFrame(number=1, held=[]))
    given = []
    for first, task_class in ((0, careful), (1, TaskClass("f"))):
        column = PayloadColumn.of([b"x"])
        driver.handle(TasksSubmitted(PREFIX, first, task_class, column, is_pushed=True))
    for _ in range(2):
        given.append([lease.first for frame in link.frames for lease in frame.leases])
        journal.commit()
    given.append([lease.first for frame in link.frames for lease in frame.leases])
    assert given == [[1], [1, 0], [1, 0]]


def test_a_cancel_does_not_overtake_a_grant_that_waits_for_its_commit(loop: ProcessLoop) -> None:
    """Regression: the worker heard of the cancel first, took it for stale, and ran the task."""
    journal = Pending()
    driver = HeadDriver(Scheduler(), NotificationManager(), journal, loop)
    peers = ConnectionManager(driver)
    info = WorkerInfo("w", 1, "w", "", {"cpu_cores": 1}, functions=(ANYTHING,))
    driver.handle(WorkerJoined(info, 1))
    link = Pull(peers.open_worker("w", 1))
    link.pump.attach(link)
    link.pump.on_frame(WorkerFrame(number=1, held=[]))
    once = TaskClass("f", max_retries=0)
    driver.handle(TasksSubmitted(PREFIX, 0, once, PayloadColumn.of([b"x"]), is_pushed=True))
    driver.handle(CancelRequested(CancelRequest(PREFIX, 0, 1, force=True)))
    journal.commit()
    said = [("grant", one.lease) for frame in link.frames for one in frame.leases]
    heard = [
        (kind, one.lease, getattr(one, "force", None))
        for frame in link.frames
        for kind, parts in (("grant", frame.leases), ("cancel", frame.cancels))
        for one in parts
    ]
    [(_, lease)] = said
    assert heard[heard.index(("grant", lease, None)) + 1 :] == [("cancel", lease, True)]


def test_a_report_of_a_replaced_session_is_not_acked(loop: ProcessLoop) -> None:
    """Regression: a late second registration made the head ack outcomes that it had dropped."""
    driver = HeadDriver(Scheduler(), NotificationManager(), MemoryJournal(), loop)
    peers = ConnectionManager(driver)
    info = WorkerInfo("w", 1, "w", "", {"cpu_cores": 1}, functions=(ANYTHING,))
    driver.handle(WorkerJoined(info, 1))
    link = Pull(peers.open_worker("w", 1))
    link.pump.attach(link)
    link.pump.on_frame(WorkerFrame(number=1, held=[]))
    driver.handle(TasksSubmitted(PREFIX, 0, TaskClass("f"), PayloadColumn.of([b"x"]), True))
    [grant] = [lease for frame in link.frames for lease in frame.leases]
    driver.handle(WorkerJoined(info, 2))
    value = PayloadColumn.of([b"value"])
    outcome = LeaseOutcome(grant.lease, 0, TaskState.SUCCEEDED, value, 1)
    link.pump.on_frame(WorkerFrame(number=2, outcomes=[outcome]))
    pass_time(loop, 1.0)
    assert link.is_closed
    assert max(frame.ack for frame in link.frames) <= 1


def test_what_takes_the_result_of_a_refused_task_is_refused_for_the_time_being_too(
    loop: ProcessLoop,
) -> None:
    """Regression: it was refused for good, as if the task that it takes were another cluster's."""
    settings = SchedulerSettings(max_pending_tasks=1)
    driver = HeadDriver(Scheduler(settings), NotificationManager(), MemoryJournal(), loop)
    peer = ConnectionManager(driver).open_client(PREFIX, may_send_code=True)
    pull = Pull(peer)
    peer.attach(pull)
    taking = ClassDefinition(2, replace(CALL, has_inputs=True), CODE)

    def takes(first: int, taken: int) -> Submission:
        column = PayloadColumn.of([pack_inputs([InputId(PREFIX, taken)])])
        return Submission(2, first, PayloadColumn.of([b"x"]), inputs=column)

    pull.pump.on_frame(
        ClientFrame(
            number=1,
            classes=[definition(), taking],
            submissions=[submission(0), submission(1), takes(2, 1), takes(3, 2), takes(4, 9)],
        )
    )
    pass_time(loop, 1.0)
    refused = [(r.first, r.code, r.retry_after_s > 0) for f in pull.frames for r in f.rejected]
    assert refused == [
        (1, "RESOURCE_EXHAUSTED", True),
        (2, "RESOURCE_EXHAUSTED", True),
        (3, "RESOURCE_EXHAUSTED", True),
        (4, "OBJECT_LOST", False),
    ]


@pytest.mark.parametrize("lost_is", ["report", "order"])
def test_a_lost_frame_shows_though_others_go_the_other_way(
    loop: ProcessLoop, monkeypatch: pytest.MonkeyPatch, lost_is: str
) -> None:
    """Regression (simulation, seed 474): what was asked back again and again hid a lost report."""
    driver = HeadDriver(
        Scheduler(SchedulerSettings()), NotificationManager(), MemoryJournal(), loop
    )
    driver.handle(WorkerJoined(WorkerInfo("w", 1, "w", "", {"cpu_cores": 1}), 1))
    peer = ConnectionManager(driver).open_worker("w", 1)
    ended: list[str] = []
    monkeypatch.setattr(peer, "shut", lambda _, why: ended.append(why))
    for beat in range(1, MAX_STALLED_BEATS + 2):
        assert ended == []
        if lost_is == "report":
            peer.sent = beat
            peer.compare(1, beat)
        else:
            peer.sent, peer.received = 1, beat
            peer.compare(beat, 0)
    assert ended == ["frame_lost"]
