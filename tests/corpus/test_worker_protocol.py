"""Group D of the bad-input corpus: workers that lie, repeat themselves, or are somebody else.

`tests/corpus/test_coverage.py` says of each case of the corpus where it is tested.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from helpers.bad_input import CALL_S, Answer, BadInput, RawStream
from helpers.waiting import eventually
from rustray.proto.rustray.v1 import common_pb2, head_pb2
from rustray.rpc.grpcio import StatusCode
from rustray.rpc.versions import PROTOCOL

pytestmark = pytest.mark.slow

NAN, INF = float("nan"), float("inf")
ESC, BIDI = "\x1b[31m", "\u202e"
OK, INVALID = StatusCode.OK, StatusCode.INVALID_ARGUMENT
DENIED, MISFIT = StatusCode.PERMISSION_DENIED, StatusCode.FAILED_PRECONDITION
SUCCEEDED = common_pb2.TASK_STATE_SUCCEEDED
FAILED = common_pb2.TASK_STATE_FAILED
Register, Frame = head_pb2.RegisterWorkerRequest, head_pb2.WorkerFrame
Outcome, Range = head_pb2.LeaseOutcome, head_pb2.LeaseRange
_numbers = itertools.count()
FAR: Final = 2**63


def payloads(*items: bytes) -> common_pb2.Payloads:
    """Put payloads side by side."""
    ends = itertools.accumulate(map(len, items))
    return common_pb2.Payloads(
        blob=b"".join(items), ends=b"".join(end.to_bytes(4, "little") for end in ends)
    )


class Liar:
    """A worker by hand.

    Attributes:
        worker_id: Its id.
        function: What it alone offers.
        stream: Of its present session.
        lease: The lease that it was given last.
        places: Lease and offset of each task that it was given last.
    """

    def __init__(self, head: BadInput, cpus: float = 4) -> None:
        number = next(_numbers)
        self.worker_id = f"liar-{number:08x}"
        self.function = f"lies_{number}"
        self.incarnation = 1
        self.lease = 0
        self.places: list[tuple[int, int]] = []
        self._head = head
        self._cpus = cpus
        self.session = self.register()
        self.open()

    def register(self, incarnation: int = 1) -> int:
        """Register, and return the session's number."""
        self.incarnation = incarnation
        asked = Register(
            worker_id=self.worker_id,
            incarnation=incarnation,
            protocol=PROTOCOL,
            name="liar",
            resources={"cpu_cores": self._cpus},
            functions=[common_pb2.Function(name=self.function)],
        )
        made = self._head.ask("RegisterWorker", asked, head_pb2.RegisterWorkerResponse, "worker")
        session: int = made.session
        return session

    def hello(self, session: int = 0, protocol: int = PROTOCOL) -> head_pb2.WorkerHello:
        """Make who opens its stream."""
        session = session or self.session
        return head_pb2.WorkerHello(worker_id=self.worker_id, session=session, protocol=protocol)

    def open(self, held: tuple[head_pb2.HeldRange, ...] = ()) -> None:
        """Open a stream, and say what it holds."""
        self.stream: RawStream = self._head.stream("WorkerStream", self.hello(), "worker")
        self.stream.wait_open()
        self.frames: Iterator[Any] = self.stream.frames(head_pb2.AssignFrame)
        self.stream.send(Frame(has_held=True, held=held))

    def take(self, count: int = 1, **fields: Any) -> list[str]:
        """Have tasks handed in that only this worker can run, and take the lease."""
        made = common_pb2.TaskRequest(
            function_name=self.function, codec=common_pb2.CODEC_JSON, **fields
        )
        batch = head_pb2.SubmitTasksRequest(tasks=[made] * count)
        reply = self._head.ask("SubmitTasks", batch, head_pb2.SubmitTasksResponse)
        assert not any(verdict.HasField("error") for verdict in reply.verdicts), reply
        self.places = []
        while len(self.places) < count:
            self.next_lease()
        return [verdict.task_id for verdict in reply.verdicts]

    def next_lease(self) -> int:
        """Wait for work, and return its lease."""
        frame = next(frame for frame in self.frames if frame.leases)
        for grant in frame.leases:
            self.lease = grant.lease
            self.places += [(grant.lease, n) for n in range(len(grant.payloads.ends) // 4)]
        return self.lease

    def outcome(self, value: bytes = b"1", task: int = 0, **fields: Any) -> head_pb2.LeaseOutcome:
        """Make a report of a task that is good but for what is given."""
        lease, offset = self.places[task]
        good: dict[str, Any] = {"state": SUCCEEDED, "payloads": payloads(value)}
        return Outcome(**{"lease": lease, "offset": offset, **good, **fields})

    def say(self, **fields: Any) -> None:
        """Send a frame."""
        self.stream.send(Frame(**fields))

    def beat(self, **fields: Any) -> Answer:
        """Send a heartbeat."""
        good: dict[str, Any] = {"worker_id": self.worker_id, "session": self.session}
        asked = head_pb2.HeartbeatRequest(**{**good, **fields})
        return self._head.call("Heartbeat", asked, "worker")

    def leave(self) -> None:
        """Give back what it has, and go."""
        self.session = self.register(self.incarnation)
        self.open()
        self.say(draining=True, drained=True)
        eventually(lambda: self.worker_id not in self._present(), CALL_S)
        self.stream.hang_up()

    def _present(self) -> list[str]:
        asked = head_pb2.ListWorkersRequest()
        found = self._head.ask("ListWorkers", asked, head_pb2.ListWorkersResponse, "observe")
        return [worker.worker_id for worker in found.workers]


@pytest.fixture
def liar(head: BadInput) -> Iterator[Liar]:
    """A worker that has joined."""
    liar = Liar(head)
    yield liar
    liar.leave()


def stale(why: str, count: int = 1, what: str = "reports") -> dict[str, int]:
    """Return what is counted where so much was dropped."""
    return {f"stale_{what}": count, f"stale_{what}_{why}": count}


# ── Reports ─────────────────────────────────────────────────────────────────────────────────────

REPORTS: dict[str, tuple[Callable[[Liar], dict[str, Any]], dict[str, int]]] = {
    "D1 an end of an unknown task": (
        lambda liar: {"outcomes": [liar.outcome(lease=FAR)]}, stale("unknown_lease")
    ),
    "D1 a return of an unknown task": (
        lambda liar: {"returned": [Range(lease=FAR, count=1)]}, stale("unknown_lease")
    ),
    "D1 a start of an unknown task": (
        lambda liar: {"started": [Range(lease=FAR, count=1)]}, stale("unknown_lease")
    ),
    "D1 a task beyond its lease": (
        lambda liar: {"outcomes": [liar.outcome(offset=7)]}, stale("out_of_range")
    ),
    "D1 2^24 tasks beyond its lease": (
        lambda liar: {"returned": [Range(lease=liar.lease, count=1 << 24)]},
        stale("out_of_range", 1 << 24),
    ),
    "D2 a future attempt": (
        lambda liar: {"outcomes": [liar.outcome(lease=liar.lease + 1)]}, stale("unknown_lease")
    ),
    "D2 a stale attempt": (
        lambda liar: {"outcomes": [liar.outcome(lease=liar.lease - 1)]}, stale("unknown_lease")
    ),
    "D3 a start of another worker's": (
        lambda liar: {"started": [Range(lease=others_lease(liar), count=1)]}, stale("foreign_lease")
    ),
    "D3 an end of another worker's": (
        lambda liar: {"outcomes": [liar.outcome(lease=others_lease(liar))]}, stale("foreign_lease")
    ),
    "D3 a return of another worker's": (
        lambda liar: {"returned": [Range(lease=others_lease(liar), count=1)]},
        stale("foreign_lease"),
    ),
    "D3 news of another worker's": (
        lambda liar: {"news": [head_pb2.LeaseNews(lease=others_lease(liar), fraction=0.5)]},
        stale("foreign_lease", what="news"),
    ),
    "D15 news of an unknown task": (
        lambda liar: {"news": [head_pb2.LeaseNews(lease=FAR, fraction=0.5)]},
        stale("unknown_lease", what="news"),
    ),
    "D15 news of a task beyond its lease": (
        lambda liar: {"news": [head_pb2.LeaseNews(lease=liar.lease, offset=9, fraction=0.5)]},
        stale("out_of_range", what="news"),
    ),
    "D15 progress that goes backwards": (
        lambda liar: {
            "news": [
                head_pb2.LeaseNews(lease=liar.lease, fraction=fraction) for fraction in (0.9, 0.1)
            ]
        },
        {},
    ),
    "D14 output that nobody asked for": (
        lambda liar: {"output": [head_pb2.OutputAnswer(number=n, attempt=1) for n in (0, 7, FAR)]},
        {"stale_output": 3},
    ),
    "D14 1,000 sessions that print": (
        lambda liar: {"printing": [b"%010d" % n for n in range(1_000)]}, {}
    ),
    "D5 an end before the start": (lambda liar: {"outcomes": [liar.outcome(b"7", 1)]}, {}),
    "D1 empty": (lambda liar: {}, {}),
}  # fmt: skip
_others: list[Liar] = []


def others_lease(_: Liar) -> int:
    """Return the lease of the worker that `other` has made."""
    return _others[-1].lease


@pytest.fixture
def other(head: BadInput) -> Iterator[Liar]:
    """Another worker, with a task."""
    other = Liar(head)
    _others.append(other)
    yield other
    _others.remove(other)
    other.leave()


@pytest.mark.parametrize("name", REPORTS)
def test_a_false_report_is_dropped_and_counted(
    head: BadInput, liar: Liar, other: Liar, name: str
) -> None:
    """By its reason and once; the reporter's tasks and the other worker's end as they should."""
    lie, counted = REPORTS[name]
    [theirs] = other.take()
    before = head.look()
    mine = liar.take(2)
    liar.say(**lie(liar))
    if not counted:
        head.assert_unharmed(before)
    ends = [liar.outcome(b"7", 0), liar.outcome(b"7", 1)]
    liar.say(outcomes=ends[:1] if "before the start" in name else ends)
    for task_id in mine:
        assert head.result(task_id).state == SUCCEEDED
    other.say(outcomes=[other.outcome(b"8")])
    found = head.result(theirs)
    assert (found.payload, found.worker_id) == (b"8", other.worker_id)
    head.assert_counted(before, counted)
    head.assert_unharmed(before)


@pytest.mark.parametrize("again", [b"1", b"2"], ids=["same", "different"])
def test_a_report_that_comes_twice_counts_once(head: BadInput, liar: Liar, again: bytes) -> None:
    """D4: the first one stands, whatever the second one says."""
    before = head.look()
    done, left = liar.take(2)
    liar.say(outcomes=[liar.outcome(b"1")])
    liar.say(outcomes=[liar.outcome(again)])
    liar.say(outcomes=[liar.outcome(b"3", 1)])
    assert (head.result(done).payload, head.result(left).payload) == (b"1", b"3")
    head.assert_counted(before, stale("ended"))
    before = head.look()
    liar.say(outcomes=[liar.outcome(again)])
    liar.take()  # the head has taken the frame before
    head.assert_counted(before, stale("unknown_lease"))
    head.assert_unharmed(before)


def test_an_end_after_a_cancel_is_taken_and_a_second_one_is_not(head: BadInput, liar: Liar) -> None:
    """D6: until the worker has confirmed, its outcome stands; afterwards nothing changes."""
    before = head.look()
    first, second = liar.take(2)
    asked = head_pb2.CancelTaskRequest(task_ids=[first, second])
    head.ask("CancelTask", asked, head_pb2.CancelTaskResponse)
    next(frame for frame in liar.frames if frame.cancels)
    liar.say(outcomes=[liar.outcome(b"1")])
    assert (head.result(first).state, head.result(first).payload) == (SUCCEEDED, b"1")
    liar.say(outcomes=[liar.outcome(state=FAILED)])
    liar.say(outcomes=[liar.outcome(b"", 1, state=common_pb2.TASK_STATE_CANCELLED)])
    assert head.result(second).state == common_pb2.TASK_STATE_CANCELLED
    assert head.result(first).state == SUCCEEDED
    head.assert_counted(before, stale("ended"))
    head.assert_unharmed(before)


def test_a_failure_that_nobody_can_read_fails_its_task(head: BadInput, liar: Liar) -> None:
    """Bytes that are no failure, and one with a text of a megabyte: lists stay small and whole."""
    before = head.look()
    names = liar.take(2)
    huge = b"\x82\xa4code\xa1x\xa7message\xdb" + (1 << 20).to_bytes(4, "big") + b"\xe5\xad\x97" * (
        (1 << 20) // 3
    ) + b"x"  # fmt: skip
    liar.say(
        outcomes=[liar.outcome(b"\xff\x00", state=FAILED), liar.outcome(huge, 1, state=FAILED)]
    )
    assert [head.result(name).state for name in names] == [FAILED, FAILED]
    asked = head_pb2.ListTasksRequest(function=liar.function)
    answer = head.call("ListTasks", asked, "observe")
    listed = head_pb2.ListTasksResponse.FromString(answer.messages[0]).tasks
    assert listed[0].error_code == "INTERNAL"
    assert len(answer.messages[0]) < 10_000
    head.assert_counted(before, {})
    head.assert_unharmed(before)


def test_what_a_worker_says_is_shown_without_what_steers_a_terminal(
    head: BadInput, liar: Liar
) -> None:
    """C7, D14: errors and docstrings reach people with such characters escaped or taken out."""
    [name] = liar.take()
    said = f"red{ESC} {BIDI}drawkcab \x00".encode()
    failure = b"\x82\xa4code\xabTASK_FAILED\xa7message\xd9" + bytes((len(said),)) + said
    liar.say(outcomes=[liar.outcome(failure, state=FAILED)])
    assert head.result(name).state == FAILED
    for command in (
        ("tasks", "list", "--state", "FAILED"),
        ("tasks", "explain", name),
        ("tasks", "get", name),
        ("tasks", "export", "--state", "FAILED"),
        ("workers", "list"),
    ):
        for flags in ((),) if command[1] == "export" else ((), ("--json",)):
            shown = head.cluster.run(*command, *flags)
            text = shown.stdout + shown.stderr
            assert not any(mark in text for mark in (ESC, BIDI, "\x00")), ascii(text)
    assert "drawkcab" in head.cluster.run("tasks", "get", name).stderr


# ── Sessions ────────────────────────────────────────────────────────────────────────────────────


def test_the_newer_of_two_sessions_wins(head: BadInput, liar: Liar) -> None:
    """D7: the older stream ends, and what came on it is not acked, so nothing is lost."""
    before = head.look()
    [task_id] = liar.take()
    old = liar.stream
    held = head_pb2.HeldRange(
        lease=liar.lease, count=1, prefix=bytes.fromhex(task_id[:20]),
        first=int(task_id[20:], 16), attempt=1,
    )  # fmt: skip
    liar.session = liar.register()
    old.send(Frame(outcomes=[liar.outcome(b"old")]))
    assert old.end().status is OK
    liar.open((held,))
    liar.say(outcomes=[liar.outcome(b"new")])
    assert head.result(task_id).payload == b"new"
    head.assert_counted(before, {"streams_closed": 1, "streams_closed_old_session": 1})
    head.assert_unharmed(before)


def test_a_second_stream_of_a_session_takes_its_place(head: BadInput, liar: Liar) -> None:
    """D7: there is one stream for each worker."""
    before = head.look()
    old = liar.stream
    liar.open()
    assert old.end().status is OK
    liar.take()
    head.assert_counted(before, {"streams_closed": 1, "streams_closed_replaced": 1})
    head.assert_unharmed(before)


def test_a_newer_start_fences_the_older_one(head: BadInput, liar: Liar) -> None:
    """D7, D8: its work is given out again at once; the older start may not come back."""
    before = head.look()
    [task_id] = liar.take()
    old, old_session = liar.stream, liar.session
    old_lease = liar.lease
    liar.session = liar.register(incarnation=2)
    liar.open()
    liar.places.clear()
    assert liar.next_lease() != old_lease
    late = Register(worker_id=liar.worker_id, incarnation=1, protocol=PROTOCOL, name="liar")
    refused = head.call("RegisterWorker", late, "worker")
    assert (refused.status, refused.code) == (INVALID, "COMMUNICATION")
    beat = liar.beat(session=old_session)
    assert not head_pb2.HeartbeatResponse.FromString(beat.messages[0]).is_known
    opened = head.stream("WorkerStream", liar.hello(old_session), "worker").end()
    assert (opened.status, opened.code) == (INVALID, "COMMUNICATION")
    liar.say(outcomes=[liar.outcome(b"1", lease=old_lease), liar.outcome(b"2")])
    assert head.result(task_id).payload == b"2"
    assert old.end().status is OK
    head.assert_counted(
        before,
        {
            "calls_refused": 2,
            "calls_refused_communication": 2,
            "workers_refused": 1,
            "workers_refused_incarnation": 1,
            "streams_closed": 1,
            "streams_closed_replaced": 1,
            **stale("unknown_lease"),
            **stale("old_session", what="heartbeats"),
        },
    )
    head.assert_unharmed(before, refused, opened)


def test_what_was_not_leased_is_to_be_dropped(head: BadInput, liar: Liar) -> None:
    """D3, D16: a worker that comes back with leases that are not its own is told to drop them."""
    before = head.look()
    liar.session = liar.register()
    other = head_pb2.HeldRange(lease=FAR, count=3, prefix=b"0123456789", first=1, attempt=1)
    liar.open((other,))
    dropped = next(frame for frame in liar.frames if frame.cancels).cancels
    assert [(each.lease, each.count, each.force) for each in dropped] == [(FAR, 3, True)]
    head.assert_counted(
        before,
        {"streams_closed": 1, "streams_closed_replaced": 1, **stale("unknown_lease")},
    )
    head.assert_unharmed(before)


def test_a_silent_worker_loses_its_work_though_its_stream_is_open(
    head: BadInput, liar: Liar
) -> None:
    """D13: heartbeats keep a lease, and nothing else does."""
    before = head.look()
    [task_id] = liar.take(max_retries=0)
    assert head.result(task_id).state == FAILED
    assert liar.stream.end().status is OK
    head.assert_counted(before, {"streams_closed": 1, "streams_closed_by_scheduler": 1})
    head.assert_unharmed(before)


def test_heartbeats_may_flood(head: BadInput, liar: Liar) -> None:
    """D12: as many as one connection carries, of sessions known and unknown."""
    before = head.look()
    for number in range(1_000):
        answer = liar.beat(session=liar.session + number % 2, running=2**32 - 1)
        assert head_pb2.HeartbeatResponse.FromString(answer.messages[0]).is_known != number % 2
    lost = {"streams_closed": 1, "streams_closed_frame_lost": 1}  # none arrives, as they say
    head.assert_counted(before, {**lost, **stale("old_session", 500, "heartbeats")})
    head.assert_unharmed(before)


def test_a_heartbeat_takes_nobodys_name(head: BadInput) -> None:
    """Regression: one of an id that nobody had yet bound it to the sender's token."""
    before = head.look()
    liar = Liar(head)
    for role in ("admin", "worker"):
        asked = head_pb2.HeartbeatRequest(worker_id="to-come-00000001", session=1)
        assert head.call("Heartbeat", asked, role).status is OK
        hello = head_pb2.WorkerHello(worker_id="to-come-00000001", session=1, protocol=PROTOCOL)
        assert head.stream("WorkerStream", hello, role).end().code == "COMMUNICATION"
    head.assert_counted(
        before,
        {
            "calls_refused": 2,
            "calls_refused_communication": 2,
            **stale("unknown_worker", 2, "heartbeats"),
        },
    )
    liar.leave()
    head.assert_unharmed(before)


# ── Bad calls and frames ────────────────────────────────────────────────────────────────────────


def joining(why: str = "", **fields: Any) -> tuple[str, Any, StatusCode, str, str]:
    """Register a worker that is good but for what is given."""
    good: dict[str, Any] = {
        "worker_id": "bad-00000000", "name": "bad", "resources": {"cpu_cores": 1},
        "protocol": PROTOCOL,
    }  # fmt: skip
    return "RegisterWorker", Register(**{**good, **fields}), INVALID, "CONFIG", why


def beating(**fields: Any) -> tuple[str, Any, StatusCode, str, str]:
    """Send a bad heartbeat."""
    return "Heartbeat", head_pb2.HeartbeatRequest(**fields), INVALID, "CONFIG", ""


def offering(**fields: Any) -> dict[str, Any]:
    """Offer a function."""
    return {"functions": [common_pb2.Function(**{"name": "f", **fields})]}


HELD = [head_pb2.HeldLease(lease=n, unfinished=1) for n in range(100_001)]
CALLS: dict[str, tuple[str, Any, StatusCode, str, str]] = {
    "D9 no name": joining(name=""),
    "D9 no id": joining(worker_id=""),
    "D9 an id of 1 MB": joining(worker_id="x" * 1_000_000),
    "D9 ESC in the id": joining(worker_id=ESC),
    "D9 bidi in the name": joining(name=BIDI),
    "D9 ESC in a label": joining(labels={ESC: "x"}),
    "D9 bidi in a label's value": joining(labels={"zone": BIDI}),
    "D9 ESC in the version": joining(version=ESC),
    "D9 ESC in the address": joining(address=ESC),
    "D9 10^6 cpus": joining("resources", resources={"cpu_cores": 1e6}),
    "D9 -1 cpus": joining(resources={"cpu_cores": -1}),
    "D9 NaN cpus": joining(resources={"cpu_cores": NAN}),
    "D9 inf cpus": joining(resources={"cpu_cores": INF}),
    "D9 1e308 megabytes": joining("resources", resources={"memory_mb": 1e308}),
    "D9 10k resources": joining("resources", resources={f"r{n}": 1 for n in range(10_000)}),
    "D9 a function of NaN cores": joining(**offering(resources={"cpu_cores": NAN})),
    "D9 a function of 1e308 cores": joining("function", **offering(resources={"cpu_cores": 1e308})),
    "D9 a function without a name": joining(**offering(name="")),
    "D9 ESC in a function's name": joining(**offering(name=ESC)),
    "D9 a parameter of no kind": joining(**offering(parameters=[common_pb2.Parameter(name="a")])),
    "D9 an executor of no kind": joining(**offering(executor=9)),
    "D9 2 MB of docstrings": joining(**offering(doc="x" * 2_000_000)),
    "D12 no worker": beating(),
    "D12 a worker of 1 MB": beating(worker_id="x" * 1_000_000),
    "D12 ESC for a worker": beating(worker_id=ESC),
    "D16 100,001 leases": beating(worker_id="a-1", held=HELD),
    "D18 version N+2": (
        "RegisterWorker",
        Register(worker_id="a-1", name="a", protocol=PROTOCOL + 2),
        MISFIT,
        "VERSION_MISMATCH",
        "",
    ),
    "D9 no protobuf": ("RegisterWorker", b"\xff\xff", INVALID, "COMMUNICATION", ""),
    "D12 no protobuf": ("Heartbeat", b"\xff\xff", INVALID, "COMMUNICATION", ""),
    "a certificate for garbage": (
        "EnrollWorker",
        head_pb2.EnrollWorkerRequest(worker_id="a-1", signing_request=b"\x30\x82"),
        INVALID,
        "CONFIG",
        "",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_bad_call_of_a_worker_is_refused_and_counted(head: BadInput, name: str) -> None:
    """Stated code, typed detail, counted once by its reason; and the worker is not there."""
    method, asked, status, code, why = CALLS[name]
    before = head.look()
    answer = head.call(method, asked, "worker")
    assert (answer.status, answer.code) == (status, code), answer
    counted = {"calls_refused": 1, f"calls_refused_{code.lower()}": 1}
    if why:
        counted |= {"workers_refused": 1, f"workers_refused_{why}": 1}
    head.assert_counted(before, counted)
    found = head.ask(
        "ListWorkers", head_pb2.ListWorkersRequest(), head_pb2.ListWorkersResponse, "observe"
    )
    assert [worker.name for worker in found.workers] == ["honest"]
    head.assert_unharmed(before, answer)


def news(**fields: Any) -> bytes:
    """Make a frame of bad news."""
    made = Frame(number=2, news=[head_pb2.LeaseNews(**{"lease": 1, **fields})])
    return bytes(made.SerializeToString())


def output(*pieces: head_pb2.OutputPiece) -> bytes:
    """Make a frame with an answer about output."""
    return bytes(Frame(output=[head_pb2.OutputAnswer(number=1, pieces=pieces)]).SerializeToString())


def odd_outcome(**fields: Any) -> head_pb2.LeaseOutcome:
    """Make a report of whatever values."""
    return Outcome(lease=1, **fields)


def frame(**fields: Any) -> bytes:
    """Make a frame."""
    return bytes(Frame(**{"number": 2, **fields}).SerializeToString())


FRAMES: dict[str, bytes] = {
    "D18 garbage": b"\xff\xff",
    "empty": b"",
    "without a number": Frame(draining=True).SerializeToString(),
    "D15 progress 1.5": news(fraction=1.5),
    "D15 progress -1": news(fraction=-1),
    "D15 progress NaN": news(fraction=NAN),
    "D15 a text of 257": news(fraction=0.5, text="x" * 257),
    "D15 a value of 5 KB": news(text="x", value=b"x" * 5_000),
    "D15 a value without a name": news(value=b"x"),
    "D14 1,001 sessions that print": frame(printing=[b"0123456789"] * 1_001),
    "D14 a session that is none": frame(printing=[b"short"]),
    "D14 1,001 answers about output": frame(output=[head_pb2.OutputAnswer()] * 1_001),
    "D14 an answer of 4,097 pieces": output(*[head_pb2.OutputPiece(prefix=b"0123456789")] * 4_097),
    "D14 an answer of 2 MB": output(
        head_pb2.OutputPiece(prefix=b"0123456789", data=bytes(1 << 21))
    ),
    "D14 a piece of no task": output(head_pb2.OutputPiece(prefix=b"0123456789", sequence=1 << 63)),
    "D14 a piece at NaN": output(head_pb2.OutputPiece(prefix=b"0123456789", time_unix_s=NAN)),
    "D14 a name of 2 KB": output(head_pb2.OutputPiece(prefix=b"0123456789", function="f" * 2_000)),
    "D16 2^18 + 1 tasks held": frame(
        has_held=True,
        held=[head_pb2.HeldRange(lease=1, count=(1 << 18) + 1, prefix=b"0123456789")],
    ),
    "D16 a range of no tasks": frame(
        has_held=True, held=[head_pb2.HeldRange(prefix=b"0123456789")]
    ),
    "D1 a range of no tasks": frame(returned=[Range(lease=1)]),
    "D1 a range beyond 2^32": frame(started=[Range(lease=1, offset=2**32 - 1, count=2)]),
    "D1 2^25 tasks": frame(returned=[Range(lease=1, count=1 << 25)]),
    "D5 a report of QUEUED": frame(
        outcomes=[Outcome(lease=1, state=common_pb2.TASK_STATE_QUEUED, payloads=payloads(b"1"))]
    ),
    "D5 a report of state 99": frame(
        outcomes=[odd_outcome(state=99, payloads=payloads(b"1"))]
    ),
    "D5 a report without payloads": frame(outcomes=[Outcome(lease=1, state=SUCCEEDED)]),
    "D5 payloads that overlap": frame(
        outcomes=[
            Outcome(
                lease=1, state=SUCCEEDED,
                payloads=common_pb2.Payloads(blob=b"123", ends=b"\3\0\0\0\1\0\0\0\3\0\0\0"),
            )
        ]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMES)
def test_a_bad_frame_of_a_worker_ends_its_stream_and_is_counted(
    head: BadInput, liar: Liar, name: str
) -> None:
    """INVALID_ARGUMENT with the code COMMUNICATION; the worker comes back and is given work."""
    before = head.look()
    liar.stream.send(FRAMES[name])
    answer = liar.stream.end()
    assert (answer.status, answer.code) == (INVALID, "COMMUNICATION"), answer
    head.assert_counted(before, {"calls_refused": 1, "calls_refused_communication": 1})
    liar.session = liar.register()
    liar.open()
    [task_id] = liar.take()
    liar.say(outcomes=[liar.outcome(b"1")])
    assert head.result(task_id).payload == b"1"
    head.assert_unharmed(before, answer)


def test_a_million_entries_are_refused_before_they_are_looked_at(
    head: BadInput, liar: Liar
) -> None:
    """D16: regression, each became an object of its own. What protobuf takes comes once only."""
    before = head.look()
    entry = Frame(held=[head_pb2.HeldRange(lease=1, count=1, prefix=b"0123456789")])
    many = frame(has_held=True) + entry.SerializeToString() * 1_000_000
    for _ in range(3):
        liar.stream.send(many)
        answer = liar.stream.end()
        assert (answer.status, answer.code) == (INVALID, "COMMUNICATION"), answer
        liar.session = liar.register()
        liar.open()
    head.assert_counted(before, {"calls_refused": 3, "calls_refused_communication": 3})
    head.assert_unharmed(before, answer, rss=200 << 20)


HELLOS: dict[str, tuple[Callable[[Liar], Any], str, StatusCode, str]] = {
    "D18 version N+2": (
        lambda liar: liar.hello(protocol=PROTOCOL + 2), "worker", MISFIT, "VERSION_MISMATCH"
    ),
    "D18 version 0": (
        lambda liar: liar.hello(protocol=0), "worker", MISFIT, "VERSION_MISMATCH"
    ),
    "D18 garbage": (lambda liar: b"\xff", "worker", INVALID, "COMMUNICATION"),
    "D7 a session of the future": (
        lambda liar: liar.hello(FAR), "worker", INVALID, "COMMUNICATION"
    ),
    "D3 somebody else's token": (
        lambda liar: liar.hello(), "stranger", DENIED, "PERMISSION_DENIED"
    ),
    "D3 a client's token": (lambda liar: liar.hello(), "submit", DENIED, "PERMISSION_DENIED"),
}  # fmt: skip


@pytest.mark.parametrize("name", HELLOS)
def test_a_bad_hello_opens_no_stream_and_is_counted(head: BadInput, liar: Liar, name: str) -> None:
    """And the worker's own stream goes on."""
    hello, role, status, code = HELLOS[name]
    if role == "stranger":
        asked = head_pb2.CreateTokenRequest(role="worker", ttl_s=60)
        made = head.ask("CreateToken", asked, head_pb2.CreateTokenResponse, "admin")
        head.tokens["stranger"] = made.token
    before = head.look()
    answer = head.stream("WorkerStream", hello(liar), role).end()
    assert (answer.status, answer.code) == (status, code), answer
    head.assert_counted(before, {"calls_refused": 1, f"calls_refused_{code.lower()}": 1})
    liar.take()
    head.assert_unharmed(before, answer)


def test_status_shows_the_counters(head: BadInput, liar: Liar) -> None:
    """`rustray status --json` has them by name, as GetStatus does."""
    liar.take(2)
    liar.say(outcomes=[liar.outcome(lease=FAR), liar.outcome(), liar.outcome(task=1)])
    assert eventually(lambda: head.counters().get("stale_reports_unknown_lease"), CALL_S)
    shown = head.cluster.json("status")["counters"]
    assert {name: shown[name] for name in head.counters()} == head.counters()
    assert json.dumps(shown).isascii()
