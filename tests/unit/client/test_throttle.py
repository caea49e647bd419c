"""Backpressure at the client: refused for the time being is handed in again, under the same ids."""

from __future__ import annotations

import logging

import pytest

from rustray.client.refs import TaskRef
from rustray.client.session import ClientSession
from rustray.client.throttle import Throttle
from rustray.common.errors import ResourceExhausted
from rustray.task.columns import PayloadColumn
from rustray.task.frames import AcceptedRange, ClientFrame, HeadFrame, Outcome, Rejection
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState


class Desk:
    """A session with a throttle whose time and luck the test decides."""

    def __init__(self, patience_s: float = 60.0) -> None:
        self.now = 1000.0
        self.wakes: list[float] = []
        self.roused = 0
        throttle = Throttle(self._wake_after, patience_s, lambda: self.now, lambda: 0.5)
        self.session = ClientSession(self._rouse, throttle=throttle)
        self.entry = self.session.define(TaskClass("f"), b"")

    def _wake_after(self, seconds: float) -> None:
        self.wakes.append(self.now + seconds)

    def _rouse(self) -> None:
        self.roused += 1

    def submit(self, count: int) -> list[TaskRef[object]]:
        """Hand in tasks."""
        return [self.session.submit(self.entry, b"x") for _ in range(count)]

    def send(self) -> list[tuple[int, int]]:
        """Return what goes out now, as (first, count), frame by frame."""
        sent: list[tuple[int, int]] = []
        while not self.session.rest():
            frame = ClientFrame()
            if not self.session.fill(frame, set()):
                continue
            sent += [(one.first, len(one.payloads)) for one in frame.submissions]
        return sent

    def refuse(self, first: int, count: int, hint_s: float = 2.0) -> None:
        """Have the head refuse tasks for the time being."""
        refused = Rejection(first, count, "RESOURCE_EXHAUSTED", "too many", hint_s, "PENDING_TASKS")
        self.session.apply(HeadFrame(rejected=[refused]))

    def accept(self, first: int, count: int) -> None:
        """Have the head accept tasks."""
        self.session.apply(HeadFrame(accepted=[AcceptedRange(first, count)]))

    def wait(self) -> None:
        """Let time pass until the throttle has the session asked for frames."""
        self.now = self.wakes[-1]


def test_refused_tasks_go_out_again_and_end() -> None:
    """Nothing goes out before hint and lot have passed; then the same ids, once."""
    desk = Desk()
    refs = desk.submit(10)
    assert desk.send() == [(0, 10)]
    desk.accept(0, 4)
    desk.refuse(4, 6)
    assert desk.send() == []
    assert desk.wakes == [1000.0 + 2.0 + 0.5 * 0.5]
    assert not any(ref.is_done for ref in refs)
    desk.now += 2.0
    assert desk.send() == []
    desk.wait()
    assert desk.send() == [(4, 6)]
    desk.accept(4, 6)
    outcome = Outcome(0, TaskState.SUCCEEDED, PayloadColumn.of([b"r"] * 10), "w", 1)
    desk.session.apply(HeadFrame(outcomes=[outcome]))
    assert all(ref.is_done for ref in refs)
    assert desk.send() == []


def test_one_probe_goes_first_and_the_rest_follows_it() -> None:
    """While the head is full one frame asks, not everything that waits."""
    desk = Desk()
    desk.submit(4096 * 3)
    assert desk.send() == [(0, 4096), (4096, 4096), (8192, 4096)]
    for number in range(3):
        desk.refuse(4096 * number, 4096)
    assert len(desk.wakes) == 1, "what was under way at the first refusal makes no new wait"
    desk.wait()
    assert desk.send() == [(0, 4096)]
    desk.submit(5)
    assert desk.send() == []
    desk.accept(0, 4096)
    assert desk.roused > 0
    assert desk.send() == [(4096, 4096), (8192, 4096), (12288, 5)]


def test_waits_grow_while_probes_are_refused() -> None:
    """The hint is the least; the lot on top of it doubles."""
    desk = Desk()
    desk.submit(1)
    waits = []
    for _ in range(4):
        assert desk.send() == [(0, 1)]
        desk.refuse(0, 1, 1.0)
        waits.append(desk.wakes[-1] - desk.now)
        desk.wait()
    assert waits == [1.25, 1.5, 2.0, 3.0]


def test_patience_has_an_end() -> None:
    """After so long without one task accepted they fail, with the hint and the reason."""
    desk = Desk(patience_s=5.0)
    (ref,) = desk.submit(1)
    for _ in range(20):
        desk.send()
        desk.refuse(0, 1)
        if ref.is_done:
            break
        desk.wait()
    error = ref.error()
    assert isinstance(error, ResourceExhausted)
    assert (error.retry_after_s, error.reason) == (2.0, "PENDING_TASKS")
    assert 5.0 < desk.now - 1000.0 < 30.0


def test_other_refusals_are_final() -> None:
    """Without a hint a refusal is the answer, also while the session waits."""
    desk = Desk()
    waiting, bad = desk.submit(2)
    desk.send()
    desk.refuse(0, 1)
    desk.session.apply(HeadFrame(rejected=[Rejection(1, 1, "PAYLOAD", "no")]))
    assert (waiting.is_done, bad.is_done) == (False, True)


def test_cancels_pass_while_tasks_wait() -> None:
    """A cancel of an accepted task does not stand behind refused ones."""
    desk = Desk()
    first, _ = desk.submit(2)
    desk.send()
    desk.accept(0, 1)
    desk.refuse(1, 1)
    assert desk.session.rest()
    desk.session.cancel([first], force=False)
    assert desk.roused == 1
    frame = ClientFrame()
    assert desk.session.fill(frame, set())
    assert [(one.first, one.count) for one in frame.cancels] == [(0, 1)]
    assert frame.submissions == []


def test_a_new_stream_begins_with_a_probe() -> None:
    """A stream that is lost while a probe is under way does not leave the session waiting."""
    desk = Desk()
    desk.submit(3)
    desk.send()
    desk.refuse(0, 3)
    desk.wait()
    assert desk.send() == [(0, 3)]
    desk.session.restart()
    assert desk.send() == [(0, 3)]


def test_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """One warning says why tasks wait and for how long they do."""
    desk = Desk()
    desk.submit(1)
    with caplog.at_level(logging.WARNING, "rustray.client"):
        for _ in range(3):
            desk.send()
            desk.refuse(0, 1)
            desk.wait()
    (record,) = caplog.records
    assert "too many" in record.getMessage()
    assert "60 s" in record.getMessage()


def test_a_probe_that_is_refused_for_good_ends_the_wait() -> None:
    """No other answer to the probe comes, so what waits behind it goes out without a new stream."""
    desk = Desk()
    bad = desk.submit(4096)
    good = desk.submit(3)
    desk.send()
    desk.refuse(0, 4099)
    desk.wait()
    assert desk.send() == [(0, 4096)]
    roused = desk.roused
    desk.session.apply(HeadFrame(rejected=[Rejection(0, 4096, "FUNCTION_NOT_FOUND", "no f")]))
    assert all(ref.is_done for ref in bad)
    assert desk.roused > roused
    assert desk.send() == [(4096, 3)], "the next frame is the probe"
    desk.submit(1)
    assert desk.send() == []
    desk.session.apply(HeadFrame(rejected=[Rejection(4096, 3, "FUNCTION_NOT_FOUND", "no f")]))
    assert all(ref.is_done for ref in good)
    assert desk.send() == [(4099, 1)]
    desk.accept(4099, 1)
    assert desk.send() == []
    roused = desk.roused
    desk.submit(1)
    assert desk.roused == roused + 1, "an idle session is roused as ever"
    assert desk.send() == [(4100, 1)]


def test_a_probe_refused_in_part_for_good_waits_for_the_rest() -> None:
    """The refusal for the time being that comes with it makes the wait, whatever their order."""
    final = Rejection(0, 1, "PAYLOAD", "no")
    later = Rejection(1, 2, "RESOURCE_EXHAUSTED", "too many", 2.0, "PENDING_TASKS")
    for rejected in ([final, later], [later, final]):
        desk = Desk()
        desk.submit(3)
        desk.send()
        desk.refuse(0, 3)
        desk.wait()
        assert desk.send() == [(0, 3)]
        desk.session.apply(HeadFrame(rejected=rejected))
        assert desk.send() == []
        desk.wait()
        assert desk.send() == [(1, 2)]


def test_the_end_of_patience_rouses_what_waits_behind_the_probe() -> None:
    """The next tasks are handed in, and fail in turn: nothing stays behind unasked."""
    desk = Desk(patience_s=1.0)
    first = desk.submit(4096)
    second = desk.submit(1)
    desk.send()
    desk.refuse(0, 4097)
    desk.wait()
    assert desk.send() == [(0, 4096)]
    roused = desk.roused
    desk.refuse(0, 4096)
    assert all(ref.is_done for ref in first)
    assert desk.roused > roused
    assert desk.send() == [(4096, 1)]
    desk.refuse(4096, 1)
    assert second[0].is_done


def cancels_of(desk: Desk) -> list[tuple[int, int, bool]]:
    """Return the cancels of all frames that go out now."""
    found: list[tuple[int, int, bool]] = []
    while not desk.session.rest():
        frame = ClientFrame()
        if desk.session.fill(frame, set()):
            found += [(one.first, one.count, one.force) for one in frame.cancels]
    return found


def test_the_cancel_of_a_refused_task_goes_out_with_it_again() -> None:
    """The head did not have the task when it was cancelled, so each time it gets both."""
    desk = Desk()
    refs = desk.submit(2)
    desk.send()
    desk.refuse(0, 2)
    desk.session.cancel([refs[0]], force=True)
    cancels_of(desk)
    for _ in range(2):
        desk.wait()
        assert cancels_of(desk) == [(0, 1, True)]
        desk.refuse(0, 2)
    desk.wait()
    assert cancels_of(desk) == [(0, 1, True)]
    desk.accept(0, 2)
    assert cancels_of(desk) == []


def test_the_cancel_of_an_unsent_task_stands_in_nobodys_way() -> None:
    """While the session waits a running task can be cancelled; the other cancel is kept."""
    desk = Desk()
    (running,) = desk.submit(1)
    desk.send()
    desk.accept(0, 1)
    desk.submit(1)
    desk.send()
    desk.refuse(1, 1)
    (unsent,) = desk.submit(1)
    desk.session.cancel([unsent, running], force=False)
    assert cancels_of(desk) == [(0, 1, False)]
    assert desk.session.rest(), "what cannot go out keeps nobody busy"
    desk.wait()
    sent = cancels_of(desk)
    desk.accept(1, 1)
    assert sent + cancels_of(desk) == [(2, 1, False)]


def test_a_cancel_passes_while_its_task_is_about_to_go_out_again() -> None:
    """A late ack of what was under way at the refusal loses no cancel given in between."""
    desk = Desk()
    desk.submit(4096)
    (late,) = desk.submit(1)
    desk.send()
    desk.refuse(0, 4096)
    desk.wait()
    assert desk.send() == [(0, 4096)], "the probe; the late one is to follow it"
    desk.session.cancel([late], force=False)
    assert cancels_of(desk) == [(4096, 1, False)]
    desk.accept(4096, 1)
    desk.accept(0, 4096)
    assert desk.send() == []
