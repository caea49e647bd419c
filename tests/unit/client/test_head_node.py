"""`HeadNode` over a fake head."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import rustray
from helpers.fake_head import FakeHead
from rustray import HeadNode, ResourceRequirements, TaskSpec, TaskState
from rustray.common.errors import (
    FunctionNotFound,
    GetTimeout,
    HeadUnavailable,
    PayloadError,
    RustRayError,
    TaskExecutionFailed,
    TaskNotFound,
)
from rustray.rpc.api import RawResult, SubmitItem
from rustray.task.codec import encode_value
from rustray.task.result import TaskEvent
from rustray.task.spec import Codec, TaskClass


@rustray.function("client_tests.multiply")
def multiply(rows: int, cols: int = 2) -> int:
    """Multiply."""
    return rows * cols


@rustray.function("client_tests.fail")
def fail(text: str) -> None:
    """Raise."""
    raise ValueError(text)


class Recording(FakeHead):
    """A fake head that keeps what is submitted, and may fail first."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[SubmitItem] = []
        self.failures: list[RustRayError] = []
        self.result_calls = 0

    async def submit(self, items: Any) -> Any:
        """Keep, then run."""
        self.items.extend(items)
        answer = await super().submit(items)
        if self.failures:
            raise self.failures.pop(0)
        return answer

    async def get_result(self, task_id: str, timeout_s: float | None) -> RawResult:
        """Fail first, if told so."""
        self.result_calls += 1
        if self.failures:
            raise self.failures.pop(0)
        if self.hold:
            await asyncio.sleep(0)
        return await super().get_result(task_id, timeout_s)


@pytest.fixture
def fake() -> Recording:
    """A fake head."""
    return Recording()


@pytest.fixture
def node(fake: Recording) -> HeadNode:
    """A HeadNode on it."""
    return HeadNode.over(fake)  # type: ignore[arg-type]


async def test_a_task_runs_and_its_result_is_fetched(node: HeadNode, fake: Recording) -> None:
    """Submit, get, unwrap; the class carries everything that the spec said."""
    task_id = await node.submit_task(
        TaskSpec(
            "client_tests.multiply",
            [6],
            {"cols": 7},
            ResourceRequirements(cpu_cores=4, memory_mb=1024, labels={"zone": "a"}),
            priority=3,
            timeout_s=5,
        )
    )
    result = await node.get_task_result(task_id, timeout_s=10)
    assert result is not None
    assert (result.value, result.unwrap(), result.state) == (42, 42, TaskState.SUCCEEDED)
    assert (result.worker_id, result.attempts) == ("fake-1", 1)
    (item,) = fake.items
    found = item.task_class
    assert (found.nargs, found.kwarg_names, found.priority) == (1, ("cols",), 3)
    assert found.resources.amounts() == {"cpu_cores": 4, "memory_mb": 1024}
    assert found.labels == (("zone", "a"),)
    assert found.timeout_s == 5
    assert not item.uses_default_resources
    assert item.uses_default_retries


async def test_a_failed_task_does_not_raise_until_it_is_unwrapped(node: HeadNode) -> None:
    """The result carries the typed error."""
    task_id = await node.submit_task(TaskSpec("client_tests.fail", ["oops"]))
    result = await node.get_task_result(task_id)
    assert result is not None
    assert isinstance(result.error, TaskExecutionFailed)
    assert result.state is TaskState.FAILED
    with pytest.raises(ValueError, match="oops"):
        result.unwrap()


async def test_a_task_that_does_not_exist_has_no_result(node: HeadNode) -> None:
    """None, and a ValueError for what is no id at all."""
    assert await node.get_task_result("0" * 32) is None
    with pytest.raises(ValueError, match="not a task id"):
        await node.get_task_result("nope")
    with pytest.raises(TaskNotFound):
        await node.cancel_task("0" * 32)


@pytest.mark.parametrize("seconds", ["5", -1, float("nan"), True])
async def test_a_bad_timeout_of_a_result_is_a_value_error(node: HeadNode, seconds: Any) -> None:
    """As for `rustray.get`: text was our TypeError, a negative one ended at once."""
    task_id = await node.submit_task(TaskSpec("client_tests.multiply", [6]))
    with pytest.raises(ValueError, match="timeout_s must be"):
        await node.get_task_result(task_id, timeout_s=seconds)
    assert await node.get_task_result(task_id, timeout_s=float("inf")) is not None


@pytest.mark.parametrize(
    ("specs", "hint"),
    [(TaskSpec("client_tests.multiply", [6]), r"not one: write \[spec\]"), (3, "not int")],
    ids=["one", "number"],
)
async def test_a_batch_is_a_list(node: HeadNode, fake: Recording, specs: Any, hint: str) -> None:
    """One task, or no task at all, is a TypeError that says so."""
    with pytest.raises(TypeError, match="expected a list of TaskSpec, " + hint):
        await node.submit_tasks_batch(specs)
    assert not fake.items


async def test_the_wait_for_a_result_ends_with_its_timeout(node: HeadNode, fake: Recording) -> None:
    """GetTimeout says where the task stands."""
    task_id = await node.submit_task(TaskSpec("client_tests.multiply", [1]))
    fake.hold = True
    with pytest.raises(GetTimeout, match="queued"):
        await node.get_task_result(task_id, timeout_s=0.01)
    with pytest.raises(GetTimeout):
        await node.get_task_result(task_id, timeout_s=0)


async def test_the_wait_survives_a_head_that_is_away(node: HeadNode, fake: Recording) -> None:
    """While the head cannot be reached the wait goes on."""
    task_id = await node.submit_task(TaskSpec("client_tests.multiply", [4]))
    fake.failures = [HeadUnavailable("away")]
    result = await node.get_task_result(task_id, timeout_s=30)
    assert result is not None
    assert result.value == 8
    fake.failures = [HeadUnavailable("away")]
    with pytest.raises(HeadUnavailable):
        await node.get_task_result(task_id, timeout_s=0)


async def test_a_lost_reply_is_asked_for_again_with_the_same_id(
    node: HeadNode, fake: Recording
) -> None:
    """So the task does not run twice."""
    fake.failures = [HeadUnavailable("the reply was lost")]
    await node.submit_task(TaskSpec("client_tests.multiply", [4]))
    first, second = fake.items
    assert (first.prefix, first.sequence) == (second.prefix, second.sequence)
    assert len(fake.ran) == 1


async def test_a_batch_has_a_verdict_per_item(node: HeadNode, fake: Recording) -> None:
    """The good ones run; the first refusal is raised with the ids of the others in its notes."""

    def refuse(task_class: TaskClass) -> RustRayError | None:
        if task_class.function == "nope":
            return FunctionNotFound("no worker offers nope")
        return None

    fake.refuse = refuse
    specs = [
        TaskSpec("client_tests.multiply", [2]),
        TaskSpec("nope"),
        TaskSpec("client_tests.multiply", [object()]),
        TaskSpec("client_tests.multiply", [3]),
    ]
    answers = await node.submit_tasks_batch(specs, return_errors=True)
    assert isinstance(answers[1], FunctionNotFound)
    assert isinstance(answers[2], PayloadError)
    for place, value in ((0, 4), (3, 6)):
        task_id = answers[place]
        assert isinstance(task_id, str)
        result = await node.get_task_result(task_id)
        assert result is not None
        assert result.value == value
    with pytest.raises(FunctionNotFound) as caught:
        await node.submit_tasks_batch(specs)
    assert "task 1 of 4" in caught.value.__notes__[0]
    assert len(fake.ran) == 4
    assert await node.submit_tasks_batch([]) == []


async def test_arguments_that_cannot_travel_are_named(node: HeadNode) -> None:
    """Which argument, and where in it."""
    with pytest.raises(PayloadError, match=r"args\[0\]\['k'\]"):
        await node.submit_task(TaskSpec("client_tests.multiply", [{"k": object()}]))
    with pytest.raises(TypeError, match="TaskSpec"):
        await node.submit_task("client_tests.multiply")  # type: ignore[arg-type]


async def test_an_id_of_the_users_is_kept(node: HeadNode) -> None:
    """The same id twice is the same task."""
    mine = "0123456789abcdef0123456789abcdef"
    spec = TaskSpec("client_tests.multiply", [2], task_id=mine)
    assert await node.submit_task(spec) == mine
    assert await node.submit_task(spec) == mine


async def test_pickled_results_are_only_decoded_where_that_is_allowed(fake: Recording) -> None:
    """A pickle can run code: it takes a yes."""
    name = "f" * 32
    payload = encode_value(Codec.PICKLE, {1, 2})
    fake.results[name] = RawResult(name, TaskState.SUCCEEDED, int(Codec.PICKLE), payload, "w", 1)
    careful = await HeadNode.over(fake).get_task_result(name)  # type: ignore[arg-type]
    assert careful is not None
    assert isinstance(careful.error, PayloadError)
    bold = HeadNode.over(fake)  # type: ignore[arg-type]
    bold._allow_pickle = True
    result = await bold.get_task_result(name)
    assert result is not None
    assert result.value == {1, 2}


async def test_a_subscription_resumes_where_it_broke_off(node: HeadNode, fake: Recording) -> None:
    """After a lost connection the cursor goes on from the last event seen."""
    fake.events = [TaskEvent(n, "0" * 32, TaskState.RUNNING, 1, "w", "f", 0.0) for n in range(1, 4)]
    fake.dial_errors = [HeadUnavailable("lost")]
    seen: list[int] = []
    async for event in node.subscribe(cursor=0):
        seen.append(event.revision)
        if event.revision == 3:
            fake.events.append(TaskEvent(4, "0" * 32, TaskState.SUCCEEDED, 1, "w", "f", 0.0))
    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize("cursor", [-2, 1 << 63, 1.5, "7", True])
async def test_a_cursor_is_a_revision(node: HeadNode, cursor: Any) -> None:
    """Anything else is the caller's mistake, and said so."""
    with pytest.raises(ValueError, match="cursor"):
        async for _ in node.subscribe(cursor=cursor):
            pass


@pytest.mark.parametrize(
    "wrong", [{"states": ["FAILED"]}, {"functions": "boom"}, {"task_ids": "0" * 32}]
)
async def test_a_filter_that_means_nothing_is_refused(
    node: HeadNode, wrong: dict[str, Any]
) -> None:
    """Regression: a text was taken letter by letter, and no event ever came."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        async for _ in node.subscribe(**wrong):
            pass


async def test_a_subscription_that_never_began_raises(node: HeadNode, fake: Recording) -> None:
    """A head that is not there is an error, not an endless wait."""
    fake.dial_errors = [HeadUnavailable("nobody")]
    with pytest.raises(HeadUnavailable):
        async for _ in node.subscribe():
            pass


async def test_a_node_that_is_not_connected_says_so() -> None:
    """The error shows how to connect."""
    with pytest.raises(HeadUnavailable, match="async with HeadNode"):
        await HeadNode().get_status()
