"""A worker's gRPC server."""

from __future__ import annotations

from typing import Any

from rustray.common.errors import AuthorizationError
from rustray.proto.rustray.v1 import worker_pb2 as wire
from rustray.rpc.auth import Authenticator, Guard
from rustray.rpc.convert import parse, put_amounts, put_function, put_texts, text
from rustray.rpc.gate import Context, Method
from rustray.rpc.head_methods import unary_method
from rustray.rpc.node_server import Identity, Limits, NodeServer
from rustray.rpc.object_stream import send_object
from rustray.rpc.request_codec import get_item, new_prefix
from rustray.rpc.view_codec import put_result
from rustray.rpc.worker_api import WorkerApi, WorkerStatusShape
from rustray.security.auth import AUDIENCE_WORKER
from rustray.security.object_tokens import named_object
from rustray.security.roles import FETCH_OBJECT, WORKER_SERVICE, Caller


class WorkerServer:
    """WorkerService on a port."""

    def __init__(
        self,
        api: WorkerApi,
        *,
        auth: Authenticator | None,
        identity: Identity | None,
        address: str = "127.0.0.1",
        port: int = 8001,
        limits: Limits | None = None,
        audience: str = AUDIENCE_WORKER,
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            api: Answers.
            auth: Judges tokens; None for none (loopback only).
            identity: Certificate and key; None for plaintext (loopback only).
            address: Host to listen on.
            port: 0 lets the system choose.
            limits: What peers may ask.
            audience: Kind of node for which a token has to be made.

        Raises:
            ConfigError: an address that others can reach, without TLS or tokens.
        """

        async def execute(_: Caller, request: wire.ExecuteTaskRequest) -> Any:
            found = await api.execute_task(get_item(request.task, new_prefix(), 0))
            response = wire.ExecuteTaskResponse()
            put_result(response.result, found)
            return response

        async def status(_: Caller, __: wire.WorkerStatusRequest) -> Any:
            return put_worker_status(await api.get_status())

        async def fetch(_: Caller, data: bytes, context: Context) -> None:
            request = parse(wire.FetchObjectRequest, data, "request")
            named = named_object(list(context.invocation_metadata() or ()))
            if named != request.object_id:
                raise AuthorizationError("the call's token is for another object")
            async with api.open_object(request.object_id) as view:
                await send_object(view, request.offset, context.write)

        methods = {
            WORKER_SERVICE + "ExecuteTask": unary_method(wire.ExecuteTaskRequest, execute),
            WORKER_SERVICE + "GetStatus": unary_method(wire.WorkerStatusRequest, status),
            FETCH_OBJECT: Method(stream_out=fetch),
        }
        services = (wire.DESCRIPTOR.services_by_name["WorkerService"],)
        guard = Guard(auth, audience)
        self._node = NodeServer(services, methods, guard, identity, address, port, limits)

    async def start(self) -> int:
        """Listen; see `NodeServer.start`."""
        return await self._node.start()

    def renew(self, identity: Identity) -> None:
        """See `NodeServer.renew`."""
        self._node.renew(identity)

    async def stop(self, grace_s: float = 2.0) -> None:
        """Say NOT_SERVING, then end all calls within the grace."""
        await self._node.stop(grace_s)


def put_worker_status(status: WorkerStatusShape) -> wire.WorkerStatusResponse:
    """Encode a worker's status."""
    message = wire.WorkerStatusResponse(
        worker_id=text(status.worker_id),
        name=text(status.name),
        state=text(status.state),
        head=text(status.head),
        version=text(status.version),
        pid=status.pid,
        uptime_s=status.uptime_s,
        slots=status.slots,
        held=status.held,
        running=status.running,
        queued=status.queued,
        finished=status.finished,
    )
    put_amounts(message.resources, status.resources)
    put_amounts(message.used, status.used)
    put_texts(message.labels, status.labels)
    put_amounts(message.counters, status.counters)
    for function in status.functions:
        put_function(message.functions.add(), function)
    for executor in status.executors:
        message.executors.add(
            executor_id=executor.executor_id,
            kind=text(executor.kind),
            pid=executor.pid or 0,
            state=text(executor.state),
            tasks=executor.tasks,
        )
    return message
