"""``rustray objects``: the large values that stay with workers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Final

import typer

from rustray.cli import exits
from rustray.cli.call import Call, client_command
from rustray.cli.output import Output
from rustray.common.errors import UsageProblem
from rustray.task.views import ObjectTotal, ObjectView

MAX_LISTED: Final = 10_000
app = typer.Typer(help="See the large values that stay with workers.", no_args_is_help=True)
LimitFlag = Annotated[
    int, typer.Option("--limit", metavar="N", help="At most so many, the largest first.")
]


@client_command(app, "list")
async def list_objects(call: Call, limit: LimitFlag = 100) -> int:
    """List values that stay with workers: how large, where, made by which task."""
    if not 1 <= limit <= MAX_LISTED:
        raise UsageProblem(f"--limit {limit} is outside 1 to {MAX_LISTED}")
    async with call.head() as api:
        objects, totals = await api.list_objects(limit)
    call.output.value(
        {"objects": [asdict(one) for one in objects], "total": sum(one.objects for one in totals)},
        lambda out: _render(objects, totals, out),
    )
    return exits.OK


@client_command(app, "stats")
async def stats(call: Call) -> int:
    """Show how many values each worker keeps, and how large they are together."""
    async with call.head() as api:
        _, totals = await api.list_objects(0)
    call.output.value(
        {"workers": [asdict(one) for one in totals]}, lambda out: _render_totals(totals, out)
    )
    return exits.OK


def _render(objects: list[ObjectView], totals: list[ObjectTotal], output: Output) -> None:
    total = sum(one.objects for one in totals)
    if not total:
        output.text("no values stay with workers")
        return
    output.table(
        ("OBJECT", "FUNCTION", "MB", "WORKER", "AGE", "TAKEN BY"),
        [
            (
                one.object_id,
                one.function,
                f"{one.size / 1e6:.1f}",
                f"{one.worker_id} (lost)" if one.is_lost else one.worker_id,
                f"{one.age_s:.0f} s",
                str(one.takers),
            )
            for one in objects
        ],
    )
    if len(objects) < total:
        output.text(f"{total - len(objects)} more, all smaller; see --limit")


def _render_totals(totals: list[ObjectTotal], output: Output) -> None:
    if not totals:
        output.text("no values stay with workers")
        return
    output.table(
        ("WORKER", "OBJECTS", "MB", "LOST"),
        [
            (one.worker_id, str(one.objects), f"{one.bytes / 1e6:.1f}", str(one.lost))
            for one in totals
        ],
    )
