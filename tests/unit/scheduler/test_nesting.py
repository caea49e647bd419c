"""Tasks that hand in tasks, as the scheduler sees it: room, order, cancels, earlier attempts."""

from __future__ import annotations

import pytest

from helpers.scheduling import PREFIX, Bench
from rustray.common.ids import child_prefix
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.task.columns import PayloadColumn
from rustray.task.frames import CancelRequest, LeaseRange
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState

CHILD = TaskClass("f", depth=1)
GRANDCHILD = TaskClass("f", depth=2)


class Nest(Bench):
    """A bench with tasks of several sessions: its ledger knows only one."""

    def _apply(self, command: c.Command, persisted: set[int]) -> None:
        if isinstance(command, c.GrantLease):
            worker = self.workers[command.worker_id]
            worker.held[command.lease] = set(range(len(command.payloads)))
            worker.grants[command.lease] = command


def hand_in(
    bench: Nest,
    prefix: bytes,
    *payloads: bytes,
    task_class: TaskClass = CHILD,
    first: int = 0,
    horizon: int = 0,
) -> list[c.Command]:
    """Let a task hand in tasks."""
    column = PayloadColumn.of(list(payloads))
    return bench.feed(e.TasksSubmitted(prefix, first, task_class, column, True, horizon=horizon))


def verdicts(commands: list[c.Command]) -> list[tuple[int, str]]:
    """Say what was accepted anew, met a task that was there, or was refused, by sequence."""
    found: list[tuple[int, str]] = []
    for command in commands:
        if isinstance(command, c.AcceptTasks):
            name = "met" if command.deduplicated else "new"
        elif isinstance(command, c.RejectTasks):
            name = command.error.code
        else:
            continue
        found += [(command.first + i, name) for i in range(command.count)]
    return found


def states(bench: Nest, prefix: bytes, count: int) -> list[TaskState]:
    """Return the states of a session's first tasks."""
    found = [bench.scheduler.task(prefix, number) for number in range(count)]
    return [one.state for one in found if one is not None]


def test_a_task_that_waits_makes_room_and_takes_it_back() -> None:
    """Its cores go to others; when it goes on they are its own again, and so is the count."""
    bench = Nest()
    worker = bench.join(cpus=1)
    bench.submit(1)
    bench.submit(5)
    load = bench.scheduler.state.workers["w-1"].load
    assert (load.tasks, load.load) == (2, 2.0)
    bench.report(worker, blocked=[LeaseRange(1, 0, 1)])
    assert bench.state_of(0) is TaskState.RUNNING
    assert (load.tasks, load.load) == (3, 2.0)
    bench.report(worker, blocked=[LeaseRange(1, 0, 1)])
    assert load.tasks == 3
    bench.report(worker, resumed=[LeaseRange(1, 0, 1)])
    assert (load.tasks, load.load) == (3, 3.0)
    bench.report(worker, blocked=[LeaseRange(1, 0, 1)])
    bench.end(worker, 1, 0)
    assert (load.tasks, load.load) == (5, 5.0)
    bench.run_all()
    assert load.load == 0.0


def test_a_session_begins_with_what_waits_now() -> None:
    """What went on while the worker was away counts again, though nobody said so."""
    bench = Nest()
    worker = bench.join(cpus=1)
    bench.submit(1)
    bench.report(worker, blocked=[LeaseRange(1, 0, 1)])
    load = bench.scheduler.state.workers["w-1"].load
    assert load.load == 0.0
    bench.disconnect(worker)
    bench.join(cpus=1)
    assert load.load == 1.0


def test_what_tasks_hand_in_goes_before_what_nobody_waits_for() -> None:
    """Deeper first within a priority: else tasks that wait would pile up."""
    bench = Nest()
    bench.submit(3)
    hand_in(bench, b"children..", b"x", b"y")
    hand_in(bench, b"deeper....", b"z", task_class=GRANDCHILD)
    bench.submit(1, TaskClass("f", priority=1))
    bench.join(cpus=1)
    order = []
    for _ in range(7):
        worker = bench.workers["w-1"]
        for lease in sorted(worker.grants):
            if lease not in order:
                order.append(lease)
        bench.finish_one(worker)
    depths = [
        (grant.task_class.priority, grant.task_class.depth)
        for grant in bench.workers["w-1"].grants.values()
        for _ in grant.payloads
    ]
    assert depths == [(1, 0), (0, 2), (0, 1), (0, 1), (0, 0), (0, 0), (0, 0)]


@pytest.mark.parametrize("spares", [False, True])
def test_a_cancel_goes_down(spares: bool) -> None:
    """Children and theirs are cancelled with a task, unless they are to be spared."""
    bench = Nest()
    [number] = bench.submit(1)
    worker = bench.join(cpus=1)
    below = child_prefix(PREFIX, number)
    hand_in(bench, below, b"x", b"y")
    deeper = child_prefix(below, 1)
    hand_in(bench, deeper, b"z", task_class=GRANDCHILD)
    others = child_prefix(PREFIX, number + 1)
    hand_in(bench, others, b"x")
    bench.feed(e.CancelRequested(CancelRequest(PREFIX, number, 1, spares_children=spares)))
    assert bench.state_of(number) is TaskState.CANCELLING
    found = states(bench, below, 2) + states(bench, deeper, 1)
    if spares:
        assert TaskState.CANCELLED not in found
    else:
        assert set(found) <= {TaskState.CANCELLED, TaskState.CANCELLING}
    assert TaskState.CANCELLED not in states(bench, others, 1)
    for lease in list(worker.held):
        bench.end(worker, lease, 0, state=TaskState.CANCELLED)


def test_a_chain_of_a_thousand_is_cancelled() -> None:
    """However deep: no recursion of ours stands in the way."""
    bench = Nest()
    bench.submit(1)
    prefix, number = PREFIX, 0
    for depth in range(1, 1_000):
        prefix, number = child_prefix(prefix, number), 0
        hand_in(bench, prefix, b"x", task_class=TaskClass("f", depth=depth))
    bench.feed(e.CancelRequested(CancelRequest(PREFIX, 0, 1)))
    assert bench.counts()[TaskState.CANCELLED] == 1_000


def test_the_same_call_meets_the_task_of_an_earlier_attempt() -> None:
    """What waits, runs, or has a value is met; what differs or ended badly is refused, alone."""
    bench = Nest()
    worker = bench.join(cpus=5)
    hand_in(bench, b"children..", b"good", b"bad", b"runs", b"other", b"gone")
    numbers = {}
    for lease, grant in worker.grants.items():
        for offset in range(len(grant.payloads)):
            numbers[grant.first + offset] = (lease, offset)
    bench.end(worker, *numbers[0])
    bench.end(worker, *numbers[1], state=TaskState.FAILED)
    horizon = bench.scheduler.state.next_outcome
    bench.end(worker, *numbers[4], state=TaskState.FAILED)
    again = hand_in(
        bench, b"children..", b"good", b"bad", b"runs", b"else", b"gone", b"new", horizon=horizon
    )
    taken = "DUPLICATE_TASK"
    assert sorted(verdicts(again)) == [
        (0, "met"), (1, taken), (2, "met"), (3, taken), (4, "met"), (5, "new"),
    ]  # fmt: skip
    told = [x.outcome.first for x in again if isinstance(x, c.DeliverOutcome)]
    assert sorted(told) == [0, 4]


def test_ended_children_are_compared_too() -> None:
    """Also when all have ended and the head has forgotten their arguments."""
    bench = Nest()
    bench.join(cpus=2)
    hand_in(bench, b"children..", b"x", b"y")
    bench.run_all()
    again = hand_in(bench, b"children..", b"x", b"z", horizon=bench.scheduler.state.next_outcome)
    assert verdicts(again) == [(0, "met"), (1, "DUPLICATE_TASK")]


@pytest.mark.parametrize(("name", "is_met"), [("m.f", True), ("m.f.<locals>.g", False)])
def test_code_need_not_be_the_same_to_the_byte(name: str, is_met: bool) -> None:
    """A function of a module is known by its name; one that is made at run time by its code."""
    bench = Nest()
    first, second = b"1" * 32, b"2" * 32
    for code in (first, second):
        bench.feed(e.CodeReceived(code, b"code"))
        hand_in(bench, b"children..", b"x", task_class=TaskClass(name, code, depth=1), horizon=1)
    met = [x.deduplicated for x in bench.commands if isinstance(x, c.AcceptTasks)]
    assert met == ([True] if is_met else [])


def test_explain_says_that_it_waits() -> None:
    """Who asks why a task takes so long learns that it waits for its own, and for how many."""
    bench = Nest()
    worker = bench.join(cpus=1)
    [number] = bench.submit(1)
    hand_in(bench, child_prefix(PREFIX, number), b"x", b"y")
    bench.report(worker, blocked=[LeaseRange(1, 0, 1)])
    found = bench.scheduler.explain(PREFIX, number, bench.now)
    assert found is not None
    assert "waits for tasks of its own (2 have not ended)" in found.summary


@pytest.mark.parametrize(("strategy", "goes_home"), [("LeastLoaded", True), ("RoundRobin", False)])
def test_what_a_task_hands_in_runs_at_its_own_worker_while_that_has_a_core(
    strategy: str, goes_home: bool
) -> None:
    """Then elsewhere. A strategy that has other reasons for where a task goes is left alone."""
    bench = Nest(strategy=strategy)
    for number in (1, 2, 3):
        bench.join(f"w-{number}", cpus=2)
    (parent,) = bench.submit(1)
    home = next(worker for worker in bench.workers.values() if worker.held)
    children = child_prefix(PREFIX, parent)
    given = []
    for number in range(3):
        column = PayloadColumn.of([b"x"])
        event = e.TasksSubmitted(children, number, CHILD, column, True, near=home.worker_id)
        given += [one.worker_id for one in bench.feed(event) if isinstance(one, c.GrantLease)]
    assert (given[0] == home.worker_id) == goes_home
    assert home.worker_id != given[1]
