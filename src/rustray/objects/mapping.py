"""Memory files in this process's address space, in large pages where there may be some.

To map 10 MiB, to look at each page and to let go of it takes 0.5 ms in pages of 4 KiB, and 0.05 ms
in pages of 2 MiB (the machine this was measured on). Shared memory is given in small ones nearly
everywhere; since Linux 6.1 a process may have those of a file joined (``MADV_COLLAPSE``), whatever
the system's default is. A mapping shows large pages only where it begins at a multiple of theirs.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import threading
import weakref
from typing import Any, Final

LARGE_PAGE: Final = 2 << 20
_PROT_NONE, _PROT_READ, _PROT_WRITE = 0, 1, 2
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE = 1, 2, 0x10, 0x20, 0x4000
_MADV_COLLAPSE: Final = 25
_FAILED: Final = ctypes.c_void_p(-1).value


def map_readable(fd: int, size: int) -> memoryview:
    """Map sealed memory; unlike `mmap`, the mapping keeps no descriptor.

    A thousand arrays in a user's hands are then a thousand mappings, and not as many
    descriptors, of which a process often may have 1,024.

    Raises:
        OSError: no address space or no more mappings.
    """
    # Private, for before Linux 6.7 sealed memory cannot be mapped shared. Nobody writes to it.
    return view_of(_mapped(fd, size, _PROT_READ, _MAP_PRIVATE)).toreadonly()


def map_writable(fd: int, size: int) -> memoryview:
    """Map memory to write to it; the mapping goes with the last view of it.

    Raises:
        OSError: no address space or no more mappings, or it is sealed.
    """
    return view_of(_mapped(fd, size, _PROT_READ | _PROT_WRITE, _MAP_SHARED))


def view_of(memory: Any) -> memoryview:
    """Return a view of a mapping, by what keeps it."""
    return pickle.PickleBuffer(memory).raw()


def join_pages(fd: int, size: int) -> bool:
    """Have the pages of a memory file joined to large ones, but for its end.

    Returns:
        Whether the kernel has done it: it may be too old, or have no large page left.
    """
    size -= size % LARGE_PAGE
    if not size:
        return False
    libc = Libc.get()
    try:
        address = _map(libc, fd, size, _PROT_READ, _MAP_PRIVATE)
    except OSError:
        return False
    try:
        return bool(libc.madvise(address, size, _MADV_COLLAPSE) == 0)
    finally:
        libc.munmap(address, size)


def _mapped(fd: int, size: int, access: int, flags: int) -> Any:
    libc = Libc.get()
    address = _map(libc, fd, size, access, flags)
    # A class made here, for only instances of such can be referred to weakly.
    kind: Any = type("Mapping", (ctypes.c_ubyte * size,), {})
    memory = kind.from_address(address)
    unmap = weakref.finalize(memory, libc.munmap, address, size)
    unmap.atexit = False  # what still looks at it then must find it
    return memory


def _map(libc: Any, fd: int, size: int, access: int, flags: int) -> int:
    if size < LARGE_PAGE:
        return _call(libc, None, size, access, flags, fd)
    span = size + LARGE_PAGE
    spare = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE
    base = _call(libc, None, span, _PROT_NONE, spare, -1)
    start = -(-base // LARGE_PAGE) * LARGE_PAGE
    try:
        _call(libc, start, size, access, flags | _MAP_FIXED, fd)
    except OSError:
        libc.munmap(base, span)
        raise
    end = start + -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    if start > base:
        libc.munmap(base, start - base)
    if base + span > end:
        libc.munmap(end, base + span - end)
    return start


def _call(libc: Any, at: int | None, size: int, access: int, flags: int, fd: int) -> int:
    found = libc.mmap(at, size, access, flags, fd, 0)
    if found is None or found == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot map {size} bytes: {os.strerror(code)}")
    return int(found)


class Libc:
    """The C library, loaded at the first mapping."""

    _found: Any = None
    _lock = threading.Lock()

    @classmethod
    def get(cls) -> Any:
        """Return it."""
        if cls._found is not None:  # without the lock: whoever held it may not be in this fork
            return cls._found
        with cls._lock:
            if cls._found is None:
                libc = ctypes.CDLL(None, use_errno=True)
                libc.mmap.restype = ctypes.c_void_p
                libc.mmap.argtypes = [
                    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                    ctypes.c_long,
                ]  # fmt: skip
                libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
                libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
                libc.memmove.restype = None
                libc.memmove.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
                cls._found = libc
            return cls._found
