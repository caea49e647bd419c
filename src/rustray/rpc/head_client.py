"""The head over gRPC: `HeadApi` for clients, workers and the command line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, TypeVar

from grpc_health.v1 import health_pb2

from rustray.common.errors import (
    AuthenticationError,
    HeadUnavailable,
    RustRayError,
)
from rustray.coordination.messages import Answer, Request
from rustray.proto.rustray.v1 import head_pb2 as wire
from rustray.rpc import coordination_codec as coordination
from rustray.rpc import letter_codec as letters
from rustray.rpc import output_codec as outputs
from rustray.rpc import request_codec as requests
from rustray.rpc import view_codec as views
from rustray.rpc.api import (
    CancelVerdict,
    EventFilter,
    FramePump,
    LetterAnswer,
    LetterCursor,
    LetterFilter,
    LetterPage,
    Link,
    LogFilter,
    LogPage,
    SubmitItem,
    SubmitVerdict,
    TaskFilter,
    TaskHolder,
)
from rustray.rpc.channel import explain_unavailable, open_channel, parse_address
from rustray.rpc.client_link import ClientLink, open_link
from rustray.rpc.codec import (
    HELLO_KEY,
    decode_assign_frame,
    decode_head_frame,
    encode_client_frame,
    encode_client_hello,
    encode_worker_frame,
    encode_worker_hello,
)
from rustray.rpc.convert import MessageType, parse, text
from rustray.rpc.grpcio import aio
from rustray.rpc.nested_codec import decode_nested_frame, encode_nested_frame
from rustray.rpc.node_fetch import NodeFetcher
from rustray.rpc.node_server import MAX_MESSAGE_BYTES
from rustray.rpc.result_calls import CALL_S, ResultCalls
from rustray.rpc.status import from_rpc_error
from rustray.rpc.tokens import StaticToken, TokenKeeper, TokenSource
from rustray.security.bind import join_host_port
from rustray.security.enrollment import Enrollment
from rustray.security.roles import HEAD_SERVICE, HEALTH_SERVICE
from rustray.task.result import TaskEvent
from rustray.task.views import (
    ClusterStatus,
    Explanation,
    Heartbeat,
    HeartbeatReply,
    OfferedFunction,
    Registered,
    TaskPage,
    TokenInfo,
    WorkerInfo,
    WorkerView,
)

T = TypeVar("T")
Part = TypeVar("Part")

WAITING_CALL_S: Final = 45.0
"""Limit of a call that may stand in line for some seconds."""
HOW_TO_JOIN: Final = (
    "Make a token on the head's machine with `rustray token create --role ROLE` and pass it in "
    "RUSTRAY_TOKEN, or in the file that RUSTRAY_TOKEN_FILE names; on the head's own machine "
    "commands find the admin token by themselves"
)


async def connect(
    address: str,
    *,
    token_source: TokenSource | str | None = None,
    ca_pem: bytes | None = None,
    insecure: bool = False,
    timeout_s: float = 10.0,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
) -> GrpcHeadClient:
    """Connect to a head and see that it serves.

    Args:
        address: ``rustray://host:port`` or ``host:port``.
        token_source: Gives the access token (or the token itself); it is renewed from then on.
        ca_pem: The cluster's authority; None for the system's authorities.
        insecure: Plaintext, to this machine only.
        timeout_s: Limit for the connection.
        max_message_bytes: Longest message, either way.

    Raises:
        ConfigError: the address or the CA is malformed.
        HeadUnavailable: no head answers; the message says what is likely wrong.
    """
    host, port = parse_address(address)
    channel = open_channel(
        host, port, ca_pem=ca_pem, insecure=insecure, max_message_bytes=max_message_bytes
    )
    if token_source is None or isinstance(token_source, str):
        token_source = StaticToken(token_source or "")
    client = GrpcHeadClient(channel, join_host_port(host, port), token_source, insecure=insecure)
    client.nodes = NodeFetcher(ca_pem, insecure=insecure)
    try:
        await client.check_health(timeout_s)
    except BaseException:
        await client.close()
        raise
    client.keeper.start()
    return client


class GrpcHeadClient(ResultCalls):
    """A head at an address (`rustray.rpc.api.HeadApi`).

    Attributes:
        address: host:port.
        keeper: Holds and renews the access token.
    """

    def __init__(
        self, channel: aio.Channel, address: str, source: TokenSource, *, insecure: bool
    ) -> None:
        self.address = address
        self.keeper = TokenKeeper(source, self.renew_token)
        self._channel = channel
        self._insecure = insecure
        self._links: set[ClientLink] = set()
        self.nodes: NodeFetcher | None = None
        self._calls: dict[str, Any] = {}

    async def close(self) -> None:
        """End streams in order, then close the connection; idempotent."""
        await self.keeper.close()
        await asyncio.gather(*(link.close() for link in list(self._links)))
        if self.nodes is not None:
            await self.nodes.close()
        await self._channel.close(None)

    async def check_health(self, timeout_s: float) -> None:
        """See that the head serves.

        Raises:
            HeadUnavailable: it does not, or nobody answers.
        """
        request = health_pb2.HealthCheckRequest()
        path = HEALTH_SERVICE + "Check"
        data = await self._call_path(path, request.SerializeToString(), timeout_s)
        found = parse(health_pb2.HealthCheckResponse, data, "answer")
        if found.status != health_pb2.HealthCheckResponse.SERVING:
            raise HeadUnavailable(f"the head at {self.address} is shutting down")

    # -- calls ----------------------------------------------------------------

    async def _call(
        self, method: str, request: Any, kind: MessageType[T], timeout_s: float = CALL_S
    ) -> T:
        data = await self._call_path(HEAD_SERVICE + method, request.SerializeToString(), timeout_s)
        return parse(kind, data, f"answer to {method}")

    async def _call_path(self, path: str, data: bytes, timeout_s: float) -> bytes:
        call = self._calls.get(path)
        if call is None:
            call = self._calls[path] = self._channel.unary_unary(path, None, None)
        try:
            return bytes(await call(data, timeout=timeout_s, metadata=self._metadata()))
        except aio.AioRpcError as error:
            raise self._translate(error) from None
        except aio.UsageError as error:
            raise HeadUnavailable(f"the connection to {self.address} is closed") from error

    def _metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        token = self.keeper.current()
        return (("authorization", "Bearer " + token),) if token else ()

    def _translate(self, error: aio.AioRpcError) -> RustRayError:
        found = from_rpc_error(
            error,
            lambda details: explain_unavailable(self.address, details, insecure=self._insecure),
        )
        if isinstance(found, AuthenticationError):
            what = str(found) if self.keeper.current() else "no access token was sent"
            return AuthenticationError(f"{what.rstrip('.')}. {HOW_TO_JOIN}")
        return found

    # -- workers --------------------------------------------------------------

    async def register_worker(self, info: WorkerInfo) -> Registered:
        """Register a worker; its stream comes next."""
        request = views.put_worker_info(info)
        return views.get_registered(
            await self._call("RegisterWorker", request, wire.RegisterWorkerResponse)
        )

    async def enroll_worker(self, worker_id: str, signing_request: bytes) -> Enrollment:
        """Get a certificate for a worker's own service."""
        request = wire.EnrollWorkerRequest(
            worker_id=text(worker_id), signing_request=signing_request
        )
        answer = await self._call("EnrollWorker", request, wire.EnrollWorkerResponse)
        return Enrollment(answer.certificate_pem, answer.ca_pem, answer.verification_document)

    async def heartbeat(self, beat: Heartbeat) -> HeartbeatReply:
        """Renew a worker's leases."""
        request = views.put_heartbeat(beat)
        return views.get_heartbeat_reply(
            await self._call("Heartbeat", request, wire.HeartbeatResponse, 10.0)
        )

    async def open_worker_stream(self, worker_id: str, session: int, pump: FramePump) -> Link:
        """Open the stream of a registered worker."""
        return await self._open(
            "WorkerStream",
            encode_worker_hello(worker_id, session),
            pump,
            (encode_worker_frame, decode_assign_frame),
        )

    async def open_nested_stream(self, worker_id: str, session: int, pump: FramePump) -> Link:
        """Open the stream for the sessions of tasks that run on a worker."""
        return await self._open(
            "NestedStream",
            encode_worker_hello(worker_id, session),
            pump,
            (encode_nested_frame, decode_nested_frame),
        )

    # -- streams --------------------------------------------------------------

    async def open_client_stream(self, prefix: bytes, pump: FramePump) -> Link:
        """Open the stream of a client session."""
        return await self._open(
            "ClientStream",
            encode_client_hello(prefix),
            pump,
            (encode_client_frame, decode_head_frame),
        )

    async def _open(
        self,
        method: str,
        hello: bytes,
        pump: FramePump,
        codec: tuple[Callable[[Any], bytes], Callable[[bytes], Any]],
    ) -> Link:
        call = self._channel.stream_stream(HEAD_SERVICE + method, None, None)(
            None, metadata=(*self._metadata(), (HELLO_KEY, hello))
        )
        link = ClientLink(pump, call, codec, self._translate)
        await open_link(link, self.address)
        self._links.add(link)
        self.keeper.listeners.add(link.renew_token)
        link.ended.add_done_callback(lambda _: self._forget(link))
        return link

    def _forget(self, link: ClientLink) -> None:
        self._links.discard(link)
        self.keeper.listeners.discard(link.renew_token)

    # -- tasks ----------------------------------------------------------------

    async def submit(self, items: Sequence[SubmitItem]) -> list[SubmitVerdict]:
        """Submit tasks one by one; each gets its own verdict."""
        verdicts: list[SubmitVerdict] = []
        for low in range(0, len(items), requests.MAX_BATCH):
            part = items[low : low + requests.MAX_BATCH]
            request = wire.SubmitTasksRequest()
            for item in part:
                requests.put_item(request.tasks.add(), item)
            answer = await self._call("SubmitTasks", request, wire.SubmitTasksResponse)
            verdicts += requests.get_verdicts(answer, len(part))
        return verdicts

    async def cancel(self, task_ids: Sequence[str], force: bool) -> list[CancelVerdict]:
        """Cancel tasks; each gets its own verdict."""
        verdicts: list[CancelVerdict] = []
        for low in range(0, len(task_ids), requests.MAX_CANCELS):
            part = task_ids[low : low + requests.MAX_CANCELS]
            request = wire.CancelTaskRequest(task_ids=map(text, part), force=force)
            answer = await self._call("CancelTask", request, wire.CancelTaskResponse)
            verdicts += requests.get_cancel_verdicts(answer)
        return verdicts

    async def coordinate(self, request: Request) -> Answer:
        """Ask for a lock, semaphore, event or queue; see `HeadApi.coordinate`."""
        message = coordination.put_request(wire.CoordinateRequest(), request)
        return coordination.get_answer(
            await self._call("Coordinate", message, wire.CoordinateResponse, WAITING_CALL_S)
        )

    async def coordinate_for_task(self, task: TaskHolder, request: Request) -> Answer:
        """The same for a task that this worker runs."""
        message = coordination.put_task(task, request)
        return coordination.get_answer(
            await self._call("CoordinateForTask", message, wire.CoordinateResponse, WAITING_CALL_S)
        )

    # -- dead letters ---------------------------------------------------------

    async def retry(
        self, where: LetterFilter, cursor: LetterCursor, dry_run: bool = False
    ) -> LetterAnswer:
        """Make tasks of dead letters; see `HeadApi.retry`."""
        request = letters.put_request(wire.RetryTasksRequest(), where, cursor, dry_run)
        return letters.get_answer(await self._call("RetryTasks", request, wire.RetryTasksResponse))

    async def purge(
        self, where: LetterFilter, cursor: LetterCursor, dry_run: bool = False
    ) -> LetterAnswer:
        """Forget dead letters; see `HeadApi.purge`."""
        request = letters.put_request(wire.PurgeTasksRequest(), where, cursor, dry_run)
        return letters.get_answer(await self._call("PurgeTasks", request, wire.PurgeTasksResponse))

    async def export(self, where: LetterFilter, cursor: LetterCursor) -> LetterPage:
        """Return some dead letters; see `HeadApi.export`."""
        request = letters.put_request(wire.ExportTasksRequest(), where, cursor)
        return letters.get_page(await self._call("ExportTasks", request, wire.ExportTasksResponse))

    async def explain(self, task_id: str) -> Explanation:
        """Say why a task is where it is."""
        request = wire.ExplainTaskRequest(task_id=text(task_id))
        return views.get_explanation(
            await self._call("ExplainTask", request, wire.ExplainTaskResponse)
        )

    # -- looking --------------------------------------------------------------

    async def list_tasks(self, where: TaskFilter, cursor: str, limit: int) -> TaskPage:
        """List tasks in order of acceptance."""
        request = requests.put_task_filter(where, cursor, limit)
        return views.get_task_page(await self._call("ListTasks", request, wire.ListTasksResponse))

    async def list_workers(self) -> list[WorkerView]:
        """List the workers, in order of joining."""
        request = wire.ListWorkersRequest()
        return views.get_workers(await self._call("ListWorkers", request, wire.ListWorkersResponse))

    async def list_functions(self) -> list[OfferedFunction]:
        """List what workers offer, in name order."""
        request = wire.ListFunctionsRequest()
        return views.get_functions(
            await self._call("ListFunctions", request, wire.ListFunctionsResponse)
        )

    async def drain_worker(self, worker_id: str) -> None:
        """Send a worker away in order."""
        request = wire.DrainWorkerRequest(worker_id=text(worker_id))
        await self._call("DrainWorker", request, wire.DrainWorkerResponse)

    async def status(self) -> ClusterStatus:
        """Return the cluster at a glance."""
        request = wire.GetStatusRequest()
        return views.get_status(await self._call("GetStatus", request, wire.GetStatusResponse))

    def subscribe(self, where: EventFilter) -> AsyncIterator[list[TaskEvent]]:
        """Stream events in order of revision."""
        asked = requests.put_event_filter(where)
        return self._stream("Subscribe", asked, wire.SubscribeResponse, views.get_events)

    def task_logs(self, where: LogFilter) -> AsyncIterator[LogPage]:
        """Stream a task's output; see `HeadApi.task_logs`."""
        return self._logs("TaskLogs", outputs.put_log_filter(where))

    def session_logs(self, prefix: bytes) -> AsyncIterator[LogPage]:
        """Stream a session's output; see `HeadApi.session_logs`."""
        return self._logs("SessionLogs", wire.SessionLogsRequest(prefix=prefix))

    def _logs(self, method: str, request: Any) -> AsyncIterator[LogPage]:
        return self._stream(method, request, wire.LogsResponse, outputs.get_log_page)

    def _stream(
        self, method: str, request: Any, kind: MessageType[T], get: Callable[[T], Part]
    ) -> AsyncIterator[Part]:
        begin = self._channel.unary_stream(HEAD_SERVICE + method, None, None)
        read = lambda data: get(parse(kind, data, f"answer to {method}"))  # noqa: E731
        message = request.SerializeToString()
        return _parts(lambda: begin(message, metadata=self._metadata()), read, self._translate)

    # -- tokens ---------------------------------------------------------------

    async def renew_token(self) -> str:
        """Return a fresh token with the caller's rights."""
        answer = await self._call("RenewToken", wire.RenewTokenRequest(), wire.RenewTokenResponse)
        return answer.token

    async def create_token(
        self, role: str, ttl_s: float, allow_code: bool, audience: str = "head"
    ) -> str:
        """Mint a token."""
        request = wire.CreateTokenRequest(
            role=text(role), ttl_s=ttl_s, allow_code=allow_code, audience=text(audience)
        )
        answer = await self._call("CreateToken", request, wire.CreateTokenResponse)
        return answer.token

    async def list_tokens(self) -> list[TokenInfo]:
        """Return what is known of the tokens that the head has made."""
        request = wire.ListTokensRequest()
        return views.get_tokens(await self._call("ListTokens", request, wire.ListTokensResponse))


async def _parts(
    begin: Callable[[], Any],
    read: Callable[[bytes], Part],
    translate: Callable[[aio.AioRpcError], RustRayError],
) -> AsyncIterator[Part]:
    """Yield the parts of an answer; the call ends with the iteration."""
    call = begin()
    try:
        async for data in call:
            yield read(data)
    except aio.AioRpcError as error:
        raise translate(error) from None
    finally:
        call.cancel()
