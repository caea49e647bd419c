"""Values that stay with workers: who is told of them, and what happens when one is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.scheduling import PREFIX, Bench, NaiveWorker, object_name
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.scheduler.value_commands import FreeObject
from rustray.task.columns import PayloadColumn, PlacedColumn
from rustray.task.failures import decode_failure
from rustray.task.frames import LeaseOutcome
from rustray.task.place import Place
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from unit.scheduler.test_recovery import Head

STAYS = TaskClass("f", results_stay=True)
PUT = TaskClass("rustray.put", is_put=True, wait_for_resources=True)
OK = TaskState.SUCCEEDED


def make_value(bench: Bench, worker: NaiveWorker) -> tuple[int, str]:
    """Run a task whose value stays; returns its number and the value's name."""
    (number,) = bench.submit(1, STAYS)
    (lease,) = worker.held
    return number, bench.end_placed(worker, lease, 0)


def freed(bench: Bench) -> list[tuple[str, str]]:
    """Return what the last event had workers let go of."""
    return [(one.worker_id, one.object_id) for one in bench.commands if isinstance(one, FreeObject)]


def failure_text(bench: Bench, number: int) -> str:
    """Return how a task has failed."""
    found = bench.scheduler.task(PREFIX, number)
    assert found is not None
    assert found.state is TaskState.FAILED
    assert found.payload is not None
    info = decode_failure(found.payload)
    assert info.code == "OBJECT_LOST"
    return info.message


def test_the_client_is_told_where_a_value_is() -> None:
    """And whoever takes it gets that too, whatever its size."""
    bench = Bench()
    worker = bench.join(cpus=1)
    number, name = make_value(bench, worker)
    (told,) = [one for one in bench.commands if isinstance(one, c.DeliverOutcome)]
    assert isinstance(told.outcome.payloads, PlacedColumn)
    assert Place.unpack(told.outcome.payloads[0]).object_id == name
    bench.submit_taking([[number]])
    (grant,) = [one for one in bench.commands if isinstance(one, c.GrantLease)]
    assert isinstance(grant.inputs[0][0].payloads, PlacedColumn)


def test_a_value_goes_with_the_last_reference_and_not_before() -> None:
    """Neither while a task takes it, nor twice."""
    bench = Bench()
    worker = bench.join(cpus=1)
    number, name = make_value(bench, worker)
    bench.submit_taking([[number]])
    bench.feed(e.ResultsReleased(PREFIX, number, 1))
    assert freed(bench) == []
    bench.finish_one(worker)
    assert freed(bench) == [("w-1", name)]
    bench.feed(e.ResultsReleased(PREFIX, number, 1))
    assert freed(bench) == []
    assert bench.scheduler.state.kept_by == {}


def test_a_value_goes_when_its_time_is_over() -> None:
    """As any result."""
    bench = Bench(result_ttl_s=60.0, lease_ttl_s=1e6)
    worker = bench.join(cpus=1)
    _, name = make_value(bench, worker)
    bench.now += 61
    bench.feed(e.TimePassed())
    assert freed(bench) == [("w-1", name)]


def test_a_lost_value_that_a_task_needs_is_made_again() -> None:
    """The task that takes it waits anew, and gets the new one."""
    bench = Bench()
    worker = bench.join(cpus=1)
    number, _ = make_value(bench, worker)
    (taker,) = bench.submit_taking([[number]])
    bench.die(worker)
    assert bench.state_of(number) is TaskState.QUEUED
    assert bench.state_of(taker) is TaskState.QUEUED
    other = bench.join("w-2", cpus=1)
    assert bench.grant_order[-1] == number
    (lease,) = other.held
    name = bench.end_placed(other, lease, 0)
    assert name == object_name(number, 2)
    assert bench.grant_order[-1] == taker
    bench.run_all()
    assert bench.ended[taker] == [OK]
    assert bench.scheduler.state.counters["tasks_run_again_for_lost_values"] == 1


def test_what_nobody_needs_is_made_again_only_when_somebody_asks() -> None:
    """A client that comes late has it all the same."""
    bench = Bench()
    worker = bench.join(cpus=1)
    number, name = make_value(bench, worker)
    bench.die(worker)
    bench.join("w-2", cpus=1)
    assert bench.state_of(number) is OK
    bench.feed(e.ValueWanted(PREFIX, number, "another"))
    assert bench.state_of(number) is OK
    bench.feed(e.ValueWanted(PREFIX, number, name))
    assert bench.state_of(number) is TaskState.LEASED
    bench.run_all()
    assert bench.ended[number] == [OK]


def test_a_chain_of_lost_values_is_made_again_from_its_start() -> None:
    """One after the other."""
    bench = Bench()
    worker = bench.join(cpus=1)
    last, _ = make_value(bench, worker)
    stays = TaskClass("f", results_stay=True)
    chain = [last]
    for _ in range(100):
        (last,) = bench.submit_taking([[last]], stays)
        (lease,) = worker.held
        name = bench.end_placed(worker, lease, 0)
        chain.append(last)
    bench.die(worker)
    bench.join("w-2", cpus=1)
    bench.feed(e.ValueWanted(PREFIX, last, name))
    bench.run_all()
    assert bench.grant_order[-len(chain) :] == chain
    assert bench.ended[last] == [OK]


def test_a_worker_that_was_only_cut_off_brings_its_values_back() -> None:
    """What nobody has made again meanwhile is where it was."""
    bench = Bench()
    worker = bench.join(cpus=1)
    number, name = make_value(bench, worker)
    bench.disconnect(worker)
    bench.pass_time(60)
    assert bench.scheduler.state.workers == {}
    bench.join("w-1", cpus=1)
    bench.feed(e.ValueWanted(PREFIX, number, name))
    assert worker.asked == [name]
    assert bench.state_of(number) is OK


def test_a_value_that_cannot_be_had_directly_comes_through_the_head() -> None:
    """It is a result like any other from then on, and its worker lets go of it."""
    bench = Bench()
    worker = bench.join(cpus=1)
    number, name = make_value(bench, worker)
    bench.feed(e.ValueWanted(PREFIX, number, name))
    bench.surrender(worker, worker.asked.pop(), b"the value")
    assert freed(bench) == [("w-1", name)]
    found = bench.scheduler.task(PREFIX, number)
    assert found is not None
    assert (found.payload, found.place) == (b"the value", None)
    bench.die(worker)
    assert bench.state_of(number) is OK


def test_a_value_that_its_worker_does_not_have_any_more_is_made_again() -> None:
    """Its disk was damaged, say."""
    bench = Bench()
    worker = bench.join(cpus=1)
    number, name = make_value(bench, worker)
    bench.feed(e.ValueWanted(PREFIX, number, name))
    bench.surrender(worker, worker.asked.pop(), None)
    assert bench.state_of(number) is TaskState.LEASED
    bench.run_all()
    assert bench.ended[number] == [OK]


@pytest.mark.parametrize("max_retries", [0, 2])
def test_a_task_that_cannot_have_its_input_is_tried_again_at_no_cost(max_retries: int) -> None:
    """It was not begun. The value is asked for once at a time, and there is an end to it."""
    bench = Bench(lease_ttl_s=1e6)
    worker = bench.join(cpus=1)
    number, name = make_value(bench, worker)
    (taker,) = bench.submit_taking([[number]], TaskClass("f", max_retries=max_retries))
    for _ in range(20):
        (lease,) = worker.held
        bench.lack_input(worker, lease, 0, name)
        assert worker.asked == [name]
        bench.surrender(worker, worker.asked.pop(), trouble="it is too large")
        bench.pass_time(1.0)
    assert bench.state_of(taker) is TaskState.LEASED
    (lease,) = worker.held
    bench.lack_input(worker, lease, 0, name)
    assert bench.ended[taker] == [TaskState.FAILED]


def test_a_task_waits_for_a_worker_that_has_not_answered() -> None:
    """It is asked once; it may be frozen, and is given up in time if it stays so."""
    bench = Bench(lease_ttl_s=1e6)
    worker = bench.join(cpus=1)
    number, name = make_value(bench, worker)
    (taker,) = bench.submit_taking([[number]])
    for _ in range(40):
        (lease,) = worker.held
        bench.lack_input(worker, lease, 0, name)
        bench.pass_time(1.0)
    assert worker.asked == [name]
    bench.die(worker)
    bench.join("w-2", cpus=1)
    bench.run_all()
    assert bench.ended[taker] == [OK]
    assert bench.scheduler.state.counters["tasks_run_again_for_lost_values"] == 1


def test_each_of_many_inputs_may_lack_once() -> None:
    """One after the other comes to the head, however many there are."""
    bench = Bench(lease_ttl_s=1e6)
    worker = bench.join(cpus=1)
    made = [make_value(bench, worker) for _ in range(30)]
    (taker,) = bench.submit_taking([[number for number, _ in made]])
    for _, name in made:
        (lease,) = worker.held
        bench.lack_input(worker, lease, 0, name)
        bench.surrender(worker, worker.asked.pop())
        bench.pass_time(1.0)
    bench.run_all()
    assert bench.ended[taker] == [OK]


def test_what_a_lost_value_was_made_of_is_made_again_though_nobody_holds_it() -> None:
    """Of a pipeline a program holds the last reference only."""
    bench = Bench()
    worker = bench.join(cpus=1)
    first, name = make_value(bench, worker)
    (last,) = bench.submit_taking([[first]], STAYS)
    bench.feed(e.ResultsReleased(PREFIX, first, 1))
    (lease,) = worker.held
    kept = bench.end_placed(worker, lease, 0)
    assert freed(bench) == [("w-1", name)]
    bench.die(worker)
    bench.join("w-2", cpus=1)
    bench.feed(e.ValueWanted(PREFIX, last, kept))
    bench.run_all()
    assert bench.ended[last] == [OK]
    bench.feed(e.ResultsReleased(PREFIX, last, 1))
    assert bench.scheduler.task(PREFIX, first) is None
    assert bench.scheduler.state.sessions == {}


def test_layers_of_lost_values_are_each_met_once() -> None:
    """Forty layers of three that take all three before: three to the forty ways."""
    bench = Bench()
    worker = bench.join(cpus=8)
    layer: list[int] = []
    for _ in range(40):
        layer = [bench.submit_taking([layer], STAYS)[0] if layer else bench.submit(1, STAYS)[0]
                 for _ in range(3)]  # fmt: skip
        for lease in list(worker.held):
            name = bench.end_placed(worker, lease, 0)
    bench.die(worker)
    bench.join("w-2", cpus=8)
    bench.feed(e.ValueWanted(PREFIX, layer[-1], name))
    bench.run_all()
    assert bench.ended[layer[-1]] == [OK]


def test_values_that_a_program_holds_do_not_go_for_want_of_room() -> None:
    """They are on a shelf of their own, and to have been told of is not to have them."""
    bench = Bench(result_memory_bytes=5_000)
    worker = bench.join(cpus=1)
    number, _ = make_value(bench, worker)
    bench.feed(e.OutcomesDelivered(PREFIX, number, 1))
    for _ in range(20):
        bench.submit(1)
        (lease,) = worker.held
        bench.end(worker, lease, 0, payload=b"x" * 1_000)
    found = bench.scheduler.task(PREFIX, number)
    assert found is not None
    assert found.place is not None


def test_a_release_comes_in_any_range() -> None:
    """It costs what there is, and not what it says."""
    bench = Bench()
    worker = bench.join(cpus=1)
    _, name = make_value(bench, worker)
    bench.feed(e.ResultsReleased(PREFIX, 0, 1 << 40))
    assert freed(bench) == [("w-1", name)]


@pytest.mark.parametrize(("strategy", "busy", "follows"), [
    ("LeastLoaded", 1, True), ("LeastLoaded", 2, False), ("LocalityAware", 2, True),
    ("RoundRobin", 0, False),
])  # fmt: skip
def test_a_task_goes_to_the_worker_that_keeps_what_it_takes(
    strategy: str, busy: int, follows: bool
) -> None:
    """As far as the strategy heeds that, and a slot is free there, or the value worth a wait."""
    bench = Bench(strategy=strategy)
    holder = bench.join("w-1", cpus=2)
    number, _ = make_value(bench, holder)
    bench.submit(busy)
    other = bench.join("w-2", cpus=2)
    found = bench.scheduler.state.find(PREFIX, number)
    assert found is not None
    stored = found[0].outcomes[0]
    assert stored is not None
    assert stored.place is not None
    stored.place = replace(stored.place, size=100 << 20)
    (taker,) = bench.submit_taking([[number]])
    has_it = any(grant.first == taker for grant in holder.grants.values())
    assert has_it is follows
    assert has_it or any(grant.first == taker for grant in other.grants.values())


def test_values_and_their_making_again_survive_a_restart() -> None:
    """The head dies with the values noted, and again while one is being made again."""
    head = Head()
    head.join("w", 1, cpus=8)
    head.greet("w", 1)
    head.feed(e.TasksSubmitted(PREFIX, 0, STAYS, PayloadColumn.of([b"argument"]), True))
    (grant,) = head.grants
    column = PlacedColumn.of_item(Place(object_name(0, 1), 1 << 20, "w").pack())
    outcome = LeaseOutcome(grant.lease, 0, OK, column, 5)
    head.feed(e.WorkerReported("w", 1, None, (outcome,), (), (), False, False))
    head.restart()
    found = head.scheduler.task(PREFIX, 0)
    assert found is not None
    assert (found.state, found.place) == (OK, Place(object_name(0, 1), 1 << 20, "w"))
    head.feed(e.ValueWanted(PREFIX, 0, object_name(0, 1)))
    assert head.state_of(0) is OK  # its worker may come back yet
    head.join("v", head.starts, cpus=8)
    head.greet("v", head.starts)
    head.pass_time(120)
    assert head.state_of(0) is not OK
    head.restart()
    assert head.state_of(0) is not OK
    head.pass_time(120)
    head.join("u", head.starts, cpus=8)
    head.greet("u", head.starts)
    assert [list(one.payloads) for one in head.grants] == [[b"argument"]]
    head.end("u", head.starts, head.grants[0], OK)
    assert head.state_of(0) is OK


def test_a_lost_value_that_was_put_ends_those_that_take_it() -> None:
    """There is no task to make it again; the error tells the story."""
    bench = Bench()
    worker = bench.join(cpus=1)
    place = PlacedColumn.of_item(Place("put-1", 5_000_000, "w-1", address="w-1:1").pack())
    bench.feed(e.TasksSubmitted(PREFIX, 0, PUT, place, True))
    bench.next_sequence = 1
    (taker,) = bench.submit_taking([[0]])
    bench.die(worker)
    assert "5000000 bytes" in failure_text(bench, 0)
    assert "w-1" in failure_text(bench, taker)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"garbage",
        Place(object_name(0, 1), 5, "w-2").pack(),
        Place(object_name(1, 1), 5, "w-1").pack(),
        Place(object_name(0, 1), 5, "w-1", address="elsewhere:1").pack(),
        Place("a/b", 5, "w-1").pack(),
    ],
)
def test_a_worker_that_lies_about_a_place_is_not_believed(payload: bytes) -> None:
    """The task fails; nobody is sent anywhere."""
    bench = Bench()
    worker = bench.join(cpus=1)
    (number,) = bench.submit(1, STAYS)
    (lease,) = worker.held
    worker.held.clear()
    column = PlacedColumn.of_column(PayloadColumn.of([payload]))
    bench.report(worker, outcomes=[LeaseOutcome(lease, 0, OK, column, 5)])
    found = bench.scheduler.task(PREFIX, number)
    assert found is not None
    assert found.state is TaskState.FAILED
    assert found.place is None


@pytest.mark.parametrize(
    ("task_class", "state"), [(TaskClass("f", max_retries=0), OK), (STAYS, TaskState.FAILED)]
)
def test_what_is_to_come_along_or_is_no_value_cannot_stay(
    task_class: TaskClass, state: TaskState
) -> None:
    """Of a task that may run once only, or that has failed."""
    bench = Bench()
    worker = bench.join(cpus=1)
    bench.submit(1, task_class)
    (lease,) = worker.held
    worker.held.clear()
    column = PlacedColumn.of_item(Place(object_name(0, 1), 5, "w-1").pack())
    bench.report(worker, outcomes=[LeaseOutcome(lease, 0, state, column, 5)])
    found = bench.scheduler.task(PREFIX, 0)
    assert found is not None
    assert (found.state, found.place) == (TaskState.FAILED, None)
    assert bench.scheduler.state.counters["false_places"] == 1


@pytest.mark.parametrize(
    "place",
    [
        Place("put-1", 5, "nobody"),
        Place("put-1", 5, "w-1", address="elsewhere:1"),
        Place(object_name(0, 1), 1 << 20, "w-1"),
    ],
)
def test_a_client_cannot_put_what_it_has_not_put(place: Place) -> None:
    """Another task's value, or an address of its own."""
    bench = Bench()
    worker = bench.join(cpus=1)
    make_value(bench, worker)
    column = PlacedColumn.of_item(place.pack())
    bench.feed(e.TasksSubmitted(PREFIX, 7, PUT, column, True))
    assert bench.rejected[7] in ("PAYLOAD", "OBJECT_LOST")
    assert worker.values == {object_name(0, 1)}


def test_a_value_that_was_freed_was_not_lost_with_its_worker() -> None:
    """Bug: who took it afterwards, as something made of it was there still, was told so."""
    bench = Bench()
    worker = bench.join(cpus=1)
    column = PlacedColumn.of_item(Place("put-1", 1 << 20, "w-1", address="w-1:1").pack())
    bench.feed(e.TasksSubmitted(PREFIX, 7, PUT, column, True))
    bench.submit_taking([[7]], STAYS)
    (lease,) = worker.held
    bench.end_placed(worker, lease, 0)
    bench.feed(e.ResultsReleased(PREFIX, 7, 1))
    assert freed(bench) == [("w-1", "put-1")]
    (taker,) = bench.submit_taking([[7]])
    assert "was let go of (rustray.free was called" in failure_text(bench, taker)
    assert "lost" not in failure_text(bench, taker)


def test_a_value_that_has_come_to_the_head_is_not_lost() -> None:
    """Regression: what was made of it, and lost, could not be made again: the head stumbled.

    Found by the chaos runner (seed 208 with many large values).
    """
    bench = Bench()
    worker = bench.join(cpus=1)
    first, name = make_value(bench, worker)
    bench.submit_taking([[first]], STAYS)
    (lease,) = worker.held
    bench.end_placed(worker, lease, 0)
    bench.feed(e.ValueWanted(PREFIX, first, name))
    bench.surrender(worker, worker.asked.pop(), b"the value")
    bench.submit_taking([[first + 1]])
    bench.die(worker)
    bench.join("w-2", cpus=1)
    assert bench.grant_order.count(first) == 1
    assert bench.grant_order[-1] == first + 1


def test_a_value_that_was_released_and_made_again_in_vain_goes_at_once() -> None:
    """It was made for a task that has ended before: nobody would ever let go of it."""
    bench = Bench()
    worker = bench.join(cpus=1)
    number, _ = make_value(bench, worker)
    (heir,) = bench.submit_taking([[number]], STAYS)
    (lease,) = worker.held
    bench.end_placed(worker, lease, 0)
    bench.feed(e.ResultsReleased(PREFIX, number, 1))
    (taker,) = bench.submit_taking([[number]])
    assert bench.state_of(number) is TaskState.LEASED
    bench.cancel(taker)
    (lease,) = worker.held
    name = bench.end_placed(worker, lease, 0)
    assert freed(bench) == [("w-1", name)]
    assert bench.state_of(heir) is OK
    assert list(bench.scheduler.state.kept_by["w-1"]) == [object_name(heir, 1)]


def test_a_lost_value_that_room_was_short_for_is_made_again_and_counted_right() -> None:
    """It stands in no queue of its shelf any more when it goes."""
    bench = Bench(result_memory_bytes=2_000)
    worker = bench.join(cpus=2)
    number, _ = make_value(bench, worker)
    blocker = bench.submit(2)
    (taker,) = bench.submit_taking([[number]])
    for _ in range(3):  # more than there is room for
        bench.submit(1, STAYS)
    while blocker[0] not in bench.ended or blocker[1] not in bench.ended:
        bench.finish_one(worker)
    stays = [lease for lease, grant in worker.grants.items() if grant.task_class.results_stay]
    assert bench.state_of(taker) is not OK
    for lease in stays:
        if lease in worker.held:
            bench.end_placed(worker, lease, 0)
    bench.die(worker)
    bench.join("w-2", cpus=2)
    bench.run_all()
    assert bench.ended[taker] == [OK]


def test_a_worker_is_told_to_let_go_behind_what_is_to_be_saved() -> None:
    """The shell waits for the commit of all that came before a `FreeObject`."""
    bench = Bench()
    worker = bench.join(cpus=1)
    number, _ = make_value(bench, worker)
    bench.feed(e.ResultsReleased(PREFIX, number, 1))
    assert [type(one) for one in bench.commands] == [c.ForgetResults, FreeObject, c.ForgetBatch]
    number, name = make_value(bench, worker)
    bench.feed(e.ValueWanted(PREFIX, number, name))
    bench.surrender(worker, name)
    kinds = [type(one) for one in bench.commands]
    assert kinds.index(c.ReplaceOutcome) < kinds.index(FreeObject)


def test_a_task_that_comes_again_by_a_forgotten_id_has_no_heirs() -> None:
    """What was made of the one before it does not count as made of it."""
    bench = Bench(result_ttl_s=60.0, lease_ttl_s=1e6)
    worker = bench.join(cpus=1)
    number, _ = make_value(bench, worker)
    bench.pass_time(50.0)
    for _ in range(2):
        bench.submit_taking([[number]], STAYS)
        (lease,) = worker.held
        bench.end_placed(worker, lease, 0)
    bench.pass_time(15.0)
    assert bench.scheduler.task(PREFIX, number) is None
    bench.attempts.clear()
    bench.ended.clear()
    bench.feed(e.TasksSubmitted(PREFIX, number, STAYS, PayloadColumn.of([b"xxx"]), True))
    (lease,) = worker.held
    name = bench.end_placed(worker, lease, 0)
    bench.feed(e.ResultsReleased(PREFIX, number, 1))
    assert freed(bench) == [("w-1", name)]
    bench.pass_time(60.0)
    assert bench.scheduler.state.kept_by == {}


@pytest.mark.parametrize("end", ["x", "1.2", "1"])
def test_a_name_that_only_the_head_gives_is_not_taken_from_a_worker(end: str) -> None:
    """Bug: one that the head could not read ended the event half-way when its worker left."""
    bench = Bench()
    worker = bench.join(cpus=1)
    bench.submit(1, STAYS)
    (lease,) = worker.held
    worker.held.clear()
    column = worker.place(f"{object_name(0, 1)}.{end}")
    bench.report(worker, outcomes=[LeaseOutcome(lease, 0, OK, column, 5)])
    assert bench.state_of(0) is TaskState.FAILED
    assert bench.scheduler.state.counters["false_places"] == 1
    bench.drain(worker)
