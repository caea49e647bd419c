"""Large results: the core decides which they are, and lets go of the bytes once they are safe."""

from __future__ import annotations

import pytest

from helpers.scheduling import PREFIX, Bench
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.scheduler import results
from rustray.task.columns import PayloadColumn, StoredColumn
from rustray.task.frames import LeaseOutcome
from rustray.task.state import TaskState


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "LARGE_BYTES", 100)


def end(bench: Bench, *items: bytes, state: TaskState = TaskState.SUCCEEDED) -> list[c.Command]:
    """Submit tasks, and end them all in one report."""
    bench.submit(len(items))
    worker = bench.workers["w-1"]
    (grant,) = [one for one in bench.commands if isinstance(one, c.GrantLease)]
    outcome = LeaseOutcome(grant.lease, 0, state, PayloadColumn.of(items), 1)
    worker.held.pop(grant.lease)
    return bench.feed(
        e.WorkerReported("w-1", worker.session, None, (outcome,), (), (), False, False)
    )


def persisted(commands: list[c.Command]) -> list[bool]:
    """Return of each outcome whether it is large."""
    return [one.is_large for one in commands if isinstance(one, c.PersistOutcome)]


def test_large_is_one_item_and_not_many() -> None:
    """Many small results of one report stay in memory; one large one among them goes to disk."""
    bench = Bench(result_disk_bytes=10_000)
    bench.join(cpus=8)
    assert persisted(end(bench, *[b"x" * 60] * 5)) == [False]
    assert persisted(end(bench, b"x" * 100)) == [False]
    assert persisted(end(bench, b"small", b"x" * 101)) == [True]
    assert persisted(end(bench, b"x" * 101, b"small", b"small")) == [True]
    assert persisted(end(bench, b"x" * 500, state=TaskState.FAILED)) == [False]


def test_without_a_disk_all_stay_in_memory() -> None:
    """The embedded head keeps no files."""
    bench = Bench()
    bench.join(cpus=8)
    assert persisted(end(bench, b"x" * 5000)) == [False]
    assert bench.scheduler.state.results.bytes == 5000


def test_what_is_safe_leaves_memory_and_is_delivered_by_name() -> None:
    """Who comes back is given a column that says where the bytes are, slice by slice."""
    bench = Bench(result_disk_bytes=10_000)
    bench.join(cpus=8)
    commands = end(bench, b"x" * 200, b"y" * 300, b"z")
    (number,) = [one.number for one in commands if isinstance(one, c.PersistOutcome)]
    state = bench.scheduler.state
    assert (state.results.bytes, state.large.bytes) == (0, 501)
    found = bench.scheduler.task(PREFIX, 1)
    assert found is not None
    assert found.payload == b"y" * 300
    bench.feed(e.ResultsStored((number, 999)))
    found = bench.scheduler.task(PREFIX, 1)
    assert found is not None
    assert found.payload is None
    assert isinstance(found.stored, StoredColumn)
    assert (found.stored.number, found.stored.skip, found.stored.size_bytes) == (number, 1, 300)
    delivered = bench.feed(e.FollowRequested(PREFIX, 1, 2))
    (outcome,) = [one.outcome for one in delivered if isinstance(one, c.DeliverOutcome)]
    assert isinstance(outcome.payloads, StoredColumn)
    assert (outcome.payloads.skip, len(outcome.payloads)) == (1, 2)
    with pytest.raises(LookupError, match="read it first"):
        list(outcome.payloads)


def test_each_kind_has_its_own_room() -> None:
    """Large results that do not fit on the disk push out large ones only, the delivered first."""
    bench = Bench(result_disk_bytes=450, result_memory_bytes=100)
    bench.join(cpus=8)
    end(bench, b"s" * 90)
    end(bench, b"x" * 200)
    end(bench, b"y" * 200)
    bench.feed(e.OutcomesDelivered(PREFIX, 2, 1))
    commands = end(bench, b"z" * 200)
    assert [one.is_large for one in commands if isinstance(one, c.ForgetResults)] == [True]
    known = [bench.scheduler.task(PREFIX, task) is not None for task in range(4)]
    assert known == [True, True, False, True]


def test_evicted_results_leave_memory_at_once() -> None:
    """Regression: what was evicted as delivered kept its bytes until its time to live was over."""
    bench = Bench(result_memory_bytes=1_000)
    bench.join(cpus=8)
    for task in range(3_000):
        end(bench, b"x" * 90)
        bench.feed(e.OutcomesDelivered(PREFIX, task, 1))
    queue = bench.scheduler.state.results.queue
    assert sum(len(stored.payloads.blob) for stored in queue) <= 1_000
    assert len(queue) < 1_500, "records of results that are gone are kept"
