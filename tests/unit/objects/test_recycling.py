"""Memory is written to again when nobody reads it any more, and never before."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator

import pytest

from rustray.objects import mapping, recycling
from rustray.objects.recycling import MIN_BYTES, Pool
from rustray.objects.segment import Segment

SIZE = 2 * MIN_BYTES
_READER = """
import sys
from rustray.objects.segment import Segment
segment = Segment.open_of(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
view = segment.view()
segment.close()
print(bytes(view[:1]).decode(), flush=True)
sys.stdin.read()
print(bytes(view[:1]).decode(), flush=True)
"""


@pytest.fixture(autouse=True)
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """A pool of the test's own."""
    gc.collect()
    made = Pool()
    monkeypatch.setattr("rustray.objects.segment.POOL", made)
    if not made._is_possible():
        pytest.skip("this kernel does not tell who reads shared memory: nothing is recycled")
    yield made
    gc.collect()
    made.clear()
    assert made.size == 0


def inode(segment: Segment) -> int:
    return os.fstat(segment.fileno()).st_ino


def test_what_nobody_reads_is_written_to_again(pool: Pool) -> None:
    """The same memory, with the new content and the new size."""
    first = Segment.write([b"a" * SIZE])
    where = inode(first)
    first.close()
    second = Segment.write([b"b" * 1000, b"c" * (SIZE - 2000)])
    assert inode(second) == where
    assert bytes(second.view()) == b"b" * 1000 + b"c" * (SIZE - 2000)
    second.close()
    assert inode(Segment.write([b"d" * SIZE * 4])) != where  # too large for it
    assert inode(Segment.write([b"e" * (SIZE * 3 // 4)])) == where
    assert pool.size >= SIZE * 5


@pytest.mark.parametrize("holder", ["segment", "view", "slice", "duplicate"])
def test_what_somebody_reads_is_left_alone(pool: Pool, holder: str) -> None:
    """A descriptor, a copy of one, a mapping, a part of one: each keeps the content."""
    first = Segment.write([b"a" * SIZE])
    where = inode(first)
    view = first.view()
    held: object = first
    if holder == "duplicate":
        held = os.dup(first.fileno())
    elif holder == "slice":
        held = view[5:7]
    elif holder == "view":
        held = view
    probe = view[:1] if holder == "segment" else None
    if holder != "segment":
        first.close()
    del first, view
    second = Segment.write([b"b" * SIZE])
    assert inode(second) != where
    if isinstance(held, int):
        assert os.pread(held, 2, 0) == b"aa"
        os.close(held)
    elif isinstance(held, Segment):
        assert bytes(held.view()[:2]) == b"aa"
    elif isinstance(held, memoryview):
        assert bytes(held[:2]) == b"aa"
    second.close()
    del held, probe
    gc.collect()
    found = {inode(Segment.write([b"c" * SIZE])) for _ in range(3)}
    assert where in found


def test_readers_cannot_make_it_writable(pool: Pool) -> None:
    """Neither by their descriptor nor by opening it anew; nor can they cut it."""
    segment = Segment.write([b"a" * SIZE])
    assert pool.size
    with pytest.raises(PermissionError):
        mmap.mmap(segment.fileno(), SIZE)
    writable = os.open(f"/proc/self/fd/{segment.fileno()}", os.O_RDWR)
    try:
        for change in (
            lambda: mmap.mmap(writable, SIZE),
            lambda: os.pwrite(writable, b"x", 0),
            lambda: os.ftruncate(writable, 1),
            lambda: os.ftruncate(writable, SIZE * 10),
        ):
            with pytest.raises(PermissionError):
                change()
    finally:
        os.close(writable)
    assert bytes(segment.view()[:1]) == b"a"


def test_a_reader_in_another_process_counts_until_it_dies(pool: Pool) -> None:
    """Its mapping is enough, without any descriptor; SIGKILL ends it, and nobody has to say so."""
    first = Segment.write([b"a" * SIZE])
    where = inode(first)
    with subprocess.Popen(
        [sys.executable, "-c", _READER, str(os.getpid()), str(first.fileno()), str(SIZE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "a\n"
        first.close()
        second = Segment.write([b"b" * SIZE])
        assert inode(second) != where
        reader.kill()
    assert reader.returncode == -signal.SIGKILL
    assert inode(Segment.write([b"c" * SIZE])) == where


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_neither_uses_nor_disturbs_it(pool: Pool) -> None:
    """It has readers of its own, and no memory of its parent's to write to."""
    view = Segment.write([b"a" * SIZE]).view()
    idle = Segment.write([b"b" * SIZE])
    where = inode(idle)
    idle.close()
    said, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            own = Segment.write([b"c" * SIZE])
            is_right = inode(own) != where and bytes(view[:1]) == b"a" and pool.size >= SIZE
            code = 0 if is_right else 2
            os.write(say, b"x")
        finally:
            os._exit(code)
    os.close(say)
    assert os.read(said, 1) == b"x"
    os.close(said)
    _, status = os.waitpid(pid, 0)
    assert status == 0
    assert inode(Segment.write([b"d" * SIZE])) == where
    assert bytes(view[:1]) == b"a"


def test_the_budget_holds_and_what_is_idle_goes(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many objects are held; and after a while without use nothing is kept."""
    pool.budget = 5 * SIZE
    held = [Segment.write([bytes([i]) * SIZE]) for i in range(50)]
    assert pool.size <= pool.budget
    assert [bytes(each.view()[:1])[0] for each in held] == list(range(50))
    assert Segment.write([b"x" * SIZE * 6]).size == SIZE * 6  # more than the budget: never kept
    assert pool.size <= pool.budget
    pool.trim()
    assert pool.size > 0
    monkeypatch.setattr(recycling, "IDLE_S", -1.0)
    pool.trim()
    assert pool.size == 0


def test_where_the_kernel_does_not_tell_memory_is_sealed_for_good(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each object gets memory of its own then."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "no such seal")

    pool._works = None
    monkeypatch.setattr("rustray.objects.recycling.fcntl.fcntl", refuse)
    assert not pool._is_possible()
    monkeypatch.undo()
    pool._works = False
    monkeypatch.setattr("rustray.objects.segment.POOL", pool)
    first = Segment.write([b"a" * SIZE])
    where = inode(first)
    first.close()
    second = Segment.write([b"b" * SIZE])
    assert inode(second) != where
    with pytest.raises(PermissionError):
        os.pwrite(second.fileno(), b"x", 0)
    assert pool.size == 0


def test_threads_that_write_and_read_at_once_see_their_own_content(pool: Pool) -> None:
    """Random sizes and life times; each view keeps what was written for it."""
    pool.budget = 20 * SIZE
    seed = 20_261_126
    failures: list[str] = []

    def work(number: int) -> None:
        chance = random.Random(seed + number)
        held: deque[tuple[bytes, memoryview]] = deque()
        for _ in range(60):
            content = chance.randbytes(16) * chance.randint(SIZE // 16, SIZE // 8)
            segment = Segment.write([content[:100], memoryview(content)[100:]])
            held.append((content, segment.view()))
            segment.close()
            while len(held) > chance.randint(0, 6):
                expected, view = held.popleft()
                if view != expected:
                    failures.append(f"seed {seed}, thread {number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failures == []


def test_what_is_used_often_is_joined_to_large_pages_once(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the third use, by who writes then; whether the kernel does it changes nothing."""
    joined: list[int] = []

    def join(_fd: int, size: int) -> bool:
        joined.append(size)
        return False

    monkeypatch.setattr(mapping, "join_pages", join)
    seen = []
    for number in range(6):
        Segment.write([bytes([number]) * SIZE]).close()
        seen.append(len(joined))
    assert seen == [0, 0, 1, 1, 1, 1]
    assert joined == [pool._arenas[0].capacity]


def test_an_interrupt_while_pages_are_joined_gives_the_memory_back(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression (review): it stayed taken for good, and counted against the budget."""

    def interrupt(_fd: int, _size: int) -> bool:
        raise KeyboardInterrupt

    for _ in range(2):
        Segment.write([b"a" * SIZE]).close()
    monkeypatch.setattr(mapping, "join_pages", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Segment.write([b"b" * SIZE])
    (arena,) = pool._arenas
    assert not arena.is_taken
    Segment.write([b"c" * SIZE]).close()
    assert pool._arenas == [arena]
