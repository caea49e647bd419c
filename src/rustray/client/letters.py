"""Dead letters from a client's side: requests of several calls, each of which may get lost."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from rustray.client.submission import back_off
from rustray.common.errors import HeadUnavailable, ResourceExhausted, RustRayError
from rustray.common.ids import split_task_id, task_id
from rustray.rpc.api import HeadApi, LetterAnswer, LetterCursor, LetterFilter
from rustray.task.state import DEAD_STATES, TaskState
from rustray.task.views import DeadLetter

T = TypeVar("T")
Change = Callable[[LetterFilter, LetterCursor, bool], Coroutine[Any, Any, LetterAnswer]]

MAX_NAMED: Final = 1_000
"""Tasks that one call names."""
PATIENCE_S: Final = 30.0


@dataclass(slots=True)
class LetterReport:
    """What a retry or purge of dead letters did.

    Attributes:
        changed: How many were retried or purged.
        unchanged: Named tasks that are no dead letters, and the states they are in.
        errors: Named tasks that could not be retried or purged, and why.
        refusal: By filter: the first reason why some were not; None if there was none.
    """

    changed: int = 0
    unchanged: dict[str, TaskState] = field(default_factory=dict)
    errors: dict[str, RustRayError] = field(default_factory=dict)
    refusal: RustRayError | None = None


def letter_filter(
    task_ids: Iterable[str], states: Iterable[TaskState], function: str, min_age_s: float
) -> LetterFilter:
    """Check what was asked for.

    Raises:
        ValueError: nothing was, something is no task id, or a state that no dead letter has.
    """
    if isinstance(task_ids, str):
        raise TypeError("task_ids is a list of ids, not one")
    named = tuple(dict.fromkeys(task_id(*split_task_id(name)) for name in task_ids))
    wanted = tuple(states)
    for state in wanted:
        if state not in DEAD_STATES:
            raise ValueError(
                f"{state!r:.80} is no state of dead letters: "
                "TaskState.FAILED, TaskState.TIMED_OUT or TaskState.POISONED"
            )
    return LetterFilter(named, wanted, function, min_age_s)


def is_selective(where: LetterFilter) -> bool:
    """Whether anything says which letters are meant; everything has to be asked for by states."""
    return bool(where.task_ids or where.states or where.function or where.min_age_s)


async def change_all(change: Change, where: LetterFilter) -> LetterReport:
    """Retry or purge all that fit, call by call.

    A call whose answer is lost is made again: with the horizon that was asked for at first it does
    nothing twice.

    Raises:
        HeadUnavailable: the head did not answer for 30 s.
        ResourceExhausted: the head takes no more for now; notes say how far this came.
    """
    report = LetterReport()
    horizon = (await _patiently(lambda: change(LetterFilter(("0" * 32,)), _START, True))).horizon
    for part in _parts(where):
        cursor: LetterCursor | None = LetterCursor("", horizon)
        while cursor is not None:
            answer = await _patiently(_call(change, part, cursor))
            _note(report, answer)
            if not part.task_ids and isinstance(answer.error, ResourceExhausted):
                answer.error.add_note(f"{report.changed} tasks were retried before that")
                raise answer.error
            cursor = answer.next
    return report


_START: Final = LetterCursor()


def _call(
    change: Change, where: LetterFilter, cursor: LetterCursor
) -> Callable[[], Coroutine[Any, Any, LetterAnswer]]:
    return lambda: change(where, cursor, False)


def _parts(where: LetterFilter) -> list[LetterFilter]:
    names = where.task_ids
    if not names:
        return [where]
    return [
        replace(where, task_ids=names[low : low + MAX_NAMED])
        for low in range(0, len(names), MAX_NAMED)
    ]


def _note(report: LetterReport, answer: LetterAnswer) -> None:
    report.changed += answer.changed
    if not answer.verdicts:
        report.refusal = report.refusal or answer.error
    for verdict in answer.verdicts:
        if verdict.error is not None:
            report.errors[verdict.task_id] = verdict.error
        elif not verdict.is_changed and verdict.state is not None:
            report.unchanged[verdict.task_id] = verdict.state


async def count_all(change: Change, where: LetterFilter) -> int:
    """Count the letters that fit."""
    total = 0
    for part in _parts(where):
        cursor: LetterCursor | None = _START
        while cursor is not None:
            answer = await change(part, cursor, True)
            total += answer.changed
            cursor = answer.next
    return total


async def export_all(api: HeadApi, where: LetterFilter) -> AsyncIterator[DeadLetter]:
    """Yield all letters that fit; those that end meanwhile are not among them."""
    for part in _parts(where):
        cursor: LetterCursor | None = _START
        while cursor is not None:
            page = await api.export(part, cursor)
            for letter in page.letters:
                yield letter
            cursor = page.next


async def _patiently(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    deadline = time.monotonic() + PATIENCE_S
    attempt = 0
    while True:
        try:
            return await call()
        except HeadUnavailable:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            attempt = await back_off(attempt, left)


class LetterCalls:
    """The part of `rustray.HeadNode` that is about dead letters."""

    @property
    def _connected(self) -> HeadApi:
        raise NotImplementedError

    async def retry_tasks(
        self,
        task_ids: Iterable[str] = (),
        *,
        states: Iterable[TaskState] = (),
        function: str = "",
        min_age_s: float = 0.0,
    ) -> LetterReport:
        """Run dead letters again: tasks that failed, timed out or were poisoned.

        They keep their ids; who waits for one from now on gets the new outcome. Budgets begin
        anew, attempt numbers go on. A task that is no dead letter (any more) is left as it is, so a
        call whose answer was lost is made again.

        Args:
            task_ids: These; without any, all of the caller's that fit the rest.
            states: Only those in one of these states.
            function: Only those of this function.
            min_age_s: Only those that ended at least so long ago.

        Raises:
            ResourceExhausted: the head takes no more tasks for now; a note says how many were
                retried before.
            ValueError: nothing says which tasks, or something is no task id.
        """
        where = _selection(task_ids, states, function, min_age_s)
        return await change_all(self._connected.retry, where)

    async def purge_tasks(
        self,
        task_ids: Iterable[str] = (),
        *,
        states: Iterable[TaskState] = (),
        function: str = "",
        min_age_s: float = 0.0,
    ) -> LetterReport:
        """Forget dead letters, with error and arguments; see `retry_tasks` for the arguments."""
        where = _selection(task_ids, states, function, min_age_s)
        return await change_all(self._connected.purge, where)

    async def export_tasks(
        self,
        task_ids: Iterable[str] = (),
        *,
        states: Iterable[TaskState] = (),
        function: str = "",
        min_age_s: float = 0.0,
    ) -> AsyncIterator[DeadLetter]:
        """Yield dead letters with error and arguments, in the order of their ends.

        Nothing is unpickled. See `retry_tasks` for the arguments; without any, all of them come.

        Raises:
            TaskNotFound: a named task is not known, or not the caller's.
        """
        where = letter_filter(task_ids, states, function, min_age_s)
        async for letter in export_all(self._connected, where):
            yield letter


def _selection(
    task_ids: Iterable[str], states: Iterable[TaskState], function: str, min_age_s: float
) -> LetterFilter:
    where = letter_filter(task_ids, states, function, min_age_s)
    if not is_selective(where):
        raise ValueError("say which tasks: task_ids, states, function or min_age_s")
    return where
