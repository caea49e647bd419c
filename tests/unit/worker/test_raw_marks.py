"""Where the raw output of a task ends is marked in its pipe, exactly where there is some."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from rustray.worker.cell import READ, READING, Cell
from rustray.worker.child_output import RawMarks
from rustray.worker.output_frames import make_magic, pack_mark


class Pipes:
    """Both pipes of an executor, and its cell; the agent's side of the books."""

    def __init__(self) -> None:
        self.ends = [os.pipe(), os.pipe()]
        for readable, _ in self.ends:
            os.set_blocking(readable, False)
        self.cell, fd = Cell.create("test-marks")
        os.close(fd)
        self.marks = RawMarks([writable for _, writable in self.ends], self.cell)
        self.mark_bytes = len(pack_mark(make_magic(self.cell.drawn), 1, 0, 0))

    def say(self, stream: int, data: bytes) -> None:
        """Write as C code does."""
        os.write(self.ends[stream][1], data)

    def read(self, stream: int) -> bytes:
        """Take what is there, as the agent does."""
        words = self.cell.words
        words[READING] += 1
        try:
            data = os.read(self.ends[stream][0], 1 << 16)
            words[READ + stream] += len(data)
        except BlockingIOError:
            data = b""
        words[READING] += 1
        return data

    def close(self) -> None:
        """Let go of all."""
        for fd in (*self.ends[0], *self.ends[1]):
            os.close(fd)
        self.cell.close()


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    """Make them."""
    found = Pipes()
    yield found
    found.close()


def test_silent_tasks_leave_no_mark(pipes: Pipes) -> None:
    """However many there are, and also where the agent looks in between."""
    for offset in range(5):
        pipes.marks.end(1, offset)
        if offset % 2:
            assert pipes.read(0) == pipes.read(1) == b""


@pytest.mark.parametrize("stream", [0, 1])
def test_each_task_that_says_something_is_marked_once(pipes: Pipes, stream: int) -> None:
    """Silent ones before and after it are not."""
    pipes.marks.end(1, 0)
    pipes.marks.end(1, 1)
    pipes.say(stream, b"hello")
    pipes.marks.end(1, 2)
    pipes.marks.end(1, 3)
    pipes.marks.end(1, 4)
    assert len(pipes.read(stream)) == 5 + pipes.mark_bytes
    assert pipes.read(1 - stream) == b""
    pipes.marks.end(1, 5)
    assert pipes.read(stream) == b""


def test_as_many_bytes_as_were_there_before_are_new_all_the_same(pipes: Pipes) -> None:
    """The agent has taken the others: what fills a pipe again to the same number is marked."""
    pipes.say(0, b"x" * 7)
    pipes.marks.end(1, 0)
    pipes.marks.end(1, 1)  # notes what is there
    there = 7 + pipes.mark_bytes
    assert len(pipes.read(0)) == there
    pipes.say(0, b"y" * there)
    pipes.marks.end(1, 2)
    assert len(pipes.read(0)) == there + pipes.mark_bytes


def test_while_the_agent_reads_every_task_is_marked(pipes: Pipes) -> None:
    """What it is just taking out is in no book: there may be something new."""
    pipes.marks.end(1, 0)
    pipes.cell.words[READING] += 1
    pipes.marks.end(1, 1)
    pipes.marks.end(1, 2)
    pipes.cell.words[READING] += 1
    assert len(pipes.read(0)) == 2 * pipes.mark_bytes
    pipes.marks.end(1, 3)  # it is not sure yet where it stands
    pipes.read(0)
    pipes.marks.end(1, 4)
    assert pipes.read(0) == b""
