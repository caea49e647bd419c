"""A head that answers from memory, for the commands under test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from rustray.cli.access import Access, Target
from rustray.cli.load import Surroundings
from rustray.cli.session import HeadSession
from rustray.client.access import GivenToken
from rustray.common import ids
from rustray.common.errors import ResourceExhausted, RustRayError, TaskNotFound, WorkerNotFound
from rustray.rpc.api import (
    CancelVerdict,
    HeadApi,
    LetterAnswer,
    LetterCursor,
    LetterFilter,
    LetterPage,
    LetterVerdict,
    RawResult,
    SubmitItem,
    SubmitVerdict,
    TaskFilter,
)
from rustray.task.codec import decode_call, encode_failure, encode_value
from rustray.task.result import FailureInfo
from rustray.task.spec import Codec
from rustray.task.state import TaskState
from rustray.task.views import (
    ClusterStatus,
    DeadLetter,
    Explanation,
    ObjectTotal,
    ObjectView,
    TaskPage,
    TaskView,
    WorkerReason,
    WorkerView,
)

ESC = "\x1b]0;owned\x07\x1b[31m"


@dataclass
class FakeHead:
    """Runs submitted functions at once: ``add`` adds, ``fail`` fails, ``hang`` never ends.

    Attributes:
        refusal: Raised on connecting, if set.
        submitted: (function, args, kwargs, item) of each submit.
        results: What `get_result` answers, by task id.
        tasks: What `list_tasks` pages through.
        token: What `create_token` answers.
    """

    refusal: RustRayError | None = None
    submitted: list[tuple[str, Any, Any, SubmitItem]] = field(default_factory=list)
    results: dict[str, RawResult] = field(default_factory=dict)
    tasks: list[TaskView] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    created: list[tuple[str, float, bool]] = field(default_factory=list)
    drained: list[str] = field(default_factory=list)
    asked: list[tuple[str, LetterFilter, LetterCursor, bool]] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    exhausted: bool = False
    token: str = "header.payload.signature"
    per_page: int = 3
    access: Access = field(default_factory=lambda: Access("127.0.0.1:8000", None, GivenToken("t")))

    @asynccontextmanager
    async def open(self, target: Target, around: Surroundings) -> AsyncIterator[HeadSession]:
        self.targets.append(target)
        if self.refusal is not None:
            raise self.refusal
        yield HeadSession(cast("HeadApi", self), self.access)

    async def submit(self, items: Sequence[SubmitItem]) -> list[SubmitVerdict]:
        verdicts = []
        for item in items:
            args, kwargs = decode_call(Codec.JSON, item.payload)
            self.submitted.append((item.task_class.function, args, kwargs, item))
            task_id = ids.task_id(item.prefix, item.sequence)
            verdicts.append(SubmitVerdict(task_id))
            self.results[task_id] = self._outcome(task_id, item.task_class.function, args)
        return verdicts

    def _outcome(self, task_id: str, function: str, args: Sequence[Any]) -> RawResult:
        if function == "hang":
            return RawResult(task_id, TaskState.RUNNING, Codec.JSON, b"", "w-1", 1)
        if function == "fail":
            info = FailureInfo("TASK_FAILED", f"boom {ESC}", "builtins.ValueError", "Traceback ...")
            return RawResult(task_id, TaskState.FAILED, Codec.JSON, encode_failure(info), "w-1", 1)
        value = encode_value(Codec.JSON, sum(args) if function == "add" else list(args))
        return RawResult(task_id, TaskState.SUCCEEDED, Codec.JSON, value, "w-1", 1)

    async def get_result(self, task_id: str, timeout_s: float | None) -> RawResult:
        if task_id not in self.results:
            raise TaskNotFound(f"no task {task_id}")
        return self.results[task_id]

    async def get_items(
        self, task_id: str, first: int, timeout_s: float | None
    ) -> tuple[RawResult, list[bytes]]:
        raise NotImplementedError

    async def cancel(self, task_ids: Sequence[str], force: bool) -> list[CancelVerdict]:
        return [
            CancelVerdict(task_id, TaskState.CANCELLED)
            if task_id in self.results
            else CancelVerdict(task_id, None, TaskNotFound(f"no task {task_id}"))
            for task_id in task_ids
        ]

    async def retry(
        self, where: LetterFilter, cursor: LetterCursor, dry_run: bool = False
    ) -> LetterAnswer:
        self.asked.append(("retry", where, cursor, dry_run))
        if self.exhausted and not dry_run:
            return LetterAnswer((), 2, 9, ResourceExhausted("too many tasks are pending"))
        return self._changed(where, cursor, dry_run)

    async def purge(
        self, where: LetterFilter, cursor: LetterCursor, dry_run: bool = False
    ) -> LetterAnswer:
        self.asked.append(("purge", where, cursor, dry_run))
        return self._changed(where, cursor, dry_run)

    def _changed(self, where: LetterFilter, cursor: LetterCursor, dry_run: bool) -> LetterAnswer:
        if where.task_ids:
            verdicts = tuple(
                LetterVerdict(name, TaskState.QUEUED, True)
                if name in self.results
                else LetterVerdict(name, None, False, TaskNotFound(f"no {name}{ESC}"))
                for name in where.task_ids
            )
            return LetterAnswer(verdicts, sum(one.is_changed for one in verdicts), 9)
        follow = None if cursor.after else LetterCursor("5.0", 9)
        return LetterAnswer((), self.per_page, 9, None, follow)

    async def export(self, where: LetterFilter, cursor: LetterCursor) -> LetterPage:
        self.asked.append(("export", where, cursor, False))
        if self.exhausted and cursor.after:
            raise ResourceExhausted("full")
        follow = LetterCursor("5.0", 9) if self.exhausted else None
        return LetterPage(tuple(self.letters), follow)

    async def explain(self, task_id: str) -> Explanation:
        reasons = (WorkerReason("w-1", False, "needs 4 cores, has 2"),)
        return Explanation(task_id, TaskState.QUEUED, "it waits", 3, reasons, "add a worker")

    async def list_tasks(self, where: TaskFilter, cursor: str, limit: int) -> TaskPage:
        found = [view for view in self.tasks if not where.states or view.state in where.states]
        start = int(cursor or 0)
        page = tuple(found[start : start + limit])
        end = start + len(page)
        return TaskPage(page, str(end) if end < len(found) else "", len(found))

    async def list_objects(self, limit: int) -> tuple[list[ObjectView], list[ObjectTotal]]:
        views = [
            ObjectView(f"o-{n}", "0" * 32, f"make{ESC}", n * 1_000_000, "w-1", 5.0, n, n == 2)
            for n in (2, 1)
        ]
        return views[:limit], [ObjectTotal(f"w-1{ESC}", 2, 3_000_000, 1)]

    async def list_workers(self) -> list[WorkerView]:
        return [
            WorkerView(
                worker_id="w-1",
                name=f"box{ESC}",
                address="127.0.0.1:8001",
                state="ready",
                resources={"cpu_cores": 2},
                used={"cpu_cores": 1},
                labels={},
                functions=("add",),
                leased=1,
                running=1,
                finished=7,
                last_seen_s=0.5,
            )
        ]

    async def drain_worker(self, worker_id: str) -> None:
        if worker_id != "w-1":
            raise WorkerNotFound(f"no worker {worker_id}")
        self.drained.append(worker_id)

    async def status(self) -> ClusterStatus:
        return ClusterStatus(
            "c1", "0.1.0", "127.0.0.1:8000", 12.0, "TLS, JWT", "memory", "LeastLoaded", 1,
            {"QUEUED": 0, "SUCCEEDED": 7}, {"cpu_cores": 2}, {"cpu_cores": 1}, {"accepted": 7},
        )  # fmt: skip

    async def create_token(
        self, role: str, ttl_s: float, allow_code: bool, audience: str = "head"
    ) -> str:
        self.created.append((role, ttl_s, allow_code))
        return self.token


def a_task(number: int, state: TaskState = TaskState.QUEUED, function: str = "add") -> TaskView:
    """Build a task view."""
    return TaskView(ids.task_id(b"0123456789", number), function, state, 0, 1, "", 1_700_000_000.5)
