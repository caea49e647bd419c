"""``rustray config``: what the settings are, and where each came from."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rustray.cli.load import Loaded, Surroundings, load
from rustray.cli.output import Output, to_json
from rustray.common.config import ShownSetting, describe

app = typer.Typer(help="Show and check the settings.", no_args_is_help=True)

ConfigFlag = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Configuration file; RUSTRAY_CONFIG, ./config.toml, ./rustray.toml, else the user's.",
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]


@app.command("show")
def show(config: ConfigFlag = None, as_json: JsonFlag = False) -> None:
    """Print every setting, its value, and where the value came from; secrets are not shown."""
    loaded = load(Surroundings.of_this_process(), path=config)
    settings = list(describe(loaded.config))
    Output(as_json=as_json).value(
        {
            "file": loaded.file or None,
            "settings": {setting.name: _as_dict(setting) for setting in settings},
        },
        lambda out: _render(loaded, settings, out),
    )


@app.command("check")
def check(
    path: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="File to check; default: as --config.")
    ] = None,
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Check the settings; exit code 2 and a sentence if one is wrong."""
    loaded = load(Surroundings.of_this_process(), path=path or config)
    output = Output(as_json=as_json)
    for note in loaded.notes:
        output.note(note)
    where = loaded.file or "no file; environment and defaults"
    output.value(
        {"ok": True, "file": loaded.file or None, "notes": list(loaded.notes)},
        lambda out: out.text(f"ok ({where})"),
    )


def _as_dict(setting: ShownSetting) -> dict[str, Any]:
    return {
        "value": to_json(setting.value),
        "origin": setting.origin.kind,
        "where": setting.origin.where or None,
        "doc": setting.doc,
    }


def _render(loaded: Loaded, settings: list[ShownSetting], output: Output) -> None:
    for note in loaded.notes:
        output.note(note)
    output.table(
        ("SETTING", "VALUE", "ORIGIN", "MEANING"),
        [(each.name, _text(each.value), each.origin, each.doc) for each in settings],
    )


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(value) or "-"
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items()) or "-"
    return str(value)
