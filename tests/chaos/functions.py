"""What the cluster of a chaos run computes; each attempt writes its start and its end itself."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import rustray
from chaos.history import LABEL_ENV, Writer, digest, own_writer

_writers: list[Writer] = []


def writer() -> Writer:
    """Return this executor's file; a forked process gets one of its own."""
    if not _writers or _writers[0].pid != os.getpid():
        _writers[:] = [own_writer()]
    return _writers[0]


class Attempt:
    """The attempt that the calling code belongs to."""

    def __init__(self, took: Sequence[object] | None = None) -> None:
        """Write that it has started; ``took``: the values of the references that it takes."""
        task = rustray.context()
        self.number = task.attempt
        self.task_id = task.task_id
        self._named: dict[str, Any] = {"id": task.task_id, "a": task.attempt, "l": task.fence}
        self._place: dict[str, Any] = {"pid": os.getpid(), "w": os.environ[LABEL_ENV]}
        given: dict[str, Any] = {} if took is None else {"took": [digest(value) for value in took]}
        writer().write("start", **self._named, **self._place, **given)

    def crash(self) -> None:
        """Write that the executor is about to die by the task's own doing."""
        writer().write("crash", **self._named, **self._place)

    def fail(self) -> None:
        """Write that it is about to raise."""
        writer().write("raised", **self._named)

    def finish(self, padding: int = 0) -> str:
        """Write the end, and return a result that no other attempt has."""
        value = self.text() + "." * padding
        self.finish_with(value)
        return value

    def text(self) -> str:
        """Return a text that no other attempt has, and no second call."""
        return f"{self._named['id']}:{self.number}:{self._named['l']}:{uuid.uuid4().hex}"

    def finish_with(self, value: object, **more: Any) -> None:
        """Write the end with this result; ``more``: fields of the record."""
        writer().write("finish", **self._named, hash=digest(value), **more)

    def note(self, kind: str, **fields: Any) -> None:
        """Write something else of this attempt."""
        writer().write(kind, **self._named, **fields)


@rustray.function
def step(number: int, seconds: float, padding: int = 0) -> str:
    """Take some time."""
    attempt = Attempt()
    work(seconds)
    return attempt.finish(padding + number % 2)


@rustray.function
def stumble(number: int, how: str, times: int) -> str:
    """Kill the own executor in each of the first ``times`` attempts."""
    attempt = Attempt()
    if attempt.number <= times:
        attempt.crash()
        die(how)
    return attempt.finish(number % 2)


@rustray.function
def flaky(number: int, times: int) -> str:
    """Raise in each of the first ``times`` attempts, for which the task asks to be run again."""
    attempt = Attempt()
    if attempt.number <= times:
        attempt.fail()
        raise ConnectionError(f"number {number}: not yet")
    return attempt.finish(number % 2)


def stream(count: int, seconds: float) -> Iterator[str]:
    """Yield items that are the same in every attempt; the task's own value is their number."""
    attempt = Attempt()
    for index in range(count):
        work(seconds)
        yield item(attempt.task_id, index)
    attempt.finish_with(count)


def item(task_id: str, index: int) -> str:
    """Return what `stream` yields at an index."""
    return f"{task_id}/{index}" + "." * (index % 7 * 100)


@rustray.function
def fail(number: int) -> str:
    """Raise, as users' code does."""
    Attempt().fail()
    raise ValueError(f"number {number} is refused")


@rustray.function
def stubborn(seconds: float) -> str:
    """Swallow every interruption until the time is up."""
    attempt = Attempt()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(0.05)  # the task's work
        except BaseException:
            continue
    return attempt.finish()


def work(seconds: float) -> None:
    """Take some time."""
    if seconds:
        time.sleep(seconds)  # the task's work


def die(how: str) -> None:
    """End this executor: "segfault", "abort", "kill", or "exit"."""
    if how == "segfault":
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "abort":
        os.abort()
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(0)  # also an orderly exit is a crash, where a result was owed
