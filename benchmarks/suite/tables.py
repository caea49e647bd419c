"""The tables: plain text for the terminal, Markdown for the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from suite.plan import CORE, SYSTEMS, WORKLOADS, Workload
from suite.summary import Cell, Cells, advantage, judge, summarize

BEGIN: Final = "<!-- results: begin (written by compare.py --write-readme) -->"
END: Final = "<!-- results: end -->"
_QUICK: Final = ", quick: good for nothing but trying the tool out"
_NOTES: Final = """\
Median of the rounds; ± is half the range in percent of it; in brackets, how many times
better networked rustray is than that system on that row."""

Row = list[str]


def plain(results: Mapping[str, Any]) -> str:
    """Return everything as aligned text."""
    cells = summarize(results["samples"])
    parts = [_heading(results), _align(_comparison(cells))]
    core = _core(cells)
    if len(core) > 1:
        parts.append(_align(core))
    parts += [_align(_security(cells)), _NOTES, *_remarks(cells), _align(_goals(cells))]
    return "\n\n".join(parts)


def markdown(results: Mapping[str, Any]) -> str:
    """Return everything as Markdown."""
    cells = summarize(results["samples"])
    parts = [_heading(results), _pipes(_comparison(cells)), _NOTES]
    remarks = _remarks(cells)
    if remarks:
        parts.append("\n".join(f"- {remark}" for remark in remarks))
    core = _core(cells)
    if len(core) > 1:
        parts.append(_pipes(core))
    parts += [_pipes(_security(cells)), _pipes(_goals(cells))]
    return "\n\n".join(parts)


def write_readme(path: Path, results: Mapping[str, Any]) -> None:
    """Replace what stands between the markers.

    Raises:
        ValueError: the markers are not there, in this order.
    """
    text = path.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path.name} has no lines {BEGIN!r} and {END!r}")
    path.write_text(f"{before}{BEGIN}\n\n{markdown(results)}\n\n{END}{after}")


def _heading(results: Mapping[str, Any]) -> str:
    machine, versions = results["machine"], results["versions"]
    lines = [
        f"{results['date'][:10]}, rounds: {results['rounds']}"
        + (_QUICK if results["is_quick"] else "")
        + ("" if results.get("is_complete", True) else ", interrupted"),
        f"{machine['cpu']}, {len(machine['cores_used'])} of {machine['cores_of_machine']} cores, "
        f"{machine['memory_gib']} GiB, {machine['kernel']}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    return "\n".join(lines)


def _comparison(cells: Cells) -> list[Row]:
    present = {system for _, system in cells}
    systems = [name for name in SYSTEMS if name in present and name not in CORE]
    rows = [["workload", "unit", *(SYSTEMS[name].title for name in systems)]]
    for workload in WORKLOADS:
        if workload.systems == CORE:
            continue
        row = [_cell(cells, workload, name) for name in systems]
        if any(row):
            rows.append([workload.title, workload.unit, *row])
    return rows if len(rows) > 1 else []


def _core(cells: Cells) -> list[Row]:
    rows = [["rustray core, in process", "unit", "value"]]
    for workload in WORKLOADS:
        if workload.systems == CORE and (workload.name, CORE[0]) in cells:
            rows.append([workload.title, workload.unit, _cell(cells, workload, CORE[0])])
    return rows


def _cell(cells: Cells, workload: Workload, system: str) -> str:
    cell = cells.get((workload.name, system))
    if cell is None:
        return ""
    if cell.median is None:
        return "failed"
    text = number(cell.median) + ("*" if cell.is_fewer else "")
    if cell.samples > 1:
        text += f" ±{cell.spread * 100:.0f}%"
    ratio = advantage(cells, workload.name, system)
    return f"{text} ({number(ratio)}x)" if ratio is not None else text


def number(value: float) -> str:
    """Write a number with about three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _security(cells: Cells) -> list[Row]:
    present = {system for _, system in cells}
    rows = [["system", "runs as", "security"]]
    rows += [
        [info.title, info.setting, info.security]
        for name, info in SYSTEMS.items()
        if name in present
    ]
    return rows


def _remarks(cells: Cells) -> list[str]:
    """Say where a cell is not what it seems."""
    remarks: list[str] = []
    for (workload, system), cell in cells.items():
        title = SYSTEMS[system].title
        if cell.is_fewer:
            remarks.append(
                f"{title}*, {workload}: {cell.tasks:,} tasks, for more would take too long"
            )
        if cell.failures:
            remarks.append(_failure(title, workload, cell))
    return remarks


def _failure(title: str, workload: str, cell: Cell) -> str:
    tried = len(cell.failures) + cell.samples
    return f"{title}, {workload}: {len(cell.failures)} of {tried} failed: {cell.failures[-1]}"


def _goals(cells: Cells) -> list[Row]:
    rows = [["goal of networked rustray, where nothing else is said", "bound", "measured", ""]]
    for verdict in judge(cells):
        goal = verdict.goal
        bound = f"{'>=' if goal.is_least else '<='} {goal.bound:,g} {goal.unit}"
        measured = "" if verdict.measured is None else number(verdict.measured)
        rows.append([goal.title, bound, measured, verdict.word])
    return rows


def _align(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _pipes(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
