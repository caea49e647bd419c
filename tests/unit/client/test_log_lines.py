"""What tasks print, as lines of the program's own output."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from rustray.client.log_lines import (
    FOLD_S,
    MAX_FOLDED,
    MAX_LINE_BYTES,
    MAX_OPEN_LINES,
    QUIET_S,
    Folding,
    Line,
    LineAssembler,
    LineBudget,
    prefix_of,
    shown_lines,
)
from rustray.task.output import LogRecord, Stream


def record(
    data: bytes, *, task: str = "t", pid: int = 1, stream: Stream = "stdout", dropped: int = 0
) -> LogRecord:
    """Something that a task has printed."""
    return LogRecord(task, 1, stream, data, 0.0, "w1-0123abcd", pid, "mod.square", dropped)


def line(text: str, pid: int = 1, stream: Stream = "stdout") -> Line:
    """A line of a process."""
    return Line(("w1-0123abcd", pid), "square", stream, text)


@given(st.lists(st.sampled_from(["a", "bc\n", "\n", "d\ne"]), max_size=20))
def test_lines_are_the_same_however_they_were_cut(parts: list[str]) -> None:
    """And the last one is shown when nothing more comes."""
    lines = LineAssembler()
    found = [each for part in parts for each in lines.add(record(part.encode()), 0.0)]
    found += lines.quiet(QUIET_S)
    expected = "".join(parts).split("\n")
    if expected[-1] == "":
        expected.pop()
    assert [each.text for each in found] == expected


def test_tasks_and_streams_have_lines_of_their_own() -> None:
    """What comes between does not cut them."""
    lines = LineAssembler()
    assert lines.add(record(b"one"), 0.0) == []
    assert [e.text for e in lines.add(record(b"two\n", task="u"), 0.0)] == ["two"]
    assert [e.text for e in lines.add(record(b"err\n", stream="stderr"), 0.0)] == ["err"]
    assert [e.text for e in lines.add(record(b" more\n"), 9.0)] == ["one more"]


def test_open_lines_are_bounded_and_shown_in_time() -> None:
    """In number, in length, and in how long they wait."""
    lines = LineAssembler()
    found = lines.add(record(b"x" * (3 * MAX_LINE_BYTES + 5)), 0.0)
    assert sum(len(each.text) for each in found) == 3 * MAX_LINE_BYTES + 5
    assert max(len(each.text) for each in found) == MAX_LINE_BYTES
    found = []
    for number in range(MAX_OPEN_LINES + 1):
        found += lines.add(record(b"%d" % number, task=str(number)), 0.0)
    assert [each.text for each in found] == ["0"]
    assert lines.quiet(QUIET_S - 0.01) == []
    assert len(lines.quiet(QUIET_S)) == MAX_OPEN_LINES


def test_what_could_harm_a_terminal_is_made_harmless() -> None:
    """Escapes go, control characters and broken UTF-8 are shown, of overwritten lines the last."""
    lines = LineAssembler()
    data = (
        b"\x1b]0;title\x07\x1b[2Jred\x1b[0m \xff\x00\xe2\x80\xae\n 10%\r 90%\r100%\r\nplain\ttab\n"
    )
    assert [each.text for each in lines.add(record(data), 0.0)] == [
        "red \\xff\\x00\\u202e",
        "100%",
        "plain    tab",
    ]


def test_what_was_left_out_is_said() -> None:
    """After the lines that were kept."""
    found = LineAssembler().add(record(b"a\n", dropped=5), 0.0)
    assert [each.text.split(" ")[0] for each in found] == ["a", "5"]
    assert prefix_of(found[1], names_worker=True) == "(rustray, worker=w1)"


def test_lines_of_several_processes_that_are_alike_are_folded() -> None:
    """The first is shown at once, the others by their number after five seconds, and so on."""
    folding = Folding()
    assert folding.add(line("step 1 of 5 done", 1), 0.0) == [(line("step 1 of 5 done", 1), 0)]
    for pid in range(2, 7):
        assert folding.add(line(f"step {pid} of 5 done", pid), 1.0) == []
    assert folding.due(FOLD_S - 0.1) == []
    assert folding.due(FOLD_S) == [(line("step 6 of 5 done", 6), 5)]
    assert folding.add(line("step 7 of 5 done", 1), FOLD_S + 1) == []
    assert folding.due(2 * FOLD_S) == [(line("step 7 of 5 done", 1), 0)]
    assert folding.add(line("step 8 of 5 done", 1), 2 * FOLD_S) != []


def test_what_one_process_repeats_is_not_folded() -> None:
    """Nor lines of numbers only, nor the same on two streams."""
    folding = Folding()
    for number in range(5):
        assert len(folding.add(line(f"loss {number}", 1), 0.0)) == 1
    for pid in range(5):
        assert len(folding.add(line(f"{pid}", pid), 0.0)) == 1
    assert len(folding.add(line("same", 1), 0.0)) == 1
    assert len(folding.add(line("same", 2, "stderr"), 0.0)) == 1
    assert folding.rest() == []


def test_folding_forgets_nothing_and_is_bounded() -> None:
    """Each line is shown or counted, also at the end and with very many different ones."""
    folding = Folding()
    shown = 0
    letters = ("".join(word) for word in itertools.product("abcdefghij", repeat=4))
    words = list(itertools.islice(letters, MAX_FOLDED + 200))
    for text in words:
        for pid in (1, 2, 3):
            shown += sum(max(count, 1) for _, count in folding.add(line(text, pid), 0.0))
    shown += sum(max(count, 1) for _, count in folding.rest())
    assert shown == 3 * len(words)


def test_lines_are_shown_with_who_said_them() -> None:
    """As Ray shows them: function, process, and the worker where there is more than one machine."""
    folded = [(line("hello"), 0), (line("again", 2), 5)]
    assert shown_lines(folded, names_worker=True, colours=frozenset()) == [
        ("stdout", "(square pid=1, worker=w1) hello"),
        ("stdout", "(square pid=2, worker=w1) again [repeated 5x across cluster]"),
    ]
    (_, plain), (_, coloured) = shown_lines(
        folded, names_worker=False, colours=frozenset({"stdout"})
    )
    assert plain == "\x1b[36m(square pid=1)\x1b[0m hello"
    assert coloured.endswith("again\x1b[32m [repeated 5x across cluster]\x1b[0m")


def test_a_budget_counts_what_is_too_much() -> None:
    """In each second so many bytes, not more after a pause."""
    budget = LineBudget(1_000)
    assert [budget.take(400, 0.0) for _ in range(3)] == [True, True, False]
    assert budget.take(400, 0.5)
    assert budget.dropped == 1
    assert [budget.take(400, 100.0) for _ in range(3)] == [True, True, False]
