"""``rustray logs``: what a task has printed."""

from __future__ import annotations

import codecs
import sys
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

import typer

from rustray.cli import exits
from rustray.cli.call import Call
from rustray.cli.output import dumps, is_terminal, utc, write_line
from rustray.cli.tasks import TaskId, checked_id
from rustray.client.logs import log_filter, read_logs
from rustray.common.errors import UsageProblem
from rustray.common.terminal import clean
from rustray.task.output import LogRecord

FollowFlag = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the task has ended.")]
AttemptFlag = Annotated[
    int | None, typer.Option("--attempt", metavar="N", help="Of this attempt; else the newest.")
]
StdoutFlag = Annotated[bool, typer.Option("--stdout", help="Only its standard output.")]
StderrFlag = Annotated[bool, typer.Option("--stderr", help="Only its standard error.")]


async def logs(
    call: Call,
    task_id: TaskId,
    follow: FollowFlag = False,
    attempt: AttemptFlag = None,
    only_stdout: StdoutFlag = False,
    only_stderr: StderrFlag = False,
) -> int:
    """Print what a task has printed: to a file or pipe byte for byte, to a terminal made safe.

    With --json: one JSON value; with --follow too: one for each piece, on a line of its own.
    """
    task_id = checked_id(task_id)
    try:
        where = log_filter(task_id, attempt, follow)
    except ValueError as error:
        raise UsageProblem(f"--attempt: {error}") from None
    if only_stdout and only_stderr:
        raise UsageProblem("--stdout and --stderr exclude each other; without both, both are shown")
    wanted = ("stdout",) if only_stdout else ("stderr",) if only_stderr else ("stdout", "stderr")
    show: _Json | _Text = _Json(follow) if call.output.as_json else _Text(call)
    async with call.head() as api:
        records = read_logs(lambda: api, where)
        has_some = False
        try:
            async for record in _only(records, wanted):
                has_some = True
                show.add(record)
        finally:
            show.end(task_id)
    if not has_some:
        call.output.note(
            f"task {task_id} has no output: it has printed nothing, has not begun, or what it has "
            f"printed is not kept any more (rustray tasks explain {task_id} says where it is)"
        )
    return exits.OK


async def _only(
    records: AsyncIterator[LogRecord], wanted: tuple[str, ...]
) -> AsyncIterator[LogRecord]:
    async for record in records:
        if record.stream in wanted:
            yield record


class _Json:
    """Shows records as JSON: one value, or with ``is_open`` one a line."""

    def __init__(self, is_open: bool) -> None:
        self._is_open = is_open
        self._records: list[dict[str, Any]] = []

    def add(self, record: LogRecord) -> None:
        """Show one, or keep it for the end."""
        shown = {
            "attempt": record.attempt,
            "stream": record.stream,
            "time": utc(record.time_unix_s),
            "text": record.text,
            "worker_id": record.worker_id or None,
            "pid": record.pid or None,
            "dropped_bytes": record.dropped_bytes,
        }
        if self._is_open:
            write_line(dumps(shown))
            sys.stdout.flush()
        else:
            self._records.append(shown)

    def end(self, task_id: str) -> None:
        """Show what was kept."""
        if not self._is_open and sys.exc_info()[0] is None:
            write_line(dumps({"task_id": task_id, "records": self._records}))


class _Text:
    """Shows records as they are, or for a person."""

    def __init__(self, call: Call) -> None:
        self._note = call.output.note
        self._is_terminal = is_terminal(sys.stdout)
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders: Final = {name: decoder("backslashreplace") for name in ("stdout", "stderr")}
        self._ends_line = True
        self._attempt = 0

    def add(self, record: LogRecord) -> None:
        """Show one."""
        if self._attempt not in (0, record.attempt):
            self._note(f"attempt {record.attempt}:")
        self._attempt = record.attempt
        if record.dropped_bytes:
            self._note(f"{record.dropped_bytes} bytes before this are not kept any more")
        if not self._is_terminal:
            # Around the text layer: what was no text stays what it was.
            sys.stdout.flush()
            sys.stdout.buffer.write(record.data)
            sys.stdout.buffer.flush()
            return
        self._write(self._decoders[record.stream].decode(record.data))

    def _write(self, text: str) -> None:
        lines = text.replace("\r\n", "\n").replace("\r", "\n")
        shown = clean(lines, keep_lines=True)
        if shown:
            self._ends_line = shown.endswith("\n")
            _write_text(shown)

    def end(self, _task_id: str) -> None:
        """Let what follows on a terminal begin on a line of its own."""
        if not self._is_terminal:
            return
        for decoder in self._decoders.values():
            self._write(decoder.decode(b"", final=True))
        if not self._ends_line:
            write_line("")


def _write_text(text: str) -> None:
    """Write to the terminal, whatever its encoding can show."""
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding or "ascii"
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()
