"""Following the events of tasks, over lost connections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from rustray.client.submission import back_off
from rustray.common.errors import CommunicationError, PayloadError, ResourceExhausted
from rustray.rpc.api import EventFilter, HeadApi
from rustray.task.codec import decode_value
from rustray.task.result import TaskEvent
from rustray.task.spec import Codec
from rustray.task.state import TaskState


async def follow(api: Callable[[], HeadApi], where: EventFilter) -> AsyncIterator[TaskEvent]:
    """Yield events that pass a filter, each once, for ever.

    Args:
        api: The head, also after it was away.
        where: Which events, and the revision after which to start.

    Raises:
        RustRayError: the head no longer keeps what followed the cursor.
        ValueError: the cursor is no revision.
    """
    check_cursor(where.cursor)
    attempt = 0
    has_begun = was_cut_off = False
    while True:
        try:
            async for events in api().subscribe(where):
                has_begun, was_cut_off = True, False
                attempt = 0
                for event in events:
                    where = replace(where, cursor=event.revision)
                    yield decode_event(event)
            return
        except CommunicationError:
            if not has_begun:
                raise
            attempt = await back_off(attempt, None)
        except ResourceExhausted:
            # Too slow a reader is cut off, and may come back at once; if its cursor is refused
            # then, events are lost, and no patience brings them back.
            if not has_begun or was_cut_off:
                raise
            was_cut_off = True


def event_filter(
    task_ids: Sequence[str], functions: Sequence[str], states: Sequence[TaskState], cursor: int
) -> EventFilter:
    """Make a filter of what a caller wrote.

    Raises:
        ValueError: one name stands where several are meant, or a state is none.
    """
    for name, texts in (("task_ids", task_ids), ("functions", functions)):
        if isinstance(texts, str):
            raise ValueError(f"{name} must be several names, such as [{texts!r:.80}]")
    for state in states:
        if not isinstance(state, TaskState):
            raise ValueError(f"states must be of rustray.TaskState, not {state!r:.80}")
    return EventFilter(tuple(task_ids), tuple(functions), tuple(states), cursor)


def check_cursor(cursor: object) -> None:
    """Refuse what is neither a revision nor -1.

    Raises:
        ValueError: as said.
    """
    if isinstance(cursor, bool) or not isinstance(cursor, int) or not -1 <= cursor < 1 << 63:
        raise ValueError(f"cursor must be a revision, or -1 for now, not {cursor!r:.80}")


def decode_event(event: TaskEvent) -> TaskEvent:
    """Decode the value that an event carries, if it does; None where it is no data of ours."""
    if event.kind != "emit":
        return event
    try:
        return replace(event, value=decode_value(Codec.MSGPACK, event.value))
    except PayloadError:
        return replace(event, value=None)
