"""`rustray.context()`: what a task may know of itself, in every kind of executor."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

import rustray
from rustray.task import codec as codecs
from rustray.task.frames import LeaseOutcome
from rustray.task.spec import Codec, ExecutorKind
from rustray.worker.context import context

from .executor_harness import bench

cloudpickle.register_pickle_by_value(sys.modules[__name__])

KINDS = [ExecutorKind.PROCESS, ExecutorKind.THREAD, ExecutorKind.ASYNC]


def who_am_i() -> tuple[str, int, int, float | None, bool]:
    """Return what the context says."""
    task = rustray.context()
    return task.task_id, task.attempt, task.fence, task.deadline, task.is_cancelled()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_task_knows_what_it_is(kind: ExecutorKind) -> None:
    """The context names the task that asks, in every kind of executor."""
    async with bench() as b:
        executor = b.spawn(kind, 2)
        lease = b.run(executor, b.define(executor, who_am_i), *[()] * 3)
        for index, found in enumerate(await b.values(lease, 3)):
            task_id = f"00010203040506070809{lease * 1_000 + index:012x}"
            assert found == (task_id, 2, lease, None, False)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_task_knows_its_deadline(kind: ExecutorKind) -> None:
    """It is the one that its chunk brought, and does not stay for the next."""
    async with bench() as b:
        executor = b.spawn(kind, 1)
        number = b.define(executor, who_am_i)
        call = [codecs.encode_call(Codec.PICKLE, (), {})]
        dated = b.run_payloads(executor, number, call, 4e9)
        free = b.run_payloads(executor, number, call)
        assert (await b.values(dated, 1))[0][3] == 4e9
        assert (await b.values(free, 1))[0][3] is None


async def who_am_i_async() -> str:
    """Return the task id, from a coroutine."""
    return str(rustray.context().task_id)


@pytest.mark.parametrize("kind", KINDS)
async def test_coroutines_have_a_context(kind: ExecutorKind) -> None:
    """An ``async def`` finds its own task, wherever it runs."""
    async with bench() as b:
        executor = b.spawn(kind, 3)
        lease = b.run(executor, b.define(executor, who_am_i_async), (), (), ())
        numbers = [int(each[20:], 16) for each in await b.values(lease, 3)]
        assert numbers == [lease * 1_000 + index for index in range(3)]


def from_a_thread() -> list[str]:
    """Return what the context says in a thread of the task, if it may be asked there."""
    found: list[str] = []

    def ask() -> None:
        try:
            found.append(rustray.context().task_id)
        except rustray.NotInTask as error:
            found.append(error.code)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return found


async def test_threads_of_a_task() -> None:
    """Where one task runs at a time its threads belong to it; elsewhere the error says so."""
    async with bench() as b:
        executor = b.spawn()
        found = await b.value(executor, from_a_thread)
        assert found[0].startswith("00010203040506070809")
        assert await b.value(b.spawn(ExecutorKind.THREAD, 2), from_a_thread) == ["NOT_IN_TASK"]


def from_a_fork() -> bytes:
    """Return what the context says in a forked copy of the executor."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            rustray.context()
            os.write(theirs, b"a task")
        except rustray.NotInTask:
            os.write(theirs, b"no task")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return os.read(ours, 100)


async def test_a_forked_copy_is_no_task() -> None:
    """A process that a task forks does not speak in its name."""
    async with bench() as b:
        assert await b.value(b.spawn(), from_a_fork) == b"no task"


def test_outside_of_a_task_there_is_none() -> None:
    """The error is typed and says where it works."""
    with pytest.raises(rustray.NotInTask, match="outside of a task"):
        context()


def between_tasks() -> Any:
    """Keep the context beyond the end of the task; return what an earlier one left."""
    import builtins

    kept = getattr(builtins, "kept_context", None)
    builtins.kept_context = rustray.context()  # type: ignore[attr-defined]
    return None if kept is None else (kept.task_id, kept.is_cancelled())


async def test_a_kept_context_stays_that_of_its_task() -> None:
    """A context that outlives its task says what it said, and is not that of the next one."""
    async with bench() as b:
        executor = b.spawn()
        number = b.define(executor, between_tasks)
        first, second = b.run(executor, number, ()), b.run(executor, number, ())
        assert await b.values(first, 1) == [None]
        found = (await b.values(second, 1))[0]
        assert found == (f"00010203040506070809{first * 1_000:012x}", False)


# ── What tasks say of themselves ──────────────────────────────────────────────────────────


def speak(steps: int) -> str:
    """Say much more than can be sent, then end."""
    task = rustray.context()
    for step in range(steps):
        task.progress(step / steps, f"step {step}")
    task.progress(1, "all done")
    task.emit("score", {"loss": 0.5})
    return str(task.task_id)


async def speak_async(steps: int) -> str:
    """Do the same in a coroutine."""
    return speak(steps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", [speak, speak_async])
async def test_the_latest_progress_wins_and_comes_before_the_end(
    kind: ExecutorKind, function: Callable[[int], Any]
) -> None:
    """A loop around `progress` sends little, the last word arrives, and before the outcome."""
    async with bench() as b:
        ended_after: list[int] = []
        report = b.seen.executor_reported

        def note(executor_id: int, outcomes: list[LeaseOutcome]) -> None:
            ended_after.append(len(b.seen.news))
            report(executor_id, outcomes)

        b.seen.executor_reported = note  # type: ignore[method-assign]
        executor = b.spawn(kind, 2)
        lease = b.run(executor, b.define(executor, function), (20_000,))
        await b.values(lease, 1)
        news = b.seen.news
        assert {(each.lease, each.offset) for each in news} == {(lease, 100)}
        assert (news[-2].fraction, news[-2].text) == (1.0, "all done")
        assert (news[-1].fraction, news[-1].text) == (None, "score")
        assert codecs.decode_value(Codec.MSGPACK, news[-1].value) == {"loss": 0.5}
        assert len(news) < 200
        assert ended_after == [len(news)]


def chat(count: int) -> None:
    """Emit more at once than may wait."""
    task = rustray.context()
    for number in range(count):
        task.emit("number", number)
    wait_for_news_to_go()


def wait_for_news_to_go() -> None:
    """Run as long as something waits to be sent."""
    task = rustray.context()
    while task._host.news._waiting:
        time.sleep(0.01)  # the task's work


async def test_what_is_emitted_is_bounded_and_in_order() -> None:
    """As much as may wait goes out, in order; the rest is dropped and counted."""
    async with bench() as b:
        executor = b.spawn()
        await b.values(b.run(executor, b.define(executor, chat), (1_000,)), 1)
        numbers = [codecs.decode_value(Codec.MSGPACK, each.value) for each in b.seen.news]
        assert numbers == sorted(numbers)
        assert 256 <= len(numbers) < 1_000
        # What is dropped last is told with the next news.
        await b.values(b.run(executor, b.define(executor, chat), (1,)), 1)
        assert len(b.seen.news) + b.seen.dropped == 1_001


@pytest.mark.parametrize(
    ("say", "error"),
    [
        (lambda task: task.progress(float("nan")), ValueError),
        (lambda task: task.progress("half"), ValueError),
        (lambda task: task.progress(True), ValueError),
        (lambda task: task.emit("", 1), ValueError),
        (lambda task: task.emit("a\nb", 1), ValueError),
        (lambda task: task.emit("x" * 257, 1), ValueError),
        (lambda task: task.emit("big", b"x" * 5_000), rustray.PayloadError),
        (lambda task: task.emit("strange", object()), rustray.PayloadError),
    ],
)
async def test_what_cannot_be_said_is_refused_at_once(
    say: Callable[[rustray.TaskContext], None], error: type[Exception]
) -> None:
    """The task that says it gets the error; nothing is sent."""

    def attempt() -> str:
        try:
            say(rustray.context())
        except error as caught:
            return type(caught).__name__
        return "nothing"

    async with bench() as b:
        assert await b.value(b.spawn(), attempt) == error.__name__
        assert b.seen.news == []


def odd_progress() -> None:
    """Say what is out of range but makes sense."""
    task = rustray.context()
    task.progress(17)
    wait_for_news_to_go()
    task.progress(-0.5, "\ud800" + "long " * 100)
    wait_for_news_to_go()


async def test_progress_is_clipped() -> None:
    """Beyond the ends counts as the end, long texts are cut, half characters replaced."""
    async with bench() as b:
        await b.value(b.spawn(), odd_progress)
        assert [each.fraction for each in b.seen.news] == [1.0, 0.0]
        assert b.seen.news[1].text.startswith("?long")
        assert len(b.seen.news[1].text) == 256


def fork_and_speak() -> str:
    """Let a forked copy of the executor speak with a context from before."""
    task = rustray.context()
    task.progress(0.1)
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            task.progress(0.9)
            os.write(theirs, b"said")
        except rustray.NotInTask:
            os.write(theirs, b"refused")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return os.read(ours, 100).decode()


async def test_a_forked_copy_does_not_speak() -> None:
    """The error says so, and the executor's channel is not disturbed."""
    async with bench() as b:
        assert await b.value(b.spawn(), fork_and_speak) == "refused"


def write_to_the_channel(message: bytes) -> None:
    """Write to the agent's channel, as only broken or evil code does."""
    for fd in range(3, 64):
        with contextlib.suppress(OSError):
            if socket.socket(fileno=os.dup(fd)).type == socket.SOCK_STREAM:
                os.write(fd, message)
                return


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", b"\x92\x00\x91\x01", b"\x92\x00\x91\x95\x01\x00\xc0\xa0\xc4\x00"],
    ids=["empty", "no msgpack", "no row", "no name"],
)
async def test_malformed_news_end_the_executor_only(body: bytes) -> None:
    """Whatever is written to the channel, the agent goes on; the executor is replaced."""
    message = struct.pack("=BxxxIQ", 4, 0, len(body)) + body
    async with bench() as b:
        executor = b.spawn()
        b.run(executor, b.define(executor, write_to_the_channel), (message,))
        gone = await b.exit_of(executor)
        assert "broke the executor protocol" in gone.log_tail
        assert await b.value(b.spawn(), who_am_i) is not None
