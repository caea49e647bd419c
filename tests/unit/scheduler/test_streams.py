"""Streams at the head: each index once, from the present lease, kept until it is consumed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.scheduling import ANYTHING, PREFIX, Bench, NaiveWorker
from rustray.head.journal_store import JournalStore
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.scheduler import stream_commands as sc
from rustray.scheduler.invariants import check
from rustray.scheduler.scheduler import Scheduler
from rustray.scheduler.state import SchedulerSettings
from rustray.task.columns import PayloadColumn
from rustray.task.frames import HeldRange
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from rustray.task.streams import LeaseItems, StreamCredit, StreamRead
from rustray.task.views import WorkerInfo

STREAM = TaskClass("f", stream_window=8)


def column(*numbers: int) -> PayloadColumn:
    """Items that show their index."""
    return PayloadColumn.of([b"item %d" % number for number in numbers])


def give(bench: Bench, worker: NaiveWorker, lease: int, *numbers: int) -> None:
    """Have a worker send consecutive items of the first task of a lease."""
    items = LeaseItems(lease, 0, numbers[0], column(*numbers))
    bench.report(worker, items=[items])


def read(bench: Bench, consumed: int, have: int = -1, *, has_left: bool = False) -> None:
    """Have the consumer of task 0 say how far it is."""
    bench.feed(e.ItemsRead(PREFIX, StreamRead(0, consumed, have, has_left)))


def told(bench: Bench) -> list[tuple[int, list[bytes]]]:
    """Return the items that the last event sent to the client: (first, items)."""
    found = [one for one in bench.commands if isinstance(one, sc.DeliverItems)]
    return [(one.first, list(one.payloads)) for one in found]


def credits_told(bench: Bench) -> list[StreamCredit]:
    """Return what workers were told by the last event."""
    return [one.credit for one in bench.commands if isinstance(one, sc.CreditStream)]


def begin(bench: Bench, name: str = "w-1") -> tuple[NaiveWorker, int]:
    """Hand in a stream and have a worker take it."""
    worker = bench.join(name, cpus=1)
    bench.submit(1, STREAM)
    [lease] = worker.held
    return worker, lease


def test_items_are_committed_before_they_are_told() -> None:
    """Who yields has started; then the journal has the items, and then the client."""
    bench = Bench()
    worker, lease = begin(bench)
    give(bench, worker, lease, 0, 1)
    kinds = [type(one).__name__ for one in bench.commands]
    assert kinds == ["PublishEvents", "PersistItems", "DeliverItems"]
    assert told(bench) == [(0, [b"item 0", b"item 1"])]
    assert bench.state_of(0) is TaskState.RUNNING


def test_an_item_that_comes_twice_is_told_once() -> None:
    """After a broken connection a worker sends again what was not acked."""
    bench = Bench()
    worker, lease = begin(bench)
    give(bench, worker, lease, 0, 1)
    give(bench, worker, lease, 0, 1)
    assert told(bench) == []
    give(bench, worker, lease, 1, 2)
    assert told(bench) == [(2, [b"item 2"])]
    assert bench.scheduler.state.counters["items_repeated"] == 3


def test_the_outcome_says_how_many_items_there_were() -> None:
    """So a client knows whether it has them all, whatever came in which order."""
    bench = Bench()
    worker, lease = begin(bench)
    give(bench, worker, lease, 0, 1, 2)
    bench.end(worker, lease, 0)
    [outcome] = [one for one in bench.commands if isinstance(one, c.DeliverOutcome)]
    assert outcome.outcome.items == 3


def test_an_old_attempt_is_not_heard() -> None:
    """The lease is the fence: items under another one, or of no stream, are counted and dropped."""
    bench = Bench()
    worker, old = begin(bench)
    give(bench, worker, old, 0)
    bench.die(worker)
    other = bench.join("w-2", cpus=1)
    [new] = other.held
    give(bench, other, old, 1)
    assert told(bench) == []
    for lease, offset in ((new, 1), (new, 2**32 - 1), (77, 0)):
        bench.report(other, items=[LeaseItems(lease, offset, 1, column(1))])
        assert told(bench) == []
    assert bench.scheduler.state.counters["stale_items"] == 4
    give(bench, other, new, 1)
    assert told(bench) == [(1, [b"item 1"])]
    bench.end(other, new, 0)
    give(bench, other, new, 2)
    assert told(bench) == []


def test_items_of_a_task_that_is_no_stream_are_refused() -> None:
    """A worker that lies reaches a counter."""
    bench = Bench()
    worker = bench.join(cpus=1)
    bench.submit(1)
    [lease] = worker.held
    give(bench, worker, lease, 0)
    assert told(bench) == []
    assert bench.scheduler.state.counters["stale_items_out_of_range"] == 1


def test_a_retry_goes_on_behind_what_is_here() -> None:
    """The next lease says how many items are there, and how many of them are consumed."""
    bench = Bench()
    worker, lease = begin(bench)
    give(bench, worker, lease, 0, 1, 2)
    read(bench, 2)
    assert credits_told(bench) == [StreamCredit(lease, 0, 3, 2)]
    bench.die(worker)
    other = bench.join("w-2", cpus=1)
    [new] = other.held
    assert other.grants[new].streams == (StreamCredit(new, 0, 3, 2),)


def test_a_gap_costs_an_attempt() -> None:
    """Items can be lost in a power cut where less was asked for: another run brings them."""
    bench = Bench()
    worker, lease = begin(bench)
    give(bench, worker, lease, 0)
    give(bench, worker, lease, 5)
    assert told(bench) == []
    [cancel] = [one for one in bench.commands if isinstance(one, c.CancelLease)]
    assert cancel.lease == lease
    [grant] = [one for one in bench.commands if isinstance(one, c.GrantLease)]
    assert grant.streams == (StreamCredit(grant.lease, 0, 1, 0),)
    assert bench.scheduler.state.counters["items_out_of_step"] == 1


def test_a_gap_without_a_budget_ends_the_task() -> None:
    """With the items that are there, and a typed error."""
    bench = Bench()
    worker = bench.join(cpus=1)
    bench.submit(1, replace(STREAM, max_retries=0))
    [lease] = worker.held
    give(bench, worker, lease, 0)
    give(bench, worker, lease, 5)
    assert bench.state_of(0) is TaskState.FAILED


def test_a_client_that_comes_back_gets_what_it_has_missed() -> None:
    """From the item on that it asks for; the outcome follows on its own request."""
    bench = Bench()
    worker, lease = begin(bench)
    give(bench, worker, lease, 0, 1)
    give(bench, worker, lease, 2, 3)
    read(bench, 1, have=3)
    assert told(bench) == [(3, [b"item 3"])]
    bench.end(worker, lease, 0)
    read(bench, 1, have=0)
    assert told(bench) == [(1, [b"item 1"]), (2, [b"item 2", b"item 3"])]


def test_what_is_consumed_is_dropped() -> None:
    """Also in the journal, which keeps how far the consumer is."""
    bench = Bench()
    worker, lease = begin(bench)
    give(bench, worker, lease, 0, 1, 2)
    read(bench, 2)
    [forget] = [one for one in bench.commands if isinstance(one, sc.ForgetItems)]
    assert forget.consumed == 2
    [batch] = bench.scheduler.state.sessions[PREFIX].batches
    assert [first for first, _ in batch.streams[0].items] == [2]
    read(bench, 1)  # an older word
    assert not [one for one in bench.commands if isinstance(one, sc.ForgetItems)]


def test_items_count_on_the_shelf_of_results_and_go_with_their_outcome() -> None:
    """Nobody reads them: they are dropped as results are, for their age or for want of room."""
    bench = Bench(result_ttl_s=60.0)
    worker, lease = begin(bench)
    give(bench, worker, lease, 0, 1, 2)
    bench.end(worker, lease, 0)
    assert bench.scheduler.state.results.bytes == 3 * len(b"item 0") + 1
    read(bench, 1)
    assert bench.scheduler.state.results.bytes == 2 * len(b"item 0") + 1
    bench.pass_time(61.0)
    assert bench.scheduler.state.results.bytes == 0
    assert PREFIX not in bench.scheduler.state.sessions


def test_a_consumer_that_leaves_ends_the_task() -> None:
    """What comes until the worker has stopped is not kept."""
    bench = Bench()
    worker, lease = begin(bench)
    give(bench, worker, lease, 0, 1)
    read(bench, 1, has_left=True)
    assert bench.state_of(0) is TaskState.CANCELLING
    give(bench, worker, lease, 2)
    assert told(bench) == []
    [batch] = bench.scheduler.state.sessions[PREFIX].batches
    assert batch.streams[0].bytes == 0
    bench.end(worker, lease, 0, state=TaskState.CANCELLED)
    assert bench.state_of(0) is TaskState.CANCELLED


def test_a_client_that_stays_away_ends_its_streams() -> None:
    """One that comes back in time finds them running."""
    bench = Bench(stream_ttl_s=60.0, lease_ttl_s=1e6)
    worker, lease = begin(bench)
    give(bench, worker, lease, 0)
    bench.feed(e.ClientLeft(PREFIX))
    bench.pass_time(59.0)
    read(bench, 0, have=1)
    bench.pass_time(120.0)
    assert bench.state_of(0) is TaskState.RUNNING
    bench.feed(e.ClientLeft(PREFIX))
    bench.pass_time(61.0)
    assert bench.state_of(0) is TaskState.CANCELLING
    assert bench.scheduler.state.counters["streams_abandoned"] == 1


def test_a_stream_without_a_session_ends_when_nobody_reads_it_any_more() -> None:
    """Its clock begins with its first item, and anew with each item and each read."""
    bench = Bench(stream_ttl_s=60.0, lease_ttl_s=1e6)
    worker = bench.join(cpus=1)
    bench.feed(e.TasksSubmitted(PREFIX, 0, STREAM, PayloadColumn.of([b"x"]), is_pushed=False))
    [lease] = worker.held
    read(bench, 0)
    bench.pass_time(100.0)
    give(bench, worker, lease, 0)
    for consumed in (0, 0, 1):
        bench.pass_time(59.0)
        read(bench, consumed)
    assert bench.state_of(0) is TaskState.RUNNING
    bench.pass_time(61.0)
    assert bench.state_of(0) is TaskState.CANCELLING


def test_a_detached_stream_waits_for_ever() -> None:
    """Its lifetime is nobody's."""
    bench = Bench(stream_ttl_s=60.0, lease_ttl_s=1e6)
    worker = bench.join(cpus=1)
    bench.submit(1, replace(STREAM, is_detached=True))
    [lease] = worker.held
    give(bench, worker, lease, 0)
    bench.feed(e.ClientLeft(PREFIX))
    bench.pass_time(1_000.0)
    assert bench.state_of(0) is TaskState.RUNNING


def test_streams_that_end_together_have_an_outcome_each() -> None:
    """Their numbers of items differ."""
    bench = Bench()
    bench.submit(3, STREAM)
    bench.cancel(0, 3)
    outcomes = [one for one in bench.commands if isinstance(one, c.DeliverOutcome)]
    assert [one.outcome.first for one in outcomes] == [0, 1, 2]


def test_a_worker_that_comes_back_hears_how_far_consumers_are() -> None:
    """It may have missed a credit, and would wait for ever."""
    bench = Bench()
    worker, lease = begin(bench)
    give(bench, worker, lease, 0, 1)
    bench.disconnect(worker)
    read(bench, 2)
    worker = bench.join(worker.worker_id, cpus=1)
    assert StreamCredit(lease, 0, 2, 2) in credits_told(bench)


# ── Over a restart of the head ────────────────────────────────────────────────────────────────


class Head:
    """The real scheduler on the real journal's store, started again and again."""

    def __init__(self) -> None:
        self.store = JournalStore(":memory:", "full", lambda: 1000.0)
        self.starts = 0
        self.told: list[c.Command] = []
        self.start()

    def start(self) -> None:
        """Start the next head with what the journal has."""
        self.starts += 1
        self.scheduler = Scheduler(SchedulerSettings(first_lease=self.starts << 20))
        found = self.store.load(22.0)
        if found is not None:
            self.feed(found)

    def feed(self, event: e.Event) -> None:
        """Handle an event and commit what it says."""
        self.told = self.scheduler.handle(event, 1000.0)
        check(self.scheduler.state)
        kept = (
            c.PersistBatch, c.PersistOutcome, c.ForgetArguments, c.PersistWorker, c.PersistRerun,
            sc.PersistItems, sc.ForgetItems, c.PersistCancel,
        )  # fmt: skip
        self.store.commit([one for one in self.told if isinstance(one, kept)])

    def join(self, held: tuple[HeldRange, ...] = ()) -> None:
        """Have worker "w" come (back)."""
        info = WorkerInfo("w", 1, "w", "", {"cpu_cores": 1.0}, functions=(ANYTHING,))
        self.feed(e.WorkerJoined(info, self.starts))
        self.report(held=held)

    def report(self, *items: LeaseItems, held: tuple[HeldRange, ...] | None = None) -> None:
        """Send a frame of the worker."""
        self.feed(e.WorkerReported("w", self.starts, held, (), (), (), False, False, items=items))

    def told_items(self) -> list[tuple[int, list[bytes]]]:
        """Return the items of the last event."""
        found = [one for one in self.told if isinstance(one, sc.DeliverItems)]
        return [(one.first, list(one.payloads)) for one in found]


def a_begun_stream(consumed: int = 0) -> tuple[Head, int]:
    """A stream that has yielded three items, and its lease."""
    head = Head()
    head.join()
    head.feed(e.TasksSubmitted(PREFIX, 0, STREAM, PayloadColumn.of([b"x"]), True))
    [grant] = [one for one in head.told if isinstance(one, c.GrantLease)]
    head.report(LeaseItems(grant.lease, 0, 0, column(0, 1, 2)))
    if consumed:
        head.feed(e.ItemsRead(PREFIX, StreamRead(0, consumed)))
    return head, grant.lease


@pytest.mark.parametrize("consumed", [0, 1, 2, 3])
def test_items_come_back_with_the_journal(consumed: int) -> None:
    """Those that are not consumed; the worker goes on, and what it sends again is known."""
    head, lease = a_begun_stream(consumed)
    head.start()
    head.join((HeldRange(lease, 0, 1, PREFIX, 0, 1),))
    [credit] = [one.credit for one in head.told if isinstance(one, sc.CreditStream)]
    assert (credit.have, credit.consumed) == (3, consumed)
    head.report(LeaseItems(lease, 0, 1, column(1, 2, 3)))
    assert head.told_items() == [(3, [b"item 3"])]
    head.feed(e.ItemsRead(PREFIX, StreamRead(0, consumed, have=consumed)))
    found = [item for _, items in head.told_items() for item in items]
    assert found == list(column(*range(consumed, 4)))


def test_a_consumer_knows_better_than_a_head_that_lost_its_state() -> None:
    """A task of memory level is handed in again; what its client has is not sent again."""
    head, _ = a_begun_stream()
    other = Head()
    other.join()
    other.feed(e.TasksSubmitted(PREFIX, 0, STREAM, PayloadColumn.of([b"x"]), True))
    [grant] = [one for one in other.told if isinstance(one, c.GrantLease)]
    other.feed(e.ItemsRead(PREFIX, StreamRead(0, 3, have=3)))
    other.report(LeaseItems(grant.lease, 0, 0, column(0, 1, 2, 3)))
    assert other.told_items() == [(3, [b"item 3"])]
    assert head.scheduler.state.counters["items_taken"] == 3
