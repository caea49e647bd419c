"""The chunks that one executor was given and has not reported in full."""

from __future__ import annotations

from rustray.task.frames import LeaseRange
from rustray.worker import wire
from rustray.worker.output_reader import Attempt, Place


class _Out:
    """A chunk that is out: its place in the lease; what of it is kept, and what is unsettled."""

    __slots__ = (
        "attempt", "count", "first", "kept", "lease", "left", "name", "offset", "prefix", "settled",
    )  # fmt: skip

    def __init__(self, chunk: wire.RunChunk, count: int, name: str) -> None:
        self.lease = chunk.lease
        self.offset = chunk.offset
        self.count = self.kept = self.left = count
        self.settled = 0
        self.prefix = chunk.prefix
        self.first = chunk.first
        self.attempt = chunk.attempt
        self.name = name


class ChunksOut:
    """Numbers chunks from 1, and knows which tasks of them are open.

    Attributes:
        number: Of the last one.
        bundles: How many of more than one task are out.
    """

    def __init__(self) -> None:
        self.number = self.bundles = 0
        self._out: dict[int, _Out] = {}

    def __bool__(self) -> bool:
        return bool(self._out)

    def add(self, chunk: wire.RunChunk, name: str) -> int:
        """Note that a chunk of this function is sent; returns its number."""
        self.number += 1
        count = len(chunk.payloads)
        self._out[self.number] = _Out(chunk, count, name)
        if count > 1:
            self.bundles += 1
        return self.number

    def find(self, lease: int, offset: int) -> tuple[int, int] | None:
        """Return the number of the chunk that has a task, and its place there; None: none has."""
        for number, out in self._out.items():
            if out.lease == lease and out.offset <= offset < out.offset + out.kept:
                return number, offset - out.offset
        return None

    def settle(self, number: int, count: int) -> None:
        """Note that so many tasks of a chunk have ended.

        Raises:
            KeyError: there is no such chunk.
        """
        out = self._out[number]
        out.left -= count
        # In order where one runs at a time, and only there the cell names a task for sure.
        out.settled += count
        if out.left <= 0:
            self._forget(number, out)

    def drop(self, number: int) -> LeaseRange:
        """Forget a chunk of one task that is not run; returns which.

        Raises:
            KeyError: there is no such chunk.
            ValueError: it has several tasks.
        """
        out = self._out[number]
        if out.count != 1:
            raise ValueError("a chunk of several tasks follows none")
        del self._out[number]
        return LeaseRange(out.lease, out.offset, 1)

    def take_back(self, upto: int, found: int, begun: int) -> list[LeaseRange]:
        """Forget what never starts, and was not forgotten before.

        Args:
            upto: Number of the last chunk that this is about.
            found: Of that which was begun last.
            begun: How many of its tasks, at most; none of the chunks after it.
        """
        ranges = []
        for number in [each for each in self._out if found <= each <= upto]:
            out = self._out[number]
            first = begun if number == found else 0
            count = out.kept - first
            if count <= 0:
                continue
            out.kept = first
            ranges.append(LeaseRange(out.lease, out.offset + out.kept, count))
            out.left -= count
            if out.left <= 0:
                self._forget(number, out)
        return ranges

    def whose(self, place: Place, pid: int) -> Attempt | None:
        """Return whose output that of a place is; None for a task that is not out (any more)."""
        found = self.find(*place)
        if found is None:
            return None
        out = self._out[found[0]]
        return Attempt(out.prefix, out.first + found[1], out.attempt, out.name, pid)

    def is_open(self, lease: int, offset: int) -> bool:
        """Whether a task has no outcome yet, where they come in order."""
        found = self.find(lease, offset)
        return found is not None and found[1] >= self._out[found[0]].settled

    def _forget(self, number: int, out: _Out) -> None:
        del self._out[number]
        if out.count > 1:
            self.bundles -= 1
