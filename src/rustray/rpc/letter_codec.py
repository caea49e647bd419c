"""Dead letters as protobuf, and back."""

from __future__ import annotations

from typing import Any, Final

from rustray.proto.rustray.v1 import head_pb2 as wire
from rustray.rpc.api import (
    LetterAnswer,
    LetterCursor,
    LetterFilter,
    LetterPage,
    LetterVerdict,
)
from rustray.rpc.convert import (
    codec_from_wire,
    seconds_from_wire,
    state_from_wire,
    state_to_wire,
    text,
    total,
)
from rustray.rpc.status import from_detail, to_detail
from rustray.task.state import DEAD_STATES
from rustray.task.views import DeadLetter

MAX_NAMED: Final = 10_000


def put_request(
    request: Any, where: LetterFilter, cursor: LetterCursor, dry_run: bool = False
) -> Any:
    """Fill in a RetryTasks-, PurgeTasks- or ExportTasksRequest, and return it."""
    request.where.task_ids.extend(map(text, where.task_ids))
    request.where.states.extend(map(state_to_wire, where.states))
    request.where.function = text(where.function)
    request.where.min_age_s = where.min_age_s
    request.cursor.after = text(cursor.after)
    request.cursor.horizon = cursor.horizon
    if dry_run:
        request.dry_run = True
    return request


def get_request(request: Any) -> tuple[LetterFilter, LetterCursor]:
    """Decode which letters are meant, and where to begin.

    Raises:
        ValueError: too many names, a state that no dead letter has, or no duration.
    """
    where = request.where
    if len(where.task_ids) > MAX_NAMED:
        raise ValueError(f"{len(where.task_ids)} task ids, at most {MAX_NAMED} are allowed")
    states = tuple(map(state_from_wire, where.states))
    for state in states:
        if state not in DEAD_STATES:
            raise ValueError(f"{state} is no state of dead letters: FAILED, TIMED_OUT or POISONED")
    chosen = LetterFilter(
        tuple(where.task_ids),
        states,
        where.function,
        seconds_from_wire("min_age_s", where.min_age_s),
    )
    return chosen, _get_cursor(request.cursor)


def _get_cursor(message: wire.LetterCursor) -> LetterCursor:
    return LetterCursor(message.after, message.horizon)


def put_answer(response: Any, answer: LetterAnswer) -> Any:
    """Fill in a RetryTasks- or PurgeTasksResponse, and return it."""
    for verdict in answer.verdicts:
        message = response.verdicts.add(
            task_id=text(verdict.task_id),
            state=state_to_wire(verdict.state),
            is_changed=verdict.is_changed,
        )
        if verdict.error is not None:
            message.error.CopyFrom(to_detail(verdict.error))
    response.changed = answer.changed
    response.horizon = answer.horizon
    if answer.error is not None:
        response.error.CopyFrom(to_detail(answer.error))
    _put_next(response, answer.next)
    return response


@total("answer about dead letters")
def get_answer(response: Any) -> LetterAnswer:
    """Decode what a retry or purge did."""
    verdicts = tuple(
        LetterVerdict(
            m.task_id,
            None if m.HasField("error") and not m.state else state_from_wire(m.state),
            m.is_changed,
            from_detail(m.error) if m.HasField("error") else None,
        )
        for m in response.verdicts
    )
    error = from_detail(response.error) if response.HasField("error") else None
    return LetterAnswer(verdicts, response.changed, response.horizon, error, _get_next(response))


def put_page(page: LetterPage) -> wire.ExportTasksResponse:
    """Encode some dead letters."""
    response = wire.ExportTasksResponse()
    for letter in page.letters:
        response.letters.add(
            task_id=letter.task_id,
            function=text(letter.function),
            state=state_to_wire(letter.state),
            priority=letter.priority,
            attempts=letter.attempts,
            worker_id=text(letter.worker_id),
            submitted_unix_s=letter.submitted_unix_s,
            finished_unix_s=letter.finished_unix_s,
            codec=letter.codec,
            failure=letter.failure,
            arguments=letter.arguments,
        )
    _put_next(response, page.next)
    return response


@total("dead letters")
def get_page(response: wire.ExportTasksResponse) -> LetterPage:
    """Decode some dead letters."""
    letters = tuple(
        DeadLetter(
            task_id=m.task_id,
            function=m.function,
            state=state_from_wire(m.state),
            priority=m.priority,
            attempts=m.attempts,
            worker_id=m.worker_id,
            submitted_unix_s=m.submitted_unix_s,
            finished_unix_s=m.finished_unix_s,
            codec=int(codec_from_wire(m.codec)),
            failure=m.failure,
            arguments=m.arguments if m.HasField("arguments") else None,
        )
        for m in response.letters
    )
    return LetterPage(letters, _get_next(response))


def _put_next(response: Any, cursor: LetterCursor | None) -> None:
    if cursor is not None:
        response.next.after = cursor.after
        response.next.horizon = cursor.horizon


def _get_next(response: Any) -> LetterCursor | None:
    return _get_cursor(response.next) if response.HasField("next") else None
