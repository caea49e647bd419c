"""What an executor is asked to give back: it answers, or it is taken from it.

One whose task holds the interpreter's lock (code in C, a regular expression that backtracks), or
that stands still in it, cannot answer, and what waits behind would wait as long. So after
`ANSWER_S` the agent says in the shared memory of the cell that nothing more is to begin, waits
until whatever the executor had written before it can have seen that must be there (`SETTLE_S`; what
a core has stored is seen by the others within microseconds), and reads which task runs. All that
comes behind is taken back. The executor looks at the cell before it begins a task, after it has
written which: from there on it waits for the agent's ruling, which says what it may still begin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from rustray.task.frames import LeaseRange
from rustray.worker import wire
from rustray.worker.cell import RULINGS, STOP, Cell
from rustray.worker.chunks_out import ChunksOut

ANSWER_S: Final = 0.5
"""How long an executor may take to say what it has not started."""
SETTLE_S: Final = 0.05

Taken = Callable[[list[LeaseRange], LeaseRange | None, bool], None]
"""Takes what never starts, what the executor runs where it has not answered, and whether it is the
answer: late ones may say something new."""


class TakingBack:
    """The agent's side of it, for one executor.

    Args:
        loop: The agent's.
        cell: Of the executor.
        out: What it was given.
        send: Sends it a packet.
        read: Takes all that it has sent.
        on_taken: Is told.
        is_alone: It runs one task at a time; from others nothing is taken without an answer.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        cell: Cell,
        out: ChunksOut,
        send: Callable[[bytes], None],
        read: Callable[[], None],
        on_taken: Taken,
        *,
        is_alone: bool,
    ) -> None:
        self._loop = loop
        self._cell = cell
        self._out = out
        self._send = send
        self._read = read
        self._on_taken = on_taken
        self._is_alone = is_alone
        self._open = self._void = 0
        self._stopped = 0  # the last chunk that the executor is to begin, while there is no ruling
        self._timer: asyncio.TimerHandle | None = None

    def ask(self) -> None:
        """Ask for everything that has not started."""
        self._open += 1
        self._send(wire.CONTROL.pack(wire.RECLAIM, self._out.number, 0, 0))
        if self._timer is None and self._is_alone:
            self._timer = self._loop.call_later(ANSWER_S, self._stop)

    def answered(self, upto: int, found: int, begun: int) -> None:
        """Take an answer, also one that comes after the ruling.

        Args:
            upto: Number of the last chunk that was asked for.
            found: Of that which was begun last.
            begun: The place from which on its tasks never start.
        """
        ranges = self._out.take_back(upto, found, begun)
        if self._void:
            self._void -= 1
            if ranges:
                self._on_taken(ranges, None, False)
            return
        self._open = max(self._open - 1, 0)
        if not self._open:
            self.close()
            if self._stopped:  # it is alive, and may wait for this
                self._rule(self._stopped, wire.ALL)
        self._on_taken(ranges, None, True)

    def close(self) -> None:
        """Wait for no answer any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop(self) -> None:
        words = self._cell.words
        words[RULINGS] += 1
        self._stopped = words[STOP] = self._out.number
        self._timer = self._loop.call_later(SETTLE_S, self._take)

    def _take(self) -> None:
        self._timer = None
        self._read()
        upto = self._stopped
        if not upto:
            return  # it has answered just now
        lease, offset, index = self._cell.begun()
        found = self._out.find(lease, offset) if index >= 0 else None
        if found is None or found[0] > upto:
            # It runs nothing of that: it is between two tasks, where it cannot be held up for long.
            self._timer = self._loop.call_later(ANSWER_S, self._take)
            return
        ranges = self._out.take_back(upto, found[0], index + 1)
        self._void, self._open = self._void + self._open, 0
        self._rule(found[0], index + 1)
        self._on_taken(ranges, LeaseRange(lease, offset + index, 1), True)

    def _rule(self, found: int, begun: int) -> None:
        upto, self._stopped = self._stopped, 0
        self._send(wire.CONTROL.pack(wire.RULING, upto, found, begun))
