"""Large copies: by two threads, whole, and whole before anything is raised."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from types import FrameType, SimpleNamespace

import pytest

from rustray.objects import copying, mapping
from rustray.objects.copying import copy

SIZE = 100_003


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy small things as large ones are, on whatever machine."""
    monkeypatch.setattr(copying, "LARGE_BYTES", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})


@pytest.mark.parametrize("size", [1, 2, 3, SIZE])
def test_a_copy_is_whole(size: int) -> None:
    """Also of memory that may not be written, and next to bytes that stay as they are."""
    source = os.urandom(size)
    for each in (source, memoryview(source), memoryview(bytearray(source))):
        target = bytearray(size + 2)
        copy(memoryview(target)[1:-1], each)
        assert bytes(target) == b"\0" + source + b"\0"


def test_both_places_are_let_go() -> None:
    """Neither can be resized while somebody looks at it."""
    source, target = bytearray(b"x" * SIZE), bytearray(SIZE)
    with memoryview(target) as view, memoryview(source) as other:
        copy(view, other)
    source.clear()
    target.clear()


@pytest.mark.parametrize(
    ("target", "source", "error"),
    [
        (memoryview(bytearray(5)), b"x" * 6, ValueError),
        (memoryview(b"x" * 6), b"y" * 6, TypeError),
        (memoryview(bytearray(16)), memoryview(bytes(16)).cast("d"), ValueError),
    ],
)
def test_what_does_not_fit_is_refused(
    target: memoryview, source: bytes | memoryview, error: type[Exception]
) -> None:
    """As a small copy refuses it, and nothing is written beside."""
    with pytest.raises(error):
        copy(target, source)


def test_what_does_not_lie_together_is_copied() -> None:
    """As a small copy does it."""
    target = bytearray(3)
    copy(memoryview(target), memoryview(b"axbxcx")[::2])
    assert target == b"abc"


def test_a_program_may_set_up_the_interpreter_s_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of `ctypes.pythonapi` are everybody's."""
    monkeypatch.setattr(ctypes.pythonapi.PyObject_GetBuffer, "argtypes", [ctypes.c_int] * 3)
    target = bytearray(SIZE)
    copy(memoryview(target), b"x" * SIZE)
    assert target == b"x" * SIZE


def test_an_error_of_a_signal_s_handler_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: a RuntimeError was taken for the system's that there are no more threads."""
    start = threading.Thread.start

    def start_and_raise(thread: threading.Thread) -> None:
        start(thread)
        raise RuntimeError("a deadline of the program's")

    monkeypatch.setattr(threading.Thread, "start", start_and_raise)
    with pytest.raises(RuntimeError, match="deadline"):
        copy(memoryview(bytearray(SIZE)), b"x" * SIZE)


def test_without_a_second_thread_it_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task may have no threads left."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    source, target = os.urandom(SIZE), bytearray(SIZE)
    copy(memoryview(target), source)
    assert target == source


@pytest.mark.parametrize("has_begun", [True, False])
def test_what_is_raised_meanwhile_waits_for_the_other_thread(
    monkeypatch: pytest.MonkeyPatch, has_begun: bool
) -> None:
    """The memory is somebody else's after that: nobody may write to it then.

    Regression: an interrupt while the thread was being started left it alone with memory that was
    given back.
    """
    begun, ended, interrupted, is_over = [], [], threading.Event(), threading.Event()
    run = copying._Helper._run

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    def raise_in_main_thread() -> None:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert interrupted.wait(20)

    def run_late(helper: copying._Helper) -> None:
        if not has_begun:
            raise_in_main_thread()
        run(helper)
        is_over.set()

    def memmove(*_job: int) -> None:
        begun.append(threading.get_ident())
        if has_begun and threading.current_thread() is not threading.main_thread():
            raise_in_main_thread()
        ended.append(threading.get_ident())

    monkeypatch.setattr(copying._Helper, "_run", run_late)
    monkeypatch.setattr(mapping.Libc, "get", lambda: SimpleNamespace(memmove=memmove))
    before = signal.signal(signal.SIGUSR2, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            copy(memoryview(bytearray(SIZE)), os.urandom(SIZE))
        copies = len(begun)
        assert len(ended) == copies
        assert is_over.wait(20)
        assert len(begun) == copies
    finally:
        signal.signal(signal.SIGUSR2, before)
