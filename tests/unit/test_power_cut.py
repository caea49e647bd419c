"""Power cuts: whatever moment the current fails, what the head has said is on the disk."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from helpers.power_cut import Disk, RecordingOs, Step, write_files
from helpers.scheduling import ANYTHING, PREFIX
from rustray.common.durability import Durability
from rustray.common.errors import RustRayError
from rustray.head import (
    journal_files,
    journal_log,
    journal_room,
    journal_rows,
    journal_schema,
    journal_store,
    result_files,
)
from rustray.head.core import Start
from rustray.head.driver import HeadDriver
from rustray.head.journal import GroupCommitJournal
from rustray.head.journal_store import FILE_NAME, JournalStore
from rustray.head.notifications import NotificationManager
from rustray.head.result_reader import ResultReader
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.scheduler import results
from rustray.scheduler import stream_commands as sc
from rustray.scheduler.invariants import check
from rustray.scheduler.scheduler import Scheduler
from rustray.scheduler.state import SchedulerSettings
from rustray.task.columns import PayloadColumn, StoredColumn
from rustray.task.frames import CancelRequest, LeaseOutcome
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from rustray.task.views import WorkerInfo

pytestmark = pytest.mark.slow

NOW = 1_000.0
CLASSES = (TaskClass("f"), TaskClass("f", priority=5), TaskClass("f", max_retries=0))


def normal(found: e.StateRecovered | None) -> object:
    """Return what was found without what every start changes."""
    if found is None or not found.batches:
        return None
    return (found.batches, found.outcomes, found.cancels, found.reruns, found.grants, found.codes)


class RecordingStore(JournalStore):
    """The real store on a disk with a memory; a commit waits until it is let go.

    Attributes:
        gate: One permit for each commit.
        committed: What was in the journal after each commit.
        syncs: Whether each commit was to be synced.
    """

    def __init__(
        self, path: Path, level: str, disk: Disk, committed: list[object], syncs: list[bool]
    ) -> None:
        super().__init__(path, level, lambda: NOW, disk.connect)
        self.gate = threading.Semaphore(0)
        self.committed = committed
        self.syncs = syncs

    def commit(self, commands: Sequence[c.JournalCommand], is_synced: bool | None = None) -> None:
        self.gate.acquire()
        super().commit(commands, is_synced)
        self.syncs.append(bool(is_synced))
        while super().tidy():
            pass
        self.committed.append(normal(journal_rows.read_state(self._db, NOW, 0.0, 0)))

    def tidy(self) -> bool:
        """Here it is a part of every commit, so that a seed gives the same steps each time."""
        return False


@dataclass
class Told:
    """Everything that somebody was told, and after how many steps of the disk.

    Attributes:
        accepted: (steps, first, arguments, level).
        ended: (steps, first, state, results, level).
        forgotten: Task to the number of steps at which the head let go of it.
        cancelled: (steps, task, level), once the call has returned.
        levels: Task to the level that it was accepted at.
        are_repeated: Tasks are handed in more than once.
    """

    disk: Disk
    accepted: list[tuple[int, int, PayloadColumn, Durability]] = field(default_factory=list)
    ended: list[tuple[int, int, TaskState, PayloadColumn, Durability]] = field(default_factory=list)
    forgotten: dict[int, int] = field(default_factory=dict)
    cancelled: list[tuple[int, int, Durability]] = field(default_factory=list)
    levels: dict[int, Durability] = field(default_factory=dict)
    are_repeated: bool = False
    arguments: dict[int, bytes] = field(default_factory=dict)

    def accept(self, command: c.AcceptTasks) -> None:
        numbers = range(command.first, command.first + command.count)
        column = PayloadColumn.of([self.arguments[number] for number in numbers])
        level = command.durability
        self.accepted.append((len(self.disk.steps), command.first, column, level))
        self.levels.update(dict.fromkeys(numbers, level))

    def reject(self, command: c.RejectTasks) -> None:
        raise AssertionError(f"refused: {command.error}")

    def deliver(self, command: c.DeliverOutcome) -> None:
        outcome = command.outcome
        if isinstance(outcome.payloads, StoredColumn):
            return  # told once more, of which the first time is known
        self.ended.append(
            (
                len(self.disk.steps),
                outcome.first,
                outcome.state,
                outcome.payloads,
                command.durability,
            )
        )

    def deliver_items(self, command: sc.DeliverItems) -> None:
        raise AssertionError("nothing is a stream")

    def unknown(self, command: c.ReportUnknown) -> None:
        assert self.are_repeated, "unknown tasks"  # else their results are forgotten


class Crowd:
    """A worker that takes every lease and answers when it is asked to."""

    def __init__(self) -> None:
        self.held: list[tuple[c.GrantLease, int]] = []

    def grant(self, command: c.GrantLease) -> None:
        self.held += [(command, offset) for offset in range(len(command.payloads))]

    def cancel(self, command: c.CancelLease) -> None:
        """It finishes what it has: that is allowed."""

    def recall(self, command: c.RecallLease) -> None:
        """It has begun everything."""

    def credit(self, command: sc.CreditStream) -> None:
        raise AssertionError("nothing is a stream")

    def tell_of_value(self, command: object) -> None:
        raise AssertionError(f"no value stays with a worker here: {command}")

    def drain(self) -> None:
        raise AssertionError("nobody drains")

    def close(self, session: int, reason: str) -> None:
        raise AssertionError(reason)

    def compare(self, sent: int, received: int) -> bool:
        return True


class Life:
    """One head at work on a recorded disk, and another after it when it is killed."""

    def __init__(
        self,
        seed: int,
        directory: Path,
        level: str,
        patch: pytest.MonkeyPatch,
        asked: Sequence[Durability],
    ) -> None:
        self.random = Random(seed)
        self.asked = asked
        directory.mkdir()
        self.path = directory / FILE_NAME
        self.level = level
        self.disk = Disk()
        for module in (result_files, journal_log, journal_room):
            patch.setattr(module, "os", RecordingOs(self.disk))
        self.told = Told(self.disk, are_repeated=len(asked) > 1)
        self.committed: list[object] = [None]
        self.syncs: list[bool] = []
        self.next_task = 0
        self.session = 0
        self.failures: list[BaseException] = []
        self._cancelling: list[int] = []
        self.submitted: list[e.TasksSubmitted] = []

    def start(self) -> None:
        """Start a head with what is there, and a worker."""
        loop = asyncio.get_running_loop()
        self.store = RecordingStore(self.path, self.level, self.disk, self.committed, self.syncs)
        recovered = self.store.load(20.0)
        self.disk.note(Step("names"))  # as `note_journal` does before the first ack
        found = recovered.batches if recovered is not None else ()
        self.journal = GroupCommitJournal(
            self.store,
            self.level,
            loop,
            on_failure=self.failures.append,
            least=max((one.durability for one in found), default=Durability.DEFAULT),
        )
        settings = SchedulerSettings(
            first_lease=1 + self.session * 1_000_000,
            result_memory_bytes=5_000,
            result_disk_bytes=30_000,
            letter_memory_bytes=20_000,
            durability=Durability[self.level.upper()],
        )
        notifications = NotificationManager()
        start = Start(self.store.epoch_ms, is_first=self.store.starts == 1)
        notifications.go_on(self.store.events, start.revision)
        self.driver = HeadDriver(Scheduler(settings), notifications, self.journal, loop)
        self.driver.clients[PREFIX] = self.told
        if recovered is not None:
            self.driver.handle(recovered)
        self.worker = Crowd()
        self.driver.workers["w"] = self.worker
        self.session += 1
        info = WorkerInfo("w", self.session, "w", "", {"cpu_cores": 64}, functions=(ANYTHING,))
        self.driver.handle(e.WorkerJoined(info, self.session))
        self._report(held=())

    def _report(self, *outcomes: LeaseOutcome, held: tuple[()] | None = None) -> None:
        event = e.WorkerReported("w", self.session, held, outcomes, (), (), False, False)
        self._handle(event)

    def _handle(self, event: e.Event) -> None:
        for command in self.driver.handle(event):
            if isinstance(command, c.ForgetBatch):
                self._note_forgotten()

    def _note_forgotten(self) -> None:
        state = self.driver.scheduler.state
        for task in self.told.arguments:
            if task not in self.told.forgotten and state.find(PREFIX, task) is None:
                self.told.forgotten[task] = len(self.disk.steps)

    def act(self) -> None:
        """Let one thing happen."""
        kinds = ["submit", "submit", "report", "report", "confirm", "cancel"]
        kind = self.random.choice([*kinds, "again"] if len(self.asked) > 1 else kinds)
        if kind == "submit":
            self._submit()
        elif kind == "report" and self.worker.held:
            self._finish()
        elif kind == "confirm":
            self._handle(e.OutcomesDelivered(PREFIX, 0, self.next_task))
        elif kind == "cancel" and self.told.accepted:
            first = self.random.choice(self.told.accepted)[1]
            self._handle(e.CancelRequested(CancelRequest(PREFIX, first, 1, False)))
            self._cancelling.append(first)
        elif kind == "again" and self.submitted:
            self._submit_again(self.random.choice(self.submitted))

    def _submit_again(self, event: e.TasksSubmitted) -> None:
        """Hand in tasks once more, at another level; not those that the head has let go of."""
        if event.first not in self.told.forgotten:
            self._handle(replace(event, durability=self.random.choice(self.asked)))

    def _submit(self) -> None:
        count = self.random.randint(1, 30)
        items = [self.random.randbytes(self.random.randint(0, 300)) for _ in range(count)]
        self.told.arguments.update(enumerate(items, self.next_task))
        task_class = self.random.choice(CLASSES)
        pushed = self.random.random() < 0.7
        is_mixed = len(self.asked) > 1  # where it is not, seeds give what they always gave
        level = self.random.choice(self.asked) if is_mixed else self.asked[0]
        column = PayloadColumn.of(items)
        event = e.TasksSubmitted(
            PREFIX, self.next_task, task_class, column, pushed, durability=level
        )
        self.submitted.append(event)
        self._handle(event)
        self.next_task += count

    def _finish(self) -> None:
        held = self.worker.held
        for _ in range(min(len(held), self.random.randint(1, 20))):
            grant, offset = held.pop(self.random.randrange(len(held)))
            result = self.random.randbytes(self.random.choice([3, 40, 2_000]))
            state = self.random.choice([TaskState.SUCCEEDED, TaskState.SUCCEEDED, TaskState.FAILED])
            self._report(LeaseOutcome(grant.lease, offset, state, PayloadColumn.of([result]), 1))

    async def run(self, rounds: int) -> None:
        """Let things happen, some of them while a commit is under way."""
        for number in range(rounds):
            if number in (rounds // 3, 2 * rounds // 3):
                await self._restart(orderly=number > rounds // 2)
            for _ in range(self.random.randint(1, 3)):
                self.act()
            await asyncio.sleep(0)
            for _ in range(self.random.randint(0, 2)):
                self.act()
            await self._settle()

    async def _settle(self) -> None:
        """Let every commit go."""
        while not self.driver.is_safe:
            self.store.gate.release()
            before = self.journal.committed
            while self.journal.committed == before:
                assert not self.failures, self.failures
                await asyncio.sleep(0)
        steps, levels = len(self.disk.steps), self.told.levels
        self.told.cancelled += [(steps, task, levels[task]) for task in self._cancelling]
        self._cancelling.clear()

    async def _restart(self, *, orderly: bool) -> None:
        """End the head, in order or not, and start another."""
        self.driver.close()
        await self._settle()
        if not orderly:
            db: Any = self.store._db
            db.abandon()
            self.store.starts = 0  # so that closing it does nothing more
        await self.journal.close()
        self.start()
        await self._settle()

    async def end(self) -> None:
        """Let go of everything."""
        self.driver.close()
        await self._settle()
        await self.journal.close()


@dataclass
class Verdict:
    """What the cuts have shown."""

    cuts: int = 0
    reached: set[int] = field(default_factory=set)


def judge(life: Life, directory: Path, *, most_cuts: int) -> Verdict:
    """Cut the power around every sync, in three ways each, and look at what a head would find."""
    verdict = Verdict()
    random = Random(5)
    cuts = sorted(set(life.disk.cuts()))
    if len(cuts) > most_cuts:
        cuts = random.sample(cuts, most_cuts)
    for cut, files in life.disk.at(cuts):
        for how in ("none", "all", "some"):
            verdict.cuts += 1
            place = directory / "after"
            place.mkdir()
            write_files(place, files.after_cut(how, random))
            try:
                # What is all there was written by a head that somebody has killed.
                least = Durability.PROCESS if how == "all" else Durability.FULL
                _judge_one(life, place / FILE_NAME, cut, verdict, least)
            except (AssertionError, RustRayError) as error:
                raise AssertionError(f"cut after step {cut}, {how} unsynced: {error}") from error
            shutil.rmtree(place)
    return verdict


def _judge_one(life: Life, path: Path, cut: int, verdict: Verdict, least: Durability) -> None:
    if path.exists():
        journal_files.expect_log(path)
    store = JournalStore(path, "process", lambda: NOW)
    found = store.load(0.0)
    store.close()
    content = normal(found)
    assert content in life.committed, "the journal has half a commit, or one twice"
    verdict.reached.add(life.committed.index(content))
    Left(found, path, cut, life).judge(life.told, least)
    if found is not None:
        scheduler = Scheduler()
        scheduler.handle(found, 0.0)
        check(scheduler.state)


class Left:
    """What a cut has left, task by task."""

    def __init__(self, found: e.StateRecovered | None, path: Path, cut: int, life: Life) -> None:
        self.cut, self.forgotten = cut, life.told.forgotten
        self.is_synced = life.level == "full"
        self.arguments: dict[int, bytes | None] = {}
        self.results: dict[int, tuple[TaskState, bytes] | RustRayError | None] = {}
        self.stopped: set[int] = set()
        if found is not None:
            reader = ResultReader(path)
            try:
                self._read(found, reader)
            finally:
                reader.close_now()

    def _read(self, found: e.StateRecovered, reader: ResultReader) -> None:
        starts = {batch.batch: batch.first for batch in found.batches}
        for batch in found.batches:
            items = list(batch.payloads) if batch.payloads is not None else [None] * batch.count
            self.arguments.update(enumerate(items, batch.first))
        for one in found.outcomes:
            column = one.outcome.payloads
            lost: RustRayError | None = None
            if isinstance(column, StoredColumn):
                try:
                    column = reader.read_now(column)
                except RustRayError as error:
                    lost = error  # that is no harm if it was not to be safe
            for place in range(one.count):
                kept = None if one.is_expired or lost else (one.outcome.state, column[place])
                self.results[one.outcome.first + place] = lost or kept
        for number, place, count, _ in found.cancels:
            self.stopped.update(range(starts[number] + place, starts[number] + place + count))

    def _counts(self, steps: int, task: int) -> bool:
        """Whether a promise was made before the cut, and was not let go of since."""
        return steps <= self.cut < self.forgotten.get(task, 1 << 60)

    def judge(self, told: Told, least: Durability) -> None:
        """Compare it with what was told of tasks of this level or above."""
        for steps, first, column, level in told.accepted:
            for task, item in enumerate(column, first):
                if level >= least and self._counts(steps, task):
                    assert task in self.arguments, f"task {task} was accepted, and is not there"
                    assert self.arguments[task] in (item, None), f"task {task} has other arguments"
        for steps, first, state, column, level in told.ended:
            for task, item in enumerate(column, first):
                if level >= least and self._counts(steps, task):
                    self._judge_end(task, (state, item))
        for steps, task, level in told.cancelled:
            # A cancel holds also of a task that need not be there, if it is.
            is_there = self.is_synced and task in self.arguments
            if (level >= least or is_there) and self._counts(steps, task):
                stopped = task in self.stopped or task in self.results
                assert stopped, f"task {task} was cancelled, and is not"

    def _judge_end(self, task: int, told: tuple[TaskState, bytes]) -> None:
        assert task in self.results, f"task {task} had ended, and has not"
        found = self.results[task]
        if isinstance(found, RustRayError):
            raise found
        assert found in (told, None), f"{task} ended otherwise"


async def a_life(
    seed: int,
    directory: Path,
    level: str = "full",
    rounds: int = 40,
    asked: Sequence[Durability] = (Durability.DEFAULT,),
) -> Life:
    """Record a head's life."""
    with pytest.MonkeyPatch.context() as patch:
        life = Life(seed, directory, level, patch, asked)
        await _live(life, rounds)
    return life


async def _live(life: Life, rounds: int) -> None:
    life.start()
    await life._settle()
    try:
        await life.run(rounds)
    finally:
        await life.end()


@pytest.fixture(autouse=True)
def _small_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the log written into the file every few commits, so that cuts meet that too.

    And have results count as large that are not.
    """
    monkeypatch.setattr(journal_store, "_CHECKPOINT_PAGES", 24)
    monkeypatch.setattr(journal_room, "SPARE_PAGES", 3)
    monkeypatch.setattr(results, "LARGE_BYTES", 1_000)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_power_cut_takes_nothing_that_was_acked(tmp_path: Path, seed: int) -> None:
    """After every cut the journal opens, has whole commits only, and all that anybody was told."""
    life = await a_life(seed, tmp_path / "head")
    verdict = judge(life, tmp_path, most_cuts=80)
    assert len(life.told.accepted) > 15
    assert len(life.told.ended) > 50
    assert len(life.told.cancelled) > 5
    assert life.told.forgotten
    assert sum(step.kind == "create" for step in life.disk.steps) > 10
    assert len(verdict.reached) > 20, "the cuts met too few states"


async def test_at_level_process_a_power_cut_leaves_whole_commits(tmp_path: Path) -> None:
    """What is lost there are the last commits, never a part of one, and the journal opens."""
    life = await a_life(4, tmp_path / "head", "process")
    assert len(judge(life, tmp_path, most_cuts=80).reached) > 5


@pytest.mark.parametrize("level", ["full", "process"])
@pytest.mark.parametrize("seed", [11, 12])
async def test_each_task_survives_what_it_was_asked_to(
    tmp_path: Path, level: str, seed: int
) -> None:
    """Levels mixed: a cut takes nothing of a full task, a kill nothing of one at process.

    On either head; also after a resubmit that has asked for more. And a log that lacks what was
    never synced is not taken for a damaged one.
    """
    life = await a_life(seed, tmp_path / "head", level, 60, list(Durability))
    verdict = judge(life, tmp_path, most_cuts=80)
    levels = Counter(one[-1] for one in life.told.accepted)
    ends = Counter(one[-1] for one in life.told.ended)
    assert all(levels[one] > 3 and ends[one] > 3 for one in list(Durability)[1:]), (levels, ends)
    assert {False, True} <= set(life.syncs), "nothing was saved by asking for less"
    assert len(verdict.reached) > 10, "the cuts met too few states"


def _ack_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HeadDriver, "_once_safe", lambda self, action: action)


def _never_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(journal_store, "LEVELS", {"full": "OFF", "process": "OFF"})


def _sync_seldom(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(journal_store, "LEVELS", {"full": "NORMAL", "process": "NORMAL"})


def _forget_cancels(patch: pytest.MonkeyPatch) -> None:
    statements = {**journal_schema.STATEMENTS}
    statements[c.PersistCancel] = "SELECT ?, ?, ?, ?"
    patch.setattr(journal_store, "STATEMENTS", statements)


def _commit_each_command(patch: pytest.MonkeyPatch) -> None:
    whole = JournalStore.commit

    def commit(
        store: JournalStore, commands: Sequence[c.JournalCommand], is_synced: bool | None = None
    ) -> None:
        for command in commands:
            whole(store, [command], is_synced)

    patch.setattr(JournalStore, "commit", commit)


def _forget_file_sync(patch: pytest.MonkeyPatch) -> None:
    whole = result_files.ResultFiles.write

    def write(files: result_files.ResultFiles, number: int, content: bytes) -> bytes:
        was_synced, files.is_synced = files.is_synced, False
        digest = whole(files, number, content)
        files.is_synced = was_synced
        files._unsynced.clear()
        return digest

    patch.setattr(result_files.ResultFiles, "write", write)


def _forget_name_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(result_files.ResultFiles, "sync", lambda self: None)


_TOLD_TOO_SOON = "(was accepted, and is not there|had ended, and has not)"
"""Which of the two a cut meets first is a matter of what went into one commit."""


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (_ack_at_once, _TOLD_TOO_SOON),
        (_never_sync, f"({_TOLD_TOO_SOON}|cannot be used|is damaged)"),
        (_sync_seldom, _TOLD_TOO_SOON),
        (_forget_cancels, "was cancelled, and is not"),
        (_commit_each_command, "half a commit"),
        (_forget_file_sync, "the result was kept in a file"),
        (_forget_name_sync, "the result was kept in a file"),
    ],
)
async def test_a_planted_bug_is_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[pytest.MonkeyPatch], None],
    found: str,
) -> None:
    """An ack before its commit, a commit without a sync, and half of one: each shows in a cut."""
    plant(monkeypatch)
    life = await a_life(1, tmp_path / "head")
    with pytest.raises(AssertionError, match=f"cut after step.*{found}"):
        judge(life, tmp_path, most_cuts=400)
