"""The unary calls over real gRPC: round trips, who may call what, and typed errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import pytest

from helpers.rpc import TASK, FakeAuth, FakeHead
from rustray.common.errors import (
    ConfigError,
    HeadUnavailable,
    InvariantError,
    ResourceExhausted,
    RustRayError,
    TaskNotFound,
    TaskOutOfMemory,
    TaskTimeout,
)
from rustray.coordination.messages import Action, Answer, Kind, Request, Verdict
from rustray.proto.rustray.v1 import common_pb2, head_pb2, worker_pb2
from rustray.rpc.api import (
    EventFilter,
    LetterCursor,
    LetterFilter,
    LogFilter,
    LogPage,
    RawResult,
    SubmitItem,
    TaskFilter,
    TaskHolder,
)
from rustray.rpc.grpcio import EOF, StatusCode, aio
from rustray.rpc.head_client import GrpcHeadClient, connect
from rustray.rpc.node_server import check_tables
from rustray.rpc.server import HeadServer
from rustray.rpc.status import STATUS, from_rpc_error, status_of
from rustray.security.roles import HEAD_SERVICE, HEALTH_SERVICE, METHOD_ROLES, Role
from rustray.task.functions import FunctionInfo, Parameter
from rustray.task.output import LogRecord
from rustray.task.result import TaskEvent
from rustray.task.spec import Codec, TaskClass
from rustray.task.state import TaskState
from rustray.task.views import Heartbeat, WorkerInfo

PREFIX = b"0123456789"
UNKNOWN_STATE = head_pb2.ListTasksRequest(states=cast("Any", [77]))


@pytest.fixture
def head() -> FakeHead:
    """A head that remembers."""
    return FakeHead()


@pytest.fixture
async def port(head: FakeHead) -> AsyncIterator[int]:
    """The port of a server without TLS."""
    server = HeadServer(head.api, head, auth=FakeAuth(), identity=None, port=0)
    yield await server.start()
    await server.stop(0.2)


@pytest.fixture
async def client(port: int) -> AsyncIterator[GrpcHeadClient]:
    """An administrator's connection."""
    found = await connect(f"127.0.0.1:{port}", token_source="admin", insecure=True)
    yield found
    await found.close()


# ── Round trips ─────────────────────────────────────────────────────────────────────────────────


async def test_every_view_arrives_as_it_was(client: GrpcHeadClient, head: FakeHead):
    """What the head answers and what it is asked cross the wire without loss."""
    info = WorkerInfo(
        "w-1", 3, "w", "h:1", {"cpu_cores": 2, "disk": 0.5}, {"zone": "a"},
        (FunctionInfo("f", (Parameter("x", "either", True, "int"),), "doc", "f(x: int)"),),
        "1.0", 77, "boot",
    )  # fmt: skip
    await client.register_worker(info)
    beat = Heartbeat("w-1", 7, 5, 6, ((1, 2), (3, 4)), 2, 0.5, 100.0, True)
    assert (await client.heartbeat(beat)).is_known
    assert head.calls == [("register_worker", info), ("heartbeat", beat)]
    assert await client.list_workers() == await head.list_workers()
    assert await client.list_functions() == await head.list_functions()
    assert await client.enroll_worker("w-1", b"x") == await head.enroll_worker("w-1", b"x")
    assert await client.status() == await head.status()
    assert await client.explain(TASK) == await head.explain(TASK)
    where = TaskFilter((TaskState.QUEUED,), "f", "w-1")
    assert await client.list_tasks(where, "c", 5) == await head.list_tasks(where, "c", 5)
    assert await client.get_result(TASK, 1.0) == RawResult(
        TASK, TaskState.SUCCEEDED, 2, b"42", "w-1", 1
    )
    found, items = await client.get_items(TASK, 1, 1.0)
    assert (found.payload, items) == (b"42", [b"1", b"2"])
    assert head.calls[-2][0] == "get_items"
    assert head.calls[-2][1][:2] == (TASK, 1)
    await _dead_letters_arrive(client, head)
    assert (await client.cancel([TASK], True))[0].state is TaskState.CANCELLED
    await client.drain_worker("w-1")
    assert await client.create_token("submit", 60.0, True, "worker") == "made"
    assert head.calls[-1] == ("create_token", ("submit", 60.0, True, "worker"))
    assert await client.list_tokens() == await head.list_tokens()
    assert await client.renew_token() == "fresh"
    names = [name for name, _ in head.calls]
    assert names[-4:] == ["cancel", "drain_worker", "create_token", "renew_token"]


async def _dead_letters_arrive(client: GrpcHeadClient, head: FakeHead) -> None:
    chosen = LetterFilter((TASK,), (TaskState.POISONED, TaskState.FAILED), "f", 2.5)
    cursor = LetterCursor("3.1", 70)
    found, expected = await client.retry(chosen, cursor, True), await head.retry(chosen, cursor)
    assert head.calls[-2:] == [
        ("retry", (chosen, cursor, True)),
        ("retry", (chosen, cursor, False)),
    ]
    assert (found.changed, found.horizon, found.next) == (1, 70, LetterCursor("4.2", 70))
    assert isinstance(found.error, TaskNotFound)
    assert isinstance(found.verdicts[1].error, TaskNotFound)
    assert found.verdicts[0] == expected.verdicts[0]
    assert await client.purge(chosen, cursor) == await head.purge(chosen, cursor)
    assert await client.export(chosen, cursor) == await head.export(chosen, cursor)
    with pytest.raises(ConfigError, match="no state of dead letters"):
        await client.purge(LetterFilter(states=(TaskState.SUCCEEDED,)), LetterCursor())
    with pytest.raises(ConfigError, match="at most 10000"):
        await client.retry(LetterFilter((TASK,) * 10_001), LetterCursor())


async def test_requests_for_locks_and_queues_arrive_as_they_were(
    client: GrpcHeadClient, head: FakeHead
):
    """Also one that waits for ever, and one of a task."""
    asked = Request(
        b"holder", 3, 1 << 40, Action.PUT, Kind.QUEUE, "space", "näme", 7, 1 << 60, 5, 2.5,
        (b"", b"x"), (1, 1 << 60), (2, 3), (4,), 99,
    )  # fmt: skip
    assert await client.coordinate(asked) == await head.coordinate(asked)
    for wait_s in (0.0, None):
        renewal = Request(b"holder", 0, 1, Action.RENEW, wait_s=wait_s)
        task = TaskHolder("w-1", 1 << 60, 7)
        answer = await client.coordinate_for_task(task, renewal)
        assert answer == Answer(Verdict.WAITING)
        assert head.calls[-1] == ("coordinate_for_task", (task, renewal))
    assert head.calls[:2] == [("coordinate", asked), ("coordinate", asked)]


async def test_items_of_the_python_client_arrive_as_they_were(
    client: GrpcHeadClient, head: FakeHead
):
    """A submit keeps class, payload and id, and each item has its verdict."""
    items = [
        SubmitItem(PREFIX, n, TaskClass("f", nargs=1, labels=(("a", "b"),)), b"payload", True)
        for n in (8, 9)
    ]
    verdicts = await client.submit(items)
    assert head.calls == [("submit", items)]
    assert [verdict.deduplicated for verdict in verdicts] == [False, True]


async def test_events_stream_until_the_head_ends_them(client: GrpcHeadClient, head: FakeHead):
    """A subscription gives batches in order, and the filter reaches the head."""
    event = TaskEvent(5, TASK, TaskState.RUNNING, 1, "w-1", "f", 12.5)
    said = replace(event, revision=6, kind="progress", progress=0.0, message="none yet")
    told = replace(event, revision=7, kind="emit", name="loss", value=b"\xcb")
    head.events = [[event], [event, said, told]]
    where = EventFilter((TASK,), ("f",), (TaskState.RUNNING,), 3)
    assert [batch async for batch in client.subscribe(where)] == head.events
    assert head.calls == [("subscribe", where)]


async def test_a_subscription_that_fails_raises_its_class(client: GrpcHeadClient, head: FakeHead):
    """Too slow a subscriber gets ResourceExhausted."""
    head.error = ResourceExhausted("too slow; come back with revision 5")
    with pytest.raises(ResourceExhausted, match="revision 5"):
        _ = [batch async for batch in client.subscribe(EventFilter())]


async def test_output_streams_as_it_was_printed(client: GrpcHeadClient, head: FakeHead):
    """Records keep stream, bytes, time and place; what is meant reaches the head."""
    record = LogRecord(TASK, 2, "stderr", b"\xff\x00\n", 12.5, "w-1", 77, "f", 9)
    head.pages = [LogPage((record, replace(record, stream="stdout")), 2, 8), LogPage((), 3, 1)]
    where = LogFilter(TASK, 2, 5, follow=True, goes_on=True)
    assert [page async for page in client.task_logs(where)] == head.pages
    assert [page async for page in client.session_logs(PREFIX)] == head.pages
    assert head.calls == [("task_logs", where), ("session_logs", PREFIX)]
    with pytest.raises(ConfigError, match="prefix"):
        _ = [page async for page in client.session_logs(b"short")]
    with pytest.raises(ConfigError, match="task id"):
        _ = [page async for page in client.task_logs(LogFilter("nonsense"))]


# ── Programs of any language ────────────────────────────────────────────────────────────────────


async def raw_call(port: int, method: str, request: Any, answer: Any, token: str = "admin") -> Any:
    """Call as a program of another language would."""
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(
            HEAD_SERVICE + method, type(request).SerializeToString, answer.FromString
        )
        return await call(request, metadata=(("authorization", f"Bearer {token}"),))


async def test_a_plain_submit_is_composed_without_decoding(port: int, head: FakeHead):
    """Arguments in JSON become one payload, and the head sees their number and names."""
    task = common_pb2.TaskRequest(
        function_name="matrix_multiply",
        codec=common_pb2.CODEC_JSON,
        args=[b"1000", b'"x"'],
        kwargs={"b": b"[1]", "a": b"null"},
        resources=common_pb2.Resources(cpu_cores=4, memory_mb=512, labels={"zone": "a"}),
        max_retries=5,
        priority=-3,
    )
    answer = await raw_call(
        port, "SubmitTask", head_pb2.SubmitTaskRequest(task=task), head_pb2.SubmitTaskResponse
    )
    (item,) = head.calls[0][1]
    assert json.loads(item.payload) == [[1000, "x"], {"a": None, "b": [1]}]
    assert (item.task_class.nargs, item.task_class.kwarg_names) == (2, ("a", "b"))
    assert item.task_class.resources.amounts() == {"cpu_cores": 4, "memory_mb": 512}
    assert (item.uses_default_resources, item.uses_default_retries) == (False, False)
    assert item.task_class.codec is Codec.JSON
    assert len(answer.task_id) == 32


async def test_a_batch_with_bad_items_gets_a_verdict_each(port: int, head: FakeHead):
    """A bad task is refused in its place; the others are submitted."""
    good = common_pb2.TaskRequest(function_name="f")
    bad = [
        common_pb2.TaskRequest(function_name=""),
        common_pb2.TaskRequest(function_name="f", task_id="no id"),
        common_pb2.TaskRequest(
            function_name="f", resources=common_pb2.Resources(cpu_cores=float("nan"))
        ),
        common_pb2.TaskRequest(function_name="f", resources=common_pb2.Resources(gpus=-1)),
        common_pb2.TaskRequest(function_name="f", args=[b""]),
        common_pb2.TaskRequest(function_name="f", codec=common_pb2.CODEC_PICKLE),
        common_pb2.TaskRequest(function_name="f", timeout_s=-1),
        common_pb2.TaskRequest(function_name="f", max_retries=-2),
    ]
    request = head_pb2.SubmitTasksRequest(tasks=[good, *bad, good])
    answer = await raw_call(port, "SubmitTasks", request, head_pb2.SubmitTasksResponse)
    refused = [verdict.HasField("error") for verdict in answer.verdicts]
    assert refused == [False, *[True] * len(bad), False]
    assert {verdict.error.code for verdict in answer.verdicts[1:-1]} == {"PAYLOAD"}
    assert [name for name, _ in head.calls] == ["note_rejected"] * len(bad) + ["submit"]
    assert len(head.calls[-1][1]) == 2


@pytest.mark.parametrize(
    ("method", "request_", "status"),
    [
        ("SubmitTask", head_pb2.SubmitTaskRequest(), StatusCode.INVALID_ARGUMENT),
        (
            "ListTasks",
            UNKNOWN_STATE,
            StatusCode.INVALID_ARGUMENT,
        ),
        ("GetTaskResult", head_pb2.GetTaskResultRequest(task_id="x"), StatusCode.NOT_FOUND),
        (
            "GetTaskResult",
            head_pb2.GetTaskResultRequest(task_id=TASK, timeout_s=float("nan")),
            StatusCode.INVALID_ARGUMENT,
        ),
        (
            "RegisterWorker",
            head_pb2.RegisterWorkerRequest(
                worker_id="w", name="w", resources={"cpu_cores": -1}, protocol=1
            ),
            StatusCode.INVALID_ARGUMENT,
        ),
        ("RegisterWorker", head_pb2.RegisterWorkerRequest(protocol=1), StatusCode.INVALID_ARGUMENT),
        (
            "CancelTask",
            head_pb2.CancelTaskRequest(task_ids=["x"] * 10_001),
            StatusCode.RESOURCE_EXHAUSTED,
        ),
    ],
)
async def test_a_bad_field_is_the_callers_mistake(
    port: int, method: str, request_: Any, status: StatusCode
):
    """A field out of range gets the status that says so, with a typed detail."""
    with pytest.raises(aio.AioRpcError) as caught:
        await raw_call(port, method, request_, head_pb2.SubmitTaskResponse)
    assert caught.value.code() is status
    assert caught.value.details()


async def test_functions_are_listed_with_their_workers(port: int):
    """ListFunctions names what is offered, and by whom."""
    answer = await raw_call(
        port, "ListFunctions", head_pb2.ListFunctionsRequest(), head_pb2.ListFunctionsResponse
    )
    assert [(f.name, list(f.worker_ids), f.function.signature) for f in answer.functions] == [
        ("f", ["w-1"], "f()"),
        ("g", ["w-1"], "g()"),
    ]


# ── Who may call what ───────────────────────────────────────────────────────────────────────────

STREAMS_OUT = [HEAD_SERVICE + name for name in ("Subscribe", "TaskLogs", "SessionLogs")]
BIDI = ("ClientStream", "WorkerStream", "NestedStream")
STREAMS = [*STREAMS_OUT, *(HEAD_SERVICE + name for name in BIDI)]
UNARY = sorted(
    name for name in METHOD_ROLES if name.startswith(HEAD_SERVICE) and name not in STREAMS
)


async def outcome(port: int, method: str, token: str | None) -> StatusCode:
    """Call a method with an empty request and return the status."""
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            if method in STREAMS:
                # No write afterwards: grpc.aio hides the status where a write meets the end.
                call: Any
                if method in STREAMS_OUT:
                    call = channel.unary_stream(method, None, None)(b"", metadata=metadata)
                else:
                    call = channel.stream_stream(method, None, None)(None, metadata=metadata)
                while await call.read() is not EOF:
                    pass
            else:
                await channel.unary_unary(method, None, None)(b"", metadata=metadata)
        except aio.AioRpcError as error:
            return error.code()
    return StatusCode.OK


@pytest.mark.parametrize("method", [*UNARY, *STREAMS])
async def test_auth_matrix(port: int, method: str):
    """Each method: no token, a bad one, each role; denied unless the table lists the role."""
    assert await outcome(port, method, None) is StatusCode.UNAUTHENTICATED
    for token in ("", "junk", "Admin", "admin:x:1"):
        assert await outcome(port, method, token) is StatusCode.UNAUTHENTICATED
    for role in Role:
        found = await outcome(port, method, role.value)
        if role in METHOD_ROLES[method]:
            assert found not in (StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED)
        else:
            assert found is StatusCode.PERMISSION_DENIED


async def test_only_health_is_open(port: int):
    """Health answers without a token, and for the node as a whole only."""
    assert await outcome(port, HEALTH_SERVICE + "Check", None) is StatusCode.OK
    assert await outcome(port, HEALTH_SERVICE + "List", None) is StatusCode.UNAUTHENTICATED
    assert (
        await outcome(port, "/grpc.reflection.v1.ServerReflection/Info", None)
        is StatusCode.UNAUTHENTICATED
    )


def test_a_method_that_a_table_lacks_stops_the_start():
    """Protocol, methods and roles have to name the same methods."""
    with pytest.raises(InvariantError, match="ExecuteTask"):
        check_tables((worker_pb2.DESCRIPTOR.services_by_name["WorkerService"],), {})


# ── Errors ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("cls", [cls for cls in STATUS if cls is not InvariantError])
async def test_errors_keep_their_class(
    client: GrpcHeadClient, head: FakeHead, cls: type[RustRayError]
):
    """What the head raises is raised at the client, same class and text."""
    head.error = cls("what happened, 什么")
    with pytest.raises(cls, match="what happened, 什么") as caught:
        await client.list_workers()
    assert type(caught.value) is cls


async def test_an_error_keeps_its_fields_and_length_is_bounded(
    client: GrpcHeadClient, head: FakeHead
):
    """Task, worker and phase travel; a long text is cut so that the trailers stay small."""
    head.error = TaskTimeout("字" * 10_000, task_id=TASK, worker_id="w", attempt=2, phase="queue")
    with pytest.raises(TaskTimeout) as caught:
        await client.list_workers()
    error = caught.value
    assert (error.task_id, error.worker_id, error.attempt, error.phase) == (TASK, "w", 2, "queue")
    assert 0 < len(str(error).encode()) <= 2_010
    head.error = TaskOutOfMemory("it grew", task_id=TASK, peak=1234.5, limit=1000)
    with pytest.raises(TaskOutOfMemory) as outgrown:
        await client.list_workers()
    assert (outgrown.value.peak, outgrown.value.limit) == (1234.5, 1000)


@pytest.mark.parametrize("error", [KeyError("a secret"), InvariantError("a secret"), OSError(5)])
async def test_a_bug_reaches_nobody(
    client: GrpcHeadClient,
    head: FakeHead,
    error: BaseException,
    caplog: pytest.LogCaptureFixture,
):
    """A bug of ours is INTERNAL with an id; its text is in the log under that id only."""
    head.error = error
    with pytest.raises(InvariantError) as caught:
        await client.list_workers()
    assert "secret" not in str(caught.value)
    error_id = str(caught.value).split()[2].rstrip(";")
    assert error_id in caplog.text
    head.error = None
    assert await client.list_workers()


def test_every_error_class_has_a_status():
    """The table is whole, and UNKNOWN is not in it."""
    from rustray.common import errors

    classes = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, RustRayError)
    }
    assert classes == set(STATUS)
    assert StatusCode.UNKNOWN not in STATUS.values()

    class Special(TaskNotFound):
        pass

    assert status_of(Special("x")) is StatusCode.NOT_FOUND


@pytest.mark.parametrize("code", list(StatusCode))
def test_a_status_without_detail_is_still_typed(code: StatusCode):
    """Whatever comes from gRPC itself is a RustRayError."""
    error = aio.AioRpcError(code, aio.Metadata(), aio.Metadata(), "text", None)
    assert isinstance(from_rpc_error(error), RustRayError)
    garbage = aio.Metadata(("rustray-error-bin", b"\xff\xff"))
    error = aio.AioRpcError(code, aio.Metadata(), garbage, None, None)
    assert isinstance(from_rpc_error(error), RustRayError)


def test_a_call_that_the_peer_cancels_may_be_tried_again():
    """A head that stops cancels the calls that wait: for the caller it is not available.

    Regression: `HeadNode.get_task_result` raised when the head stopped for a full disk.
    """
    error = aio.AioRpcError(StatusCode.CANCELLED, aio.Metadata(), aio.Metadata(), "", None)
    assert isinstance(from_rpc_error(error), HeadUnavailable)


async def test_calls_in_parallel_keep_their_answers(client: GrpcHeadClient):
    """A hundred calls at once all come back."""
    answers = await asyncio.gather(*(client.heartbeat(Heartbeat("w", 7, n, n)) for n in range(100)))
    assert all(answer.is_known for answer in answers)
