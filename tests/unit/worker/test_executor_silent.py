"""Executors that do not answer: what they have not begun is taken, and never runs there."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import signal
import sys
from pathlib import Path

import cloudpickle
import pytest

from helpers.waiting import aeventually
from rustray.task.frames import LeaseRange
from rustray.worker import taking_back
from unit.worker.executor_harness import Bench, bench

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def note(folder: Path, name: str) -> str:
    """Leave a mark of this call."""
    with (folder / name).open("a") as file:
        file.write("x")
    return name


def hold_the_lock(folder: Path, fifo: Path) -> str:
    """Wait in code that holds the interpreter's lock until something is written."""
    note(folder, "held")
    end = os.open(fifo, os.O_RDWR)
    ctypes.PyDLL(None).read(end, ctypes.create_string_buffer(1), ctypes.c_size_t(1))
    os.close(end)
    return "held"


def either(folder: Path, name: str, fifo: Path | None) -> str:
    """Do one or the other, as one function."""
    return note(folder, name) if fifo is None else hold_the_lock(folder, fifo)


def marks(folder: Path) -> dict[str, str]:
    """Return what has run, and how often."""
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def back(b: Bench) -> set[tuple[int, int]]:
    """Return (lease, index) of all that never starts."""
    found = [
        (r.lease, r.offset - 100 + step)
        for ranges in (*b.seen.returned, *b.seen.unrun)
        for r in ranges
        for step in range(r.count)
    ]
    assert len(found) == len(set(found)), "given back twice"
    return set(found)


async def has_answer(b: Bench, known: int) -> None:
    """Wait until one more has come."""
    await aeventually(lambda: len(b.seen.returned) > known)


async def test_what_waits_behind_a_task_that_holds_the_lock_is_taken(tmp_path: Path) -> None:
    """Bug: it waited as long; what was begun goes on, and the executor takes more after it."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with bench() as b:
        executor = b.spawn()
        number = b.define(executor, either)
        calls = [(tmp_path, str(n), fifo if n == 2 else None) for n in range(6)]
        first = b.run(executor, number, *calls)
        second = b.run(executor, number, *[(tmp_path, f"b{n}", None) for n in range(3)])
        await aeventually(lambda: (tmp_path / "held").exists())
        b.pool.reclaim(executor)
        await aeventually(lambda: b.seen.silent)
        assert b.seen.silent == [(executor, LeaseRange(first, 102, 1))]
        assert back(b) == {(first, n) for n in (3, 4, 5)} | {(second, n) for n in range(3)}
        third = b.run(executor, number, (tmp_path, "c", None))
        b.pool.reclaim(executor)  # it cannot answer this one either
        await aeventually(lambda: (third, 0) in back(b))
        fourth = b.run(executor, number, (tmp_path, "d", None))
        fifo.write_bytes(b"x")
        assert await b.values(first, 3) == ["0", "1", "held"]
        assert await b.values(fourth, 1) == ["d"]
        b.pool.reclaim(executor)  # late answers are not taken for that to this one
        await aeventually(lambda: b.seen.returned[2:] == [[]])
    assert set(marks(tmp_path)) == {"0", "1", "held", "d"}


@pytest.mark.parametrize("seed", range(4))
async def test_an_executor_that_stands_still_now_and_then_runs_nothing_that_was_taken(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP at any moment: each task is reported once or taken once, and only those ran."""
    monkeypatch.setattr(taking_back, "ANSWER_S", 0.002)
    draw = random.Random(seed)
    leases: dict[int, int] = {}
    async with bench() as b:
        executor = b.spawn()
        number = b.define(executor, note)
        pid = await b.pid_of(executor)
        for round_ in range(25):
            count = draw.randint(1, 60)
            calls = [(tmp_path, f"{round_}-{n}") for n in range(count)]
            leases[b.run(executor, number, *calls)] = count
            for _ in range(draw.randint(0, 300)):  # at any moment
                await asyncio.sleep(0)
            os.kill(pid, signal.SIGSTOP)
            answers = len(b.seen.returned)
            b.pool.reclaim(executor)
            for _ in range(draw.randint(0, 12_000)):  # for longer than it is waited for
                await asyncio.sleep(0)
            os.kill(pid, signal.SIGCONT)
            await has_answer(b, answers)
        total = sum(leases.values())
        await aeventually(lambda: sum(len(b.states(x)) for x in leases) + len(back(b)) == total)
        done = {(lease, index) for lease in leases for index in b.states(lease)}
        assert not done & back(b)
        assert await b.values(b.run(executor, number, (tmp_path, "end")), 1) == ["end"]
        (tmp_path / "end").unlink()
    assert marks(tmp_path) == {f"{lease - 1}-{index}": "x" for lease, index in done}
