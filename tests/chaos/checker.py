"""Does a history keep the promises? A pure function from records to violations and figures.

The invariants are those of docs/chaos.md:

I1 what was acked exists, and ends           I5 nothing starts after a committed end or cancel
I2 one outcome, the same for everyone        I6 one key, one id
I3 attempts grow, and none is run for nothing I7 two attempts overlap only across a lease's end
I4 the recorded result is the attempt's own  I8 events are gap-free, and a task's end is its last

I9 to I11, of graphs and nested tasks, are in `chaos.checks_graph`.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from chaos import checks_graph
from chaos.history import HEAD, Record
from chaos.reasons import BEFORE_ACK, Reasons
from chaos.runs import (
    CANCELLED,
    FOR_EVER,
    SUCCEEDED,
    TERMINAL,
    Rules,
    Run,
    Task,
    Troubles,
    shown,
)
from rustray.common.ids import child_prefix, split_task_id

SLOW: Final = "slow"
"""In the names of subscribers that may be behind at the end."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken."""

    invariant: str
    task_id: str
    text: str

    def __str__(self) -> str:
        where = f" task {self.task_id}" if self.task_id else ""
        return f"{self.invariant}{where}: {self.text}"


@dataclass(slots=True)
class Verdict:
    """What the checker found."""

    violations: list[Violation] = field(default_factory=list)
    figures: Counter[str] = field(default_factory=Counter)


def check(records: Iterable[Record], rules: Rules) -> Verdict:
    """Check a history.

    Args:
        records: In the order of their times, with the head's final answers (kind ``final``) for
            every id that was submitted.
        rules: The cluster's settings.
    """
    return _Check(rules).of(records)


class _Check:
    """One check; `of` is called once."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._tasks: defaultdict[str, Task] = defaultdict(Task)
        self._troubles = Troubles()
        self._prefixes: set[str] = set()
        self._keys: defaultdict[str, set[str]] = defaultdict(set)
        self._events: dict[int, tuple[str, str, int]] = {}
        self._begun: set[tuple[str, int]] = set()
        self._after_end: dict[int, tuple[str, str]] = {}
        self._last_revision: dict[str, int] = {}
        self._jumps: Counter[str] = Counter()
        self._streams: defaultdict[str, tuple[set[str], set[str]]] = defaultdict(
            lambda: (set(), set())
        )
        self._last_result = 0.0
        self._verdict = Verdict()
        self._reasons = Reasons(rules, self._troubles, self._tasks, self._begun)
        self._graphs = checks_graph.GraphCheck(
            rules, self._troubles, self._report, self._verdict.figures
        )

    def of(self, records: Iterable[Record]) -> Verdict:
        for record in records:
            kind = record["k"]
            self._verdict.figures[f"records {kind}"] += 1
            if kind in checks_graph.KINDS:
                self._graphs.take(record)
            else:
                getattr(self, f"_on_{kind}")(record)
        for task_id, task in self._tasks.items():
            self._check_end(task_id, task)
            self._check_outcome(task_id, task)
            self._check_attempts(task_id, task)
            self._check_overlaps(task_id, task)
            self._check_late_starts(task_id, task)
        self._graphs.check(dict(self._tasks))
        self._check_late_events()
        self._check_streams()
        self._check_strangers()
        self._check_keys()
        self._count()
        return self._verdict

    def _report(self, invariant: str, task_id: str, text: str) -> None:
        self._verdict.violations.append(Violation(invariant, task_id, text))

    # ---- taking in the records --------------------------------------------------------

    def _on_session(self, record: Record) -> None:
        self._prefixes.add(record["prefix"])

    def _on_submit(self, record: Record) -> None:
        if record["key"]:
            self._keys[record["key"]].update(record["ids"])
        for task_id in record["ids"]:
            task = self._tasks[task_id]
            task.retries = record["retries"]
            task.is_exclusive = record.get("exclusive", False)
            task.is_again = record.get("again", False)
            if task.submitted is None:
                task.submitted = record["t"]

    def _on_ack(self, record: Record) -> None:
        for task_id in record["ids"]:
            task = self._tasks[task_id]
            if task.acked is None:
                task.acked = record["t"]
        if record.get("key"):
            self._keys[record["key"]].update(record["ids"])

    def _on_refused(self, record: Record) -> None:
        for task_id in record["ids"]:
            self._tasks[task_id].is_refused = True
        self._verdict.figures[f"refused {record['code']}"] += len(record["ids"])

    def _on_away(self, record: Record) -> None:
        self._verdict.figures[f"calls that gave up: {record['call']}"] += 1
        if self._rules.only_pauses:
            self._report("I0", "", f"{record['call']} gave up, for the head was away")

    def _on_result(self, record: Record) -> None:
        pause_ms = int(1000 * (record["t"] - (self._last_result or record["t"])))
        longest = self._verdict.figures["longest pause between two results, ms"]
        self._verdict.figures["longest pause between two results, ms"] = max(pause_ms, longest)
        self._last_result = record["t"]
        self._tasks[record["id"]].seen.append(
            (record["t"], record["state"], record["hash"], record["attempts"], "a client")
        )

    def _on_value(self, record: Record) -> None:
        self._tasks[record["id"]].values.add(record["hash"])

    def _on_put(self, record: Record) -> None:
        task = self._tasks[record["id"]]
        task.put, task.put_size = record["hash"], record["size"]

    def _on_cancel(self, record: Record) -> None:
        self._tasks[record["id"]].cancels.append((record["t"], record["state"]))

    def _on_start(self, record: Record) -> None:
        task_id = record["id"]
        run = Run(record["t"], record["a"], record["l"], record["pid"], record["w"])
        run.took = record.get("took", ())
        task, key = self._tasks[task_id], (run.lease, run.attempt)
        if key in task.runs:
            self._report("I3", task_id, f"lease {run.lease} was run twice, {shown(run)}")
        task.runs[key] = run

    def _on_finish(self, record: Record) -> None:
        run = self._tasks[record["id"]].runs.get((record["l"], record["a"]))
        if run is None:
            self._report("I3", record["id"], f"attempt {record['a']} ended and never began")
            return
        run.end, run.hash = record["t"], record["hash"]
        run.size, run.parts = record.get("size", 0), record.get("parts", ())
        run.is_stopped = record.get("stopped", False)

    def _on_raised(self, record: Record) -> None:
        run = self._tasks[record["id"]].runs.get((record["l"], record["a"]))
        if run is not None:
            run.end, run.has_raised = record["t"], True

    def _on_crash(self, record: Record) -> None:
        self._troubles.executors[record["w"], record["pid"]] = record["t"]
        run = self._tasks[record["id"]].runs.get((record["l"], record["a"]))
        if run is not None:
            run.end, run.is_crash = record["t"], True

    def _on_down(self, record: Record) -> None:
        self._troubles.deaths[record["w"]].append((record["t"], record.get("clean", False)))
        kind, how = record["w"].partition("-")[0], "in order" if record.get("clean") else "killed"
        if record.get("by_itself"):
            how = "stopped by itself"
        self._verdict.figures[f"{kind} {how}"] += 1

    def _on_window(self, record: Record) -> None:
        window = (record["t"], record["end"], record["tail"])
        if record.get("mild"):
            self._troubles.mild[record["w"]].append(window)
            return
        self._troubles.windows[record["w"]].append(window)
        if record.get("frozen"):
            self._troubles.frozen[record["w"]].append((record["t"], record["end"]))

    def _on_exec_down(self, record: Record) -> None:
        self._troubles.executors[record["w"], record["pid"]] = record["t"]

    def _on_exec_gone(self, record: Record) -> None:
        self._troubles.gone[record["w"], record["pid"]] = record["t"]

    def _on_final(self, record: Record) -> None:
        task = self._tasks[record["id"]]
        task.final = (record["state"], record["hash"] or "", record["attempts"])
        if record["hash"] is None:
            task.listed = record["state"]
        elif record["state"]:
            told = (record["t"], record["state"], record["hash"], record["attempts"], "the end")
            task.seen.append(told)

    def _on_problem(self, record: Record) -> None:
        self._report("I0", "", record["text"])

    def _on_reset(self, record: Record) -> None:
        self._last_revision.pop(record["stream"], None)
        self._streams.pop(record["stream"], None)

    def _on_events(self, record: Record) -> None:
        stream = record["stream"]
        for revision, task_id, state, attempt in record["ev"]:
            last = self._last_revision.get(stream)
            if last is not None and revision != last + 1:
                self._check_jump(stream, last, revision, task_id)
            self._last_revision[stream] = revision
            self._take_event(revision, task_id, state, attempt)
            if state == "QUEUED":
                self._streams[stream][0].add(task_id)
            elif state in TERMINAL:
                self._streams[stream][1].add(task_id)

    def _check_jump(self, stream: str, last: int, revision: int, task_id: str) -> None:
        """Each start of a head begins at higher numbers; nothing else may leave any out."""
        self._jumps[stream] += 1
        heads = self._rules.heads_before + len(self._troubles.deaths[HEAD])
        if revision < last or self._jumps[stream] > heads:
            self._report("I8", task_id, f"event {revision} follows {last} in {stream}")

    def _take_event(self, revision: int, task_id: str, state: str, attempt: int) -> None:
        known = self._events.setdefault(revision, (task_id, state, attempt))
        if known != (task_id, state, attempt):
            self._report("I8", task_id, f"event {revision} is {state} here and {known} there")
        if state == "RUNNING":
            self._begun.add((task_id, attempt))
        ends = self._tasks[task_id].ends
        if state in TERMINAL:
            ends[revision] = state
        elif any(end < revision for end in ends):
            self._after_end[revision] = (task_id, state)

    def _check_late_events(self) -> None:
        """I8: a task's end is its last event, unless its value was made again.

        Only now: that a worker has left is noted a moment after its values are made again.
        """
        for revision, (task_id, state) in self._after_end.items():
            if not self._reasons.is_made_again(task_id, FOR_EVER):
                text = f"event {revision} ({state}) comes after the task's end"
                self._report("I8", task_id, text)

    # ---- the invariants ---------------------------------------------------------------

    def _check_end(self, task_id: str, task: Task) -> None:
        """I1: what was acked exists and has ended, and so has whatever exists."""
        state = task.final[0] if task.final else None
        if task.is_refused and task.acked is None:
            if task.runs or task.seen:
                self._report("I1", task_id, "was refused, and exists")
            return
        if state is None:
            if task.submitted is not None or task.acked is not None:
                self._report("I1", task_id, "nobody asked for its end")
            return
        if task.is_let_go:
            self._verdict.figures["large values let go when they were told"] += 1
            return
        if not state and task.acked is not None:
            self._report("I1", task_id, "was acked, and the head does not know it")
        if not state and task.seen:
            self._report("I1", task_id, f"had ended ({task.seen[0][1]}), and is unknown now")
        if state and state not in TERMINAL:
            self._report("I1", task_id, f"has not ended: {state}")

    def _check_outcome(self, task_id: str, task: Task) -> None:
        """I2 and I4: one outcome, and that of the attempt that it names."""
        told = {
            (state, value, attempts)
            for _, state, value, attempts, _ in task.seen
            if state or not task.is_let_go
        }
        is_again = self._reasons.is_made_again(task_id, FOR_EVER)
        if is_again:  # the same value once more
            told = {(state, value, 0) for state, value, _ in told}
        # While it is made again it can be cancelled, also with what it takes: that is its end.
        is_cancelled = is_again and self._graphs.is_cancelled(task_id, self._tasks)
        may_end = {SUCCEEDED, CANCELLED} if is_cancelled else {SUCCEEDED}
        if len({one for one in told if not is_cancelled or one[0] != CANCELLED}) > 1:
            self._report("I2", task_id, f"has more than one outcome: {sorted(told)}")
        if len(task.ends) > 1 and not (is_again and set(task.ends.values()) <= may_end):
            self._report("I2", task_id, f"has ended more than once: {task.ends}")
        states = {state for state, _, _ in told} | set(task.ends.values())
        if task.listed:
            states.add(task.listed)
        if len(states) > 1 and not states <= may_end:
            self._report("I2", task_id, f"events and answers differ: {sorted(states)}")
        for state, value, _ in told:
            if state == SUCCEEDED:
                if task.values - {value}:
                    self._report("I2", task_id, f"the result is {value} and {task.values}")
                self._check_result(task_id, task, value)
        if task.listed == SUCCEEDED and not task.runs and task.put is None:
            self._report("I3", task_id, "has succeeded without a run")

    def _check_result(self, task_id: str, task: Task, value: str) -> None:
        if task.put is not None:
            if value != task.put or task.runs:
                self._report("I4", task_id, f"was put as {task.put}, and is {value}")
            return
        if not task.runs:
            self._report("I3", task_id, "has succeeded without a run")
            return
        if any(run.parts for run in task.runs.values()):
            return  # each of its values is looked at by itself
        if value not in {run.hash for run in task.runs.values()}:
            self._report("I4", task_id, f"its result {value} is of none of its attempts")

    def _check_attempts(self, task_id: str, task: Task) -> None:
        """I3: numbers grow with the leases, and every re-run has its reason."""
        runs = task.in_order()
        for before, after in itertools.pairwise(runs):
            self._verdict.figures["re-runs"] += 1
            reason = self._reasons.why_again(task, before, after)
            # (A head that never heard of the task numbers its attempts from 1; the fence grows.)
            is_growing = after.attempt > before.attempt
            if not is_growing and not self._reasons.was_unheard_of(task, before, after):
                self._report("I3", task_id, f"{shown(before)} came before {shown(after)}")
            self._verdict.figures[f"re-runs: {reason or 'without a reason'}"] += 1
            if not reason:
                self._report("I3", task_id, f"{shown(after)} though {shown(before)} was not lost")
        # What begins after its successor was taken back unbegun, and cost none of the retries.
        free = len(self._troubles.deaths[HEAD]) + sum(
            before.start > after.start
            or self._reasons.is_lost(before, after.start)
            or self._reasons.is_out_of_reach(before, after.start)
            or self._reasons.costs_nothing(task_id, before, after)
            for before, after in itertools.pairwise(runs)
        )
        if len(runs) > 1 and task.retries == 0:
            names = ", ".join(shown(run) for run in runs)
            self._report("I3", task_id, f"max_retries=0, and it began {len(runs)} times: {names}")
        elif task.retries > 0 and len(runs) > 1 + task.retries + free:
            self._report("I3", task_id, f"began {len(runs)} times with {task.retries} retries")

    def _check_overlaps(self, task_id: str, task: Task) -> None:
        """I7: an attempt runs beside another one only if the earlier one's lease had ended."""
        runs = task.in_order()
        for before, after in itertools.pairwise(runs):
            end = min(before.end, self._reasons.death_of(before))
            if end <= after.start + self._rules.slack_s / 2 or before.start >= after.end:
                continue  # (one that begins after the later one's end is I5's)
            if task.is_exclusive and self._must_have_ended(before, end):
                self._verdict.figures["exclusive attempts stopped"] += 1
                continue
            self._verdict.figures["attempts that overlap"] += 1
            reason = self._reasons.why_again(task, before, after)
            slack = self._rules.slack_s
            is_covered = reason == BEFORE_ACK or self._reasons.was_away(
                before.worker, before.start - slack, after.start + slack
            )
            if task.is_exclusive:  # only a machine that stood still, as a whole, may break it
                is_covered = any(
                    begin <= min(end, after.start + self._rules.slack_s) and stop >= before.start
                    for begin, stop in self._troubles.frozen[before.worker]
                )
            if not is_covered:
                self._report("I7", task_id, f"{shown(before)} overlaps {shown(after)}")

    def _must_have_ended(self, run: Run, end: float) -> bool:
        """Whether an exclusive attempt would have written its end, had nobody stopped it before."""
        allowed = self._rules.exclusive_s + self._rules.slack_s
        return run.end == FOR_EVER and end > run.start + allowed

    def _check_late_starts(self, task_id: str, task: Task) -> None:
        """I5: what has ended, or was cancelled, does not start."""
        ends = [(at, state) for at, state, _, _, _ in task.seen]
        ends += [(at, state) for at, state in task.cancels if state in TERMINAL]
        stopped = min(ends, default=None)
        for run in task.runs.values():
            if stopped and run.start > stopped[0]:
                if stopped[1] == SUCCEEDED and self._reasons.is_made_again(task_id, run.start):
                    self._verdict.figures["runs for a value that was lost"] += 1
                    continue
                self._late(task_id, run, f"{stopped[1]} was told {run.start - stopped[0]:.2f} s")
            for at, state in task.cancels:
                late_s = run.start - at
                if state == "CANCELLING" and late_s > self._rules.cancel_s:
                    quiet_since = at - self._rules.lease_ttl_s
                    if not self._troubles.is_any(quiet_since, run.start):
                        self._late(task_id, run, f"its cancel was acked {late_s:.2f} s")

    def _late(self, task_id: str, run: Run, what: str) -> None:
        # A worker whose lease has ended without its knowledge (it was frozen, or cut off) may
        # begin what it held; the fence drops what comes of it.
        if self._reasons.was_away(run.worker, run.start - self._rules.slack_s, run.start):
            self._verdict.figures["starts on a worker that had lost its lease"] += 1
        else:
            self._report("I5", task_id, f"{shown(run)} started, and {what} before")

    def _check_streams(self) -> None:
        """I8: who has followed a task from its acceptance, without a reset, is told its end."""
        for stream, (begun, ended) in self._streams.items():
            if self._troubles.is_killed(stream) or SLOW in stream:
                continue
            for task_id in begun - ended:
                final = self._tasks[task_id].final
                if final and final[0] in TERMINAL:
                    self._report("I8", task_id, f"{stream} was never told its end ({final[0]})")

    def _check_strangers(self) -> None:
        """I1: what runs was handed in by somebody; the id of a key is told by its first ack."""
        strangers = [
            task_id
            for task_id, task in self._tasks.items()
            if task.runs
            and task.submitted is None
            and task.acked is None
            and task_id[:20] not in self._prefixes
            and task_id not in self._graphs.parents
        ]
        families = {_children_of(task_id) for task_id in self._graphs.parents} | {
            _children_of(task_id) for task_id, task in self._tasks.items() if task.runs
        }
        strangers = [task_id for task_id in strangers if task_id[:20] not in families]
        untold = sum(not ids for ids in self._keys.values())
        for task_id in strangers[untold:]:
            self._report("I1", task_id, "ran, and nobody handed it in")

    def _check_keys(self) -> None:
        """I6: a key stands for one task."""
        for key, ids in self._keys.items():
            if len(ids) > 1:
                self._report("I6", "", f"key {key} was given {len(ids)} ids: {sorted(ids)}")

    # ---- figures ----------------------------------------------------------------------

    def _count(self) -> None:
        figures, tasks = self._verdict.figures, self._tasks.values()
        figures["tasks submitted"] = sum(task.submitted is not None for task in tasks)
        figures["tasks refused"] = sum(task.is_refused and task.acked is None for task in tasks)
        figures["tasks acked"] = sum(task.acked is not None for task in tasks)
        figures["tasks ended"] = sum(
            task.final is not None and task.final[0] in TERMINAL for task in tasks
        )
        figures["tasks handed in, never acked, unknown"] = sum(
            task.final is not None and not task.final[0] for task in tasks
        )
        figures["attempts"] = sum(len(task.runs) for task in tasks)
        figures["attempts without an end"] = sum(
            run.end == FOR_EVER for task in tasks for run in task.runs.values()
        )
        for task in tasks:
            if task.final and task.final[0]:
                figures[f"ended {task.final[0]}"] += 1


def _children_of(task_id: str) -> str:
    """Return how the ids of those begin that a task hands in."""
    return child_prefix(*split_task_id(task_id)).hex()


def reasons(violations: Sequence[Violation]) -> dict[str, int]:
    """Count violations by invariant."""
    return dict(Counter(violation.invariant for violation in violations))
