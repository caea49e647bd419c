"""What a session sends, keeps, sends again, and gives up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import rustray
from helpers.client_session import on_loop
from helpers.fake_head import FakeHead
from helpers.waiting import eventually
from rustray.client import context, intake
from rustray.client import session as session_module
from rustray.client.refs import ClassEntry, TaskRef
from rustray.client.session import ClientSession
from rustray.common.durability import Durability
from rustray.common.errors import (
    AuthenticationError,
    CommunicationError,
    HeadUnavailable,
    PayloadError,
    ResourceNotAvailable,
    TaskCancelled,
    TaskNotFound,
    VersionMismatch,
)
from rustray.rpc.codec import decode_client_frame, encode_client_frame
from rustray.task.columns import PayloadColumn, PlacedColumn
from rustray.task.frames import AcceptedRange, ClientFrame, HeadFrame, Outcome, Rejection, TaskRange
from rustray.task.place import Place
from rustray.task.spec import Codec, TaskClass
from rustray.task.state import TaskState

PICKLED = TaskClass("f", b"h" * 32, codec=Codec.PICKLE)


@rustray.remote
def double(x: int) -> int:
    """Return twice the argument."""
    return 2 * x


def a_session() -> tuple[ClientSession, list[int]]:
    """A session without connection, and the list of its rousings."""
    roused: list[int] = []
    return ClientSession(lambda: roused.append(1)), roused


def frames_of(session: ClientSession) -> list[ClientFrame]:
    """Everything that waits, as the stream would take it."""
    frames: list[Any] = []
    defined: set[int | bytes] = set()
    while True:
        frame = ClientFrame()
        if not session.fill(frame, defined):
            assert session.rest()
            return frames
        frames.append(frame)


def answers(first: int, *payloads: bytes, state: TaskState = TaskState.SUCCEEDED) -> HeadFrame:
    """A frame with one outcome range."""
    return HeadFrame(outcomes=[Outcome(first, state, PayloadColumn.of(payloads), "w", 1)])


def test_only_the_first_task_after_idling_rouses() -> None:
    """A burst costs one wake-up of the loop thread."""
    session, roused = a_session()
    entry = session.define(PICKLED, b"code")
    assert frames_of(session) == []
    for _ in range(10):
        session.submit(entry, b"x")
    assert len(roused) == 1
    assert len(frames_of(session)) == 1
    session.submit(entry, b"x")
    assert len(roused) == 2


def test_frames_are_bounded_in_tasks_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks are cut into frames of 4,096 tasks or a megabyte; one bigger item goes alone."""
    session, _ = a_session()
    entry = session.define(PICKLED, b"")
    for _ in range(10_000):
        session.submit(entry, b"12345678")
    counts = [sum(len(s.payloads) for s in f.submissions) for f in frames_of(session)]
    assert counts == [4096, 4096, 10_000 - 8192]
    for size in (600_000, 600_000, 3_000_000, 10):
        session.submit(entry, bytes(size))
    sizes = [sum(len(s.payloads.blob) for s in f.submissions) for f in frames_of(session)]
    assert sizes == [600_000, 600_000, 3_000_000, 10]


def test_more_than_can_travel_is_refused_at_once() -> None:
    """Arguments or code over the limit of the way are a PayloadError, and nothing is kept."""
    session = ClientSession(lambda: None, max_payload_bytes=100_000)
    entry = session.define(PICKLED, b"")
    with pytest.raises(PayloadError, match="100001 bytes, at most 100000"):
        session.submit(entry, bytes(100_001))
    with pytest.raises(PayloadError, match="the code of g"):
        session.define(TaskClass("g", b"g" * 32, codec=Codec.PICKLE), bytes(100_001))
    session.submit(entry, bytes(100_000))
    assert len(frames_of(session)) == 1


def test_big_code_travels_alone() -> None:
    """So that code and big arguments do not add up to more than a message may hold."""
    session, _ = a_session()
    small = session.define(PICKLED, b"1")
    big = session.define(TaskClass("g", b"g" * 32, codec=Codec.PICKLE), bytes(3_000_000))
    session.submit(small, b"x")
    session.submit(big, bytes(3_000_000))
    frames = frames_of(session)
    assert [[len(d.code) for d in f.classes] for f in frames] == [[1], [3_000_000], []]
    assert [sum(len(s.payloads) for s in f.submissions) for f in frames] == [1, 0, 1]


def test_classes_that_take_turns_share_frames_and_keep_their_arguments() -> None:
    """Tasks of two classes in turn become one batch each, with their own arguments."""
    session, _ = a_session()
    one = session.define(PICKLED, b"1")
    two = session.define(TaskClass("g", b"g" * 32, codec=Codec.PICKLE), b"2")
    refs = [session.submit((one, two)[i % 2], b"%d" % i) for i in range(6)]
    (frame,) = frames_of(session)
    assert [d.number for d in frame.classes] == [1, 2]
    sent = {s.first + i: payload for s in frame.submissions for i, payload in enumerate(s.payloads)}
    for i, ref in enumerate(refs):
        assert sent[int(ref.task_id[20:], 16)] == b"%d" % i


def test_a_task_id_asked_for_early_is_the_one_that_is_sent() -> None:
    """Asking for the id seals the batch; later tasks go on in the next."""
    session, _ = a_session()
    entry = session.define(PICKLED, b"")
    first = session.submit(entry, b"a")
    name = first.task_id
    second = session.submit(entry, b"b")
    (frame,) = frames_of(session)
    assert [(s.first, list(s.payloads)) for s in frame.submissions] == [(0, [b"a"]), (1, [b"b"])]
    assert name == session.prefix.hex() + "0" * 12
    assert second.task_id.endswith("1")


def test_outcomes_find_their_references_in_any_grouping() -> None:
    """Ranges may cut batches anywhere, come twice, or concern nobody."""
    session, _ = a_session()
    entry = session.define(PICKLED, b"")
    refs = []
    for i in range(10):
        refs.append(session.submit(entry, b""))
        if i % 3 == 2:
            session.seal(refs[-1]._batch)
    frames_of(session)
    session.apply(answers(2, b"2", b"3", b"4", b"5", b"6"))
    session.apply(answers(4, b"x", b"x"))
    session.apply(answers(90, b"x"))
    session.apply(answers(0, b"0", b"1"))
    session.apply(answers(7, b"7", b"8", b"9", b"beyond"))
    assert [ref._data for ref in refs] == [b"%d" % i for i in range(10)]


def test_an_outcome_that_is_no_end_is_ignored() -> None:
    """A false head cannot end a task with a state that is not terminal."""
    session, _ = a_session()
    ref = session.submit(session.define(PICKLED, b""), b"")
    frames_of(session)
    session.apply(answers(0, b"", state=TaskState.RUNNING))
    assert not ref.is_done


def test_arguments_are_kept_until_they_are_acked() -> None:
    """An ack frees the arguments, of the batch as a whole."""
    session, _ = a_session()
    entry = session.define(PICKLED, b"")
    refs = [session.submit(entry, b"abc") for _ in range(4)]
    frames_of(session)
    batch = refs[0]._batch
    session.apply(HeadFrame(accepted=[AcceptedRange(0, 2)]))
    assert batch.column is not None
    session.apply(HeadFrame(accepted=[AcceptedRange(2, 2)]))
    assert batch.column is None
    assert all(ref._data is None for ref in refs)


def test_a_finished_batch_holds_nothing() -> None:
    """References and arguments are dropped when the last task has ended."""
    session, _ = a_session()
    entry = session.define(PICKLED, b"")
    refs = [session.submit(entry, b"abc") for _ in range(3)]
    frames_of(session)
    session.apply(answers(0, b"", b"", b""))
    assert refs[0]._batch.refs == []
    assert refs[0]._batch.column is None


def test_many_finished_batches_are_forgotten() -> None:
    """The index does not grow with the number of tasks ever run."""
    session, _ = a_session()
    entry = session.define(PICKLED, b"")
    for i in range(1_000):
        session.submit(entry, b"")
        frames_of(session)
        session.apply(answers(i, b""))
    assert len(session._ledger._batches) < 200


def test_after_a_reconnect_unacked_tasks_go_out_again_and_acked_ones_are_asked_for() -> None:
    """`restart` sends what was not acked with the same ids, and follows the rest."""
    session, _ = a_session()
    entry = session.define(PICKLED, b"code")
    for i in range(6):
        session.submit(entry, b"%d" % i)
    frames_of(session)
    session.apply(HeadFrame(accepted=[AcceptedRange(0, 4)]))
    session.apply(answers(1, b""))
    session.apply(answers(5, b""))
    session.restart()
    (frame,) = frames_of(session)
    assert frame.classes[0].code == b"code"
    assert [(s.first, list(s.payloads)) for s in frame.submissions] == [(4, [b"4"])]
    assert frame.follow == [TaskRange(0, 1), TaskRange(2, 2)]


def test_memory_tasks_that_a_new_head_does_not_know_are_handed_in_again() -> None:
    """They were acked before they were safe, so their arguments are kept until they end."""
    session, roused = a_session()
    entry = session.define(PICKLED, b"", durability=Durability.MEMORY)
    refs = [session.submit(entry, b"%d" % i) for i in range(4)]
    (frame,) = frames_of(session)
    assert [s.durability for s in frame.submissions] == [Durability.MEMORY]
    session.apply(HeadFrame(accepted=[AcceptedRange(0, 4, Durability.MEMORY)]))
    session.apply(answers(1, b""))
    session.restart()
    (frame,) = frames_of(session)
    asked = [TaskRange(0, 1), TaskRange(2, 2)]
    assert (frame.submissions, frame.follow) == ([], asked)
    roused.clear()
    session.apply(HeadFrame(unknown=[TaskRange(0, 1), TaskRange(2, 1)]))
    assert roused
    (frame,) = frames_of(session)
    assert [(s.first, list(s.payloads)) for s in frame.submissions] == [(0, [b"0"]), (2, [b"2"])]
    assert not any(ref.is_done for ref in (refs[0], *refs[2:]))
    # Once for each stream: a head that knows the task, and not its result any more, says so again.
    session.apply(
        HeadFrame(
            accepted=[AcceptedRange(0, 1, Durability.MEMORY), AcceptedRange(2, 1)],
            unknown=[TaskRange(2, 1)],
        )
    )
    with pytest.raises(TaskNotFound):
        rustray.get(refs[2])
    session.apply(answers(0, b""))
    session.apply(answers(3, b""))
    assert refs[0].is_done
    assert refs[3].is_done
    assert refs[0]._batch.column is None, "nothing is kept of what has ended"


@pytest.mark.parametrize(
    ("task_class", "level"),
    [
        (PICKLED, Durability.DEFAULT),
        (PICKLED, Durability.FULL),
        (replace(PICKLED, max_retries=0), Durability.MEMORY),
        (replace(PICKLED, exclusive=True), Durability.MEMORY),
    ],
)
def test_other_tasks_that_a_head_has_acked_and_does_not_know_are_lost(
    task_class: TaskClass, level: Durability
) -> None:
    """Also those of memory that must not run twice: nobody knows whether they have begun."""
    session, _ = a_session()
    ref = session.submit(session.define(task_class, b"", durability=level), b"x")
    frames_of(session)
    session.apply(HeadFrame(accepted=[AcceptedRange(0, 1, level)]))
    assert ref._batch.column is None
    session.restart()
    frames_of(session)
    session.apply(HeadFrame(unknown=[TaskRange(0, 1)]))
    assert frames_of(session) == []
    with pytest.raises(TaskNotFound):
        rustray.get(ref)


def test_cancels_follow_their_submission_and_survive_a_reconnect() -> None:
    """A cancel never overtakes its task, is merged with neighbours, and is sent again."""
    session, _ = a_session()
    entry = session.define(PICKLED, b"")
    refs = [session.submit(entry, b"") for _ in range(5)]
    session.cancel(refs[1:4], force=False)
    (frame,) = frames_of(session)
    assert len(frame.submissions[0].payloads) == 5
    assert [(c.first, c.count, c.force) for c in frame.cancels] == [(1, 3, False)]
    session.apply(HeadFrame(accepted=[AcceptedRange(0, 5)]))
    session.apply(answers(1, b"", state=TaskState.CANCELLED))
    session.restart()
    (frame,) = frames_of(session)
    assert [(c.first, c.count) for c in frame.cancels] == [(2, 2)]


def test_many_words_take_many_frames() -> None:
    """Cancels and questions for tasks here and there: a head takes only so many at once."""
    session, _ = a_session()
    entry = session.define(PICKLED, b"")
    refs = [session.submit(entry, b"") for _ in range(80_000)]
    frames_of(session)
    # What is acked and what has ended alternates.
    session.apply(HeadFrame(accepted=[AcceptedRange(0, len(refs))]))
    session.cancel(refs[::2], force=False)
    first, *others = frames_of(session)
    assert decode_client_frame(encode_client_frame(replace(first, number=1))).cancels
    cancels = [one for frame in (first, *others) for one in frame.cancels]
    assert [one.first for one in cancels] == list(range(0, len(refs), 2))
    for number in range(1, len(refs), 2):
        session.apply(answers(number, b""))
    session.restart()
    frames = frames_of(session)
    asked = [one for frame in frames for one in frame.follow]
    assert [(one.first, one.count) for one in asked] == [(n, 1) for n in range(0, len(refs), 2)]
    assert [one.first for frame in frames for one in frame.cancels] == [one.first for one in asked]
    for frame in frames:
        assert decode_client_frame(encode_client_frame(replace(frame, number=1))) is not None


def test_a_refused_task_gets_the_typed_error() -> None:
    """A rejection becomes the error class of its code, one instance per raise."""
    session, _ = a_session()
    ref = session.submit(session.define(PICKLED, b""), b"")
    frames_of(session)
    session.apply(HeadFrame(rejected=[Rejection(0, 1, "RESOURCE_NOT_AVAILABLE", "no GPU here")]))
    with pytest.raises(ResourceNotAvailable, match="no GPU here"):
        rustray.get(ref)
    assert ref.error() is not ref.error()


def test_a_huge_false_range_costs_nothing() -> None:
    """Ranges of a lying head are cut to what exists."""
    session, _ = a_session()
    session.submit(session.define(PICKLED, b""), b"")
    frames_of(session)
    session.apply(HeadFrame(accepted=[AcceptedRange(0, 1 << 47)], unknown=[TaskRange(1, 1 << 47)]))


def test_tasks_survive_a_lost_connection(head: FakeHead) -> None:
    """Tasks under way when the stream breaks end after the reconnect, and run once."""
    head.hold = True
    refs = [double.remote(i) for i in range(100)]
    eventually(lambda: len(head.held) == 100)
    head.dial_errors = [HeadUnavailable("not yet")]
    head.hold = False
    on_loop(lambda: head.links[-1].cut(HeadUnavailable("gone")))
    assert rustray.get(refs, timeout=30) == [2 * i for i in range(100)]
    assert len(head.ran) == 100
    assert len(head.links) == 2


def test_unacked_tasks_are_sent_again(head: FakeHead) -> None:
    """What the head never acked goes out again after the reconnect."""
    head.ack = False
    head.hold = True
    refs = [double.remote(i) for i in range(3)]
    eventually(lambda: len(head.held) == 3)
    head.known.clear()
    head.hold = False
    on_loop(lambda: head.links[-1].cut())
    assert rustray.get(refs, timeout=30) == [0, 2, 4]
    assert len(head.ran) == 6


def test_a_head_that_restarted_says_task_not_found(head: FakeHead) -> None:
    """Acked tasks that the new head does not know fail with a clear error."""
    head.hold = True
    ref = double.remote(1)
    eventually(lambda: head.held)
    head.known.clear()
    on_loop(lambda: head.links[-1].cut())
    with pytest.raises(TaskNotFound, match="the head restarted"):
        rustray.get(ref, timeout=30)


def test_a_head_of_another_release_ends_the_session(head: FakeHead) -> None:
    """Knocking on cannot help: who waits learns what to upgrade."""
    head.hold = True
    ref = double.remote(1)
    eventually(lambda: head.held)
    head.dial_errors = [VersionMismatch("upgrade rustray on the client's machine")]
    on_loop(lambda: head.links[-1].cut(HeadUnavailable("gone")))
    with pytest.raises(VersionMismatch, match="upgrade"):
        rustray.get(ref, timeout=30)


def test_a_gap_in_the_frames_makes_a_new_stream(head: FakeHead) -> None:
    """A lost frame is noticed by its number, and its outcomes are asked for again."""
    head.hold = True
    refs = [double.remote(i) for i in range(3)]
    eventually(lambda: len(head.held) == 3)

    def skip() -> None:
        head.links[-1].sent += 1
        head.hold = False
        head.links[-1].answer(HeadFrame())

    on_loop(skip)
    assert rustray.get(refs, timeout=30) == [0, 2, 4]
    assert len(head.links) == 2


def test_a_duplicate_frame_is_dropped(head: FakeHead) -> None:
    """A frame number that was there already changes nothing."""
    assert rustray.get(double.remote(1)) == 2

    def repeat() -> None:
        head.links[-1].pump.on_frame(HeadFrame(number=1, unknown=[TaskRange(0, 5)]))

    on_loop(repeat)
    assert rustray.get(double.remote(2)) == 4
    assert len(head.links) == 1


def test_received_frames_are_acked_when_nothing_else_is_sent(head: FakeHead) -> None:
    """The head learns soon that outcomes arrived, so that it can free them."""
    assert rustray.get(double.remote(1)) == 2
    eventually(lambda: head.frames[-1].ack == head.links[-1].sent)


def test_a_token_that_is_refused_on_the_way_back_ends_the_session(head: FakeHead) -> None:
    """Coming back cannot help: everything unfinished fails with the reason, and new tasks too."""
    head.hold = True
    ref = double.remote(1)
    eventually(lambda: head.held)
    head.dial_errors = [AuthenticationError("the token has been revoked")]
    on_loop(lambda: head.links[-1].cut())
    with pytest.raises(AuthenticationError, match="revoked"):
        rustray.get(ref, timeout=30)
    with pytest.raises(AuthenticationError):
        double.remote(2)


def test_shutdown_fails_what_is_unfinished(head: FakeHead) -> None:
    """References of a closed session raise instead of blocking for ever."""
    head.hold = True
    ref = double.remote(1)
    rustray.shutdown()
    with pytest.raises(CommunicationError, match="shut down"):
        rustray.get(ref)


def test_cancel_reaches_the_head(head: FakeHead) -> None:
    """A cancelled task raises TaskCancelled; one that has ended stays as it is."""
    done = double.remote(3)
    assert rustray.get(done) == 6
    head.hold = True
    refs = [double.remote(i) for i in range(3)]
    eventually(lambda: len(head.held) == 3)
    rustray.cancel([*refs[:2], done])
    for ref in refs[:2]:
        with pytest.raises(TaskCancelled):
            rustray.get(ref, timeout=10)
    on_loop(head.release)
    assert rustray.get([refs[2], done]) == [4, 6]


def test_threads_may_share_a_session(head: FakeHead) -> None:
    """Tasks handed in from many threads at once all come back right."""
    from concurrent.futures import ThreadPoolExecutor

    def work(base: int) -> list[int]:
        return rustray.get([double.remote(base + i) for i in range(500)])

    with ThreadPoolExecutor(8) as threads:
        found: list[Any] = list(threads.map(work, range(0, 8_000, 1_000)))
    assert found == [[2 * (b + i) for i in range(500)] for b in range(0, 8_000, 1_000)]


def test_the_window_constants_agree() -> None:
    """A batch fits into one frame."""
    assert intake.MAX_BATCH_TASKS <= session_module.MAX_FRAME_TASKS
    assert context.current_session is None


def released(frames: list[ClientFrame]) -> list[tuple[int, int]]:
    """Return how many tasks were handed in before each release of a task: (tasks, its number)."""
    found: list[tuple[int, int]] = []
    tasks = 0
    for frame in frames:
        tasks += sum(len(one.payloads) for one in frame.submissions)
        found += [(tasks, one.first) for one in frame.released]
    return found


def placed_at_once(session: ClientSession, entry: ClassEntry) -> TaskRef[Any]:
    """Hand in a task whose value stays with a worker."""
    ref = session.submit(entry, b"x")
    frames_of(session)
    number = ref._batch.first + ref._index
    place = PlacedColumn.of_item(Place(f"{number:032x}-1", 1 << 20, "w-1").pack())
    session.apply(HeadFrame(outcomes=[Outcome(number, TaskState.SUCCEEDED, place, "w-1", 1)]))
    return ref


def test_what_is_freed_goes_behind_the_tasks_that_take_it() -> None:
    """Not with a frame that has no room for these, nor after a stream broke that had them."""
    session, roused = a_session()
    entry = session.define(replace(PICKLED, results_stay=True), b"")
    takes = session.define(replace(PICKLED, has_inputs=True), b"")
    maker = placed_at_once(session, entry)
    for _ in range(3):
        session.submit_taking(takes, bytes(600_000), [maker])
    rustray.free(maker)
    frames = frames_of(session)
    assert (len(frames), released(frames)) == (3, [])
    session.restart()
    frames = frames_of(session)
    assert (len(frames), released(frames)) == (3, [])
    roused.clear()
    session.apply(HeadFrame(accepted=[AcceptedRange(1, 2)]))
    assert released(frames_of(session)) == []
    session.apply(HeadFrame(accepted=[AcceptedRange(3, 1)]))
    assert roused
    assert released(frames_of(session)) == [(0, 0)]
    session.restart()
    assert released(frames_of(session)) == [(0, 0)]


def test_tasks_that_come_later_hold_nothing_back() -> None:
    """However many keep coming: what was freed before waits for those alone that were before."""
    session, _ = a_session()
    entry = session.define(replace(PICKLED, results_stay=True), b"")
    takes = session.define(replace(PICKLED, has_inputs=True), b"")
    maker, other = placed_at_once(session, entry), placed_at_once(session, entry)
    session.submit_taking(takes, b"x", [maker])
    rustray.free(maker)
    assert released(frames_of(session)) == []
    session.submit_taking(takes, b"x", [other])
    assert released(frames_of(session)) == []
    session.apply(HeadFrame(accepted=[AcceptedRange(2, 1)]))
    assert released(frames_of(session)) == [(0, 0)]
