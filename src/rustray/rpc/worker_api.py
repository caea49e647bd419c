"""What a worker answers when it is asked directly, in the words of the domain.

``worker/service.py`` implements `WorkerApi`; its status has the shape of `WorkerStatusShape`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from rustray.rpc.api import RawResult, SubmitItem
from rustray.task.functions import FunctionInfo


class ExecutorShape(Protocol):
    """One executor process; ``kind`` is "process", "thread" or "async"."""

    @property
    def executor_id(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def state(self) -> str: ...
    @property
    def tasks(self) -> int: ...


class WorkerStatusShape(Protocol):
    """A worker at a glance; see worker.proto for each field."""

    @property
    def worker_id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def head(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def uptime_s(self) -> float: ...
    @property
    def resources(self) -> Mapping[str, float]: ...
    @property
    def used(self) -> Mapping[str, float]: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def functions(self) -> Sequence[FunctionInfo]: ...
    @property
    def slots(self) -> int: ...
    @property
    def held(self) -> int: ...
    @property
    def running(self) -> int: ...
    @property
    def queued(self) -> int: ...
    @property
    def finished(self) -> int: ...
    @property
    def executors(self) -> Sequence[ExecutorShape]: ...
    @property
    def counters(self) -> Mapping[str, int]: ...


class WorkerApi(Protocol):
    """What a worker does for those who ask it directly; raises `RustRayError` only."""

    async def execute_task(self, item: SubmitItem) -> RawResult:
        """Run one registered function here and wait for its end."""

    def open_object(self, object_id: str) -> AbstractAsyncContextManager[memoryview]:
        """Hold one of the node's objects in memory while the block lasts; raises `ObjectLost`."""

    async def get_status(self) -> WorkerStatusShape:
        """Describe the worker as it stands."""
