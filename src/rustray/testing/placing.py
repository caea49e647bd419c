"""Which values stay where, as the head saves it, and what that allows a history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from rustray.scheduler.commands import Command, ForgetWorker, PersistOutcome, ReplaceOutcome
from rustray.scheduler.events import Event, ValuesSurrendered, WorkerJoined
from rustray.scheduler.placed import outcome_at
from rustray.scheduler.state import SchedulerState
from rustray.scheduler.value_commands import FreeObject
from rustray.task.columns import PlacedColumn
from rustray.task.place import MOVED, Place

PREFIX: Final = b"simulation"
"""Of the ids of all tasks."""


class ValueBook:
    """A ledger of its own: it believes no flag of the scheduler's, only what that has others do.

    A value is lost when the head has given its worker up, has told it to let go, or was told by it
    that the value is gone. Only then may its task, which has ended, be run again.
    """

    def __init__(self) -> None:
        self._task_of: dict[str, int] = {}
        self._kept: dict[int, Place] = {}
        self._lives: Counter[int] = Counter()
        self._lost: set[str] = set()
        self._gone: set[str] = set()
        self._failed: set[int] = set()

    # -- what happens ----------------------------------------------------------------------

    def on_event(self, event: Event) -> None:
        """The head takes something, of a session that it knows."""
        if type(event) is WorkerJoined:
            self._gone.discard(event.info.worker_id)
        elif type(event) is ValuesSurrendered:
            for item in event.values:
                if item.is_gone:
                    self._lost.add(item.object_id)
                elif item.payloads is not None and type(item.payloads) is not PlacedColumn:
                    self._brought(item.object_id)

    def on_command(self, command: Command) -> None:
        """The head has decided something."""
        if type(command) is PersistOutcome:
            self._saved(command)
        elif type(command) is ReplaceOutcome and type(command.payloads) is PlacedColumn:
            self._moved(Place.unpack(command.payloads[0]))
        elif type(command) is FreeObject:
            self._lost.add(command.object_id)
        elif type(command) is ForgetWorker:
            self._gone.add(command.worker_id)

    def _saved(self, command: PersistOutcome) -> None:
        outcome = command.outcome
        if type(outcome.payloads) is PlacedColumn:
            place = Place.unpack(outcome.payloads[0])
            self._task_of[place.object_id] = outcome.first
            self._kept[outcome.first] = place
            self._lives[outcome.first] += 1
        elif self._kept:
            for number in range(outcome.first, outcome.first + len(outcome.payloads)):
                if self.is_lost(number):
                    self._failed.add(number)
                self._kept.pop(number, None)

    def _moved(self, place: Place) -> None:
        """Another worker has taken a value over."""
        number = self._task_of[place.object_id.partition(MOVED)[0]]
        self._task_of[place.object_id] = number
        self._kept[number] = place

    def _brought(self, object_id: str) -> None:
        """The head has a value itself: it cannot be lost any more."""
        number = self._task_of.get(object_id, -1)
        place = self._kept.get(number)
        if place is not None and place.object_id == object_id and object_id not in self._lost:
            del self._kept[number]

    def head_started(self, state: SchedulerState, told: dict[int, Place]) -> None:
        """Go on from what another head has found in its journal.

        Args:
            state: Its scheduler's.
            told: What the client was told of places: that was committed.
        """
        for number, place in list(self._kept.items()):
            found = state.find(PREFIX, number)
            stored = None if found is None else outcome_at(*found)
            if found is not None and stored is None and told.get(number) != place:
                self._lost.add(place.object_id)  # that it had ended was not committed
            elif stored is not None and stored.place is None:
                del self._kept[number]
        for kept in state.kept_by.values():
            for object_id, stored in kept.items():
                assert stored.place is not None
                self._kept[stored.batch.first + stored.offset] = stored.place
                # No worker lets go of what the head may remember.
                self._lost.discard(object_id)

    # -- what it allows --------------------------------------------------------------------

    def task_of(self, place: Place) -> int:
        """Return the number of the task whose value this is; -1: nobody's."""
        return self._task_of.get(place.object_id, -1)

    def lives(self, number: int) -> int:
        """Return how often a task has ended with a value that stayed."""
        return self._lives[number]

    def was_lost(self, number: int) -> bool:
        """Whether a task has ended without a value after one that had stayed was lost."""
        return number in self._failed

    def is_lost(self, number: int) -> bool:
        """Whether the value of a task has stayed, and is lost: it may run again."""
        place = self._kept.get(number)
        return place is not None and (
            place.object_id in self._lost or place.worker_id in self._gone
        )


def misplaced(state: SchedulerState, held: Mapping[str, set[str]], freed: Sequence[int]) -> str:
    """Compare what a head knows of values with what workers keep; "" if there is no difference.

    Args:
        state: The scheduler's.
        held: Worker id to the names of what a worker keeps, for those that run.
        freed: Numbers of ended tasks whose results the client has let go of.
    """
    known: dict[str, set[str]] = {}
    for worker_id, kept in state.kept_by.items():
        names = held.get(worker_id, set())
        for object_id, stored in kept.items():
            if stored.is_lost and object_id in names:
                return f"{worker_id} has {object_id}, which the head takes for lost"
            if not (stored.is_lost or object_id in names):
                return f"{worker_id} does not have {object_id}, and the head has not noticed"
        known[worker_id] = set(kept)
    for worker_id, names in held.items():
        left = sorted(names - known.get(worker_id, set()))
        if left:
            return f"{worker_id} keeps {left[0]}, and {len(left) - 1} more, for nobody"
    for number in freed:
        found = state.find(PREFIX, number)
        stored_now = None if found is None else outcome_at(*found)
        if stored_now is not None and stored_now.place is not None and not stored_now.is_lost:
            return f"task {number}: its result was freed, and {stored_now.place.worker_id} keeps it"
    return ""
