"""A scheduler that goes on from an earlier one's journal: what ended stays, what is held stays."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from helpers.builders import a_death, a_failure
from helpers.scheduling import ANYTHING, PREFIX
from rustray.common.ids import child_prefix
from rustray.common.resources import ResourceSet
from rustray.head.journal_store import JournalStore
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.scheduler import tombstones
from rustray.scheduler.invariants import check
from rustray.scheduler.scheduler import Scheduler
from rustray.scheduler.state import SchedulerSettings
from rustray.task.columns import PayloadColumn
from rustray.task.failures import encode_failure
from rustray.task.frames import CancelRequest, HeldRange, LeaseOutcome, LeaseRange
from rustray.task.inputs import InputId, pack_inputs
from rustray.task.result import FailureInfo
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from rustray.task.views import WorkerInfo
from rustray.worker import leases

GRACE_S = 22.0
STOPPED = encode_failure(leases.CANCELLED)
"""What a worker says of a task that it was told to stop."""
OK, FAILED = TaskState.SUCCEEDED, TaskState.FAILED


class Head:
    """The real scheduler on a real journal; `restart` starts the next one.

    Attributes:
        grants: All of this head, in order.
        told: Commands of the last event.
    """

    def __init__(self, **settings: object) -> None:
        self.settings = settings
        self.store = JournalStore(":memory:", "full", lambda: self.now)
        self.now = 1000.0
        self.starts = 0
        self.restart()

    def restart(self) -> None:
        """Start the next scheduler on the journal."""
        self.starts += 1
        self.grants: list[c.GrantLease] = []
        settings = SchedulerSettings(first_lease=self.starts << 20, **self.settings)  # type: ignore[arg-type]
        self.scheduler = Scheduler(settings)
        found = self.store.load(GRACE_S)
        if found is not None:
            self.feed(found)

    def feed(self, event: e.Event, *, committed: bool = True) -> list[c.Command]:
        """Handle an event, and commit what it says unless the head dies before."""
        self.told = self.scheduler.handle(event, self.now)
        check(self.scheduler.state)
        kept = [one for one in self.told if isinstance(one, get_args(c.JournalCommand))]
        if committed:
            self.store.commit(kept)
        self.grants += [one for one in self.told if isinstance(one, c.GrantLease)]
        return self.told

    def submit(self, first: int, count: int, *, is_pushed: bool = True, **options: object) -> None:
        """Hand in tasks of one batch."""
        payloads = PayloadColumn.of([b"argument"] * count)
        task_class = TaskClass("f", **options)  # type: ignore[arg-type]
        self.feed(e.TasksSubmitted(PREFIX, first, task_class, payloads, is_pushed))

    def submit_until(self, deadline: float, count: int) -> None:
        """Hand in tasks with a deadline, on the clock of the store."""
        payloads = PayloadColumn.of([b"argument"] * count)
        left_s = deadline - self.now
        event = e.TasksSubmitted(PREFIX, 0, TaskClass("f"), payloads, True, False, deadline, left_s)
        self.feed(event)

    def join(self, name: str, session: int, cpus: float = 1) -> None:
        """Register a worker."""
        info = WorkerInfo(name, 1, name, "", {"cpu_cores": cpus}, functions=(ANYTHING,))
        self.feed(e.WorkerJoined(info, session))

    def greet(self, name: str, session: int, *held: c.GrantLease, skip: int = 0) -> None:
        """Open a worker's stream; it holds these grants without their first tasks."""
        ranges = tuple(
            HeldRange(
                g.lease,
                skip,
                len(g.payloads) - skip,
                g.prefix,
                g.first + skip,
                g.attempt,
                g.task_class.alternative,
                g.follows[0],
            )
            for g in held
        )
        self.feed(e.WorkerReported(name, session, ranges, (), (), (), False, False))

    def end(
        self, name: str, session: int, grant: c.GrantLease, state: TaskState, count: int = 1,
        *, committed: bool = True,
    ) -> None:  # fmt: skip
        """Report how the first tasks of a grant ended."""
        own_end = encode_failure(FailureInfo("TASK_CANCELLED", "the task was cancelled"))
        payload = {
            FAILED: a_failure(), TaskState.LEASED: a_death(), TaskState.CANCELLED: own_end
        }.get(state, b"value")  # fmt: skip
        outcome = LeaseOutcome(grant.lease, 0, state, PayloadColumn.of([payload] * count), 1)
        event = e.WorkerReported(name, session, None, (outcome,), (), (), False, False)
        self.feed(event, committed=committed)

    def pass_time(self, seconds: float) -> None:
        """Let time pass up to a moment, timer by timer."""
        until = self.now + seconds
        while (due := self.scheduler.next_deadline()) is not None and due <= until:
            self.now = due
            self.feed(e.TimePassed())
        self.now = until

    def state_of(self, sequence: int) -> TaskState:
        """Return a task's state."""
        found = self.scheduler.state.find(PREFIX, sequence)
        assert found is not None
        batch, offset = found
        return TaskState(batch.state[offset])

    def dropped(self) -> set[tuple[str, int]]:
        """Return (worker, task of its lease) of all that the last event told to let go."""
        return {
            (one.worker_id, one.offset + index)
            for one in self.told
            if isinstance(one, c.CancelLease)
            for index in range(one.count)
        }


def rows(head: Head, query: str) -> list[tuple[object, ...]]:
    """Look into the journal."""
    return head.store._db.execute(query).fetchall()


@pytest.mark.parametrize("is_pushed", [True, False])
def test_what_ended_stays_ended_though_its_result_has_expired(is_pushed: bool) -> None:
    """Regression: a delivered task whose result went for lack of memory was run again."""
    head = Head(result_memory_bytes=9)
    head.join("w", 1, cpus=4)
    head.greet("w", 1)
    head.submit(0, 4, is_pushed=is_pushed)
    [grant] = head.grants
    outcome = LeaseOutcome(grant.lease, 2, OK, PayloadColumn.of([b"value"]), 1)
    head.feed(e.WorkerReported("w", 1, None, (outcome,), (), (), False, False))
    head.end("w", 1, grant, OK, 2)
    before = [head.state_of(n) for n in range(4)]
    assert before.count(OK) == 3
    head.restart()
    assert [head.state_of(n) for n in range(4)] == before
    head.pass_time(GRACE_S + 1)
    assert [head.state_of(n) for n in range(3)] == before[:3]


def test_what_has_expired_is_known_to_later_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """P15: also where nothing else is left; of those that expired last, and in the same order."""
    monkeypatch.setattr(tombstones, "MAX_EXPIRED", 2)
    head = Head(result_ttl_s=60.0, lease_ttl_s=1e6)
    head.join("w", 1, cpus=9)
    head.greet("w", 1)
    task_class, one = TaskClass("f"), PayloadColumn.of([b"argument"])
    sessions = [bytes([number]) * 10 for number in range(3)]
    for first, of in enumerate((0, 1, 0, 2)):
        head.feed(e.TasksSubmitted(sessions[of], first, task_class, one, is_pushed=False))
        head.end("w", 1, head.grants[-1], OK)
        head.pass_time(61.0)
    known = [(sessions[0], 2), (sessions[2], 3)]
    for _ in range(2):
        assert list(head.scheduler.state.expired.items()) == known
        head.restart()
    assert head.scheduler.has_expired(sessions[0], 2)
    assert not head.scheduler.has_expired(sessions[1], 1)
    assert head.scheduler.state.ghost is None


def test_arguments_leave_the_journal_with_the_last_task() -> None:
    """Regression: the file kept a day's arguments. Digests stay, for ids that come again."""
    head = Head()
    head.join("w", 1, cpus=2)
    head.greet("w", 1)
    head.submit(0, 2, is_pushed=False)
    [grant] = head.grants
    assert rows(head, "SELECT length(payloads) FROM batch") == [(16,)]
    head.end("w", 1, grant, OK, 2)
    assert rows(head, "SELECT payloads, length(digests) FROM batch") == [(None, 32)]
    head.restart()
    for item, answer in ((b"argument", c.AcceptTasks), (b"another!", c.RejectTasks)):
        again = PayloadColumn.of([item, b"argument"])
        head.feed(e.TasksSubmitted(PREFIX, 0, TaskClass("f"), again, False))
        assert [type(one) for one in head.told] == [answer]


def test_a_worker_that_has_registered_is_not_forgotten_with_the_ghost() -> None:
    """Regression: its row went when the ghost's time was up, and the next head ran its task."""
    head = Head()
    head.join("w", 1)
    head.greet("w", 1)
    head.submit(0, 1)
    [grant] = head.grants
    head.restart()
    head.pass_time(GRACE_S - 0.5)
    head.join("w", 2)
    head.pass_time(1.0)
    head.greet("w", 2, grant)
    head.restart()
    head.join("other", 3)
    head.greet("other", 3)
    assert head.grants == []
    head.join("w", 4)
    head.greet("w", 4, grant)
    head.end("w", 4, grant, OK)
    assert head.state_of(0) is OK


def test_a_rerun_that_another_worker_may_have_already_waits_for_it() -> None:
    """Regression: a report that was not committed led to a third run of two."""
    head = Head()
    for session, name in enumerate(("w-1", "w-2")):
        head.join(name, session)
        head.greet(name, session)
    head.submit(0, 1, max_retries=1, retry_exceptions=True, retry_delay_s=0.0)
    [first] = head.grants
    other = "w-2" if first.worker_id == "w-1" else "w-1"
    head.feed(e.DrainRequested(first.worker_id))
    number = 0 if first.worker_id == "w-1" else 1
    head.end(first.worker_id, number, first, FAILED, committed=False)
    [_, second] = head.grants
    assert second.worker_id == other
    head.restart()
    head.join(first.worker_id, 10)
    head.greet(first.worker_id, 10, first)
    head.end(first.worker_id, 10, first, FAILED)
    assert head.grants == []
    head.join(other, 11)
    head.greet(other, 11, second)
    assert (head.grants, head.dropped()) == ([], set())
    head.end(other, 11, second, OK)
    assert head.state_of(0) is OK


def lost_to_another(head: Head, **options: Any) -> tuple[c.GrantLease, c.GrantLease]:
    """Give three tasks to w, which is lost, and to v; w comes back and is told to drop them.

    The first may have been running, and has cost a retry; the others are given away at no cost, so
    a head that knows nothing of v takes w's word for them.

    Returns:
        The grants of w and of v.
    """
    head.join("w", 1)
    head.greet("w", 1)
    tenth = ResourceSet.of({"cpu_cores": 0.1})
    head.submit(0, 3, max_retries=3, resources=tenth, **options)
    head.pass_time(GRACE_S)
    head.join("v", 1)
    head.greet("v", 1)
    first, second = head.grants
    assert (second.worker_id, second.attempt) == ("v", first.attempt + 1)
    head.join("w", 2)
    head.greet("w", 2, first)
    assert head.dropped() == {("w", 0), ("w", 1), ("w", 2)}
    return first, second


def obey(head: Head, session: int, grant: c.GrantLease) -> None:
    """Have w say that it has stopped the last two tasks, as it was told to."""
    outcome = LeaseOutcome(grant.lease, 1, TaskState.CANCELLED, PayloadColumn.of([STOPPED] * 2), 0)
    before = head.scheduler.state.counters["tasks_dropped"]
    head.feed(e.WorkerReported("w", session, None, (outcome,), (), (), False, False))
    assert head.scheduler.state.counters["tasks_dropped"] == before + 2


def states(head: Head) -> list[TaskState]:
    """Return those of the three."""
    return [head.state_of(number) for number in range(3)]


@pytest.mark.parametrize("is_v_back", [True, False])
def test_what_a_head_before_had_dropped_is_not_cancelled(is_v_back: bool) -> None:
    """Regression: a worker's word that it had obeyed reached the next head, as the task's end.

    Nobody had cancelled it, so a task that waited for it handed in another one, or failed.
    """
    head = Head()
    first, second = lost_to_another(head)
    head.restart()
    head.join("w", 10)
    head.greet("w", 10, first)
    obey(head, 10, first)
    assert head.grants == []  # v may have them
    if is_v_back:
        head.join("v", 11)
        head.greet("v", 11, second)
        assert (head.grants, head.dropped()) == ([], set())
        head.end("v", 11, second, OK, 3)
    else:
        head.pass_time(GRACE_S + 1)
        head.join("w", 11)
        head.greet("w", 11)
        for grant in list(head.grants):
            assert grant.attempt > second.attempt
            head.end("w", 11, grant, OK, len(grant.payloads))
    assert states(head) == [OK] * 3


def test_what_this_head_had_dropped_is_not_cancelled_when_it_comes_back() -> None:
    """Regression: likewise when both workers were lost before the word arrived."""
    head = Head()
    first, second = lost_to_another(head)
    head.pass_time(2 * GRACE_S)
    head.join("w", 3)
    head.greet("w", 3, first)
    head.grants.clear()
    obey(head, 3, first)
    again = [grant for grant in head.grants if grant.first > 0]
    assert sum(len(grant.payloads) for grant in again) == 2
    assert min(grant.attempt for grant in again) > second.attempt


def test_what_a_late_worker_was_made_to_drop_has_a_number_that_nobody_had() -> None:
    """Regression: the next attempt had that of the other worker, which the head knew no more."""
    head = Head()
    first, second = lost_to_another(head)
    head.restart()
    head.pass_time(GRACE_S + 1)
    head.join("w", 10)
    head.greet("w", 10, first)
    head.grants.clear()
    obey(head, 10, first)
    assert len(head.grants) > 0
    assert min(grant.attempt for grant in head.grants) > second.attempt


def test_a_number_is_not_given_twice_when_what_was_dropped_waits_for_others() -> None:
    """Regression: of a task that had come to its fifth attempt the next one was the fifth again."""
    head = Head()
    for name in ("v", "w"):
        head.join(name, 1)
        head.greet(name, 1)
    head.feed(e.WorkerDisconnected("v", 1))
    head.submit(0, 1, max_retries=3)
    for session in range(2, 6):  # it never got there
        head.join("w", session)
        head.greet("w", session)
    grant = head.grants[-1]
    assert grant.attempt == 5
    head.restart()
    head.join("w", 10)
    head.greet("w", 10, grant)
    outcome = LeaseOutcome(grant.lease, 0, TaskState.CANCELLED, PayloadColumn.of([STOPPED]), 0)
    head.feed(e.WorkerReported("w", 10, None, (outcome,), (), (), False, False))
    assert head.grants == []
    head.pass_time(GRACE_S + 1)
    head.join("w", 11)
    head.greet("w", 11)
    [again] = head.grants
    assert again.attempt == 6


def test_an_exclusive_one_that_was_dropped_waits_for_whoever_may_run_it() -> None:
    """Its other worker may be gone, and what it has started with it or not."""
    head = Head()
    first, _ = lost_to_another(head, exclusive=True)
    head.feed(e.WorkerDied("v", 1))
    head.restart()
    head.join("w", 10)
    head.greet("w", 10, first)
    since = head.now
    obey(head, 10, first)
    assert head.grants == []
    while not head.grants:
        head.pass_time(1.0)
        head.feed(e.WorkerReported("w", 10, None, (), (), (), False, False))
    assert head.now - since >= SchedulerSettings().lease_ttl_s


def test_what_has_started_was_not_too_long_in_the_queue() -> None:
    """Regression: a dropped task ended as one that no worker had started in time."""
    head = Head()
    head.join("w", 1)
    head.greet("w", 1)
    head.submit(0, 1, max_retries=3, queue_timeout_s=15.0)
    [grant] = head.grants
    head.restart()
    head.join("w", 2)
    head.greet("w", 2, grant)
    for started in ((LeaseRange(grant.lease, 0, 1),), (), (), ()):
        head.feed(e.WorkerReported("w", 2, None, (), (), started, False, False))
        head.pass_time(5.0)
    outcome = LeaseOutcome(grant.lease, 0, TaskState.CANCELLED, PayloadColumn.of([STOPPED]), 0)
    head.feed(e.WorkerReported("w", 2, None, (outcome,), (), (), False, False))
    assert head.state_of(0) is TaskState.LEASED


def test_a_task_that_ends_itself_as_cancelled_has_ended_after_a_restart_too() -> None:
    """Whoever raises `TaskInterrupt` wants that; no head has told the worker to stop it."""
    head = Head()
    head.join("w", 1)
    head.greet("w", 1)
    head.submit(0, 1, max_retries=3)
    [grant] = head.grants
    head.restart()
    head.join("w", 2)
    head.greet("w", 2, grant)
    head.end("w", 2, grant, TaskState.CANCELLED)
    assert (head.state_of(0), head.grants) == (TaskState.CANCELLED, [])


def test_what_was_to_run_once_is_not_run_again_for_a_cancel_that_was_lost() -> None:
    """The head died before it could confirm that: its worker has obeyed, and nothing runs twice."""
    head = Head()
    head.join("w", 1)
    head.greet("w", 1)
    head.submit(0, 1, max_retries=0)
    [grant] = head.grants
    head.feed(e.CancelRequested(CancelRequest(PREFIX, 0, 1, False)), committed=False)
    head.restart()
    head.join("w", 2)
    head.greet("w", 2, grant)
    outcome = LeaseOutcome(grant.lease, 0, TaskState.CANCELLED, PayloadColumn.of([STOPPED]), 0)
    head.feed(e.WorkerReported("w", 2, None, (outcome,), (), (), False, False))
    assert (head.state_of(0), head.grants) == (TaskState.CANCELLED, [])


def test_what_is_not_given_back_is_to_be_dropped() -> None:
    """Regression: a task told to be cancelled could start on a worker that came back."""
    head = Head()
    head.join("w", 1, cpus=2)
    head.greet("w", 1)
    head.submit(0, 2)
    [grant] = head.grants
    head.restart()
    head.pass_time(GRACE_S + 1)
    head.feed(e.CancelRequested(CancelRequest(PREFIX, 0, 1, False)))
    assert head.state_of(0) is TaskState.CANCELLED
    head.join("w", 2, cpus=2)
    head.greet("w", 2, grant)
    assert head.dropped() == {("w", 0)}
    assert head.grants == []


def test_only_a_worker_that_is_waited_for_takes_from_the_ghost() -> None:
    """One that was lost before the restart does not get what was given to another."""
    head = Head()
    head.join("w-1", 1)
    head.greet("w-1", 1)
    head.submit(0, 1)
    [lost] = head.grants
    head.feed(e.WorkerDied("w-1", 1))
    head.join("w-2", 2)
    head.greet("w-2", 2)
    [_, present] = head.grants
    head.restart()
    head.join("w-1", 3)
    head.greet("w-1", 3, lost)
    assert head.dropped() == {("w-1", 0)}
    head.join("w-2", 4)
    head.greet("w-2", 4, present)
    assert (head.dropped(), head.grants) == (set(), [])


def test_a_cancel_is_journaled_once() -> None:
    """However often it is asked for."""
    head = Head()
    head.join("w", 1)
    head.greet("w", 1)
    head.submit(0, 1)
    for _ in range(5):
        head.feed(e.CancelRequested(CancelRequest(PREFIX, 0, 1, False)))
    assert rows(head, "SELECT count(*) FROM cancel") == [(1,)]


def test_classes_and_code_that_nobody_needs_are_swept_at_the_start() -> None:
    """The journal of a head that serves many clients' functions stays small."""
    head = Head()
    head.feed(e.CodeReceived(b"h" * 32, b"code"))
    head.submit(0, 1, code_hash=b"i" * 32, wait_for_resources=True)
    head.feed(e.CancelRequested(CancelRequest(PREFIX, 0, 1, False)))
    head.pass_time(2 * 86_400)
    head.restart()
    assert rows(head, "SELECT (SELECT count(*) FROM class), (SELECT count(*) FROM code)") == [
        (0, 0)
    ]


def test_what_runs_at_most_once_is_not_run_again_after_a_double_loss() -> None:
    """Regression: head and worker died together, and a task of max_retries=0 ran twice."""
    head = Head()
    head.join("w", 1, cpus=2)
    head.greet("w", 1)
    head.submit(0, 6, max_retries=0)
    granted = [n for g in head.grants for n in range(g.first, g.first + len(g.payloads))]
    assert 0 < len(granted) < 6
    head.restart()
    head.pass_time(GRACE_S + 1)
    head.join("other", 2, cpus=6)
    head.greet("other", 2)
    again = [n for g in head.grants for n in range(g.first, g.first + len(g.payloads))]
    assert sorted(granted + again) == list(range(6))
    assert {head.state_of(n) for n in granted} == {FAILED}


def test_what_came_back_unstarted_may_run_though_it_runs_at_most_once() -> None:
    """A lease that was returned is no start."""
    head = Head()
    head.join("w", 1)
    head.greet("w", 1)
    head.submit(0, 1, max_retries=0)
    [grant] = head.grants
    returned = (LeaseRange(grant.lease, 0, 1),)
    head.feed(e.DrainRequested("w"))
    head.feed(e.WorkerReported("w", 1, None, (), returned, (), True, True))
    head.restart()
    head.join("other", 2)
    head.greet("other", 2)
    assert [g.first for g in head.grants] == [0]


def test_a_new_head_knows_how_often_a_task_has_killed_its_executor() -> None:
    """The crash limit holds over a restart, and the error tells of the crashes before it."""
    head = Head()
    for session in range(1, 4):
        head.join("w", session)
        head.greet("w", session)
        if session == 1:
            head.submit(0, 1, max_retries=-1)
        head.end("w", session, head.grants[-1], TaskState.LEASED)
        if session < 3:
            head.restart()
    assert head.state_of(0) is TaskState.POISONED


def test_a_deadline_holds_over_a_restart() -> None:
    """What nobody has ends; what a worker of before has done in time has its result."""
    head = Head()
    head.join("w", 1)
    head.greet("w", 1)
    head.submit_until(head.now + 10.0, 8)
    [grant] = head.grants
    count = len(grant.payloads)
    assert 0 < count < 8
    head.restart()
    head.now += 12.0
    head.pass_time(1.0)
    assert head.state_of(0) is TaskState.LEASED
    head.join("w", 2)
    head.greet("w", 2, grant)
    head.end("w", 2, grant, OK, count)
    head.pass_time(GRACE_S)
    done, late = [OK] * count, [TaskState.TIMED_OUT] * (8 - count)
    assert [head.state_of(n) for n in range(8)] == done + late
    assert len(head.grants) == 0


@pytest.mark.parametrize("force", [False, True])
def test_a_restart_does_not_soften_a_cancel(force: bool) -> None:
    """Regression: the next head only asked a task to stop that was to be killed."""
    head = Head()
    head.join("w-1", 1)
    head.submit(0, 1)
    head.greet("w-1", 1)
    [grant] = head.grants
    head.feed(e.CancelRequested(CancelRequest(PREFIX, 0, 1, False)))
    if force:
        head.feed(e.CancelRequested(CancelRequest(PREFIX, 0, 1, True)))
    for session in (2, 3):
        head.restart()
        head.join("w-1", session)
        head.greet("w-1", session, grant)
        told = [one for one in head.told if isinstance(one, c.CancelLease)]
        assert [(one.lease, one.offset, one.force) for one in told] == [(grant.lease, 0, force)]


def test_no_attempt_has_the_number_of_another_one_over_two_restarts() -> None:
    """Regression: a re-run that waited for a worker of before took the number of its forerunner.

    The next head then had it dropped by the worker that still held it, and run again.
    """
    head = Head()
    sessions = {"w": 1, "v": 2}
    for name, session in sessions.items():
        head.join(name, session)
        head.greet(name, session)
    head.submit(0, 1, max_retries=9, retry_exceptions=True, retry_delay_s=0.0)
    for _ in range(3):
        grant = head.grants[-1]
        head.end(grant.worker_id, sessions[grant.worker_id], grant, FAILED)
    grant = head.grants[-1]
    assert grant.attempt == 4
    mine, other = grant.worker_id, {"w": "v", "v": "w"}[grant.worker_id]
    head.restart()
    head.join(mine, 10)
    head.greet(mine, 10, grant)
    head.end(mine, 10, grant, FAILED)
    head.join(other, 11)
    head.greet(other, 11)
    [again] = head.grants
    assert again.attempt == 5
    head.restart()
    for session, name in enumerate(sessions, start=20):
        head.join(name, session)
        head.greet(name, session, *([again] if again.worker_id == name else []))
        assert head.dropped() == set()
    assert head.grants == []


def test_what_raises_together_comes_back_in_its_order() -> None:
    """Regression: the last one came first, in a lease of its own."""
    head = Head()
    head.join("w", 1, cpus=4)
    head.greet("w", 1)
    head.submit(0, 4, max_retries=3, retry_exceptions=True, retry_delay_s=0.0)
    [grant] = head.grants
    head.end("w", 1, grant, FAILED, 4)
    assert [(one.first, len(one.payloads)) for one in head.grants[1:]] == [(0, 4)]


def test_what_a_task_did_to_its_executors_is_forgotten_with_its_end() -> None:
    """It would be kept as long as the result; in the journal too."""
    head = Head()
    head.join("w", 1)
    head.greet("w", 1)
    head.submit(0, 1, max_retries=-1)
    for state in (TaskState.LEASED, TaskState.LEASED, OK):
        head.end("w", 1, head.grants[-1], state)
    assert head.state_of(0) is OK
    [session] = head.scheduler.state.sessions.values()
    assert session.batches[0].crashes == {}
    assert rows(head, "SELECT count(*) FROM crash") == [(0,)]


def test_a_later_attempt_finds_its_children_also_after_a_restart() -> None:
    """Regression: after that they were told apart by the bytes of their code, and run twice.

    The pickle of a function need not be the same in the process of another attempt. Found by the
    chaos runner (seed 201).
    """
    head, children = Head(), child_prefix(PREFIX, 0)

    def hand_in(code: bytes, horizon: int) -> list[bool]:
        task_class = TaskClass("module.f", code, depth=1)
        payloads = PayloadColumn.of([b"argument"])
        head.feed(e.CodeReceived(code, b"code"))
        head.feed(e.TasksSubmitted(children, 0, task_class, payloads, True, horizon=horizon))
        return [one.deduplicated for one in head.told if isinstance(one, c.AcceptTasks)]

    for session, name in enumerate(("w-1", "w-2")):
        head.join(name, session)
        head.greet(name, session)
    head.submit(0, 1)
    assert hand_in(b"1" * 32, 0) == [False]
    first = next(grant for grant in head.grants if grant.prefix == PREFIX)
    head.feed(e.WorkerDied(first.worker_id, int(first.worker_id == "w-2")))
    head.pass_time(60.0)
    *_, again = (grant for grant in head.grants if grant.prefix == PREFIX)
    assert again.attempt == 2
    head.restart()
    head.join(again.worker_id, 2)
    head.greet(again.worker_id, 2, again)
    assert hand_in(b"2" * 32, head.scheduler.state.leases[again.lease].horizon) == [True]


# ── Tasks that take the results of others ─────────────────────────────────────────────────────


def submit_taking(head: Head, first: int, *taken: list[int]) -> None:
    """Hand in tasks that take the results of others, each a list of sequences."""
    head.feed(taking(first, *taken))


def taking(first: int, *taken: list[int]) -> e.TasksSubmitted:
    """Return the event of that."""
    payloads = PayloadColumn.of([b"argument"] * len(taken))
    inputs = PayloadColumn.of(
        [pack_inputs(InputId(PREFIX, number) for number in each) for each in taken]
    )
    task_class = TaskClass("f", has_inputs=True)
    return e.TasksSubmitted(PREFIX, first, task_class, payloads, True, inputs=inputs)


def values_of(grant: c.GrantLease) -> list[bytes]:
    """Return what the first task of a grant takes."""
    return [value.payloads[0] for value in grant.inputs[0]]


def test_a_graph_goes_on_after_a_restart() -> None:
    """What has ended is taken from the journal; what waits, waits on."""
    head = Head()
    head.join("w", 1)
    head.greet("w", 1)
    head.submit(0, 2)
    submit_taking(head, 2, [0], [0, 1], [2, 3])
    (grant, *_) = head.grants
    head.end("w", 1, grant, OK)
    head.restart()
    head.join("w", 2)
    head.greet("w", 2)
    done: set[int] = set()
    while waiting := [g for g in head.grants if g.first not in done]:
        grant = waiting[0]
        if grant.inputs:
            assert set(values_of(grant)) == {b"value"}
        done.add(grant.first)
        head.end("w", 2, grant, OK, len(grant.payloads))
        done.update(range(grant.first, grant.first + len(grant.payloads)))
    assert [head.state_of(number) for number in range(5)] == [OK] * 5


def test_a_task_that_a_worker_has_is_not_run_again_though_its_input_is() -> None:
    """It was given out before the commit of what it takes, and the head died in between."""
    head = Head()
    head.join("w", 1, cpus=2)
    head.greet("w", 1)
    head.submit(0, 1)
    submit_taking(head, 1, [0])
    (first,) = head.grants
    head.end("w", 1, first, OK, committed=False)
    _, second = head.grants
    head.restart()
    head.join("w", 2, cpus=2)
    head.greet("w", 2, first, second)
    assert not head.grants
    head.end("w", 2, second, OK)
    head.end("w", 2, first, OK)
    assert not head.grants
    assert [head.state_of(number) for number in range(2)] == [OK, OK]


def give_chain(head: Head, worker: str) -> list[c.GrantLease]:
    """Hand a chain of two in, of which one worker is given both; returns the two grants."""
    head.grants.clear()
    submit_taking(head, 0, [], [0])
    first, second = head.grants
    assert (first.worker_id, second.worker_id) == (worker, worker)
    assert second.follows == (first.lease, 0)
    return [first, second]


def test_what_followed_an_attempt_that_does_not_count_does_not_count_either() -> None:
    """Bug: a task's result was made of another one than what it takes has in the end (chaos 502).

    A head handed the first task out, and died before it had accepted it. The next one gave it to
    another worker, with what follows; and both came back to the one after that.
    """
    head = Head()
    head.join("w-3", 1)
    head.greet("w-3", 1)
    head.submit(5, 1)
    head.end("w-3", 1, head.grants[0], OK)
    head.feed(taking(0, [], [0]), committed=False)
    early = head.grants[1]
    head.restart()
    head.join("w-1", 1)
    head.greet("w-1", 1)
    first, second = give_chain(head, "w-1")
    assert early.attempt == first.attempt
    head.restart()
    head.join("w-3", 2)
    head.greet("w-3", 2, early)
    head.end("w-3", 2, early, OK)
    assert head.state_of(0) is OK
    head.join("w-1", 2)
    head.greet("w-1", 2, first, second)
    assert head.dropped() == {("w-1", 0)}
    assert {one.lease for one in head.told if isinstance(one, c.CancelLease)} == {
        first.lease, second.lease
    }  # fmt: skip
    head.end("w-1", 2, second, OK)
    assert head.state_of(1) is not OK
    [again] = [one for one in head.grants if one.first == 1]
    assert values_of(again) == [b"value"]
    head.end(again.worker_id, 2, again, OK)
    assert head.state_of(1) is OK


@pytest.mark.parametrize("has_first_ended", [True, False])
def test_what_follows_what_counts_is_not_run_again(has_first_ended: bool) -> None:
    """Its worker comes back with both, or has told of the first."""
    head = Head()
    head.join("w", 1)
    head.greet("w", 1)
    first, second = give_chain(head, "w")
    if has_first_ended:
        head.end("w", 1, first, OK)
    head.restart()
    head.join("w", 2)
    head.greet("w", 2, first, second)
    assert {one.lease for one in head.told if isinstance(one, c.CancelLease)} <= {first.lease}
    for grant in (first, second):
        head.end("w", 2, grant, OK)
    assert (head.state_of(0), head.state_of(1)) == (OK, OK)
    assert not head.grants


def test_a_worker_that_was_given_up_does_not_bring_what_followed() -> None:
    """The first of the two has run elsewhere meanwhile, and the second waits for a worker."""
    head = Head()
    head.join("w-1", 1)
    head.greet("w-1", 1)
    first, second = give_chain(head, "w-1")
    head.pass_time(60.0)
    head.join("w-2", 1)
    head.greet("w-2", 1)
    again, behind = [one for one in head.grants if one.worker_id == "w-2"]
    outcome = LeaseOutcome(again.lease, 0, OK, PayloadColumn.of([b"value"]), 1)
    back = LeaseRange(behind.lease, 0, 1)  # for it drains
    head.feed(e.WorkerReported("w-2", 1, None, (outcome,), (back,), (), True, False))
    assert (head.state_of(0), head.state_of(1)) == (OK, TaskState.QUEUED)
    head.join("w-1", 2)
    head.greet("w-1", 2, first, second)
    assert {one.lease for one in head.told if isinstance(one, c.CancelLease)} == {
        first.lease, second.lease
    }  # fmt: skip


def test_a_task_whose_input_is_lost_with_a_restart_says_so() -> None:
    """It was handed in at a higher level than what it takes."""
    head = Head()
    payloads = PayloadColumn.of([b"argument"])
    event = e.TasksSubmitted(PREFIX, 0, TaskClass("f"), payloads, True)
    head.feed(event, committed=False)
    submit_taking(head, 1, [0])
    head.restart()
    assert head.state_of(1) is FAILED


def test_what_went_unconfirmed_does_not_run_again_under_the_next_head() -> None:
    """Its rows stay in the journal without their bytes, until their time is up."""
    head = Head(result_memory_bytes=9)
    head.join("w", 1, cpus=4)
    head.greet("w", 1)
    for sequence in range(3):
        head.submit(sequence, 1)
        head.end("w", 1, head.grants[-1], OK)
    head.restart()
    head.join("w", 2, cpus=4)
    head.greet("w", 2)
    known = PayloadColumn.of([b"argument"])
    head.feed(e.TasksSubmitted(PREFIX, 0, TaskClass("f"), known, True))
    assert [type(one) for one in head.told] == [c.AcceptTasks, c.ReportUnknown]
    head.pass_time(86_400.0 + 1)
    assert rows(head, "SELECT id FROM batch") == rows(head, "SELECT id FROM outcome") == []
