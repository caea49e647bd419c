"""Dead letters of a whole head: who may touch them, call by call, and through `HeadNode`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from helpers.waiting import aeventually
from rustray import HeadNode, TaskSpec, TaskState
from rustray.common.errors import HeadUnavailable, PayloadError, TaskExpired, TaskNotFound
from rustray.common.ids import task_id
from rustray.head import letters as head_letters
from rustray.head.embedded import EmbeddedHead
from rustray.rpc.api import HeadApi, LetterAnswer, LetterCursor, LetterFilter
from rustray.scheduler.state import SchedulerSettings
from rustray.security.roles import Caller, Role
from rustray.task.spec import Codec
from rustray.task.views import DeadLetter

TIMED_OUT, QUEUED = TaskState.TIMED_OUT, TaskState.QUEUED
ALL = LetterFilter(states=(TIMED_OUT,))
START = LetterCursor()


def a_caller(name: str, role: Role = Role.SUBMIT) -> Caller:
    """Make a caller of that subject."""
    return Caller(f"user:{name}", role, frozenset(), float("inf"), name)


@pytest.fixture
async def head() -> AsyncIterator[EmbeddedHead]:
    """A head without workers: what has a queue limit ends there."""
    found = EmbeddedHead(SchedulerSettings())
    await found.start()
    yield found
    await found.close()


async def submit(api: HeadApi, count: int, function: str = "f", limit_s: float = 0.01) -> list[str]:
    """Hand in tasks, and wait until their queue limit has ended them."""
    node = HeadNode.over(api)
    specs = [
        TaskSpec(function, [number, "text"], queue_timeout_s=limit_s) for number in range(count)
    ]
    ids = list(await node.submit_tasks_batch(specs))
    if limit_s < 1:
        await aeventually(lambda: _has_ended(node, ids[-1]), 10)
    return [str(name) for name in ids]


async def _has_ended(node: HeadNode, name: str) -> bool:
    return (await node.explain(name)).state is TIMED_OUT


async def states(api: HeadApi) -> dict[str, TaskState]:
    """Return the state of each task."""
    return {view.task_id: view.state for view in await HeadNode.over(api).list_tasks()}


async def test_only_the_own_ones_are_meant(head: EmbeddedHead) -> None:
    """By filter or by id: other users' letters are not retried, purged or shown; admins see all."""
    ann, bob = (head.api(a_caller(name)) for name in ("ann", "bob"))
    mine, theirs = await submit(ann, 2), await submit(bob, 3)
    assert (await ann.retry(ALL, START, True)).changed == 2
    answer = await ann.purge(LetterFilter((theirs[0],)), START)
    assert (answer.changed, type(answer.error)) == (0, TaskNotFound)
    with pytest.raises(TaskNotFound):
        await ann.export(LetterFilter((theirs[0],)), START)
    assert [one.task_id for one in (await ann.export(ALL, START)).letters] == mine
    assert (await ann.purge(ALL, START)).changed == 2
    admin = head.api(a_caller("root", Role.ADMIN))
    assert [one.task_id for one in (await admin.export(ALL, START)).letters] == theirs


async def test_letters_come_out_as_they_went_in(head: EmbeddedHead) -> None:
    """An export has function, error and arguments, decoded only by whoever reads it."""
    node = HeadNode.over(head.api())
    ids = await submit(head.api(), 3)
    found = [letter async for letter in node.export_tasks()]
    assert [(one.task_id, one.call()) for one in found] == [
        (name, ((number, "text"), {})) for number, name in enumerate(ids)
    ]
    assert {(one.function, one.state, one.attempts, one.error.phase) for one in found} == {
        ("f", TIMED_OUT, 0, "queue")
    }
    (one,) = [letter async for letter in node.export_tasks([ids[1]])]
    assert one == found[1]


def test_a_pickle_is_not_loaded() -> None:
    """Arguments that are a pickle are an error to decode: loading one can run code."""
    letter = DeadLetter("a" * 32, "f", TIMED_OUT, 0, 1, "", 1.0, 2.0, Codec.PICKLE, b"", b"cos\n")
    with pytest.raises(PayloadError, match="pickle"):
        letter.call()


@pytest.mark.parametrize("size", [1, 3, 10_000])
async def test_calls_are_bounded_and_together_complete(
    head: EmbeddedHead, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little one call does, all of them together reach each letter once."""
    monkeypatch.setattr(head_letters, "MAX_TASKS", size)
    monkeypatch.setattr(head_letters, "MAX_EXPORTED", size)
    api, node = head.api(), HeadNode.over(head.api())
    ids = [*await submit(api, 7), *await submit(api, 4, "g"), *await submit(api, 2)]
    found = [letter.task_id async for letter in node.export_tasks()]
    assert found == ids
    assert (await node.retry_tasks(function="g")).changed == 4
    assert [name for name, one in (await states(api)).items() if one is QUEUED] == ids[7:11]
    assert (await node.purge_tasks(states=[TIMED_OUT], function="f")).changed == 9


async def test_one_export_is_bounded_in_bytes(
    head: EmbeddedHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page ends behind the letter that filled it, by filter and by name."""
    monkeypatch.setattr(head_letters, "MAX_EXPORTED_BYTES", 1)
    ids = tuple(await submit(head.api(), 3))
    assert len((await head.api().export(ALL, START)).letters) == 1
    assert len((await head.api().export(LetterFilter(ids), START)).letters) == 1
    node = HeadNode.over(head.api())
    assert [one.task_id async for one in node.export_tasks(ids)] == list(ids)


async def test_what_ends_while_somebody_retries_is_left_for_the_next(
    head: EmbeddedHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks that fail at once again do not keep a retry of all busy for ever."""
    monkeypatch.setattr(head_letters, "MAX_TASKS", 1)
    api = head.api()
    await submit(api, 3, limit_s=0.01)
    node = HeadNode.over(api)
    assert (await node.retry_tasks(states=[TIMED_OUT])).changed == 3


class Lossy:
    """An api whose answers get lost, each first one of a call."""

    def __init__(self, api: HeadApi) -> None:
        self.api = api
        self.calls = 0

    async def retry(
        self, where: LetterFilter, cursor: LetterCursor, dry_run: bool = False
    ) -> LetterAnswer:
        """Do it, and lose every other answer."""
        answer = await self.api.retry(where, cursor, dry_run)
        self.calls += 1
        if self.calls % 2:
            raise HeadUnavailable("the answer was lost")
        return answer


async def test_a_lost_answer_is_asked_for_again_and_nothing_is_done_twice(
    head: EmbeddedHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retry whose answer is lost is made again; the task runs once more, and not twice."""
    monkeypatch.setattr("rustray.client.submission._BACKOFF_FIRST_S", 0.001)
    api = head.api()
    ids = await submit(api, 3)
    lossy = Lossy(api)
    node = HeadNode.over(lossy)  # type: ignore[arg-type]
    report = await node.retry_tasks([*ids, "f" * 32])
    assert lossy.calls == 4
    assert list(report.errors) == ["f" * 32]
    await aeventually(lambda: _has_ended(HeadNode.over(api), ids[2]), 10)
    status = await api.status()
    assert status.counters["tasks_retried_on_request"] == 3


async def test_names_that_are_no_letters_are_told_apart(head: EmbeddedHead) -> None:
    """A retried one is changed, one under way is unchanged, an unknown one is an error."""
    api = head.api()
    (dead,) = await submit(api, 1)
    (waiting,) = await submit(api, 1, limit_s=60.0)
    unknown = task_id(b"0123456789", 4)
    report = await HeadNode.over(api).retry_tasks([dead.upper(), waiting, unknown])
    assert (report.changed, report.unchanged) == (1, {waiting: QUEUED})
    assert [type(error) for error in report.errors.values()] == [TaskNotFound]
    again = await HeadNode.over(api).purge_tasks([dead])
    assert (again.changed, list(again.unchanged)) in ((0, [dead]), (1, []))


async def test_a_letter_that_has_expired_is_told_from_one_that_never_was() -> None:
    """To its owner: "no task of yours is known" sends people looking for the wrong id."""
    head = EmbeddedHead(SchedulerSettings(result_ttl_s=0.05))
    await head.start()
    try:
        api, stranger = head.api(a_caller("ann")), head.api(a_caller("bob"))
        (dead,) = await submit(api, 1)
        await aeventually(lambda: _is_gone(api, dead), 10)
        report = await HeadNode.over(api).retry_tasks([dead])
        assert [type(error) for error in report.errors.values()] == [TaskExpired]
        assert "hand it in again" in str(report.errors[dead])
        report = await HeadNode.over(stranger).retry_tasks([dead])
        assert [type(error) for error in report.errors.values()] == [TaskNotFound]
    finally:
        await head.close()


async def _is_gone(api: HeadApi, name: str) -> bool:
    return name not in await states(api)


async def test_the_text_of_a_state_is_not_taken_for_the_state(head: EmbeddedHead) -> None:
    """Regression: "FAILED is no state of dead letters: FAILED, ..." helped nobody."""
    with pytest.raises(ValueError, match=r"'FAILED' is no .*: TaskState\.FAILED"):
        await HeadNode.over(head.api()).retry_tasks(states=["FAILED"])  # type: ignore[list-item]


@pytest.mark.parametrize("kind", ["retry", "purge"])
async def test_a_task_that_is_named_twice_is_changed_once(head: EmbeddedHead, kind: str) -> None:
    """Regression: two names of one task, however spelled, hung the head or took its neighbour."""
    api = head.api()
    one, other = await submit(api, 2)
    where = LetterFilter((one, one.upper(), one))
    change = getattr(api, kind)
    assert (await change(where, START, True)).changed == 1
    answer = await change(where, START)
    assert (answer.changed, answer.error) == (1, None)
    assert [verdict.is_changed for verdict in answer.verdicts] == [True] * 3
    left = (await api.export(LetterFilter((other, other)), START)).letters
    assert [letter.task_id for letter in left] == [other]
    assert left[0].call() == ((1, "text"), {})
    assert await submit(api, 1, limit_s=60.0)


async def test_age_and_state_choose(head: EmbeddedHead) -> None:
    """Nothing is old enough, or in that state; and nothing at all says which ones."""
    api = head.api()
    await submit(api, 2)
    node = HeadNode.over(api)
    assert (await node.purge_tasks(min_age_s=3600)).changed == 0
    assert (await node.purge_tasks(states=[TaskState.FAILED])).changed == 0
    with pytest.raises(ValueError, match="say which"):
        await node.purge_tasks()
    with pytest.raises(ValueError, match="no state of dead letters"):
        await node.retry_tasks(states=[TaskState.SUCCEEDED])
    with pytest.raises(PayloadError, match="cursor"):
        await api.export(ALL, LetterCursor("x.y"))
