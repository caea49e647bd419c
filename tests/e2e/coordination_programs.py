"""Programs and tasks of `test_coordination`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import rustray


@rustray.remote
def hold_until(name: str, folder: str) -> int:
    """Hold the lock until the file ``go`` is there; return the fence."""
    with rustray.Lock(name) as lock:
        Path(folder, f"held-{lock.fence}").touch()
        while not Path(folder, "go").exists():
            time.sleep(0.01)  # the task's work
        lock.check()
        return lock.fence


@rustray.remote
def acquire_and_say(name: str) -> int:
    """Return the fence."""
    with rustray.Lock(name) as lock:
        return lock.fence


def hold_for_ever(name: str, folder: str) -> None:
    """Hold a lock and an item, and wait for more items, until somebody kills this program."""
    rustray.init()
    lock = rustray.Lock(name)
    lock.acquire()
    rustray.Queue(name).get()
    Path(folder, f"held-{lock.fence}").touch()
    rustray.Queue(name + "-empty").get()


if __name__ == "__main__":
    hold_for_ever(*sys.argv[1:])
