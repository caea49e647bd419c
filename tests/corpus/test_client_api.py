"""Group C of the bad-input corpus: what a client may ask, and what it gets for it.

`tests/corpus/test_coverage.py` says of each case of the corpus where it is tested.
"""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor

from corpus.conftest import MAX_PAYLOAD_BYTES
from helpers.bad_input import CALL_S, Answer, BadInput, answer_of
from helpers.waiting import eventually
from rustray.proto.rustray.v1 import common_pb2, head_pb2, worker_pb2
from rustray.rpc.grpcio import StatusCode, grpc
from rustray.rpc.versions import PROTOCOL
from rustray.security.roles import HEAD_SERVICE
from rustray.task.failures import decode_failure
from rustray.task.state import TaskState

pytestmark = pytest.mark.slow

NAN, INF = float("nan"), float("inf")
BIDI, ESC, NUL = "\u202e", "\x1b[31m", "\x00"
UNKNOWN_TASK = "00000000000000000000000000000bad"
OK = StatusCode.OK
INVALID = StatusCode.INVALID_ARGUMENT
NOT_FOUND = StatusCode.NOT_FOUND
EXISTS = StatusCode.ALREADY_EXISTS
FAILED = StatusCode.FAILED_PRECONDITION
EXHAUSTED = StatusCode.RESOURCE_EXHAUSTED
DENIED = StatusCode.PERMISSION_DENIED


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        method: Of HeadService.
        request: A message, or any bytes.
        status: Stated for it.
        code: Reason code on the wire; "" where the call succeeds.
        role: Of the caller.
        task: Whether what is refused is a task, which counts as such beside the call.
        reason: Of the limit that was reached.
    """

    method: str
    request: Any
    status: StatusCode = INVALID
    code: str = "PAYLOAD"
    role: str = "submit"
    task: bool = False
    reason: str = ""

    def counted(self) -> dict[str, int]:
        """What the head counts."""
        found: dict[str, int] = {}
        for family in ("calls_refused", "tasks_rejected") if self.task else ("calls_refused",):
            if self.code:
                found[family] = found[f"{family}_{self.code.lower()}"] = 1
            if self.reason:
                found[f"{family}_{self.reason.lower()}"] = 1
        return found


def request(**fields: Any) -> common_pb2.TaskRequest:
    """Make a task that is good but for what is given."""
    good: dict[str, Any] = {
        "function_name": "add", "args": [b"1", b"2"], "codec": common_pb2.CODEC_JSON,
    }  # fmt: skip
    return common_pb2.TaskRequest(**{**good, **fields})


def made_class(**fields: Any) -> common_pb2.TaskClass:
    """Make a class, of whatever values."""
    return common_pb2.TaskClass(**fields)


def task(status: StatusCode = INVALID, code: str = "PAYLOAD", **fields: Any) -> Case:
    """Submit a task that is good but for what is given."""
    submit = head_pb2.SubmitTaskRequest(task=request(**fields))
    return Case("SubmitTask", submit, status, code, task=True)


def good(**fields: Any) -> Case:
    """Submit a task that is accepted."""
    return task(OK, "", **fields)


def needs(status: StatusCode = INVALID, code: str = "PAYLOAD", **fields: Any) -> Case:
    """Submit a task with these needs."""
    return task(status, code, resources=common_pb2.Resources(**fields))


def token(ttl_s: float = 9.0, role: str = "submit") -> Case:
    """Have a token made that cannot be."""
    request = head_pb2.CreateTokenRequest(role=role, ttl_s=ttl_s)
    return Case("CreateToken", request, code="CONFIG", role="admin")


def call(method: str, message: Any, code: str, status: StatusCode = INVALID, **more: Any) -> Case:
    """Make a call."""
    return Case(method, message, status, code, **more)


def field(number: int, data: bytes) -> bytes:
    """Write a length-delimited field."""
    size, out = len(data), bytearray((number << 3 | 2,))
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes(out) + bytes((size,)) + data


def nested(depth: int) -> bytes:
    """Write groups of an unknown field, one in the other."""
    return b"\xa3\x06" * depth + b"\xa4\x06" * depth


def repeat(size: int) -> dict[str, Any]:
    """Make a call whose arguments take so many bytes together."""
    frame = len(b'[["",1],{}]')
    return {"function_name": "repeat", "args": [b'"' + b"x" * (size - frame) + b'"', b"1"]}


BOMB = b"cos\nsystem\n(S'touch bomb'\ntR."
STATES = head_pb2.ListTasksRequest.FromString(field(1, b"\x63"))
NAMES = [f"n{n}" for n in range(10_000)]
GET, CANCEL, LIST = "GetTaskResult", "CancelTask", "ListTasks"
Result, Page = head_pb2.GetTaskResultRequest, head_pb2.ListTasksRequest

CASES: dict[str, Case] = {
    "C1 no task": call("SubmitTask", b"", "PAYLOAD", task=True),
    "C1 no tasks": call("SubmitTasks", b"", "", OK),
    "C1 no id": call(GET, b"", "PAYLOAD"),
    "C1 explain nothing": call("ExplainTask", b"", "PAYLOAD"),
    "C1 cancel nothing": call(CANCEL, b"", "", OK),
    "C1 list": call(LIST, b"", "", OK),
    "C1 drain nobody": call("DrainWorker", b"", "WORKER_NOT_FOUND", NOT_FOUND, role="admin"),
    "C1 a token for nothing": call("CreateToken", b"", "CONFIG", role="admin"),
    "C1 a certificate for nobody": call("EnrollWorker", b"", "CONFIG", role="admin"),
    "C2 codec 99": task(codec=99),
    "C2 state 99": call(LIST, STATES, "CONFIG"),
    "C2 executor 99": Case(
        "SubmitTask",
        head_pb2.SubmitTaskRequest(
            task=common_pb2.TaskRequest(task_class=made_class(function="add", codec=2, executor=99))
        ),
        task=True,
    ),
    "C3 unknown fields": good(task_id="00000000000000000000000000000c03"),
    "C5 depth 101": call("SubmitTask", nested(101), "COMMUNICATION"),
    "C6 not UTF-8": call("SubmitTask", field(1, field(1, b"\xff\xfe")), "COMMUNICATION"),
    "C7 NUL in a name": task(function_name=f"a{NUL}b"),
    "C7 bidi in a name": task(function_name=f"a{BIDI}b"),
    "C7 newline in a name": task(function_name="a\nb"),
    "C7 ESC in a name": task(function_name=f"a{ESC}b"),
    "C7 ESC in a key": task(idempotency_key=f"a{ESC}b"),
    "C7 ESC in a resource": needs(custom={f"a{ESC}b": 1}),
    "C7 ESC in a label": needs(labels={f"a{ESC}b": "x"}),
    "C7 bidi in a label's value": needs(labels={"a": f"x{BIDI}"}),
    "C7 ESC in a selector": needs(label_selector={"a": f"x{ESC}b"}),
    "C7 no selector": needs(label_selector_soft={"a": "in(b"}),
    "C7 bad label of an alternative": needs(
        fallback=[common_pb2.Resources(labels={f"a{ESC}b": "x"})]
    ),
    "C7 an alternative in an alternative": needs(
        fallback=[common_pb2.Resources(fallback=[common_pb2.Resources(gpus=1)])]
    ),
    "C7 17 alternatives": needs(fallback=[common_pb2.Resources(gpus=1)] * 17),
    "C7 bad selector in a class": Case(
        "SubmitTask",
        head_pb2.SubmitTaskRequest(
            task=common_pb2.TaskRequest(
                task_class=made_class(
                    function="add", codec=2, executor=1, label_selector={"a": "!"}
                )
            )
        ),
        task=True,
    ),
    "C7 ESC in a keyword": task(kwargs={f"a{ESC}b": b"1"}),
    "C7 ESC in an exception's name": task(retry_exception_names=[f"a{ESC}b"]),
    "C7 ESC in an id": call(GET, Result(task_id=f"a{ESC}b"), "PAYLOAD"),
    "C7 ESC in a worker's id": call(
        "DrainWorker",
        head_pb2.DrainWorkerRequest(worker_id=f"a{ESC}b"),
        "WORKER_NOT_FOUND",
        NOT_FOUND,
        role="admin",
    ),
    "C7 ESC in a role": token(role=f"a{ESC}b"),
    "C7 ESC in a page token": call(LIST, Page(cursor=f"a{ESC}b"), "PAYLOAD"),
    "C8 name of 0": task(function_name=""),
    "C8 name of 255": task(NOT_FOUND, "FUNCTION_NOT_FOUND", function_name="x" * 255),
    "C8 name of 256": task(NOT_FOUND, "FUNCTION_NOT_FOUND", function_name="x" * 256),
    "C8 name of 257": task(function_name="x" * 257),
    "C8 name of 1 MB": task(function_name="x" * 1_000_000),
    "C9 no UUID": call(GET, Result(task_id="x" * 32), "PAYLOAD"),
    "C9 id of 1 MB": call(GET, Result(task_id="a" * 1_000_000), "PAYLOAD"),
    "C9 export no UUID": call(
        "ExportTasks",
        head_pb2.ExportTasksRequest(where=head_pb2.LetterFilter(task_ids=["x"])),
        "PAYLOAD",
    ),
    "C9 unknown": call(GET, Result(task_id=UNKNOWN_TASK), "TASK_NOT_FOUND", NOT_FOUND),
    "C9 submit as no UUID": task(task_id="no id"),
    "C9 submit as 1 MB": task(task_id="a" * 1_000_000),
    "C9 submit in capitals": good(task_id="00000000000000000000000000000C09"),
    "C10 cpu -1": needs(cpu_cores=-1),
    "C10 cpu NaN": needs(cpu_cores=NAN),
    "C10 cpu inf": needs(cpu_cores=INF),
    "C10 cpu -0.0": needs(OK, "", cpu_cores=-0.0),
    "C10 cpu 2^63": needs(cpu_cores=2.0**63),
    "C10 memory NaN": needs(memory_mb=NAN),
    "C10 units 2^63": Case(
        "SubmitTask",
        head_pb2.SubmitTaskRequest(
            task=common_pb2.TaskRequest(
                task_class=made_class(function="add", codec=2, resource_units={"cpu_cores": 2**63})
            )
        ),
        task=True,
    ),
    "C11 cpu 1e308": needs(cpu_cores=1e308),
    "C11 a third of a GPU": needs(FAILED, "RESOURCE_NOT_AVAILABLE", gpus=1 / 3),
    "C11 unknown resource": needs(FAILED, "RESOURCE_NOT_AVAILABLE", custom={"dragons": 1}),
    "C11 10k resources": needs(custom=dict.fromkeys(NAMES, 1)),
    "C12 timeout 0": good(timeout_s=0),
    "C12 timeout -1": task(timeout_s=-1),
    "C12 timeout NaN": task(timeout_s=NAN),
    "C12 timeout 10^18": task(timeout_s=1e18),
    "C12 queue timeout 10^18": task(queue_timeout_s=1e18),
    "C12 total timeout -1": task(total_timeout_s=-1),
    "C12 retry delay -1": task(retry_delay_s=-1),
    "C12 wait -1": call(GET, Result(task_id=UNKNOWN_TASK, timeout_s=-1), "CONFIG"),
    "C12 wait NaN": call(GET, Result(task_id=UNKNOWN_TASK, timeout_s=NAN), "CONFIG"),
    "C12 token for 1e308 s": token(1e308),
    "C12 token for NaN s": token(NAN),
    "C12 token for -1 s": token(-1),
    "C13 retries -1": good(max_retries=-1),
    "C13 retries -2": task(max_retries=-2),
    "C13 retries 2^31-1": task(max_retries=2**31 - 1),
    "C13 crash limit -2": task(crash_limit=-2),
    "C13 memory retries -2": task(oom_retries=-2),
    "C14 lowest priority": good(priority=-(2**31)),
    "C14 highest priority": good(priority=2**31 - 1),
    "C15 limit - 1": good(**repeat(MAX_PAYLOAD_BYTES - 1)),
    "C15 limit": good(**repeat(MAX_PAYLOAD_BYTES)),
    "C15 limit + 1": task(**repeat(MAX_PAYLOAD_BYTES + 1)),
    "C16 100,001 tasks": call(
        "SubmitTasks", field(1, b"") * 100_001, "RESOURCE_EXHAUSTED", EXHAUSTED, reason="CALL_TASKS"
    ),
    "C18 key of 10 KB": task(idempotency_key="x" * 10_000),
    "C18 binary key": call("SubmitTask", field(1, b"\x9a\x01\x02\xff\xfe"), "COMMUNICATION"),
    "C18 no key": good(idempotency_key=""),
    "C20 10,001 at once": call(
        CANCEL,
        head_pb2.CancelTaskRequest(task_ids=["x"] * 10_001),
        "RESOURCE_EXHAUSTED",
        EXHAUSTED,
        reason="CALL_TASKS",
    ),
    "C22 page of 0": call(LIST, Page(limit=0), "", OK),
    "C22 page of -1": call(LIST, b"\x28" + b"\xff" * 9 + b"\x01", "", OK),
    "C22 page of 10^9": call(LIST, Page(limit=10**9), "", OK),
    "C22 forged page token": call(LIST, Page(cursor="1.2.3"), "PAYLOAD"),
    "C22 page token of other digits": call(LIST, Page(cursor="\u0661.\u0661"), "PAYLOAD"),
    "C22 page token of 5,000 digits": call(LIST, Page(cursor="9" * 5_000 + ".0"), "PAYLOAD"),
    "C22 forged letter cursor": call(
        "RetryTasks",
        head_pb2.RetryTasksRequest(
            where=head_pb2.LetterFilter(states=[common_pb2.TASK_STATE_FAILED]),
            cursor=head_pb2.LetterCursor(after="9" * 5_000 + ".0", horizon=1),
        ),
        "PAYLOAD",
    ),
    "C24 filter of 1 MB": call(LIST, Page(function="x" * 1_000_000), "", OK),
    "C24 no pattern": call(LIST, Page(function="(a+)+$"), "", OK),
    "C25 10k labels": needs(labels=dict.fromkeys(NAMES, "x")),
    "C25 label of 1 MB": needs(labels={"a": "x" * 1_000_000}),
    "C25 10k keywords": task(kwargs=dict.fromkeys(NAMES, b"1")),
    "C25 65 exceptions": task(retry_exception_names=NAMES[:65]),
    "C26 pickle in a plain task": task(codec=common_pb2.CODEC_PICKLE),
    "C27 pickle without the right": Case(
        "SubmitTask",
        head_pb2.SubmitTaskRequest(
            task=common_pb2.TaskRequest(
                task_class=made_class(function="add", codec=common_pb2.CODEC_PICKLE),
                call=BOMB,
            )
        ),
        DENIED,
        "PERMISSION_DENIED",
        task=True,
    ),
    "C27 code of nobody": Case(
        "SubmitTask",
        head_pb2.SubmitTaskRequest(
            task=common_pb2.TaskRequest(
                task_class=made_class(function="f", codec=1, code_hash=b"x" * 32),
                call=BOMB,
            )
        ),
        role="code",
        task=True,
    ),
    "C33 deadline NaN": task(deadline_unix_s=NAN),
    "C33 deadline -1": task(deadline_unix_s=-1),
    "C33 deadline 1e308": task(deadline_unix_s=1e308),
    "C33 deadline in the year 9999": good(deadline_unix_s=253_402_300_000.0),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_call_is_refused_and_counted(head: BadInput, name: str) -> None:
    """Stated code, typed detail, one refusal counted by its reason, and the head is as before."""
    case = CASES[name]
    before = head.look()
    answer = head.call(case.method, case.request, case.role)
    assert (answer.status, answer.code) == (case.status, case.code), answer
    assert answer.fields.get("reason", "") == case.reason
    head.assert_counted(before, case.counted())
    head.assert_unharmed(before, answer)


def test_no_message_has_alternatives() -> None:
    """C4: there is no oneof whose members could contradict each other."""
    pending: list[Descriptor] = [
        message
        for file in (common_pb2, head_pb2, worker_pb2)
        for message in file.DESCRIPTOR.message_types_by_name.values()
    ]
    assert pending
    for message in pending:
        assert all(each.name.startswith("_") for each in message.oneofs), message.full_name


def test_unknown_fields_make_no_other_task(head: BadInput) -> None:
    """C3: they are ignored, also where a task is compared with one of the same id."""
    before = head.look()
    message = request(task_id="00000000000000000000000000000c33").SerializeToString()
    first = head.call("SubmitTask", field(1, message))
    again = head.call("SubmitTask", field(1, message + b"\xa2\x06\x07unknown" + nested(3)))
    assert (first.status, again.status) == (OK, OK), again
    assert head_pb2.SubmitTaskResponse.FromString(again.messages[0]).deduplicated
    head.assert_counted(before, {})
    head.assert_unharmed(before)


# ── Several calls in a row ──────────────────────────────────────────────────────────────────────


def submit_all(head: BadInput, *tasks: common_pb2.TaskRequest) -> list[head_pb2.SubmitVerdict]:
    """Submit a batch and return its verdicts."""
    batch = head_pb2.SubmitTasksRequest(tasks=tasks)
    return list(head.ask("SubmitTasks", batch, head_pb2.SubmitTasksResponse).verdicts)


def cancel(head: BadInput, *names: str, force: bool = False) -> list[head_pb2.CancelVerdict]:
    """Cancel tasks and return the verdicts."""
    asked = head_pb2.CancelTaskRequest(task_ids=names, force=force)
    return list(head.ask("CancelTask", asked, head_pb2.CancelTaskResponse).verdicts)


def test_each_bad_task_of_a_batch_is_counted_by_its_reason(head: BadInput) -> None:
    """Regression: what was refused before the scheduler saw it was counted nowhere."""
    before = head.look()
    bad = [
        request(function_name=""),
        request(function_name="ad"),
        request(task_id="no id"),
        common_pb2.TaskRequest(
            task_class=made_class(function="add", codec=common_pb2.CODEC_PICKLE)
        ),
    ]
    verdicts = submit_all(head, request(), *bad, request())
    codes = [verdict.error.code for verdict in verdicts]
    expected = ["PAYLOAD", "FUNCTION_NOT_FOUND", "PAYLOAD", "PERMISSION_DENIED"]
    assert codes == ["", *expected, ""]
    counted = {
        "tasks_rejected": 4,
        "tasks_rejected_payload": 2,
        "tasks_rejected_function_not_found": 1,
        "tasks_rejected_permission_denied": 1,
    }
    head.assert_counted(before, counted)
    head.assert_unharmed(before)


def test_a_batch_of_a_hundred_thousand_is_taken(head: BadInput) -> None:
    """C16: as many as a call may have; their results are all that the head keeps of it."""
    before = head.look()
    batch = field(1, request().SerializeToString()) * 100_000
    answer = head.call("SubmitTasks", batch, limit_s=60)
    assert answer.status is OK, answer
    verdicts = head_pb2.SubmitTasksResponse.FromString(answer.messages[0]).verdicts
    assert not any(verdict.HasField("error") for verdict in verdicts)
    assert head.result(verdicts[-1].task_id, 45).state == TaskState.SUCCEEDED + 1
    head.assert_counted(before, {})
    head.assert_unharmed(before, answer, rss=150 << 20)


def test_a_key_is_one_task(head: BadInput) -> None:
    """C16, C17: twice in a batch it is the same task; with other arguments it is refused."""
    before = head.look()
    first, again, other = submit_all(
        head,
        request(idempotency_key="k"),
        request(idempotency_key="k"),
        request(idempotency_key="k", args=[b"1", b"3"]),
    )
    assert (first.task_id, again.deduplicated) == (again.task_id, True)
    assert other.error.code == "DUPLICATE_TASK"
    head.assert_counted(before, {"tasks_rejected": 1, "tasks_rejected_duplicate_task": 1})
    before = head.look()
    refused = head.call("SubmitTask", task(idempotency_key="k", args=[b"2", b"2"]).request)
    assert (refused.status, refused.code) == (EXISTS, "DUPLICATE_TASK")
    counted = Case("", b"", code="DUPLICATE_TASK", task=True).counted()
    head.assert_counted(before, counted)
    head.assert_unharmed(before, refused)


def test_cancel_in_every_state(head: BadInput, tmp_path: Path) -> None:
    """C9, C20: pending, running, ended, unknown, no id, twice in a call, and a hundred times."""
    before = head.look()
    ended = head.submit(request())
    head.result(ended)
    running = head.submit(
        request(function_name="hold", args=[json.dumps(str(tmp_path)).encode(), b"1"])
    )
    eventually((tmp_path / "runs-1").exists, CALL_S)
    pending = head.submit(
        request(resources=common_pb2.Resources(labels={"zone": "nowhere"}), wait_for_resources=True)
    )
    verdicts = cancel(head, pending, running, ended, UNKNOWN_TASK, "x", pending, force=True)
    codes = [verdict.error.code for verdict in verdicts]
    assert codes == ["", "", "", "TASK_NOT_FOUND", "PAYLOAD", ""]
    assert [verdicts[place].state for place in (3, 4)] == [common_pb2.TASK_STATE_UNSPECIFIED] * 2
    states = [TaskState(verdicts[place].state - 1).name for place in (0, 2, 5)]
    assert states == ["CANCELLED", "SUCCEEDED", "CANCELLED"]
    for _ in range(100):
        assert not cancel(head, running)[0].HasField("error")
    assert head.result(running).state == TaskState.CANCELLED + 1
    assert not cancel(head, running.upper())[0].HasField("error")
    refused = {"": 2, "_task_not_found": 1, "_payload": 1}
    head.assert_counted(before, {f"cancels_refused{why}": n for why, n in refused.items()})
    head.assert_unharmed(before)


def test_a_wait_may_be_of_no_length_or_be_given_up(head: BadInput) -> None:
    """C21: timeout 0 answers at once with the present state; a caller that goes leaves nothing."""
    before = head.look()
    where = common_pb2.Resources(labels={"zone": "nowhere"})
    pending = head.submit(request(resources=where, wait_for_resources=True))
    assert head.result(pending, 0).state == TaskState.QUEUED + 1
    data = Result(task_id=pending, timeout_s=60).SerializeToString()
    get = head.channel.unary_unary(HEAD_SERVICE + GET, None, None)
    waiting = [get.future(data, timeout=60, metadata=head.metadata("submit")) for _ in range(50)]
    for one in waiting:
        one.cancel()  # type: ignore[no-untyped-call]  # of grpc-stubs
    cancel(head, pending)
    assert head.result(pending).state == TaskState.CANCELLED + 1
    head.assert_counted(before, {})
    head.assert_unharmed(before)


WATCHES: dict[str, tuple[head_pb2.SubscribeRequest, StatusCode, str, str]] = {
    "C23 the future": (
        head_pb2.SubscribeRequest(cursor=2**64 - 1), EXHAUSTED, "RESOURCE_EXHAUSTED", "EVENTS_GONE"
    ),
    "C2 state 99": (head_pb2.SubscribeRequest.FromString(field(3, b"\x63")), INVALID, "CONFIG", ""),
    "C7 ESC in an id": (head_pb2.SubscribeRequest(task_ids=[ESC]), INVALID, "CONFIG", ""),
    "C24 10,001 ids": (
        head_pb2.SubscribeRequest(task_ids=[UNKNOWN_TASK] * 10_001), INVALID, "CONFIG", ""
    ),
    "C24 10,001 functions": (
        head_pb2.SubscribeRequest(functions=["f"] * 10_001), INVALID, "CONFIG", ""
    ),
    "C24 a function of 1 MB": (
        head_pb2.SubscribeRequest(functions=["f" * 1_000_000]), INVALID, "CONFIG", ""
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WATCHES)
def test_a_bad_subscription_is_refused_and_counted(head: BadInput, name: str) -> None:
    """As a bad call is."""
    asked, status, code, reason = WATCHES[name]
    before = head.look()
    stream = head.channel.unary_stream(HEAD_SERVICE + "Subscribe", None, None)
    with pytest.raises(grpc.RpcError) as refused:
        list(stream(asked.SerializeToString(), timeout=CALL_S, metadata=head.metadata("submit")))
    answer = answer_of(refused.value)
    assert (answer.status, answer.code) == (status, code), answer
    assert answer.fields.get("reason", "") == reason
    head.assert_counted(before, Case("", b"", status, code, reason=reason).counted())
    head.assert_unharmed(before, answer)


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return Path, (str(self.path),)


def test_a_bomb_is_bytes_like_any_others(head: BadInput, tmp_path: Path) -> None:
    """C26, C27: as a payload that is said to be JSON, or as a name, it fails its task alone."""
    before = head.look()
    mark = tmp_path / "bomb"
    bomb = b"cos\nsystem\n(S'touch " + bytes(mark) + b"'\ntR."
    assert pickle.loads(pickle.dumps(Bomb(mark))) == mark
    for codec in (common_pb2.CODEC_JSON, common_pb2.CODEC_MSGPACK):
        found = head.run(request(args=[bomb, b"1"], codec=codec))
        assert found.state == TaskState.FAILED + 1
        assert decode_failure(found.payload).code == "PAYLOAD"
    named = head.call("SubmitTask", task(function_name=bomb.decode()).request)
    assert named.code == "PAYLOAD"
    label = common_pb2.Resources(labels={"zone": bomb.decode()})
    labelled = head.call("SubmitTask", head_pb2.SubmitTaskRequest(task=request(resources=label)))
    assert labelled.code == "PAYLOAD"
    failed = head.run(
        request(function_name="divide", args=[b'"' + ascii(bomb).encode() + b'"', b"0"])
    )
    assert failed.state == TaskState.FAILED + 1
    assert head.ask(LIST, Page(states=[failed.state]), head_pb2.ListTasksResponse, "observe").tasks
    assert not mark.exists()
    counted = {key: 2 * n for key, n in Case("", b"", task=True).counted().items()}
    head.assert_counted(before, counted)
    head.assert_unharmed(before, named, labelled)


def test_a_clock_that_goes_wrong_ends_its_own_task(head: BadInput) -> None:
    """C33: a deadline of long ago is accepted, so that handing it in again is answered alike."""
    before = head.look()
    for deadline in (1.0, time.time() - 86_400):
        found = head.run(request(deadline_unix_s=deadline))
        assert found.state == TaskState.TIMED_OUT + 1
        assert (decode_failure(found.payload).phase, found.attempts) == ("deadline", 0)
    head.assert_counted(before, {})
    head.assert_unharmed(before)


def test_letters_that_are_not_there_are_counted(head: BadInput) -> None:
    """Unknown ids have a verdict each; a dry run refuses nothing."""
    before = head.look()
    where = head_pb2.LetterFilter(task_ids=[UNKNOWN_TASK, "x"])
    for method, asked in (
        ("RetryTasks", head_pb2.RetryTasksRequest(where=where)),
        ("PurgeTasks", head_pb2.PurgeTasksRequest(where=where)),
        ("PurgeTasks", head_pb2.PurgeTasksRequest(where=where, dry_run=True)),
    ):
        found = head.ask(method, asked, head_pb2.RetryTasksResponse)
        codes = [verdict.error.code for verdict in found.verdicts]
        assert codes == ["TASK_NOT_FOUND", "PAYLOAD"]
        states = [verdict.state for verdict in found.verdicts]
        assert states == [common_pb2.TASK_STATE_UNSPECIFIED] * 2
    counted = {
        f"{what}_refused{why}": count
        for what in ("retries", "purges")
        for why, count in {"": 2, "_task_not_found": 1, "_payload": 1}.items()
    }
    head.assert_counted(before, counted)
    head.assert_unharmed(before)


# ── The stream of rustray's own client ──────────────────────────────────────────────────────────


def hello(prefix: bytes = b"0123456789", protocol: int = PROTOCOL) -> head_pb2.ClientHello:
    """Make who opens a stream."""
    return head_pb2.ClientHello(prefix=prefix, protocol=protocol)


def definition(number: int = 1, code: bytes = b"", **fields: Any) -> common_pb2.ClassDefinition:
    """Define a class of tasks."""
    made = common_pb2.TaskClass(**{"function": "add", "codec": common_pb2.CODEC_JSON, **fields})
    return common_pb2.ClassDefinition(number=number, task_class=made, code=code)


def submission(number: int = 1, first: int = 0, **fields: Any) -> head_pb2.Submission:
    """Hand in one task."""
    payloads = common_pb2.Payloads(blob=b"[[1,2],{}]", ends=(10).to_bytes(4, "little"))
    return head_pb2.Submission(class_number=number, first=first, payloads=payloads, **fields)


Frame = head_pb2.ClientFrame
STREAMS: dict[str, tuple[Any, Any, StatusCode, str]] = {
    "hello of no protobuf": (b"\xff", None, INVALID, "COMMUNICATION"),
    "hello of another protocol": (hello(protocol=9), None, FAILED, "VERSION_MISMATCH"),
    "hello without a prefix": (hello(b""), None, INVALID, "COMMUNICATION"),
    "hello for a session of somebody else": (
        hello(b"code's own"), None, DENIED, "PERMISSION_DENIED"
    ),
    "C1 empty frame": (hello(), b"", INVALID, "COMMUNICATION"),
    "no protobuf": (hello(), b"\xff\xff", INVALID, "COMMUNICATION"),
    "C5 depth 101": (hello(), nested(101), INVALID, "COMMUNICATION"),
    "C2 codec 99": (hello(), Frame(classes=[definition(codec=99)]), INVALID, "COMMUNICATION"),
    "C7 ESC in a name": (
        hello(), Frame(classes=[definition(function=ESC)]), INVALID, "COMMUNICATION"
    ),
    "C8 class number 0": (hello(), Frame(classes=[definition(0)]), INVALID, "COMMUNICATION"),
    "C10 units 2^63": (
        hello(), Frame(classes=[definition(resource_units={"cpu_cores": 2**63})]), INVALID,
        "COMMUNICATION",
    ),
    "C13 retries -2": (
        hello(), Frame(classes=[definition(max_retries=-2)]), INVALID, "COMMUNICATION"
    ),
    "C33 deadline 1e308": (
        hello(),
        Frame(classes=[definition()], submissions=[submission(deadline_unix_s=1e308)]),
        INVALID,
        "COMMUNICATION",
    ),
    "a class that was never defined": (
        hello(), Frame(submissions=[submission(7)]), INVALID, "COMMUNICATION"
    ),
    "an ack of the future": (hello(), Frame(ack=5), INVALID, "COMMUNICATION"),
    "a renewed token that is none": (
        hello(), Frame(token="x.y.z"), StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"
    ),
    "a sequence beyond 2^48": (
        hello(),
        Frame(classes=[definition()], submissions=[submission(first=2**48)]),
        INVALID,
        "COMMUNICATION",
    ),
    "C20 a cancel of nothing": (
        hello(), Frame(cancels=[head_pb2.CancelRange(first=1)]), INVALID, "COMMUNICATION"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_a_bad_frame_ends_its_stream_and_is_counted(head: BadInput, name: str) -> None:
    """Regression: what ended an open stream was counted nowhere, or had no reason code."""
    opening, frame, status, code = STREAMS[name]
    owner = head.stream("ClientStream", hello(b"code's own"), "code")
    owner.wait_open()
    before = head.look()
    stream = head.stream("ClientStream", opening, "submit")
    if frame is not None:
        stream.send(frame)
    answer = stream.end()
    assert (answer.status, answer.code) == (status, code), answer
    head.assert_counted(before, Case("", b"", status, code).counted())
    head.assert_unharmed(before, answer)
    owner.hang_up()


def read_until(frames: Any, has: Callable[[Any], bool]) -> Any:
    """Return the first frame that has something."""
    return next(frame for frame in frames if has(frame))


REJECTED: dict[str, tuple[str, Mapping[str, Any], str]] = {
    "C28 code that is not what its hash says": (
        "code", {"code": b"evil", "code_hash": b"x" * 32, "codec": 1}, "PAYLOAD"
    ),
    "C28 code that never came": ("code", {"code_hash": b"x" * 32, "codec": 1}, "PAYLOAD"),
    "C27 a pickle without the right": ("submit", {"codec": 1}, "PERMISSION_DENIED"),
    "C11 a resource that nobody has": (
        "submit", {"resource_units": {"dragons": 1}}, "RESOURCE_NOT_AVAILABLE"
    ),
    "an unknown function": ("submit", {"function": "ad"}, "FUNCTION_NOT_FOUND"),
}  # fmt: skip


@pytest.mark.parametrize("name", REJECTED)
def test_a_task_of_a_stream_is_refused_by_itself(head: BadInput, name: str) -> None:
    """The rejection has the reason code, is counted once, and the stream goes on."""
    role, fields, code = REJECTED[name]
    before = head.look()
    stream = head.stream("ClientStream", hello(name.encode()[:10]), role)
    frames = stream.frames(head_pb2.HeadFrame)
    sent = {**fields}
    classes = [definition(1, sent.pop("code", b""), **sent), definition(2)]
    stream.send(Frame(classes=classes, submissions=[submission(1, 0), submission(2, 1)]))
    rejected: list[Any] = []
    done: list[Any] = []
    while not (rejected and done):  # one frame may have both
        frame = next(frames)
        rejected += frame.rejected
        done += frame.outcomes
    assert [(each.first, each.count, each.code) for each in rejected] == [(0, 1, code)]
    assert [(each.first, each.state) for each in done] == [(1, TaskState.SUCCEEDED + 1)]
    stream.hang_up()
    head.assert_counted(before, {"tasks_rejected": 1, f"tasks_rejected_{code.lower()}": 1})
    head.assert_unharmed(before, Answer(OK, text=rejected[0].message))


def test_a_missing_frame_ends_a_stream_in_order(head: BadInput) -> None:
    """The client comes back and both compare notes; a frame that comes twice changes nothing."""
    before = head.look()
    stream = head.stream("ClientStream", hello(b"some  gaps"), "submit")
    good = Frame(number=1, classes=[definition()], submissions=[submission()])
    stream.send(good)
    stream.send(good)
    stream.send(Frame(number=3, submissions=[submission(first=1)]))
    answer = stream.end()
    assert (answer.status, answer.code) == (OK, "")
    head.assert_counted(before, {"streams_closed": 1, "streams_closed_frame_gap": 1})
    again = head.stream("ClientStream", hello(b"some  gaps"), "submit")
    again.send(Frame(follow=[common_pb2.TaskRange(first=0, count=2)]))
    unknown = read_until(again.frames(head_pb2.HeadFrame), lambda frame: frame.unknown).unknown
    assert [(each.first, each.count) for each in unknown] == [(1, 1)]
    again.hang_up()
    head.assert_unharmed(before, answer)


def test_a_cancel_of_somebody_elses_task_is_counted(head: BadInput) -> None:
    """On a stream nobody waits for the verdict: it does nothing but count."""
    before = head.look()
    where = common_pb2.Resources(labels={"zone": "nowhere"})
    theirs = head.submit(request(resources=where, wait_for_resources=True), "code")
    stream = head.stream("ClientStream", hello(b"a stranger"), "submit")
    prefix, sequence = bytes.fromhex(theirs[:20]), int(theirs[20:], 16)
    stream.send(
        Frame(
            cancels=[head_pb2.CancelRange(prefix=prefix, first=sequence, count=1)],
            follow=[common_pb2.TaskRange(first=0, count=1)],
        )
    )
    read_until(stream.frames(head_pb2.HeadFrame), lambda frame: frame.unknown)
    stream.hang_up()
    assert head.result(theirs, 0).state == TaskState.QUEUED + 1
    [refused] = cancel(head, theirs)
    assert refused.error.code == "PERMISSION_DENIED"
    counted = {"cancels_refused": 2, "cancels_refused_permission_denied": 2}
    head.assert_counted(before, counted)
    asked = head_pb2.CancelTaskRequest(task_ids=[theirs])
    head.ask("CancelTask", asked, head_pb2.CancelTaskResponse, "code")
    head.assert_unharmed(before)
