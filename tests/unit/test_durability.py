"""Levels of durability for each submit: what waits for which commit, and what is told of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest

import rustray
from helpers.scheduling import ANYTHING, PREFIX
from helpers.waiting import aeventually
from rustray.client.options import check_options
from rustray.client.session import ClientSession
from rustray.client.submission import Submitter
from rustray.common.durability import DURABILITIES, Durability, parse_durability
from rustray.common.errors import CommunicationError, DurabilityNotAvailable, PayloadError
from rustray.head.client_peer import ClientPeer
from rustray.head.core import HeadCore, HeadIdentity
from rustray.head.driver import _AS_ASKED, HeadDriver
from rustray.head.embedded import LOCAL_ADMIN, EmbeddedHead
from rustray.head.journal import GroupCommitJournal
from rustray.head.journal_log import damage_of
from rustray.head.journal_rows import connect_reader
from rustray.head.journal_store import FILE_NAME, JournalStore
from rustray.head.notifications import NotificationManager
from rustray.head.result_files import ResultFiles
from rustray.head.service import HeadService
from rustray.proto.rustray.v1 import common_pb2 as common
from rustray.proto.rustray.v1 import head_pb2 as wire
from rustray.rpc.api import EventFilter, TaskFilter
from rustray.rpc.codec import decode_client_frame, decode_head_frame, encode_head_frame
from rustray.rpc.request_codec import get_item
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.scheduler import stream_commands as sc
from rustray.scheduler import tombstone_commands as tc
from rustray.scheduler.scheduler import Scheduler
from rustray.scheduler.state import SchedulerSettings
from rustray.task.columns import PayloadColumn
from rustray.task.frames import AcceptedRange, CancelRequest, ClientFrame, LeaseOutcome, Outcome
from rustray.task.spec import TaskClass, TaskSpec
from rustray.task.state import TaskState
from rustray.task.views import WorkerInfo

MEMORY, PROCESS, FULL = Durability.MEMORY, Durability.PROCESS, Durability.FULL
PLAIN = TaskClass("f")


class SlowStore:
    """A store whose commits wait until they are let go.

    Attributes:
        syncs: Whether each commit that has begun is to be synced.
    """

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.syncs: list[bool] = []
        self.done = 0

    def commit(self, commands: Sequence[c.JournalCommand], is_synced: bool) -> None:
        self.syncs.append(is_synced)
        self.gate.acquire()
        self.done += 1

    def tidy(self) -> bool:
        return False

    def close(self) -> None:
        """There is nothing to let go of."""


class Heard:
    """A client that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def accept(self, command: c.AcceptTasks) -> None:
        self.told.append(("accepted", command.first, command.durability))

    def reject(self, command: c.RejectTasks) -> None:
        self.told.append(("rejected", command.first, command.error.code))

    def deliver(self, command: c.DeliverOutcome) -> None:
        self.told.append(("ended", command.outcome.first, command.durability))

    def deliver_items(self, command: sc.DeliverItems) -> None:
        self.told.append(("items", command.first))

    def unknown(self, command: c.ReportUnknown) -> None:
        self.told.append(("unknown", command.first))


class Hands:
    """A worker that notes what it is given."""

    def __init__(self) -> None:
        self.held: list[c.GrantLease] = []

    def grant(self, command: c.GrantLease) -> None:
        self.held.append(command)

    def cancel(self, command: c.CancelLease) -> None:
        """It is deaf."""

    def recall(self, command: c.RecallLease) -> None:
        """It has begun everything."""

    def credit(self, command: sc.CreditStream) -> None:
        """Likewise."""

    def tell_of_value(self, command: object) -> None:
        raise AssertionError(f"no value stays with a worker here: {command}")

    def drain(self) -> None:
        """Likewise."""

    def close(self, session: int, reason: str) -> None:
        raise AssertionError(reason)

    def compare(self, sent: int, received: int) -> bool:
        return True


class Bench:
    """A head's core and journal, whose commits are let go one by one."""

    def __init__(self, level: str, least: Durability = Durability.DEFAULT) -> None:
        loop = asyncio.get_running_loop()
        self.store = SlowStore()
        self.journal = GroupCommitJournal(self.store, level, loop, on_failure=_fail, least=least)
        identity = HeadIdentity("test", "0", "", "none")
        self.core = HeadCore.create(identity, SchedulerSettings(), journal=self.journal)
        self.driver = self.core.driver
        self.client = self.driver.clients[PREFIX] = Heard()
        self.worker = Hands()

    @property
    def told(self) -> list[tuple[Any, ...]]:
        """What the client was told."""
        return self.client.told

    def submit(self, first: int, asked: Durability, task_class: TaskClass = PLAIN) -> None:
        """Hand in one task through the stream."""
        column = PayloadColumn.of([b"x"])
        self.driver.handle(
            e.TasksSubmitted(PREFIX, first, task_class, column, True, durability=asked)
        )

    async def join(self) -> None:
        """Have a worker that takes everything."""
        self.driver.workers["w"] = self.worker
        info = WorkerInfo("w", 1, "w", "", {"cpu_cores": 64}, functions=(ANYTHING,))
        self.driver.handle(e.WorkerJoined(info, 1))
        self._report(held=())
        await self.settle()
        self.store.syncs.clear()

    def finish(self, first: int) -> None:
        """Have the worker end a task."""
        [grant] = [one for one in self.worker.held if one.first == first]
        column = PayloadColumn.of([b"value"])
        self._report(LeaseOutcome(grant.lease, 0, TaskState.SUCCEEDED, column, 1))

    def _report(self, *outcomes: LeaseOutcome, held: tuple[()] | None = None) -> None:
        self.driver.handle(e.WorkerReported("w", 1, held, outcomes, (), (), False, False))

    async def begin(self) -> None:
        """Have a commit with all that was appended begin."""
        begun = len(self.store.syncs)
        await aeventually(lambda: len(self.store.syncs) > begun)

    async def commit(self) -> None:
        """Let one commit go, and have it told of."""
        before = self.journal.committed
        self.store.gate.release()
        await aeventually(lambda: self.journal.committed > before)

    async def settle(self) -> None:
        """Let all go."""
        while self.journal.committed != self.journal.appended:
            await self.commit()

    async def close(self) -> None:
        """End the thread."""
        self.core.close()
        self.store.gate.release(100)
        await self.journal.close()


def _fail(error: BaseException) -> None:
    raise error


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Bench]]:
    """Makes benches, and closes them."""
    made: list[Bench] = []

    def one(level: str, **options: Any) -> Bench:
        made.append(Bench(level, **options))
        return made[-1]

    yield one
    for bench in made:
        await bench.close()


Make = Callable[..., Bench]


# -- what waits for what -------------------------------------------------------


async def test_a_group_is_as_safe_as_the_safest_in_it(make: Make) -> None:
    """A head of the level full syncs no commit in which nothing asks for it."""
    bench = make("full")
    for first, group in enumerate([[PROCESS], [MEMORY, PROCESS], [PROCESS, FULL], [MEMORY]]):
        for place, asked in enumerate(group):
            bench.submit(10 * first + place, asked)
        await bench.begin()
        await bench.settle()
    bench.submit(99, Durability.DEFAULT)
    await bench.begin()
    assert bench.store.syncs == [False, False, True, False, True]


async def test_a_head_of_the_level_process_syncs_on_demand(make: Make) -> None:
    """A full task is told after a sync there, too; its own are told without."""
    bench = make("process")
    bench.submit(0, Durability.DEFAULT)
    await bench.begin()
    bench.submit(1, FULL)
    assert bench.told == []
    await bench.commit()
    assert bench.told == [("accepted", 0, PROCESS)]
    await aeventually(lambda: len(bench.store.syncs) == 2)
    assert bench.journal.synced == 0
    await bench.commit()
    assert bench.told[1:] == [("accepted", 1, FULL)]
    assert bench.store.syncs == [False, True]


async def test_what_need_not_be_safe_overtakes_and_takes_nothing_along(make: Make) -> None:
    """A memory task's ack and outcome go at once; the others' acks, and all events, wait."""
    bench = make("full")
    await bench.join()
    revision = bench.core.notifications.revision
    bench.submit(0, FULL)
    await bench.begin()
    bench.submit(1, PROCESS)
    bench.submit(2, MEMORY)
    bench.submit(3, FULL)
    for first in range(4):
        bench.finish(first)
    assert bench.told == [("accepted", 2, MEMORY), ("ended", 2, MEMORY)]
    assert bench.core.notifications.revision == revision
    await bench.commit()
    assert bench.told[2:] == [("accepted", 0, FULL)]
    assert bench.core.notifications.revision == revision + 1
    await bench.settle()
    ids = [(kind, first) for kind, first, _ in bench.told[3:]]
    assert ids == [
        ("accepted", 1), ("accepted", 3), ("ended", 0), ("ended", 1), ("ended", 3),
    ]  # fmt: skip
    assert bench.core.notifications.revision == revision + 8


async def test_a_memory_task_is_written_with_the_next_commit(make: Make) -> None:
    """Nobody waits for it, and the commit comes all the same."""
    bench = make("full")
    bench.submit(0, MEMORY)
    assert bench.told == [("accepted", 0, MEMORY)]
    await bench.begin()
    await bench.commit()
    assert bench.journal.committed == bench.journal.appended
    assert bench.store.syncs == [False]


async def test_a_resubmit_at_a_higher_level_waits_for_it(make: Make) -> None:
    """It was told at memory, then at full: after a sync that covers what was written before."""
    bench = make("full")
    bench.submit(0, MEMORY)
    await bench.begin()
    await bench.settle()
    bench.submit(0, FULL)
    assert bench.told == [("accepted", 0, MEMORY)]
    await bench.begin()
    assert len(bench.told) == 1
    await bench.commit()
    assert bench.told[1:] == [("accepted", 0, FULL)]
    assert bench.store.syncs == [False, True]
    bench.submit(0, MEMORY)
    assert bench.told[2:] == [("accepted", 0, FULL)], "it has more than it asks for now"
    assert bench.journal.committed == bench.journal.appended, "nothing is written for that"


async def test_a_resubmit_that_asks_for_no_level_has_the_heads(make: Make) -> None:
    """Whoever says nothing of levels trusts the head's, whoever came first with that id."""
    bench = make("full")
    bench.submit(0, MEMORY)
    await bench.begin()
    await bench.settle()
    bench.submit(0, Durability.DEFAULT)
    assert bench.told == [("accepted", 0, MEMORY)]
    await bench.begin()
    await bench.commit()
    assert bench.told[1:] == [("accepted", 0, FULL)]
    assert bench.store.syncs == [False, True]


async def test_an_outcome_is_told_as_its_task_was_asked_to_be(make: Make) -> None:
    """Also one whose task was raised after it had ended."""
    bench = make("full")
    await bench.join()
    bench.submit(0, MEMORY)
    bench.finish(0)
    await bench.settle()
    bench.told.clear()
    bench.submit(0, FULL)
    assert bench.told == []
    await bench.begin()
    await bench.commit()
    assert bench.told == [("accepted", 0, FULL), ("ended", 0, FULL)]


@pytest.mark.parametrize("asked", [MEMORY, PROCESS, FULL])
@pytest.mark.parametrize("careful", [TaskClass("f", max_retries=0), TaskClass("f", exclusive=True)])
async def test_what_runs_at_most_once_is_begun_after_its_commit(
    make: Make, asked: Durability, careful: TaskClass
) -> None:
    """Whatever level was asked for; and a sync where the head is one that syncs."""
    bench = make("full")
    await bench.join()
    bench.submit(0, asked, careful)
    assert bench.worker.held == []
    await bench.begin()
    assert bench.worker.held == []
    await bench.commit()
    assert [grant.first for grant in bench.worker.held] == [0]
    assert bench.store.syncs == [True]
    assert bench.told == [("accepted", 0, FULL if careful.exclusive else asked)]


async def test_what_is_said_of_a_full_task_is_synced_at_a_head_of_process(make: Make) -> None:
    """A cancel of it, e.g.: a power cut must not undo what was said. Before it none was synced."""
    bench = make("process")
    await bench.join()
    bench.submit(0, PROCESS)
    bench.driver.handle(e.CancelRequested(CancelRequest(PREFIX, 0, 1)))
    await bench.begin()
    await bench.settle()
    assert bench.store.syncs == [False]
    bench.submit(1, FULL)
    await bench.begin()
    await bench.settle()
    bench.driver.handle(e.CancelRequested(CancelRequest(PREFIX, 1, 1)))
    waiting = asyncio.create_task(bench.driver.safe())
    await bench.begin()
    assert not waiting.done()
    await bench.commit()
    await waiting
    assert bench.store.syncs == [False, True, True]


@pytest.mark.parametrize("asked", [MEMORY, PROCESS])
async def test_a_cancel_is_as_safe_as_the_head_has_it(make: Make, asked: Durability) -> None:
    """A task that is there after a power cut does not run if its cancel was answered."""
    bench = make("full")
    bench.submit(0, asked)
    await bench.begin()
    await bench.settle()
    api = HeadService(bench.core, LOCAL_ADMIN)
    name = rustray.common.ids.task_id(PREFIX, 0)
    waiting = asyncio.create_task(api.cancel([name], False))
    await bench.begin()
    assert not waiting.done()
    await bench.commit()
    [verdict] = await waiting
    assert verdict.state is TaskState.CANCELLED
    assert bench.store.syncs == [False, True]


async def test_a_restarted_head_of_process_knows_that_there_are_full_tasks(make: Make) -> None:
    """What is said of them is synced as it was before the restart."""
    bench = make("process", least=FULL)
    bench.driver.handle(e.CodeReceived(b"h" * 32, b"code"))
    await bench.begin()
    assert bench.store.syncs == [True]


async def test_a_worker_keeps_what_is_not_as_safe_as_it_has_to_be(make: Make) -> None:
    """Also the outcome of a memory task, until it is written."""
    bench = make("full")
    await bench.join()
    bench.submit(0, MEMORY)
    bench.finish(0)
    assert not bench.driver.is_safe
    await bench.settle()
    assert bench.driver.is_safe
    assert bench.journal.synced < bench.journal.committed


async def test_what_a_head_had_in_memory_only_goes_to_the_next_one(make: Make) -> None:
    """The head dies before its commit: the session's memory tasks were acked, and come again."""
    session = ClientSession(lambda: None)
    levels = [session.define(PLAIN, b"", durability=level) for level in (MEMORY, FULL)]
    refs = [session.submit(entry, b"x") for entry in levels for _ in range(3)]
    old, new = make("full"), make("full")
    told = talk(session, ClientPeer(old.driver, session.prefix, True, lambda _: True))
    assert told == [AcceptedRange(0, 3, MEMORY)]
    await old.begin()
    session.restart()
    peer = ClientPeer(new.driver, session.prefix, True, lambda _: True)
    assert talk(session, peer) == [], "what the new head does not know is told with its commit"
    await new.begin()
    await new.settle()
    assert talk(session, peer) == [AcceptedRange(3, 3, FULL), AcceptedRange(0, 3, MEMORY)]
    assert new.driver.scheduler.state.counts[TaskState.QUEUED] == 6
    assert not any(ref.is_done for ref in refs)


def talk(session: ClientSession, peer: ClientPeer) -> list[AcceptedRange]:
    """Carry frames until neither side has more to say; returns the acks."""
    defined: set[int | bytes] = set()
    peer._driver.clients[session.prefix] = peer
    heard: list[AcceptedRange] = []
    while True:
        frame = ClientFrame(number=peer.received + 1, ack=peer.sent)
        is_new = session.fill(frame, defined)
        if is_new:
            peer.on_frame(frame)
        peer._ripen()
        answer = peer.next_frame()
        if answer is not None:
            heard += answer.accepted
            session.apply(answer)
        if not is_new and (answer is None or not answer.has_content):
            return heard


# -- unary calls ---------------------------------------------------------------


async def test_a_unary_submit_answers_at_its_level_and_names_it(make: Make) -> None:
    """Memory without a commit, process with one, full with a sync; a call waits for its highest."""
    bench = make("full")
    api = HeadService(bench.core, LOCAL_ADMIN)
    submitter = Submitter()

    async def submit(*levels: Any) -> list[Durability]:
        items = [submitter._item(TaskSpec("f", durability=level)) for level in levels]
        return [verdict.durability for verdict in await api.submit(items)]

    assert await submit("memory") == [MEMORY]
    await bench.begin()
    calls = [
        asyncio.create_task(submit(*levels))
        for levels in (["process"], ["memory", "process"], ["memory", "full"], [None])
    ]
    await asyncio.sleep(0)
    assert await submit("memory", "memory") == [MEMORY, MEMORY]
    assert not any(call.done() for call in calls)
    await bench.settle()
    assert [await call for call in calls] == [
        [PROCESS], [MEMORY, PROCESS], [MEMORY, FULL], [FULL],
    ]  # fmt: skip
    page = await api.list_tasks(TaskFilter(), "", 100)
    assert {view.durability for view in page.tasks} == {MEMORY, PROCESS, FULL}
    explained = await api.explain(page.tasks[0].task_id)
    assert explained.durability is page.tasks[0].durability


async def test_a_result_is_told_at_its_tasks_level(make: Make) -> None:
    """`get_result` waits for no commit of others where its own task need not be safe."""
    bench = make("full")
    await bench.join()
    bench.submit(0, FULL)
    await bench.begin()
    for first, asked in ((1, MEMORY), (2, FULL)):
        bench.submit(first, asked)
        bench.finish(first)
    api = HeadService(bench.core, LOCAL_ADMIN)
    names = [rustray.common.ids.task_id(PREFIX, first) for first in (1, 2)]
    assert (await api.get_result(names[0], 5.0)).payload == b"value"
    waiting = asyncio.create_task(api.get_result(names[1], 5.0))
    await asyncio.sleep(0)
    await bench.commit()
    assert not waiting.done()
    await bench.settle()
    assert (await waiting).payload == b"value"


async def test_a_head_without_a_journal_refuses_more_than_it_has() -> None:
    """It says whose fault it is and what to do, and asking for its own level is fine."""
    head = EmbeddedHead()
    await head.start()
    submitter, api = Submitter(), head.api()
    specs = [TaskSpec("f", durability=level) for level in ("full", "process", "memory", None)]
    answers = await submitter.submit(api, specs)
    for level, answer in zip(("full", "process"), answers, strict=False):
        assert isinstance(answer, DurabilityNotAvailable)
        assert f"--durability {level}" in str(answer)
        assert not answer.retryable
    assert all(isinstance(answer, str) for answer in answers[2:])
    page = await api.list_tasks(TaskFilter(), "", 10)
    assert [view.durability for view in page.tasks] == [MEMORY, MEMORY]
    counters = (await api.status()).counters
    assert counters["tasks_rejected_durability_not_available"] == 2
    await head.close()


def test_an_embedded_cluster_refuses_more_than_it_has() -> None:
    """Through the stream, with the same error."""
    with rustray.init(num_cpus=1):
        double = rustray.remote(lambda x: 2 * x)
        assert rustray.get(double.options(durability="memory").remote(2), timeout=60) == 4
        with pytest.raises(DurabilityNotAvailable, match="'full' cannot be had from this head"):
            rustray.get(double.options(durability="full").remote(2), timeout=60)


# -- bad input, and the wire ---------------------------------------------------


@pytest.mark.parametrize("bad", ["fsync", "FULL", 3, True, b"full", ["full"]])
def test_an_unknown_level_is_an_error_that_names_the_three(bad: Any) -> None:
    """Wherever it is said."""
    says: list[Callable[[], object]] = [
        lambda: parse_durability(bad),
        lambda: TaskSpec("f", durability=bad),
        lambda: check_options({"durability": bad}),
        lambda: rustray.remote(durability=bad)(len),
    ]
    for say in says:
        with pytest.raises(ValueError, match=r"durability must be 'full'.*'process'.*'memory'"):
            say()


def test_an_unknown_level_on_the_wire_is_an_error_that_names_the_three() -> None:
    """In a unary submit, and in a frame."""
    names = r"9 is no level of durability; there are full \(3\), process \(2\), memory \(1\)"
    request = common.TaskRequest(function_name="f")
    request.durability = 9  # type: ignore[assignment]
    with pytest.raises(PayloadError, match=names):
        get_item(request, PREFIX, 0)
    payloads = common.Payloads(blob=b"x", ends=PayloadColumn.of([b"x"]).ends_bytes())
    frame = wire.ClientFrame(number=1)
    frame.submissions.add(class_number=1, first=0, payloads=payloads, durability=9)
    with pytest.raises(CommunicationError, match=names):
        decode_client_frame(frame.SerializeToString())


def test_levels_are_ordered_and_named() -> None:
    """From the one that keeps least to the one that keeps most."""
    levels = [parse_durability(name) for name in DURABILITIES]
    assert levels == sorted(levels, reverse=True) == [FULL, PROCESS, MEMORY]
    assert [level.label for level in levels] == list(DURABILITIES)
    assert parse_durability(None) is parse_durability("") is Durability.DEFAULT
    assert Durability.DEFAULT.label == ""


async def test_an_ack_names_the_level_where_an_outcome_does_not_imply_it() -> None:
    """An outcome stands for an ack at the head's own level only."""
    loop = asyncio.get_running_loop()
    journal = GroupCommitJournal(SlowStore(), "full", loop, on_failure=_fail)
    driver = HeadDriver(Scheduler(), NotificationManager(), journal, loop)
    peer = ClientPeer(driver, PREFIX, True, lambda _: True)
    for first, level in ((0, FULL), (1, MEMORY), (2, MEMORY), (3, PROCESS)):
        peer.accept(c.AcceptTasks(PREFIX, first, 1, False, level))
    outcome = Outcome(0, TaskState.SUCCEEDED, PayloadColumn.of([b"v"]), "w", 1)
    peer.deliver(c.DeliverOutcome(PREFIX, outcome, True))
    frame = peer.next_frame()
    assert frame is not None
    full, others = AcceptedRange(0, 1, FULL), AcceptedRange(1, 2, MEMORY)
    expected = [full, others, AcceptedRange(3, 1, PROCESS)]
    assert frame.accepted == expected
    assert decode_head_frame(encode_head_frame(frame)).accepted == expected
    for level, said in ((FULL, []), (MEMORY, [AcceptedRange(0, 1, MEMORY)])):
        peer.accept(c.AcceptTasks(PREFIX, 0, 1, False, level))
        peer.deliver(c.DeliverOutcome(PREFIX, outcome, True))
        frame = peer.next_frame()
        assert frame is not None
        assert frame.accepted == said
    await journal.close()


async def test_a_command_that_says_how_safe_it_has_to_be_is_no_safer() -> None:
    """Regression: to note that a task at `process` has expired had the journal synced."""
    loop = asyncio.get_running_loop()
    journal = GroupCommitJournal(JournalStore(":memory:"), "full", loop, on_failure=_fail)
    driver = HeadDriver(Scheduler(), NotificationManager(), journal, loop)
    commands: list[c.JournalCommand] = [
        tc.PersistExpired(PREFIX, 3, "", PROCESS),
        tc.ForgetExpired(PREFIX, PROCESS),
        c.ForgetBatch(1, PROCESS),
    ]
    for command in commands:
        carry_out: Any = driver._actions[type(command)]
        carry_out(command)
    assert (journal.appended, journal.to_sync) == (3, 0)
    asking = {kind for kind in get_args(c.JournalCommand) if "durability" in _fields_of(kind)}
    assert asking == {*_AS_ASKED, c.PersistOutcome}
    await journal.close()


def _fields_of(kind: type[Any]) -> set[str]:
    return {each.name for each in fields(kind)}


async def test_levels_travel_with_the_batch_and_not_with_the_class(make: Make) -> None:
    """Tasks of one class queue together, whatever level each has."""
    bench = make("full")
    for first, asked in enumerate((FULL, MEMORY, PROCESS)):
        bench.submit(first, asked)
    assert len(bench.driver.scheduler.state.queues) == 1
    await bench.begin()


# -- the store -----------------------------------------------------------------


def a_batch(number: int, level: Durability = Durability.DEFAULT) -> c.PersistBatch:
    """A batch whose commit takes some pages of the log."""
    column = PayloadColumn.of([bytes([number]) * 2000] * 5)
    return c.PersistBatch(number, PREFIX, 1000 * number, PLAIN, column, True, durability=level)


def test_levels_come_back_and_can_be_raised(tmp_path: Path) -> None:
    """So that a head after this one tells of each task as it was asked to."""
    store = JournalStore(tmp_path / FILE_NAME)
    store.commit([a_batch(number, level) for number, level in enumerate(Durability, start=1)])
    store.commit([c.PersistDurability(2, FULL)])
    store.close()
    store = JournalStore(tmp_path / FILE_NAME, "process")
    found = store.load(0.0)
    store.close()
    assert found is not None
    assert [one.durability for one in found.batches] == [Durability.DEFAULT, FULL, PROCESS, FULL]
    settings = SchedulerSettings(durability=PROCESS)
    scheduler = Scheduler(settings)
    scheduler.handle(found, 0.0)
    levels = [scheduler.state.find(PREFIX, 1000 * n) for n in range(1, 5)]
    assert [one and one[0].durability for one in levels] == [PROCESS, FULL, PROCESS, FULL]


def _harm_log(path: Path, how: str, at: int) -> str:
    """Cut the log, or change a byte of it, and return what is found damaged."""
    log = Path(f"{path}-wal")
    content = bytearray(log.read_bytes())
    if how == "cut":
        del content[at:]
    else:
        content[at] ^= 0x10
    log.write_bytes(content)
    db = connect_reader(path)
    try:
        return damage_of(path, db, True)
    finally:
        db.close()


@pytest.mark.parametrize("level", ["full", "process"])
@pytest.mark.parametrize("how", ["cut", "hole"])
def test_what_was_never_synced_is_not_missed_and_what_was_is(
    tmp_path: Path, level: str, how: str
) -> None:
    """A power cut may leave any part of the log behind the last sync, and none before it."""
    work = tmp_path / "work"
    work.mkdir()
    store = JournalStore(work / FILE_NAME, level)
    store.load(0.0)
    size = 0
    for number in range(1, 13):
        store.commit([a_batch(number)], number <= 6 and number != 4)
        if number == 6:
            size = len(Path(f"{work / FILE_NAME}-wal").read_bytes().rstrip(b"\0"))
    for at, is_damaged in ((size + 6_000, False), (size + 60_000, False), (size - 9_000, True)):
        place = tmp_path / str(at)
        place.mkdir()
        for suffix in ("", "-wal", "-seen"):
            content = (work / f"{FILE_NAME}{suffix}").read_bytes()
            (place / f"{FILE_NAME}{suffix}").write_bytes(content)
        assert bool(_harm_log(place / FILE_NAME, how, at)) is is_damaged, at
        # As an older release has left it, or nobody: then nothing is known of syncs.
        for seen in (b"\0\0\0\0\0\0\0\x0c", b""):
            (place / f"{FILE_NAME}-seen").write_bytes(seen)
            assert _harm_log(place / FILE_NAME, "hole", at - 1) == ""
    store.close()


def test_a_file_that_was_not_synced_is_before_the_next_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that is synced vouches for all before it, and for their files."""
    synced: list[str] = []
    monkeypatch.setattr(
        "rustray.head.result_files.sync_path", lambda path, _: synced.append(path.name)
    )
    files = ResultFiles(tmp_path / FILE_NAME, is_synced=False)
    names = [f"{n}-{files.write(n, b'x%d' % n).hex()[:16]}" for n in range(3)]
    files.sync()
    assert (synced, files.has_unsynced) == ([], True)
    files.remove(1, bytes.fromhex(names[1].partition("-")[2]))
    files.is_synced = True
    files.sync()
    assert synced == [names[0], names[2], tmp_path.name, f"{FILE_NAME}.results"]
    assert not files.has_unsynced


async def test_events_are_told_in_order_once_they_are_written(make: Make) -> None:
    """A subscriber sees a memory task's events too, after those before them."""
    bench = make("full")
    bench.submit(0, FULL)
    bench.submit(1, MEMORY)
    api = HeadService(bench.core, LOCAL_ADMIN)
    heard: list[str] = []

    async def listen() -> None:
        async for events in api.subscribe(EventFilter(cursor=0)):
            heard.extend(event.task_id for event in events)

    listening = asyncio.create_task(listen())
    await bench.begin()
    assert heard == []
    await bench.settle()
    await aeventually(lambda: len(heard) == 2)
    assert heard == [rustray.common.ids.task_id(PREFIX, first) for first in (0, 1)]
    listening.cancel()


def test_a_level_is_no_part_of_what_a_task_is() -> None:
    """The same id with the same content is the same task at any level."""
    scheduler = Scheduler()
    event = e.TasksSubmitted(PREFIX, 0, PLAIN, PayloadColumn.of([b"x"]), True)
    for asked in Durability:
        for command in scheduler.handle(replace(event, durability=asked), 0.0):
            assert not isinstance(command, c.RejectTasks)
    assert scheduler.state.counts[TaskState.QUEUED] == 1
