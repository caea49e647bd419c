"""What was refused or reported in vain leaves nothing but a count under its reason."""

from __future__ import annotations

from hashlib import sha256

import pytest

from helpers.scheduling import PREFIX, Bench
from rustray.common.resources import ResourceSet
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.task.columns import PayloadColumn
from rustray.task.frames import LeaseOutcome, LeaseRange
from rustray.task.spec import Codec, TaskClass
from rustray.task.state import TaskState

DONE = PayloadColumn.of([b"done"])


def stale(bench: Bench) -> dict[str, int]:
    """Return what was dropped, by reason."""
    counters = bench.scheduler.state.counters
    found = {name: n for name, n in counters.items() if name.startswith("stale_reports_")}
    assert sum(found.values()) == counters["stale_reports"]
    return {name.removeprefix("stale_reports_"): n for name, n in found.items()}


def test_a_start_and_an_end_in_one_frame_are_both_true() -> None:
    """Regression: an honest worker's start was taken for stale, and its event was never told."""
    bench = Bench()
    worker = bench.join(cpus=1)
    bench.submit(1)
    [lease] = worker.held
    worker.held.clear()
    outcome = LeaseOutcome(lease, 0, TaskState.SUCCEEDED, DONE, 1)
    bench.report(worker, outcomes=[outcome], started=[LeaseRange(lease, 0, 1)])
    assert stale(bench) == {}
    told = [one.state for one in bench.commands if isinstance(one, c.PublishEvents)]
    assert told == [TaskState.RUNNING, TaskState.SUCCEEDED]


def test_each_reason_has_its_counter() -> None:
    """A lease that never was, another worker's, a task too many, and one that has ended."""
    bench = Bench()
    liar, other = bench.join("w-1", cpus=2), bench.join("w-2", cpus=2)
    bench.submit(4)
    [(mine, held)] = liar.held.items()
    [theirs] = other.held
    assert held == {0, 1}
    bench.end(liar, mine, 0)
    for lease, offset in ((10**9, 0), (theirs, 0), (mine, 2), (mine, 0)):
        outcome = LeaseOutcome(lease, offset, TaskState.SUCCEEDED, DONE, 1)
        bench.report(liar, outcomes=[outcome])
    expected = {"unknown_lease": 1, "foreign_lease": 1, "out_of_range": 1, "ended": 1}
    assert stale(bench) == expected
    bench.give_back(liar, mine, 1, 1)
    bench.report(liar, outcomes=[LeaseOutcome(mine, 1, TaskState.SUCCEEDED, DONE, 1)])
    assert sum(stale(bench).values()) == sum(expected.values()) + 1


@pytest.mark.parametrize("is_needed", [False, True], ids=["alone", "shared"])
def test_the_code_of_refused_tasks_is_forgotten(is_needed: bool) -> None:
    """Regression: it stayed in memory and journal until the next start, as often as it was sent."""
    bench = Bench()
    bench.join(cpus=1)
    code_hash = sha256(b"code").digest()
    bench.feed(e.CodeReceived(code_hash, b"code"))
    if is_needed:
        bench.submit(1, TaskClass("f", code_hash, codec=Codec.PICKLE))
    greedy = TaskClass("f", code_hash, codec=Codec.PICKLE, resources=ResourceSet.of({"dragons": 1}))
    first = 10
    commands = bench.feed(e.TasksSubmitted(PREFIX, first, greedy, DONE, is_pushed=True))
    assert bench.rejected == {first: "RESOURCE_NOT_AVAILABLE"}
    assert (code_hash in bench.scheduler.state.code) is is_needed
    assert (c.ForgetCode(code_hash) in commands) is not is_needed
