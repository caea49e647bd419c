"""WorkerService: what may be asked of a worker directly, past the head.

A task that comes this way is queued and run like those of the head, within the worker's
resources, under a lease number of the worker's own. The head knows nothing of it and
nobody retries it: it is for tests and diagnosis. `rpc` puts this object on the wire;
``WorkerService`` there and here answer the same: `execute_task`, `get_status`, `open_object`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace

from rustray.common.errors import (
    FunctionNotFound,
    ObjectLost,
    PayloadError,
    ResourceExhausted,
    ResourceNotAvailable,
)
from rustray.common.ids import task_id
from rustray.common.resources import ResourceSet
from rustray.rpc.api import RawResult, SubmitItem
from rustray.task.functions import FunctionInfo, near_names
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from rustray.worker.agent import WorkerAgent
from rustray.worker.executor_views import ExecutorView
from rustray.worker.state import shortage_text


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker at a glance.

    Attributes:
        state: "starting", "ready", "disconnected" (from the head) or "draining".
        head: The head's address, "" for one in the same process.
        resources: What it owns; `used` is what its tasks hold of it.
        slots: Process executors that it keeps.
        held: Tasks held, running or waiting.
        queued: Those of them that wait.
        finished: Tasks that have ended since the start.
        executors: Each of its executor processes, with its process id.
        counters: Name to total of odd things (duplicate frames, stale requests, ...).
    """

    worker_id: str
    name: str
    state: str
    head: str
    version: str
    pid: int
    uptime_s: float
    resources: Mapping[str, float]
    used: Mapping[str, float]
    labels: Mapping[str, str]
    functions: tuple[FunctionInfo, ...]
    slots: int
    held: int
    running: int
    queued: int
    finished: int
    executors: tuple[ExecutorView, ...]
    counters: Mapping[str, int]


class WorkerService:
    """Answers for one agent."""

    def __init__(self, agent: WorkerAgent, *, head: str = "", version: str = "") -> None:
        """Serve an agent.

        Args:
            agent: The worker.
            head: Address of its head, to show.
            version: rustray's version, to show.
        """
        self._agent = agent
        self._head = head
        self._version = version

    async def execute_task(self, item: SubmitItem) -> RawResult:
        """Run one registered function here and wait for its end.

        Raises:
            FunctionNotFound: this worker does not offer it (near names listed).
            PayloadError: it travels as code, or the arguments do not bind to the signature.
            ResourceNotAvailable: it needs more than this worker owns.
            ResourceExhausted: the worker is leaving or not ready yet.
            CommunicationError: the worker stopped meanwhile.
        """
        agent = self._agent
        if agent.state in ("draining", "starting"):
            raise ResourceExhausted(
                f"the worker is {agent.state}; ask another one, or later", reason="WORKER_STATE"
            )
        task_class = self._resolve(item)
        outcome = await agent.run_direct(task_class, item.prefix, item.sequence, item.payload)
        # LEASED means that the executor died, and there is nobody here to try again.
        state = TaskState.FAILED if outcome.state is TaskState.LEASED else outcome.state
        return RawResult(
            task_id=task_id(item.prefix, item.sequence),
            state=state,
            codec=int(task_class.codec),
            payload=bytes(outcome.payloads[0]),
            worker_id=agent.worker_id,
            attempts=1,
        )

    def _resolve(self, item: SubmitItem) -> TaskClass:
        task_class = item.task_class
        if task_class.code_hash:
            raise PayloadError("a worker asked directly runs registered functions only, no code")
        if task_class.runtime_env is not None:
            raise PayloadError("a worker asked directly has no runtime_env but its own")
        offered = {info.name: info for info in self._agent.functions}
        info = offered.get(task_class.function)
        if info is None:
            near = near_names(task_class.function, offered)
            known = ", ".join(map(repr, near or sorted(offered)[:10])) or "none"
            raise FunctionNotFound(
                f"this worker offers no function {task_class.function!r}; it has {known}"
            )
        if task_class.nargs >= 0:
            problem = info.check_call(task_class.nargs, task_class.kwarg_names)
            if problem:
                raise PayloadError(f"{info.signature} cannot be called like this: {problem}")
        if not task_class.exclusive:
            task_class = replace(task_class, executor=info.executor)
        if item.uses_default_resources and info.resources:
            task_class = replace(task_class, resources=ResourceSet.of(info.resources))
        lacking = shortage_text(task_class.resources, self._agent.config.amounts().units)
        if lacking:
            raise ResourceNotAvailable(f"this worker can never run it: {lacking}")
        return task_class

    @contextlib.asynccontextmanager
    async def open_object(self, object_id: str) -> AsyncIterator[memoryview]:
        """Hold one of this node's objects in memory while the block lasts.

        Raises:
            ObjectLost: it is not here, or what the disk had of it is damaged.
            ResourceExhausted: it is on disk, and there is no room for it in memory.
        """
        store = self._agent.objects.store
        if store is None:
            raise ObjectLost("the worker has not started: it has no objects")
        async with store.hold(object_id) as segment:
            yield segment.view()

    async def get_status(self) -> WorkerStatus:
        """Describe the worker as it stands."""
        agent = self._agent
        manager = agent.manager
        now = asyncio.get_running_loop().time()
        return WorkerStatus(
            worker_id=agent.worker_id,
            name=agent.config.name,
            state=agent.state,
            head=self._head,
            version=self._version,
            pid=os.getpid(),
            uptime_s=now - agent.started_at if agent.started_at else 0.0,
            resources=agent.config.amounts().amounts(),
            used=agent.used(),
            labels=agent.config.labels,
            functions=agent.functions,
            slots=manager.slots,
            held=manager.running + manager.queued,
            running=manager.running,
            queued=manager.queued,
            finished=manager.finished,
            executors=tuple(manager.executors()),
            counters=dict(manager.counters),
        )
