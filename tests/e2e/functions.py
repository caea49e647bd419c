"""What the clusters of these tests run; it imports little, for executors load it."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import rustray


@rustray.function
def add(a: int, b: int) -> int:
    """Add."""
    return a + b


@rustray.function
def repeat(text: str, times: int) -> str:
    """Return a text many times over."""
    return text * times


@rustray.function
def work(number: int, seconds: float) -> int:
    """Take some time, and return the number."""
    time.sleep(seconds)  # the task's work
    return number


@rustray.function
def mark(folder: str, number: int, seconds: float) -> int:
    """Leave a file for each time that this is run."""
    Path(folder, f"{number}-{uuid.uuid4().hex}").touch()
    time.sleep(seconds)  # the task's work
    return number


@rustray.function
def count_up(folder: str, length: int, seconds: float) -> Iterator[int]:
    """Yield numbers, one after the other, and leave a file for each time that this is run."""
    Path(folder, f"run-{uuid.uuid4().hex}").touch()
    for number in range(length):
        time.sleep(seconds)  # the task's work
        yield number


@rustray.function
async def acount_up(length: int) -> AsyncIterator[int]:
    """Yield numbers."""
    for number in range(length):
        await asyncio.sleep(0)
        yield number


@rustray.function
def hold(folder: str, number: int) -> int:
    """Say that it runs, and go on until the file ``go`` is there."""
    with Path(folder, f"runs-{number}").open("a") as runs:
        runs.write("x")
    while not Path(folder, "go").exists():
        time.sleep(0.01)  # the task's work
    return number


@rustray.function
def take(folder: str, megabytes: int) -> int:
    """Leave a file for each run, wait for ``go`` (or ``go-N`` for the Nth), and take memory."""
    Path(folder, f"took-{uuid.uuid4().hex}").touch()
    number = len(list(Path(folder).glob("took-*")))
    while not (Path(folder, "go").exists() or Path(folder, f"go-{number}").exists()):
        time.sleep(0.01)  # the task's work
    kept = [os.urandom(1_000_000) for _ in range(megabytes)]
    time.sleep(0.6 if megabytes else 0)  # the task's work: longer than the watch ever waits
    return len(kept)


@rustray.function
def fill(folder: str, number: int, size: int) -> bytes:
    """Wait for the file ``go``, leave a file for each run, and return so many bytes."""
    while not Path(folder, "go").exists():
        time.sleep(0.01)  # the task's work
    Path(folder, f"{number}-{uuid.uuid4().hex}").touch()
    return number.to_bytes(4, "big") + bytes(size)


@rustray.function
def divide(a: float, b: float) -> float:
    """Divide."""
    return a / b


@rustray.function
def process_id() -> int:
    """Say where it runs."""
    return os.getpid()


@rustray.function
async def fetch(seconds: float) -> float:
    """Wait as for a network."""
    await asyncio.sleep(seconds)  # the task's work
    return seconds


def executions(folder: Path) -> dict[int, int]:
    """Return how often each number was run by `mark`."""
    found: dict[int, int] = {}
    for path in folder.glob("*-*"):
        number = int(path.name.partition("-")[0])
        found[number] = found.get(number, 0) + 1
    return found


@rustray.function
def speak(folder: str) -> dict[str, object]:
    """Say how far it is, tell a value, go on until the file ``go`` is there; say what it is."""
    task = rustray.context()
    task.progress(0.25, "a quarter")
    task.emit("loss", {"train": 0.5})
    while not Path(folder, "go").exists():
        time.sleep(0.01)  # the task's work
    task.progress(1.0)
    return {
        "task_id": task.task_id,
        "attempt": task.attempt,
        "fence": task.fence,
        "deadline": task.deadline,
    }


@rustray.function
def diary(path: str, seconds: float) -> int:
    """Write a line of attempt, fence and time every few milliseconds; return the attempt."""
    task = rustray.context()
    until = time.monotonic() + seconds
    with Path(path).open("a", buffering=1) as lines:
        while True:
            now = time.monotonic()  # the same clock in all processes of a machine
            lines.write(f"{task.attempt} {task.fence} {now}\n")
            if now >= until and task.attempt > 1:
                return task.attempt
            time.sleep(0.002)  # the task's work


@rustray.function("read_number")
def read_number(path: str, more: int) -> int:
    """Add to the number in a file; fails while there is none."""
    return int(Path(path).read_text(encoding="utf-8")) + more


@rustray.function
def stubborn(folder: str, looks: bool, catches: bool) -> None:
    """Start processes, and note each attempt to stop this; obey none of them."""
    task = rustray.context()
    notes = Path(folder, "notes")

    def note(what: str) -> None:
        with notes.open("a") as lines:
            lines.write(f"{what}\n")

    if catches:
        signal.signal(signal.SIGTERM, lambda *_: note("SIGTERM"))
    children = [
        subprocess.Popen(["sleep", "600"]),
        subprocess.Popen(["sleep", "600"], start_new_session=True),
        subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 600 & sleep 601"]),
    ]
    Path(folder, "pids").write_text(" ".join(str(each.pid) for each in children))
    was_cancelled = False
    while True:
        try:
            if looks and task.is_cancelled() and not was_cancelled:
                was_cancelled = True
                note("flag")
            time.sleep(0.005)  # the task's work
        except rustray.TaskInterrupt:
            note("interrupt")


@rustray.function
def polite(folder: str, ending: str) -> str:
    """Go on until it is cancelled, and end by itself."""
    Path(folder, "running").touch()
    while not rustray.context().is_cancelled():
        time.sleep(0.005)  # the task's work
    if ending == "raise":
        raise rustray.TaskInterrupt
    return "stopped early"


@rustray.function
def leaves_a_child(folder: str) -> None:
    """Start a process and wait for it; an interrupt ends the wait and not the process."""
    child = subprocess.Popen(["sleep", "600"])
    Path(folder, "pids").write_text(str(child.pid))
    child.wait()


@rustray.function
def spread(folder: str, count: int, stays_s: float) -> int:
    """Start so many daemons, which leave parent, session and group; then stay a while."""
    for _ in range(count):
        middle = os.fork()
        if middle == 0:
            code = errno.EAGAIN
            try:
                os.setsid()
                if os.fork() == 0:
                    _stay(folder)
                code = 0
            finally:
                os._exit(code)
        if os.waitpid(middle, 0)[1]:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    time.sleep(stays_s)  # the task's work
    return count


@rustray.function
def crowd(folder: str, count: int) -> int:
    """Start so many children, and wait for them."""
    for _ in range(count):
        if os.fork() == 0:
            try:
                _stay(folder)
            finally:
                os._exit(0)
    for _ in range(count):
        os.wait()
    return count


def _stay(folder: str) -> None:
    Path(folder, f"pid-{os.getpid()}").touch()
    time.sleep(60)  # the task's work: far longer than any test, so others have to end it


@rustray.function
def chatter(folder: str, name: str) -> int:
    """Print on both streams and from a child; the first attempt kills itself; wait for ``go``."""
    attempt = rustray.context().attempt
    print(f"{name} begins {attempt}")
    print(f"{name} grumbles {attempt}", file=sys.stderr)
    subprocess.run(["sh", "-c", f"echo {name} has a child"], check=True)
    if attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    while not Path(folder, "go").exists():
        time.sleep(0.01)  # the task's work
    sys.stdout.buffer.write(b"\xff\x00 no text\n")
    print(f"{name} ends", end="")
    return attempt
