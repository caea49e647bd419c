"""Answers that come late, and several rulings about one chunk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rustray.task.columns import PayloadColumn
from rustray.task.frames import LeaseRange
from rustray.worker import wire
from rustray.worker.cell import INDEX, RULINGS, STOP, Cell
from rustray.worker.child_todo import Refused, Todo
from rustray.worker.chunks_out import ChunksOut
from rustray.worker.taking_back import TakingBack


@pytest.fixture
def cell() -> Iterator[Cell]:
    """The shared memory of an executor that has begun nothing."""
    made, fd = Cell.create("test")
    os.close(fd)
    yield made
    made.close()


class Agent:
    """The agent's end, with a clock that goes on when it is told to."""

    def __init__(self, cell: Cell) -> None:
        self.out = ChunksOut()
        self.sent: list[tuple[int, ...]] = []
        self.taken: list[tuple[list[LeaseRange], LeaseRange | None, bool]] = []
        self._due: list[Callable[[], None]] = []
        loop: Any = self
        self.end = TakingBack(
            loop, cell, self.out, self._send, lambda: None, self._note, is_alone=True
        )

    def give(self, lease: int, count: int) -> None:
        """Send a chunk."""
        column = PayloadColumn.of([b""] * count)
        self.out.add(wire.RunChunk(1, lease, 0, 1, b"0123456789", 0, column), "f")

    def call_later(self, _delay_s: float, callback: Callable[[], None]) -> Agent:
        """Be the event loop."""
        self._due.append(callback)
        return self

    def cancel(self) -> None:
        """Be the handle of a timer."""
        self._due.clear()

    def wait(self) -> None:
        """Let the next timer run out."""
        self._due.pop(0)()

    def _send(self, packet: bytes) -> None:
        self.sent.append(wire.CONTROL.unpack(packet))

    def _note(self, *said: Any) -> None:
        self.taken.append(said)


def test_a_late_answer_may_give_back_what_the_ruling_had_left(cell: Cell) -> None:
    """An executor that still imports what its first task needs has begun none."""
    agent = Agent(cell)
    agent.give(7, 5)
    cell.begin(7, 0)
    cell.words[INDEX] = 0
    agent.end.ask()
    agent.wait()
    assert (cell.words[STOP], cell.words[RULINGS]) == (1, 1)
    agent.wait()
    assert agent.sent == [(wire.RECLAIM, 1, 0, 0), (wire.RULING, 1, 1, 1)]
    agent.end.answered(1, 1, 0)
    running, rest = LeaseRange(7, 0, 1), [LeaseRange(7, 1, 4)]
    assert agent.taken == [(rest, running, True), ([running], None, False)]
    agent.end.ask()
    agent.end.answered(1, 1, 0)
    assert agent.taken[2:] == [([], None, True)]


@pytest.mark.parametrize("is_later", [False, True])
def test_from_an_executor_that_runs_nothing_of_it_nothing_is_taken(
    cell: Cell, is_later: bool
) -> None:
    """Between two tasks, or in a chunk that it was given since: it answers in a moment."""
    agent = Agent(cell)
    agent.give(7, 5)
    agent.end.ask()
    agent.wait()
    if is_later:
        agent.give(8, 5)
        cell.begin(8, 0)
        cell.words[INDEX] = 0
    for _ in range(3):
        agent.wait()
    assert (agent.taken, len(agent.sent)) == ([], 1)
    agent.end.answered(1, 0, 0)
    assert agent.sent[1:] == [(wire.RULING, 1, 1, wire.ALL)]
    assert agent.taken == [([LeaseRange(7, 0, 5)], None, True)]


def test_a_ruling_leaves_what_the_agent_has_left(cell: Cell) -> None:
    """Bug: the task that counted as running, as its function was imported, was dropped too."""
    todo = Todo(cell)
    left = todo.enter(3, [1, 2, 3], is_able=True)
    cell.words[INDEX] = 0
    todo.rule(3, 3, 1)
    assert list(left or ()) == [1]
    todo.rule(3, 4, 1)
    assert list(left or ()) == [1]


def test_what_runs_is_named_and_the_rest_is_taken(cell: Cell) -> None:
    """The tasks behind it, and the chunks; an answer that says the same afterwards says nothing."""
    agent = Agent(cell)
    agent.give(7, 5)
    agent.give(8, 2)
    cell.begin(7, 0)
    cell.words[INDEX] = 1
    agent.end.ask()
    agent.wait()
    agent.wait()
    taken = [LeaseRange(7, 2, 3), LeaseRange(8, 0, 2)]
    assert agent.taken == [(taken, LeaseRange(7, 1, 1), True)]
    assert agent.sent[-1] == (wire.RULING, 2, 1, 2)
    agent.end.answered(2, 1, 2)
    assert len(agent.taken) == 1


def test_an_answer_before_the_ruling_lets_everything_begin(cell: Cell) -> None:
    """The executor may wait for the word already."""
    agent = Agent(cell)
    agent.give(7, 5)
    agent.end.ask()
    agent.wait()
    agent.end.answered(1, 1, 4)
    assert agent.sent[-1] == (wire.RULING, 1, 1, wire.ALL)
    assert agent.taken == [([LeaseRange(7, 4, 1)], None, True)]


def test_what_one_ruling_refuses_the_next_one_does_not_allow(cell: Cell) -> None:
    """Bug: only the last one counted, and that may be about chunks that came later."""
    todo = Todo(cell)
    assert todo.enter(3, [1, 2, 3], is_able=True)
    cell.words[RULINGS], cell.words[STOP] = 2, 4
    todo.rule(3, 0, 0)
    todo.rule(4, 4, wire.ALL)
    with pytest.raises(Refused):
        todo.look(3, 0)
    todo.look(4, 0)
    todo.look(5, 0)
    assert todo.enter(4, [1], is_able=True)
    assert todo.reclaim(4) == (4, 0)


def test_what_cannot_run_is_not_given_back_too(cell: Cell) -> None:
    """The executor says so itself."""
    todo = Todo(cell)
    assert not todo.enter(3, [1], is_able=False)
    assert todo.reclaim(3) == (3, 1)
