"""``rustray state``: look after what a head keeps in its state directory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rustray.cli.access import head_state
from rustray.cli.call import JsonFlag, StateDirFlag
from rustray.cli.output import Output, dumps, write_line
from rustray.common.errors import ConfigError

if TYPE_CHECKING:
    from rustray.head.journal_files import JournalSummary

app = typer.Typer(help="Check, copy, restore and export a head's journal.", no_args_is_help=True)


@app.command("check")
def check(state_dir: StateDirFlag = None, as_json: JsonFlag = False) -> None:
    """Read all of the journal, also while a head uses it; exit code 2 if it is damaged."""
    from rustray.head import journal_files

    found = journal_files.check(journal_files.path_in(head_state(state_dir)))
    if found.damage:
        raise ConfigError(f"{found.damage} are lost. {journal_files.REMEDY}")
    if found.lost:
        raise ConfigError(
            f"{len(found.lost)} of {found.results} large results of {found.path} are missing or "
            f"damaged, e.g. {found.lost[0]}; everything else is sound. Whoever asks for them gets "
            "an error; run these tasks again, or put the files back from a backup's .results"
        )
    _say(found, "sound", as_json)


@app.command("backup")
def backup(
    file: Annotated[str, typer.Argument(metavar="FILE", help="New file for the copy.")],
    state_dir: StateDirFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Copy the journal, also while a head uses it; the copy is a whole one."""
    from rustray.head import journal_files

    journal = journal_files.path_in(head_state(state_dir))
    _say(journal_files.backup(journal, Path(file)), "copied", as_json)


@app.command("restore")
def restore(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A copy that 'backup' has made.")],
    state_dir: StateDirFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Put a copy in the journal's place while no head runs; the present one is kept beside it."""
    from rustray.head import journal_files

    found, kept = journal_files.restore(head_state(state_dir), Path(file))
    _say(found, "restored", as_json)
    if found.lost:
        Output(as_json=as_json).note(
            f"{len(found.lost)} of its {found.results} large results were not beside it, in "
            f"{Path(file).name}.results: whoever asks for them gets an error"
        )
    if kept is not None:
        Output(as_json=as_json).note(f"the journal that was there is kept as {kept}")


@app.command("export")
def export(state_dir: StateDirFlag = None) -> None:
    """Print every task of the journal with state, error and arguments; also if it is damaged.

    One JSON object a line, as `rustray tasks export`. Exit code 2 if some could not be read.
    """
    from rustray.cli.letters import letter_as_dict
    from rustray.head import journal_files
    from rustray.head.journal_export import JournaledTasks

    tasks = JournaledTasks(journal_files.path_in(head_state(state_dir)))
    is_empty = True
    for task in tasks:
        is_empty = False
        line = letter_as_dict(task)
        if not task.failure:
            line["error"] = None
        if not task.finished_unix_s:
            line["finished"] = None
        write_line(dumps(line))
    if is_empty and not tasks.damage:
        Output().note(f"the journal {tasks.path} holds no tasks")
    if tasks.damage:
        raise ConfigError(
            f"the journal {tasks.path} is damaged, and some of it could not be read "
            f"({'; '.join(tasks.damage[:5])}); everything else is above"
        )


def _say(found: JournalSummary, word: str, as_json: bool) -> None:
    Output(as_json=as_json).value(
        dataclasses.asdict(found),
        lambda out: out.text(
            f"{word}: {found.path}: {found.tasks:,} tasks ({found.ended:,} ended) in "
            f"{found.batches:,} batches, {found.workers} workers, {found.results:,} large results, "
            f"{found.size:,} bytes"
        ),
    )
