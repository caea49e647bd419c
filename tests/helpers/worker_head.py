"""A head as a worker's agent sees it, and a pool that runs tasks inline: both in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from rustray.common.errors import CommunicationError, HeadUnavailable, RustRayError
from rustray.objects.segment import Segment
from rustray.task.columns import PayloadColumn
from rustray.task.frames import (
    AssignFrame,
    ClassDefinition,
    LeaseGrant,
    LeaseOutcome,
    LeaseRange,
    WorkerFrame,
)
from rustray.task.functions import FunctionInfo, Parameter
from rustray.task.place import Place
from rustray.task.spec import ExecutorKind, TaskClass
from rustray.task.state import TaskState
from rustray.task.views import Heartbeat, HeartbeatReply, Registered, WorkerInfo
from rustray.worker.events import ExecutorReturned
from rustray.worker.executor import ExecutorExit, PoolListener, RunChunk

ECHO = FunctionInfo("echo", (Parameter("text", "either", True, "str"),), signature="echo(text)")


class FakeWorkerLink:
    """The worker's end of a stream."""

    def __init__(self, head: FakeWorkerHead, pump: Any) -> None:
        self.head = head
        self.pump = pump
        self.is_open = True
        self.received = 0
        self.sent = 0
        self.numbers: dict[TaskClass, int] = {}
        self._loop = asyncio.get_running_loop()

    def wake(self) -> None:
        """Pull what waits, soon."""
        self._loop.call_soon(self._pull)

    wake_now = wake

    def _pull(self) -> None:
        while self.is_open and (frame := self.pump.next_frame()) is not None:
            assert frame.number == self.received + 1
            self.received = frame.number
            self.head.take(frame)
            if frame.drained:
                self._loop.call_soon(self.break_off, None)

    def send(self, frame: AssignFrame) -> None:
        """Deliver a frame to the worker, soon."""
        self.sent += 1
        frame.number, frame.ack = self.sent, self.received
        self._loop.call_soon(self._deliver, frame)

    def _deliver(self, frame: AssignFrame) -> None:
        if self.is_open:
            self.pump.on_frame(frame)

    def break_off(self, error: RustRayError | None) -> None:
        """End the stream from the head's side."""
        if self.is_open:
            self.is_open = False
            self.pump.on_closed(error)

    async def close(self) -> None:
        """End it from the worker's side."""
        self.break_off(None)


class FakeWorkerHead:
    """Registers workers, leases tasks, and notes what it is told.

    Attributes:
        refuse: Raised by the next calls of `register_worker`, one each.
        is_known: What heartbeats are answered.
        beat_error: What heartbeats raise instead, if anything.
        stuck_beats: So many of the next heartbeats are never answered.
    """

    def __init__(self, *, heartbeat_s: float = 0.01, lease_ttl_s: float = 0.05) -> None:
        self.refuse: list[RustRayError] = []
        self.is_known = True
        self.beat_error: Exception | None = None
        self.stuck_beats = 0
        self.infos: list[WorkerInfo] = []
        self.beats: list[Heartbeat] = []
        self.frames: list[WorkerFrame] = []
        self.told: dict[tuple[int, int], tuple[TaskState | None, bytes]] = {}
        self.link: FakeWorkerLink | None = None
        self._times = (heartbeat_s, lease_ttl_s)
        self._next_lease = 1

    async def register_worker(self, info: WorkerInfo) -> Registered:
        """Register, unless it is told to refuse."""
        if self.refuse:
            raise self.refuse.pop(0)
        self.infos.append(info)
        return Registered(len(self.infos), *self._times)

    async def fetch_object(self, place: Place, token: str) -> Segment:
        """There are no other workers."""
        raise CommunicationError(f"no way to {place.address}")

    async def heartbeat(self, beat: Heartbeat) -> HeartbeatReply:
        """Answer a heartbeat."""
        if self.beat_error is not None:
            raise self.beat_error
        if self.stuck_beats:
            self.stuck_beats -= 1
            await asyncio.Event().wait()
        self.beats.append(beat)
        return HeartbeatReply(self.is_known)

    async def open_worker_stream(self, worker_id: str, session: int, pump: Any) -> FakeWorkerLink:
        """Open the stream of the last registration."""
        if session != len(self.infos) or worker_id != self.infos[-1].worker_id:
            raise HeadUnavailable("no such session")
        self.link = FakeWorkerLink(self, pump)
        return self.link

    def take(self, frame: WorkerFrame) -> None:
        """Note what a frame says."""
        self.frames.append(frame)
        for outcome in frame.outcomes:
            for position, payload in enumerate(outcome.payloads):
                self.told[(outcome.lease, outcome.offset + position)] = (outcome.state, payload)
        for item in frame.returned:
            for offset in range(item.offset, item.offset + item.count):
                self.told[(item.lease, offset)] = (None, b"")

    def grant(self, payloads: list[bytes], task_class: TaskClass) -> int:
        """Lease tasks to the worker."""
        assert self.link is not None
        lease = self._next_lease
        self._next_lease += 1
        frame = AssignFrame()
        number = self.link.numbers.get(task_class)
        if number is None:
            number = self.link.numbers[task_class] = len(self.link.numbers) + 1
            frame.classes.append(ClassDefinition(number, task_class))
        column = PayloadColumn.of(payloads)
        frame.leases.append(LeaseGrant(lease, number, 1, b"0123456789", lease * 10_000, column))
        self.link.send(frame)
        return lease


class FakePool:
    """Runs tasks inline on the loop's thread: the result is the argument.

    Attributes:
        is_held: Tasks stay running until `release`.
        start_error: Raised by `start`.
    """

    def __init__(self, listener: PoolListener) -> None:
        self.listener = listener
        self.executors: dict[int, list[tuple[RunChunk, int]]] = {}
        self.killed: list[tuple[int, int]] = []
        self.is_held = False
        self.is_closed = False
        self.start_error: RustRayError | None = None
        self.before_start: Callable[[], Any] | None = None

    async def start(self) -> tuple[FunctionInfo, ...]:
        """Offer one function."""
        if self.start_error is not None:
            raise self.start_error
        if self.before_start is not None:
            await self.before_start()
        return (ECHO,)

    def spawn(self, executor_id: int, kind: ExecutorKind, concurrency: int) -> None:
        """Be ready soon."""
        self.executors[executor_id] = []
        asyncio.get_running_loop().call_soon(self.listener.executor_ready, executor_id, 4_000_000)

    def define(
        self, executor_id: int, class_number: int, task_class: TaskClass, code: bytes
    ) -> None:
        """Nothing to learn."""

    def run(self, executor_id: int, chunk: RunChunk) -> None:
        """Run, or keep for `release`."""
        self.executors[executor_id] += [(chunk, i) for i in range(len(chunk.payloads))]
        if not self.is_held:
            asyncio.get_running_loop().call_soon(self.release, executor_id)

    def release(self, executor_id: int) -> None:
        """End what an executor runs."""
        tasks, self.executors[executor_id] = self.executors[executor_id], []
        outcomes = []
        for chunk, i in tasks:
            column = PayloadColumn.of([chunk.payloads[i]])
            outcomes.append(
                LeaseOutcome(chunk.lease, chunk.offset + i, TaskState.SUCCEEDED, column, 100)
            )
        if outcomes:
            self.listener.executor_reported(executor_id, outcomes)

    def reclaim(self, executor_id: int) -> None:
        """Give back all but the first."""
        tasks = self.executors[executor_id]
        ranges = [LeaseRange(c.lease, c.offset + i, 1) for c, i in tasks[1:]]
        del tasks[1:]
        returned = ExecutorReturned(executor_id, ranges)
        asyncio.get_running_loop().call_soon(self.listener.executor_returned, returned)

    def interrupt(
        self, executor_id: int, lease: int, offset: int, *, is_notice: bool = False
    ) -> None:
        """Obey."""
        tasks = self.executors[executor_id]
        self.executors[executor_id] = [
            t for t in tasks if (t[0].lease, t[0].offset + t[1]) != (lease, offset)
        ]
        outcome = LeaseOutcome(lease, offset, TaskState.CANCELLED, PayloadColumn.of([b""]), 1)
        asyncio.get_running_loop().call_soon(
            self.listener.executor_reported, executor_id, [outcome]
        )

    def kill(self, executor_id: int, signum: int) -> None:
        """Die."""
        self.killed.append((executor_id, signum))
        self.die(executor_id, signum)

    def die(self, executor_id: int, signum: int) -> None:
        """Report an exit by a signal."""
        tasks = self.executors.pop(executor_id)
        running = (tasks[0][0].lease, tasks[0][0].offset + tasks[0][1]) if tasks else None
        found = ExecutorExit(4_000_000, None, signum, running, "")
        self.listener.executor_exited(executor_id, found)

    async def close(self, grace_s: float = 2.0) -> None:
        """End."""
        self.is_closed = True
