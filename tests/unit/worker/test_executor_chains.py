"""Tasks that an executor is given together with those that they follow."""

from __future__ import annotations

import os
import time
from hashlib import sha256
from pathlib import Path

import cloudpickle

from helpers.waiting import aeventually
from rustray.task import codec as codecs
from rustray.task.frames import LeaseRange
from rustray.task.inputs import Slot
from rustray.task.spec import Codec, TaskClass
from rustray.task.state import TaskState
from unit.worker.executor_harness import Bench, bench

CALL = codecs.encode_call(Codec.PICKLE, (Slot(0),), {})
DONE = TaskState.SUCCEEDED


def step(value: int) -> int:
    """Add one; refuse 13."""
    if value == 13:
        raise ValueError("13 is refused")
    return value + 1


def make(value: int) -> int:
    """Return what a chain begins with."""
    return value


def large(size: int) -> bytes:
    """Return what does not travel in a message."""
    return bytes(size)


def length(value: bytes) -> int:
    """Take it."""
    return len(value)


def wait_for(path: Path) -> int:
    """Say that it has begun, and run until a file is there."""
    path.with_suffix(".begun").touch()
    deadline = time.monotonic() + 20.0
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)  # the task's work
    return 1


def die(value: int) -> int:
    """Kill the executor."""
    os._exit(value)


class Chain:
    """Classes of one executor whose tasks take the result of the one before."""

    def __init__(self, b: Bench) -> None:
        self.b = b
        self.executor = b.spawn()

    def begin(self, function: object, *args: object) -> int:
        """Run a task that takes nothing; returns its lease."""
        number = self._define(cloudpickle.dumps(function), has_inputs=False)
        return self.b.run(self.executor, number, args)

    def taker(self, function: object) -> int:
        """Introduce a function that takes the result before."""
        code = cloudpickle.dumps(function)
        return self._define(code, has_inputs=True)

    def _define(self, code: bytes, *, has_inputs: bool) -> int:
        name = sha256(code).digest()
        task_class = TaskClass("job", code_hash=name, codec=Codec.PICKLE, has_inputs=has_inputs)
        return self.b.define_class(self.executor, task_class, code)

    def follow(self, taker: int, after: int) -> int:
        """Have a task follow another; returns its lease."""
        return self.b.run_payloads(self.executor, taker, [CALL], after=after)

    def unrun(self) -> list[int]:
        """Return the leases that the executor has given back by itself."""
        return [one.lease for ranges in self.b.seen.unrun for one in ranges]


async def test_each_takes_what_the_one_before_has_made() -> None:
    """In the executor, which has all of them from the start."""
    async with bench() as b:
        chain = Chain(b)
        leases = [chain.begin(make, 100)]
        taker = chain.taker(step)
        for _ in range(50):
            leases.append(chain.follow(taker, leases[-1]))
        assert await b.values(leases[-1], 1) == [150]
        assert [await b.values(lease, 1) for lease in leases] == [[n] for n in range(100, 151)]
        assert not chain.unrun()


async def test_what_follows_a_failure_is_not_run() -> None:
    """Nor what follows that; what comes after them is."""
    async with bench() as b:
        chain = Chain(b)
        first = chain.begin(make, 12)
        taker = chain.taker(step)
        second = chain.follow(taker, first)
        third = chain.follow(taker, second)
        fourth = chain.follow(taker, third)
        fifth = chain.follow(taker, fourth)
        other = chain.begin(make, 1)
        assert await b.values(other, 1) == [1]
        assert await b.values(second, 1) == [13]
        assert (await b.failure(third))[0] is TaskState.FAILED
        assert chain.unrun() == [fourth, fifth]
        assert not b.states(fourth)
        assert not b.states(fifth)


async def test_a_task_takes_the_result_of_its_own_and_of_nobody_else() -> None:
    """Another has ended meanwhile: it is given back."""
    async with bench() as b:
        chain = Chain(b)
        first = chain.begin(make, 1)
        other = chain.begin(make, 2)
        taker = chain.taker(step)
        follower = chain.follow(taker, first)
        last = chain.follow(taker, other)
        assert await b.values(last, 1) == [3]
        assert chain.unrun() == [follower]


async def test_a_large_result_goes_by_the_worker() -> None:
    """It is in memory of its own, which the worker has to take over first."""
    async with bench() as b:
        chain = Chain(b)
        taker = chain.taker(length)
        for size, is_taken in ((1_000, True), (1 << 20, False)):
            made = chain.begin(large, size)
            follower = chain.follow(taker, made)
            if is_taken:
                assert await b.values(follower, 1) == [size]
            else:
                await aeventually(lambda: follower in chain.unrun(), 30.0)  # noqa: B023
                assert b.states(made) == {0: DONE}


async def test_what_is_asked_back_is_not_given_back_twice(tmp_path: Path) -> None:
    """All but the task that runs comes back as the answer."""
    async with bench() as b:
        chain = Chain(b)
        gate = tmp_path / "gate"
        first = chain.begin(wait_for, gate)
        taker = chain.taker(step)
        second = chain.follow(taker, first)
        third = chain.follow(taker, second)
        await aeventually(gate.with_suffix(".begun").exists, 30.0)
        b.pool.reclaim(chain.executor)
        await aeventually(lambda: b.seen.returned, 30.0)
        assert b.seen.returned == [[LeaseRange(second, 100, 1), LeaseRange(third, 100, 1)]]
        gate.touch()
        assert await b.values(first, 1) == [1]
        assert await b.values(chain.begin(make, 3), 1) == [3]
        assert not chain.unrun()


async def test_who_dies_in_a_chain_has_told_of_the_links_before() -> None:
    """The one that it ran is known."""
    async with bench() as b:
        chain = Chain(b)
        first = chain.begin(make, 7)
        second = chain.follow(chain.taker(die), first)
        third = chain.follow(chain.taker(step), second)
        exit_ = await b.exit_of(chain.executor)
        assert (exit_.exit_code, exit_.running) == (7, (second, 100))
        assert b.states(first) == {0: DONE}
        assert not b.states(second)
        assert not b.states(third)
