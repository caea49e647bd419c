"""What was done to a cluster, as a reason for what its history shows: who was lost, and when."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set as AbstractSet
from typing import Final

from chaos.history import HEAD
from chaos.runs import FOR_EVER, LARGE_BYTES, Rules, Run, Task, Troubles

BEFORE_ACK: Final = "head died before the ack"
"""Reason of a re-run that is no broken promise: the head had not accepted the task."""


class Reasons:
    """Reasons for one history's attempts; asked when all of its records are taken in."""

    def __init__(
        self,
        rules: Rules,
        troubles: Troubles,
        tasks: defaultdict[str, Task],
        begun: AbstractSet[tuple[str, int]],
    ) -> None:
        """Prepare.

        Args:
            rules: The cluster's settings.
            troubles: What the nemesis did.
            tasks: By id.
            begun: Attempts (id, number) that a subscriber was told of.
        """
        self._rules, self._troubles, self._tasks, self._begun = rules, troubles, tasks, begun

    def why_again(self, task: Task, before: Run, after: Run) -> str:
        """Return why an attempt was followed by another, "" where there is no good reason."""
        slack = self._rules.slack_s
        low, high = min(before.start, after.start) - slack, max(before.start, after.start) + slack
        if before.has_raised and task.is_again:
            return "its exception is retried"
        died = self._troubles.executors.get((before.worker, before.pid))
        if before.is_crash or (died is not None and low <= died <= high):
            return "executor died"
        if self.is_lost(before, after.start):
            return "its result was lost with its worker"
        for at, is_clean in self._troubles.deaths[before.worker]:
            if not low <= at <= high:
                continue
            # One that was told to end hands in what it has, if there is a head to take it.
            if not is_clean or before.end >= at - slack or self._was_deaf(before, at):
                return "worker died"
        if self.was_away(before.worker, low, high):
            return "worker away beyond its lease"
        if task.is_exclusive and self._was_stopped(before.worker, low, high):
            return "exclusive, stopped without the head"
        if task.retries and self.was_unheard_of(task, before, after):
            return BEFORE_ACK
        return ""

    def is_lost(self, run: Run, until: float) -> bool:
        """Whether a large result that an attempt has made was with a worker that is gone.

        Small ones are with the head, and are not lost. A worker that leaves in order hands its
        values over, if there is a head, and others to take them: from then on another one has them.
        """
        if run.size < LARGE_BYTES:
            return False
        for at, is_clean in self._troubles.deaths[run.worker]:
            if not run.end <= at:
                continue
            if not is_clean and at <= until:
                return True
            # (That it has left is noted a moment after it has said goodbye.)
            since = at - self._rules.slack_s
            if is_clean and since <= until and self._is_anybody_gone(run.end, until):
                return True
        return False

    def costs_nothing(self, task_id: str, run: Run, after: Run) -> bool:
        """Whether nobody heard that an attempt had begun whose worker was lost, or that has left.

        What such a worker held beyond its slots costs none of the retries; nor does what one gives
        back that leaves in good order.
        """
        slack = self._rules.slack_s
        low, high = run.start - slack, after.start + slack
        deaths = self._troubles.deaths[run.worker]
        if any(is_clean and low <= at <= high for at, is_clean in deaths):
            return True
        died = any(low <= at <= high for at, _ in deaths)
        is_told = (task_id, run.attempt) in self._begun
        return not is_told and (died or self.was_away(run.worker, low, high))

    def _is_anybody_gone(self, since: float, until: float) -> bool:
        """Whether a head or a worker has died, or was out of reach, within a time."""
        died = any(
            since <= at <= until and not is_clean
            for deaths in self._troubles.deaths.values()
            for at, is_clean in deaths
        )
        return died or any(
            begin <= until and end + tail >= since
            for windows in self._troubles.windows.values()
            for begin, end, tail in windows
        )

    def is_out_of_reach(self, run: Run, until: float) -> bool:
        """Whether a large result was with a worker that was taken for dead."""
        return run.size >= LARGE_BYTES and self.was_away(run.worker, run.end, until)

    def is_made_again(self, task_id: str, until: float) -> bool:
        """Whether a task may run again though its end was told.

        What made a value in an earlier round of a soak is not known here: a subscriber that begins
        anew is told of it all the same, and it was judged in that round.
        """
        task = self._tasks[task_id]
        if self._rules.is_later_round and task.submitted is None and task.acked is None:
            return True
        return any(
            self.is_lost(run, until) or self.is_out_of_reach(run, until)
            for run in task.runs.values()
        )

    def was_unheard_of(self, task: Task, before: Run, after: Run) -> bool:
        """Whether a head died between two attempts and before anybody acked the task."""
        until = after.start if task.acked is None else min(after.start, task.acked)
        since = before.start - self._rules.slack_s
        return any(since <= at <= until for at, _ in self._troubles.deaths[HEAD])

    def _was_deaf(self, run: Run, ended: float) -> bool:
        """Whether a worker that was told to end could not hand in what it had."""
        windows = [*self._troubles.windows.get(run.worker, ()), *self._troubles.windows[HEAD]]
        return self._troubles.head_died_between(run.end - self._rules.slack_s, ended) or any(
            begin <= ended and end + tail >= run.end for begin, end, tail in windows
        )

    def was_away(self, worker: str, low: float, high: float) -> bool:
        """Whether a lease of this worker can have run out, with consequences between two times."""
        least = self._rules.lease_ttl_s - self._rules.heartbeat_s - self._rules.slack_s
        return any(
            begin <= high
            and end + tail + self._rules.lease_ttl_s >= low
            and min(end + tail, high) - begin >= least
            for begin, end, tail in self._merged(worker)
        )

    def _was_stopped(self, worker: str, low: float, high: float) -> bool:
        """Whether a worker may have stopped an exclusive task, as no head answered it."""
        windows = [
            *self._troubles.windows.get(HEAD, ()),
            *self._troubles.windows.get(worker, ()),
            *self._troubles.mild.get(worker, ()),
        ]
        least = self._rules.lease_ttl_s / 2 - self._rules.heartbeat_s - self._rules.slack_s
        return self._troubles.head_died_between(low - self._rules.slack_s, high) or any(
            begin <= high and end + tail >= low and end + tail - begin >= least
            for begin, end, tail in windows
        )

    def _merged(self, worker: str) -> list[tuple[float, float, float]]:
        """Return the worker's windows, with those that follow at once taken together."""
        merged: list[tuple[float, float, float]] = []
        for begin, end, tail in sorted(self._troubles.windows.get(worker, ())):
            if merged and begin <= merged[-1][1] + merged[-1][2]:
                first, last, rest = merged[-1]
                far = max(last + rest, end + tail)
                merged[-1] = (first, max(last, end), far - max(last, end))
            else:
                merged.append((begin, end, tail))
        return merged

    def death_of(self, run: Run) -> float:
        """Return when an attempt that wrote no end was stopped; infinite where nobody knows.

        One that starts just after its worker's death was written down is stopped at once: an
        executor goes with its worker, by a signal that takes its time.
        """
        known = (self._troubles.executors, self._troubles.gone)
        ends = [times.get((run.worker, run.pid), FOR_EVER) for times in known]
        least = run.start - self._rules.slack_s / 2
        deaths = [max(at, run.start) for at, _ in self._troubles.deaths[run.worker] if at >= least]
        return min([FOR_EVER, *(at for at in ends if at >= run.start), *deaths])
