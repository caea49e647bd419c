"""What the checker demands of graphs and of tasks that hand in tasks: I9, I10 and I11.

I9   a task starts after what it takes has ended, and sees exactly those values
I10  a failure goes down, with its cause, and nothing behind it runs
I11  children are handed in once over all attempts, and a cancel takes them along
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from chaos.history import HEAD, Record
from chaos.runs import FOR_EVER, LARGE_BYTES, LOST, SUCCEEDED, Rules, Run, Task, Troubles, shown

KINDS: Final = frozenset({"edges", "part", "cause", "children", "saw"})
_WHOLE: Final = -1
Report = Callable[[str, str, str], None]


class Cause(NamedTuple):
    """What a client was told of a task that has failed."""

    error: str
    origin: str


@dataclass(slots=True)
class GraphCheck:
    """Collects what is told of graphs, and judges it when all records are in.

    Attributes:
        takes: Id to the (producer, index) of what a task takes, in order.
        children: Id to what each attempt has handed in, by (lease, attempt).
        parents: The other way round.
    """

    rules: Rules
    troubles: Troubles
    report: Report
    figures: Counter[str]
    takes: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    children: defaultdict[str, dict[tuple[int, int], list[str]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    parents: dict[str, str] = field(default_factory=dict)
    _parts: defaultdict[tuple[str, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    _causes: defaultdict[str, set[Cause]] = field(default_factory=lambda: defaultdict(set))
    _saw: list[tuple[str, str, str]] = field(default_factory=list)

    def take(self, record: Record) -> None:
        """Take in a record of one of `KINDS`."""
        match record["k"]:
            case "edges":
                for name, taken in record["takes"].items():
                    self.takes[name] = [(producer, index) for producer, index in taken]
            case "part":
                self._parts[record["id"], record["index"]].add(record["hash"])
            case "cause":
                self._causes[record["id"]].add(Cause(record["error"], record["origin"]))
            case "children":
                self.children[record["id"]][record["l"], record["a"]] = record["ids"]
                self.parents.update(dict.fromkeys(record["ids"], record["id"]))
            case "saw":
                self._saw += [(record["id"], child, value) for child, value in record["of"]]

    def check(self, tasks: Mapping[str, Task]) -> None:
        """Judge; tasks that nobody knows are not in ``tasks``."""
        for name, taken in self.takes.items():
            if name in tasks:
                self._check_inputs(name, tasks[name], taken, tasks)
                self._check_failure(name, tasks[name], taken, tasks)
        self._check_told(tasks)
        for name in self.children:
            self._check_doubles(name, tasks)
        for parent, child, value in self._saw:
            self._check_seen(parent, child, value, tasks)
        self._check_cascades(tasks)

    # ---- I9 -----------------------------------------------------------------------------

    def _check_inputs(
        self, name: str, task: Task, taken: list[tuple[str, int]], tasks: Mapping[str, Task]
    ) -> None:
        recorded = task.recorded_run()
        for run in task.in_order():
            if len(run.took) != len(taken):
                self.report("I9", name, f"took {len(run.took)} values, and not {len(taken)}")
                continue
            is_recorded = task.state == SUCCEEDED and run is recorded
            for (producer, index), value in zip(taken, run.took, strict=True):
                self.figures["inputs seen"] += 1
                made = tasks.get(producer, Task())
                self._check_input(name, run, value, (producer, index, made))
                if is_recorded:
                    self._check_recorded(name, value, (producer, index, made))

    def _check_input(self, name: str, run: Run, value: str, what: tuple[str, int, Task]) -> None:
        """A value is of a run that has ended: whatever becomes of either attempt."""
        producer, index, made = what
        if made.put is not None:
            if value != made.put:
                self.report("I9", name, f"{shown(run)} saw {value}, and {producer} was put")
            return
        ends = [one.end for one in made.runs.values() if one.value(index) == value]
        if not ends:
            self.report("I9", name, f"{shown(run)} saw {value}, which {producer} never returned")
        elif min(ends) > run.start:
            self.report("I9", name, f"{shown(run)} began before {producer} had ended")

    def _check_recorded(self, name: str, value: str, what: tuple[str, int, Task]) -> None:
        """What a recorded result was made of is what is recorded of its producer."""
        producer, index, made = what
        if made.state is None or made.put is not None or made.is_let_go:
            return
        if made.state != SUCCEEDED:
            self.report("I9", name, f"has succeeded, and {producer} is {made.state or 'unknown'}")
        elif index == _WHOLE and made.recorded and value != made.recorded:
            self.report("I9", name, f"took {value} from {producer}, which has {made.recorded}")
        elif index != _WHOLE and self._parts[producer, index] - {value}:
            told = sorted(self._parts[producer, index])
            self.report("I9", name, f"took {value} from part {index} of {producer}: {told}")

    # ---- I10 ----------------------------------------------------------------------------

    def _check_failure(
        self, name: str, task: Task, taken: list[tuple[str, int]], tasks: Mapping[str, Task]
    ) -> None:
        """What takes the result of a task that has none ends too, as that one did."""
        bad = {
            tasks[producer].state or ""
            for producer, _ in taken
            if producer in tasks
            and tasks[producer].state not in (SUCCEEDED, None)
            and not tasks[producer].is_let_go
        }
        if not bad or task.state is None:
            return
        if "" in bad:  # a head that never heard of the producer, nor of this one
            if task.state:
                self.report("I10", name, f"is {task.state}, and what it takes is unknown")
            return
        self.figures["ends that a failure has passed down"] += 1
        wanted = {"CANCELLED" if state == "CANCELLED" else "FAILED" for state in bad}
        if task.cancels:
            wanted.add("CANCELLED")
        if task.state and task.state not in wanted:
            self.report("I10", name, f"is {task.state}, and what it takes is {sorted(bad)}")

    def _check_told(self, tasks: Mapping[str, Task]) -> None:
        """Who asks for what has failed is told which task was the first to."""
        for name, causes in self._causes.items():
            task = tasks.get(name, Task())
            for cause in causes:
                self._check_cause(name, task, cause, tasks)

    def _check_cause(self, name: str, task: Task, cause: Cause, tasks: Mapping[str, Task]) -> None:
        if cause.error == LOST:
            known = [name, *self._above(name)]
            if not any(self._had_dead_holder(tasks.get(one, Task())) for one in known):
                self.report("I10", name, "its value is lost, and no worker died that had it")
            return
        bad = [
            one for one, _ in self.takes.get(name, ()) if tasks.get(one, Task()).is_without_value
        ]
        if not bad or task.runs:
            return
        roots = {one for one in self._above(name) if self._is_root(one, tasks)}
        self.figures["causes told"] += 1
        if cause.origin not in roots and not task.cancels:
            text = f"ended with {cause.error} of {cause.origin or 'nobody'}, and not of {roots}"
            self.report("I10", name, text)
            return
        errors = {one.error for one in self._causes.get(cause.origin, ())}
        if errors - {cause.error}:
            self.report("I10", name, f"ended with {cause.error}, and {cause.origin} with {errors}")

    def _is_root(self, name: str, tasks: Mapping[str, Task]) -> bool:
        """Whether a task may be the first that ended without a value: by itself, or cancelled."""
        task = tasks.get(name, Task())
        taken = [tasks.get(one, Task()) for one, _ in self.takes.get(name, ())]
        is_first = not any(one.is_without_value for one in taken)
        return task.is_without_value and (is_first or bool(task.cancels))

    def _had_dead_holder(self, task: Task) -> bool:
        return any(
            run.size >= LARGE_BYTES and self.troubles.is_killed(run.worker)
            for run in task.runs.values()
        )

    def _above(self, name: str) -> Iterator[str]:
        """Yield all that a task takes, and what that takes, and so on."""
        seen, todo = {name}, [name]
        while todo:
            for producer, _ in self.takes.get(todo.pop(), ()):
                if producer not in seen:
                    seen.add(producer)
                    todo.append(producer)
                    yield producer

    def is_cancelled(self, name: str, tasks: Mapping[str, Task]) -> bool:
        """Whether somebody has cancelled a task, what it takes, or what has handed it in."""
        seen, todo = {name}, [name]
        while todo:
            one = todo.pop()
            if tasks.get(one, Task()).cancels:
                return True
            above = {producer for producer, _ in self.takes.get(one, ())}
            above |= {self.parents[one]} if one in self.parents else set()
            todo += above - seen
            seen |= above
        return False

    # ---- I11 ----------------------------------------------------------------------------

    def _check_doubles(self, name: str, tasks: Mapping[str, Task]) -> None:
        """A later attempt gets the children of the first, up to one that ended without a value.

        Once an attempt has gone its own way, what the first has left is cancelled, and attempts
        after it may go ways of their own.
        """
        first, *later = [ids for _, ids in sorted(self.children[name].items())]
        for ids in later:
            self.figures["parents that ran again"] += 1
            for old, new in zip(first, ids, strict=False):
                if old != new:
                    self._check_other(name, old, new, tasks)
                    return
                self.figures["children found again"] += 1

    def _check_other(self, name: str, old: str, new: str, tasks: Mapping[str, Task]) -> None:
        """A child takes the place of one that failed, and of no other."""
        state = tasks.get(old, Task()).state
        above = [old, name]
        while above[-1] in self.parents:
            above.append(self.parents[above[-1]])
        is_asked = any(tasks.get(one, Task()).cancels for one in above)
        if state == SUCCEEDED or (state == "CANCELLED" and not is_asked):
            self.report("I11", name, f"handed in {new} where it had {old} before ({state})")

    def _check_seen(self, parent: str, child: str, value: str, tasks: Mapping[str, Task]) -> None:
        self.figures["values of children seen"] += 1
        task = tasks.get(child, Task())
        if task.state is None or task.is_let_go:
            return
        if task.state != SUCCEEDED:
            self.report(
                "I11", parent, f"got a value of {child}, which is {task.state or 'unknown'}"
            )
        elif task.recorded and task.recorded != value:
            self.report("I11", parent, f"got {value} of {child}, which has {task.recorded}")

    def _check_cascades(self, tasks: Mapping[str, Task]) -> None:
        """What a cancelled task has handed in does not go on to its end."""
        for name, task in tasks.items():
            told = [at for at, state in task.cancels if state in ("CANCELLING", "CANCELLED")]
            if not told:
                continue
            for child in self._below(name):
                for run in tasks.get(child, Task()).runs.values():
                    self._check_stopped(child, run, min(told))

    def _check_stopped(self, child: str, run: Run, told: float) -> None:
        late_s = run.end - told
        if run.end == FOR_EVER or run.is_stopped or late_s <= self.rules.cancel_s:
            self.figures["runs under a cancelled task, stopped or over"] += 1
            return
        since = told - self.rules.lease_ttl_s
        if self.troubles.is_hit(HEAD, since, run.end):
            return
        if not self.troubles.is_hit(run.worker, since, run.end):
            text = f"{shown(run)} went on for {late_s:.2f} s after the cancel of what is above it"
            self.report("I11", child, text)

    def _below(self, name: str) -> Iterator[str]:
        todo, seen = [name], {name}
        while todo:
            for ids in self.children.get(todo.pop(), {}).values():
                for child in ids:
                    if child not in seen:
                        seen.add(child)
                        todo.append(child)
                        yield child
