"""Locks, semaphores, events and queues as programs and tasks see them, on an embedded cluster."""

from __future__ import annotations

import asyncio
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rustray
from helpers.sources import ROOT
from helpers.waiting import aeventually, eventually
from rustray.client.coordination import current_channel
from rustray.common.errors import ConfigError, LeaseLost, PayloadError, UsageProblem
from rustray.coordination.messages import Action, Kind, Request
from rustray.head.embedded import EmbeddedHead
from rustray.security.roles import Caller, Role

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One cluster for all of these tests: each uses names of its own."""
    with rustray.init(num_cpus=2):
        yield


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def in_thread(call: Any) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


# ── Programs ────────────────────────────────────────────────────────────────────────────────────


def test_a_lock_as_in_threading(name: str) -> None:
    """Not reentrant, with both ways to limit the wait, and the same errors."""
    lock, other = rustray.Lock(name), rustray.Lock(name)
    with pytest.raises(RuntimeError, match="release unlocked lock"):
        lock.release()
    with lock:
        assert lock.locked()
        assert lock.fence > 0
        lock.check()
        assert not other.acquire(blocking=False)
        assert not lock.acquire(timeout=0.01)
        with pytest.raises(ValueError, match="non-blocking"):
            other.acquire(blocking=False, timeout=1)
        with pytest.raises(ValueError, match="non-negative"):
            other.acquire(timeout=-2)
    assert not lock.locked()
    assert lock.fence == 0
    with pytest.raises(LeaseLost):
        lock.check()


def test_threads_exclude_each_other_and_fences_grow(name: str) -> None:
    """However they run."""
    inside, fences = [0], []

    def work() -> None:
        for _ in range(20):
            with rustray.Lock(name) as lock:
                inside[0] += 1
                fences.append((lock.fence, inside[0]))
                inside[0] -= 1

    threads = [in_thread(work) for _ in range(4)]
    for thread in threads:
        thread.join(20)
    assert [one for _, one in fences] == [1] * 80
    assert fences == sorted(set(fences))


def test_what_is_held_is_not_copied(name: str) -> None:
    """A pickle carries the name only."""
    for made in (
        rustray.Lock(name, namespace="n"),
        rustray.Semaphore(name, 3),
        rustray.Event(name),
        rustray.Queue(name, 5, codec="json"),
    ):
        copy = pickle.loads(pickle.dumps(made))
        assert type(copy) is type(made)
        assert copy._settings() == made._settings()
        assert name in repr(copy)
    lock = rustray.Lock(name)
    with lock:
        copy = pickle.loads(pickle.dumps(lock))
        assert copy.fence == 0
        assert not copy.acquire(blocking=False)


def test_a_semaphore_as_the_bounded_one_of_threading(name: str) -> None:
    """Permits are counted over all objects, and each gives back its own."""
    one, two = rustray.Semaphore(name, 2), rustray.Semaphore(name, 2)
    assert one.acquire()
    assert one.acquire()
    assert two.free() == 0
    assert not two.acquire(timeout=0.01)
    with pytest.raises(ValueError, match="too many"):
        two.release()
    with pytest.raises(ConfigError, match="2 permits"):
        rustray.Semaphore(name, 3).acquire()
    one.release(2)
    assert two.free() == 2
    with pytest.raises(ValueError, match="one or more"):
        one.release(0)
    with pytest.raises(ValueError, match="at least 1"):
        rustray.Semaphore(name, 0)


def test_an_event_as_in_threading(name: str) -> None:
    """Set wakes all."""
    event = rustray.Event(name)
    assert not event.is_set()
    assert not event.wait(0.01)
    woken: list[bool] = []
    threads = [in_thread(lambda: woken.append(rustray.Event(name).wait())) for _ in range(3)]
    event.set()
    for thread in threads:
        thread.join(10)
    assert woken == [True] * 3
    assert event.is_set()
    event.clear()
    assert not event.is_set()


def test_a_queue_as_in_the_standard_library(name: str) -> None:
    """Its own Full and Empty, in order, any object."""
    made: rustray.Queue = rustray.Queue(name, maxsize=2)
    with pytest.raises(queue.Empty):
        made.get_nowait()
    with pytest.raises(queue.Empty):
        made.get(timeout=0.01)
    made.put({"a", 1})
    made.put_nowait(lambda: 7)
    assert made.full()
    assert made.qsize() == 2
    with pytest.raises(queue.Full):
        made.put_nowait(3)
    with pytest.raises(queue.Full):
        made.put(3, timeout=0.01)
    assert made.get() == {"a", 1}
    assert made.get()() == 7
    assert made.empty()


def test_a_time_below_0_waits_not_at_all(name: str) -> None:
    """As in the standard library: -1 is for ever for a lock alone, and an error for a queue."""
    lock, permits = rustray.Lock(name), rustray.Semaphore(name)
    event, made = rustray.Event(name), rustray.Queue(name, 1)
    assert lock.acquire(timeout=-1)
    assert permits.acquire(timeout=-1)
    made.put(1)
    for below in (-1, -1.0, -0.5, -2):
        assert not event.wait(below)
        assert not permits.acquire(timeout=below)
        with pytest.raises(ValueError, match="non-negative"):
            made.get(timeout=below)
        with pytest.raises(ValueError, match="non-negative"):
            made.get_many(timeout=below)
        with pytest.raises(ValueError, match="non-negative"):
            made.put(2, timeout=below)
        with pytest.raises(ValueError, match="non-negative"):
            made.put_many([2], timeout=below)
    with pytest.raises(ValueError, match="non-blocking"):
        permits.acquire(blocking=False, timeout=-1)
    with pytest.raises(queue.Full):
        made.put(2, block=False, timeout=-1)  # the time does not count
    assert made.get(block=False, timeout=-1) == 1
    event.set()
    assert event.wait(-1)


async def test_a_time_below_0_waits_not_at_all_in_coroutines(name: str) -> None:
    """The twins do as the others."""
    permits, made = rustray.Semaphore(name), rustray.Queue(name)
    assert await permits.aacquire(timeout=-1)
    assert not await permits.aacquire(timeout=-1)
    assert not await rustray.Event(name).await_(-1)
    with pytest.raises(ValueError, match="non-negative"):
        await made.aget(timeout=-1)
    with pytest.raises(ValueError, match="non-negative"):
        await made.aput(1, timeout=-1)


def test_a_queue_carries_many_items_with_one_message(name: str) -> None:
    """In order, over the bounds of one message; a small queue takes them bit by bit."""
    made = rustray.Queue(name, codec="msgpack")
    made.put_many(range(2_500))
    taken: list[int] = []
    while len(taken) < 2_500:
        taken += made.get_many(2_000)
    assert taken == list(range(2_500))
    small = rustray.Queue(name + "-small", maxsize=3)
    thread = in_thread(lambda: small.put_many(range(10)))
    assert [small.get(timeout=10) for _ in range(10)] == list(range(10))
    thread.join(10)
    with pytest.raises(queue.Full) as raised:
        small.put_many(range(7), timeout=0.05)
    assert raised.value.args == (3,)


def test_what_cannot_travel_is_refused_before_it_leaves(name: str) -> None:
    """With the place of what cannot."""
    with pytest.raises(PayloadError, match="lock"):
        rustray.Queue(name).put({"x": threading.Lock()})
    with pytest.raises(PayloadError, match="msgpack"):
        rustray.Queue(name, codec="msgpack").put(object())
    for arguments in ({"codec": "yaml"}, {"maxsize": "3"}, {"maxsize": True}):
        with pytest.raises(ValueError, match=r"codec|maxsize"):
            rustray.Queue(name, **arguments)
    with pytest.raises(ValueError, match="max_items"):
        rustray.Queue(name).get_many(0)
    for bad in ("", "x" * 300, "a\nb", 3):
        with pytest.raises(ValueError, match="name"):
            rustray.Lock(bad)  # type: ignore[arg-type]


async def test_the_async_twins(name: str) -> None:
    """They do the same, and leave the loop free."""
    lock, semaphore = rustray.Lock(name), rustray.Semaphore(name, 2)
    event, made = rustray.Event(name), rustray.Queue(name, 1)
    async with lock, semaphore:
        await lock.acheck()
        assert await lock.alocked()
        assert await semaphore.afree() == 1
        assert not await rustray.Lock(name).aacquire(timeout=0.01)
    waiting = asyncio.create_task(event.await_(10))
    await event.aset()
    assert await waiting
    await event.aclear()
    assert not await event.ais_set()
    assert not await event.await_(0.01)
    await made.aput(1)
    assert await made.afull()
    with pytest.raises(queue.Full):
        await made.aput_many([2], timeout=0.01)
    assert await made.aget_many() == [1]
    assert await made.aempty()
    with pytest.raises(queue.Empty):
        await made.aget(block=False)


async def test_a_cancelled_wait_leaves_the_line(name: str) -> None:
    """Nothing is held for nobody, and the one behind moves up."""
    first, second, third = (rustray.Lock(name) for _ in range(3))
    await first.aacquire()
    waits = [asyncio.create_task(each.aacquire()) for each in (second, third)]
    await asyncio.sleep(0)
    waits[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits[0]
    await first.arelease()
    assert await asyncio.wait_for(waits[1], 10)
    await third.arelease()
    assert await asyncio.wait_for(first.aacquire(), 10)
    await first.arelease()


def test_an_error_in_a_block_is_not_hidden_by_a_lost_lease(name: str) -> None:
    """It gets a note; without another error LeaseLost is raised."""
    channel = current_channel()

    def lose(lock: rustray.Lock) -> None:
        request = Request(b"", 0, 0, Action.RELEASE, Kind.LOCK, name=name, fence=lock.fence)
        channel.call(request)

    def work(error: Exception | None) -> None:
        with rustray.Lock(name) as lock:
            lose(lock)
            if error is not None:
                raise error

    with pytest.raises(KeyError) as raised:
        work(KeyError("x"))
    assert "fence" in raised.value.__notes__[0]
    with pytest.raises(LeaseLost):
        work(None)


# ── Tasks ───────────────────────────────────────────────────────────────────────────────────────


@rustray.remote
def add_up(name: str, count: int) -> int:
    """Hold the lock again and again."""
    for _ in range(count):
        with rustray.Lock(name) as lock:
            lock.check()
    return count


@rustray.remote
def take_items(name: str, count: int) -> list[Any]:
    """Take items."""
    made = rustray.Queue(name)
    found: list[Any] = []
    while len(found) < count:
        found += made.get_many(count - len(found), timeout=20)
    return found


@rustray.remote
async def use_all(name: str) -> int:
    """Do it in a coroutine."""
    async with rustray.Semaphore(name, 2) as semaphore:
        await rustray.Event(name).await_(20)
        await rustray.Queue(name).aput(semaphore.fence)
        return semaphore.fence


@rustray.remote(max_retries=0)
def hold_and(name: str, how: str) -> None:
    """Hold the lock, and end in a way that does not release it."""
    lock = rustray.Lock(name)
    lock.acquire()
    rustray.Event(name).set()
    if how == "raise":
        raise ValueError("no")
    if how == "die":
        os.kill(os.getpid(), 9)
    if how == "wait":
        rustray.Lock(name).acquire()


@rustray.remote
def pass_on(lock: rustray.Lock) -> int:
    """Use a lock that came as an argument."""
    with lock:
        return lock.fence


def test_tasks_and_the_program_share_names(name: str) -> None:
    """A lock may travel as an argument; each attempt is a holder of its own."""
    assert rustray.get([add_up.remote(name, 5) for _ in range(4)], timeout=30) == [5] * 4
    lock = rustray.Lock(name)
    with lock:
        before = lock.fence
        ref = pass_on.remote(lock)
    assert rustray.get(ref, timeout=30) > before


def test_a_queue_between_the_program_and_tasks(name: str) -> None:
    """What a task has taken is gone when the task has ended."""
    ref = take_items.remote(name, 50)
    made = rustray.Queue(name)
    made.put_many(range(60))
    assert rustray.get(ref, timeout=30) == list(range(50))
    assert made.get_many() == list(range(50, 60))
    assert made.empty()


def test_coroutine_tasks(name: str) -> None:
    """On an event loop that goes on meanwhile."""
    refs = [use_all.remote(name) for _ in range(2)]
    rustray.Event(name).set()
    fences = rustray.get(refs, timeout=30)
    put = [rustray.Queue(name).get(timeout=10) for _ in range(2)]
    assert sorted(put) == sorted(fences)
    assert put[0] != put[1]


@pytest.mark.parametrize("how", ["raise", "die", "cancel", "return"])
def test_what_an_attempt_holds_is_free_when_it_ends(name: str, how: str) -> None:
    """At once, and not only when a lease has ended."""
    ref = hold_and.remote(name, "wait" if how == "cancel" else how)
    assert rustray.Event(name).wait(20)
    begun = time.monotonic()
    if how == "cancel":
        rustray.cancel(ref)
    with rustray.Lock(name):
        assert time.monotonic() - begun < 5.0  # the lease is 10 s
    eventually(lambda: rustray.wait([ref], timeout=0)[0])


def test_a_forked_child_of_a_task_cannot_speak_for_it(name: str) -> None:
    """It would answer for somebody else."""

    @rustray.remote
    def fork(name: str) -> str:
        import multiprocessing

        context = multiprocessing.get_context("fork")
        results = context.SimpleQueue()

        def child() -> None:
            try:
                rustray.Lock(name).acquire()
            except rustray.RustRayError as error:
                results.put(type(error).__name__)

        process = context.Process(target=child)
        process.start()
        process.join()
        return str(results.get())

    assert rustray.get(fork.remote(name), timeout=30) == "NotInTask"


# ── HeadNode, and who may what ──────────────────────────────────────────────────────────────────


async def test_a_head_node_has_them_for_coroutines() -> None:
    """They end with it; pickles are decoded only where that was allowed."""
    head = EmbeddedHead()
    await head.start()
    try:
        node, other = (rustray.HeadNode.over(head.api()) for _ in range(2))
        lock = node.lock("x")
        async with lock:
            assert not await other.lock("x").aacquire(blocking=False)
            with pytest.raises(UsageProblem, match="coroutines"):
                lock.acquire()
        assert await lock.aacquire()
        await node.close()
        assert await other.lock("x").aacquire(timeout=5)
        await other.queue("q", codec="pickle").aput(1)
        with pytest.raises(PayloadError, match="pickle"):
            await other.queue("q").aget()
        await other.queue("q").aput([1, "x"])
        assert await other.queue("q").aget() == [1, "x"]
        async with other.semaphore("s", 2) as semaphore:
            assert semaphore.fence
        await other.event("e").aset()
        assert await other.event("e").ais_set()
        await other.close()
    finally:
        await head.close()


async def test_a_full_disk_refuses_new_items_only() -> None:
    """What is in a queue can be taken, and locks go on."""
    head = EmbeddedHead()
    await head.start()
    try:
        node = rustray.HeadNode.over(head.api())
        made = node.queue("q")
        await made.aput(1)
        assert head._core is not None
        head._core.driver.note_storage(is_full=True)
        with pytest.raises(rustray.ResourceExhausted, match="disk"):
            await made.aput(2)
        async with node.lock("x"):
            assert await made.aget() == 1
        head._core.driver.note_storage(is_full=False)
        await made.aput(3)
        await node.close()
    finally:
        await head.close()


async def test_other_tokens_have_other_names_and_no_pickles_without_code() -> None:
    """A token that may not send code cannot have others unpickle what it sends."""
    head = EmbeddedHead()
    await head.start()
    try:
        plain = Caller("user:plain", Role.SUBMIT, frozenset(), float("inf"), "t")
        node, stranger = rustray.HeadNode.over(head.api()), rustray.HeadNode.over(head.api(plain))
        async with node.lock("x"):
            assert await stranger.lock("x").aacquire(blocking=False)
        with pytest.raises(rustray.AuthorizationError, match="pickles"):
            await stranger.queue("q", codec="pickle").aput(1)
        await stranger.queue("q").aput(1)
        assert await node.queue("q").aqsize() == 0
        await aeventually(lambda: stranger.queue("q").aqsize())
        await node.close()
        await stranger.close()
    finally:
        await head.close()


def test_the_program_of_the_guide_does_what_it_says(tmp_path: Path) -> None:
    """As it stands in docs/coordination.md, in a process of its own."""
    page = (ROOT / "docs" / "coordination.md").read_text()
    program = page.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "program.py").write_text(program)
    answer = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.stdout == "20540\n", answer.stderr
