"""Processes of several tasks in which one of them lets nothing else go on."""

from __future__ import annotations

import asyncio
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


def hold_the_lock(folder: Path) -> None:
    """Wait for ever in code that holds the interpreter's lock."""
    (folder / "held").touch()
    end = os.open(folder / "fifo", os.O_RDWR)
    ctypes.PyDLL(None).read(end, ctypes.create_string_buffer(1), ctypes.c_size_t(1))


def in_thread(name: str, folder: Path) -> str:
    """Hold all up, or wait for ever, without the lock, until there is a sign to go on."""
    if name == "holder":
        hold_the_lock(folder)
    elif not (folder / "go").exists():
        (folder / name).touch()
        (folder / "fifo").read_bytes()
    return name


async def hold_up(name: str, folder: Path) -> str:
    """Do the same on an event loop."""
    if name == "holder":
        hold_the_lock(folder)
    await _wait(name, folder)
    return name


async def never_yield(name: str, folder: Path) -> str:
    """Hold up an event loop and nothing else."""
    if name == "holder":
        (folder / "held").touch()
        (folder / "fifo").read_bytes()
    await _wait(name, folder)
    return name


async def _wait(name: str, folder: Path) -> None:
    if not (folder / "go").exists():
        (folder / name).touch()
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("kind", "function"), [("thread", in_thread), ("async", hold_up), ("async", never_yield)]
)
def test_a_cancel_frees_those_beside_a_task_that_holds_all_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, function: Any
) -> None:
    """Bug: the cancelled one was settled, and its neighbours waited for ever."""
    monkeypatch.setattr(watch, "ALIVE_S", 0.5)
    os.mkfifo(tmp_path / "fifo")
    names = ["first", "second", "third"]
    with rustray.init(num_cpus=4):
        call = rustray.remote(executor=kind)(function)
        others = [call.remote(name, tmp_path) for name in names]
        eventually(lambda: all((tmp_path / name).exists() for name in names), within_s=20.0)
        holder = call.remote("holder", tmp_path)
        eventually((tmp_path / "held").exists, within_s=20.0)
        (tmp_path / "go").touch()
        rustray.cancel(holder, force=True)
        assert rustray.get(others, timeout=20) == names
        with pytest.raises(rustray.TaskCancelled):
            rustray.get(holder, timeout=10)
