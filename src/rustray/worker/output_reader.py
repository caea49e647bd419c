"""The agent's ends of what one executor prints: read in order, at a bounded pace, with owners."""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from rustray.common.records import record
from rustray.task.output import OutputPiece
from rustray.worker.cell import READ, READING, Cell
from rustray.worker.output_frames import FrameSplitter, OwnerFinder, Printed, make_magic

TAIL_BYTES: Final = 8 * 1024
READ_BYTES: Final = 64 * 1024
"""A pipe's capacity: one read takes all that was printed before something else was sent."""
_MAX_DRAIN_READS: Final = 16
_HOLD_NS: Final = 20_000_000
"""Raw bytes after which nothing has come for so long are of the task that runs."""
_PACE_BYTES_PER_S: Final = 4 * 1024 * 1024
_PACE_BURST_BYTES: Final = 1024 * 1024

Place = tuple[int, int]
"""Lease and offset: a task as its executor knows it."""


@record
class Attempt:
    """Whose output it is, in words that last.

    Attributes:
        prefix: Of the task id.
        sequence: Of the task id.
        number: Of the attempt, from 1.
        function: What it runs.
        pid: Of the executor.
    """

    prefix: bytes
    sequence: int
    number: int
    function: str
    pid: int


class OutputPace:
    """How fast the executors of one agent are read together: who prints more waits in its print.

    So an endless printer costs the agent no more than a bounded part of its time.
    """

    def __init__(self) -> None:
        self._debt = 0.0
        self._at = 0.0

    def note(self, count: int, now: float) -> float:
        """Count bytes that were read; return how many seconds to wait before the next read."""
        passed = max(0.0, now - self._at)
        self._debt = max(0.0, self._debt - passed * _PACE_BYTES_PER_S) + count
        self._at = now
        return max(0.0, (self._debt - _PACE_BURST_BYTES) / _PACE_BYTES_PER_S)


@dataclass(slots=True)
class OutputSink:
    """Where what executors print goes.

    Attributes:
        keep: Takes pieces that belong to a task.
        forward: Takes an executor's number and all that it prints.
        pace: How fast it is read.
    """

    keep: Callable[[list[OutputPiece]], None] | None = None
    forward: Callable[[int, bytes], None] | None = None
    pace: OutputPace = field(default_factory=OutputPace)


class OutputReader:
    """Reads stdout and stderr of one executor.

    Raw bytes (of C code and child processes) are given to a task by `OwnerFinder`; where several
    run at a time, to the one that runs alone just then, if one does.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fds: Sequence[int],
        cell: Cell,
        is_alone: bool,
        find: Callable[[Place], Attempt | None],
        sink: OutputSink,
        executor_id: int,
    ) -> None:
        """Begin to listen with `listen`.

        Args:
            loop: On which all happens.
            fds: Read ends of stdout and stderr, not blocking; closed with this.
            cell: Says what runs.
            is_alone: Whether one task runs at a time.
            find: Returns whose a place is; None if it is out no more.
            sink: Where it goes.
            executor_id: Whose it is.
        """
        self._loop = loop
        self._fds = tuple(fds)
        self._cell = cell
        self._is_alone = is_alone
        self._find = find
        self._sink = sink
        self._executor_id = executor_id
        magic = make_magic(cell.drawn)
        self._splitters = (FrameSplitter(magic), FrameSplitter(magic))
        self._finders = (OwnerFinder(), OwnerFinder())
        self._looking: asyncio.TimerHandle | None = None
        self._poll = select.poll()
        self._open = set(self._fds)
        for fd in self._fds:
            self._poll.register(fd, select.POLLIN)
        self._tail = self._note = b""
        self._tail_of: Place | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._on_readable: Callable[[], None] = _nothing

    def listen(self, on_readable: Callable[[], None]) -> None:
        """Call this when there is something to `take`, but not faster than the pace allows."""
        self._on_readable = on_readable
        for fd in self._open:
            self._loop.add_reader(fd, on_readable)

    @property
    def has_some(self) -> bool:
        """Whether something was printed and is not read yet."""
        return bool(self._open and self._poll.poll(0))

    def take(self, ended: Place | None = None) -> int:
        """Read what is there, a pipe's content of each stream; return how many bytes it was.

        Args:
            ended: A task that has just ended: raw bytes are its own if none runs.
        """
        owner = self._cell.read() or ended
        read = [self._read(is_stderr) for is_stderr in (0, 1)]
        now_ns = time.monotonic_ns()
        found: list[tuple[int, bool, Printed]] = []
        for is_stderr, data in enumerate(read):
            finder = self._finders[is_stderr]
            printed = self._splitters[is_stderr].feed(data) if data else []
            if self._is_alone:
                printed = finder.feed(printed, now_ns)
                if finder.has_held:
                    # Nothing came after them for a while, so who wrote them runs on.
                    printed += finder.release(owner, now_ns - _HOLD_NS)
            elif owner is not None:
                printed = [_owned(each, owner) for each in printed]
            self._note_moments(found, printed, bool(is_stderr), now_ns)
        self._hand_on(found, now_ns)
        if self._looking is None and any(finder.has_held for finder in self._finders):
            self._looking = self._loop.call_later(2 * _HOLD_NS / 1e9, self._look_again)
        return sum(map(len, read))

    def _look_again(self) -> None:
        self._looking = None
        self.take()

    @staticmethod
    def _note_moments(
        found: list[tuple[int, bool, Printed]],
        printed: Sequence[Printed],
        is_stderr: bool,
        now_ns: int,
    ) -> None:
        at_ns = 0
        for each in printed:
            at_ns = max(at_ns, each.at_ns or now_ns)
            found.append((at_ns, is_stderr, each))

    def rest(self, count: int) -> None:
        """Pause the listening if so many bytes were too many."""
        wait_s = self._sink.pace.note(count, self._loop.time())
        if wait_s and self._pause is None:
            for fd in self._open:
                self._loop.remove_reader(fd)
            self._pause = self._loop.call_later(wait_s, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self.listen(self._on_readable)

    def _read(self, is_stderr: int) -> bytes:
        fd = self._fds[is_stderr]
        if fd not in self._open:
            return b""
        words = self._cell.words
        words[READING] += 1
        try:
            data = os.read(fd, READ_BYTES)
            words[READ + is_stderr] += len(data)
        except BlockingIOError:
            return b""
        finally:
            words[READING] += 1
        if not data:
            self._open.discard(fd)
            self._poll.unregister(fd)
            self._loop.remove_reader(fd)
        return data

    def _hand_on(self, found: list[tuple[int, bool, Printed]], now_ns: int) -> None:
        if not found:
            return
        found.sort(key=_moment)  # each stream is in order already, and stays so
        wall_s = time.time()
        pieces: list[OutputPiece] = []
        whose: dict[Place, Attempt | None] = {}
        for at_ns, is_stderr, printed in found:
            place = None if printed.lease is None else (printed.lease, printed.offset)
            self._add_to_tail(place, printed.data)
            if place is None:
                continue
            if place not in whose:
                whose[place] = self._find(place)
            attempt = whose[place]
            if attempt is not None:
                at_s = wall_s - max(0, now_ns - at_ns) / 1e9
                pieces.append(
                    OutputPiece(
                        attempt.prefix, attempt.sequence, attempt.number, is_stderr, at_s,
                        printed.data, attempt.function, attempt.pid,
                    )
                )  # fmt: skip
        sink = self._sink
        if sink.keep is not None and pieces:
            sink.keep(pieces)
        if sink.forward is not None:
            sink.forward(self._executor_id, b"".join(printed.data for _, _, printed in found))

    # ── The end of what the last task printed ─────────────────────────────────────────────

    def _add_to_tail(self, place: Place | None, data: bytes) -> None:
        if place != self._tail_of:
            self._tail, self._tail_of = b"", place
        self._tail = (self._tail + data)[-TAIL_BYTES:]

    def add_note(self, data: bytes) -> None:
        """Add something of ours to the tail."""
        self._note += data

    @property
    def has_tail(self) -> bool:
        """Whether there is a tail that somebody could forget."""
        return bool(self._tail)

    def settle(self, lease: int, low: int, high: int) -> None:
        """Forget the tail of a task that has ended: the next may be somebody else's."""
        place = self._tail_of
        if place is None or (place[0] == lease and low <= place[1] < high):
            self._tail, self._tail_of = b"", None

    def drain(self) -> None:
        """Take all that a dead executor has printed, within bounds."""
        for _ in range(_MAX_DRAIN_READS):
            if not (self.has_some and self.take()):
                break
        owner = self._cell.read()
        now_ns = time.monotonic_ns()
        found: list[tuple[int, bool, Printed]] = []
        for is_stderr, (splitter, finder) in enumerate(
            zip(self._splitters, self._finders, strict=True)
        ):
            printed = finder.feed(splitter.rest(), now_ns) + finder.release(owner, now_ns)
            self._note_moments(found, printed, bool(is_stderr), now_ns)
        self._hand_on(found, now_ns)

    def tail(self) -> str:
        """Return the last 8 KiB of the task that printed last."""
        return (self._tail + self._note)[-TAIL_BYTES:].decode("utf-8", "replace")

    def close(self) -> None:
        """Let go of everything."""
        for timer in (self._pause, self._looking):
            if timer is not None:
                timer.cancel()
        for fd in self._fds:
            self._loop.remove_reader(fd)
            os.close(fd)
        self._open.clear()


def _owned(printed: Printed, owner: Place) -> Printed:
    return printed if printed.lease is not None else Printed(printed.data, *owner)


def _moment(found: tuple[int, bool, Printed]) -> int:
    return found[0]


def _nothing() -> None:
    """Stand in until somebody listens."""
