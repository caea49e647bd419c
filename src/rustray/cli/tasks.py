"""``rustray tasks``: list, get, cancel, explain."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

import typer

from rustray.cli import exits
from rustray.cli.call import Call, client_command
from rustray.cli.output import Output, dumps, utc, write_line
from rustray.cli.patience import Patience, with_head
from rustray.cli.results import show_result, wait_for_result, wait_with_progress
from rustray.cli.values import (
    parse_duration,
)
from rustray.common import ids
from rustray.common.errors import UsageProblem
from rustray.rpc.api import HeadApi, TaskFilter
from rustray.task.state import TaskState
from rustray.task.views import TaskPage, TaskView

_PAGE: Final = 1000
_BRING_S: Final = 10.0
"""How long a value may take to come from the worker that keeps it, where nobody asked to wait."""

app = typer.Typer(help="List, get, cancel and explain tasks.", no_args_is_help=True)

TaskId = Annotated[str, typer.Argument(metavar="TASK_ID", help="32 hexadecimal digits.")]
TaskIds = Annotated[list[str], typer.Argument(metavar="TASK_ID...", help="Tasks.")]
WaitFlag = Annotated[bool, typer.Option("--wait", help="Wait until it has ended.")]
TimeoutFlag = Annotated[
    str | None, typer.Option("--timeout", metavar="TIME", help="Longest wait, e.g. 30 or 5m.")
]


@client_command(app, "list")
async def list_tasks(
    call: Call,
    state: Annotated[
        list[str] | None, typer.Option("--state", metavar="STATE", help="QUEUED, RUNNING, ...")
    ] = None,
    function: Annotated[str, typer.Option("--function", help="Only this function.")] = "",
    worker: Annotated[str, typer.Option("--worker", help="Only on this worker.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=0, help="How many; 0: all.")] = 100,
) -> int:
    """List tasks in the order of their acceptance."""
    where = TaskFilter(tuple(_state(name) for name in state or []), function, worker)
    async with call.head() as api:
        pages = _pages(api, where, limit)
        if call.output.as_json:
            await _print_json_pages(pages)
            return exits.OK
        total = shown = 0
        async for page in pages:
            total = page.total
            shown += len(page.tasks)
            call.output.table(
                ("TASK", "FUNCTION", "STATE", "PRIORITY", "ATTEMPTS", "WORKER", "SUBMITTED"),
                [_row(view) for view in page.tasks],
            )
        if shown < total:
            call.output.note(f"{shown} of {total} tasks; --limit 0 shows all")
    return exits.OK


async def _pages(api: HeadApi, where: TaskFilter, limit: int) -> AsyncIterator[TaskPage]:
    cursor, left = "", limit or sys.maxsize
    while True:
        page = await api.list_tasks(where, cursor, min(_PAGE, left))
        yield page
        left -= len(page.tasks)
        cursor = page.next_cursor
        if not cursor or left <= 0 or not page.tasks:
            return


async def _print_json_pages(pages: AsyncIterator[TaskPage]) -> None:
    # One JSON value, but written page by page: a million tasks never stand in memory.
    total, separator = 0, '{"tasks": ['
    async for page in pages:
        total = page.total
        for view in page.tasks:
            write_line(separator + dumps(task_as_dict(view)))
            separator = ", "
    write_line(f'{separator if separator.startswith("{") else ""}], "total": {total}}}')


def task_as_dict(view: TaskView) -> dict[str, Any]:
    """Return a task as `--json` shows it."""
    error = {"code": view.error_code, "message": view.error_message} if view.error_code else None
    return {
        "task_id": view.task_id,
        "function": view.function,
        "state": view.state.name,
        "priority": view.priority,
        "attempts": view.attempts,
        "worker_id": view.worker_id or None,
        "submitted": utc(view.submitted_unix_s),
        "finished": utc(view.finished_unix_s),
        "error": error,
        "progress": view.progress,
        "message": view.message or None,
        "durability": view.durability.label or None,
    }


def _row(view: TaskView) -> tuple[Any, ...]:
    return (view.task_id, view.function, view.state.name, view.priority, view.attempts,
            view.worker_id, utc(view.submitted_unix_s))  # fmt: skip


def _state(name: str) -> TaskState:
    try:
        return TaskState[name.upper()]
    except KeyError:
        known = ", ".join(state.name for state in TaskState)
        raise UsageProblem(f"--state {ascii(name)[:40]} is none of {known}") from None


@client_command(app, "get")
async def get(
    call: Call, task_id: TaskId, wait: WaitFlag = False, limit: TimeoutFlag = None
) -> int:
    """Print a task's result, or its state while it has none."""
    task_id = checked_id(task_id)
    limit_s = parse_duration(limit, "--timeout") if limit is not None else None
    if wait or limit_s is not None:
        patience = Patience(call.output, limit_s)
        result = await with_head(
            call, patience, lambda api: wait_with_progress(api, task_id, patience, call.output)
        )
    else:
        async with call.head() as api:
            result = await api.get_result(task_id, 0.0)
            if not result.state.is_terminal and (await api.explain(task_id)).state.is_terminal:
                # It has ended, and its value is with a worker still.
                patience = Patience(call.output, _BRING_S)
                result = await wait_for_result(api, task_id, patience)
    return show_result(result, call.output)


@client_command(app, "cancel")
async def cancel(
    call: Call,
    task_ids: TaskIds,
    force: Annotated[
        bool, typer.Option("--force", help="Kill its executor instead of asking.")
    ] = False,
) -> int:
    """Cancel tasks."""
    checked = [checked_id(text) for text in task_ids]
    async with call.head() as api:
        verdicts = await api.cancel(checked, force)
    shown = [
        {
            "task_id": verdict.task_id,
            "state": None if verdict.state is None else verdict.state.name,
            "error": None
            if verdict.error is None
            else {"code": verdict.error.code, "message": str(verdict.error)},
        }
        for verdict in verdicts
    ]
    call.output.value({"tasks": shown}, lambda out: _render_cancel(shown, out))
    errors = [verdict.error for verdict in verdicts if verdict.error is not None]
    return exits.exit_code_of(errors[0]) if errors else exits.OK


def _render_cancel(shown: list[dict[str, Any]], output: Output) -> None:
    for task in shown:
        if task["error"] is None:
            output.text(f"{task['task_id']} {task['state']}")
        else:
            output.note(f"error: {task['error']['message']}")


@client_command(app, "explain")
async def explain(call: Call, task_id: TaskId) -> int:
    """Say why a task is where it is, and what would get it on."""
    task_id = checked_id(task_id)
    async with call.head() as api:
        found = await api.explain(task_id)
    shown = {
        "task_id": found.task_id,
        "state": found.state.name,
        "summary": found.summary,
        "position": found.position if found.position >= 0 else None,
        "workers": [
            {"worker_id": each.worker_id, "is_feasible": each.is_feasible, "reason": each.reason}
            for each in found.workers
        ],
        "advice": found.advice or None,
        "durability": found.durability.label or None,
    }

    def render(output: Output) -> None:
        output.text(f"{found.task_id} {found.state.name}: {found.summary}")
        if found.position >= 0:
            output.text(f"ahead of it in its queue: {found.position}")
        if found.workers:
            rows = [
                (w.worker_id, "yes" if w.is_feasible else "no", w.reason) for w in found.workers
            ]
            output.table(("WORKER", "COULD RUN IT", "WHY"), rows)
        if found.advice:
            output.text(found.advice)
        if found.durability:
            output.text(f"accepted at the level {found.durability.label}")

    call.output.value(shown, render)
    return exits.OK


def checked_id(text: str) -> str:
    """Return a task's id in its one spelling.

    Raises:
        UsageProblem: it is none.
    """
    try:
        return ids.task_id(*ids.split_task_id(text))
    except ValueError as error:
        raise UsageProblem(str(error)) from None
