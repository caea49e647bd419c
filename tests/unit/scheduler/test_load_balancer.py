"""Each strategy keeps what its name promises, and none breaks what all promise."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from math import log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.builders import a_class, a_worker, lease
from rustray.common.errors import InvariantError
from rustray.scheduler.candidates import MAX_VIEWS
from rustray.scheduler.load_balancer import (
    STRATEGIES,
    LoadBalancer,
    PlacementRequest,
    WorkerLoad,
)
from rustray.scheduler.ordering import Lots, capacity, even_shares, level_shares
from rustray.task.spec import TaskClass

F = a_class("f").build()
CODE = a_class("g").as_code().build()
NAMES = list(STRATEGIES)
MANY = 1 << 20


class Cluster:
    """Workers under one balancer, each with room for as many tasks as ``limits`` says."""

    def __init__(self, name: str, limits: Sequence[int], cores: Sequence[float] = (), seed=0):
        self.balancer = LoadBalancer(name, seed=seed)
        self.workers: list[WorkerLoad] = []
        self.limits: dict[int, int] = {}
        for number, limit in enumerate(limits):
            self.join(limit, cores[number] if cores else 4)

    def join(self, limit: int = MANY, cores: float = 4) -> WorkerLoad:
        """Let one more worker join."""
        order = len(self.limits)
        worker = a_worker(f"w{order}").joining(order).with_cores(cores).build()
        self.workers.append(worker)
        self.limits[order] = limit
        self.balancer.add(worker)
        return worker

    def leave(self, worker: WorkerLoad) -> None:
        """Take a worker out; its room stays, to show that nobody asks."""
        self.balancer.remove(worker)
        self.workers.remove(worker)

    def room(self, worker: WorkerLoad) -> int:
        """Say how much a worker can take."""
        return max(0, self.limits[worker.order] - worker.tasks)

    def with_room(self) -> list[WorkerLoad]:
        """Return the workers that can take something."""
        return [worker for worker in self.workers if self.room(worker) > 0]

    def load(self, worker: WorkerLoad, tasks: int, task_class: TaskClass = F) -> None:
        """Lease to a worker, or take off, and say so."""
        lease(worker, task_class, tasks)
        self.balancer.changed(worker)

    def pick(
        self,
        count: int,
        task_class: TaskClass = F,
        room: Callable[[WorkerLoad], int] | None = None,
        code_bytes: int = 0,
    ) -> tuple[WorkerLoad, int] | None:
        """Pick once, check what all strategies promise, and lease."""
        ask = room or self.room
        request = PlacementRequest(task_class, count, ask, code_bytes)
        picked = self.balancer.pick(request)
        if picked is None:
            assert not any(ask(worker) > 0 for worker in self.workers)
            return None
        worker, number = picked
        assert worker in self.workers
        assert 1 <= number <= min(count, ask(worker))
        self.load(worker, number, task_class)
        return picked

    def place(self, count: int, task_class: TaskClass = F, code_bytes: int = 0) -> Counter[int]:
        """Place a count as the scheduler does; return what each worker got, by order."""
        got: Counter[int] = Counter()
        left = count
        while left > 0:
            picked = self.pick(left, task_class, code_bytes=code_bytes)
            if picked is None:
                break
            got[picked[0].order] += picked[1]
            left -= picked[1]
        return got

    def single(self) -> int:
        """Place one task; return the worker's order."""
        picked = self.pick(1)
        assert picked is not None
        return picked[0].order


def plenty(worker: WorkerLoad) -> int:
    """Give everybody a lot of room."""
    return MANY


limits = st.lists(st.integers(0, 12), min_size=0, max_size=8)
roomy = st.integers(1, 9).map(lambda number: [MANY] * number)
counts = st.lists(st.one_of(st.just(1), st.integers(1, 60)), min_size=1, max_size=25)
steps = st.lists(
    st.tuples(
        st.sampled_from(["place", "place", "finish", "join", "leave", "grow"]),
        st.integers(0, 40),
        st.booleans(),
    ),
    max_size=40,
)


# -- what all promise ---------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(limits=limits, steps=steps, seed=st.integers(0, 5))
def test_no_strategy_picks_beyond_room_or_gives_up_early(name, limits, steps, seed):
    """Whatever happens in between, picks stay in bounds, and None means that nobody has room."""
    cluster = Cluster(name, limits, seed=seed)
    for action, number, is_code in steps:
        task_class = CODE if is_code else F
        if action == "place":
            had = sum(cluster.room(worker) for worker in cluster.workers)
            placed = cluster.place(number, task_class, code_bytes=number << 19)
            assert placed.total() == min(number, had)
        elif action == "join":
            cluster.join(number % 9, cores=1 + number % 4)
        elif cluster.workers:
            worker = cluster.workers[number % len(cluster.workers)]
            if action == "leave":
                cluster.leave(worker)
            elif action == "grow":
                cluster.limits[worker.order] += number % 4
                cluster.balancer.changed(worker)
            else:
                done = min(number % 5, worker.by_class.get(task_class, 0))
                if done:
                    cluster.load(worker, -done, task_class)
    assert len(cluster.balancer) == len(cluster.workers)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(limits=limits, count=st.integers(1, 80), stop=st.integers(0, 4))
def test_a_new_room_function_asks_everybody_anew(name, limits, count, stop):
    """What one request found full is open to the next, also when a plan was left half dealt."""
    cluster = Cluster(name, limits)
    left = count
    for _ in range(stop):
        picked = cluster.pick(left) if left else None
        left -= picked[1] if picked else 0
    while cluster.pick(count) is not None:
        pass
    lowest = {worker.order: 1 for worker in cluster.workers}
    placed = 0
    while cluster.pick(1, room=lambda worker: lowest[worker.order]) is not None:
        placed += 1
        if placed == 20:
            break
    assert placed == (20 if limits else 0)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_cluster_has_nobody_to_pick(name):
    """Without workers every pick answers None, and the balancer is empty."""
    cluster = Cluster(name, [])
    assert cluster.pick(1) is None
    assert cluster.pick(1000) is None
    assert len(cluster.balancer) == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_worker_that_left_is_not_picked_and_may_report_late(name):
    """After remove, neither changed nor a second remove brings a worker back."""
    cluster = Cluster(name, [MANY, MANY, MANY])
    gone = cluster.workers[1]
    cluster.pick(50)
    cluster.leave(gone)
    cluster.balancer.changed(gone)
    cluster.balancer.remove(gone)
    assert gone.order not in cluster.place(300)
    assert len(cluster.balancer) == 2


@pytest.mark.parametrize("name", NAMES)
def test_a_join_order_in_use_is_our_bug(name):
    """Adding a worker twice, or one without weight, raises InvariantError."""
    cluster = Cluster(name, [1])
    with pytest.raises(InvariantError, match="join order 0"):
        cluster.balancer.add(cluster.workers[0])
    with pytest.raises(InvariantError, match="weight"):
        cluster.balancer.add(a_worker().joining(7).weighing(0).build())


@pytest.mark.parametrize("name", NAMES)
def test_a_full_worker_is_asked_again_only_after_it_changed(name):
    """In a full cluster, 1,000 further picks of the same request ask nobody."""
    cluster = Cluster(name, [1] * 50)
    cluster.place(50)
    asked = []

    def room(worker: WorkerLoad) -> int:
        asked.append(worker)
        return cluster.room(worker)

    assert cluster.balancer.pick(PlacementRequest(F, 1, room)) is None
    first = len(asked)
    for _ in range(1000):
        assert cluster.balancer.pick(PlacementRequest(F, 1, room)) is None
    assert len(asked) == first <= 2 * 50
    cluster.load(cluster.workers[30], -1)
    assert cluster.balancer.pick(PlacementRequest(F, 1, room)) == (cluster.workers[30], 1)
    assert len(asked) <= first + 2


@pytest.mark.parametrize("name", NAMES)
def test_more_requests_than_are_remembered_still_find_room(name):
    """With many room functions in turn the oldest memory is dropped, and picks stay right."""
    cluster = Cluster(name, [0, 0, 0, MANY])
    rooms = [lambda worker, _=n: cluster.room(worker) for n in range(3 * MAX_VIEWS)]
    for room in rooms * 2:
        picked = cluster.pick(1, room=room)
        assert picked is not None
        assert picked[0].order == 3


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("Random", "BinPack")])
def test_a_large_count_takes_few_picks(name):
    """100,000 tasks on 100 idle workers need far fewer picks than tasks."""
    cluster = Cluster(name, [MANY] * 100)
    left, picks = 100_000, 0
    while left:
        picked = cluster.pick(left)
        assert picked is not None
        left -= picked[1]
        picks += 1
    assert picks <= (4_000 if name == "PowerOfTwoChoices" else 200)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(limits=limits, counts=counts, seed=st.integers(0, 3))
def test_the_same_calls_give_the_same_picks(name, limits, counts, seed):
    """Two balancers of one name and seed agree on every pick."""
    one, two = Cluster(name, limits, seed=seed), Cluster(name, limits, seed=seed)
    for count in counts:
        first, second = one.pick(count), two.pick(count)
        assert (first and (first[0].order, first[1])) == (second and (second[0].order, second[1]))


PROGRAM = """
from helpers.builders import a_class, a_worker, lease
from rustray.scheduler.load_balancer import *
out = []
for name in STRATEGIES:
    balancer = LoadBalancer(name, seed=3)
    for n in range(9):
        balancer.add(a_worker(f"w{n}").joining(n).with_cores(1 + n % 4).build())
    room = lambda worker: 40 - worker.tasks
    for n in range(300):
        kind = a_class(f"f{n % 3}").as_code(bytes([n % 3]) * 32).build()
        picked = balancer.pick(PlacementRequest(kind, 1 + n % 7, room, n << 16))
        if picked:
            out.append((picked[0].order, picked[1]))
            lease(*picked[:1], kind, picked[1])
            balancer.changed(picked[0])
print(out)
"""


def test_picks_do_not_depend_on_the_hash_seed():
    """Fresh interpreters with different PYTHONHASHSEED make the same picks."""
    answers = set()
    for seed in ("0", "1", "4711"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        answers.add(done.stdout)
    assert len(answers) == 1
    assert len(answers.pop()) > 1000


# -- names --------------------------------------------------------------------------------


def test_the_eight_strategies_go_by_their_names():
    """The names of the configuration are exactly these, and LeastLoaded is the default."""
    assert set(NAMES) == {
        "LeastLoaded",
        "RoundRobin",
        "Random",
        "WeightedRoundRobin",
        "PowerOfTwoChoices",
        "BinPack",
        "Spread",
        "LocalityAware",
    }
    assert LoadBalancer().strategy.name == NAMES[0] == "LeastLoaded"


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("least_loaded", "LeastLoaded"), ("RoundRobbin", "RoundRobin"), ("bin-pack", "BinPack")],
)
def test_an_unknown_name_is_answered_with_the_near_one_and_the_list(wrong, near):
    """A misspelt strategy is a ValueError that says what was meant and what there is."""
    with pytest.raises(ValueError, match=f"did you mean '{near}'") as error:
        LoadBalancer(wrong)
    assert all(name in str(error.value) for name in NAMES)


def test_a_name_that_is_near_nothing_gets_no_guess():
    """A name like no other is answered with the list alone."""
    with pytest.raises(ValueError, match="unknown strategy 'zzz': There are Least"):
        LoadBalancer("zzz")


# -- LeastLoaded --------------------------------------------------------------------------


@given(limits=limits, cores=st.lists(st.integers(1, 8), min_size=8, max_size=8), data=st.data())
def test_least_loaded_never_picks_a_busier_feasible_worker(limits, cores, data):
    """Each single task goes to the least loaded worker with room; the first joined on ties."""
    cluster = Cluster("LeastLoaded", limits, cores)
    for _ in range(60):
        expected = min(cluster.with_room(), key=lambda w: (w.load, w.tasks, w.order), default=None)
        picked = cluster.pick(1)
        assert (picked and picked[0]) is expected
        busy = [worker for worker in cluster.workers if worker.tasks]
        if busy and data.draw(st.booleans()):
            cluster.load(data.draw(st.sampled_from(busy)), -1)


@given(
    limits=st.lists(st.integers(0, 300), min_size=1, max_size=8),
    cores=st.lists(st.integers(1, 16), min_size=8, max_size=8),
    before=st.lists(st.integers(0, 40), min_size=8, max_size=8),
    count=st.integers(1, 500),
)
def test_least_loaded_leaves_a_bulk_level(limits, cores, before, count):
    """Who took part of a bulk is above nobody with room by more than one task of either."""
    cluster = Cluster("LeastLoaded", limits, cores)
    for worker, tasks in zip(cluster.workers, before, strict=False):
        cluster.load(worker, min(tasks, cluster.room(worker)))
    got = cluster.place(count)
    for worker in cluster.workers:
        for other in cluster.with_room() if got[worker.order] else ():
            step = 1 / min(capacity(worker, F), capacity(other, F))
            assert worker.load <= other.load + step + 1e-6


def test_least_loaded_deals_a_bulk_to_each_worker_once():
    """An even bulk on idle workers of one size is one pick a worker."""
    cluster = Cluster("LeastLoaded", [MANY] * 10)
    left, shares = 1000, []
    while left:
        picked = cluster.pick(left)
        assert picked is not None
        shares.append(picked[1])
        left -= picked[1]
    assert shares == [100] * 10


def test_least_loaded_respects_the_scarcest_resource():
    """Where memory binds, a worker with more memory takes more of a bulk."""
    hungry = a_class("f").needs(cpu=1, memory_mb=1000).build()
    balancer = LoadBalancer("LeastLoaded")
    small = a_worker("small").joining(0).with_cores(8).with_memory_mb(2000).build()
    large = a_worker("large").joining(1).with_cores(8).with_memory_mb(8000).build()
    balancer.add(small)
    balancer.add(large)
    left = 10
    while left:
        picked = balancer.pick(PlacementRequest(hungry, left, plenty))
        assert picked is not None
        lease(picked[0], hungry, picked[1])
        balancer.changed(picked[0])
        left -= picked[1]
    assert (small.tasks, large.tasks) == (2, 8)


def test_least_loaded_shares_tasks_that_demand_nothing_by_their_number():
    """Tasks without demand do not raise a load, and still do not pile up on one worker."""
    free = a_class("f").needing_nothing().build()
    cluster = Cluster("LeastLoaded", [MANY] * 4)
    assert cluster.place(40, free) == {0: 10, 1: 10, 2: 10, 3: 10}
    assert {cluster.single() for _ in range(4)} == {0, 1, 2, 3}


def test_least_loaded_replans_when_loads_change_under_a_bulk():
    """A worker that becomes busy while a bulk is being dealt does not get its old share."""
    cluster = Cluster("LeastLoaded", [MANY] * 4)
    picked = cluster.pick(400)
    assert picked is not None
    assert picked[1] == 100
    cluster.load(cluster.workers[3], 500)
    assert cluster.place(300)[3] == 0


# -- RoundRobin ---------------------------------------------------------------------------


@given(limits=roomy, counts=counts)
def test_round_robin_is_fair_to_one_task(limits, counts):
    """After any requests of any counts, nobody has two tasks more than another."""
    cluster = Cluster("RoundRobin", limits)
    for count in counts:
        assert cluster.place(count).total() == count
        tasks = [worker.tasks for worker in cluster.workers]
        assert max(tasks) - min(tasks) <= 1


@given(limits=limits, counts=counts)
def test_round_robin_deals_a_bulk_as_if_one_by_one(limits, counts):
    """A bulk ends with the same shares, and the same next turn, as single tasks in turn."""
    bulk, single = Cluster("RoundRobin", limits), Cluster("RoundRobin", limits)
    for count in counts:
        got = bulk.place(count)
        expected: Counter[int] = Counter()
        for _ in range(count):
            picked = single.pick(1)
            if picked:
                expected[picked[0].order] += 1
        assert got == expected


def test_round_robin_goes_on_where_it_stopped():
    """Single tasks visit the workers in join order, around and around."""
    cluster = Cluster("RoundRobin", [MANY] * 3)
    assert [cluster.single() for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_round_robin_passes_over_who_is_full():
    """A full worker loses its turn, and has it again as soon as it has room."""
    cluster = Cluster("RoundRobin", [MANY, 1, MANY])
    assert [cluster.single() for _ in range(5)] == [0, 1, 2, 0, 2]
    cluster.load(cluster.workers[1], -1)
    assert [cluster.single() for _ in range(3)] == [0, 1, 2]


# -- WeightedRoundRobin -------------------------------------------------------------------

weights = st.lists(st.one_of(st.integers(1, 9), st.integers(1, 200)), min_size=1, max_size=8)


@given(weights=weights, number=st.integers(1, 400))
def test_weighted_round_robin_is_proportional_at_every_moment(weights, number):
    """After any number of single tasks each has its weight's share of them, to one task."""
    cluster = Cluster("WeightedRoundRobin", [MANY] * len(weights), weights)
    for dealt in range(1, number + 1):
        cluster.single()
        assert_proportional(cluster, weights, dealt, 1.0)


@given(weights=weights, counts=counts)
def test_weighted_round_robin_is_proportional_in_bulk(weights, counts):
    """After requests of any counts each has its weight's share of all tasks, to one task."""
    cluster = Cluster("WeightedRoundRobin", [MANY] * len(weights), weights)
    dealt = 0
    for count in counts:
        cluster.place(count)
        dealt += count
        assert_proportional(cluster, weights, dealt, 1.0)


def assert_proportional(
    cluster: Cluster, weights: Sequence[float], dealt: int, within: float
) -> None:
    """Check everybody's tasks against the exact share."""
    for worker, weight in zip(cluster.workers, weights, strict=True):
        assert abs(worker.tasks - dealt * weight / sum(weights)) <= within + 1e-6


def test_weighted_round_robin_is_smooth():
    """Weights 5, 1, 1 give no bursts longer than needed: the light ones come in between."""
    cluster = Cluster("WeightedRoundRobin", [MANY] * 3, [5, 1, 1])
    turns = [cluster.single() for _ in range(14)]
    assert Counter(turns) == {0: 10, 1: 2, 2: 2}
    assert max(len(run) for run in "".join(map(str, turns)).replace("2", "1").split("1")) <= 5


def test_weighted_round_robin_pays_no_arrears():
    """A worker that was full for long does not get all that it missed at once."""
    cluster = Cluster("WeightedRoundRobin", [0, MANY, MANY])
    cluster.place(3000)
    cluster.limits[0] = MANY
    cluster.balancer.changed(cluster.workers[0])
    turns = Counter(cluster.single() for _ in range(30))
    assert 10 <= turns[0] <= 12


# -- Random and PowerOfTwoChoices ---------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_random_is_even_over_workers_with_room(seed):
    """20,000 draws fall on each of 20 open workers 1,000 times, to five deviations."""
    cluster = Cluster("Random", [MANY, 0] * 20, seed=seed)
    drawn = Counter(cluster.single() for _ in range(20_000))
    assert set(drawn) == set(range(0, 40, 2))
    assert all(abs(number - 1000) < 5 * (1000 * 0.95) ** 0.5 for number in drawn.values())


def test_random_depends_on_its_seed():
    """Another seed gives other picks."""
    one, two = (Cluster("Random", [MANY] * 10, seed=seed) for seed in (1, 2))
    assert [one.single() for _ in range(20)] != [two.single() for _ in range(20)]


def test_lots_are_those_of_splitmix64():
    """The generator gives the published sequence for the seed 1234567."""
    lots = Lots(1234567)
    assert [lots.below(1 << 64) for _ in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("number", [1000, 3000])
def test_two_choices_beat_one(number, seed):
    """With n tasks on n workers the fullest of two choices has fewer than the fullest of one."""
    highest = {}
    for name in ("Random", "PowerOfTwoChoices"):
        cluster = Cluster(name, [MANY] * number, seed=seed)
        for _ in range(number):
            cluster.single()
        highest[name] = max(worker.tasks for worker in cluster.workers)
    assert highest["PowerOfTwoChoices"] < highest["Random"]
    assert highest["PowerOfTwoChoices"] <= log(log(number)) / log(2) + 2


@given(limits=limits, seed=st.integers(0, 50))
def test_two_choices_never_take_the_only_busiest(limits, seed):
    """With two or more workers open, the one that is busier than all others is not picked."""
    cluster = Cluster("PowerOfTwoChoices", limits, seed=seed)
    for _ in range(40):
        ranked = sorted(cluster.with_room(), key=lambda w: (w.load, w.tasks, w.order))
        picked = cluster.pick(1)
        if len(ranked) > 1:
            assert picked is not None
            assert picked[0] is not ranked[-1]


# -- BinPack ------------------------------------------------------------------------------


@given(limits=limits, counts=counts, data=st.data())
def test_bin_pack_opens_no_worker_while_an_open_one_has_room(limits, counts, data):
    """A pick goes to the fullest worker with room; an idle one only when all open ones are full."""
    cluster = Cluster("BinPack", limits)
    for count in counts:
        fullest = max((worker.load for worker in cluster.with_room()), default=0.0)
        before = {worker.order: worker.load for worker in cluster.workers}
        picked = cluster.pick(count)
        if picked is not None:
            assert before[picked[0].order] == fullest
            assert picked[1] == min(count, cluster.room(picked[0]) + picked[1])
        busy = [worker for worker in cluster.workers if worker.tasks]
        if busy and data.draw(st.booleans()):
            cluster.load(data.draw(st.sampled_from(busy)), -1)


def test_bin_pack_fills_in_join_order():
    """An idle cluster is filled worker by worker."""
    cluster = Cluster("BinPack", [4, 4, 4])
    assert [cluster.single() for _ in range(12)] == [0] * 4 + [1] * 4 + [2] * 4


def test_bin_pack_knows_open_workers_by_tasks_that_demand_nothing():
    """A worker that runs tasks without demand counts as open."""
    free = a_class("f").needing_nothing().build()
    cluster = Cluster("BinPack", [MANY] * 3)
    cluster.load(cluster.workers[2], 1, free)
    assert cluster.place(5, free) == {2: 5}


# -- Spread -------------------------------------------------------------------------------


@given(
    limits=limits,
    other=st.lists(st.integers(0, 9), min_size=8, max_size=8),
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=6),
)
def test_spread_keeps_the_most_of_a_class_on_one_worker_minimal(limits, other, counts):
    """No way to place the tasks has a lower maximum per worker of this class."""
    cluster = Cluster("Spread", limits)
    noise = a_class("noise").build()
    for worker, tasks in zip(cluster.workers, other, strict=False):
        cluster.load(worker, min(tasks, cluster.room(worker)), noise)
    rooms = [cluster.room(worker) for worker in cluster.workers]
    placed = 0
    for count in counts:
        placed += cluster.place(count).total()
        most = max((worker.by_class.get(F, 0) for worker in cluster.workers), default=0)
        assert most == min(m for m in range(500) if sum(min(room, m) for room in rooms) >= placed)


def test_spread_breaks_ties_by_fewer_tasks():
    """Among workers with equally many of the class, the one with the fewest tasks is next."""
    cluster = Cluster("Spread", [MANY] * 3)
    cluster.load(cluster.workers[0], 2, CODE)
    cluster.load(cluster.workers[2], 1, CODE)
    assert [cluster.single() for _ in range(4)] == [1, 2, 0, 1]


# -- LocalityAware ------------------------------------------------------------------------


@given(
    held=st.sets(st.integers(0, 7), min_size=1),
    tasks=st.lists(st.integers(0, 7), min_size=8, max_size=8),
    code_bytes=st.sampled_from([0, 1000, 1 << 20, 1 << 24, 1 << 30]),
)
def test_locality_prefers_holders_that_are_not_half_full(held, tasks, code_bytes):
    """While a holder is at most half full, a holder gets the task: the least loaded of them."""
    cluster = Cluster("LocalityAware", [MANY] * 8, [16] * 8)
    for worker, number in zip(cluster.workers, tasks, strict=True):
        cluster.load(worker, number)
        if worker.order in held:
            worker.code.add(CODE.code_hash)
            cluster.balancer.changed(worker)
    expected = min(
        (worker for worker in cluster.workers if worker.order in held),
        key=lambda worker: (worker.load, worker.tasks, worker.order),
    )
    picked = cluster.pick(1, CODE, code_bytes=code_bytes)
    assert picked is not None
    assert picked[0] is expected


def test_locality_does_not_pile_up_on_a_full_holder():
    """A full holder loses to an idle worker, unless the code is 16 MiB or more."""
    for code_bytes, expected in ((0, 1), (1 << 20, 1), (1 << 24, 0)):
        cluster = Cluster("LocalityAware", [MANY] * 2)
        cluster.workers[0].code.add(CODE.code_hash)
        cluster.load(cluster.workers[0], 4)
        picked = cluster.pick(1, CODE, code_bytes=code_bytes)
        assert picked is not None
        assert picked[0].order == expected


@given(code_bytes=st.integers(0, 1 << 26), count=st.integers(1, 400))
def test_locality_never_loads_a_holder_much_above_the_others(code_bytes, count):
    """However large the code, a holder ends at most 1.0 of load and a task above anybody."""
    cluster = Cluster("LocalityAware", [MANY] * 5)
    cluster.workers[2].code.add(CODE.code_hash)
    cluster.balancer.changed(cluster.workers[2])
    cluster.place(count, CODE, code_bytes=code_bytes)
    loads = [worker.load for worker in cluster.workers]
    assert max(loads) - min(loads) <= 1.0 + 1 / 4


@given(limits=limits, counts=counts)
def test_locality_is_least_loaded_for_registered_functions(limits, counts):
    """Functions that no code has to be moved for go to the least loaded worker."""
    one, two = Cluster("LocalityAware", limits), Cluster("LeastLoaded", limits)
    for count in counts:
        assert one.place(count) == two.place(count)


# -- shares -------------------------------------------------------------------------------


@given(rooms=st.lists(st.integers(0, 20), max_size=8), count=st.integers(0, 200))
def test_even_shares_deal_one_by_one(rooms, count):
    """The shares are those of dealing one task after the other, round after round."""
    expected = [0] * len(rooms)
    left = count
    while left and expected != rooms:
        for number, room in enumerate(rooms):
            if left and expected[number] < room:
                expected[number] += 1
                left -= 1
    assert even_shares(rooms, count) == expected


@given(
    cups=st.lists(
        st.tuples(st.floats(0, 5), st.floats(1, 64), st.integers(0, 100)), min_size=1, max_size=8
    ),
    count=st.integers(1, 300),
)
def test_level_shares_stay_below_one_surface(cups, count):
    """No share passes its room, their sum not the count, and less than one each remains."""
    levels, slopes, rooms = zip(*cups, strict=True)
    shares = level_shares(levels, slopes, rooms, count)
    assert all(0 <= share <= room for share, room in zip(shares, rooms, strict=True))
    assert sum(shares) <= count
    if sum(rooms) >= count:
        assert count - sum(shares) <= len(cups)
    else:
        assert shares == list(rooms)
