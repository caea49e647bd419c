"""How much memory a process and those that it started hold, as the kernel counts it.

Counted is what the kernel cannot take back by itself: anonymous and shared memory, also what of it
is swapped out. Files that are mapped (libraries, a data set that is read through ``mmap``) are not.

A task is charged for what its executor holds *more* than before the task: pages that the executor
shares with the zygote since its fork, and what earlier tasks have left in it, are no fault of it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final, NamedTuple

PROC: Final = Path("/proc")
_KIB: Final = 1024
_START_FIELD: Final = 19
"""Of ``/proc/PID/stat``, counted from the state on: in ticks since the boot."""
_HELD: Final = re.compile(rb"^(?:RssAnon|RssShmem|VmSwap):\s*(\d+) kB", re.MULTILINE)
_RESIDENT: Final = re.compile(rb"^VmRSS:\s*(\d+) kB", re.MULTILINE)
_SHARE: Final = re.compile(rb"^(?:Pss_Anon|Pss_Shmem|SwapPss):\s*(\d+) kB", re.MULTILINE)


class Subject(NamedTuple):
    """One executor to measure.

    Attributes:
        pid: Its process id, which is its session's too.
        base: Bytes that it held before its task.
        limit: Bytes that the task may hold.
        since: When the task came, as `boot_ticks` has it: what an earlier one has left running is
            not counted.
    """

    pid: int
    base: int
    limit: int
    since: int = 0


class Reading(NamedTuple):
    """What was found.

    Attributes:
        own: Bytes that the executor itself holds; 0 if it is gone.
        grown: Bytes that it and its descendants hold more than the base; below the limit it may
            be too large, since memory that several of them share counts for each.
    """

    own: int
    grown: int


def held_bytes(pid: int, proc: Path = PROC) -> int:
    """Return the bytes that one process holds; 0 if it is gone.

    Args:
        pid: Its process id.
        proc: Where processes are described; another one in tests.
    """
    text = _read(proc / str(pid) / "status")
    found = _HELD.findall(text)
    # A kernel that does not tell them apart says only how much is resident.
    return _KIB * sum(map(int, found or _RESIDENT.findall(text)))


def share_bytes(pid: int, proc: Path = PROC) -> int:
    """Return what one process holds, with memory that several share divided among them.

    The kernel walks through the page tables for it, about 1 ms for each GB.
    """
    found = _SHARE.findall(_read(proc / str(pid) / "smaps_rollup"))
    return _KIB * sum(map(int, found)) if found else held_bytes(pid, proc)


def measure(subjects: Iterable[Subject], proc: Path = PROC) -> list[Reading]:
    """Measure executors, each with its descendants; takes about 20 µs a process of the machine."""
    wanted = list(subjects)
    families = descendants({subject.pid for subject in wanted}, proc)
    found = []
    for each in wanted:
        family = families.get(each.pid, {})
        young = [pid for pid, started in family.items() if started >= each.since]
        found.append(_measure_one(each, young, proc))
    return found


def _measure_one(subject: Subject, family: Collection[int], proc: Path) -> Reading:
    own = held_bytes(subject.pid, proc)
    # What an earlier task had left may be freed meanwhile; it is no allowance.
    base = min(subject.base, own)
    grown = own - base
    if not family:
        return Reading(own, grown)
    bound = grown + sum(held_bytes(pid, proc) for pid in family)
    if bound <= subject.limit:
        return Reading(own, bound)
    # Children of a fork share most pages with their parent, so the sum says too much. Of the
    # shares, the base is taken off whole: what is wrong by that is in the task's favour.
    shares = sum(share_bytes(pid, proc) for pid in (subject.pid, *family))
    return Reading(own, max(grown, shares - base))


def boot_ticks() -> int:
    """Return the present time as the kernel notes the start of a process."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def descendants(roots: Collection[int], proc: Path = PROC) -> dict[int, dict[int, int]]:
    """Return the processes below each root, or in its session, and when each was started.

    Roots without any are left out.
    """
    below: dict[int, list[int]] = {}
    started: dict[int, int] = {}
    for entry in os.listdir(proc):
        if not entry.isdigit():
            continue
        fields = _read(proc / entry / "stat").rpartition(b")")[2].split()
        if len(fields) > _START_FIELD:
            started[int(entry)] = int(fields[_START_FIELD])
            pid, parent, session = int(entry), int(fields[1]), int(fields[3])
            below.setdefault(parent, []).append(pid)
            if session in roots and session != pid:
                below.setdefault(session, []).append(pid)
    families = {root: _all_below(root, below) for root in roots}
    return {root: {pid: started[pid] for pid in pids} for root, pids in families.items() if pids}


def _all_below(root: int, below: dict[int, list[int]]) -> set[int]:
    found: set[int] = set()
    pending = [root]
    while pending:
        for pid in below.get(pending.pop(), ()):
            if pid != root and pid not in found:
                found.add(pid)
                pending.append(pid)
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended meanwhile
        return b""
