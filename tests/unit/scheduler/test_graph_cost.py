"""What a graph costs the scheduler grows with its tasks and edges, and not faster.

Not times are compared but lines of the scheduler that are carried out, for a graph and for one of
five times its size: accepted, half of it run, taken up by the next head from its journal, run to
its end. `benchmarks/large_graphs.py` measures a million tasks.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import pytest

from helpers.scheduling import ANYTHING, PREFIX
from rustray import scheduler as package
from rustray.head.journal_store import JournalStore
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.scheduler.scheduler import Scheduler
from rustray.scheduler.state import SchedulerSettings
from rustray.task.columns import PayloadColumn
from rustray.task.frames import CancelRequest, LeaseOutcome
from rustray.task.inputs import InputId, pack_inputs
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from rustray.task.views import WorkerInfo

_FOLDER = str(Path(package.__file__).parent)
_AT_ONCE = 16
_GRACE_S = 22.0
_SMALL, _LARGE = 120, 480
Shape = list[list[list[int]]]
"""Submissions of tasks, each with the tasks that it takes."""


class Run:
    """The scheduler on a journal in memory, and one worker that does what it is told.

    Attributes:
        lines: Of the scheduler, carried out so far.
        ended: How tasks have ended, by sequence.
    """

    def __init__(self) -> None:
        self.lines, self.now = 0, 1000.0
        self.ended: dict[int, TaskState] = {}
        self._store = JournalStore(":memory:", "full", lambda: self.now)
        self._starts = 0
        self.restart()

    def restart(self) -> None:
        """Start the next head; the worker of before does not come back."""
        self._leased: deque[tuple[int, int]] = deque()
        self._starts += 1
        self._scheduler = Scheduler(SchedulerSettings(first_lease=self._starts << 20))
        found = self._store.load(_GRACE_S)
        if found is not None:
            self.feed(found)
            self._wait(2 * _GRACE_S)

    def _wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self._scheduler.next_deadline()) is not None and due <= end:
            self.now = max(due, self.now)
            self.feed(e.TimePassed())
        self.now = end

    def feed(self, event: e.Event) -> None:
        """Handle an event, and count."""
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            commands = self._scheduler.handle(event, self.now)
        finally:
            sys.settrace(before)
        self._store.commit([one for one in commands if isinstance(one, get_args(c.JournalCommand))])
        for command in commands:
            if isinstance(command, c.GrantLease):
                self._leased.append((command.lease, len(command.payloads)))
            elif isinstance(command, c.PersistOutcome):
                outcome = command.outcome
                for number in range(outcome.first, outcome.first + len(outcome.payloads)):
                    self.ended[number] = outcome.state

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_FOLDER):
            return None
        self.lines += event == "line"
        return self._trace

    def submit(self, shape: Shape) -> None:
        """Hand in a graph."""
        first = 0
        for taken in shape:
            payloads = PayloadColumn.of([b"argument"] * len(taken))
            ids = [pack_inputs(InputId(PREFIX, number) for number in each) for each in taken]
            inputs = PayloadColumn.of(ids)
            task_class = TaskClass("f", has_inputs=True)
            self.feed(e.TasksSubmitted(PREFIX, first, task_class, payloads, True, inputs=inputs))
            first += len(taken)

    def join(self) -> None:
        """Start a worker."""
        name = f"w-{self._starts}"
        info = WorkerInfo(name, 1, name, "", {"cpu_cores": 2}, functions=(ANYTHING,))
        self.feed(e.WorkerJoined(info, self._starts))
        self._report(held=())

    def _report(self, held: Any = None, outcomes: tuple[LeaseOutcome, ...] = ()) -> None:
        name = f"w-{self._starts}"
        self.feed(e.WorkerReported(name, self._starts, held, outcomes, (), (), False, False))

    def work(self, count: int, state: TaskState = TaskState.SUCCEEDED) -> None:
        """End so many tasks, or all that there are."""
        while self._leased and count > 0:
            outcomes = []
            for _ in range(min(len(self._leased), _AT_ONCE)):
                lease, number = self._leased.popleft()
                payloads = PayloadColumn.of([b"result"] * number)
                outcomes.append(LeaseOutcome(lease, 0, state, payloads, 1000))
                count -= number
            self._report(outcomes=tuple(outcomes))


def chain(size: int) -> Shape:
    """Each takes the one before, handed in some at a time."""
    tasks = [[number - 1] if number else [] for number in range(size)]
    return [tasks[at : at + 100] for at in range(0, size, 100)]


def fan_in(size: int) -> Shape:
    """One takes all."""
    return [[[]] * size, [list(range(size))]]


def fan_out(size: int) -> Shape:
    """All take one, handed in some at a time."""
    return [[[]], *[[[0]] * 100 for _ in range(size // 100)]]


def layers(size: int) -> Shape:
    """Each takes two of the layer before; layers of 5."""
    found: Shape = [[[] for _ in range(5)]]
    for first in range(0, size - 5, 5):
        found.append([[first + at, first + (at + 1) % 5] for at in range(5)])
    return found


def tree(size: int) -> Shape:
    """Reduce ten at a time."""
    level, total = list(range(size)), size
    found: Shape = [[[] for _ in level]]
    while len(level) > 1:
        found.append([level[at : at + 10] for at in range(0, len(level), 10)])
        level = list(range(total, total + len(found[-1])))
        total += len(level)
    return found


SHAPES = (chain, fan_in, fan_out, layers, tree)


def _cost_of_life(shape: Shape) -> int:
    run, count = Run(), sum(map(len, shape))
    run.submit(shape)
    run.join()
    run.work(count // 2)
    run.restart()
    run.join()
    run.work(count)
    assert list(run.ended.values()) == [TaskState.SUCCEEDED] * count
    return run.lines


def _cost_of_failure(shape: Shape) -> int:
    run = Run()
    run.submit(shape)
    run.join()
    run.work(1, TaskState.FAILED)
    return run.lines


def _cost_of_cancel(shape: Shape) -> int:
    run, count = Run(), sum(map(len, shape))
    run.submit(shape)
    run.feed(e.CancelRequested(CancelRequest(PREFIX, 0, count)))
    assert list(run.ended.values()) == [TaskState.CANCELLED] * count
    return run.lines


@pytest.mark.parametrize("cost", [_cost_of_life, _cost_of_failure, _cost_of_cancel])
@pytest.mark.parametrize("make", SHAPES)
def test_a_task_of_a_large_graph_costs_no_more(
    make: Callable[[int], Shape], cost: Callable[[Shape], int]
) -> None:
    """Whether it runs over a restart, fails at its first task, or is cancelled."""
    small, large = (cost(make(size)) / size for size in (_SMALL, _LARGE))
    assert large < 1.4 * small, f"{small:.0f} lines a task in a small graph, {large:.0f} in a large"
