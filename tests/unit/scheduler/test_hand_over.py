"""What becomes of the values of a worker that leaves in good order."""

from __future__ import annotations

import pytest

from helpers.scheduling import PREFIX, Bench, NaiveWorker
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.scheduler import hand_over
from rustray.scheduler.value_commands import FreeObject
from rustray.task.columns import PlacedColumn
from rustray.task.frames import Surrendered
from rustray.task.place import MAX_SENT_BYTES, MOVED, Place
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState

STAYS = TaskClass("f", results_stay=True)
OK = TaskState.SUCCEEDED


def make_values(bench: Bench, worker: NaiveWorker, count: int = 1) -> list[tuple[int, str]]:
    """Run tasks whose values stay; returns their numbers and the values' names."""
    made = []
    for _ in range(count):
        (number,) = bench.submit(1, STAYS)
        (lease,) = worker.held
        made.append((number, bench.end_placed(worker, lease, 0)))
    return made


def place_of(bench: Bench, number: int) -> Place | None:
    """Return where a value is, as the head tells it."""
    found = bench.scheduler.task(PREFIX, number)
    assert found is not None
    return found.place


def counter(bench: Bench, name: str) -> int:
    """Return one of the scheduler's counters."""
    return bench.scheduler.state.counters[name]


def test_another_worker_takes_it_over_under_a_new_name() -> None:
    """The place is committed, and only then it is let go of; nothing runs again."""
    bench = Bench()
    first = bench.join("w-1", cpus=1)
    ((number, name),) = make_values(bench, first)
    second = bench.join("w-2", cpus=1)
    bench.drain(first)
    new = bench.adopt(second)
    assert new.startswith(f"{name}{MOVED}")
    found = place_of(bench, number)
    assert found is not None
    assert (found.worker_id, found.object_id) == ("w-2", new)
    kinds = [type(one) for one in bench.commands]
    assert kinds.index(c.ReplaceOutcome) < kinds.index(FreeObject)
    assert first.values == set()
    bench.leave(first)
    assert counter(bench, "objects_lost") == 0
    (taker,) = bench.submit_taking([[number]])
    bench.run_all()
    assert (bench.ended[number], bench.ended[taker]) == ([OK], [OK])
    assert bench.attempts[number] == [1]


def test_without_another_worker_the_head_takes_it() -> None:
    """So that who asks after the last worker has left gets it all the same."""
    bench = Bench()
    worker = bench.join("w-1", cpus=1)
    ((number, name),) = make_values(bench, worker)
    bench.drain(worker)
    assert worker.asked == [name]
    bench.surrender(worker, name, b"value")
    bench.leave(worker)
    found = bench.scheduler.task(PREFIX, number)
    assert found is not None
    assert (found.state, found.payload, found.place) == (OK, b"value", None)


def test_what_is_made_while_it_leaves_is_handed_over_too() -> None:
    """The last tasks of a worker make values as well."""
    bench = Bench()
    first = bench.join("w-1", cpus=1)
    (number,) = bench.submit(1, STAYS)
    second = bench.join("w-2", cpus=1)
    bench.drain(first)
    (lease,) = first.held
    bench.end_placed(first, lease, 0)
    bench.adopt(second)
    found = place_of(bench, number)
    assert found is not None
    assert found.worker_id == "w-2"


def test_who_cannot_take_it_is_not_asked_again() -> None:
    """Then the others are, and in the end the head."""
    bench = Bench()
    first = bench.join("w-1", cpus=1)
    ((_, name),) = make_values(bench, first)
    others = [bench.join(f"w-{number}", cpus=1) for number in (2, 3, 4)]
    bench.drain(first)
    for _ in range(hand_over.MAX_REFUSALS):
        (asked,) = [one for one in others if one.adopting]
        others.remove(asked)
        assert first.asked == []
        bench.adopt(asked, trouble="no room")
    assert first.asked == [name]


def test_what_nobody_can_take_is_made_again_once_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker is told to let go of it, so that it need not wait for its time to be up."""
    monkeypatch.setattr(hand_over, "MAX_SENT_BYTES", 1)
    bench = Bench()
    worker = bench.join("w-1", cpus=1)
    ((number, name),) = make_values(bench, worker)
    bench.submit(1, STAYS)
    bench.drain(worker)
    assert worker.values == {name}
    (lease,) = worker.held
    bench.end(worker, lease, 0, 1, OK)
    assert worker.values == set()
    bench.leave(worker)
    bench.feed(e.ValueWanted(PREFIX, number, name))
    bench.join("w-2", cpus=1)
    bench.run_all()
    assert (bench.ended[number], bench.attempts[number]) == ([OK], [1, 2])


def test_a_worker_that_comes_in_time_takes_what_nobody_could(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when one worker replaces the other."""
    monkeypatch.setattr(hand_over, "MAX_SENT_BYTES", 1)
    bench = Bench()
    first = bench.join("w-1", cpus=1)
    ((number, _),) = make_values(bench, first)
    bench.submit(1, STAYS)  # it runs on
    bench.drain(first)
    second = bench.join("w-2", cpus=1)
    bench.adopt(second)
    found = place_of(bench, number)
    assert found is not None
    assert found.worker_id == "w-2"


def test_who_is_to_take_it_and_dies_is_replaced() -> None:
    """And one that has a new session is asked anew: it may not have heard."""
    bench = Bench()
    first = bench.join("w-1", cpus=1)
    ((number, _),) = make_values(bench, first)
    second = bench.join("w-2", cpus=1)
    bench.drain(first)
    assert len(second.adopting) == 1
    bench.disconnect(second)
    bench.join("w-2", cpus=1)
    assert len(second.adopting) == 2
    third = bench.join("w-3", cpus=1)
    bench.die(second)
    bench.adopt(third)
    found = place_of(bench, number)
    assert found is not None
    assert found.worker_id == "w-3"


def test_what_is_let_go_of_meanwhile_stays_nowhere() -> None:
    """Who has taken it over is told so."""
    bench = Bench()
    first = bench.join("w-1", cpus=1)
    ((number, _),) = make_values(bench, first)
    second = bench.join("w-2", cpus=1)
    bench.drain(first)
    bench.feed(e.ResultsReleased(PREFIX, number, 1))
    assert first.values == set()
    first.values.add(second.adopting[0].place.object_id)  # it had not heard yet
    bench.adopt(second)
    assert bench.scheduler.state.kept_by == {}
    assert second.values == set()


def test_who_asks_while_it_moves_is_sent_it_by_its_new_worker() -> None:
    """The question that the old one has not answered goes on to the new one."""
    bench = Bench()
    first = bench.join("w-1", cpus=1)
    ((number, name),) = make_values(bench, first)
    second = bench.join("w-2", cpus=1)
    bench.drain(first)
    bench.feed(e.ValueWanted(PREFIX, number, name))
    new = bench.adopt(second)
    assert second.asked == [new]
    bench.surrender(second, new, b"value")
    found = bench.scheduler.task(PREFIX, number)
    assert found is not None
    assert found.payload == b"value"


def test_two_workers_that_leave_hand_it_on() -> None:
    """Each move has a name of its own."""
    bench = Bench()
    workers, names = [bench.join("w-1", cpus=1)], []
    ((number, name),) = make_values(bench, workers[0])
    for other in (2, 3):
        workers.append(bench.join(f"w-{other}", cpus=1))
        bench.drain(workers[-2])
        names.append(bench.adopt(workers[-1]))
        bench.leave(workers[-2])
    found = place_of(bench, number)
    assert found is not None
    assert (found.worker_id, found.object_id) == ("w-3", names[-1])
    assert len({name, *names}) == 3


def test_a_worker_that_lies_about_what_it_has_taken_is_not_believed() -> None:
    """Neither another name, nor another worker's place, nor what it was not asked for."""
    bench = Bench()
    first = bench.join("w-1", cpus=1)
    ((number, name),) = make_values(bench, first)
    liars = [bench.join(f"w-{one}", cpus=1) for one in (2, 3)]
    bench.drain(first)

    def claim(worker: NaiveWorker, column: PlacedColumn) -> None:
        item = Surrendered(name, column)
        bench.feed(e.ValuesSurrendered(worker.worker_id, worker.session, (item,)))

    (asked,) = [one for one in liars if one.adopting]
    (other,) = [one for one in liars if one is not asked]
    new = asked.adopting[0].name
    claim(other, other.place(new))  # nobody has asked it
    assert counter(bench, "stale_objects") == 1
    claim(asked, asked.place("another"))
    assert [len(one.adopting) for one in (asked, other)] == [1, 1]
    claim(other, asked.place(other.adopting[0].name))
    found = place_of(bench, number)
    assert found is not None
    assert found.worker_id == "w-1"
    claim(first, first.place(name))  # it was to send the value itself
    assert counter(bench, "stale_objects") == 2
    bench.surrender(first, name, b"value")
    assert place_of(bench, number) is None


def test_only_so_many_are_on_their_way_at_once() -> None:
    """The rest follows as they arrive."""
    bench = Bench()
    first = bench.join("w-1", cpus=1)
    numbers = [number for number, _ in make_values(bench, first, hand_over.WINDOW + 5)]
    second, third = bench.join("w-2", cpus=1), bench.join("w-3", cpus=1)
    bench.drain(first)
    asked = len(second.adopting), len(third.adopting)
    assert sum(asked) == hand_over.WINDOW
    assert abs(asked[0] - asked[1]) <= 1
    while second.adopting or third.adopting:
        bench.adopt(second if second.adopting else third)
    assert {place_of(bench, number).worker_id for number in numbers} == {"w-2", "w-3"}  # type: ignore[union-attr]
    assert first.values == set()


def test_the_head_takes_no_more_than_it_has_room_for() -> None:
    """What others have there is not pushed out by what a worker leaves behind."""
    assert MAX_SENT_BYTES > 1 << 20
    bench = Bench(result_memory_bytes=3 << 20)
    worker = bench.join("w-1", cpus=1)
    make_values(bench, worker, 5)
    bench.drain(worker)
    assert len(worker.asked) == 2
    for name in list(worker.asked):
        bench.surrender(worker, name, bytes(1 << 20))
    assert worker.values == set()
    assert counter(bench, "objects_lost") == 3
    assert counter(bench, "results_expired") == 0


def test_what_is_let_go_of_on_its_way_to_the_head_holds_up_nothing() -> None:
    """Bug: the question stayed open for ever, and the worker waited for its time to be up."""
    bench = Bench()
    worker = bench.join("w-1", cpus=1)
    ((number, name),) = make_values(bench, worker)
    bench.drain(worker)
    worker.asked.remove(name)
    bench.feed(e.ResultsReleased(PREFIX, number, 1))
    assert bench.scheduler.state.leaving["w-1"].asked
    item = Surrendered(name, is_gone=True)
    bench.feed(e.ValuesSurrendered("w-1", worker.session, (item,)))
    leaving = bench.scheduler.state.leaving["w-1"]
    assert (leaving.asked, leaving.head_bytes) == ({}, 0)


def test_the_window_to_the_head_opens_with_each_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: the rest waited until the last task of the worker had ended."""
    monkeypatch.setattr(hand_over, "HEAD_WINDOW_BYTES", 2 << 20)
    bench = Bench()
    worker = bench.join("w-1", cpus=1)
    made = make_values(bench, worker, 5)
    bench.submit(1, STAYS)  # it runs on
    bench.drain(worker)
    for _, name in made:
        assert len(worker.asked) <= 2
        worker.asked.remove(name)
        bench.surrender(worker, name, bytes(1 << 20))
    assert worker.values == set()


def test_a_new_worker_is_asked_though_others_could_not_take_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bug: what two workers could not take, no other was ever asked to."""
    monkeypatch.setattr(hand_over, "MAX_SENT_BYTES", 1)
    bench = Bench()
    first = bench.join("w-1", cpus=1)
    make_values(bench, first)
    bench.submit(1, STAYS)  # it runs on
    others = [bench.join(f"w-{number}", cpus=1) for number in (2, 3)]
    bench.drain(first)
    for _ in others:
        bench.adopt(next(one for one in others if one.adopting), trouble="no room")
    late = bench.join("w-4", cpus=1)
    assert sum(len(one.adopting) for one in (late, *others)) == 1


def test_a_drain_that_its_worker_has_not_heard_is_repeated() -> None:
    """Bug: of one that was away, or whose connection broke just then, it was forgotten."""
    bench = Bench()
    worker = bench.join("w-1", cpus=1)
    ((_, name),) = make_values(bench, worker)
    bench.disconnect(worker)
    bench.drain(worker)
    assert worker.asked == []  # it cannot hear
    bench.join("w-1", cpus=1)
    assert [one.worker_id for one in bench.commands if isinstance(one, c.DrainWorker)] == ["w-1"]
    assert bench.scheduler.state.workers["w-1"].state == "draining"
    assert worker.asked == [name]
