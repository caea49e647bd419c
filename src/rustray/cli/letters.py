"""``rustray tasks retry``, ``export`` and ``purge``: what ended badly, and what to do with it."""

from __future__ import annotations

import base64
import sys
from typing import Annotated, Any, Final

import typer

from rustray.cli import exits
from rustray.cli.call import Call, client_command
from rustray.cli.output import Output, dumps, is_terminal, to_json, utc, write_line
from rustray.cli.values import parse_duration
from rustray.client.letters import (
    LetterReport,
    change_all,
    count_all,
    export_all,
    is_selective,
    letter_filter,
)
from rustray.common.errors import PayloadError, ResourceExhausted, UsageProblem
from rustray.rpc.api import LetterFilter
from rustray.task.spec import Codec
from rustray.task.state import DEAD_STATES, TaskState
from rustray.task.views import DeadLetter

_SHOWN: Final = 20

TaskIds = Annotated[
    list[str] | None,
    typer.Argument(metavar="[TASK_ID...]", help="These tasks.", show_default=False),
]
StateFlag = Annotated[
    list[str] | None,
    typer.Option("--state", metavar="STATE", help="All that are FAILED, TIMED_OUT or POISONED."),
]
FunctionFlag = Annotated[str, typer.Option("--function", help="Only of this function.")]
AgeFlag = Annotated[
    str | None,
    typer.Option(
        "--older-than", metavar="TIME", help="Only what ended so long ago, e.g. 90 or 2h."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to ``rustray tasks``."""
    client_command(app, "retry")(retry)
    client_command(app, "export")(export)
    client_command(app, "purge")(purge)


async def retry(
    call: Call,
    task_ids: TaskIds = None,
    state: StateFlag = None,
    function: FunctionFlag = "",
    older_than: AgeFlag = None,
) -> int:
    """Run tasks again that failed, timed out or were poisoned, under their ids."""
    where = _selection(task_ids, state, function, older_than)
    async with call.head() as api:
        try:
            report = await change_all(api.retry, where)
        except ResourceExhausted as error:
            for note in getattr(error, "__notes__", ()):
                call.output.note(note)
            raise
    return _show(report, "retried", call.output)


async def purge(
    call: Call,
    task_ids: TaskIds = None,
    state: StateFlag = None,
    function: FunctionFlag = "",
    older_than: AgeFlag = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> int:
    """Forget tasks that failed, timed out or were poisoned, with error and arguments."""
    where = _selection(task_ids, state, function, older_than)
    async with call.head() as api:
        if not yes:
            count = await count_all(api.purge, where)
            if not count and not task_ids:
                return _show_nothing("there are no such dead letters", call.output)
            if count and not _confirm(count, call.output):
                return _show_nothing("nothing was forgotten", call.output)
        report = await change_all(api.purge, where)
    return _show(report, "purged", call.output)


async def export(
    call: Call,
    task_ids: TaskIds = None,
    state: StateFlag = None,
    function: FunctionFlag = "",
    older_than: AgeFlag = None,
) -> int:
    """Print tasks that failed, timed out or were poisoned, with error and arguments.

    One JSON object a line; with --json one array of them, once all are there. Arguments that are
    pickles come as base64: nothing is unpickled.
    """
    where = _filter(task_ids, state, function, older_than)
    whole: list[str] = []  # an array that an error cuts off would be no JSON
    async with call.head() as api:
        async for letter in export_all(api, where):
            line = dumps(letter_as_dict(letter))
            if call.output.as_json:
                whole.append(line)
            else:
                write_line(line)
    if call.output.as_json:
        write_line(f"[{', '.join(whole)}]")
    return exits.OK


def letter_as_dict(letter: DeadLetter) -> dict[str, Any]:
    """Return a dead letter as `export` shows it."""
    failure = letter.error
    return {
        "task_id": letter.task_id,
        "function": letter.function,
        "state": letter.state.name,
        "priority": letter.priority,
        "attempts": letter.attempts,
        "worker_id": letter.worker_id or None,
        "submitted": utc(letter.submitted_unix_s),
        "finished": utc(letter.finished_unix_s),
        "error": {
            "code": failure.code,
            "message": failure.message,
            "error_type": failure.error_type or None,
            "traceback": failure.traceback or None,
        },
        **_arguments_as_dict(letter),
    }


def _arguments_as_dict(letter: DeadLetter) -> dict[str, Any]:
    """Return the arguments as JSON where that says all of them, else as their bytes."""
    known = {int(codec): codec.name.lower() for codec in Codec}
    shown: dict[str, Any] = {"codec": known.get(letter.codec, str(letter.codec))}
    if letter.arguments is None:
        return {**shown, "args": None, "kwargs": None}
    try:
        args, kwargs = letter.call()
    except PayloadError:
        return {**shown, "arguments_base64": base64.b64encode(letter.arguments).decode("ascii")}
    plain = [list(args), kwargs]
    if to_json(plain) != plain:  # bytes, dates, arrays: JSON has no such thing
        encoded = base64.b64encode(letter.arguments).decode("ascii")
        return {**shown, "args": list(args), "kwargs": kwargs, "arguments_base64": encoded}
    return {**shown, "args": list(args), "kwargs": kwargs}


def _selection(
    task_ids: list[str] | None, state: list[str] | None, function: str, older_than: str | None
) -> LetterFilter:
    where = _filter(task_ids, state, function, older_than)
    if not is_selective(where):
        raise UsageProblem(
            "say which tasks: ids, --state FAILED, --function NAME or --older-than TIME"
        )
    return where


def _filter(
    task_ids: list[str] | None, state: list[str] | None, function: str, older_than: str | None
) -> LetterFilter:
    age_s = parse_duration(older_than, "--older-than") if older_than is not None else 0.0
    if task_ids and (state or function or age_s):
        raise UsageProblem("give ids, or say by --state, --function and --older-than which tasks")
    try:
        return letter_filter(task_ids or (), map(_state, state or ()), function, age_s)
    except ValueError as error:
        raise UsageProblem(str(error)) from None


def _state(name: str) -> TaskState:
    known = {state.name: state for state in sorted(DEAD_STATES)}
    found = known.get(name.upper())
    if found is None:
        raise UsageProblem(f"--state {ascii(name)[:40]} is none of {', '.join(known)}")
    return found


def _confirm(count: int, output: Output) -> bool:
    if not is_terminal(sys.stdin):
        raise UsageProblem(f"{count} dead letters would be forgotten; say --yes if that is meant")
    output.note(f"forget {count} dead letters, with error and arguments? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _show_nothing(why: str, output: Output) -> int:
    output.note(why)
    return _show(LetterReport(), "purged", output) if output.as_json else exits.OK


def _show(report: LetterReport, verb: str, output: Output) -> int:
    errors = dict(report.errors)
    shown = {
        verb: report.changed,
        "unchanged": [
            {"task_id": name, "state": state.name} for name, state in report.unchanged.items()
        ],
        "errors": [
            {"task_id": name, "code": error.code, "message": str(error)}
            for name, error in errors.items()
        ],
        "refusal": None
        if report.refusal is None
        else {"code": report.refusal.code, "message": str(report.refusal)},
    }

    def render(out: Output) -> None:
        out.text(f"{verb} {report.changed} tasks" if report.changed != 1 else f"{verb} 1 task")
        for name, state in list(report.unchanged.items())[:_SHOWN]:
            out.note(f"{name} is no dead letter: it is {state.name}")
        for name, error in list(errors.items())[:_SHOWN]:
            out.note(f"error: {name}: {error}")
        if report.refusal is not None:
            out.note(f"error: not all of them: {report.refusal}")

    output.value(shown, render)
    first = next(iter(errors.values()), report.refusal)
    return exits.OK if first is None else exits.exit_code_of(first)
