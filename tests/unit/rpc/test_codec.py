"""Frames and views survive the wire, and nothing that a peer sends does more than raise."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustray.common.durability import Durability
from rustray.common.errors import CommunicationError, VersionMismatch
from rustray.common.resources import ResourceSet
from rustray.proto.rustray.v1 import common_pb2, head_pb2
from rustray.rpc import codec
from rustray.rpc.convert import MAX_RANGE
from rustray.rpc.nested_codec import decode_nested_frame, encode_nested_frame
from rustray.rpc.ranges import MAX_LISTED
from rustray.task.columns import PayloadColumn, PlacedColumn
from rustray.task.frames import (
    AcceptedRange,
    Adoption,
    AssignFrame,
    CancelRequest,
    ClassDefinition,
    ClientFrame,
    HeadFrame,
    HeldRange,
    LeaseCancel,
    LeaseGrant,
    LeaseNews,
    LeaseOutcome,
    LeaseRange,
    NestedFrame,
    NestedItem,
    Outcome,
    Rejection,
    Submission,
    Surrendered,
    TaskRange,
    WorkerFrame,
)
from rustray.task.needs import Alternative
from rustray.task.place import Place
from rustray.task.runtime_env import RuntimeEnv
from rustray.task.spec import Codec, ExecutorKind, TaskClass
from rustray.task.state import TaskState
from rustray.task.streams import LeaseItems, StreamCredit, StreamItems, StreamRead

u32 = st.integers(0, 2**32 - 1)
u63 = st.integers(1, 2**63)
sequences = st.integers(0, 2**47)
counts = st.integers(1, MAX_RANGE)
listed = st.integers(1, MAX_LISTED // 3)
class_numbers = st.integers(1, 2**31 - 1)
prefixes = st.binary(min_size=10, max_size=10)
names = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=20)
shown = names | st.just("")
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
columns = st.lists(st.binary(max_size=20), min_size=1, max_size=20).map(PayloadColumn.of)
seconds = st.floats(0.001, 1e6) | st.just(0.0)


@st.composite
def slices(draw: st.DrawFn) -> PayloadColumn:
    """Columns that share their numbers with a longer one."""
    column = draw(columns)
    low = draw(st.integers(0, len(column) - 1))
    return column.slice(low, draw(st.integers(low + 1, len(column))))


payloads = columns | slices()
pairs = st.dictionaries(names, shown, max_size=3).map(lambda d: tuple(sorted(d.items())))
selectors = st.dictionaries(
    names, st.sampled_from(["a", "!a", "in(a,b)", "!in(a,b,c)"]), max_size=3
).map(lambda d: tuple(sorted(d.items())))
alternatives = st.builds(
    Alternative,
    st.dictionaries(names, st.integers(1, 10**15), max_size=3).map(ResourceSet),
    pairs,
    selectors,
    selectors,
)
digests = st.binary(min_size=32, max_size=32)
envs = st.builds(
    RuntimeEnv,
    st.dictionaries(st.sampled_from("ABC"), shown, max_size=3).map(
        lambda d: tuple(sorted(d.items()))
    ),
    st.just(b"") | digests,
    st.lists(digests, max_size=2).map(tuple),
)
classes = st.builds(
    TaskClass,
    function=names,
    code_hash=st.just(b"") | st.binary(min_size=32, max_size=32),
    nargs=st.integers(-1, 1000),
    kwarg_names=st.lists(names, max_size=3, unique=True).map(lambda n: tuple(sorted(n))),
    resources=st.dictionaries(names, st.integers(1, 10**15), max_size=3).map(ResourceSet),
    labels=pairs,
    priority=st.integers(-(2**31), 2**31 - 1),
    max_retries=st.integers(-1, 1_000_000),
    oom_retries=st.integers(-1, 1_000_000),
    retry_exceptions=st.booleans(),
    timeout_s=seconds,
    queue_timeout_s=seconds,
    total_timeout_s=seconds,
    codec=st.sampled_from(Codec),
    executor=st.sampled_from(ExecutorKind),
    wait_for_resources=st.booleans(),
    label_selector=selectors,
    label_selector_soft=selectors,
    fallback=st.lists(alternatives, max_size=2).map(tuple),
    alternative=st.integers(0, 16),
    depth=st.integers(0, 1000),
    inherits_priority=st.booleans(),
    runtime_env=st.none() | envs,
)
classes |= classes.map(lambda c: replace(c, executor=ExecutorKind.PROCESS, exclusive=True))
classes |= classes.map(lambda c: replace(c, executor=ExecutorKind.PROCESS, stream_window=9))
definitions = st.builds(
    ClassDefinition,
    class_numbers,
    classes,
    st.binary(max_size=50),
    st.lists(st.binary(max_size=50), max_size=2).map(tuple),
)
ranges = st.builds(TaskRange, sequences, counts)
lease_ranges = st.builds(LeaseRange, u63, st.integers(0, 2**31), listed)
terminal = st.sampled_from([state for state in TaskState if state.is_terminal])
reported = st.sampled_from(
    [TaskState.LEASED, TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED]
)


def some(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Return short lists."""
    return st.lists(strategy, max_size=3)


indexes = st.integers(0, 2**31)
how_far = st.builds(StreamCredit, u63, u32, u32, u32)
client_frames = st.builds(
    ClientFrame,
    number=u63,
    ack=u63,
    classes=some(definitions),
    submissions=some(
        st.builds(
            Submission,
            class_numbers,
            sequences,
            payloads,
            durability=st.sampled_from(Durability),
        )
    ),
    cancels=some(
        st.builds(
            CancelRequest,
            prefixes | st.just(b""),
            sequences,
            counts,
            st.booleans(),
            st.booleans(),
        )
    ),
    follow=some(ranges),
    reads=some(
        st.builds(StreamRead, sequences, u32, u32 | st.just(-1), st.booleans()),
    ),
    token=words,
)
head_frames = st.builds(
    HeadFrame,
    number=u63,
    ack=u63,
    accepted=some(st.builds(AcceptedRange, sequences, counts, st.sampled_from(Durability))),
    rejected=some(st.builds(Rejection, sequences, counts, words, words)),
    outcomes=some(st.builds(Outcome, sequences, terminal, payloads, words, u32, u32)),
    unknown=some(ranges),
    items=some(st.builds(StreamItems, sequences, indexes, payloads)),
)
places = st.builds(
    Place,
    st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True),
    st.integers(1, 2**40),
    shown,
    address=shown,
).map(Place.pack)
one_value = st.binary(max_size=20).map(lambda value: PayloadColumn.of([value]))
answers = (
    st.builds(Surrendered, names, one_value | places.map(PlacedColumn.of_item))
    | st.builds(Surrendered, names, trouble=names)
    | st.builds(Surrendered, names, is_gone=st.just(True))
)
assign_frames = st.builds(
    AssignFrame,
    number=u63,
    ack=u63,
    classes=some(definitions),
    leases=some(
        st.builds(
            LeaseGrant,
            u63,
            class_numbers,
            u32,
            prefixes,
            sequences,
            payloads,
            seconds,
            some(how_far).map(tuple),
            st.just((0, 0)) | st.tuples(u63, u32),
        ),
    ),
    cancels=some(st.builds(LeaseCancel, u63, st.integers(0, 2**31), counts, st.booleans())),
    recall=some(lease_ranges),
    drain=st.booleans(),
    credits=some(how_far),
    free=some(names),
    surrender=some(names),
    adopt=some(st.builds(Adoption, names, places, shown)),
)
worker_frames = st.builds(
    WorkerFrame,
    number=u63,
    ack=u63,
    held=st.none()
    | some(
        st.builds(HeldRange, u63, st.integers(0, 2**31), listed, prefixes, sequences, u32, u32, u63)
    ),
    outcomes=some(st.builds(LeaseOutcome, u63, st.integers(0, 2**31), reported, payloads, u63)),
    returned=some(lease_ranges),
    started=some(lease_ranges),
    blocked=some(st.builds(LeaseRange, u63, st.integers(0, 2**31), st.just(1))),
    resumed=some(st.builds(LeaseRange, u63, st.integers(0, 2**31), st.just(1))),
    news=some(
        st.builds(LeaseNews, u63, u32, st.floats(0.0, 1.0), words)
        | st.builds(
            LeaseNews,
            u63,
            u32,
            st.none(),
            names,
            st.binary(max_size=4096),
        )
    ),
    items=some(st.builds(LeaseItems, u63, u32, indexes, payloads)),
    surrendered=some(answers),
    draining=st.booleans(),
    drained=st.booleans(),
    token=words,
)
nested_frames = st.builds(
    NestedFrame,
    items=some(
        st.builds(NestedItem, u63.filter(lambda n: n < 2**63), st.tuples(u63, u32))
        | st.builds(NestedItem, st.integers(1, 1000), data=st.binary(min_size=1, max_size=50))
        | st.builds(NestedItem, st.integers(1, 1000), ends=st.just(True), code=words, message=words)
    ),
    token=words,
)
DECODERS: list[Callable[[bytes], Any]] = [
    decode_nested_frame,
    codec.decode_client_frame,
    codec.decode_head_frame,
    codec.decode_assign_frame,
    codec.decode_worker_frame,
    codec.decode_client_hello,
    codec.decode_worker_hello,
]


@given(client_frames)
def test_client_frames_round_trip(frame: ClientFrame):
    """A client's frame arrives equal."""
    assert codec.decode_client_frame(codec.encode_client_frame(frame)) == frame


@given(head_frames)
def test_head_frames_round_trip(frame: HeadFrame):
    """A head's frame to a client arrives equal."""
    assert codec.decode_head_frame(codec.encode_head_frame(frame)) == frame


@given(assign_frames)
def test_assign_frames_round_trip(frame: AssignFrame):
    """A head's frame to a worker arrives equal."""
    assert codec.decode_assign_frame(codec.encode_assign_frame(frame)) == frame


def test_what_is_no_place_is_not_taken_over():
    """The head says where a value is, in full."""
    frame = codec.encode_assign_frame(AssignFrame(number=1, adopt=[Adoption("a.1", b"nowhere")]))
    with pytest.raises(CommunicationError):
        codec.decode_assign_frame(frame)


@given(worker_frames)
def test_worker_frames_round_trip(frame: WorkerFrame):
    """A worker's frame arrives equal."""
    assert codec.decode_worker_frame(codec.encode_worker_frame(frame)) == frame


@given(prefixes, words, u63)
def test_hellos_round_trip(prefix: bytes, worker_id: str, session: int):
    """Who opens a stream arrives equal."""
    assert codec.decode_client_hello(codec.encode_client_hello(prefix)) == (prefix, 1)
    hello = codec.encode_worker_hello(worker_id, session)
    assert codec.decode_worker_hello(hello) == (worker_id, session, 1)


@given(nested_frames)
def test_nested_frames_round_trip(frame: NestedFrame):
    """What goes in comes out."""
    assert decode_nested_frame(encode_nested_frame(frame)) == frame


@pytest.mark.parametrize(
    "item",
    [
        NestedItem(1),
        NestedItem(0, data=b"x"),
        NestedItem(1, (1, 0), b"x"),
        NestedItem(1, data=b"x", ends=True),
        NestedItem(2**63, data=b"x"),
    ],
)
def test_an_item_of_a_nested_session_is_one_thing(item: NestedItem):
    """Neither nothing nor two things at once, of a channel that can be."""
    with pytest.raises(CommunicationError):
        decode_nested_frame(encode_nested_frame(NestedFrame(items=[item])))


@pytest.mark.parametrize("decode", DECODERS)
@given(st.binary(max_size=200))
def test_random_bytes_only_raise(decode: Callable[[bytes], Any], data: bytes):
    """Any bytes give a value or a CommunicationError."""
    with contextlib.suppress(CommunicationError):
        decode(data)


@given(st.data(), client_frames | worker_frames)
def test_damaged_frames_only_raise(data: st.DataObject, frame: ClientFrame | WorkerFrame):
    """A frame with a byte changed or its end cut off gives a frame or a CommunicationError."""
    decode: Callable[[bytes], Any]
    if isinstance(frame, ClientFrame):
        raw, decode = bytearray(codec.encode_client_frame(frame)), codec.decode_client_frame
    else:
        raw, decode = bytearray(codec.encode_worker_frame(frame)), codec.decode_worker_frame
    position = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw[position] ^= data.draw(st.integers(1, 255))
    else:
        del raw[position:]
    with contextlib.suppress(CommunicationError):
        decode(bytes(raw))


def submission(**payloads: Any) -> bytes:
    """Make a frame with one submission of odd payloads."""
    message = head_pb2.ClientFrame(number=1)
    message.submissions.add(class_number=1, payloads=common_pb2.Payloads(**payloads))
    return message.SerializeToString()


def le32(*numbers: int) -> bytes:
    """Write unsigned 32-bit little-endian numbers."""
    return b"".join(number.to_bytes(4, "little") for number in numbers)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (submission(), "column of 0"),
        (submission(blob=b"abc"), "without items"),
        (submission(blob=b"abc", ends=b"\1\0"), "malformed frame of a client"),
        (submission(blob=b"abc", ends=le32(2)), "do not match"),
        (submission(blob=b"abc", ends=le32(3), base=1), "do not match"),
        (submission(blob=b"abc", ends=le32(9, 1, 3)), "out of order"),
        (submission(blob=b"abc", ends=le32(2, 5), base=3), "do not match"),
        (head_pb2.ClientFrame().SerializeToString(), "numbered from 1"),
        (
            head_pb2.ClientFrame(
                number=1, follow=[common_pb2.TaskRange(first=2**48 - 1, count=2)]
            ).SerializeToString(),
            "beyond",
        ),
        (
            head_pb2.ClientFrame(number=1, follow=[common_pb2.TaskRange()]).SerializeToString(),
            "range of 0",
        ),
        (
            head_pb2.ClientFrame(
                number=1, cancels=[head_pb2.CancelRange(prefix=b"short", count=1)]
            ).SerializeToString(),
            "10 bytes",
        ),
        (
            head_pb2.ClientFrame(
                number=1, classes=[common_pb2.ClassDefinition(number=0)]
            ).SerializeToString(),
            "class number",
        ),
        (
            head_pb2.ClientFrame(
                number=1,
                classes=[
                    common_pb2.ClassDefinition(
                        number=1,
                        task_class=common_pb2.TaskClass(
                            function="f",
                            codec=common_pb2.CODEC_JSON,
                            resource_units={"cpu_cores": 2**63},
                        ),
                    )
                ],
            ).SerializeToString(),
            "more than any machine",
        ),
        (
            head_pb2.ClientFrame(
                number=1,
                cancels=[head_pb2.CancelRange(count=1)] * 40_000,
                follow=[common_pb2.TaskRange(count=1)] * 30_000,
            ).SerializeToString(),
            "more than 65536 entries",
        ),
    ],
)
def test_a_false_frame_is_named(data: bytes, reason: str):
    """What is wrong with a client's frame is in the error."""
    with pytest.raises(CommunicationError, match=reason):
        codec.decode_client_frame(data)


@pytest.mark.parametrize("state", [TaskState.QUEUED, TaskState.RUNNING, TaskState.POISONED])
def test_a_worker_cannot_report_what_is_the_heads_to_decide(state: TaskState):
    """States that a worker has no say in are refused."""
    outcome = LeaseOutcome(1, 0, state, PayloadColumn.of([b""]), 0)
    with pytest.raises(CommunicationError, match=state.name):
        codec.decode_worker_frame(codec.encode_worker_frame(WorkerFrame(1, outcomes=[outcome])))


def test_long_ranges_are_cut_to_what_the_wire_allows():
    """A range of more than 2^24 tasks arrives as several that join."""
    frame = ClientFrame(number=1, follow=[TaskRange(5, 3 * MAX_RANGE + 7)])
    found = codec.decode_client_frame(codec.encode_client_frame(frame)).follow
    assert sum(part.count for part in found) == 3 * MAX_RANGE + 7
    assert [part.first for part in found] == [5 + n * MAX_RANGE for n in range(4)]


def test_another_protocol_is_refused_with_advice():
    """A peer of another version learns both versions and whom to upgrade."""
    hello = head_pb2.ClientHello(prefix=b"0123456789", protocol=2).SerializeToString()
    with pytest.raises(VersionMismatch, match=r"version 2 .* version 1: upgrade .* the head"):
        codec.decode_client_hello(hello)


def test_texts_that_utf8_cannot_carry_are_mended():
    """Lone surrogates in a message do not stop the frame."""
    frame = HeadFrame(number=1, rejected=[Rejection(0, 1, "X", "bad \ud800 text")])
    (found,) = codec.decode_head_frame(codec.encode_head_frame(frame)).rejected
    assert found.message == "bad ? text"
