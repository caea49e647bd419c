"""What tasks have printed, kept for whoever asks: bounded for each attempt, in all, and in time."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from rustray.task.output import MAX_ATTEMPTS, MAX_RECORDS, OutputAnswer, OutputPiece, OutputQuestion

ATTEMPT_BYTES: Final = 256 * 1024
"""Of one attempt; the newest are kept."""
TOTAL_BYTES: Final = 64 * 1024 * 1024
TTL_S: Final = 3_600.0
"""After its last output an attempt's is kept so long, if nothing newer needs the room."""
_RUN_BYTES: Final = 4_096
_RUN_S: Final = 0.1
_RUN_OVERHEAD: Final = 200
_ATTEMPT_OVERHEAD: Final = 800

Task = tuple[bytes, int]
"""Prefix and sequence of a task id."""
Key = tuple[bytes, int, int]
"""A task and the number of its attempt."""


class _Run:
    """Bytes of one stream that came one after the other."""

    __slots__ = ("at", "data", "is_stderr", "start")

    def __init__(self, start: int, at: float, is_stderr: bool) -> None:
        self.start = start
        self.at = at
        self.is_stderr = is_stderr
        self.data = bytearray()


class _Kept:
    """The output of one attempt: a ring of runs."""

    __slots__ = ("begin", "end", "function", "last_s", "pid", "runs")

    def __init__(self, piece: OutputPiece) -> None:
        self.function = piece.function
        self.pid = piece.pid
        self.begin = self.end = 0
        self.last_s = 0.0
        self.runs: list[_Run] = []

    def add(self, piece: OutputPiece) -> int:
        """Append; return by how much the memory has grown."""
        grown = len(piece.data)
        run = self.runs[-1] if self.runs else None
        if (
            run is None
            or run.is_stderr is not piece.is_stderr
            or len(run.data) >= _RUN_BYTES
            or not 0.0 <= piece.time_unix_s - run.at < _RUN_S
        ):
            run = _Run(self.end, piece.time_unix_s, piece.is_stderr)
            self.runs.append(run)
            grown += _RUN_OVERHEAD
        run.data += piece.data
        self.end += len(piece.data)
        return grown

    def trim(self, limit: int) -> int:
        """Drop the oldest runs until no more than the limit is held; return what that gave."""
        given = count = 0
        held = self.end - self.begin + len(self.runs) * _RUN_OVERHEAD
        while held - given > limit and count < len(self.runs) - 1:
            given += len(self.runs[count].data) + _RUN_OVERHEAD
            count += 1
        if count:
            del self.runs[:count]
            self.begin = self.runs[0].start
        return given

    @property
    def weight(self) -> int:
        """What it takes of the memory."""
        return self.end - self.begin + len(self.runs) * _RUN_OVERHEAD + _ATTEMPT_OVERHEAD


class OutputStore:
    """Rings, one for each attempt that has printed; the one that was quiet longest goes first.

    Attributes:
        weight: Bytes held, with what Python needs around them.
    """

    def __init__(
        self,
        attempt_bytes: int = ATTEMPT_BYTES,
        total_bytes: int = TOTAL_BYTES,
        ttl_s: float = TTL_S,
    ) -> None:
        self.weight = 0
        self._attempt_bytes = attempt_bytes
        self._total_bytes = total_bytes
        self._ttl_s = ttl_s
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()
        self._attempts: dict[Task, list[int]] = {}

    def add(self, piece: OutputPiece, now: float) -> None:
        """Keep a piece.

        Complexity: O(bytes), amortised.
        """
        key = (piece.prefix, piece.sequence, piece.attempt)
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = _Kept(piece)
            self._attempts.setdefault(key[:2], []).append(piece.attempt)
            self.weight += _ATTEMPT_OVERHEAD
        else:
            self._kept.move_to_end(key)
        kept.last_s = now
        self.weight += kept.add(piece)
        # A quarter over the limit before it is trimmed: not with each piece.
        if kept.weight > self._attempt_bytes * 5 // 4:
            self.weight -= kept.trim(self._attempt_bytes)
        while self.weight > self._total_bytes and len(self._kept) > 1:
            self._forget(next(iter(self._kept)))
        self.expire(now)

    def expire(self, now: float) -> None:
        """Forget what is too old."""
        while self._kept:
            key, kept = next(iter(self._kept.items()))
            if now - kept.last_s < self._ttl_s:
                return
            self._forget(key)

    def _forget(self, key: Key) -> None:
        kept = self._kept.pop(key)
        self.weight -= kept.weight
        attempts = self._attempts[key[:2]]
        attempts.remove(key[2])
        if not attempts:
            del self._attempts[key[:2]]

    def has_more(self, question: OutputQuestion) -> bool:
        """Whether there is something that an answer could tell."""
        attempts = self._attempts.get((question.prefix, question.sequence))
        if not attempts:
            return False
        number = question.attempt or max(attempts)
        kept = self._kept.get((question.prefix, question.sequence, number))
        return kept is not None and kept.end > question.cursor

    def answer(self, question: OutputQuestion, limit: int) -> OutputAnswer:
        """Answer a question about one task with about so many bytes at most."""
        attempts = self._attempts.get((question.prefix, question.sequence), [])
        found = OutputAnswer(
            question.number,
            next=question.cursor,
            attempts=tuple(sorted(attempts)[-MAX_ATTEMPTS:]),
        )
        if not attempts:
            return found
        number = question.attempt or max(attempts)
        kept = self._kept.get((question.prefix, question.sequence, number))
        if kept is None:
            return found
        found.attempt = number
        cursor = max(question.cursor, kept.begin)
        found.dropped_bytes = cursor - question.cursor
        index = len(kept.runs)
        while index and kept.runs[index - 1].start + len(kept.runs[index - 1].data) > cursor:
            index -= 1
        for run in kept.runs[index : index + MAX_RECORDS]:
            low = max(cursor - run.start, 0)
            data = bytes(run.data[low : low + limit])
            limit -= len(data)
            cursor += len(data)
            found.pieces.append(
                OutputPiece(
                    question.prefix, question.sequence, number, run.is_stderr, run.at, data,
                    kept.function, kept.pid,
                )
            )  # fmt: skip
            if limit <= 0:
                break
        found.next = max(cursor, question.cursor)
        return found
