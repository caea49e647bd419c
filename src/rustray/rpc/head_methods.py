"""The unary calls of HeadService: protobuf in, a `HeadApi` call, protobuf out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from rustray.common.errors import ConfigError, PayloadError, ResourceExhausted, RustRayError
from rustray.proto.rustray.v1 import common_pb2 as common
from rustray.proto.rustray.v1 import head_pb2 as wire
from rustray.rpc import coordination_codec as coordination
from rustray.rpc import letter_codec as letters
from rustray.rpc import output_codec as outputs
from rustray.rpc import request_codec as requests
from rustray.rpc import view_codec as views
from rustray.rpc.api import HeadApi, SubmitItem, SubmitVerdict
from rustray.rpc.convert import MessageType, durability_to_wire, parse
from rustray.rpc.gate import Context, Method, Unary
from rustray.rpc.object_codec import put_objects
from rustray.rpc.stream_codec import put_item_list
from rustray.security.auth import AUDIENCE_HEAD
from rustray.security.roles import HEAD_SERVICE, Caller


class ServedHead(HeadApi, Protocol):
    """What the server asks of a head beside what its callers do."""

    def note_rejected(self, error: RustRayError) -> None:
        """Count a task that was refused before the head has seen it."""


MakeApi = Callable[[Caller], ServedHead]
MAX_SHOWN_ID: Final = 80
DECODED_AT_ONCE: Final = 1_000
Request = TypeVar("Request")

MAX_OBJECTS_LISTED: Final = 10_000


async def _register_worker(api: HeadApi, request: wire.RegisterWorkerRequest) -> Any:
    return views.put_registered(await api.register_worker(views.get_worker_info(request)))


async def _heartbeat(api: HeadApi, request: wire.HeartbeatRequest) -> Any:
    return views.put_heartbeat_reply(await api.heartbeat(views.get_heartbeat(request)))


async def _submit_task(api: ServedHead, request: wire.SubmitTaskRequest) -> Any:
    (verdict,) = await _submit(api, [request.task])
    if verdict.error is not None:
        raise verdict.error
    return wire.SubmitTaskResponse(
        task_id=verdict.task_id,
        deduplicated=verdict.deduplicated,
        durability=durability_to_wire(verdict.durability),
    )


async def _submit_tasks(api: ServedHead, request: wire.SubmitTasksRequest) -> Any:
    count = len(request.tasks)
    if count > requests.MAX_BATCH:
        raise ResourceExhausted(
            f"{count} tasks in one call; at most {requests.MAX_BATCH} are allowed",
            reason="CALL_TASKS",
        )
    return requests.put_verdicts(await _submit(api, request.tasks))


async def _submit(api: ServedHead, tasks: Sequence[common.TaskRequest]) -> list[SubmitVerdict]:
    """Submit the good ones; each bad one gets its verdict in its place."""
    prefix = requests.new_prefix()
    items: list[SubmitItem] = []
    refused: dict[int, SubmitVerdict] = {}
    for position, message in enumerate(tasks):
        if position % DECODED_AT_ONCE == DECODED_AT_ONCE - 1:
            await asyncio.sleep(0)  # heartbeats must not wait for a large batch
        try:
            items.append(requests.get_item(message, prefix, position))
        except PayloadError as error:
            api.note_rejected(error)
            refused[position] = SubmitVerdict(message.task_id[:MAX_SHOWN_ID], error)
    accepted = iter(await api.submit(items) if items else ())
    return [
        refused[position] if position in refused else next(accepted)
        for position in range(len(tasks))
    ]


async def _get_task_result(api: HeadApi, request: wire.GetTaskResultRequest) -> Any:
    wait_s = requests.get_wait_s(request)
    response = wire.GetTaskResultResponse()
    if request.HasField("first_item"):
        found, items = await api.get_items(request.task_id, request.first_item, wait_s)
        put_item_list(response, items)
    else:
        ask = partial(api.locate_result, missing=request.missing)
        found = await (ask if request.takes_places else api.get_result)(request.task_id, wait_s)
    views.put_located(response, found)
    return response


async def _cancel_task(api: HeadApi, request: wire.CancelTaskRequest) -> Any:
    if len(request.task_ids) > requests.MAX_CANCELS:
        raise ResourceExhausted(
            f"at most {requests.MAX_CANCELS} tasks can be cancelled at once", reason="CALL_TASKS"
        )
    return requests.put_cancel_verdicts(await api.cancel(list(request.task_ids), request.force))


async def _retry_tasks(api: HeadApi, request: wire.RetryTasksRequest) -> Any:
    answer = await api.retry(*letters.get_request(request), request.dry_run)
    return letters.put_answer(wire.RetryTasksResponse(), answer)


async def _purge_tasks(api: HeadApi, request: wire.PurgeTasksRequest) -> Any:
    answer = await api.purge(*letters.get_request(request), request.dry_run)
    return letters.put_answer(wire.PurgeTasksResponse(), answer)


async def _export_tasks(api: HeadApi, request: wire.ExportTasksRequest) -> Any:
    return letters.put_page(await api.export(*letters.get_request(request)))


async def _coordinate(api: HeadApi, request: wire.CoordinateRequest) -> Any:
    return coordination.put_answer(await api.coordinate(coordination.get_request(request)))


async def _coordinate_for_task(api: HeadApi, request: wire.CoordinateForTaskRequest) -> Any:
    return coordination.put_answer(await api.coordinate_for_task(*coordination.get_task(request)))


async def _explain_task(api: HeadApi, request: wire.ExplainTaskRequest) -> Any:
    return views.put_explanation(await api.explain(request.task_id))


async def _list_tasks(api: HeadApi, request: wire.ListTasksRequest) -> Any:
    where, cursor, limit = requests.get_task_filter(request)
    return views.put_task_page(await api.list_tasks(where, cursor, limit))


async def _list_objects(api: HeadApi, request: wire.ListObjectsRequest) -> Any:
    return put_objects(*await api.list_objects(min(request.limit, MAX_OBJECTS_LISTED)))


async def _list_workers(api: HeadApi, _: wire.ListWorkersRequest) -> Any:
    return views.put_workers(await api.list_workers())


async def _list_functions(api: HeadApi, _: wire.ListFunctionsRequest) -> Any:
    return views.put_functions(await api.list_functions())


async def _get_status(api: HeadApi, _: wire.GetStatusRequest) -> Any:
    return views.put_status(await api.status())


async def _drain_worker(api: HeadApi, request: wire.DrainWorkerRequest) -> Any:
    await api.drain_worker(request.worker_id)
    return wire.DrainWorkerResponse()


async def _create_token(api: HeadApi, request: wire.CreateTokenRequest) -> Any:
    audience = request.audience or AUDIENCE_HEAD
    token = await api.create_token(request.role, request.ttl_s, request.allow_code, audience)
    return wire.CreateTokenResponse(token=token)


async def _list_tokens(api: HeadApi, _: wire.ListTokensRequest) -> Any:
    return views.put_tokens(await api.list_tokens())


async def _renew_token(api: HeadApi, _: wire.RenewTokenRequest) -> Any:
    return wire.RenewTokenResponse(token=await api.renew_token())


async def _enroll_worker(api: HeadApi, request: wire.EnrollWorkerRequest) -> Any:
    found = await api.enroll_worker(request.worker_id, request.signing_request)
    return wire.EnrollWorkerResponse(
        certificate_pem=found.certificate_pem,
        ca_pem=found.ca_pem,
        verification_document=found.verification_document,
    )


_UNARY: Final[dict[str, tuple[Any, Callable[[ServedHead, Any], Awaitable[Any]]]]] = {
    "RegisterWorker": (wire.RegisterWorkerRequest, _register_worker),
    "EnrollWorker": (wire.EnrollWorkerRequest, _enroll_worker),
    "Heartbeat": (wire.HeartbeatRequest, _heartbeat),
    "SubmitTask": (wire.SubmitTaskRequest, _submit_task),
    "SubmitTasks": (wire.SubmitTasksRequest, _submit_tasks),
    "GetTaskResult": (wire.GetTaskResultRequest, _get_task_result),
    "CancelTask": (wire.CancelTaskRequest, _cancel_task),
    "RetryTasks": (wire.RetryTasksRequest, _retry_tasks),
    "PurgeTasks": (wire.PurgeTasksRequest, _purge_tasks),
    "ExportTasks": (wire.ExportTasksRequest, _export_tasks),
    "Coordinate": (wire.CoordinateRequest, _coordinate),
    "CoordinateForTask": (wire.CoordinateForTaskRequest, _coordinate_for_task),
    "ExplainTask": (wire.ExplainTaskRequest, _explain_task),
    "ListTasks": (wire.ListTasksRequest, _list_tasks),
    "ListObjects": (wire.ListObjectsRequest, _list_objects),
    "ListWorkers": (wire.ListWorkersRequest, _list_workers),
    "ListFunctions": (wire.ListFunctionsRequest, _list_functions),
    "GetStatus": (wire.GetStatusRequest, _get_status),
    "DrainWorker": (wire.DrainWorkerRequest, _drain_worker),
    "CreateToken": (wire.CreateTokenRequest, _create_token),
    "ListTokens": (wire.ListTokensRequest, _list_tokens),
    "RenewToken": (wire.RenewTokenRequest, _renew_token),
}


RunStream = Callable[[ServedHead, Any], AsyncIterator[Any]]
_STREAMS: Final[dict[str, tuple[Any, Callable[[Any], Any], RunStream, Callable[[Any], Any]]]] = {
    "Subscribe": (
        wire.SubscribeRequest,
        requests.get_event_filter,
        lambda api, where: api.subscribe(where),
        views.put_events,
    ),
    "TaskLogs": (
        wire.TaskLogsRequest,
        outputs.get_log_filter,
        lambda api, where: api.task_logs(where),
        outputs.put_log_page,
    ),
    "SessionLogs": (
        wire.SessionLogsRequest,
        lambda request: outputs.get_prefix(request.prefix),
        lambda api, prefix: api.session_logs(prefix),
        outputs.put_log_page,
    ),
}
"""Name to request, how to read it, what to do, and how to write each part of the answer."""


def unary_method(
    kind: MessageType[Request], run: Callable[[Caller, Request], Awaitable[Any]]
) -> Method:
    """Make a method of a function on messages; a field out of range is the caller's mistake."""

    async def call(caller: Caller, data: bytes) -> bytes:
        request = parse(kind, data, "request")
        try:
            response = await run(caller, request)
        except ValueError as error:
            raise ConfigError(f"the request is not valid: {error}") from error
        return bytes(response.SerializeToString())

    unary: Unary = call
    return Method(unary=unary)


def head_methods(make_api: MakeApi) -> dict[str, Method]:
    """Return HeadService's methods but the two frame streams, by full name."""

    def bind(run: Callable[[ServedHead, Any], Awaitable[Any]]) -> Callable[[Caller, Any], Any]:
        return lambda caller, request: run(make_api(caller), request)

    def stream(
        kind: MessageType[Any],
        get: Callable[[Any], Any],
        run: Callable[[ServedHead, Any], AsyncIterator[Any]],
        put: Callable[[Any], Any],
    ) -> Method:
        async def call(caller: Caller, data: bytes, context: Context) -> None:
            request = parse(kind, data, "request")
            try:
                where = get(request)
            except ValueError as error:
                raise ConfigError(f"the request is not valid: {error}") from error
            parts = run(make_api(caller), where)
            try:
                async for part in parts:
                    await context.write(put(part).SerializeToString())
            finally:
                if isinstance(parts, AsyncGenerator):
                    await parts.aclose()

        return Method(stream_out=call)

    methods = {
        HEAD_SERVICE + name: unary_method(kind, bind(run)) for name, (kind, run) in _UNARY.items()
    }
    for name, (request_kind, get, run_stream, put) in _STREAMS.items():
        methods[HEAD_SERVICE + name] = stream(request_kind, get, run_stream, put)
    return methods
