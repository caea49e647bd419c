"""One run, from the first process to the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Final

from chaos import finals
from chaos.checker import SLOW, Verdict, check
from chaos.faults import MIX, Kind
from chaos.history import Reader
from chaos.namespaces import Namespaces
from chaos.nemesis import Nemesis
from chaos.runs import TERMINAL, Rules
from chaos.world import HEARTBEAT_S, LEASE_TTL_S, World
from helpers.waiting import eventually

RULES: Final = Rules(LEASE_TTL_S, HEARTBEAT_S)
_JOIN_S: Final = 40.0
_SETTLE_S: Final = 90.0
_FINALS_S: Final = 60.0
_TOLD_S: Final = 15.0
_ENDS_BETWEEN_KILLS: Final = (20, 200)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Attributes:
        seed: Of everything that is chosen.
        seconds: How long the nemesis strikes.
        workers: Workers that stay (and are started again when they are lost).
        clients: Clients that hand in tasks all the time.
        in_flight: Tasks that one client keeps open.
        mix: The nemesis' faults.
        folder: Where the run's directory is made; None: the system's.
        replay: The command that repeats it.
        head_kills: End after so many kills of the head, instead of after a time.
        acts: What clients do, by name; "" for all of it.
        may_fill_disk: Whether the head's state may be on a small disk, as it is with odd seeds.
    """

    seed: int
    seconds: float
    workers: int = 3
    clients: int = 3
    in_flight: int = 120
    mix: tuple[Kind, ...] = MIX
    folder: Path | None = None
    replay: str = ""
    head_kills: int = 0
    acts: str = ""
    may_fill_disk: bool = True


@dataclass(slots=True)
class Outcome:
    """What came of it.

    Attributes:
        verdict: The checker's.
        faults: How often each fault struck.
        skipped: Faults that could not be had here, and why.
        seconds: What the whole run took.
        directory: Histories and logs; gone after a run without violations.
    """

    verdict: Verdict
    directory: Path
    faults: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    was_interrupted: bool = False


class Timeline:
    """Prints what happens, with the time since the start."""

    def __init__(self) -> None:
        self._begin = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._begin

    def say(self, text: str) -> None:
        """Print one line."""
        print(f"{self.seconds:8.2f}  {text}", flush=True)


class Interrupt:
    """Ctrl-C and SIGTERM as a flag that can be waited for."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def is_set(self) -> bool:
        """Whether the user wants it to end."""
        return self._event.is_set()

    def pause(self, seconds: float) -> bool:
        """Wait so long; True if it is to end."""
        return self._event.wait(seconds)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch both signals around a block; a second one is the usual KeyboardInterrupt."""

        def once(_number: int, _frame: object) -> None:
            self._event.set()
            signal.signal(signal.SIGINT, signal.default_int_handler)

        before = {n: signal.signal(n, once) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def make_world(
    plan: Plan,
    timeline: Timeline,
    settings: Mapping[str, str] | None = None,
    **load: Any,
) -> World:
    """Make the run's directory, and everything but processes.

    Args:
        plan: What to run.
        timeline: Where it says what happens.
        settings: More of them for the cluster.
        **load: For the clients; see `World`.
    """
    directory = Path(tempfile.mkdtemp(prefix=f"chaos-{plan.seed}-", dir=plan.folder))
    spaces = Namespaces(wants_small_disk=plan.may_fill_disk and plan.seed % 2 == 1)
    world = World(
        directory,
        plan.seed,
        spaces,
        timeline.say,
        plan.in_flight,
        plan.acts,
        settings=settings or {},
        **load,
    )
    os.environ["RUSTRAY_STATE_DIR"] = str(world.cluster.state_dir)
    return world


def start_all(world: World, plan: Plan) -> None:
    """Start head, workers, clients and subscribers, and wait until tasks end."""
    world.start_head()
    for number in range(1, plan.workers + 1):
        world.add(f"worker-{number}")
    for number in range(1, plan.clients + 1):
        world.add(f"client-{number}")
    world.add("subscriber-fast")
    world.add("subscriber-slow")
    reader = Reader(world.history_dir)
    seen: set[str] = set()

    def is_alive() -> bool:
        world.look_after()
        seen.update(record["k"] for record in reader.new())
        return {"result", "events", "value"} <= seen

    eventually(is_alive, _JOIN_S, what="tasks run, and their ends are told")
    world.say("all have joined, and tasks run")


def settle(world: World, nemesis: Nemesis) -> None:
    """Heal everything, and let the clients wait for what they have handed in."""
    nemesis.finish()
    world.say("everything is healed; waiting for the ends of all tasks")
    for member in world.members.values():
        if member.is_passing and member.is_up:
            world.tell_to_end(member)
    eventually(lambda: _is_whole(world), _JOIN_S, what="all processes are back")
    clients = world.of_kind("client")
    for client in clients:
        client.busy = True
        world.tell_to_end(client)
    deadline = time.monotonic() + _SETTLE_S

    def have_ended() -> bool:
        world.look_after()
        return not any(client.is_up for client in clients) or time.monotonic() > deadline

    eventually(have_ended, _SETTLE_S + 30, what="the clients have ended")
    for client in clients:
        world.wait_end(client, 1.0)


def _is_whole(world: World) -> bool:
    world.look_after()
    return all(member.is_up for member in world.members.values() if not member.is_passing)


def end_all(world: World) -> None:
    """Stop subscribers, workers and the head in order; each has to end well."""
    for kind in ("subscriber", "worker", "head"):
        members = [member for member in world.of_kind(kind) if member.node is not None]
        for member in members:
            member.busy = True
            world.tell_to_end(member)
        for member in members:
            world.wait_end(member)


def run(plan: Plan) -> Outcome:
    """Run a plan and judge it."""
    timeline, interrupt = Timeline(), Interrupt()
    world = make_world(plan, timeline)
    outcome = Outcome(Verdict(), world.directory)
    nemesis = Nemesis(world, plan.seed, plan.mix, interrupt.pause, timeline.say)
    outcome.faults, outcome.skipped = nemesis.counts, nemesis.skipped
    with interrupt.caught():
        try:
            start_all(world, plan)
            if plan.head_kills:
                kill_heads(world, nemesis, plan)
            else:
                end_at = time.monotonic() + plan.seconds
                nemesis.run(lambda: time.monotonic() >= end_at)
            if not interrupt.is_set:
                settle(world, nemesis)
                ask_for_ends(world)
                end_all(world)
                world.expect_nobody()
                world.scan_logs()
        finally:
            world.close()
    outcome.was_interrupted = interrupt.is_set
    if not interrupt.is_set:
        rules = replace(RULES, only_pauses=plan.head_kills > 0)
        outcome.verdict = check(Reader(world.history_dir).new(), rules)
    outcome.seconds = timeline.seconds
    if not outcome.verdict.violations and not world.has_problem:
        world.remove()
    return outcome


def kill_heads(world: World, nemesis: Nemesis, plan: Plan) -> None:
    """Kill the head again and again, each time under load: tasks have ended since the last."""
    reader = Reader(world.history_dir)
    for number in range(plan.head_kills):
        random = Random(f"{plan.seed}/{number}")
        wanted = random.randint(*_ENDS_BETWEEN_KILLS)
        deadline = time.monotonic() + _JOIN_S
        reader.new()
        while wanted > 0 and time.monotonic() < deadline:
            wanted -= sum(record["k"] == "finish" for record in reader.new())
            if nemesis.tick():
                return
        if wanted > 0:
            world.problem(f"no work went on within {_JOIN_S:g} s of the head's start")
        nemesis.strike_with(plan.mix[0], random)


def ask_for_ends(world: World) -> None:
    """Ask the head for the end of every task that was handed in."""
    ask_for(world, finals.handed_in(Reader(world.history_dir).new()))


def ask_for(world: World, ids: Collection[str], part: float = 1.0) -> None:
    """Ask the head for the end of these tasks, and for that part of the results."""
    world.say(f"asking for the ends of {len(ids)} tasks")
    where = (world.cluster.host, world.cluster.port)
    asyncio.run(finals.ask(*where, ids, world.history, _FINALS_S, part))
    wait_for_events(world)


def wait_for_events(world: World) -> None:
    """Give the fast subscriber, which may be away from the head, time to be told everything."""
    reader, followed, ended = Reader(world.history_dir), set[str](), set[str]()
    finished = set[str]()

    def is_told() -> bool:
        world.look_after()
        for record in reader.new():
            if record["k"] == "final" and record["state"] in TERMINAL:
                finished.add(record["id"])
            if record["k"] == "events" and SLOW not in record["stream"]:
                followed.update(event[1] for event in record["ev"] if event[2] == "QUEUED")
                ended.update(event[1] for event in record["ev"] if event[2] in TERMINAL)
        return not (followed & finished) - ended

    with contextlib.suppress(AssertionError):  # the checker says what is missing
        eventually(is_told, _TOLD_S)


def draw_seed() -> int:
    """Return a seed for those who name none."""
    return Random().randrange(1, 1_000_000)
