"""The head's own answers at the end of a run, by the API that every client has."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

import rustray
from chaos.history import Record, Writer, digest

_AT_ONCE: Final = 64
_ENDED: Final = tuple(state for state in rustray.TaskState if state.is_terminal)


def handed_in(records: Iterable[Record]) -> set[str]:
    """Return the ids of all tasks that somebody handed in, refused ones left out."""
    ids: set[str] = set()
    acked: set[str] = set()
    refused: set[str] = set()
    for record in records:
        if record["k"] in ("submit", "ack", "children"):
            ids.update(record["ids"])
        if record["k"] == "ack":
            acked.update(record["ids"])
        elif record["k"] == "refused":
            refused.update(record["ids"])
    return ids - (refused - acked)


async def ask(
    host: str,
    port: int,
    ids: Iterable[str],
    history: Writer,
    within_s: float,
    part: float = 1.0,
) -> None:
    """Write down how each task has ended; one that has not is waited for.

    Args:
        host: Of the head.
        port: Of the head.
        ids: Of the tasks.
        history: Where to write.
        within_s: For all of them together; what has not ended then is written with its state.
        part: Of so many of those that have ended the result is asked for; of the rest only the
            state, by the lists of tasks.
    """
    waiting = list(ids)
    if part < 1.0:
        waiting = await _look_through(host, port, set(waiting), history, part)
    deadline = asyncio.get_running_loop().time() + within_s

    async def answer(head: rustray.HeadNode) -> None:
        while waiting:
            task_id = waiting.pop()
            left_s = max(deadline - asyncio.get_running_loop().time(), 0.0)
            try:
                result = await head.get_task_result(task_id, left_s)
            except rustray.GetTimeout:
                [state] = [(await head.explain(task_id)).state.name]
                history.write("final", id=task_id, state=state, hash="", attempts=0)
                continue
            state = result.state.name if result else ""
            value = digest(result.value) if result else ""
            attempts = result.attempts if result else 0
            history.write("final", id=task_id, state=state, hash=value, attempts=attempts)

    async with (
        rustray.HeadNode(host, port, allow_pickle=True) as head,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(_AT_ONCE):
            group.create_task(answer(head))


async def _look_through(
    host: str, port: int, ids: set[str], history: Writer, part: float
) -> list[str]:
    """Write down what the lists of ended tasks say; return whom to ask for one by one."""
    every = max(round(1 / part), 1)
    async with rustray.HeadNode(host, port, allow_pickle=True) as head:
        for number, view in enumerate(await head.list_tasks(states=_ENDED)):
            if number % every and view.task_id in ids:
                ids.discard(view.task_id)
                state, attempts = view.state.name, view.attempts
                history.write("final", id=view.task_id, state=state, hash=None, attempts=attempts)
    return list(ids)
