"""What tasks print, at the head: questions to workers, and answers to those who asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from helpers.waiting import aeventually
from rustray.common.errors import CommunicationError
from rustray.head import output
from rustray.head.output import OutputRelay
from rustray.rpc.api import LogPage
from rustray.task.frames import WorkerFrame
from rustray.task.output import LogRecord, OutputAnswer, OutputPiece, OutputQuestion

P, Q = b"session---", b"other-----"


class Worker:
    """A worker's session: remembers what it was asked."""

    def __init__(self, relay: OutputRelay, worker_id: str = "w") -> None:
        self.asked: list[OutputQuestion] = []
        self.relay, self.worker_id = relay, worker_id
        relay.opened(worker_id, self)

    def ask(self, question: OutputQuestion) -> None:
        self.asked.append(question)

    def answer(self, number: int, *texts: bytes, prefix: bytes = P, dropped: int = 0) -> int:
        pieces = [OutputPiece(prefix, 5, 1, False, 9.0, text, "f", 7) for text in texts]
        answer = OutputAnswer(number, 1, pieces, 99, dropped, (1,))
        return self.relay.received(self.worker_id, WorkerFrame(output=[answer]))

    def print(self, *prefixes: bytes) -> None:
        self.relay.received(self.worker_id, WorkerFrame(printing=list(prefixes)))


class Client:
    """Reads a session's pages in the background, or waits with that."""

    def __init__(self, pages: AsyncIterator[LogPage]) -> None:
        self.records: list[LogRecord] = []
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.task = asyncio.create_task(self._read(pages))

    async def _read(self, pages: AsyncIterator[LogPage]) -> None:
        async for page in pages:
            self.records += page.records
            await self.may_read.wait()

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def test_an_answer_reaches_who_asked_once() -> None:
    """An answer of another worker, a second one, and one to nothing are counted and dropped."""
    relay = OutputRelay()
    worker, liar = Worker(relay), Worker(relay, "liar")
    asking = asyncio.create_task(relay.ask("w", P, 5, 1, 3))
    await aeventually(lambda: worker.asked)
    (question,) = worker.asked
    assert (question.prefix, question.sequence, question.attempt, question.cursor) == (P, 5, 1, 3)
    assert liar.answer(question.number, b"lie") == 1
    assert worker.answer(question.number, b"true") == 0
    assert worker.answer(question.number, b"again") == 1
    answer = await asking
    assert answer is not None
    assert [piece.data for piece in answer.pieces] == [b"true"]
    assert worker.answer(12_345, b"x") == 1


async def test_a_worker_that_goes_answers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """None at once where the session is lost; an error where it is silent, and it is told so."""
    relay = OutputRelay()
    assert await relay.ask("w", P, 5, 1, 0) is None
    worker = Worker(relay)
    asking = asyncio.create_task(relay.ask("w", P, 5, 1, 0))
    await aeventually(lambda: worker.asked)
    relay.closed("w")
    assert await asking is None
    worker = Worker(relay)
    monkeypatch.setattr(output, "ANSWER_S", 0.01)
    with pytest.raises(CommunicationError, match="has not answered"):
        await relay.ask("w", P, 5, 1, 0)
    assert [question.is_withdrawn for question in worker.asked] == [False, True]


async def test_a_session_is_asked_of_those_that_print_and_again_when_it_has_read() -> None:
    """Before and after the client came; never two questions at once to a worker."""
    relay = OutputRelay()
    early, late = Worker(relay, "early"), Worker(relay, "late")
    early.print(P, Q)
    client = Client(relay.session(P))
    await aeventually(lambda: early.asked)
    late.print(P)
    assert [len(each.asked) for each in (early, late)] == [1, 1]
    client.may_read.clear()
    early.answer(early.asked[0].number, b"a", dropped=4)
    await aeventually(lambda: client.records)
    assert len(early.asked) == 1
    client.may_read.set()
    await aeventually(lambda: len(early.asked) == 2)
    late.answer(late.asked[0].number, b"b")
    await aeventually(lambda: len(client.records) == 3)
    assert [(r.worker_id, r.data, r.dropped_bytes) for r in client.records] == [
        ("early", b"a", 0),
        ("early", b"", 4),
        ("late", b"b", 0),
    ]
    await client.close()
    for worker in (early, late):
        assert worker.asked[-1].is_withdrawn


async def test_a_session_is_told_of_its_own_tasks_only() -> None:
    """Whatever a worker answers."""
    relay = OutputRelay()
    worker = Worker(relay)
    client = Client(relay.session(P))
    await aeventually(lambda: relay._audiences)
    worker.print(P)
    worker.answer(worker.asked[0].number, b"secret", prefix=Q)
    await aeventually(lambda: len(worker.asked) == 2)
    worker.answer(worker.asked[1].number, b"own")
    await aeventually(lambda: client.records)
    assert [record.data for record in client.records] == [b"own"]
    await client.close()


async def test_who_comes_back_takes_the_place_of_the_lost_stream() -> None:
    """The older one ends; a worker that comes back is asked when it prints again."""
    relay = OutputRelay()
    worker = Worker(relay)
    worker.print(P)
    first = Client(relay.session(P))
    await aeventually(lambda: worker.asked)
    second = Client(relay.session(P))
    await asyncio.wait_for(first.task, 10)
    again = Worker(relay)
    again.print(P)
    again.answer(again.asked[-1].number, b"x")
    await aeventually(lambda: second.records)
    await second.close()
    assert relay._live == {}
