"""The scheduler under arbitrary histories: every invariant after each event, one end a task."""

from __future__ import annotations

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from helpers.scheduling import PREFIX, Bench, NaiveWorker
from rustray.common.resources import ResourceSet
from rustray.scheduler import events as e
from rustray.task.columns import PayloadColumn
from rustray.task.frames import LeaseOutcome, LeaseRange
from rustray.task.needs import Alternative
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState

CLASSES = [
    TaskClass("f"),
    TaskClass("f", priority=3, max_retries=0),
    TaskClass("f", priority=-2, resources=ResourceSet.of({"cpu_cores": 2})),
    TaskClass("f", resources=ResourceSet.of({"cpu_cores": 0.25}), retry_exceptions=("ValueError",)),
    TaskClass("f", resources=ResourceSet.of({}), max_retries=1),
    TaskClass("f", labels=(("zone", "x"),), wait_for_resources=True),
    TaskClass("f", queue_timeout_s=5.0, total_timeout_s=20.0),
    TaskClass("f", timeout_s=3.0),
    TaskClass("f", label_selector=(("zone", "!in(y,z)"),), resources=ResourceSet.of({"gpus": 0.6})),
    TaskClass("f", label_selector_soft=(("zone", "x"),), max_retries=0),
    TaskClass(
        "f",
        resources=ResourceSet.of({"cpu_cores": 1, "gpus": 1}),
        fallback=(
            Alternative(ResourceSet.of({"cpu_cores": 1}), label_selector=(("zone", "x"),)),
            Alternative(ResourceSet.of({"cpu_cores": 2}), (), (), (("zone", "!x"),)),
        ),
        wait_for_resources=True,
    ),
    TaskClass("f", depth=1),
    TaskClass("f", depth=2, priority=-2),
    TaskClass("f", results_stay=True),
    TaskClass("f", results_stay=True, max_retries=1),
]
STATES = [
    TaskState.SUCCEEDED,
    TaskState.SUCCEEDED,
    TaskState.FAILED,
    TaskState.LEASED,
    TaskState.CANCELLED,
    TaskState.TIMED_OUT,
]


class SchedulerMachine(RuleBasedStateMachine):
    """Clients, workers and time do what they like, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(result_ttl_s=1e6, max_leased_tasks=16)
        self.incarnations: dict[str, int] = {}

    @property
    def open_workers(self) -> list[NaiveWorker]:
        """Workers with a stream."""
        known = self.bench.scheduler.state.workers
        return [w for w in self.bench.workers.values() if w.is_open and w.worker_id in known]

    @rule(count=st.integers(1, 6), which=st.integers(0, len(CLASSES) - 1))
    def submit(self, count: int, which: int) -> None:
        """A client submits."""
        self.bench.submit(count, CLASSES[which])

    @rule(
        taken=st.lists(st.lists(st.integers(0, 60), max_size=3), min_size=1, max_size=4),
        which=st.integers(0, len(CLASSES) - 1),
    )
    def submit_taking(self, taken: list[list[int]], which: int) -> None:
        """A client submits tasks that take the results of others, some of which do not exist."""
        self.bench.submit_taking(taken, CLASSES[which])

    @rule(first=st.integers(0, 30), count=st.integers(1, 8), which=st.integers(0, len(CLASSES) - 1))
    def submit_again(self, first: int, count: int, which: int) -> None:
        """A client repeats a submission that may overlap what is known, or not be the same."""
        first = min(first, self.bench.next_sequence)
        self.bench.next_sequence = max(self.bench.next_sequence, first + count)
        payloads = PayloadColumn.of([b"xxx"] * count)
        self.bench.feed(e.TasksSubmitted(PREFIX, first, CLASSES[which], payloads, True))

    @rule(
        name=st.sampled_from("abc"),
        cpus=st.sampled_from([1, 2, 4]),
        zoned=st.booleans(),
        gpus=st.sampled_from([0, 1, 2]),
        is_back=st.booleans(),
    )
    def join(self, name: str, cpus: int, zoned: bool, gpus: int, is_back: bool) -> None:
        """A worker joins, comes back, perhaps after it was given up, or starts anew."""
        worker = self.bench.workers.get(name)
        is_given_up = worker is not None and name not in self.bench.scheduler.state.workers
        if worker is not None and is_given_up and (worker.is_dead or not is_back):
            worker.held.clear()
            self.incarnations[name] = self.incarnations.get(name, 1) + 1
            worker.is_draining = False
        labels = {"zone": "x"} if zoned else {}
        number = self.incarnations.get(name, 1)
        self.bench.join(name, cpus, incarnation=number, labels=labels, gpus=gpus)

    @precondition(lambda self: self.open_workers)
    @rule(data=st.data())
    def report_end(self, data: st.DataObject) -> None:
        """A worker ends some of what it holds."""
        worker = data.draw(st.sampled_from(self.open_workers))
        if not worker.held:
            return
        lease = data.draw(st.sampled_from(sorted(worker.held)))
        offset = data.draw(st.sampled_from(sorted(worker.held[lease])))
        state = data.draw(st.sampled_from(STATES))
        run_us = data.draw(st.sampled_from([1, 500, 200_000]))
        if state is TaskState.SUCCEEDED and worker.grants[lease].task_class.results_stay:
            self.bench.end_placed(worker, lease, offset)
            return
        self.bench.end(worker, lease, offset, 1, state, run_us)

    @precondition(lambda self: self.open_workers)
    @rule(data=st.data())
    def report_ranges(self, data: st.DataObject) -> None:
        """A worker reports wide ranges, starts and returns, true or not."""
        worker = data.draw(st.sampled_from(self.open_workers))
        leases = sorted(worker.grants) or [1]
        lease = data.draw(st.sampled_from(leases))
        offset = data.draw(st.integers(-1, 4))
        count = data.draw(st.integers(0, 5))
        kinds = ["outcome", "returned", "started", "blocked", "resumed"]
        kind = data.draw(st.sampled_from(kinds))
        held = worker.held.get(lease, set())
        if kind == "outcome":
            state = data.draw(st.sampled_from([*STATES, TaskState.QUEUED, TaskState.RUNNING]))
            outcome = LeaseOutcome(lease, offset, state, PayloadColumn.of([b"r"] * count), 7)
            grant = worker.grants.get(lease)
            if grant and offset >= 0 and offset + count <= len(grant.payloads) and state in STATES:
                held.difference_update(range(offset, offset + count))
            self.bench.report(worker, outcomes=[outcome])
        elif kind == "returned":
            grant = worker.grants.get(lease)
            if grant and offset >= 0 and count and offset + count <= len(grant.payloads):
                held.difference_update(range(offset, offset + count))
            self.bench.report(worker, returned=[LeaseRange(lease, offset, count)])
        else:
            self.bench.report(worker, **{kind: [LeaseRange(lease, offset, count)]})
        if not held:
            worker.held.pop(lease, None)

    @precondition(lambda self: any(w.held for w in self.open_workers))
    @rule(data=st.data(), waits=st.booleans())
    def wait_or_go_on(self, data: st.DataObject, waits: bool) -> None:
        """A task waits for tasks of its own, or goes on."""
        worker = data.draw(st.sampled_from([w for w in self.open_workers if w.held]))
        lease = data.draw(st.sampled_from(sorted(worker.held)))
        offset = data.draw(st.sampled_from(sorted(worker.held[lease])))
        kind = "blocked" if waits else "resumed"
        self.bench.report(worker, **{kind: [LeaseRange(lease, offset, 1)]})

    @precondition(lambda self: self.open_workers)
    @rule(data=st.data())
    def lose_frames(self, data: st.DataObject) -> None:
        """A stream breaks, and part of what was on it never arrived."""
        worker = data.draw(st.sampled_from(self.open_workers))
        self.bench.disconnect(worker)
        loses_work = data.draw(st.booleans())
        if worker.held and loses_work:
            worker.held.pop(max(worker.held))

    @precondition(lambda self: self.open_workers)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        """A worker's process dies."""
        self.bench.die(data.draw(st.sampled_from(self.open_workers)))

    @precondition(lambda self: self.open_workers)
    @rule(data=st.data())
    def heartbeat(self, data: st.DataObject) -> None:
        """A worker says that it lives."""
        self.bench.heartbeat(data.draw(st.sampled_from(self.open_workers)))

    @precondition(lambda self: self.open_workers)
    @rule(data=st.data())
    def drain(self, data: st.DataObject) -> None:
        """An operator drains a worker."""
        worker = data.draw(st.sampled_from(self.open_workers))
        worker.is_draining = True
        self.bench.feed(e.DrainRequested(worker.worker_id))

    @rule(first=st.integers(0, 40), count=st.integers(1, 10), force=st.booleans())
    def cancel(self, first: int, count: int, force: bool) -> None:
        """Somebody cancels a range."""
        self.bench.cancel(first, count, force)

    @precondition(lambda self: any(w.held for w in self.open_workers))
    @rule(data=st.data())
    def lack_input(self, data: st.DataObject) -> None:
        """A task could not have a value where it was said to be."""
        worker = data.draw(st.sampled_from([w for w in self.open_workers if w.held]))
        lease = data.draw(st.sampled_from(sorted(worker.held)))
        offset = data.draw(st.sampled_from(sorted(worker.held[lease])))
        names = [name for kept in self.bench.scheduler.state.kept_by.values() for name in kept]
        name = data.draw(st.sampled_from([*sorted(names), "nobody-s"]))
        self.bench.lack_input(worker, lease, offset, name)

    @rule(number=st.integers(0, 60))
    def want(self, number: int) -> None:
        """Somebody could not have a value where it was said to be."""
        found = self.bench.scheduler.task(PREFIX, number)
        if found is not None and found.place is not None:
            self.bench.feed(e.ValueWanted(PREFIX, number, found.place.object_id))

    @precondition(lambda self: any(w.asked for w in self.open_workers))
    @rule(data=st.data(), how=st.sampled_from(["value", "value", "gone", "trouble"]))
    def surrender(self, data: st.DataObject, how: str) -> None:
        """A worker sends a value that it was asked for, cannot, or does not have it."""
        worker = data.draw(st.sampled_from([w for w in self.open_workers if w.asked]))
        value = None if how == "gone" else b"value"
        trouble = "it is too large" if how == "trouble" else ""
        self.bench.surrender(worker, worker.asked.pop(), value, trouble)

    @precondition(lambda self: self.open_workers)
    @rule(data=st.data())
    def ask_what_is_needed(self, data: st.DataObject) -> None:
        """A worker asks which of its values are needed, and lets go of the others."""
        self.bench.ask_what_is_needed(data.draw(st.sampled_from(self.open_workers)))

    @rule(first=st.integers(0, 60), count=st.integers(1, 10))
    def release(self, first: int, count: int) -> None:
        """A client drops references."""
        self.bench.feed(e.ResultsReleased(PREFIX, first, count))

    @rule(first=st.integers(0, 40), count=st.integers(1, 10))
    def retry(self, first: int, count: int) -> None:
        """Somebody wants dead letters to be run again."""
        self.bench.retry(first, count)

    @rule(first=st.integers(0, 40), count=st.integers(1, 10))
    def purge(self, first: int, count: int) -> None:
        """Somebody forgets dead letters."""
        self.bench.purge(first, count)

    @rule(first=st.integers(0, 40), count=st.integers(1, 10))
    def follow(self, first: int, count: int) -> None:
        """A client comes back."""
        self.bench.feed(e.FollowRequested(PREFIX, first, count))
        self.bench.feed(e.OutcomesDelivered(PREFIX, first, count))

    @rule(seconds=st.sampled_from([0.01, 1.0, 4.0, 11.0, 61.0]))
    def pass_time(self, seconds: float) -> None:
        """Time passes."""
        self.bench.pass_time(seconds)

    @invariant()
    def no_task_ends_twice(self) -> None:
        """Each task has at most one end."""
        assert all(len(states) == 1 for states in self.bench.ended.values())

    @invariant()
    def values_are_where_the_head_takes_them_to_be(self) -> None:
        """A worker has what was not lost with it, as long as it runs."""
        for worker_id, kept in self.bench.scheduler.state.kept_by.items():
            worker = self.bench.workers[worker_id]
            if worker.incarnation == 1:  # real workers have another id when they start anew
                there = {name for name, stored in kept.items() if not stored.is_lost}
                assert there <= worker.values

    def teardown(self) -> None:
        """With a strong worker at hand everything that was accepted comes to its end."""
        for worker in list(self.bench.workers.values()):
            if worker.is_open:
                self.bench.die(worker)
        self.bench.pass_time(30.0)
        strong = self.bench.join("strong", 8, labels={"zone": "x"}, gpus=1)
        assert strong.is_open
        self.bench.run_all()
        assert set(self.bench.ended) == self.bench.accepted
        assert self.bench.scheduler.state.pending_tasks == 0


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=30,
    stateful_step_count=40,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
