"""A real executor pool with a listener that remembers, for the executor tests."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cloudpickle

from helpers.waiting import aeventually
from rustray.task import codec as codecs
from rustray.task.columns import PayloadColumn
from rustray.task.frames import LeaseNews, LeaseOutcome, LeaseRange
from rustray.task.functions import FunctionInfo
from rustray.task.result import FailureInfo
from rustray.task.spec import Codec, ExecutorKind, TaskClass
from rustray.task.state import TaskState
from rustray.task.streams import LeaseItems
from rustray.worker.events import ExecutorReturned
from rustray.worker.executor import ExecutorExit, ExecutorPool, RunChunk

PREFIX = bytes(range(10))


@dataclass
class Recorder:
    """Remembers all that a pool reports."""

    pids: dict[int, int] = field(default_factory=dict)
    outcomes: list[LeaseOutcome] = field(default_factory=list)
    returned: list[list[LeaseRange]] = field(default_factory=list)
    unrun: list[list[LeaseRange]] = field(default_factory=list)
    silent: list[tuple[int, LeaseRange]] = field(default_factory=list)
    exits: dict[int, ExecutorExit] = field(default_factory=dict)
    news: list[LeaseNews] = field(default_factory=list)
    items: list[LeaseItems] = field(default_factory=list)
    dropped: int = 0
    relayed: list[tuple[int, int, int, bytes]] = field(default_factory=list)

    def executor_ready(self, executor_id: int, pid: int) -> None:
        self.pids[executor_id] = pid

    def executor_reported(self, executor_id: int, outcomes: list[LeaseOutcome]) -> None:
        self.outcomes += outcomes

    def executor_returned(self, event: ExecutorReturned) -> None:
        if event.running is not None:
            self.silent.append((event.executor_id, event.running))
        (self.returned if event.is_asked else self.unrun).append(event.ranges)

    def executor_told(self, executor_id: int, news: list[LeaseNews], dropped: int) -> None:
        self.news += news
        self.dropped += dropped

    def executor_relayed(self, executor_id: int, kind: int, channel: int, body: bytes) -> None:
        self.relayed.append((executor_id, kind, channel, body))

    def executor_yielded(self, executor_id: int, items: list[LeaseItems]) -> None:
        self.items += items

    def executor_exited(self, executor_id: int, exit: ExecutorExit) -> None:  # noqa: A002
        self.exits[executor_id] = exit


class Bench:
    """One pool under test: small words for what the tests do with it."""

    def __init__(self, recorder: Recorder, pool: ExecutorPool) -> None:
        self.seen = recorder
        self.pool = pool
        self.functions: tuple[FunctionInfo, ...] = ()
        self._executors = 0
        self._classes: dict[int, Codec] = {}
        self._leases: dict[int, Codec] = {}

    def spawn(self, kind: ExecutorKind = ExecutorKind.PROCESS, concurrency: int = 1) -> int:
        """Start an executor; return its number."""
        self._executors += 1
        self.pool.spawn(self._executors, kind, concurrency)
        return self._executors

    def define(self, executor: int, function: Callable[..., Any] | bytes) -> int:
        """Introduce code; return its class number."""
        code = function if isinstance(function, bytes) else cloudpickle.dumps(function)
        return self.define_class(
            executor, TaskClass("job", code_hash=code[:32].ljust(32), codec=Codec.PICKLE), code
        )

    def define_name(self, executor: int, name: str, codec: Codec = Codec.MSGPACK) -> int:
        """Introduce a registered function; return its class number."""
        return self.define_class(executor, TaskClass(name, codec=codec), b"")

    def define_class(self, executor: int, task_class: TaskClass, code: bytes) -> int:
        """Introduce a class; return its number."""
        number = len(self._classes) + 1
        self._classes[number] = task_class.codec
        self.pool.define(executor, number, task_class, code)
        return number

    def run(self, executor: int, class_number: int, *calls: Sequence[Any]) -> int:
        """Send positional arguments of consecutive tasks as one chunk; return the lease."""
        codec = self._classes[class_number]
        return self.run_payloads(
            executor, class_number, [codecs.encode_call(codec, tuple(args), {}) for args in calls]
        )

    def run_payloads(
        self,
        executor: int,
        class_number: int,
        payloads: list[bytes],
        deadline_unix_s: float = 0.0,
        *,
        after: int = 0,
    ) -> int:
        """Send encoded arguments as one chunk; return the lease.

        With ``after`` the only one takes the result of the first task of that lease too.
        """
        lease = len(self._leases) + 1
        self._leases[lease] = self._classes[class_number]
        column = PayloadColumn.of(payloads)
        chunk = RunChunk(
            class_number, lease, 100, 2, PREFIX, lease * 1_000, column, deadline_unix_s,
            follows=(after, 100) if after else (0, 0),
        )  # fmt: skip
        self.pool.run(executor, chunk)
        return lease

    def states(self, lease: int) -> dict[int, TaskState]:
        """Return index to state of what has ended under a lease."""
        found: dict[int, TaskState] = {}
        for outcome in self.seen.outcomes:
            if outcome.lease == lease:
                for step in range(len(outcome.payloads)):
                    index = outcome.offset - 100 + step
                    assert index not in found, f"task {index} was reported twice"
                    found[index] = outcome.state
        return found

    async def ended(self, lease: int, count: int) -> dict[int, TaskState]:
        """Wait until so many tasks of a lease have ended; return their states by index."""
        await aeventually(lambda: len(self.states(lease)) >= count, 30.0)
        return self.states(lease)

    def payloads(self, lease: int) -> dict[int, bytes]:
        """Return index to payload of what has ended under a lease."""
        return {
            outcome.offset - 100 + step: payload
            for outcome in self.seen.outcomes
            if outcome.lease == lease
            for step, payload in enumerate(outcome.payloads)
        }

    async def values(self, lease: int, count: int) -> list[Any]:
        """Wait for so many tasks, which must succeed; return their values in order."""
        states = await self.ended(lease, count)
        found = self.payloads(lease)
        for index, state in states.items():
            assert state is TaskState.SUCCEEDED, codecs.decode_failure(found[index])
        return [codecs.decode_value(self._leases[lease], found[each]) for each in sorted(found)]

    async def value(self, executor: int, function: Callable[..., Any], *args: Any) -> Any:
        """Run one call of a function to its end; return its value."""
        lease = self.run(executor, self.define(executor, function), args)
        return (await self.values(lease, 1))[0]

    async def failure(self, lease: int, index: int = 0) -> tuple[TaskState, FailureInfo]:
        """Wait for a task that does not succeed; return its state and failure."""
        await aeventually(lambda: index in self.states(lease), 30.0)
        payload = self.payloads(lease)[index]
        return self.states(lease)[index], codecs.decode_failure(payload)

    async def exit_of(self, executor: int) -> ExecutorExit:
        """Wait until an executor is gone; return how it ended."""
        await aeventually(lambda: executor in self.seen.exits, 30.0)
        return self.seen.exits[executor]

    async def pid_of(self, executor: int) -> int:
        """Wait until an executor exists; return its process id."""
        await aeventually(lambda: executor in self.seen.pids, 30.0)
        return self.seen.pids[executor]


@contextlib.asynccontextmanager
async def bench(grace_s: float = 0.0, **options: Any) -> AsyncIterator[Bench]:
    """A started pool, closed at the end."""
    recorder = Recorder()
    pool = ExecutorPool(recorder, **options)
    made = Bench(recorder, pool)
    made.functions = await pool.start()
    try:
        yield made
    finally:
        await pool.close(grace_s)
