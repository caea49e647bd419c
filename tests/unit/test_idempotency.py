"""Idempotency keys: a caller's own names for its tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from rustray.client.submission import Submitter
from rustray.common.errors import DuplicateTask
from rustray.head.embedded import EmbeddedHead
from rustray.proto.rustray.v1 import common_pb2 as common
from rustray.rpc.request_codec import get_item, put_item
from rustray.security.roles import Caller, Role
from rustray.task.spec import TaskSpec


@pytest.fixture
async def head() -> AsyncIterator[EmbeddedHead]:
    """A head without workers: what it accepts waits."""
    found = EmbeddedHead()
    await found.start()
    yield found
    await found.close()


def user(name: str) -> Caller:
    """A caller with a good token."""
    return Caller(f"user:{name}", Role.SUBMIT, frozenset(), float("inf"), "id")


async def submit(head: EmbeddedHead, caller: Caller, *specs: TaskSpec) -> list[Any]:
    """Hand in tasks, as a program that has just been started does."""
    return await Submitter().submit(head.api(caller), specs)


async def test_a_key_names_one_task_of_its_caller(head: EmbeddedHead) -> None:
    """The same key is the same task, from any program of that caller, and of nobody else."""
    spec = TaskSpec("f", [1], idempotency_key="order 5")
    [first] = await submit(head, user("a"), spec)
    assert await submit(head, user("a"), spec, spec) == [first, first]
    [other] = await submit(head, user("a"), replace(spec, idempotency_key="order 6"))
    [foreign] = await submit(head, user("b"), spec)
    assert len({first, other, foreign}) == 3
    page = await head.api(user("a")).list_tasks(_everything(), "", 10)
    assert len(page.tasks) == 3


async def test_a_key_with_other_content_is_an_error(head: EmbeddedHead) -> None:
    """One key, one id, one content."""
    spec = TaskSpec("f", [1], idempotency_key="k")
    await submit(head, user("a"), spec)
    [answer] = await submit(head, user("a"), replace(spec, args=[2]))
    assert isinstance(answer, DuplicateTask)
    assert "key of its own" in str(answer), "whoever gave a key is not told of ids alone"


@pytest.mark.parametrize("name", [{"idempotency_key": "k"}, {"task_id": "5" * 32}])
async def test_a_duplicate_can_be_refused(head: EmbeddedHead, name: dict[str, str]) -> None:
    """on_duplicate="reject" tells whoever comes second, and does no harm to the first."""
    spec = TaskSpec("f", [1], on_duplicate="reject", **name)  # type: ignore[arg-type]
    [first, second] = await submit(head, user("a"), spec, spec)
    assert isinstance(first, str)
    assert isinstance(second, DuplicateTask)
    assert await submit(head, user("a"), replace(spec, on_duplicate="use_existing")) == [first]


async def test_keys_and_deadlines_travel() -> None:
    """What a client says of them arrives at the head."""
    [item] = [Submitter()._item(TaskSpec("f", idempotency_key="k", deadline=4e9))]
    message = common.TaskRequest()
    put_item(message, replace(item, rejects_duplicate=True))
    found = get_item(common.TaskRequest.FromString(message.SerializeToString()), bytes(10), 0)
    assert found == replace(item, rejects_duplicate=True)


def _everything() -> Any:
    from rustray.rpc.api import TaskFilter

    return TaskFilter()
