"""`rustray.context()`: what a task may know of itself, in every kind of executor."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

import rustray
from rustray.task import codec as codecs
from rustray.task.spec import Codec, ExecutorKind
from rustray.worker.context import context

from .executor_harness import bench

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
