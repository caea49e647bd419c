"""A real head under bad input, and the oracle of the corpus: what must hold after each case.

The head is a process with TLS and tokens, and is spoken to in raw protobuf, as a program of any
language would: rustray's own client refuses to send most of this.
"""

from __future__ import annotations

import json
import queue
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import psutil

from helpers.cluster import Cluster
from helpers.waiting import eventually
from rustray.proto.rustray.v1 import common_pb2, head_pb2
from rustray.rpc.codec import HELLO_KEY, OPEN_KEY
from rustray.rpc.grpcio import StatusCode, grpc
from rustray.rpc.status import DETAIL_KEY
from rustray.security.roles import HEAD_SERVICE

CALL_S: Final = 15.0
"""Limit of a call; no case is meant to come near it."""
RSS_BYTES: Final = 50 << 20
"""What a case may leave in the head's memory."""
FAMILIES: Final = (
    "calls_refused", "tasks_rejected", "cancels_refused", "retries_refused", "purges_refused",
    "workers_refused", "stale_", "streams_closed",
)  # fmt: skip
"""Counters of what was refused or dropped."""
_INTERNALS: Final = re.compile(r'Traceback|File "|\.py\b|0x[0-9a-f]{8}')


@dataclass(frozen=True)
class Answer:
    """How a call ended.

    Attributes:
        status: Of gRPC.
        code: The reason code of the `ErrorDetail`; "" without one.
        fields: Its further facts.
        text: What a person would read.
        messages: What came back, still encoded.
    """

    status: StatusCode
    code: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    messages: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Look:
    """A head before a case."""

    pid: int
    rss: int
    log: int
    counters: Mapping[str, int]


def answer_of(error: grpc.RpcError, messages: tuple[bytes, ...] = ()) -> Answer:
    """Read what a failed call says of itself."""
    detail = common_pb2.ErrorDetail()
    trailers: Any = error.trailing_metadata() or ()
    for key, value in trailers:
        if key == DETAIL_KEY:
            detail = common_pb2.ErrorDetail.FromString(value)
    fields = dict(detail.fields)
    text = f"{error.details()} {detail.message}"
    return Answer(error.code(), detail.code, fields, text, messages)


class BadInput:
    """The head of a cluster, and what its worst callers do.

    Attributes:
        cluster: It and its workers.
        channel: A connection.
        tokens: Role to token; "code" is an admin whose token allows code.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        roots = (cluster.state_dir / "ca.pem").read_bytes()
        self.channel = grpc.secure_channel(
            f"{cluster.host}:{cluster.port}",
            grpc.ssl_channel_credentials(roots),
            options=[("grpc.max_send_message_length", -1)],
        )
        self.tokens = {"code": (cluster.state_dir / "admin.token").read_text().strip()}
        for role in ("admin", "submit", "worker", "observe"):
            request = head_pb2.CreateTokenRequest(role=role, ttl_s=600)
            made = self.ask("CreateToken", request, head_pb2.CreateTokenResponse, "code")
            self.tokens[role] = made.token

    def close(self) -> None:
        """Hang up."""
        self.channel.close()

    # -- talking ------------------------------------------------------------------------

    def call(
        self, method: str, request: Any, role: str = "submit", limit_s: float = CALL_S
    ) -> Answer:
        """Make a unary call with a message or any bytes."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        call = self.channel.unary_unary(HEAD_SERVICE + method, None, None)
        try:
            reply = call(data, timeout=limit_s, metadata=self.metadata(role))
        except grpc.RpcError as error:
            return answer_of(error)
        return Answer(StatusCode.OK, messages=(reply,))

    def ask(
        self,
        method: str,
        request: Any,
        kind: Any,
        role: str = "submit",
        limit_s: float = CALL_S,
    ) -> Any:
        """Make a unary call that must succeed."""
        answer = self.call(method, request, role, limit_s)
        assert answer.status is StatusCode.OK, answer
        return kind.FromString(answer.messages[0])

    def metadata(self, role: str, *more: tuple[str, Any]) -> tuple[tuple[str, Any], ...]:
        """Return a call's metadata."""
        return (("authorization", f"Bearer {self.tokens[role]}"), *more)

    def stream(self, method: str, hello: Any, role: str) -> RawStream:
        """Open a frame stream."""
        return RawStream(self, method, hello, role)

    # -- the oracle -----------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        """Return what the head has refused up to now, by name."""
        status = self.ask(
            "GetStatus", head_pb2.GetStatusRequest(), head_pb2.GetStatusResponse, "admin"
        )
        return {n: c for n, c in status.counters.items() if n.startswith(FAMILIES) and c}

    def look(self) -> Look:
        """Note how the head is."""
        head = self.cluster.head
        assert head is not None
        rss = psutil.Process(head.pid).memory_info().rss
        return Look(head.pid, rss, len(head.text()), self.counters())

    def assert_counted(self, before: Look, counted: Mapping[str, int]) -> None:
        """These refusals were counted since, and no other one."""
        old, new = before.counters, self.counters()
        found = {name: new[name] - old.get(name, 0) for name in new if new[name] != old.get(name)}
        assert found == dict(counted), found

    def assert_unharmed(self, before: Look, *answers: Answer, rss: int = RSS_BYTES) -> None:
        """Same process, no secret and no innards in its log or answers, and a good call works."""
        head = self.cluster.head
        assert head is not None
        assert head.is_running
        assert head.pid == before.pid
        self.good_call()
        grown = psutil.Process(head.pid).memory_info().rss - before.rss
        assert grown < rss, f"{grown >> 20} MiB"
        said = [head.text()[before.log :], *(answer.text for answer in answers)]
        for text in said:
            assert _INTERNALS.search(text) is None, text
            assert not any(token in text for token in self.tokens.values())
            assert not any(mark in text for mark in ("\x1b", "\x00", "\u202e")), ascii(text)

    def good_call(self) -> None:
        """A task goes through."""
        task = common_pb2.TaskRequest(
            function_name="add", args=[b"40", b"2"], codec=common_pb2.CODEC_JSON
        )
        assert json.loads(self.run(task).payload) == 42

    def submit(self, task: common_pb2.TaskRequest, role: str = "submit") -> str:
        """Hand in a task that must be accepted."""
        request = head_pb2.SubmitTaskRequest(task=task)
        reply = self.ask("SubmitTask", request, head_pb2.SubmitTaskResponse, role)
        name: str = reply.task_id
        return name

    def result(self, task_id: str, wait_s: float = CALL_S / 2) -> common_pb2.TaskResult:
        """Return how a task stands after a wait."""
        request = head_pb2.GetTaskResultRequest(task_id=task_id, timeout_s=wait_s)
        reply = self.ask(
            "GetTaskResult", request, head_pb2.GetTaskResultResponse, limit_s=wait_s + CALL_S
        )
        found: common_pb2.TaskResult = reply.result
        return found

    def run(self, task: common_pb2.TaskRequest) -> common_pb2.TaskResult:
        """Hand a task in and wait for its end."""
        return self.result(self.submit(task))


class RawStream:
    """A frame stream by hand."""

    def __init__(self, head: BadInput, method: str, hello: Any, role: str) -> None:
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._number = 0
        data = hello if isinstance(hello, bytes) else hello.SerializeToString()
        call = head.channel.stream_stream(HEAD_SERVICE + method, None, None)
        self._call = call(
            iter(self._outgoing.get, None),
            timeout=CALL_S,
            metadata=head.metadata(role, (HELLO_KEY, data)),
        )

    def send(self, frame: Any) -> None:
        """Send a message, or any bytes; a message without a number gets the next one."""
        if not isinstance(frame, bytes):
            self._number = frame.number = frame.number or self._number + 1
            frame = frame.SerializeToString()
        self._outgoing.put(frame)

    def wait_open(self) -> None:
        """Wait until the head has let the stream in."""
        assert dict(self._call.initial_metadata()).get(OPEN_KEY) == "1"

    def frames(self, kind: Any) -> Iterator[Any]:
        """Yield what comes, for as long as the stream lasts."""
        for message in self._call:
            yield kind.FromString(message)

    def end(self) -> Answer:
        """Wait until the head ends the stream."""
        messages: list[bytes] = []
        try:
            messages.extend(self._call)
        except grpc.RpcError as error:
            return answer_of(error, tuple(messages))
        finally:
            self._outgoing.put(None)
        return Answer(StatusCode.OK, messages=tuple(messages))

    def hang_up(self) -> None:
        """Leave without a goodbye, and wait until that is so."""
        self._outgoing.put(None)
        self._call.cancel()  # type: ignore[no-untyped-call]  # of grpc-stubs
        eventually(lambda: not self._call.is_active(), CALL_S)
