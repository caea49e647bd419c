"""CPU time of the head's scheduler per task: fake workers, no network, no processes."""

from __future__ import annotations

import gc
import time
from collections import deque
from typing import Any, Final

from rustray.scheduler.commands import Command, DeliverOutcome, GrantLease
from rustray.scheduler.events import (
    OutcomesDelivered,
    TasksSubmitted,
    TimePassed,
    WorkerJoined,
    WorkerReported,
)
from rustray.scheduler.scheduler import Scheduler
from rustray.task.columns import PayloadColumn
from rustray.task.frames import LeaseOutcome
from rustray.task.functions import FunctionInfo, Parameter
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from rustray.task.views import WorkerInfo
from suite.plan import Params

REPORT_TASKS: Final = 256
"""Every report of a fake worker ends that many tasks, however many workers there are."""
_SUBMIT_TASKS: Final = 1000
_RUN_US: Final = 100
"""Makes the head lease about 1,000 tasks to each worker, so a report is a part of a lease."""
_FRAME_S: Final = 1e-4
_WARM_ROUNDS: Final = 6
_PREFIX: Final = b"0123456789"
_FUNCTION: Final = FunctionInfo("noop", (Parameter("arguments", "args", False),))
_CLASS: Final = TaskClass("noop")


class FakeCluster:
    """A scheduler, its fake workers, and one client that keeps the queue full.

    Args:
        queued: Tasks to keep waiting, beyond those that workers hold.
        workers: How many there are, with two cores each.
    """

    def __init__(self, queued: int, workers: int) -> None:
        self._scheduler = Scheduler()
        self._target = queued
        self._now = 1.0
        self._submitted = 0
        self._granted = 0
        self._arguments = PayloadColumn.of([b"x" * 100] * _SUBMIT_TASKS)
        self._results = PayloadColumn.of([b"r" * 10] * REPORT_TASKS)
        self._held: list[deque[tuple[int, int, int]]] = [deque() for _ in range(workers)]
        self._ids = [f"fake-{number:08x}" for number in range(workers)]
        self._index = {worker_id: index for index, worker_id in enumerate(self._ids)}
        for index, worker_id in enumerate(self._ids):
            info = WorkerInfo(worker_id, 1, "fake", "", {"cpu_cores": 2}, functions=(_FUNCTION,))
            self._handle(WorkerJoined(info, index))
            self._handle(WorkerReported(worker_id, index, (), (), (), (), False, False))
        self._refill()

    def warm_up(self) -> None:
        """Let every worker get its full window."""
        for _ in range(_WARM_ROUNDS):
            self.run(REPORT_TASKS * len(self._held))

    def run(self, tasks: int) -> int:
        """Run about that many tasks, a report of each worker in turn; return how many it was."""
        done = 0
        index = 0
        while done < tasks:
            done += self._report(index)
            self._refill()
            index = (index + 1) % len(self._held)
        return done

    def _report(self, index: int) -> int:
        """Send one worker's report, and the client's confirmation; return the tasks in it."""
        held = self._held[index]
        outcomes: list[LeaseOutcome] = []
        left = REPORT_TASKS
        while left and held:
            lease, offset, count = held.popleft()
            number = count if count < left else left
            if number < count:
                held.appendleft((lease, offset + number, count - number))
            results = self._results.slice(0, number)
            outcomes.append(
                LeaseOutcome(lease, offset, TaskState.SUCCEEDED, results, number * _RUN_US)
            )
            left -= number
        self._now += _FRAME_S
        report = WorkerReported(
            self._ids[index], index, None, tuple(outcomes), (), (), False, False
        )
        for prefix, first, count in self._handle(report):
            self._handle(OutcomesDelivered(prefix, first, count))
        deadline = self._scheduler.next_deadline()
        if deadline is not None and deadline <= self._now:
            self._handle(TimePassed())
        return REPORT_TASKS - left

    def _refill(self) -> None:
        while self._submitted - self._granted < self._target:
            first = self._submitted
            self._submitted += _SUBMIT_TASKS
            self._handle(TasksSubmitted(_PREFIX, first, _CLASS, self._arguments, True))

    def _handle(self, event: Any) -> list[tuple[bytes, int, int]]:
        """Pass an event on and carry out the commands; return what the client has received."""
        delivered: list[tuple[bytes, int, int]] = []
        commands: list[Command] = self._scheduler.handle(event, self._now)
        for command in commands:
            if isinstance(command, GrantLease):
                count = len(command.payloads)
                self._granted += count
                self._held[self._index[command.worker_id]].append((command.lease, 0, count))
            elif isinstance(command, DeliverOutcome):
                outcome = command.outcome
                delivered.append((command.prefix, outcome.first, len(outcome.payloads)))
        return delivered


def measure(params: Params) -> dict[str, Any]:
    """Return the CPU time of one task's way through the scheduler, fake cluster included."""
    cluster = FakeCluster(int(params["queued"]), int(params["workers"]))
    cluster.warm_up()
    gc.collect()
    before = time.process_time()
    tasks = cluster.run(int(params["measured"]))
    spent = time.process_time() - before
    return {"value": spent / tasks * 1e6, "tasks": tasks, "tasks_a_report": REPORT_TASKS}
