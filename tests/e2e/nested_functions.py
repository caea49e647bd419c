"""Tasks that hand in tasks, for the tests of those."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import rustray


def note(folder: str, name: str) -> None:
    """Leave a line for each time that something runs."""
    with Path(folder, name).open("a") as file:
        file.write(f"{os.getpid()}\n")


def runs(folder: Path, name: str) -> int:
    """Count them."""
    path = folder / name
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for(folder: str, name: str) -> None:
    """Go on when a file is there."""
    while not Path(folder, name).exists():
        time.sleep(0.01)  # the task's work


@rustray.remote
def square(x: int) -> int:
    """Square."""
    return x * x


@rustray.remote
def depth(n: int) -> int:
    """Go down so far, and count on the way back."""
    return 0 if n == 0 else 1 + rustray.get(depth.remote(n - 1))


@rustray.remote
def child(folder: str, name: str) -> str:
    """Say that it runs, and return when it may."""
    note(folder, name)
    wait_for(folder, f"go-{name}")
    return name


@rustray.remote
def parent(folder: str, names: list[str]) -> list[str]:
    """Hand in a child for each name, and wait for all."""
    note(folder, "parent")
    return rustray.get([child.remote(folder, name) for name in names])


@rustray.remote(max_retries=3)
def dies_once(folder: str, first: list[str], later: list[str]) -> list[str]:
    """Hand in children; the first attempt dies while it waits, the next one hands in others."""
    note(folder, "parent")
    again = runs(Path(folder), "parent") > 1
    names = later if again else first
    refs = [child.options(num_cpus=0.25).remote(folder, name) for name in names]
    if not again:
        wait_for(folder, "die")
        os.kill(os.getpid(), signal.SIGKILL)
    return rustray.get(refs)


@rustray.remote
def grandparent(folder: str, name: str) -> list[str]:
    """Have a task hand in a task."""
    note(folder, "grandparent")
    return rustray.get(parent.remote(folder, [name]))


@rustray.remote
def leaves(folder: str) -> str:
    """Hand in a child and end without waiting; returns the child's id."""
    return child.remote(folder, "left").task_id
