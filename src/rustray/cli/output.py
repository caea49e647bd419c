"""What commands print: one JSON value for programs, or text and tables for people.

stdout carries data, stderr carries talk. Text that came from elsewhere (names, errors,
results) never reaches a terminal with its control characters.
"""

from __future__ import annotations

import base64
import datetime
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TextIO

from rustray.common.errors import PayloadError
from rustray.common.terminal import clean

_MAX_DEPTH: Final = 100


def to_json(value: Any, depth: int = 0) -> Any:
    """Turn a result into what JSON has; what JSON lacks becomes text or a list."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth >= _MAX_DEPTH:
        raise PayloadError(
            f"the value is nested deeper than {_MAX_DEPTH} levels, which is not shown here: fetch "
            "it in a program, with HeadNode.get_task_result"
        )
    if isinstance(value, Mapping):
        return {_key(key): to_json(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item, depth + 1) for item in value]
    if isinstance(value, set | frozenset):
        return [to_json(item, depth + 1) for item in sorted(value, key=repr)]
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if hasattr(value, "tolist"):
        return to_json(value.tolist(), depth + 1)
    return str(value)


def _key(key: Any) -> str:
    return key if isinstance(key, str) else str(to_json(key))


def utc(unix_s: float | None) -> str | None:
    """Format a wall clock time as ISO 8601 in UTC, or None for None."""
    if unix_s is None:
        return None
    try:
        moment = datetime.datetime.fromtimestamp(unix_s, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Output:
    """Prints what one command has to say.

    Attributes:
        as_json: Whether a program reads it.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json

    def value(self, value: Any, render: Callable[[Output], None]) -> None:
        """Print ``value`` as JSON, or let ``render`` print it for people."""
        if self.as_json:
            write_line(dumps(value))
        else:
            render(self)

    def text(self, text: str) -> None:
        """Print lines for people, cleaned."""
        write_line(clean(text, keep_lines=True))

    def note(self, text: str) -> None:
        """Say something beside the data, on stderr."""
        write_line(clean(text, keep_lines=True), sys.stderr)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print a table: drawn on a terminal, aligned columns in a pipe."""
        cells = [[clean("" if cell is None else str(cell)) for cell in row] for row in rows]
        if is_terminal(sys.stdout):
            _draw(columns, cells)
            return
        lines = [list(columns), *cells]
        widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
        for line in lines:
            padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            write_line("  ".join(padded).rstrip())


def _draw(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        # Ids and names are there to be copied: they are folded, never cut.
        table.add_column(Text(column), overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    Console(file=sys.stdout, highlight=False).print(table)


def dumps(value: Any) -> str:
    """Return one JSON value on one line, ASCII only, so that no terminal can be confused."""
    return json.dumps(to_json(value), allow_nan=False)


def write_line(text: str, stream: TextIO | None = None) -> None:
    """Write a line, whatever the stream's encoding can show."""
    target = sys.stdout if stream is None else stream
    if target is None:
        return
    try:
        target.write(text + "\n")
    except UnicodeEncodeError:
        encoding = target.encoding or "ascii"
        target.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person looks at the stream."""
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:
        return False
