"""What tasks print: frames, rings and questions, without a process."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustray.task.output import MAX_PAGE_BYTES, OutputPiece, OutputQuestion
from rustray.worker import output_book
from rustray.worker.output_book import OutputBook
from rustray.worker.output_frames import PIPE_BUF, FrameSplitter, Printed, make_magic, pack_frames
from rustray.worker.output_reader import OutputPace
from rustray.worker.output_store import OutputStore

MAGIC = make_magic(b"drawn...")
P, Q = b"session---", b"other-----"


def piece(
    data: bytes, sequence: int = 1, attempt: int = 1, *, prefix: bytes = P, err: bool = False,
    at: float = 0.0,
) -> OutputPiece:  # fmt: skip
    """Something that a task has printed."""
    return OutputPiece(prefix, sequence, attempt, err, at, data, "f", 7)


# ── Frames ──────────────────────────────────────────────────────────────────────────────────────


def joined(found: list[Printed]) -> list[tuple[int | None, int, bytes]]:
    """Neighbours of one owner together, however they were cut."""
    made: list[tuple[int | None, int, bytes]] = []
    for each in found:
        if made and made[-1][:2] == (each.lease, each.offset):
            made[-1] = (each.lease, each.offset, made[-1][2] + each.data)
        else:
            made.append((each.lease, each.offset, each.data))
    return made


parts = st.lists(
    st.tuples(
        st.sampled_from([None, 1, 2**63]),
        st.integers(0, 2),
        st.one_of(
            st.binary(min_size=1, max_size=40),
            st.just(b"x" * 10_000),
            st.sampled_from([MAGIC[:n] for n in range(1, len(MAGIC))]),
        ),
    )
)


@given(parts, st.integers(1, 5_000))
def test_frames_and_raw_bytes_come_out_as_they_went_in(
    said: list[tuple[int | None, int, bytes]], cut: int
) -> None:
    """However a pipe cuts them; no frame is longer than what the kernel keeps together."""
    stream, expected = b"", []
    for lease, offset, data in said:
        if lease is None:
            stream += data
            expected.append(Printed(data))
            continue
        frames = list(pack_frames(MAGIC, data, lease, offset, 5))
        assert max(map(len, frames)) <= PIPE_BUF
        stream += b"".join(frames)
        expected.append(Printed(data, lease, offset, 5))
    splitter = FrameSplitter(MAGIC)
    found: list[Printed] = []
    for low in range(0, len(stream), cut):
        found += splitter.feed(stream[low : low + cut])
    found += splitter.rest()
    assert joined(found) == joined(expected)


@given(st.binary(max_size=200))
def test_a_forged_frame_harms_nobody(junk: bytes) -> None:
    """Bytes that begin like a frame give pieces, never an error, and none is made up."""
    splitter = FrameSplitter(MAGIC)
    found = splitter.feed(MAGIC + junk) + splitter.rest()
    assert sum(len(each.data) for each in found) <= len(MAGIC) + len(junk)


def test_the_pace_lets_a_burst_pass_and_then_holds_its_rate() -> None:
    """Bytes read in ten seconds of somebody who never stops: the burst and ten seconds' worth."""
    pace, now, total = OutputPace(), 100.0, 0
    while now < 110.0:
        total += 65_536
        now += pace.note(65_536, now)
    assert 41_000_000 <= total <= 45_000_000


# ── The ring ────────────────────────────────────────────────────────────────────────────────────


def read(
    store: OutputStore, sequence: int = 1, attempt: int = 0, cursor: int = 0
) -> tuple[bytes, int, int, int]:
    """Read all: bytes, attempt, next cursor, and what is missing before them."""
    data, dropped, found = b"", 0, 0
    while True:
        answer = store.answer(OutputQuestion(1, P, sequence, attempt, cursor), 1_000)
        dropped += answer.dropped_bytes
        if not answer.pieces:
            return data, found or answer.attempt, answer.next, dropped
        found = answer.attempt
        assert sum(len(each.data) for each in answer.pieces) <= 1_000
        assert all((each.function, each.pid) == ("f", 7) for each in answer.pieces)
        data += b"".join(each.data for each in answer.pieces)
        cursor = answer.next


def test_output_is_kept_in_order_by_task_and_attempt() -> None:
    """Both streams in the order of printing; the newest attempt unless another is named."""
    store = OutputStore()
    store.add(piece(b"a"), 0.0)
    store.add(piece(b"b", err=True), 0.0)
    store.add(piece(b"other", sequence=2), 0.0)
    store.add(piece(b"again", attempt=3), 0.0)
    assert read(store, attempt=1) == (b"ab", 1, 2, 0)
    assert read(store) == (b"again", 3, 5, 0)
    assert read(store, attempt=2)[:2] == (b"", 0)
    answer = store.answer(OutputQuestion(1, P, 1, 1), 100)
    assert [(each.is_stderr, each.data) for each in answer.pieces] == [(False, b"a"), (True, b"b")]
    assert answer.attempts == (1, 3)


def test_a_cursor_goes_on_where_it_was_also_within_bytes_that_grew() -> None:
    """What was read is not read again."""
    store = OutputStore()
    store.add(piece(b"abc"), 0.0)
    _, _, cursor, _ = read(store)
    store.add(piece(b"def"), 0.0)
    assert read(store, cursor=cursor) == (b"def", 1, 6, 0)
    assert read(store, cursor=99) == (b"", 1, 99, 0)


def test_an_endless_printer_keeps_its_newest_bytes_and_no_more() -> None:
    """The ring says how much is missing, and takes nothing from others."""
    store = OutputStore(attempt_bytes=20_000, total_bytes=100_000)
    store.add(piece(b"a quiet one", sequence=2), 0.0)
    for number in range(20_000):
        store.add(piece(b"%05d\n" % number), 0.0)
        assert store.weight < 30_000
    data, _, end, dropped = read(store)
    assert data.endswith(b"19998\n19999\n")
    assert end == 120_000
    assert dropped + len(data) == end
    assert 15_000 < len(data) <= 25_000
    assert read(store, sequence=2)[0] == b"a quiet one"


def test_one_byte_prints_are_bounded_with_what_is_around_them() -> None:
    """What Python needs for each run counts too."""
    store = OutputStore(attempt_bytes=20_000, total_bytes=100_000)
    for number in range(5_000):
        store.add(piece(b".", err=bool(number % 2), at=float(number)), 0.0)
    assert store.weight <= 26_000


def test_all_attempts_together_are_bounded_and_the_quietest_goes_first() -> None:
    """A later print of an old attempt keeps it."""
    store = OutputStore(total_bytes=50_000)
    for sequence in range(1, 100):
        store.add(piece(b"x" * 500, sequence=sequence), 0.0)
        store.add(piece(b"y", sequence=1), 0.0)
        assert store.weight <= 50_000
    assert read(store, sequence=1)[0].startswith(b"xxx")
    assert read(store, sequence=2)[0] == b""
    assert read(store, sequence=99)[0] == b"x" * 500


def test_output_is_forgotten_after_its_time() -> None:
    """And nothing is left of it."""
    store = OutputStore(ttl_s=10.0)
    store.add(piece(b"old"), 0.0)
    store.add(piece(b"new", sequence=2), 5.0)
    store.expire(10.0)
    assert read(store, sequence=1)[0] == b""
    assert read(store, sequence=2)[0] == b"new"
    store.expire(15.0)
    assert store.weight == 0


# ── Questions ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def book() -> OutputBook:
    """A worker's, with a head that takes output."""
    made = OutputBook()
    made.session_opened(True)
    return made


def texts(book: OutputBook, now: float) -> list[tuple[int, bytes]]:
    """Take all answers: number and bytes."""
    _, answers = book.take(now)
    return [(each.number, b"".join(p.data for p in each.pieces)) for each in answers]


def test_a_question_is_answered_at_once_or_when_there_is_more(book: OutputBook) -> None:
    """With a wait only by output, or when the wait is over; withdrawn it is not answered."""
    book.add([piece(b"a")], 0.0)
    book.ask(OutputQuestion(1, P, 1), 0.0)
    assert texts(book, 0.0) == [(1, b"a")]
    for number in (2, 3, 4):
        book.ask(OutputQuestion(number, P, 1, cursor=1, wait_s=5.0 * (number - 1)), 0.0)
    assert texts(book, 0.0) == []
    book.ask(OutputQuestion(4, P, is_withdrawn=True), 1.0)
    assert book.next_due() == 5.0
    assert texts(book, 5.0) == [(2, b"")]
    book.add([piece(b"b", sequence=2), piece(b"c")], 6.0)
    assert texts(book, 6.0) == [(3, b"c")]
    assert (book.next_due(), texts(book, 99.0)) == (None, [])


def test_a_question_about_nothing_says_so(book: OutputBook) -> None:
    """Attempt 0: there is no output of it here."""
    book.ask(OutputQuestion(1, P, 1), 0.0)
    _, (answer,) = book.take(0.0)
    assert (answer.attempt, answer.pieces, answer.attempts) == (0, [], ())


def test_a_session_that_prints_is_announced_once(book: OutputBook) -> None:
    """To each session of the head, and not to a head that takes no output."""
    book.add([piece(b"a"), piece(b"b", prefix=Q), piece(b"c")], 0.0)
    assert book.take(0.0)[0] == [P, Q]
    book.add([piece(b"d")], 0.0)
    assert book.take(0.0)[0] == []
    book.session_opened(True)
    book.add([piece(b"e")], 0.0)
    assert book.take(0.0)[0] == [P]
    book.session_opened(False)
    book.add([piece(b"f")], 0.0)
    assert book.next_due() is None


def test_live_output_begins_with_what_was_announced(book: OutputBook) -> None:
    """Nothing is lost between the announcement and the question; one question, one answer."""
    book.add([piece(b"a"), piece(b"b")], 0.0)
    book.take(0.0)
    book.ask(OutputQuestion(1, P, is_live=True), 0.1)
    assert texts(book, 0.1) == [(1, b"ab")]
    book.add([piece(b"c")], 0.2)
    assert texts(book, 0.2) == []
    book.ask(OutputQuestion(2, P, is_live=True), 0.3)
    assert texts(book, 0.3) == [(2, b"c")]


def test_live_output_that_nobody_wants_is_not_kept(book: OutputBook) -> None:
    """Asked for later, it begins then; so after a withdrawal."""
    book.add([piece(b"a")], 0.0)
    book.add([piece(b"b")], 11.0)
    book.ask(OutputQuestion(1, P, is_live=True), 12.0)
    book.take(12.0)
    book.add([piece(b"c")], 12.1)
    assert texts(book, 12.1) == [(1, b"c")]
    book.ask(OutputQuestion(2, P, is_live=True), 12.2)
    book.ask(OutputQuestion(2, P, is_withdrawn=True), 12.3)
    book.add([piece(b"d")], 12.4)
    book.ask(OutputQuestion(3, P, is_live=True), 12.5)
    assert texts(book, 13.0) == []


def test_an_endless_printer_is_told_at_its_rate_with_what_was_left_out(book: OutputBook) -> None:
    """In 60 s of ten times the rate: the burst and the rate, and each byte is told or counted."""
    told = counted = printed = number = 0
    answered: list[float] = []
    line = b"x" * 1_000

    def take(now: float) -> None:
        nonlocal told, counted
        due = book.next_due()
        if due is None or due > now:
            return
        for answer in book.take(now)[1]:
            size = sum(len(each.data) for each in answer.pieces)
            assert size <= MAX_PAGE_BYTES + len(line)
            told, counted = told + size, counted + answer.dropped_bytes
            answered.append(now)
            book.ask(OutputQuestion(number + 2, P, is_live=True), now)

    book.ask(OutputQuestion(1, P, is_live=True), 0.0)
    while (now := number / 2_621.44) < 60.0:  # KB a second: ten times what may leave
        number += 1
        book.add([piece(line)], now)
        printed += len(line)
        take(now)
    rate = output_book.LIVE_BYTES_PER_S
    assert 55 * rate < told < 62.5 * rate
    for step in range(200):
        take(60.0 + step / 100)
    assert told + counted == printed
    assert all(later - before >= output_book.LIVE_PAUSE_S for before, later in pairwise(answered))


def test_sessions_that_print_are_bounded(book: OutputBook) -> None:
    """The one that was first is given up; its question too."""
    for number in range(output_book.MAX_TAPS + 5):
        prefix = b"%010d" % number
        book.ask(OutputQuestion(number + 1, prefix, is_live=True), 0.0)
        book.add([piece(b"x", prefix=prefix)], 0.0)
    answers = []
    for _ in range(50):
        answers += texts(book, 1.0)
    assert len(answers) == output_book.MAX_TAPS
