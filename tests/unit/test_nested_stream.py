"""The head's end of the sessions of tasks: who may speak for whom, and what is filled in."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest

from helpers.waiting import aeventually
from rustray.common.ids import child_prefix
from rustray.head.embedded import LOCAL_ADMIN, EmbeddedHead
from rustray.rpc.api import SubmitItem
from rustray.rpc.codec import decode_head_frame, encode_client_frame
from rustray.scheduler.state import SchedulerSettings
from rustray.security.roles import SCOPE_CODE, Caller, Role
from rustray.task.columns import PayloadColumn
from rustray.task.frames import (
    AssignFrame,
    ClassDefinition,
    ClientFrame,
    HeadFrame,
    LeaseGrant,
    LeaseOutcome,
    NestedFrame,
    NestedItem,
    Submission,
    WorkerFrame,
)
from rustray.task.functions import FunctionInfo, Parameter
from rustray.task.spec import Codec, TaskClass
from rustray.task.state import TaskState
from rustray.task.views import WorkerInfo

WORKER = "w-00000001"
PREFIX = b"0123456789"
ANYTHING = FunctionInfo("f", (Parameter("args", "args", False),))
CODE = b"code"


@dataclass
class Pump:
    """Sends what it is given, and keeps what it gets."""

    out: deque[Any] = field(default_factory=deque)
    got: list[Any] = field(default_factory=list)
    errors: list[Any] = field(default_factory=list)
    link: Any = None

    def next_frame(self) -> Any:
        return self.out.popleft() if self.out else None

    def on_frame(self, frame: Any) -> None:
        self.got.append(frame)

    def on_closed(self, error: Any) -> None:
        self.errors.append(error)

    def send(self, frame: Any) -> None:
        self.out.append(frame)
        self.link.wake()


class Bench:
    """A head, and a worker that says what the test has it say."""

    def __init__(self, **settings: Any) -> None:
        self.head = EmbeddedHead(SchedulerSettings(**settings))
        self.work, self.nest = Pump(), Pump()
        self.frames = 0
        self.session = 0

    async def start(self, *, greets: bool = True) -> Bench:
        await self.head.start()
        self.api = self.head.api()
        info = WorkerInfo(WORKER, 1, "w", "", {"cpu_cores": 2}, {}, (ANYTHING,))
        self.session = (await self.api.register_worker(info)).session
        self.work.link = await self.api.open_worker_stream(WORKER, self.session, self.work)
        self.nest.link = await self.api.open_nested_stream(WORKER, self.session, self.nest)
        if greets:
            self.report(held=[])
        return self

    def report(self, **parts: Any) -> None:
        self.frames += 1
        self.work.send(WorkerFrame(number=self.frames, **parts))

    async def run(self, caller: Caller = LOCAL_ADMIN, **options: Any) -> LeaseGrant:
        """Hand in a task, and return the lease that the worker gets."""
        before = len(self.leases)
        task_class = TaskClass("f", nargs=0, **options)
        item = SubmitItem(PREFIX, before, task_class, b"\x92\x90\x80")
        [verdict] = await self.head.api(caller).submit([item])
        assert verdict.error is None
        await aeventually(lambda: _is(len(self.leases) > before), 5)
        return self.leases[-1]

    @property
    def leases(self) -> list[LeaseGrant]:
        return [x for f in self.work.got if isinstance(f, AssignFrame) for x in f.leases]

    @property
    def classes(self) -> list[TaskClass]:
        return [x.task_class for f in self.work.got for x in f.classes]

    def say(self, channel: int, frame: ClientFrame) -> None:
        item = NestedItem(channel, data=encode_client_frame(frame))
        self.nest.send(NestedFrame(items=[item]))

    def open(self, channel: int, lease: int, offset: int = 0) -> None:
        self.nest.send(NestedFrame(items=[NestedItem(channel, (lease, offset))]))

    def hand_in(self, channel: int, task_class: TaskClass, number: int = 1, **more: Any) -> None:
        code = CODE if task_class.code_hash else b""
        frame = ClientFrame(
            number=number,
            classes=[ClassDefinition(1, task_class, code)],
            submissions=[Submission(1, number - 1, PayloadColumn.of([b"\x92\x90\x80"]), **more)],
        )
        self.say(channel, frame)

    async def end_of(self, channel: int) -> str:
        """Return the code that a channel ends with."""

        async def find() -> list[NestedItem]:
            items = [x for f in self.nest.got for x in f.items]
            return [x for x in items if x.channel == channel and x.ends]

        found: list[NestedItem] = await aeventually(find, 5)
        return found[0].code

    async def answer(self, channel: int) -> HeadFrame:
        """Return the first frame that a channel gets."""

        async def find() -> list[HeadFrame]:
            items = [x for f in self.nest.got for x in f.items if x.channel == channel and x.data]
            return [decode_head_frame(x.data) for x in items]

        found: list[HeadFrame] = await aeventually(find, 5)
        return found[0]


async def _is(value: bool) -> bool:
    return value


async def test_a_worker_acts_for_a_task_that_it_holds() -> None:
    """The child has the task's principal, priority and deadline, and stands one deeper."""
    bench = await Bench().start()
    caller = Caller("user:a", Role.SUBMIT, frozenset(), float("inf"), "t")
    lease = await bench.run(caller, priority=7, total_timeout_s=100.0)
    bench.open(1, lease.lease)
    bench.hand_in(1, TaskClass("f", nargs=0, inherits_priority=True))
    assert (await bench.answer(1)).accepted[0].count == 1
    await aeventually(lambda: _is(len(bench.leases) == 2), 5)
    child = bench.leases[-1]
    assert child.prefix == child_prefix(PREFIX, 0)
    assert 90 < child.time_left_s <= 100
    found = bench.classes[-1]
    assert (found.priority, found.depth, found.inherits_priority) == (7, 1, False)
    core = bench.head._core
    assert core is not None
    batch = core.driver.scheduler.state.sessions[child.prefix].batches[0]
    assert batch.principal == "user:a"
    bench.open(2, child.lease)
    bench.hand_in(2, TaskClass("f", nargs=0, priority=1), deadline_unix_s=4e9)
    await aeventually(lambda: _is(len(bench.leases) == 3), 5)
    assert (bench.classes[-1].priority, bench.classes[-1].depth) == (1, 2)
    assert bench.leases[-1].time_left_s > 1e6


async def test_nobody_acts_for_a_task_that_is_not_held() -> None:
    """A lease that never was, one that has ended, and one that ends in the middle."""
    bench = await Bench().start()
    lease = await bench.run()
    bench.open(1, lease.lease + 100)
    assert await bench.end_of(1) == "PERMISSION_DENIED"
    bench.open(2, lease.lease, 1)
    assert await bench.end_of(2) == "PERMISSION_DENIED"
    bench.open(3, lease.lease)
    bench.hand_in(3, TaskClass("f", nargs=0))
    await bench.answer(3)
    ended = LeaseOutcome(lease.lease, 0, TaskState.SUCCEEDED, PayloadColumn.of([b"r"]), 1)
    bench.report(outcomes=[ended])
    bench.hand_in(3, TaskClass("f", nargs=0), number=2)
    assert await bench.end_of(3) == "PERMISSION_DENIED"
    bench.open(4, lease.lease)
    assert await bench.end_of(4) == "PERMISSION_DENIED"
    assert len(bench.leases) == 2


async def test_a_worker_that_has_not_greeted_is_to_come_again() -> None:
    """After a restart of the head nobody knows yet what a worker holds: that is no refusal."""
    bench = await Bench().start(greets=False)
    bench.open(1, 1)
    assert await bench.end_of(1) == "HEAD_UNAVAILABLE"


@pytest.mark.parametrize("may_send_code", [False, True])
async def test_code_goes_where_the_submitter_may_send_it(may_send_code: bool) -> None:
    """A task of a token without the right to send code hands in none, whatever it is."""
    bench = await Bench().start()
    scopes = frozenset({SCOPE_CODE}) if may_send_code else frozenset[str]()
    lease = await bench.run(Caller("user:a", Role.SUBMIT, scopes, float("inf"), "t"))
    bench.open(1, lease.lease)
    bench.hand_in(1, TaskClass("g", hashlib.sha256(CODE).digest(), codec=Codec.PICKLE))
    answer = await bench.answer(1)
    assert [x.code for x in answer.rejected] == ([] if may_send_code else ["PERMISSION_DENIED"])


async def test_what_stands_too_deep_is_refused() -> None:
    """The bound is the head's, whatever depth the other side names."""
    bench = await Bench(max_task_depth=1).start()
    lease = await bench.run()
    bench.open(1, lease.lease)
    bench.hand_in(1, TaskClass("f", nargs=0, depth=900))
    await bench.answer(1)
    await aeventually(lambda: _is(len(bench.leases) == 2), 5)
    bench.open(2, bench.leases[-1].lease)
    bench.hand_in(2, TaskClass("f", nargs=0))
    [refused] = (await bench.answer(2)).rejected
    assert refused.code == "NESTED_TOO_DEEP"
    assert "max_task_depth is 1" in refused.message


async def test_a_task_that_is_being_cancelled_hands_in_nothing() -> None:
    """What it hands in now would outlive the cancel that has gone down already."""
    bench = await Bench().start()
    lease = await bench.run()
    bench.open(1, lease.lease)
    await bench.api.cancel([f"{PREFIX.hex()}{0:012x}"], False)
    bench.hand_in(1, TaskClass("f", nargs=0))
    [refused] = (await bench.answer(1)).rejected
    assert refused.code == "TASK_CANCELLED"


async def test_what_is_malformed_ends_that_session_alone() -> None:
    """A frame that makes no sense costs its channel; the others go on."""
    bench = await Bench().start()
    lease = await bench.run()
    bench.open(1, lease.lease)
    bench.open(2, lease.lease)  # the same task again: it takes the other's place
    bench.nest.send(NestedFrame(items=[NestedItem(2, data=b"\xff\xff")]))
    assert await bench.end_of(2) == "COMMUNICATION"
    bench.open(3, lease.lease)
    bench.hand_in(3, TaskClass("f", nargs=0))
    assert (await bench.answer(3)).accepted
    bench.nest.send(NestedFrame(items=[NestedItem(99, data=b"x"), NestedItem(98, ends=True)]))
    bench.open(3, lease.lease)
    await aeventually(lambda: _is(bool(bench.nest.errors)), 5)
    assert "opened twice" in str(bench.nest.errors[0])


async def test_an_ordinary_client_says_nothing_of_depth() -> None:
    """What only the head fills in is not taken from a program."""
    bench = await Bench().start()
    client = Pump()
    client.link = await bench.api.open_client_stream(b"abcdefghij", client)
    task_class = TaskClass("f", nargs=0, depth=9, inherits_priority=True)
    part = Submission(1, 0, PayloadColumn.of([b"\x92\x90\x80"]))
    client.send(ClientFrame(1, 0, [ClassDefinition(1, task_class)], [part]))
    await aeventually(lambda: _is(bool(bench.leases)), 5)
    assert (bench.classes[-1].depth, bench.classes[-1].inherits_priority) == (0, False)
