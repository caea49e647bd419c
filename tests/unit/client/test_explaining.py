"""`rustray.explain` where the head has not taken the task, or there is none to ask."""

from __future__ import annotations

from typing import Any

import pytest

import rustray
from helpers.fake_head import FakeHead
from helpers.waiting import eventually
from rustray.common.errors import TaskNotFound
from rustray.task.frames import AcceptedRange, HeadFrame
from rustray.task.views import Explanation, WorkerReason


@rustray.remote
def double(x: int) -> int:
    """Return twice the argument."""
    return 2 * x


def test_what_the_head_has_not_taken_is_said_so(head: FakeHead) -> None:
    """It is asked for again, for a while; of what the head took and forgot it is not."""
    asked: list[str] = []

    async def explain(task_id: str) -> Any:
        asked.append(task_id)
        raise TaskNotFound("unknown")

    head.explain = explain  # type: ignore[attr-defined]
    head.hold, head.ack = True, False
    ref = double.remote(1)
    assert "has not taken it yet" in rustray.explain(ref, timeout=0.1).summary
    assert len(asked) > 1
    head.ack = True
    known = double.remote(2)
    eventually(lambda: known._index in known._batch.settled)
    asked.clear()
    with pytest.raises(TaskNotFound):
        rustray.explain(known)
    assert len(asked) == 1


def test_one_that_is_acked_while_it_is_asked_for_is_asked_for_again(head: FakeHead) -> None:
    """Bug: the head's "unknown" was overtaken by its ack, and believed."""
    head.hold, head.ack = True, False
    ref = double.remote(1)
    found = Explanation(ref.task_id, rustray.TaskState.QUEUED, "it waits")
    answers: list[Any] = [TaskNotFound("unknown"), found]

    async def explain(task_id: str) -> Any:
        head.links[-1].answer(HeadFrame(accepted=[AcceptedRange(0, 1)]))
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    head.explain = explain  # type: ignore[attr-defined]
    assert rustray.explain(ref) == found


def test_without_a_cluster_there_is_nothing_to_ask(head: FakeHead) -> None:
    """None is started for that."""
    rustray.shutdown()
    with pytest.raises(RuntimeError, match=r"rustray\.init"):
        rustray.explain("0" * 32)
    assert not rustray.is_initialized()


def test_the_text_of_an_explanation_has_all_of_it() -> None:
    """A line each: the task, its place in the queue, the workers, the advice."""
    reason = WorkerReason("w-1", False, "it has no GPU")
    found = Explanation("0" * 32, rustray.TaskState.QUEUED, "it waits", 3, (reason,), "start one")
    assert str(found).splitlines() == [
        f"task {'0' * 32} QUEUED: it waits",
        "ahead of it in its queue: 3",
        "  w-1 cannot run it: it has no GPU",
        "start one",
    ]


@pytest.mark.parametrize("address", ["auto", "local", ""])
def test_names_of_other_frameworks_are_no_addresses(address: str) -> None:
    """They say what to give instead of looking for a host of that name."""
    with pytest.raises(ValueError, match="rustray://HOST:PORT"):
        rustray.init(address)
    with pytest.raises(ValueError, match="rustray://HOST:PORT"):
        rustray.Executor(address)


def test_what_is_neither_one_reference_nor_a_list_is_said_so(head: FakeHead) -> None:
    """One where a list is wanted, a list where one is, and text where references are."""
    ref = double.remote(1)
    with pytest.raises(TypeError, match=r"expected one task reference or id, not list"):
        rustray.explain([ref])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"write \[ref\]"):
        rustray.wait(ref)  # type: ignore[arg-type]
    acts: list[Any] = [rustray.get, rustray.cancel, rustray.free]
    for act in acts:
        with pytest.raises(TypeError, match="expected task references, not str"):
            act("")
