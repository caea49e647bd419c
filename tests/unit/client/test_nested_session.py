"""The ids of what a task hands in: the order of its calls, and another way where they are taken."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rustray.client.nested_session import REGION_BITS, NestedSession
from rustray.client.refs import TaskRef
from rustray.client.throttle import Throttle
from rustray.common.errors import AuthorizationError
from rustray.common.ids import child_prefix, task_id
from rustray.task.columns import PayloadColumn
from rustray.task.frames import (
    AcceptedRange,
    CancelRequest,
    ClientFrame,
    HeadFrame,
    Outcome,
    Rejection,
)
from rustray.task.relay import Seat
from rustray.task.spec import Codec, TaskClass
from rustray.task.state import TaskState

PARENT = b"0123456789"
F = TaskClass("f", b"f" * 32, codec=Codec.PICKLE)
G = TaskClass("g", b"g" * 32, codec=Codec.PICKLE)
REST = 1 << REGION_BITS


def a_session(attempt: int = 1) -> NestedSession:
    """The session of an attempt, without a connection."""
    return NestedSession(lambda: None, 0, Throttle(None), Seat(PARENT, 7, attempt, 1, 0, 0))


def sent(session: NestedSession) -> tuple[list[tuple[int, int]], list[CancelRequest]]:
    """Return (sequence, class number) of what goes out now, and the cancels."""
    tasks: list[tuple[int, int]] = []
    cancels: list[CancelRequest] = []
    defined: set[int | bytes] = set()
    while session.fill(frame := ClientFrame(), defined):
        for part in frame.submissions:
            tasks += [(part.first + i, part.class_number) for i in range(len(part.payloads))]
        cancels += frame.cancels
    return tasks, cancels


def refused(first: int, count: int = 1) -> HeadFrame:
    """The head knows other tasks under these ids."""
    return HeadFrame(rejected=[Rejection(first, count, "DUPLICATE_TASK", "taken")])


def value(first: int, *payloads: bytes) -> HeadFrame:
    """Tasks have ended."""
    column = PayloadColumn.of(list(payloads))
    return HeadFrame(outcomes=[Outcome(first, TaskState.SUCCEEDED, column, "w", 1)])


@pytest.mark.parametrize("sends_between", [False, True])
def test_sequences_are_the_order_of_calls(sends_between: bool) -> None:
    """Whatever is sent meanwhile: so that the same calls of the next attempt have the same ids."""
    session = a_session()
    f, g = session.define(F, b"f"), session.define(G, b"g")
    refs: list[TaskRef[Any]] = []
    found: list[tuple[int, int]] = []
    for entry in (f, g, f, f, g):
        refs.append(session.submit(entry, b"x"))
        if sends_between:
            found += sent(session)[0]
    found += sent(session)[0]
    assert sorted(found) == [(0, 1), (1, 2), (2, 1), (3, 1), (4, 2)]
    prefix = child_prefix(PARENT, 7)
    assert [ref.task_id for ref in refs] == [task_id(prefix, i) for i in range(5)]


def test_what_is_taken_goes_under_another_id() -> None:
    """With its watchers and its cancel; what earlier attempts have left is cancelled."""
    session = a_session(attempt=3)
    f = session.define(F, b"f")
    refs = [session.submit(f, bytes([i])) for i in range(4)]
    told: list[TaskRef[Any]] = []
    assert refs[1].watch(told.append)
    tasks, cancels = sent(session)
    assert [number for number, _ in tasks] == [0, 1, 2, 3]
    assert cancels == [CancelRequest(b"", REST, 2 * REST)]
    session.cancel([refs[2]], force=False)
    session.apply(HeadFrame(accepted=[AcceptedRange(0, 1), AcceptedRange(3, 1)]))
    session.apply(refused(1, 2))
    late = session.submit(f, b"late")
    tasks, cancels = sent(session)
    own = 3 * REST
    assert [number for number, _ in tasks] == [own, own + 1, own + 2]
    assert CancelRequest(b"", 4, REST - 4) in cancels
    assert CancelRequest(b"", 1, 2) in cancels
    assert CancelRequest(b"", own + 1, 1) in cancels
    session.apply(value(0, b"0"))
    session.apply(value(3, b"3"))
    session.apply(value(own, b"1", b"2", b"4"))
    assert told == [refs[1]]
    assert late.task_id == task_id(session.prefix, own + 2)
    assert [ref._data for ref in [*refs, late]] == [b"0", b"1", b"2", b"3", b"4"]
    assert not session.is_owed


def test_ids_of_its_own_that_are_taken_are_an_error() -> None:
    """It is not tried for ever."""
    session = a_session(attempt=2)
    ref = session.submit(session.define(F, b"f"), b"x")
    sent(session)
    session.apply(refused(0))
    [(number, _)], _ = sent(session)
    session.apply(refused(number))
    assert sent(session)[0] == []
    assert type(ref.error()).__name__ == "DuplicateTask"


def test_a_new_stream_says_it_all_again() -> None:
    """What was moved, and what was to be cancelled; nothing under the old ids."""
    session = a_session(attempt=2)
    ref = session.submit(session.define(F, b"f"), b"x")
    sent(session)
    session.apply(refused(0))
    _, before = sent(session)
    session.restart()
    tasks, cancels = sent(session)
    assert [number for number, _ in tasks] == [2 * REST]
    assert [one for one in cancels if one in before] == before
    session.apply(value(2 * REST, b"v"))
    assert ref.is_done


def test_an_attempt_that_hands_in_less_cancels_the_rest() -> None:
    """At its end what only an earlier attempt has handed in is not wanted any more."""
    session = a_session(attempt=2)
    session.submit(session.define(F, b"f"), b"x")
    sent(session)
    session.end()
    session.end()
    assert sent(session)[1] == [CancelRequest(b"", 1, REST - 1)]
    first = a_session()
    first.submit(first.define(F, b"f"), b"x")
    sent(first)
    first.end()
    assert sent(first)[1] == []


def test_it_is_owed_until_the_head_has_it() -> None:
    """A task that ends waits until then, so that nothing that it has handed in gets lost."""
    session = a_session()
    f = session.define(F, b"f")
    session.submit(f, b"x")
    assert session.is_owed
    sent(session)
    assert session.is_owed
    session.apply(HeadFrame(accepted=[AcceptedRange(0, 1)]))
    assert not session.is_owed
    session.submit(f, b"y")
    sent(session)
    session.apply(value(1, b"r"))
    assert not session.is_owed


@pytest.mark.parametrize("waits_for_one", [False, True])
async def test_nobody_waits_for_a_head_that_takes_nothing_more(waits_for_one: bool) -> None:
    """Bug: a session that was closed while its task's code ended held that task for ever."""
    session = a_session(2)
    ref: TaskRef[Any] = session.submit(session.define(F, b"f"), b"x")
    waiting = asyncio.create_task(session.settled(ref) if waits_for_one else session.settle())
    await asyncio.sleep(0)
    assert not waiting.done()
    session.close(AuthorizationError("the attempt was given to another worker"))
    async with asyncio.timeout(5):
        await waiting
