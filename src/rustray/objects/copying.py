"""Large copies, by two threads that let all others go on.

One core does not get out of the memory what there is: 100 MiB take 8.1 ms by one thread and 6.5 ms
by two, on two threads of one core (up to some 10 MiB, a second one costs what it saves). And who
copies as Python does lets nothing else of the process go on meanwhile. So do Ray's and Arrow's
stores.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Iterator
from typing import Any, Final

from rustray.objects.mapping import Libc

LARGE_BYTES: Final = 32 << 20
"""From this size on a copy is made so."""
_LOOK_S: Final = 0.05
_NEW, _BEGUN, _DONE = range(3)
_NO_THREAD: Final = "can't start new thread"
"""What Python says then; of no class of its own."""
_WRITABLE: Final = 1


def copy(target: memoryview, source: bytes | memoryview) -> None:
    """Overwrite memory with as many bytes of another place.

    What is raised meanwhile (Ctrl-C, the cancel of a task) comes out of it when nobody writes to
    the target any more.

    Raises:
        ValueError, TypeError: as an assignment to a slice does.
    """
    view = memoryview(source)
    size = view.nbytes
    is_large = size >= LARGE_BYTES and len(os.sched_getaffinity(0)) > 1
    is_fit = target.nbytes == size and not target.readonly
    if not (is_large and is_fit and _is_plain(target) and _is_plain(view)):
        target[:] = source
        return
    with _address_of(target, _WRITABLE) as to, _address_of(view) as start:
        half = size // 2
        helper = _Helper(to + half, start + half, size - half)
        try:
            helper.begin()
            Libc.get().memmove(to, start, half)
            helper.join()
        except BaseException:
            helper.give_up()
            raise


class _Helper:
    """A thread that copies."""

    def __init__(self, to: int, start: int, size: int) -> None:
        self._job = (to, start, size)
        self._thread = threading.Thread(target=self._run, name="rustray-copy", daemon=True)
        self._state = _NEW
        self._is_unwanted = False
        self._end = threading.Event()

    def begin(self) -> None:
        """Start; where the system lets this process have no more threads, copy."""
        try:
            self._thread.start()
        except RuntimeError as error:
            if _NO_THREAD not in str(error):
                raise  # by who handles a signal: the thread may run
            self._run()

    def _run(self) -> None:
        self._state = _BEGUN
        if not self._is_unwanted:
            Libc.get().memmove(*self._job)
        self._state = _DONE
        self._end.set()

    def join(self) -> None:
        """Wait until it has copied."""
        while self._state != _DONE:
            self._end.wait(_LOOK_S)
        if self._thread.ident is not None:
            self._thread.join()  # so that a program that forks has none

    def give_up(self) -> None:
        """Return when it does not copy, and never will, whatever is raised meanwhile.

        Nobody knows whether a thread runs whose start was interrupted. It says that it has begun
        before it looks whether it is wanted, and here it is the other way round: so one of the two
        sees the other.
        """
        is_over = False
        while not is_over:
            with contextlib.suppress(BaseException):
                self._is_unwanted = True
                while self._state == _BEGUN:
                    self._end.wait(_LOOK_S)
                is_over = True


class _Buffer(ctypes.Structure):
    """`Py_buffer`, which is a part of Python's stable interface since 3.11."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


@functools.cache
def _api() -> Any:
    """Return the interpreter's own functions; not `ctypes.pythonapi`, which programs set up."""
    api = ctypes.PyDLL(None)
    api.PyObject_GetBuffer.argtypes = [ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int]
    api.PyBuffer_Release.argtypes = [ctypes.POINTER(_Buffer)]
    api.PyBuffer_Release.restype = None
    return api


@contextlib.contextmanager
def _address_of(memory: memoryview, access: int = 0) -> Iterator[int]:
    """Give the address of contiguous memory, which stays there as long as the block lasts."""
    api, found = _api(), _Buffer()
    api.PyObject_GetBuffer(memory, ctypes.byref(found), access)
    try:
        yield found.buf
    finally:
        api.PyBuffer_Release(ctypes.byref(found))


def _is_plain(view: memoryview) -> bool:
    """Whether it shows bytes, one behind the other."""
    return view.contiguous and view.itemsize == 1 and view.ndim == 1
