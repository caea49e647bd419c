"""A long run in rounds: faults and load, then quiet, the checker, and a look at what has grown.

Between two rounds nothing is open, so memory, descriptors, threads and files have to be what they
were. Each round's history is judged by itself, so that a million tasks take no more room here than
those of one round.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Final

import psutil

from chaos import finals
from chaos.checker import Verdict, check
from chaos.faults import Kind
from chaos.history import HEAD, Reader, Record
from chaos.nemesis import Nemesis
from chaos.run import (
    RULES,
    Interrupt,
    Outcome,
    Plan,
    Timeline,
    ask_for,
    end_all,
    make_world,
    settle,
    start_all,
)
from chaos.runs import Rules
from chaos.world import World

RESULT_TTL_S: Final = 600
"""Longer than a round takes on a busy machine: its results are asked for at its end. Until the
first of them expire, what is kept grows, and with it memory and files: that is not judged."""
_FILLS: Final = frozenset({"rss_mb", "files_mb"})
_ROUND_S: Final = 150.0
_ASKED: Final = 0.1
"""Part of the results that are asked for at the end of a round; of the rest, only the state is."""
_HEAD_LIVES_ROUNDS: Final = 8
"""The head is killed in one round of so many only: what dies young cannot show its leaks."""
_ENDS_THE_HEAD: Final = frozenset(
    {
        "kill_head",
        "kill_head_in_recovery",
        "kill_worker_and_head",
        "stop_head",
        "fail_sync",
        "fail_writes",
        "limit_files",
        "limit_descriptors",
    }
)
_LEAST_SAMPLES: Final = 4


@dataclass(frozen=True, slots=True)
class Bound:
    """How much a series may grow from the second quarter of its life to the last.

    Attributes:
        factor: Times what it was.
        more: And so much beside that.
    """

    factor: float
    more: float


BOUNDS: Final = {
    "rss_mb": Bound(1.15, 8.0),
    "descriptors": Bound(1.0, 8.0),
    "threads": Bound(1.0, 4.0),
    "files_mb": Bound(1.25, 16.0),
}


@dataclass(slots=True)
class Series:
    """What was measured of one process, or of the state directory, round by round.

    Attributes:
        name: Of what.
        unit: Of what was measured.
        values: One each round.
        kept: How many tasks the head had at the same times; empty where that does not matter.
    """

    name: str
    unit: str
    values: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)

    @property
    def is_long_enough(self) -> bool:
        """Whether there is something to compare."""
        return len(self.values) >= _LEAST_SAMPLES

    def ends(self) -> tuple[float, float]:
        """Return the medians of the second and of the last quarter of its life."""
        return _ends_of(self.values)

    @property
    def is_flat(self) -> bool:
        """Whether it has stayed within its bound, or has grown no more than what is kept has."""
        begin, end = self.ends()
        if self.kept:
            before, after = _ends_of(self.kept)
            begin *= max(after / max(before, 1.0), 1.0)
        bound = BOUNDS[self.unit]
        return end <= begin * bound.factor + bound.more


def _ends_of(values: Sequence[float]) -> tuple[float, float]:
    quarter = max(len(values) // 4, 1)
    return median(values[quarter : 2 * quarter]), median(values[-quarter:])


@dataclass(slots=True)
class Soak:
    """What came of a soak, beside the outcome of its last round.

    Attributes:
        tasks: That were handed in.
        rounds: Number of rounds.
        figures: The checker's, added up.
        series: By (name, unit).
        began_s: When it began, by the monotonic clock.
    """

    tasks: int = 0
    rounds: int = 0
    figures: Counter[str] = field(default_factory=Counter)
    series: dict[tuple[str, str], Series] = field(default_factory=dict)
    began_s: float = field(default_factory=time.monotonic)

    @property
    def heads_before(self) -> int:
        """Heads that have died in the rounds up to now."""
        return sum(count for name, count in self.figures.items() if name.startswith("head "))

    def add(self, name: str, unit: str, value: float, kept: int | None = None) -> None:
        """Add a sample, unless what is kept is still growing as it should.

        Args:
            name: Of what.
            unit: Of what was measured.
            value: What it was.
            kept: How many tasks the head had, where that matters.
        """
        if unit in _FILLS and time.monotonic() < self.began_s + RESULT_TTL_S:
            return
        series = self.series.setdefault((name, unit), Series(name, unit))
        series.values.append(value)
        if kept is not None:
            series.kept.append(float(kept))

    def growing(self) -> list[Series]:
        """Return the series that are not flat."""
        return [one for one in self.series.values() if one.is_long_enough and not one.is_flat]


def sample(soak: Soak, world: World) -> None:
    """Measure the head and the workers, and the files of the head."""
    kept = sum(world.cluster.json("status")["tasks"].values())
    for member in [world.head, *world.of_kind("worker")]:
        if member.node is None or member.is_passing:
            continue
        name = (
            f"{member.slot}, start {len(world.head_starts_s)}"
            if member.slot == HEAD
            else member.label
        )
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(member.node.pid)
            keeper = kept if member.slot == HEAD else None
            soak.add(name, "rss_mb", process.memory_info().rss / 1e6, keeper)
            soak.add(name, "descriptors", process.num_fds())
            soak.add(name, "threads", process.num_threads())
    total = sum(path.lstat().st_size for path in _files(world.cluster.state_dir))
    soak.add("state directory", "files_mb", total / 1e6, kept)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def run_soak(plan: Plan, tasks: int, per_round: int) -> tuple[Outcome, Soak]:
    """Run rounds until so many tasks were handed in, a promise is broken, or Ctrl-C.

    Args:
        plan: Seed, members and mix; its time does not matter.
        tasks: Tasks of all rounds together.
        per_round: Tasks of one round.
    """
    timeline, interrupt, soak = Timeline(), Interrupt(), Soak()
    settings = {"SCHEDULER__RESULT_TTL_S": str(RESULT_TTL_S)}
    world = make_world(plan, timeline, settings, batch=1000, watched=0.02, pace=0.02)
    outcome = Outcome(Verdict(), world.directory)
    with interrupt.caught():
        try:
            start_all(world, plan)
            reader = Reader(world.history_dir)
            while soak.tasks < tasks and not interrupt.is_set and not outcome.verdict.violations:
                number = soak.rounds
                mix = _mix_of(plan.mix, number)
                nemesis = Nemesis(
                    world, plan.seed * 10_000 + number, mix, interrupt.pause, timeline.say
                )
                _round(world, nemesis, reader, soak, outcome, per_round)
            if not interrupt.is_set and not outcome.verdict.violations:
                end_all(world)
                world.expect_nobody()
                world.scan_logs()
                outcome.verdict = check(reader.new(), _rules_of(soak))
        finally:
            world.close()
    outcome.was_interrupted, outcome.seconds = interrupt.is_set, timeline.seconds
    if not outcome.verdict.violations and not world.has_problem:
        world.remove()
    return outcome, soak


def _mix_of(mix: Sequence[Kind], number: int) -> list[Kind]:
    if number % _HEAD_LIVES_ROUNDS == _HEAD_LIVES_ROUNDS - 1:
        return list(mix)
    return [kind for kind in mix if kind.name not in _ENDS_THE_HEAD] or list(mix)


def _round(
    world: World,
    nemesis: Nemesis,
    reader: Reader,
    soak: Soak,
    outcome: Outcome,
    per_round: int,
) -> None:
    records: list[Record] = []
    end_at = time.monotonic() + _ROUND_S

    def is_enough() -> bool:
        records.extend(reader.new())
        return time.monotonic() >= end_at or _handed_in(records) >= per_round

    nemesis.run(is_enough)
    settle(world, nemesis)
    records.extend(reader.new())
    ask_for(world, finals.handed_in(records), _ASKED)
    records.extend(reader.new())
    records.sort(key=lambda record: float(record["t"]))
    outcome.verdict = check(records, _rules_of(soak))
    soak.figures.update(outcome.verdict.figures)
    soak.tasks += outcome.verdict.figures["tasks acked"]
    soak.rounds += 1
    outcome.faults.update(nemesis.counts)
    outcome.skipped.update(nemesis.skipped)
    if outcome.verdict.violations:
        return  # what the dead have written stays, to be looked at
    sample(soak, world)
    world.forget_the_dead()
    world.say(f"round {soak.rounds} is good: {soak.tasks} tasks so far")
    world.round = soak.rounds
    for client in world.of_kind("client"):
        client.busy = False


def _rules_of(soak: Soak) -> Rules:
    return replace(RULES, heads_before=soak.heads_before, is_later_round=soak.rounds > 0)


def _handed_in(records: Sequence[Record]) -> int:
    return sum(len(record["ids"]) for record in records if record["k"] == "submit")


def verdict_of(outcome: Outcome, soak: Soak) -> str:
    """Say whether the soak was good."""
    growing = [f"{one.name} {one.unit}" for one in soak.growing()]
    if outcome.verdict.violations:
        return f"FAILED: {len(outcome.verdict.violations)} violations"
    if growing:
        return f"FAILED, for it grows: {', '.join(growing)}"
    return "good: no violation, and everything flat"


def report(plan: Plan, outcome: Outcome, soak: Soak) -> str:
    """Write the soak up, in Markdown."""
    long_ones = [one for one in soak.series.values() if one.is_long_enough]
    rows = []
    for one in sorted(long_ones, key=lambda one: (one.name, one.unit)):
        begin, end = one.ends()
        flat = "yes" if one.is_flat else "**no**"
        samples = ", ".join(f"{value:.0f}" for value in one.values)
        kept = ", ".join(f"{value / 1e3:.0f}" for value in one.kept)
        values = f"{samples} | {kept} | {begin:.1f} | {end:.1f}"
        rows.append(f"| {one.name} | {one.unit} | {values} | {flat} |")
    faults = ", ".join(f"{name} {count}" for name, count in sorted(outcome.faults.items()))
    figures = "\n".join(
        f"| {name} | {count} |"
        for name, count in sorted(soak.figures.items())
        if not name.startswith("records ") and "pause" not in name
    )
    skipped = "".join(f"Skipped: {name} ({why}).\n" for name, why in outcome.skipped.items())
    return f"""# Soak

{verdict_of(outcome, soak).capitalize()}. Seed {plan.seed}, {soak.tasks} tasks in {soak.rounds} \
rounds, {outcome.seconds:.0f} s; again: `{plan.replay}`.

{sum(outcome.faults.values())} faults: {faults}.
{skipped}
## What has to stay flat

Measured between the rounds, when nothing is open: all samples, and the medians of the second
quarter and of the last. Only of what was measured {_LEAST_SAMPLES} times or more. Results are \
kept for {RESULT_TTL_S} s: memory and files are measured from then on, for they have to grow before.
What keeps tasks may grow as the number of tasks does that the head has.

| of | what | samples | tasks kept, thousands | early | late | flat |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

## What the checker counted

| | |
|---|---|
{figures}
"""


def plan_of(plan: Plan) -> Plan:
    """Return the plan as a soak needs it: more tasks open, and a disk that has room for all."""
    return replace(plan, in_flight=150, may_fill_disk=False)
