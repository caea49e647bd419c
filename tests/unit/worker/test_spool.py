"""Results that wait for the head: bounded in memory, bounded on disk, and all told in the end."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from helpers.waiting import aeventually
from helpers.worker_bench import WorkerBench, a_class
from rustray.task.codec import decode_failure
from rustray.task.columns import PayloadColumn
from rustray.task.frames import LeaseOutcome
from rustray.task.state import TaskState
from rustray.worker import events as e
from rustray.worker.spool_files import SpoolFiles, SpoolKeeper

KB = 1_000
SLOW = 50_000
"""A run time of which an executor is given one task at a time."""


def bench(memory_kb: int = 800, disk_kb: int = 10_000, result_kb: int = 50) -> WorkerBench:
    """Return a worker whose results are large for it."""
    return WorkerBench(
        {"cpu_cores": 2}, memory_kb * KB, disk_kb * KB, bytes(result_kb * KB)
    ).start()


def weight(b: WorkerBench) -> int:
    """Return what its results take in memory."""
    return b.manager._state.outbox.memory_weight


def away(b: WorkerBench, tasks: int) -> int:
    """Lease tasks, let the head go, and let the worker run what it will."""
    lease = b.grant(tasks)
    b.close()
    return lease


def run_on(b: WorkerBench) -> None:
    """Run tasks, with a disk that does what it is asked for, until none starts any more."""
    for _ in range(1_000):
        b.settle_disk()
        busy = [x.executor_id for x in b.executors.values() if x.tasks]
        for executor_id in busy:
            b.finish(executor_id, run_us=SLOW)
            b.settle_disk()
        if not busy:
            return
    raise AssertionError("it never stops")


def until_read(b: WorkerBench) -> int:
    """Send what is in memory until a sheaf is wanted back; return its number."""
    b.open()
    while not b.reading:
        assert b.collect()
        b.ack()
    return b.reading[0]


# ── The core ──────────────────────────────────────────────────────────────────────────────────


def test_small_results_never_see_the_disk() -> None:
    """A head that is there takes them; nothing is written, nothing is planned."""
    b = bench(result_kb=0)
    b.grant(5_000)
    b.deliver_all()
    b.assert_all_told()
    assert b.manager._state.outbox.waiting.spool.last_number == 0


def test_what_does_not_fit_into_memory_waits_on_disk_and_is_told_in_order() -> None:
    """A hundred results of 50 KB while the head is away: 0.8 MB in memory, the rest on disk."""
    b = bench()
    lease = away(b, 100)
    run_on(b)
    assert weight(b) <= 800 * KB
    assert sum(len(each) for each in b.disk.values()) > 80
    b.open()
    told: list[int] = []
    for _ in range(1_000):
        b.settle_disk()
        assert weight(b) <= 800 * KB
        told += [o.offset for f in b.collect() for o in f.outcomes]
        b.ack()
        if len(told) == 100:
            break
    assert told == list(range(100))
    assert {key[0] for key in b.told} == {lease}
    assert set(b.told.values()) == {TaskState.SUCCEEDED}
    assert not b.repeats
    assert b.disk == {}


def test_a_worker_that_comes_back_names_also_what_is_on_disk() -> None:
    """The head gives none of it to anybody else."""
    b = bench()
    away(b, 60)
    run_on(b)
    b.open()
    b.collect()
    assert b.held is not None
    assert sum(one.count for one in b.held) == 60
    held = dict(b.manager.heartbeat()[2])
    told = len(b.told)
    assert sum(held.values()) == 60 - told


def test_nothing_starts_while_there_is_no_room_and_it_goes_on_when_there_is() -> None:
    """With 2 MB on disk and 0.8 MB in memory, some fifty results have room; none is lost."""
    b = bench(disk_kb=2_000)
    away(b, 200)
    run_on(b)
    assert b.manager.is_full
    assert b.manager.queued > 100
    assert weight(b) <= 800 * KB + 2 * 51 * KB  # what ran when it became full
    disk = b.manager._state.outbox.waiting.spool.disk_weight
    assert 1_500 * KB < disk <= 2_000 * KB
    b.open()
    b.deliver_all()
    assert not b.manager.is_full
    b.assert_all_told()
    assert set(b.told.values()) == {TaskState.SUCCEEDED}


def test_without_a_disk_the_memory_alone_is_the_bound() -> None:
    """Nothing is written, and the worker stops in time."""
    b = bench(disk_kb=0)
    away(b, 200)
    run_on(b)
    assert b.manager.is_full
    assert weight(b) <= 800 * KB + 2 * 51 * KB
    b.open()
    b.deliver_all()
    b.assert_all_told()


def test_a_disk_that_refuses_costs_nothing_and_is_tried_again() -> None:
    """The results stay in memory; five seconds later they are written after all."""
    b = bench()
    away(b, 200)
    for _ in range(1_000):
        busy = [x.executor_id for x in b.executors.values() if x.tasks]
        for executor_id in busy:
            b.finish(executor_id, run_us=SLOW)
        while b.writing:
            b.write(is_stored=False)
        if not busy:
            break
    assert b.manager.is_full
    assert b.disk == {}
    ran = len(b.order)
    b.advance(5.0)
    run_on(b)
    assert b.disk
    assert len(b.order) > ran
    b.open()
    b.deliver_all()
    b.assert_all_told()
    assert set(b.told.values()) == {TaskState.SUCCEEDED}


def test_what_is_damaged_on_disk_counts_as_lost() -> None:
    """Its tasks are reported as lost with their executor, the others as what they are."""
    b = bench()
    away(b, 40)
    run_on(b)
    on_disk = len(b.disk)
    assert on_disk > 2
    until_read(b)
    b.read(is_whole=False)
    frames = []
    for _ in range(100):
        b.settle_disk()
        frames += b.collect()
        b.ack()
    lost = {key for key, state in b.told.items() if state is TaskState.LEASED}
    assert lost == b.damaged
    assert 0 < len(lost) < 10
    assert set(b.told.values()) == {TaskState.LEASED, TaskState.SUCCEEDED}
    b.assert_all_told()
    [info] = {
        decode_failure(o.payloads[0]).code
        for f in frames for o in f.outcomes if o.state is TaskState.LEASED
    }  # fmt: skip
    assert info == "OBJECT_LOST"
    assert b.manager.counters["outcomes_damaged"] == len(lost)


def test_a_sheaf_with_other_outcomes_than_its_own_is_damaged() -> None:
    """A disk that gives back the wrong file is found out without a digest too."""
    b = bench()
    away(b, 40)
    run_on(b)
    number = until_read(b)
    wrong = b.disk[max(b.disk)]
    mine = b.disk[number]
    b.disk[number] = wrong
    b.read()
    b.deliver_all()
    lost = {key for key, state in b.told.items() if state is TaskState.LEASED}
    assert lost == {(one.lease, one.offset) for one in mine}


def test_what_is_needed_before_it_is_written_comes_from_memory() -> None:
    """A slow disk delays nothing, and what it has written in vain is removed."""
    b = bench()
    away(b, 14)
    for _ in range(100):
        for executor_id in [x.executor_id for x in b.executors.values() if x.tasks]:
            b.finish(executor_id, run_us=SLOW)
    assert b.writing
    assert not b.disk
    b.open()
    for _ in range(50):
        b.collect()
        b.ack()
    b.assert_all_told()
    while b.writing:
        b.write()
    assert b.disk == {}
    assert b.manager._state.outbox.waiting.spool.disk_weight == 0


def test_a_drain_waits_for_what_is_on_disk() -> None:
    """The goodbye comes after the last result."""
    b = bench()
    away(b, 40)
    run_on(b)
    b.open()
    b.feed(e.DrainRequested(60.0))
    for _ in range(100):
        assert b.has_drained is (len(b.told) == 40)
        b.settle_disk()
        b.collect()
        b.ack()
        if b.has_left:
            break
    b.assert_all_told()
    assert b.has_drained
    assert b.has_left


def test_a_head_that_acks_nothing_is_sent_no_more_than_a_quarter() -> None:
    """What is under way counts: a head whose disk is slow does not fill the worker's memory."""
    b = bench()
    b.grant(100)
    for _ in range(200):
        for executor_id in [x.executor_id for x in b.executors.values() if x.tasks]:
            b.finish(executor_id, run_us=SLOW)
        b.settle_disk()
        b.collect()
    assert 200 * KB <= b.manager._state.outbox.unacked_weight <= 300 * KB
    assert weight(b) <= 800 * KB
    b.deliver_all()
    b.assert_all_told()


# ── The files ─────────────────────────────────────────────────────────────────────────────────


def outcomes(*sizes: int) -> list[LeaseOutcome]:
    """Outcomes of one task each, a slice of a bigger column among them."""
    found = []
    for place, size in enumerate(sizes):
        column = PayloadColumn.of([b"before", os.urandom(size), b"after"]).slice(1, 2)
        found.append(LeaseOutcome(7, place, TaskState.SUCCEEDED, column, 11))
    return found


def test_a_sheaf_comes_back_as_it_was(tmp_path: Path) -> None:
    """Payloads, states and times, big and empty; the files are private, and gone when read."""
    files = SpoolFiles(tmp_path / "spool", "w-1")
    first, second = outcomes(0, 3, 5_000_000), outcomes(1)
    files.write(1, first)
    files.write(2, second)
    own = tmp_path / "spool" / "w-1"
    assert [own.stat().st_mode & 0o777, own.parent.stat().st_mode & 0o777] == [0o700, 0o700]
    assert {p.name: p.stat().st_mode & 0o777 for p in own.iterdir()} == {
        "1.sheaf": 0o600, "2.sheaf": 0o600, "lock": 0o600,
    }  # fmt: skip
    assert files.read(1) == first
    files.drop(2)
    assert [p.name for p in own.iterdir()] == ["lock"]
    files.close()
    assert list((tmp_path / "spool").iterdir()) == []


@pytest.mark.parametrize("how", ["flip", "cut", "grow", "swap", "gone", "link"])
def test_what_was_changed_on_disk_is_refused(tmp_path: Path, how: str) -> None:
    """One bit is enough; the file is removed all the same."""
    files = SpoolFiles(tmp_path, "w-1")
    files.write(1, outcomes(1_000))
    files.write(2, outcomes(1_000))
    path = tmp_path / "w-1" / "1.sheaf"
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[500] ^= 1
    elif how == "cut":
        del content[-1:]
    elif how == "grow":
        content += b"\0"
    elif how == "swap":
        content[:] = (tmp_path / "w-1" / "2.sheaf").read_bytes()
    path.unlink()
    if how == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere")
    elif how != "gone":
        path.write_bytes(content)
    with pytest.raises((OSError, ValueError)):
        files.read(1)
    assert not path.exists()
    assert len(files.read(2)) == 1
    files.close()


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    """A worker that was killed left its directory; one that works on holds its lock."""
    living, dead = SpoolFiles(tmp_path, "living"), SpoolFiles(tmp_path, "dead")
    living.write(1, outcomes(10))
    dead.write(1, outcomes(10))
    assert dead._own._lock is not None
    os.close(dead._own._lock)  # as the kernel does at the end of a process
    (tmp_path / "half-made").mkdir()
    (tmp_path / "a-file").touch()
    assert SpoolFiles(tmp_path, "new").sweep() == ["dead", "half-made"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-file", "living"]
    assert len(living.read(1)) == 1
    living.close()
    assert SpoolFiles(tmp_path / "absent", "x").sweep() == []


def test_a_directory_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """Results are nobody else's business: says what to do."""
    root = tmp_path / "spool"
    root.mkdir(mode=0o755)
    with pytest.raises(PermissionError, match="chmod 700"):
        SpoolFiles(root, "w").write(1, outcomes(1))
    assert list(root.iterdir()) == []


async def test_the_keeper_answers_each_order_and_clears_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Written, read, damaged, refused: each is told, and what went wrong is in the log."""
    root = tmp_path / "spool"
    told: list[e.SheafWritten | e.SheafRead] = []
    keeper = SpoolKeeper(asyncio.get_running_loop(), SpoolFiles(root, "w"), told.append)
    first = outcomes(100)
    keeper.write(e.WriteSheaf(1, first))
    keeper.write(e.WriteSheaf(2, outcomes(100)))
    await aeventually(lambda: len(told) == 2)
    assert told == [e.SheafWritten(1, True), e.SheafWritten(2, True)]
    (root / "w" / "2.sheaf").write_bytes(b"nonsense")
    keeper.read(e.ReadSheaf(1))
    keeper.read(e.ReadSheaf(2))
    await aeventually(lambda: len(told) == 4)
    assert told[2:] == [e.SheafRead(1, first), e.SheafRead(2, None)]
    assert "damaged on disk" in caplog.text
    (root / "w" / "3.sheaf").mkdir()  # the name is taken
    keeper.write(e.WriteSheaf(3, first))
    await aeventually(lambda: len(told) == 5)
    assert told[4] == e.SheafWritten(3, False)
    assert "cannot be written" in caplog.text
    await keeper.close()
    assert list(root.iterdir()) == []


def test_a_class_weighs_what_it_returns() -> None:
    """Many tasks in one outcome weigh their ends too, so that small results are bounded as well."""
    b = bench(memory_kb=100, result_kb=0)
    b.grant(1, a_class())
    b.finish_all(10)
    b.grant(40_000)
    b.close()
    for _ in range(1_000):
        busy = [x.executor_id for x in b.executors.values() if x.tasks]
        for executor_id in busy:
            b.finish(executor_id, len(b.executors[executor_id].tasks))
        b.settle_disk()
        if not busy:
            break
    assert b.disk
    assert weight(b) <= 100 * KB
    b.open()
    b.deliver_all()
    b.assert_all_told()
