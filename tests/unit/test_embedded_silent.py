"""Processes of several tasks in which one of them lets nothing else go on."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import rustray
from helpers.waiting import eventually
from rustray.worker import watch

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def hold_the_lock(number: int, held: Path, fifo: Path | None) -> int:
    """Wait in code that holds the interpreter's lock, until something is written; or do not."""
    if fifo is not None:
        held.touch()
        end = os.open(fifo, os.O_RDWR)
        ctypes.PyDLL(None).read(end, ctypes.create_string_buffer(1), ctypes.c_size_t(1))
    return number


async def hold_up(number: int, held: Path, fifo: Path | None) -> int:
    """Do the same on an event loop."""
    return hold_the_lock(number, held, fifo)


async def never_yield(number: int, held: Path, fifo: Path | None) -> int:
    """Hold up an event loop and nothing else."""
    if fifo is not None:
        _wait(held, fifo)
    return number


def _wait(held: Path, fifo: Path) -> None:
    """Wait until something is written, without the interpreter's lock."""
    held.touch()
    fifo.read_bytes()


@pytest.mark.parametrize(
    ("kind", "function"), [("thread", hold_the_lock), ("async", hold_up), ("async", never_yield)]
)
def test_a_cancel_frees_those_beside_a_task_that_holds_all_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, function: Any
) -> None:
    """Bug: the cancelled one was settled, and its neighbours waited for ever."""
    monkeypatch.setattr(watch, "ALIVE_S", 0.5)
    fifo, held = tmp_path / "fifo", tmp_path / "held"
    os.mkfifo(fifo)
    with rustray.init(num_cpus=1):
        call = rustray.remote(executor=kind)(function)
        refs = [call.remote(n, held, fifo if n == 2 else None) for n in range(8)]
        eventually(held.exists, within_s=20.0)
        rustray.cancel(refs[2], force=True)
        others = [n for n in range(8) if n != 2]
        assert rustray.get([refs[n] for n in others], timeout=30) == others
        with pytest.raises(rustray.TaskCancelled):
            rustray.get(refs[2], timeout=10)
