"""WorkerManager under anything at all: a state machine against the bench's naive ledger."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from helpers.worker_bench import PACKAGES, WorkerBench, a_class
from rustray.task.runtime_env import RuntimeEnv
from rustray.task.spec import ExecutorKind
from rustray.task.state import TaskState
from rustray.worker import events as e
from rustray.worker.holdings import held_ranges

CLASSES = [
    a_class("plain"),
    a_class("urgent", priority=5),
    a_class("late", priority=-5),
    a_class("wide", cpu=3),
    a_class("half", cpu=0.5),
    a_class("timed", timeout_s=0.5),
    a_class("once", max_retries=0),
    a_class("licensed", licence=1),
    a_class("free", cpu=0, kind=ExecutorKind.ASYNC),
    a_class("thread", cpu=0.25, kind=ExecutorKind.THREAD),
    a_class("thread_timed", cpu=0, kind=ExecutorKind.THREAD, timeout_s=0.3),
    a_class("child", depth=1),
    a_class("grandchild", cpu=2, depth=2),
]
LINK = replace(a_class("link"), has_inputs=True)
RUN_TIMES = st.sampled_from([5, 100, 3_000, 50_000])


class ManagerMachine(RuleBasedStateMachine):
    """Grants, reports, deaths, cancels, recalls, and a stream that loses and breaks."""

    classes = tuple(CLASSES)

    def __init__(self) -> None:
        super().__init__()
        self.b = WorkerBench({"cpu_cores": 3, "licence": 2})

    @initialize()
    def begin(self) -> None:
        """Start the pool; executors become ready when they like."""
        self.b.feed(e.PoolStarted())
        self.b.open()

    def _pick(self, data: st.DataObject, ids: list[int]) -> int:
        return data.draw(st.sampled_from(sorted(ids)))

    def _alive(self) -> list[int]:
        return [n for n, x in self.b.executors.items() if x.is_ready]

    def _busy(self) -> list[int]:
        return [n for n in self._alive() if self.b.executors[n].tasks]

    @precondition(lambda self: self.b.session is not None)
    @rule(number=st.integers(0, len(CLASSES) - 1), count=st.integers(1, 40))
    def grant(self, number: int, count: int) -> None:
        """The head leases tasks."""
        self.b.grant(count, self.classes[number % len(self.classes)])

    @precondition(lambda self: self.b.session is not None)
    @rule(links=st.integers(2, 8), at_once=st.booleans())
    def grant_chain(self, links: int, at_once: bool) -> None:
        """The head leases tasks of which each takes what the one before makes."""
        last = self.b.grant(1, LINK)
        for _ in range(links - 1):
            last = self.b.grant(1, LINK, follows=(last, 0))
        if at_once:
            self.finish_quickly()

    def finish_quickly(self) -> None:
        """What runs ends at once, so that the next tasks are known to be quick."""
        for executor_id in self._busy():
            if not self.b.executors[executor_id].waiting:
                self.b.finish(executor_id, run_us=5)

    @precondition(lambda self: self.b.session is not None and self.b.last_frame is not None)
    @rule()
    def repeat_frame(self) -> None:
        """A frame arrives again."""
        assert self.b.last_frame is not None
        self.b.feed(e.FrameReceived(self.b.last_session, self.b.last_frame))

    @rule()
    def ready(self) -> None:
        """Executors come up."""
        self.b.make_ready()

    @precondition(lambda self: self._busy())
    @rule(data=st.data(), run_us=RUN_TIMES, is_failed=st.booleans(), is_large=st.booleans())
    def finish(self, data: st.DataObject, run_us: int, is_failed: bool, is_large: bool) -> None:
        """An executor ends some of its tasks."""
        executor_id = self._pick(data, self._busy())
        executor = self.b.executors[executor_id]
        if executor.waiting and executor.owes_answer:
            self.b.answer(executor_id)  # who waits does nothing else: what is behind it is back
        count = data.draw(st.integers(1, len(executor.tasks)))
        state = TaskState.FAILED if is_failed else TaskState.SUCCEEDED
        self.b.now += run_us * count / 1e6
        self.b.finish(executor_id, count, state, run_us, is_large=is_large and not is_failed)

    @precondition(lambda self: any(x.unrun for x in self.b.executors.values()))
    @rule(data=st.data(), most=st.integers(1, 3))
    def tell_unrun(self, data: st.DataObject, most: int) -> None:
        """An executor says of some tasks that it does not run them."""
        owing = [n for n, x in self.b.executors.items() if x.unrun]
        self.b.tell_unrun(self._pick(data, owing), most)

    @precondition(lambda self: any(self._may_wait(n) for n in self._busy()))
    @rule(data=st.data())
    def block(self, data: st.DataObject) -> None:
        """A task waits for tasks of its own."""
        executor_id = self._pick(data, [n for n in self._busy() if self._may_wait(n)])
        self.b.block(executor_id, data.draw(st.sampled_from(self._may_wait(executor_id))))

    @precondition(lambda self: any(x.waiting for x in self.b.executors.values()))
    @rule(data=st.data())
    def wake(self, data: st.DataObject) -> None:
        """One that waits wants to go on."""
        executor_id = self._pick(data, [n for n, x in self.b.executors.items() if x.waiting])
        number = len(self.b.executors[executor_id].waiting)
        self.b.wake(executor_id, data.draw(st.integers(0, number - 1)))

    def _may_wait(self, executor_id: int) -> list[int]:
        """Places of tasks that run in an executor and do not wait."""
        executor = self.b.executors[executor_id]
        keys = list(executor.tasks)
        running = keys[:1] if executor.kind is ExecutorKind.PROCESS else keys
        return [keys.index(key) for key in running if key not in executor.waiting]

    @precondition(lambda self: any(x.owes_answer for x in self.b.executors.values()))
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        """An executor gives back what it has not started."""
        owing = [n for n, x in self.b.executors.items() if x.owes_answer]
        self.b.answer(self._pick(data, owing))

    @precondition(lambda self: bool(self._mute()))
    @rule(data=st.data(), is_late=st.booleans())
    def take_back(self, data: st.DataObject, is_late: bool) -> None:
        """An executor does not answer, and what it has not begun is taken from it."""
        executor_id = self._pick(data, self._mute())
        count = 1 if is_late else len(self.b.executors[executor_id].tasks)
        self.b.take_back(executor_id, data.draw(st.integers(1, count)), is_late=is_late)

    @precondition(lambda self: bool(self._late()))
    @rule(data=st.data())
    def answer_late(self, data: st.DataObject) -> None:
        """It gives something back after all."""
        self.b.answer_late(self._pick(data, self._late()))

    def _late(self) -> list[int]:
        return [n for n, x in self.b.executors.items() if x.is_late and x.tasks and not x.waiting]

    def _mute(self) -> list[int]:
        return [
            number
            for number, x in self.b.executors.items()
            if x.owes_answer and x.tasks and not x.waiting and x.kind is ExecutorKind.PROCESS
        ]

    @precondition(lambda self: any(x.interrupts or x.notices for x in self.b.executors.values()))
    @rule(data=st.data())
    def obey(self, data: st.DataObject) -> None:
        """Interrupted tasks end."""
        asked = [n for n, x in self.b.executors.items() if x.interrupts or x.notices]
        self.b.obey(self._pick(data, asked))

    @precondition(lambda self: self.b.executors)
    @rule(data=st.data(), knows_task=st.booleans())
    def die(self, data: st.DataObject, knows_task: bool) -> None:
        """An executor dies."""
        self.b.die(self._pick(data, list(self.b.executors)), knows_task=knows_task)

    @rule(seconds=st.sampled_from([0.001, 0.015, 0.3, 1.2, 7.0]))
    def pass_time(self, seconds: float) -> None:
        """Deadlines come."""
        self.b.advance(seconds)

    @precondition(lambda self: self.b.session is not None and self.b.granted)
    @rule(data=st.data(), force=st.booleans())
    def cancel(self, data: st.DataObject, force: bool) -> None:
        """The head cancels a part of a lease."""
        lease = self._pick(data, list(self.b.granted))
        count = self.b.granted[lease][0]
        low = data.draw(st.integers(0, count - 1))
        self.b.cancel(lease, low, data.draw(st.integers(1, count)), force=force)

    @precondition(lambda self: self.b.session is not None and self.b.granted)
    @rule(data=st.data())
    def recall(self, data: st.DataObject) -> None:
        """The head wants a part of a lease back."""
        lease = self._pick(data, list(self.b.granted))
        count = self.b.granted[lease][0]
        low = data.draw(st.integers(0, count - 1))
        self.b.recall(lease, low, data.draw(st.integers(1, count)))

    @precondition(lambda self: self.b.session is not None)
    @rule()
    def collect(self) -> None:
        """The stream takes what waits."""
        self.b.collect()

    @precondition(lambda self: self.b.session is not None)
    @rule()
    def lose(self) -> None:
        """A frame is lost, so the session ends."""
        self.b.lose_frame()
        self.b.close()

    @rule()
    def reconnect(self) -> None:
        """The session breaks or comes back."""
        if self.b.session is None:
            self.b.open()
        else:
            self.b.close()

    @invariant()
    def held_names_all_that_is_not_told(self) -> None:
        """The core's list for a new session, and what it gives back, is all the head waits for."""
        outbox = self.b.manager._state.outbox
        known = [(r.lease, r.offset, r.count) for r in held_ranges(self.b.manager._state)]
        known += [(r.lease, r.offset, r.count) for r in outbox.returned]
        for frame in outbox.unacked:
            known += [(r.lease, r.offset, r.count) for r in frame.returned]
            known += [(o.lease, o.offset, len(o.payloads)) for o in frame.outcomes]
        held = {(lease, o) for lease, low, count in known for o in range(low, low + count)}
        everything = {(n, o) for n, (count, _) in self.b.granted.items() for o in range(count)}
        assert everything - set(self.b.told) <= held

    def teardown(self) -> None:
        """In the end everything has been told, and nothing is in use."""
        if self.b.session is None:
            self.b.open()
        self.b.advance(7)
        self.b.finish_all()
        self.b.advance(15)
        self.b.finish_all()
        self.b.collect()
        self.b.assert_all_told()
        abandoned = [x.tasks for x in self.b.executors.values() if x.tasks]
        assert abandoned == []
        assert all(units == 0 for units in self.b.manager.used.values())


ManagerMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=50)
TestManager = ManagerMachine.TestCase


class DrainMachine(ManagerMachine):
    """The same, ended by a drain at the worst moment."""

    def teardown(self) -> None:
        """A drained worker has told everything and leaves, within its limits."""
        if self.b.session is None:
            self.b.open()
        self.b.feed(e.DrainRequested(2.0))
        self.b.advance(2.5)
        self.b.collect()
        self.b.assert_all_told()
        assert self.b.has_drained or self.b.has_left
        self.b.advance(5)
        assert self.b.has_left


DrainMachine.TestCase.settings = settings(max_examples=20, stateful_step_count=40)
TestDrain = DrainMachine.TestCase


class GpuMachine(ManagerMachine):
    """The same with GPUs, whole, parts and both, in processes and threads."""

    classes = (
        *CLASSES[:4],
        a_class("gpu", gpus=1),
        a_class("gpu_late", gpus=1, priority=-5, cpu=0.5),
        a_class("two_gpus", gpus=2, cpu=0.25),
        a_class("half_gpu", gpus=0.5, cpu=0.25),
        a_class("part_gpu", gpus=0.4, cpu=0.25),
        a_class("gpu_and_half", gpus=1.5),
        a_class("thread_gpu", gpus=0.5, cpu=0, kind=ExecutorKind.THREAD, timeout_s=0.3),
    )

    def __init__(self) -> None:
        super().__init__()
        self.b = WorkerBench({"cpu_cores": 3, "licence": 2, "gpus": 2.5})

    def teardown(self) -> None:
        """As before, and all GPUs are free."""
        super().teardown()
        gpus = self.b.manager._state.gpus
        assert gpus is not None
        assert gpus.free == gpus.total


GpuMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=50)
TestGpus = GpuMachine.TestCase


class EnvMachine(ManagerMachine):
    """The same with runtime environments and GPUs, and room for two packages of three."""

    classes = (
        *CLASSES[:3],
        a_class("vars", env=RuntimeEnv((("A", "1"),))),
        a_class("other_vars", env=RuntimeEnv((("A", "2"),)), cpu=0.5),
        *(
            a_class(f"dir_{number}", env=RuntimeEnv(working_dir=digest), priority=number)
            for number, digest in enumerate(PACKAGES)
        ),
        a_class("all", env=RuntimeEnv((), b"", tuple(PACKAGES)), timeout_s=0.5),
        a_class("gpu", env=RuntimeEnv((("A", "1"),)), gpus=1),
        a_class(
            "thread", env=RuntimeEnv(py_modules=(next(iter(PACKAGES)),)), cpu=0.25,
            kind=ExecutorKind.THREAD, timeout_s=0.3,
        ),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.b = WorkerBench({"cpu_cores": 3, "licence": 2, "gpus": 1}, package_bytes=1_300)


EnvMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=50)
TestEnvs = EnvMachine.TestCase


class SpoolMachine(ManagerMachine):
    """The same with so little memory that results go to a disk, which may refuse or damage them."""

    def __init__(self) -> None:
        super().__init__()
        self.b = WorkerBench(
            {"cpu_cores": 3, "licence": 2}, memory_bytes=24_000, disk_bytes=30_000,
            result=bytes(700),
        )  # fmt: skip

    @precondition(lambda self: self.b.writing)
    @rule(is_stored=st.sampled_from([True, True, True, False]))
    def write(self, is_stored: bool) -> None:
        """The disk takes a sheaf or refuses it."""
        self.b.write(is_stored=is_stored)

    @precondition(lambda self: self.b.reading)
    @rule(is_whole=st.sampled_from([True, True, True, False]))
    def read(self, is_whole: bool) -> None:
        """The disk gives a sheaf back, whole or not."""
        self.b.read(is_whole=is_whole)

    @precondition(lambda self: self.b.session is not None)
    @rule()
    def ack(self) -> None:
        """The head confirms what it has."""
        self.b.ack()

    def teardown(self) -> None:
        """In the end everything has been told, and the disk is empty."""
        if self.b.session is None:
            self.b.open()
        self.b.advance(7)
        self.b.deliver_all()
        self.b.advance(15)
        self.b.deliver_all()
        self.b.assert_all_told()
        assert self.b.disk == {}
        assert all(units == 0 for units in self.b.manager.used.values())


SpoolMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=60)
TestSpool = SpoolMachine.TestCase
