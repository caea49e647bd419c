"""Finds what a test left behind: living child processes and threads that would hold up the exit."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import psutil

_CHILDREN = Path("/proc/self/task")

# Helpers of the standard library that live as long as this process, by design.
_LONG_LIVED_COMMANDS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
# The pool behind `asyncio.to_thread` ends with its loop, which may be that of a whole module.
_LONG_LIVED_THREADS = ("asyncio_",)


def child_pids() -> set[int]:
    """Return the process ids of this process's children, zombies included."""
    try:
        found: set[int] = set()
        for task in os.listdir(_CHILDREN):
            found.update(int(pid) for pid in (_CHILDREN / task / "children").read_text().split())
        return found
    except OSError:  # not Linux, a kernel without the file, or a thread that ended meanwhile
        return {child.pid for child in psutil.Process().children()}


def leaked_processes(before: set[int]) -> list[psutil.Process]:
    """Return the living children that are not in ``before``."""
    leaked = []
    for pid in child_pids() - before:
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            command = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if not any(name in command for name in _LONG_LIVED_COMMANDS):
            leaked.append(process)
    return leaked


def leaked_threads(before: set[threading.Thread]) -> list[threading.Thread]:
    """Return the living threads that are neither daemons nor in ``before``."""
    return [
        thread
        for thread in threading.enumerate()
        if thread not in before
        and not thread.daemon
        and thread.is_alive()
        and not thread.name.startswith(_LONG_LIVED_THREADS)
    ]
