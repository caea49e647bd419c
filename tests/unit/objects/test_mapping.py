"""Where memory files are mapped, and in what pages."""

from __future__ import annotations

import ctypes
import gc
import os
import re
from pathlib import Path
from typing import Any, cast

import pytest

from rustray.objects import mapping
from rustray.objects.mapping import LARGE_PAGE, join_pages, map_readable, map_writable


def memory_file(size: int) -> int:
    fd = os.memfd_create("rustray-test", os.MFD_CLOEXEC)
    os.posix_fallocate(fd, 0, size)
    return fd


def address_of(view: memoryview) -> int:
    return ctypes.addressof(cast("Any", view.obj))


def reserved() -> int:
    """Bytes of address space of this process."""
    found = re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) << 10


def in_large_pages(address: int) -> int:
    """Bytes that a mapping shows in large pages."""
    smaps = Path("/proc/self/smaps").read_text(encoding="utf-8")
    (own,) = re.findall(rf"^{address:x}-(?:.*\n(?![0-9a-f]+-))+.*", smaps, re.MULTILINE)
    return sum(int(kib) << 10 for kib in re.findall(r"(?:Shmem|File)PmdMapped:\s+(\d+)", own))


@pytest.mark.parametrize("size", [LARGE_PAGE, 5 * LARGE_PAGE + 4097])
def test_what_is_large_begins_where_a_large_page_can(size: int) -> None:
    """What was reserved around it is let go of, and the mapping with its last view."""
    fd = memory_file(size)
    before = reserved()
    view = map_writable(fd, size)
    assert address_of(view) % LARGE_PAGE == 0
    view[:3], view[-3:] = b"abc", b"xyz"
    seen = map_readable(fd, size)
    assert (bytes(seen[:3]), bytes(seen[-3:]), len(seen), seen.readonly) == (
        b"abc", b"xyz", size, True,
    )  # fmt: skip
    assert reserved() - before < 2 * size + LARGE_PAGE
    del view, seen
    gc.collect()
    assert reserved() - before < LARGE_PAGE
    os.close(fd)


def test_what_cannot_be_mapped_leaves_nothing_reserved() -> None:
    """An error, and the address space is as before."""
    size = 8 * LARGE_PAGE
    before = reserved()
    for _ in range(20):
        with pytest.raises(OSError, match="cannot map"):
            map_readable(-1, size)
    assert reserved() - before < size


def test_once_the_library_is_loaded_nobody_waits_for_it() -> None:
    """Regression (review): a fork may be made while another thread has the lock."""
    fd = memory_file(4096)
    map_readable(fd, 4096)
    with mapping.Libc._lock:
        assert len(map_readable(fd, 4096)) == 4096
    os.close(fd)


def test_pages_are_joined_as_far_as_they_fill_large_ones() -> None:
    """Content stays, readers see large pages, and what is too small is left as it is."""
    size = 3 * LARGE_PAGE + 4096
    fd = memory_file(size)
    writer = map_writable(fd, size)
    writer[:] = bytes(range(256)) * (size // 256)
    content = bytes(writer)
    if not join_pages(fd, size):
        pytest.skip("this kernel joins no pages of shared memory (Linux 6.1 does)")
    seen = map_readable(fd, size)
    assert bytes(seen) == content
    assert in_large_pages(address_of(seen)) == 3 * LARGE_PAGE
    assert not join_pages(fd, LARGE_PAGE - 1)
    os.close(fd)
