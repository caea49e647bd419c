"""Sealed memory: shared without a copy, unchangeable, and gone with the last who holds it."""

from __future__ import annotations

import gc
import mmap
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rustray.objects.recycling import POOL
from rustray.objects.segment import NotASegment, Segment

_OWNER = """
import sys, time
from rustray.objects.segment import Segment
segment = Segment.write([b"hello " * 100_000])
print(segment.fileno(), segment.size, flush=True)
time.sleep(600)
"""


def _names() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if "rustray" in name}


def test_what_was_written_is_read_and_nobody_can_change_it() -> None:
    """Parts come one after the other; write, shrink, grow and a writable mapping are refused."""
    segment = Segment.write([b"abc", memoryview(bytes(5000)), b"", b"end"])
    assert segment.size == 5006
    view = segment.view()
    assert bytes(view) == b"abc" + bytes(5000) + b"end"
    assert view.readonly
    fd = segment.fileno()
    for change in (
        lambda: os.pwrite(fd, b"x", 0),
        lambda: os.ftruncate(fd, 1),
        lambda: os.ftruncate(fd, 10_000),
        lambda: mmap.mmap(fd, 5006),
    ):
        with pytest.raises(PermissionError):
            change()
    segment.close()
    with pytest.raises(ValueError, match="closed"):
        segment.fileno()


def test_a_mapping_outlives_its_segment_and_goes_with_the_last_view() -> None:
    """An array in a user's hands keeps the memory, without a descriptor, and no longer."""
    gc.collect()  # of other tests
    before = set(os.listdir("/proc/self/fd"))
    segment = Segment.write([np.arange(100_000, dtype=np.int64).data.cast("B")])
    array = np.frombuffer(segment.view(), dtype=np.int64)
    segment.close()
    gc.collect()
    POOL.clear()  # which keeps memory to write to it again
    assert set(os.listdir("/proc/self/fd")) <= before
    assert array[99_999] == 99_999
    address = array.ctypes.data

    def is_mapped() -> bool:
        lines = Path("/proc/self/maps").read_text().splitlines()
        here = [line for line in lines if line.startswith(f"{address:x}-")]
        assert all("r--p" in line and "/memfd:rustray-object" in line for line in here)
        return bool(here)

    assert is_mapped()
    part = array[:10]
    del array
    gc.collect()
    assert is_mapped()
    del part
    gc.collect()
    assert not is_mapped()


def test_another_process_opens_it_by_number_and_its_death_leaves_nothing() -> None:
    """By /proc/PID/fd/N of the same user; after SIGKILL the reader's mapping still stands."""
    before = _names()
    with subprocess.Popen(
        [sys.executable, "-c", _OWNER],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as owner:
        try:
            assert owner.stdout is not None
            fd, size = map(int, owner.stdout.readline().split())
            segment = Segment.open_of(owner.pid, fd, size)
            view = segment.view()
            with pytest.raises(NotASegment, match=r"has \d+ bytes"):
                Segment.open_of(owner.pid, fd, 2 * size)
            assert _names() == before
        finally:
            owner.kill()
    assert owner.returncode == -signal.SIGKILL
    assert bytes(view[:6]) == b"hello "
    assert bytes(view[-6:]) == b"hello "
    assert _names() == before
    with pytest.raises(OSError, match="No such"):
        Segment.open_of(owner.pid, fd, size)


@pytest.mark.parametrize("kind", ["file", "unsealed", "half", "pipe", "empty", "short"])
def test_what_could_change_or_shrink_under_a_reader_is_refused(tmp_path: Path, kind: str) -> None:
    """A task can send us any descriptor: to map one that is cut later would be a SIGBUS."""
    import fcntl

    if kind == "file":
        fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"12345")
    elif kind == "pipe":
        fd, other = os.pipe()
        os.close(other)
    else:
        fd = os.memfd_create("x", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(fd, {"empty": b"", "short": b"1234"}.get(kind, b"12345"))
        every = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        seals = {"unsealed": 0, "half": fcntl.F_SEAL_WRITE}.get(kind, every)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    with pytest.raises(NotASegment):
        Segment.adopt(fd, 0 if kind == "empty" else 5)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_sizes_out_of_range_are_refused() -> None:
    """Nothing, and more than any machine has."""
    with pytest.raises(ValueError, match="1 to"):
        Segment.write([])
    with pytest.raises(ValueError, match="1 to"):
        Segment.fill(1 << 60, lambda _: None)
    with pytest.raises(ValueError, match="3 bytes were written, not 4"):
        Segment.fill(4, lambda fd: os.truncate(fd, 3))


def test_more_than_2_gib_is_written_mapped_and_read() -> None:
    """Sparse, so that it costs no memory: sizes and offsets beyond 2**31 are right."""
    size = (5 << 30) + 7

    def sparse(fd: int) -> None:
        os.pwrite(fd, b"end", size - 3)

    segment = Segment.fill(size, sparse)
    view = segment.view()
    assert len(view) == size
    assert bytes(view[-3:]) == b"end"
    assert bytes(view[3 << 30 : (3 << 30) + 3]) == bytes(3)


def test_many_parts_are_written_in_order() -> None:
    """More than one call of the kernel takes."""
    parts = [bytes([i % 251]) * (i % 7) for i in range(3_000)]
    assert bytes(Segment.write(parts).view()) == b"".join(parts)


def test_no_descriptors_left_is_an_error_and_nothing_leaks() -> None:
    """EMFILE reaches the caller."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()  # of other tests
    before = set(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            Segment.write([b"x"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert set(os.listdir("/proc/self/fd")) <= before


def test_no_address_space_is_an_error() -> None:
    """The kernel's refusal to map comes as OSError, not as a crash."""
    segment = Segment.fill(1 << 45, lambda fd: os.ftruncate(fd, 1 << 45))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 44, hard))
    try:
        with pytest.raises(OSError, match="cannot map"):
            segment.view()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
