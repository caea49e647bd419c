"""A head that only remembers: what the tests of `rustray.rpc` talk to."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rustray.common.errors import (
    AuthenticationError,
    CommunicationError,
    RustRayError,
    TaskNotFound,
)
from rustray.common.ids import task_id
from rustray.coordination.messages import Answer, Request, Verdict
from rustray.objects.segment import Segment
from rustray.rpc.api import (
    CancelVerdict,
    EventFilter,
    FramePump,
    LetterAnswer,
    LetterCursor,
    LetterFilter,
    LetterPage,
    LetterVerdict,
    Link,
    LogFilter,
    LogPage,
    RawResult,
    SubmitItem,
    SubmitVerdict,
    TaskFilter,
    TaskHolder,
)
from rustray.security.certificates import ServerIdentity, load_server_identity
from rustray.security.enrollment import Enrollment
from rustray.security.roles import SCOPE_CODE, Caller, Role
from rustray.security.state_dir import StateDir
from rustray.task.functions import FunctionInfo
from rustray.task.place import Place
from rustray.task.result import TaskEvent
from rustray.task.state import TaskState
from rustray.task.views import (
    ClusterStatus,
    DeadLetter,
    Explanation,
    Heartbeat,
    HeartbeatReply,
    ObjectTotal,
    ObjectView,
    OfferedFunction,
    Registered,
    TaskPage,
    TaskView,
    TokenInfo,
    WorkerInfo,
    WorkerReason,
    WorkerView,
)

TASK = "ab" * 16
FAR_FUTURE = 4e9


class ScriptedPump:
    """A pump that sends what it is given and keeps what it gets."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.received: list[Any] = []
        self.closed: list[RustRayError | None] = []
        self.link: Link | None = None
        self.pulls = 0
        self.reply: Callable[[Any], Any] | None = None

    def attach(self, link: Link) -> None:
        self.link = link
        link.wake()

    def send(self, frame: Any) -> None:
        self.waiting.append(frame)
        if self.link is not None:
            self.link.wake()

    def next_frame(self) -> Any | None:
        self.pulls += 1
        return self.waiting.pop(0) if self.waiting else None

    def on_frame(self, frame: Any) -> None:
        self.received.append(frame)
        if self.reply is not None:
            self.send(self.reply(frame))

    def on_closed(self, error: RustRayError | None) -> None:
        self.closed.append(error)


@dataclass
class FakeHead:
    """`HeadApi` for every caller, and `HeadEndpoint`."""

    callers: list[Caller] = field(default_factory=list)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    pumps: list[ScriptedPump] = field(default_factory=list)
    error: BaseException | None = None
    events: list[list[TaskEvent]] = field(default_factory=list)
    pages: list[LogPage] = field(default_factory=list)
    token: str = "fresh"
    make_pump: Callable[[], ScriptedPump] = ScriptedPump

    def api(self, caller: Caller) -> FakeHead:
        self.callers.append(caller)
        return self

    def note(self, name: str, what: Any) -> None:
        self.calls.append((name, what))
        if self.error is not None:
            raise self.error

    # -- HeadEndpoint
    def worker_pump(self, caller: Caller, worker_id: str, session: int) -> ScriptedPump:
        return self._pump("worker_pump", caller, (worker_id, session))

    def nested_pump(self, caller: Caller, worker_id: str, session: int) -> ScriptedPump:
        return self._pump("nested_pump", caller, (worker_id, session))

    def client_pump(self, caller: Caller, prefix: bytes) -> ScriptedPump:
        return self._pump("client_pump", caller, prefix)

    def _pump(self, name: str, caller: Caller, what: Any) -> ScriptedPump:
        self.callers.append(caller)
        self.note(name, what)
        self.pumps.append(self.make_pump())
        return self.pumps[-1]

    # -- HeadApi
    async def register_worker(self, info: WorkerInfo) -> Registered:
        self.note("register_worker", info)
        return Registered(7, 2.0, 10.0)

    async def heartbeat(self, beat: Heartbeat) -> HeartbeatReply:
        self.note("heartbeat", beat)
        return HeartbeatReply(beat.session == 7)

    async def open_worker_stream(self, worker_id: str, session: int, pump: FramePump) -> Link:
        raise NotImplementedError

    async def open_nested_stream(self, worker_id: str, session: int, pump: FramePump) -> Link:
        raise NotImplementedError

    async def open_client_stream(self, prefix: bytes, pump: FramePump) -> Link:
        raise NotImplementedError

    async def task_logs(self, where: LogFilter) -> AsyncIterator[LogPage]:
        self.note("task_logs", where)
        for page in self.pages:
            yield page

    async def session_logs(self, prefix: bytes) -> AsyncIterator[LogPage]:
        self.note("session_logs", prefix)
        for page in self.pages:
            yield page

    def note_rejected(self, error: RustRayError) -> None:
        self.calls.append(("note_rejected", error))

    async def submit(self, items: Sequence[SubmitItem]) -> list[SubmitVerdict]:
        self.note("submit", list(items))
        return [
            SubmitVerdict(task_id(item.prefix, item.sequence), None, item.sequence == 9)
            for item in items
        ]

    async def get_result(self, name: str, timeout_s: float | None) -> RawResult:
        self.note("get_result", (name, timeout_s))
        if name != TASK:
            raise TaskNotFound(f"no task {name}")
        return RawResult(name, TaskState.SUCCEEDED, 2, b"42", "w-1", 1)

    async def list_objects(self, limit: int) -> tuple[list[ObjectView], list[ObjectTotal]]:
        self.calls.append(("list_objects", limit))
        view = ObjectView("o-1", "t" * 32, "f", 5_000_000, "w-1", 2.0, 3, is_lost=True)
        return [view][:limit], [ObjectTotal("w-1", 1, 5_000_000, 1)]

    async def locate_result(
        self, task_id: str, timeout_s: float | None, missing: str = ""
    ) -> RawResult:
        return await self.get_result(task_id, timeout_s)

    async def fetch_object(self, place: Place, token: str) -> Segment:
        raise CommunicationError("nothing stays with workers here")

    async def get_items(
        self, name: str, first: int, timeout_s: float | None
    ) -> tuple[RawResult, list[bytes]]:
        self.note("get_items", (name, first, timeout_s))
        found = await self.get_result(name, timeout_s)
        return found, [b"%d" % index for index in range(first, 3)]

    async def cancel(self, task_ids: Sequence[str], force: bool) -> list[CancelVerdict]:
        self.note("cancel", (list(task_ids), force))
        return [CancelVerdict(name, TaskState.CANCELLED) for name in task_ids]

    async def retry(
        self, where: LetterFilter, cursor: LetterCursor, dry_run: bool = False
    ) -> LetterAnswer:
        self.note("retry", (where, cursor, dry_run))
        gone = LetterVerdict("0" * 32, None, False, TaskNotFound("no such task"))
        verdicts = (LetterVerdict(TASK, TaskState.QUEUED, True), gone)
        return LetterAnswer(verdicts, 1, 70, gone.error, LetterCursor("4.2", 70))

    async def purge(
        self, where: LetterFilter, cursor: LetterCursor, dry_run: bool = False
    ) -> LetterAnswer:
        self.note("purge", (where, cursor, dry_run))
        return LetterAnswer((), 3, 71)

    async def export(self, where: LetterFilter, cursor: LetterCursor) -> LetterPage:
        self.note("export", (where, cursor))
        letter = DeadLetter(TASK, "f", TaskState.POISONED, -1, 3, "w-1", 1.0, 2.0, 2, b"e", None)
        other = replace(letter, arguments=b"[[],{}]")
        return LetterPage((letter, other), LetterCursor("9.0", 72))

    async def coordinate(self, request: Request) -> Answer:
        self.note("coordinate", request)
        return Answer(Verdict.DONE, 1 << 60, 3, (b"", b"item"), 71, 10.5)

    async def coordinate_for_task(self, task: TaskHolder, request: Request) -> Answer:
        self.note("coordinate_for_task", (task, request))
        return Answer(Verdict.WAITING)

    async def explain(self, name: str) -> Explanation:
        self.note("explain", name)
        reasons = (WorkerReason("w-1", True, "busy"),)
        return Explanation(name, TaskState.QUEUED, "waits", 3, reasons, "add a worker")

    async def list_tasks(self, where: TaskFilter, cursor: str, limit: int) -> TaskPage:
        self.note("list_tasks", (where, cursor, limit))
        return TaskPage((TaskView(TASK, "f", TaskState.QUEUED, 0, 0, "", 1.0),), "next", 2)

    async def list_workers(self) -> list[WorkerView]:
        self.note("list_workers", None)
        return [
            WorkerView(
                "w-1", "w", "h:1", "ready", {"cpu_cores": 2}, {"cpu_cores": 0.5}, {"a": "b"},
                ("f", "g"), 3, 1, 9, 0.25, "1", 5,
            )
        ]  # fmt: skip

    async def list_functions(self) -> list[OfferedFunction]:
        self.note("list_functions", None)
        return [
            OfferedFunction(FunctionInfo(name, (), "Does it.", f"{name}()"), ("w-1",))
            for name in ("f", "g")
        ]

    async def enroll_worker(self, worker_id: str, signing_request: bytes) -> Enrollment:
        self.note("enroll_worker", (worker_id, signing_request))
        return Enrollment(b"certificate", b"authority", b"{}")

    async def drain_worker(self, worker_id: str) -> None:
        self.note("drain_worker", worker_id)

    async def status(self) -> ClusterStatus:
        self.note("status", None)
        return ClusterStatus(
            "c", "1", "a", 2.5, "tls", "memory", "LeastLoaded", 1,
            {"queued": 1}, {"cpu_cores": 2}, {"cpu_cores": 0.5}, {"accepted": 3},
        )  # fmt: skip

    async def subscribe(self, where: EventFilter) -> AsyncIterator[list[TaskEvent]]:
        self.note("subscribe", where)
        for batch in self.events:
            yield batch

    async def renew_token(self) -> str:
        self.note("renew_token", None)
        return self.token

    async def create_token(
        self, role: str, ttl_s: float, allow_code: bool, audience: str = "head"
    ) -> str:
        self.note("create_token", (role, ttl_s, allow_code, audience))
        return "made"

    async def list_tokens(self) -> list[TokenInfo]:
        return [TokenInfo("t-1", "user:ann", "submit", "code", "head", 1.5, 2.5, 3.5, "user:bob")]


class FakeAuth:
    """Tokens that say who they are: ``role[:name[:expires]]``."""

    def verify(self, token: str | None, now_unix_s: float, audience: str, /) -> Caller:
        parts = (token or "").split(":")
        if parts[0] == "explode":
            raise RecursionError("the verifier broke")
        if parts[0] not in set(Role):
            raise AuthenticationError("the access token is not valid")
        expires = float(parts[2]) if len(parts) > 2 else FAR_FUTURE
        if expires < now_unix_s:
            raise AuthenticationError("the access token is not valid")
        name = parts[1] if len(parts) > 1 else "x"
        kind = "worker" if parts[0] == "worker" else "user"
        scopes = frozenset({SCOPE_CODE})
        return Caller(f"{kind}:{name}", Role(parts[0]), scopes, expires, "id")


def make_identity(folder: Path) -> ServerIdentity:
    """Make a certificate for this machine, and the authority behind it."""
    state = StateDir(folder)
    state.create()
    return load_server_identity(state, ["127.0.0.1", "localhost", "::1"], time.time())
