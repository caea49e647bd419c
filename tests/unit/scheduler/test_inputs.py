"""Tasks that take the results of others: the graph as the scheduler sees it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.scheduling import PREFIX, Bench
from rustray.head import joining
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.scheduler import inputs as core
from rustray.task.columns import PayloadColumn
from rustray.task.failures import decode_failure
from rustray.task.inputs import InputId, pack_inputs, split_parts
from rustray.task.spec import Codec, TaskClass
from rustray.task.state import TaskState

OK = TaskState.SUCCEEDED
PUT = TaskClass("rustray.put", is_put=True, codec=Codec.PICKLE, wait_for_resources=True)


def values_given(bench: Bench) -> list[list[bytes]]:
    """Return what the tasks of the last event's grants get, behind their own arguments."""
    found: list[list[bytes]] = []
    for command in bench.commands:
        if isinstance(command, c.GrantLease) and command.inputs:
            for call in joining.joined(command, lambda _place, _subject: "").payloads:
                own, *values = split_parts(call)
                assert bytes(own) == b"xxx"
                found.append([bytes(value[1:]) for value in values])
    return found


def failure_of(bench: Bench, number: int) -> tuple[TaskState, str, str]:
    """Return how a task ended: state, code and the task that it is laid to."""
    found = bench.scheduler.state.find(PREFIX, number)
    assert found is not None
    batch, offset = found
    stored = batch.outcomes[batch.lease[offset]]
    assert stored is not None
    info = decode_failure(stored.payloads[offset - stored.offset])
    return stored.state, info.code, info.origin


def test_a_task_starts_when_all_that_it_takes_is_there() -> None:
    """It stands in no queue before; then it gets the values in the order of its references."""
    bench = Bench()
    worker = bench.join(cpus=4)
    first, second = bench.submit(2)
    (third,) = bench.submit_taking([[second, first, second]])
    assert third not in bench.attempts
    (lease,) = worker.held
    bench.end(worker, lease, 0, payload=b"one")
    assert third not in bench.attempts
    bench.end(worker, lease, 1, payload=b"two")
    assert values_given(bench) == [[b"two", b"one", b"two"]]
    bench.run_all()
    assert bench.ended[third] == [OK]


def test_a_chain_and_a_fan_in_run_to_their_ends() -> None:
    """Each waits for the one before, and the last for all of them."""
    bench = Bench()
    bench.join(cpus=2)
    (last,) = bench.submit(1)
    chain = [last]
    for _ in range(50):
        (last,) = bench.submit_taking([[last]])
        chain.append(last)
    (total,) = bench.submit_taking([chain])
    bench.run_all()
    assert bench.grant_order == [*chain, total]
    assert bench.ended[total] == [OK]


def test_tasks_of_one_submission_may_take_each_others_results() -> None:
    """A range may name its own earlier tasks, and none of its later ones: there are no cycles."""
    bench = Bench()
    bench.join(cpus=1)
    (root,) = bench.submit(1)
    first = bench.next_sequence
    bench.submit_taking([[root], [first], [first + 2], [first + 3], [first + 1], [first + 2]])
    assert set(bench.rejected) == {first + 2, first + 3, first + 5}
    assert set(bench.rejected.values()) == {"PAYLOAD"}
    bench.run_all()
    assert [n for n in range(first, first + 6) if bench.ended.get(n) == [OK]] == [
        first, first + 1, first + 4,
    ]  # fmt: skip


def test_what_is_not_known_cannot_be_taken() -> None:
    """A reference of another cluster, or to a result that has expired."""
    bench = Bench()
    bench.submit_taking([[7]])
    assert bench.rejected == {0: "OBJECT_LOST"}


@pytest.mark.parametrize(
    ("state", "end"),
    [
        (TaskState.FAILED, TaskState.FAILED),
        (TaskState.TIMED_OUT, TaskState.FAILED),
        (TaskState.CANCELLED, TaskState.CANCELLED),
    ],
)
def test_a_failure_passes_down_the_graph(state: TaskState, end: TaskState) -> None:
    """All that wait for it end at once, however deep, and are laid to the one that failed."""
    bench = Bench()
    worker = bench.join(cpus=1)
    (root,) = bench.submit(1, TaskClass("f", max_retries=0))
    chain = bench.submit_taking([[root + place] for place in range(1_500)])
    last = chain[-1]
    (lease,) = worker.held
    bench.end(worker, lease, 0, state=state)
    assert {tuple(states) for number, states in bench.ended.items() if number != root} == {(end,)}
    assert len(bench.ended) == 1_501
    assert failure_of(bench, last)[0] is end
    assert failure_of(bench, last)[2] == f"{PREFIX.hex()}{root:012x}"
    assert not bench.scheduler.state.set_aside
    (late,) = bench.submit_taking([[last]])
    assert failure_of(bench, late)[2] == f"{PREFIX.hex()}{root:012x}"


def test_a_cancelled_task_takes_those_along_that_wait_for_it() -> None:
    """None of them ever starts; what does not need it goes on."""
    bench = Bench()
    bench.join(cpus=1)
    busy, *_, root = bench.submit(6)
    (waiting,) = bench.submit_taking([[root]])
    (other,) = bench.submit_taking([[busy]])
    bench.cancel(root)
    assert bench.ended[waiting] == [TaskState.CANCELLED]
    bench.run_all()
    assert bench.ended[other] == [OK]


def test_a_task_that_waits_can_be_cancelled_itself() -> None:
    """What it was to take ends as if nobody had asked."""
    bench = Bench()
    bench.join(cpus=1)
    (root,) = bench.submit(1)
    (waiting,) = bench.submit_taking([[root]])
    bench.cancel(waiting)
    assert bench.ended[waiting] == [TaskState.CANCELLED]
    bench.run_all()
    assert bench.ended[root] == [OK]


def test_what_is_taken_is_kept_until_the_task_has_ended() -> None:
    """However short the room for results is: it may have to start again."""
    bench = Bench(result_memory_bytes=1)
    worker = bench.join(cpus=1)
    (root,) = bench.submit(1)
    (taking,) = bench.submit_taking([[root]])
    bench.end(worker, min(worker.held), 0, payload=b"a value")
    assert values_given(bench) == [[b"a value"]]
    bench.die(worker)
    bench.join("w-2", cpus=1)
    assert values_given(bench) == [[b"a value"]]
    bench.run_all()
    assert bench.ended[taking] == [OK]
    found = bench.scheduler.state.find(PREFIX, root)
    assert found is None or found[0].outcomes == [None]


def test_results_past_their_time_are_kept_for_whoever_takes_them() -> None:
    """And go as soon as that has ended."""
    bench = Bench(result_ttl_s=10.0, lease_ttl_s=1000.0)
    worker = bench.join(cpus=1)
    (root,) = bench.submit(1)
    bench.end(worker, min(worker.held), 0, payload=b"old")
    (taking,) = bench.submit_taking([[root]])
    bench.pass_time(50.0)
    assert bench.scheduler.state.find(PREFIX, root) is not None
    bench.run_all()
    assert bench.ended[taking] == [OK]
    assert bench.scheduler.state.find(PREFIX, root) is None


def test_what_is_put_is_a_result_from_the_start() -> None:
    """It is kept once, as a result, and not sent back to who has it."""
    bench = Bench()
    bench.join(cpus=1)
    values = PayloadColumn.of([b"value 0", b"value 1"])
    bench.feed(e.TasksSubmitted(PREFIX, 0, PUT, values, True))
    bench.next_sequence = 2
    told = {type(command): command for command in bench.commands}
    batch, outcome = told[c.PersistBatch], told[c.PersistOutcome]
    assert isinstance(batch, c.PersistBatch)
    assert isinstance(outcome, c.PersistOutcome)
    assert batch.payloads.size_bytes == 0
    assert list(outcome.outcome.payloads) == [b"value 0", b"value 1"]
    delivered = told[c.DeliverOutcome]
    assert isinstance(delivered, c.DeliverOutcome)
    assert list(delivered.outcome.payloads) == [b"", b""]
    bench.submit_taking([[1]])
    assert values_given(bench) == [[b"value 1"]]


def test_a_class_and_what_comes_with_it_have_to_agree() -> None:
    """Inputs without the class saying so, and the other way round, are refused."""
    bench = Bench()
    bench.submit(1)
    none = PayloadColumn.of([pack_inputs([InputId(PREFIX, 0)])])
    call = PayloadColumn.of([b"x"])
    bench.feed(e.TasksSubmitted(PREFIX, 1, TaskClass("f"), call, True, inputs=none))
    taking = TaskClass("f", has_inputs=True)
    bench.feed(e.TasksSubmitted(PREFIX, 2, taking, call, True))
    bench.feed(e.TasksSubmitted(PREFIX, 3, replace(PUT, has_inputs=True), call, True, inputs=none))
    assert bench.rejected == dict.fromkeys((1, 2, 3), "PAYLOAD")


def test_more_than_can_travel_to_one_task_is_said() -> None:
    """All that it takes together is bounded by what one message carries."""
    bench = Bench(max_joined_bytes=1_000)
    worker = bench.join(cpus=1)
    (root,) = bench.submit(1)
    taking = bench.submit_taking([[root], [root]])
    bench.end(worker, min(worker.held), 0, payload=bytes(998))
    for number in taking:
        assert failure_of(bench, number)[:2] == (TaskState.FAILED, "PAYLOAD")


def test_large_values_are_granted_by_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grant of tasks with inputs is bounded in bytes."""
    monkeypatch.setattr(core, "LEASE_BYTES", 1_000)
    bench = Bench(prefetch_s=10.0)
    worker = bench.join(cpus=8)
    (root,) = bench.submit(1)
    bench.end(worker, min(worker.held), 0, payload=bytes(600))
    bench.submit_taking([[root]] * 8)
    sizes = [len(o.payloads) for o in bench.commands if isinstance(o, c.GrantLease)]
    assert sum(sizes) == 8
    assert max(sizes) == 2


def test_explain_names_what_is_waited_for() -> None:
    """With its state, and what to ask next."""
    bench = Bench()
    bench.join(cpus=1)
    roots = bench.submit(5)
    (taking,) = bench.submit_taking([list(roots)])
    found = bench.scheduler.explain(PREFIX, taking, bench.now)
    assert found is not None
    assert "it waits for 5 of the 5 tasks whose results it takes" in found.summary
    assert "(f, LEASED)" in found.summary
    assert "and 2 more" in found.summary
    assert f"{PREFIX.hex()}{roots[0]:012x}" in found.advice


def test_explain_says_what_a_task_has_failed_of() -> None:
    """And of one that did not run whose failure it was, and what to ask and to do next."""
    bench = Bench()
    worker = bench.join(cpus=1)
    (root,) = bench.submit(1)
    (taking,) = bench.submit_taking([[root]])
    bench.end(worker, min(worker.held), 0, state=TaskState.FAILED)
    first, second = (bench.scheduler.explain(PREFIX, n, bench.now) for n in (root, taking))
    assert first is not None
    assert second is not None
    name = f"{PREFIX.hex()}{root:012x}"
    assert "FAILED on w-" in first.summary
    assert "ValueError: " in first.summary
    assert f"rustray tasks get {name}" in first.advice
    assert f"it needs the result of task {name}, which failed: ValueError: " in second.summary
    assert f"rustray tasks retry {name}" in second.advice


def test_a_dead_letter_takes_again_what_it_took() -> None:
    """A retry on request waits for its inputs anew; they may have been retried as well."""
    bench = Bench()
    worker = bench.join(cpus=1)
    (root,) = bench.submit(1, TaskClass("f", max_retries=0))
    (taking,) = bench.submit_taking([[root]])
    bench.end(worker, min(worker.held), 0, state=TaskState.FAILED)
    assert bench.ended[taking] == [TaskState.FAILED]
    bench.retry(root, 2)
    assert taking not in bench.ended
    bench.end(worker, min(worker.held), 0, payload=b"better")
    assert values_given(bench) == [[b"better"]]
    bench.run_all()
    assert bench.ended[taking] == [OK]
