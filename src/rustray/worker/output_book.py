"""Who wants to know what tasks print, and what is to be told when.

Pure, as the worker's core is: pieces, questions and the time go in, answers come out. Where nothing
is printed and nobody asks, nothing happens here.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final

from rustray.task.output import (
    LONGEST_WAIT_S,
    MAX_PAGE_BYTES,
    MAX_RECORDS,
    OutputAnswer,
    OutputPiece,
    OutputQuestion,
)
from rustray.worker.output_store import OutputStore, Task

MAX_QUESTIONS: Final = 10_000
"""Questions about tasks that wait; those beyond are answered at once."""
MAX_TAPS: Final = 1_000
TAP_BYTES: Final = 128 * 1024
"""Live output of one session that waits to be taken; what comes on top of that is left out."""
LIVE_BYTES_PER_S: Final = 256 * 1024
"""Live output of one session that leaves a worker."""
LIVE_BURST_BYTES: Final = 512 * 1024
LIVE_PAUSE_S: Final = 0.02
"""Between two answers to the same session: what comes meanwhile goes together."""
UNASKED_S: Final = 10.0
"""How long live output is kept for a session that has not asked."""
_LEAST_BYTES: Final = 4_096
_PIECE_OVERHEAD: Final = 200


class _Tap:
    """The live output of one session.

    Attributes:
        question: Number of the one that waits, 0 for none.
        asked_s: When it was last wanted, or announced.
        pieces: What waits, and between them how many bytes were left out there.
        dropped: Bytes left out after the last of them.
        is_idle: Nobody wants it: nothing is kept.
        due_s: When the next answer may go.
        allowance: Bytes that may go now.
    """

    __slots__ = (
        "allowance", "asked_s", "counted_s", "dropped", "due_s", "is_idle", "pieces", "question",
        "size",
    )  # fmt: skip

    def __init__(self, now: float) -> None:
        self.question = 0
        self.asked_s = self.counted_s = self.due_s = now
        self.is_idle = False
        self.allowance = float(LIVE_BURST_BYTES)
        self.pieces: deque[OutputPiece | int] = deque()
        self.size = 0
        self.dropped = 0

    def add(self, piece: OutputPiece, now: float) -> None:
        """Keep a piece, or count it as left out."""
        if not self.question and now - self.asked_s > UNASKED_S:
            self.rest()
        if self.is_idle:
            return
        # Once it is full, half of it has to go: fewer gaps, and longer ones.
        if self.size + len(piece.data) > (TAP_BYTES // 2 if self.dropped else TAP_BYTES):
            self.dropped += len(piece.data)
            return
        if self.dropped:
            self.pieces.append(self.dropped)
            self.dropped = 0
        self.size += _PIECE_OVERHEAD + len(piece.data)
        self.pieces.append(piece)

    def rest(self) -> None:
        """Keep nothing until somebody asks."""
        self.is_idle = True
        self.pieces.clear()
        self.size = self.dropped = self.question = 0

    def due(self) -> float | None:
        """Return when an answer can go; None if there is none to give."""
        if not self.question or not (self.pieces or self.dropped):
            return None
        lacking = max(0.0, _LEAST_BYTES - self.allowance)
        return max(self.due_s, self.counted_s + lacking / LIVE_BYTES_PER_S)

    def answer(self, now: float, limit: int) -> OutputAnswer:
        """Take what may go now."""
        passed_s = max(0.0, now - self.counted_s)
        self.allowance = min(self.allowance + passed_s * LIVE_BYTES_PER_S, LIVE_BURST_BYTES)
        self.counted_s = now
        found = OutputAnswer(self.question)
        self.question = 0
        left = min(limit, self.allowance)
        while self.pieces and left > 0 and len(found.pieces) < MAX_RECORDS:
            piece = self.pieces.popleft()
            if isinstance(piece, int):
                found.dropped_bytes = piece
                break
            self.size -= _PIECE_OVERHEAD + len(piece.data)
            left -= len(piece.data)
            self.allowance -= len(piece.data)
            found.pieces.append(piece)
        else:
            if not self.pieces:
                found.dropped_bytes, self.dropped = self.dropped, 0
        self.due_s = now + LIVE_PAUSE_S
        return found


class OutputBook:
    """What was printed, who asks, and what waits to be told."""

    def __init__(self, store: OutputStore | None = None) -> None:
        self.store = store or OutputStore()
        self._is_open = False
        self._waiting: dict[int, tuple[OutputQuestion, float]] = {}
        self._by_task: dict[Task, set[int]] = {}
        self._ready: dict[int, None] = {}
        self._taps: OrderedDict[bytes, _Tap] = OrderedDict()
        self._live: dict[int, bytes] = {}
        self._announced: deque[bytes] = deque()

    def session_opened(self, takes_output: bool) -> None:
        """Begin with a head: what an earlier session has asked is forgotten.

        Args:
            takes_output: Whether this head can take output.
        """
        self._is_open = takes_output
        for table in (self._waiting, self._by_task, self._taps, self._live):
            table.clear()
        self._ready.clear()
        self._announced.clear()

    def add(self, pieces: Sequence[OutputPiece], now: float) -> None:
        """Keep what was printed."""
        for piece in pieces:
            self.store.add(piece, now)
            if self._is_open:
                self._tap(piece.prefix, now).add(piece, now)
                for number in self._by_task.pop((piece.prefix, piece.sequence), ()):
                    self._wake(number)

    def _tap(self, prefix: bytes, now: float) -> _Tap:
        tap = self._taps.get(prefix)
        if tap is None:
            tap = self._taps[prefix] = _Tap(now)
            self._announced.append(prefix)
            if len(self._taps) > MAX_TAPS:
                _, old = self._taps.popitem(last=False)
                self._live.pop(old.question, None)
        return tap

    def _wake(self, number: int) -> None:
        """Look at a question again; if it has no answer yet, it goes on waiting."""
        if number not in self._waiting:
            return
        question, _ = self._waiting[number]
        if self.store.has_more(question):
            self._ready[number] = None
        else:
            self._by_task.setdefault((question.prefix, question.sequence), set()).add(number)

    def ask(self, question: OutputQuestion, now: float) -> None:
        """Take a question; one of the same number is the same."""
        if question.is_withdrawn:
            self._withdraw(question.number)
        elif question.is_live:
            tap = self._taps.get(question.prefix)
            if tap is None:
                tap = self._tap(question.prefix, now)
                self._announced.remove(question.prefix)
            self._live.pop(tap.question, None)
            self._live[question.number] = question.prefix
            tap.question, tap.asked_s, tap.is_idle = question.number, now, False
        elif question.number not in self._waiting:
            self.store.expire(now)
            is_crowded = len(self._waiting) >= MAX_QUESTIONS
            wait_s = 0.0 if is_crowded else min(question.wait_s, LONGEST_WAIT_S)
            self._waiting[question.number] = (question, now + wait_s)
            if wait_s <= 0.0:
                self._ready[question.number] = None
            else:
                self._wake(question.number)

    def _withdraw(self, number: int) -> None:
        self._waiting.pop(number, None)
        prefix = self._live.pop(number, None)
        if prefix is not None and prefix in self._taps:
            self._taps[prefix].rest()

    def next_due(self) -> float | None:
        """Return when `take` has something, as far as is known now; None: not before more comes."""
        if self._ready or self._announced:
            return 0.0
        times = [deadline for _, deadline in self._waiting.values()]
        for prefix in self._live.values():
            due = self._taps[prefix].due()
            if due is not None:
                times.append(due)
        return min(times, default=None)

    def take(self, now: float) -> tuple[list[bytes], list[OutputAnswer]]:
        """Return prefixes of sessions that print, new to this head, and answers; bounded."""
        announced = [self._announced.popleft() for _ in range(min(len(self._announced), 1_000))]
        answers: list[OutputAnswer] = []
        left = MAX_PAGE_BYTES
        for number, (_, deadline) in list(self._waiting.items()):
            if deadline <= now:
                self._ready[number] = None
        while self._ready and left > 0:
            number = next(iter(self._ready))
            del self._ready[number]
            entry = self._waiting.pop(number, None)
            if entry is None:
                continue
            question = entry[0]
            waiters = self._by_task.get((question.prefix, question.sequence))
            if waiters is not None:
                waiters.discard(question.number)
                if not waiters:
                    del self._by_task[question.prefix, question.sequence]
            answers.append(self.store.answer(question, left))
            left -= sum(len(piece.data) for piece in answers[-1].pieces)
        for number, prefix in list(self._live.items()):
            due = self._taps[prefix].due()
            if left > 0 and due is not None and due <= now:
                del self._live[number]
                answers.append(self._taps[prefix].answer(now, left))
                left -= sum(len(piece.data) for piece in answers[-1].pieces)
        return announced, answers
