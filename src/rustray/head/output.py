"""What tasks print, between the workers that keep it and the clients that ask.

The head keeps none of it. A question goes to the worker as it is asked; for the live output of a
session a worker is asked again when its answer has been taken, so that a client that does not read
costs at most one answer of each worker.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from typing import Final, Protocol

from rustray.common.errors import CommunicationError
from rustray.common.ids import task_id
from rustray.rpc.api import LogPage
from rustray.task.frames import WorkerFrame
from rustray.task.output import LogRecord, OutputAnswer, OutputPiece, OutputQuestion

ANSWER_S: Final = 10.0
"""How long a worker may take to answer what it need not wait for."""
MAX_SESSIONS: Final = 10_000
"""Printing sessions that are remembered of each worker."""


class Asked(Protocol):
    """The present session of a worker."""

    def ask(self, question: OutputQuestion) -> None:
        """Send a question."""


class _Audience:
    """A client that wants the live output of its session."""

    def __init__(self) -> None:
        self.answers: deque[tuple[str, OutputAnswer]] = deque()
        self.waker = asyncio.Event()
        self.is_replaced = False
        self.numbers: set[int] = set()


class OutputRelay:
    """Questions that are out, and who waits for the answers."""

    def __init__(self) -> None:
        self._workers: dict[str, Asked] = {}
        self._number = 0
        self._waiting: dict[int, tuple[str, asyncio.Future[OutputAnswer | None]]] = {}
        self._live: dict[int, tuple[str, bytes]] = {}
        self._audiences: dict[bytes, _Audience] = {}
        self._printing: dict[str, OrderedDict[bytes, None]] = {}

    # -- from workers ---------------------------------------------------------------------

    def received(self, worker_id: str, frame: WorkerFrame) -> int:
        """Take what a worker says of output; return how many answers nobody has asked for."""
        for prefix in frame.printing:
            known = self._printing.setdefault(worker_id, OrderedDict())
            known[prefix] = None
            if len(known) > MAX_SESSIONS:
                known.popitem(last=False)
            if prefix in self._audiences:
                self._ask_live(worker_id, prefix)
        return sum(not self._answered(worker_id, answer) for answer in frame.output)

    def _answered(self, worker_id: str, answer: OutputAnswer) -> bool:
        waiting = self._waiting.get(answer.number)
        if waiting is not None and waiting[0] == worker_id and not waiting[1].done():
            waiting[1].set_result(answer)
            return True
        live = self._live.get(answer.number)
        if live is None or live[0] != worker_id:
            return False
        del self._live[answer.number]
        audience = self._audiences.get(live[1])
        if audience is not None and answer.number in audience.numbers:
            audience.numbers.discard(answer.number)
            # Whatever the worker says: a session is told of its own tasks only.
            answer.pieces = [piece for piece in answer.pieces if piece.prefix == live[1]]
            audience.answers.append((worker_id, answer))
            audience.waker.set()
        return True

    def opened(self, worker_id: str, session: Asked) -> None:
        """A worker can be asked; what an older session of it was asked has no answer."""
        self.closed(worker_id)
        self._workers[worker_id] = session

    def closed(self, worker_id: str) -> None:
        """The worker's session is over: what it was asked has no answer."""
        self._workers.pop(worker_id, None)
        self._printing.pop(worker_id, None)
        for asked, future in list(self._waiting.values()):
            if asked == worker_id and not future.done():
                future.set_result(None)
        for number, (asked, prefix) in list(self._live.items()):
            if asked == worker_id:
                del self._live[number]
                if prefix in self._audiences:
                    self._audiences[prefix].numbers.discard(number)

    # -- for clients ----------------------------------------------------------------------

    def connected(self) -> list[str]:
        """Return who can be asked now."""
        return list(self._workers)

    async def ask(
        self,
        worker_id: str,
        prefix: bytes,
        sequence: int,
        attempt: int,
        cursor: int,
        wait_s: float = 0.0,
    ) -> OutputAnswer | None:
        """Ask a worker about a task's output.

        Returns:
            The answer; None if the worker's session is, or gets, lost.

        Raises:
            CommunicationError: the worker does not answer.
        """
        peer = self._workers.get(worker_id)
        if peer is None:
            return None
        number = self._next_number()
        future: asyncio.Future[OutputAnswer | None] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (worker_id, future)
        question = OutputQuestion(number, prefix, sequence, attempt, cursor, wait_s)
        try:
            peer.ask(question)
            async with asyncio.timeout(wait_s + ANSWER_S):
                return await future
        except TimeoutError:
            raise CommunicationError(
                f"worker {worker_id} has not answered for {wait_s + ANSWER_S:g} s what its task "
                "has printed; it is overloaded, or of an older release"
            ) from None
        finally:
            del self._waiting[number]
            if not future.done() or future.cancelled():
                self._withdraw(worker_id, number, prefix)

    async def session(self, prefix: bytes) -> AsyncIterator[LogPage]:
        """Yield what a session's tasks print from now on; ends when somebody else asks for it."""
        audience = _Audience()
        before = self._audiences.get(prefix)
        self._audiences[prefix] = audience
        if before is not None:
            before.is_replaced = True
            before.waker.set()
        for worker_id, known in list(self._printing.items()):
            if prefix in known:
                self._ask_live(worker_id, prefix)
        try:
            while not audience.is_replaced:
                audience.waker.clear()
                while audience.answers:
                    worker_id, answer = audience.answers.popleft()
                    yield LogPage(_live_records(worker_id, answer))
                    if not audience.is_replaced:
                        self._ask_live(worker_id, prefix)
                await audience.waker.wait()
        finally:
            is_last = self._audiences.get(prefix) is audience
            if is_last:
                del self._audiences[prefix]
            for number in audience.numbers:
                worker_id, _ = self._live.pop(number)
                if is_last:  # else the next one has asked instead
                    self._withdraw(worker_id, number, prefix)

    def _ask_live(self, worker_id: str, prefix: bytes) -> None:
        peer = self._workers.get(worker_id)
        if peer is not None:
            number = self._next_number()
            self._live[number] = (worker_id, prefix)
            self._audiences[prefix].numbers.add(number)
            peer.ask(OutputQuestion(number, prefix, is_live=True))

    def _withdraw(self, worker_id: str, number: int, prefix: bytes) -> None:
        peer = self._workers.get(worker_id)
        if peer is not None:
            peer.ask(OutputQuestion(number, prefix, is_withdrawn=True))

    def _next_number(self) -> int:
        self._number += 1
        return self._number


def records_of(worker_id: str, answer: OutputAnswer) -> tuple[LogRecord, ...]:
    """Return an answer about one attempt as clients see it: what is missing comes first."""
    records = [_record(worker_id, piece) for piece in answer.pieces]
    if answer.dropped_bytes and records:
        records[0] = _record(worker_id, answer.pieces[0], answer.dropped_bytes)
    return tuple(records)


def _live_records(worker_id: str, answer: OutputAnswer) -> tuple[LogRecord, ...]:
    """Return a live answer as clients see it: what is missing comes last, with no bytes."""
    records = [_record(worker_id, piece) for piece in answer.pieces]
    if answer.dropped_bytes:
        records.append(LogRecord("", 0, "stderr", b"", 0.0, worker_id, 0, "", answer.dropped_bytes))
    return tuple(records)


def _record(worker_id: str, piece: OutputPiece, dropped_bytes: int = 0) -> LogRecord:
    return LogRecord(
        task_id(piece.prefix, piece.sequence),
        piece.attempt,
        "stderr" if piece.is_stderr else "stdout",
        piece.data,
        piece.time_unix_s,
        worker_id,
        piece.pid,
        piece.function,
        dropped_bytes,
    )
