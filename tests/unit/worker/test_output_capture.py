"""Whose output it is: real executors, in which Python, C and child processes print."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from collections import defaultdict
from typing import Any

import cloudpickle

from helpers.waiting import aeventually
from rustray.task.output import OutputPiece
from rustray.task.spec import ExecutorKind
from rustray.worker.output_reader import READ_BYTES
from unit.worker.executor_harness import PREFIX, Bench, bench

cloudpickle.register_pickle_by_value(sys.modules[__name__])

OUT, ERR = False, True


class Heard:
    """What a pool has told of output, by task."""

    def __init__(self) -> None:
        self.pieces: list[OutputPiece] = []

    def by_task(self, lease: int, *, err: bool | None = None) -> dict[int, bytes]:
        """Return index to bytes of the tasks of one lease, of one stream or both."""
        found: dict[int, bytes] = defaultdict(bytes)
        for each in self.pieces:
            assert (each.prefix, each.attempt) == (PREFIX, 2)
            if each.sequence // 1_000 == lease and err in (None, each.is_stderr):
                found[each.sequence - lease * 1_000] += each.data
        return dict(found)


def listening() -> tuple[Heard, Any]:
    """A listener, and a bench that tells it."""
    heard = Heard()
    return heard, bench(keep_output=heard.pieces.extend, shows_output=False)


async def run(b: Bench, kind: ExecutorKind, function: Any, *calls: Any, slots: int = 1) -> int:
    """Run tasks in one executor to their ends; return the lease."""
    executor = b.spawn(kind, slots)
    lease = b.run(executor, b.define(executor, function), *calls)
    await b.values(lease, len(calls))
    return lease


def speak(number: int) -> None:
    """Print in all ways that Python has."""
    print("out", number)
    print("err", number, file=sys.stderr)
    sys.stdout.buffer.write(b"bytes %d\n" % number)
    logging.getLogger("user").warning("logged %d", number)
    warnings.warn(f"warned {number}", stacklevel=1)
    print("end", number, end="")


async def test_what_python_prints_is_its_tasks_own() -> None:
    """A hundred quick tasks of one chunk: each has its lines, in order, heard before it ends."""
    heard, made = listening()
    async with made as b:
        lease = await run(b, ExecutorKind.PROCESS, speak, *[(n,) for n in range(100)])
        for number in range(100):
            out = heard.by_task(lease, err=OUT)[number]
            assert out == b"out %d\nbytes %d\nend %d" % (number, number, number)
            err = heard.by_task(lease, err=ERR)[number]
            assert err.startswith(b"err %d\nlogged %d\n" % (number, number))
            assert b"warned %d" % number in err
    both = b"".join(p.data for p in heard.pieces if p.sequence == lease * 1_000)
    assert both.index(b"out") < both.index(b"err") < both.index(b"bytes") < both.index(b"logged")


def shout(number: int) -> None:
    """Write past Python, and be done at once."""
    os.write(1, b"raw %d\n" % number)


async def test_raw_output_ends_with_its_task() -> None:
    """Tasks of chunks of their own that do nothing but write to the descriptor."""
    heard, made = listening()
    async with made as b:
        executor = b.spawn()
        job = b.define(executor, shout)
        leases = [b.run(executor, job, (number,)) for number in range(200)]
        await b.values(leases[-1], 1)
        for number, lease in enumerate(leases):
            assert heard.by_task(lease) == {0: b"raw %d\n" % number}


def foreign(number: int) -> None:
    """Print from C and from child processes, also onto stderr."""
    libc = ctypes.CDLL(None)
    libc.printf(b"C %d\n", number)
    subprocess.run(["sh", "-c", f"echo child {number}; echo grumble {number} >&2"], check=True)


async def test_what_c_code_and_child_processes_print_is_caught_too() -> None:
    """Each counts as its task's."""
    heard, made = listening()
    async with made as b:
        lease = await run(b, ExecutorKind.PROCESS, foreign, (1,), (2,), (3,))
        assert heard.by_task(lease, err=OUT) == {
            n - 1: b"C %d\nchild %d\n" % (n, n) for n in (1, 2, 3)
        }
        assert heard.by_task(lease, err=ERR) == {n - 1: b"grumble %d\n" % n for n in (1, 2, 3)}


def chat(number: int, count: int) -> None:
    """Print in turns with others."""
    for step in range(count):
        print(f"task {number}", end=" ")
        time.sleep(0.001)  # the task's work
        print(f"step {step}")


async def achat(number: int, count: int) -> None:
    """Print in turns with others."""
    for step in range(count):
        print(f"task {number}", end=" ")
        await asyncio.sleep(0.001)  # the task's work
        print(f"step {step}")


async def test_tasks_that_share_a_process_have_their_own_output() -> None:
    """Threads, coroutines, and functions in threads beside coroutines."""
    heard, made = listening()
    async with made as b:
        for kind, function in (
            (ExecutorKind.THREAD, chat),
            (ExecutorKind.ASYNC, achat),
            (ExecutorKind.ASYNC, chat),
        ):
            lease = await run(b, kind, function, *[(n, 5) for n in range(8)], slots=8)
            for number in range(8):
                lines = heard.by_task(lease)[number].decode().splitlines()
                assert lines == [f"task {number} step {step}" for step in range(5)]


def fork_and_thread() -> None:
    """Print from a thread and from a forked copy."""
    thread = threading.Thread(target=print, args=("thread",))
    thread.start()
    thread.join()
    if (pid := os.fork()) == 0:
        print("fork")
        os._exit(0)
    os.waitpid(pid, 0)


async def test_threads_and_copies_of_a_task_print_for_it() -> None:
    """As long as it runs."""
    heard, made = listening()
    async with made as b:
        lease = await run(b, ExecutorKind.PROCESS, fork_and_thread, ())
        assert heard.by_task(lease) == {0: b"thread\nfork\n"}


def junk() -> None:
    """Print what is no text: bytes of all values, a very long line, escapes, surrogates."""
    sys.stdout.buffer.write(bytes(range(256)))
    print("\ud800 \x1b]0;title\x07")
    sys.stdout.write("x" * 300_000)
    os.write(1, b"\xfe\xfe raw")


async def test_binary_junk_arrives_byte_for_byte() -> None:
    """Also what begins like a frame; a long line ends where it did."""
    heard, made = listening()
    async with made as b:
        lease = await run(b, ExecutorKind.PROCESS, junk, ())
        expected = bytes(range(256)) + b"\\ud800 \x1b]0;title\x07\n" + b"x" * 300_000
        assert heard.by_task(lease) == {0: expected + b"\xfe\xfe raw"}


def elsewhere(path: str) -> str:
    """Point standard output to a file and print; return what is in it."""
    kept = os.dup(1)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    print("into the file")
    os.dup2(kept, 1)
    print("back again")
    with open(path) as written:
        return written.read()


async def test_a_task_may_point_its_output_elsewhere(tmp_path: Any) -> None:
    """There it is as it was printed, without anything of ours."""
    heard, made = listening()
    async with made as b:
        assert await b.value(b.spawn(), elsewhere, str(tmp_path / "file")) == "into the file\n"
        assert heard.by_task(1) == {0: b"back again\n"}


def flood() -> None:
    """Print without end."""
    while True:
        print("x" * 1_000)


def double(number: int) -> int:
    """Do something else."""
    return 2 * number


async def test_an_endless_printer_waits_and_others_do_not() -> None:
    """It is read at its pace; tasks beside it run, and it can be stopped."""
    heard, made = listening()
    async with made as b:
        endless, other = b.spawn(), b.spawn()
        lease = b.run(endless, b.define(endless, flood), ())
        await aeventually(lambda: sum(len(p.data) for p in heard.pieces) > 2_000_000, 30.0)
        begin, before = asyncio.get_running_loop().time(), len(heard.pieces)
        for number in range(100):
            assert await b.value(other, double, number) == 2 * number
        passed_s = asyncio.get_running_loop().time() - begin
        told = sum(len(p.data) for p in heard.pieces[before:])
        assert told < 4 * 1024 * 1024 * passed_s + 1024 * 1024 + 2 * READ_BYTES
        b.pool.interrupt(endless, lease, 100)
        assert (await b.failure(lease))[0].name == "CANCELLED"


def last_words(secret: str) -> None:
    """Print without a newline, and die."""
    print(secret, end="")
    os.kill(os.getpid(), 9)


async def test_the_last_words_before_a_kill_are_heard() -> None:
    """They are the task's own, and at the end of its executor's."""
    heard, made = listening()
    async with made as b:
        executor = b.spawn()
        lease = b.run(executor, b.define(executor, last_words), ("last words",))
        assert (await b.exit_of(executor)).log_tail == "last words"
        assert heard.by_task(lease) == {0: b"last words"}


async def test_silent_tasks_cost_no_call_for_output() -> None:
    """Nothing is told, and no byte is read, where nothing is printed."""
    heard, made = listening()
    async with made as b:
        await run(b, ExecutorKind.PROCESS, double, *[(n,) for n in range(1_000)])
    assert heard.pieces == []
