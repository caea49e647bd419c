"""The command tree."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from rustray.cli import (
    cluster,
    flags,
    letters,
    logs,
    objects,
    settings_commands,
    state,
    submit,
    tasks,
)
from rustray.cli.call import JsonFlag, client_command

app = typer.Typer(
    help="Run Python functions on many machines: a head, workers that come and go, and clients.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(version("rustray"))
        except PackageNotFoundError:
            typer.echo("unknown (not installed)")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run Python functions on many machines."""


def _serve_command(name: str, help_text: str) -> None:
    """Make the framework's command from the flag table, for help, completion and mistakes."""
    table = {flag.name[2:].replace("-", "_"): flag for flag in flags.TABLES[name]}

    def command(**given: Any) -> None:
        from rustray.cli import serve

        found: dict[str, str] = {}
        for key, value in given.items():
            flag = table[key]
            if value:
                text = ",".join(value) if flag.is_repeated else value
                found[flag.name] = text if flag.metavar else flag.switch_value
        code = serve.run(name, found)
        if code:
            raise typer.Exit(code)

    parameters = [
        inspect.Parameter(
            key,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if flag.metavar else False,
            annotation=_annotation(flag),
        )
        for key, flag in table.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(name, help=help_text)(command)


def _annotation(flag: flags.ServeFlag) -> Any:
    option = typer.Option(flag.name, metavar=flag.metavar or None, help=flag.help)
    if not flag.metavar:
        return Annotated[bool, option]
    return Annotated[list[str] | None if flag.is_repeated else str | None, option]


_serve_command("head", "Start a head node: it accepts tasks and balances them over workers.")
_serve_command("worker", "Start a worker; on the head's machine it needs no flags.")
_LOOSE: dict[str, Any] = {"ignore_unknown_options": True}
client_command(app, "submit", context_settings=_LOOSE)(submit.submit)
client_command(app, "logs")(logs.logs)
client_command(app, "status")(cluster.status)
client_command(app, "top")(cluster.top)
letters.register(tasks.app)
app.add_typer(tasks.app, name="tasks")
app.add_typer(cluster.workers_app, name="workers")
app.add_typer(objects.app, name="objects")
app.add_typer(cluster.token_app, name="token")
app.add_typer(settings_commands.app, name="config")
app.add_typer(state.app, name="state")


@app.command("demo")
def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the state directory and logs afterwards.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show it at work: a head and two workers on this machine, and four jobs."""
    from rustray.cli.demo import run_demo

    code = run_demo(keep=keep, as_json=as_json)
    if code:
        raise typer.Exit(code)
