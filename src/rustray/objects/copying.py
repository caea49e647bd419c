"""Large copies, which let all else of the process go on.

Who copies as Python does holds the interpreter's lock meanwhile: for 100 MiB that is 8 ms in which
no heartbeat goes out. (A second thread would save 15 % of them where both cores are threads of one,
and an interrupt may come wherever one waits for a thread.)
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from typing import Any, Final

from rustray.objects.mapping import Libc

LARGE_BYTES: Final = 32 << 20
"""From this size on a copy is made so."""
_WRITABLE: Final = 1


def copy(target: memoryview, source: bytes | memoryview) -> None:
    """Overwrite memory with as many bytes of another place.

    Raises:
        ValueError, TypeError: as an assignment to a slice does.
    """
    view = memoryview(source)
    is_fit = target.nbytes == view.nbytes >= LARGE_BYTES and not target.readonly
    if not (is_fit and _is_plain(target) and _is_plain(view)):
        target[:] = source
        return
    with _address_of(target, _WRITABLE) as to, _address_of(view) as start:
        Libc.get().memmove(to, start, view.nbytes)


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
