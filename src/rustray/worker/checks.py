"""The rules that hold between the core's structures after every event."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Final

from rustray.common.errors import InvariantError
from rustray.common.resources import GPU, UNIT, ResourceSet
from rustray.task.spec import ExecutorKind
from rustray.worker.blocking import may_start
from rustray.worker.choice import choose, squatters
from rustray.worker.kept_packages import needed_packages
from rustray.worker.records import PLAIN_HOME, Executor, Phase
from rustray.worker.spool import Phase as SheafPhase
from rustray.worker.spool import weight_of
from rustray.worker.state import WorkerState


def check(state: WorkerState) -> None:
    """Verify all rules.

    Raises:
        InvariantError: names the first rule that is broken.
    """
    for rule in RULES:
        found = rule(state)
        if found:
            raise InvariantError(f"{rule.__name__}: {found}")


def each_task_is_in_one_place(state: WorkerState) -> str:
    """An open task is queued once or with one executor; a settled one is nowhere."""
    places: dict[int, list[tuple[int, int]]] = {}
    for lane in state.backlog.lanes.values():
        for segment in lane.segments:
            places.setdefault(segment.lease.number, []).append((segment.low, segment.high))
    for executor in state.executors.values():
        for segment in executor.pieces():
            places.setdefault(segment.lease.number, []).append((segment.low, segment.high))
    waiting = [one for leases in state.followers.values() for one in leases if not one.is_along]
    for lease in waiting:
        places.setdefault(lease.number, []).append((0, 1))
    for number, ranges in places.items():
        ranges.sort()
        if any(low >= high for low, high in ranges):
            return f"lease {number} has an empty range"
        if any(a[1] > b[0] for a, b in pairwise(ranges)):
            return f"lease {number} has tasks in two places: {ranges}"
    counts = {number: sum(b - a for a, b in ranges) for number, ranges in places.items()}
    open_counts = {number: lease.open for number, lease in state.leases.items()}
    return "" if counts == open_counts else f"placed {counts}, open {open_counts}"


def those_that_follow_wait_for_open_tasks(state: WorkerState) -> str:
    """What a task follows is here still, or nobody would ever begin it."""
    if state.loose:
        return f"{len(state.loose)} tasks were to go on, and do not"
    for (number, offset), leases in state.followers.items():
        if number not in state.leases:
            return f"{len(leases)} tasks wait for {number}, {offset}, which is not here"
        if any(one.follows != (number, offset) or one.open != 1 for one in leases):
            return f"what waits for {number}, {offset} does not follow it"
    return ""


def resources_add_up(state: WorkerState) -> str:
    """What is used is what the tasks in executors need, and no more than there is."""
    used: Counter[str] = Counter()
    for executor in state.executors.values():
        for demand in _demands(executor):
            used.update(demand.units)
        for cores in executor.blocked.values():
            used.subtract(cores.units)
    for name, total in state.limits.resources:
        if used[name] + state.free[name] != total:
            return f"{name}: {used[name]} used + {state.free[name]} free of {total}"
        if state.free[name] < 0:
            return f"{name} is overcommitted by {-state.free[name]}"
    return ""


def _demands(executor: Executor) -> list[ResourceSet]:
    demands = list(executor.abandoned.values())
    if executor.is_shared:
        demands += [lease.work.task_class.resources for lease, _ in executor.running.values()]
    elif executor.charge is not None:
        demands.append(executor.charge)
    return demands


def gpus_add_up(state: WorkerState) -> str:
    """What is free of each GPU is what no task holds; a fraction is of one, and whole are whole."""
    if state.gpus is None:
        return ""
    left = list(state.gpus.total)
    for executor in state.executors.values():
        share = executor.share
        if share is not None and share.indices != (executor.home or PLAIN_HOME).gpus:
            return f"an executor of {executor.home} holds {share}"
        need = 0 if executor.charge is None else executor.charge.units.get(GPU, 0)
        if not executor.is_shared and need != (share.units if share else 0):
            return f"an executor is charged {need} and holds {share}"
        if not executor.shares.keys() <= executor.running.keys() | executor.abandoned.keys():
            return f"{executor.shares} are held by tasks that are not there"
        for each in (*executor.shares.values(), *([share] if share else [])):
            if len(set(each.indices)) != -(-each.units // UNIT):
                return f"{each} does not have its indices"
            for index, units in each.parts():
                left[index] -= units
    if left != state.gpus.free or min(left) < 0:
        return f"{state.gpus.free} free, should be {left}"
    return "" if sum(left) == state.free[GPU] else f"{left} free, and {state.free[GPU]} in all"


def processes_stay_what_they_are(state: WorkerState) -> str:
    """An executor has tasks of one environment only, whose packages are on disk."""
    for executor in state.executors.values():
        own = None if executor.home is None else executor.home.runtime_env
        for segment in executor.pieces():
            env = segment.lease.work.task_class.runtime_env
            if env != own or executor.setting.runtime_env != env:
                return f"executor {executor.executor_id} of {own} has a task of {env}"
    for lease in state.leases.values():
        if not set(needed_packages(lease.work)) <= state.packages.keys():
            return f"lease {lease.number} needs a package that is not here"
    return ""


def executors_count_right(state: WorkerState) -> str:
    """Counts match contents; a charge is held exactly while there are tasks."""
    for executor in state.executors.values():
        number = sum(s.high - s.low for s in executor.pieces())
        who = f"executor {executor.executor_id}"
        if number != executor.count or (number and executor.phase is Phase.STARTING):
            return f"{who} counts {executor.count}, holds {number} ({executor.phase.name})"
        if executor.is_shared:
            # (One that was given up while it waited goes on beside who has its place.)
            if executor.room < 0 and executor.phase is Phase.READY:
                return f"{who} runs more than {executor.concurrency}"
            if not executor.fresh.keys() | executor.limits.keys() <= executor.running.keys():
                return f"{who} watches tasks that it does not run"
            continue
        if (executor.charge is None) != (executor.count == 0):
            return f"{who} holds {executor.charge} with {executor.count} tasks"
        if executor.is_solo and executor.count > 1:
            return f"{who} has {executor.count} tasks beside a solo one"
        for segment in executor.segments:
            if segment.lease.work.task_class.resources != executor.charge:
                return f"{who} runs a task of another demand than it is charged for"
    return ""


def those_that_wait_are_here(state: WorkerState) -> str:
    """What has given back its cores runs; what wants them again has given them back."""
    for executor in state.executors.values():
        for key in executor.blocked:
            if not executor.holds(*key):
                return f"executor {executor.executor_id} waits in {key}, which it does not have"
    for executor_id, number, offset in state.waking:
        found = state.executors.get(executor_id)
        if found is None or (number, offset) not in found.blocked:
            return f"{number}, {offset} of executor {executor_id} is to go on, and does not wait"
    waiting = sum(bool(e.blocked) and not e.is_shared for e in state.executors.values())
    return "" if waiting == state.blocked_processes else f"{waiting} wait, counted otherwise"


def idle_ones_are_idle(state: WorkerState) -> str:
    """The idle table lists exactly the ready process executors without tasks."""
    should = {
        e.executor_id
        for e in state.executors.values()
        if not e.is_shared and e.phase is Phase.READY and e.count == 0
    }
    return "" if should == set(state.idle) else f"{sorted(state.idle)}, not {sorted(should)}"


def lanes_are_ordered(state: WorkerState) -> str:
    """Lanes are not empty, hold what their key says, in order of arrival."""
    for key, lane in state.backlog.lanes.items():
        orders = [segment.order for segment in lane.segments]
        if not orders or orders != sorted(orders):
            return f"lane {key} is empty or out of order"
        if lane.count != sum(s.high - s.low for s in lane.segments):
            return f"lane {key} counts {lane.count}"
        if any(s.lease.work.lane_key != key for s in lane.segments):
            return f"lane {key} holds a task of another kind"
    return ""


def nobody_idles(state: WorkerState) -> str:
    """No idle executor and enough free resources while the first in line could use them."""
    lanes = [e for e in state.backlog.lanes.values() if e.kind is ExecutorKind.PROCESS]
    if (
        state.has_left
        or not lanes
        or not state.idle
        or state.outbox.is_full
        or state.is_store_paused
    ):
        return ""
    first = min(lanes, key=lambda lane: lane.order())
    others = [e for e in state.backlog.lanes.values() if e.blocked_at is not None]
    if state.waking or not may_start(state, first):
        return ""
    if others or not state.fits(first.demand):
        return ""
    found = choose(state, first)
    if found is not None and not (found[1] and squatters(state, found[0], found[1])):
        return f"{first.count} tasks wait beside {len(state.idle)} idle executors"
    return ""


def watch_is_set(state: WorkerState) -> str:
    """Some deadline is set for each executor that has tasks and was not told of yet."""
    for executor in state.executors.values():
        if executor.phase is Phase.KILLED:
            continue
        if executor.check_at < state.watch_at:
            return f"executor {executor.executor_id} wants a look before the watch"
        times = [stop.next_at for stop in executor.stopping.values()] + [executor.limit_at]
        if executor.count and min(times) < executor.check_at:
            return f"executor {executor.executor_id} would miss a deadline"
    return ""


def outbox_weighs_right(state: WorkerState) -> str:
    """The outbox counts what is in it, and nothing waits in memory that belongs on disk."""
    outbox, waiting = state.outbox, state.outbox.waiting
    spool = waiting.spool
    weights = {
        "front": (waiting.front_weight, sum(map(weight_of, waiting.front))),
        "tail": (spool.tail_weight, sum(map(weight_of, spool.tail))),
        "unacked": (
            outbox.unacked_weight,
            sum(weight_of(o) for frame in outbox.unacked for o in frame.outcomes),
        ),
        "held": (
            spool.held_weight,
            sum(weight_of(o) for sheaf in spool.sheaves for o in sheaf.outcomes or ()),
        ),
        "disk": (
            spool.disk_weight,
            sum(s.weight for s in spool.sheaves if s.phase is not SheafPhase.HELD)
            + sum(spool.dropped.values()),
        ),
        "refused": (spool.refused, sum(s.phase is SheafPhase.HELD for s in spool.sheaves)),
    }
    for name, (counted, real) in weights.items():
        if counted != real:
            return f"{name} counts {counted}, holds {real}"
    if spool.tail and not spool.sheaves:
        return "there is a tail and nothing before it"
    if spool.disk_weight > spool.disk_limit:
        return f"{spool.disk_weight} bytes on disk, {spool.disk_limit} are allowed"
    return ""


RULES: Final[tuple[Callable[[WorkerState], str], ...]] = (
    each_task_is_in_one_place,
    those_that_follow_wait_for_open_tasks,
    resources_add_up,
    gpus_add_up,
    processes_stay_what_they_are,
    executors_count_right,
    those_that_wait_are_here,
    idle_ones_are_idle,
    lanes_are_ordered,
    nobody_idles,
    watch_is_set,
    outbox_weighs_right,
)
