"""What a worker does with values for the head, and how much of it at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from helpers.waiting import aeventually
from rustray.common.errors import CommunicationError
from rustray.objects.node_store import NodeStore
from rustray.objects.records import StoreLimits
from rustray.objects.segment import Segment
from rustray.task.columns import PlacedColumn
from rustray.task.frames import Adoption, Surrendered
from rustray.task.place import Place
from rustray.worker.object_desk import ObjectDesk
from rustray.worker.value_errands import MAX_AT_ONCE, ValueErrands


async def nowhere(place: Place, token: str) -> Segment:
    """Stand in for the network."""
    if token != "key":
        raise CommunicationError("no way")
    return Segment.write([b"v" * place.size])


@pytest.fixture
async def desk() -> AsyncIterator[Any]:
    """A worker's desk with a store of 10 kB in memory; it notes whether it keeps something."""
    keeping: list[bool] = []
    made: Any = ObjectDesk("w-1", "", nowhere, keeping.append)
    loop = asyncio.get_running_loop()
    made.open(loop, NodeStore(loop, StoreLimits(10_000, 0)))
    made.keeping = keeping
    yield made
    await made.close()


def begin(desk: Any) -> ValueErrands:
    """Return what does a worker's errands."""
    errands = ValueErrands("w-1", desk, lambda: None)
    errands.open(asyncio.get_running_loop())
    return errands


def placed(name: str, size: int = 100) -> bytes:
    """Say that another worker keeps a value."""
    return Place(name, size, "w-2", address="w-2:1").pack()


async def answers(errands: ValueErrands, count: int) -> list[Surrendered]:
    """Wait for so many answers, as they go."""
    found: list[Surrendered] = []

    def look() -> bool:
        frame = errands.take_frame()
        found.extend(frame.surrendered if frame is not None else ())
        return len(found) >= count

    await aeventually(look, 10.0)
    return found


async def test_what_is_taken_over_is_kept_under_its_new_name(desk: Any) -> None:
    """Asked twice it is brought once, and both answers say where it is."""
    errands = begin(desk)
    for _ in range(2):
        errands.adopt([Adoption("a.1", placed("a"), "key")])
    told = await answers(errands, 2)
    assert {one.object_id for one in told} == {"a"}
    for one in told:
        assert isinstance(one.payloads, PlacedColumn)
        found = Place.unpack(one.payloads[0])
        assert (found.object_id, found.worker_id, found.size) == ("a.1", "w-1", 100)
    assert desk.keeping == [True]
    errands.surrender(["a.1", "a"])
    sent = {one.object_id: one for one in await answers(errands, 2)}
    column = sent["a.1"].payloads
    assert column is not None
    assert column[0] == b"v" * 100
    assert sent["a"].is_gone
    desk.free(["a.1"])
    assert desk.keeping == [True, False]


async def test_what_cannot_be_had_or_has_no_room_is_said(desk: Any) -> None:
    """The head asks another worker then."""
    errands = begin(desk)
    errands.adopt([Adoption("a.1", placed("a"), "wrong")])
    errands.adopt([Adoption("b.1", placed("b", 20_000), "key")])
    troubles = {one.object_id: one.trouble for one in await answers(errands, 2)}
    assert "no way" in troubles["a"]
    assert "store is full" in troubles["b"]
    assert desk.keeping == []


async def test_only_so_many_are_copied_until_their_answers_have_gone(desk: Any) -> None:
    """A worker that leaves has no memory for all its values twice; a lost session frees all."""
    await desk.put_in("put-1", Segment.write([b"v" * 100]))
    errands = begin(desk)
    errands.surrender(["put-1"] * (2 * MAX_AT_ONCE))
    await aeventually(lambda: len(errands.answers) >= MAX_AT_ONCE, 10.0)
    await asyncio.sleep(0)
    assert len(errands.answers) == MAX_AT_ONCE
    errands.session_closed()
    await aeventually(lambda: len(errands.answers) == MAX_AT_ONCE, 10.0)
    assert len(await answers(errands, MAX_AT_ONCE)) == MAX_AT_ONCE
    errands.close()


async def test_a_worker_that_leaves_asks_soon_what_is_needed(desk: Any) -> None:
    """What was put, too, which a program may hand in late otherwise."""
    await desk.put_in("put-1", Segment.write([b"v" * 100]))
    desk._arrived["put-1"] -= 100.0
    assert desk.doubtful(is_leaving=False) == ()
    assert desk.doubtful(is_leaving=True) == ("put-1",)
    assert desk.doubtful(is_leaving=True) == ()


async def test_nobody_can_choose_a_name_that_a_moved_value_has(desk: Any) -> None:
    """Or a program could put there what another one's reference leads to."""
    with pytest.raises(ValueError, match="name"):
        await desk.put_in("put-1.1", Segment.write([b"v"]))
