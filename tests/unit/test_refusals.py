"""What `explain` says of tasks that are refused for the time being, and to whom."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from rustray.common.errors import RustRayError, TaskNotFound
from rustray.common.ids import task_id
from rustray.head.embedded import EmbeddedHead
from rustray.head.refusals import MAX_RANGES, MAX_SESSIONS, Refusals
from rustray.rpc.api import HeadApi, SubmitItem
from rustray.scheduler.commands import AcceptTasks, RejectTasks
from rustray.scheduler.state import SchedulerSettings
from rustray.security.roles import Caller, Role
from rustray.task.spec import TaskClass

PREFIX = b"0123456789"


def a_caller(name: str, role: Role = Role.SUBMIT) -> Caller:
    """Make a caller of that subject."""
    return Caller(f"user:{name}", role, frozenset(), float("inf"), name)


@pytest.fixture
async def head() -> AsyncIterator[EmbeddedHead]:
    """A head without workers, where each principal may have two tasks pending."""
    found = EmbeddedHead(SchedulerSettings(principal_pending_tasks=2))
    await found.start()
    yield found
    await found.close()


async def hand_in(api: HeadApi, first: int, count: int) -> list[bool]:
    """Hand in tasks; whether each was accepted."""
    items = [SubmitItem(PREFIX, n, TaskClass("f"), b"x") for n in range(first, first + count)]
    return [verdict.error is None for verdict in await api.submit(items)]


async def test_explain_speaks_only_of_tasks_that_are_kept_out(head: EmbeddedHead) -> None:
    """Not of those that never existed, and not when its tasks have been accepted."""
    api = head.api(a_caller("ann"))
    assert await hand_in(api, 0, 4) == [True, True, False, False]
    for sequence in (2, 3):
        found = await api.explain(task_id(PREFIX, sequence))
        assert "not accepted yet" in found.summary
        assert "user:ann" in found.summary
    with pytest.raises(TaskNotFound):
        await api.explain(task_id(PREFIX, 4))
    await api.cancel([task_id(PREFIX, 0), task_id(PREFIX, 1)], force=False)
    assert await hand_in(api, 2, 2) == [True, True]
    assert "not accepted" not in (await api.explain(task_id(PREFIX, 3))).summary
    for sequence in (4, 777):
        with pytest.raises(TaskNotFound):
            await api.explain(task_id(PREFIX, sequence))


async def test_explain_names_no_other_principal(head: EmbeddedHead) -> None:
    """Who may not use the session learns nothing; an administrator does."""
    await hand_in(head.api(a_caller("ann")), 0, 3)
    with pytest.raises(TaskNotFound) as refused:
        await head.api(a_caller("eve")).explain(task_id(PREFIX, 2))
    assert "ann" not in str(refused.value)
    found = await head.api(a_caller("root", Role.ADMIN)).explain(task_id(PREFIX, 2))
    assert "user:ann" in found.summary


def refuse(refusals: Refusals, first: int, count: int, prefix: bytes = PREFIX) -> None:
    """Note a refusal."""
    refusals.note(RejectTasks(prefix, first, count, RustRayError("full")))


def kept_out(refusals: Refusals, stop: int) -> list[int]:
    """Return which of the first tasks are explained."""
    return [number for number in range(stop) if refusals.explain(PREFIX, number)]


def test_each_answer_settles_its_own_tasks() -> None:
    """What was accepted in the middle, or refused for good, is out; the rest stays."""
    refusals = Refusals()
    refuse(refusals, 0, 4)
    refuse(refusals, 4, 4)
    refusals.settle(AcceptTasks(PREFIX, 2, 3))
    assert kept_out(refusals, 10) == [0, 1, 5, 6, 7]
    refuse(refusals, 0, 1)
    refusals.settle(RejectTasks(PREFIX, 6, 2, RustRayError("bad")))
    assert kept_out(refusals, 10) == [0, 1, 5]
    refusals.settle(AcceptTasks(b"another_10", 0, 9))
    refusals.settle(AcceptTasks(PREFIX, 0, 6))
    assert PREFIX not in refusals
    assert kept_out(refusals, 10) == []


def test_what_is_kept_is_bounded() -> None:
    """Sessions and ranges are, and the oldest go first."""
    refusals = Refusals()
    for number in range(MAX_RANGES + 1):
        refuse(refusals, 2 * number, 1)
    assert kept_out(refusals, 3) == [2]
    for number in range(MAX_SESSIONS):
        refuse(refusals, 0, 1, number.to_bytes(10, "big"))
    assert PREFIX not in refusals
    assert (0).to_bytes(10, "big") in refusals
