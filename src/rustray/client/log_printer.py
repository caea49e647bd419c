"""Shows a program what its tasks print: ``rustray.init(log_to_driver=True)``.

The connection's thread never writes: a terminal that is held, or a pipe that nobody reads, must
not hold up results. So a thread of its own does, started by the first output, and as long as it
does not get on nothing more is fetched; what the workers then have no room for is left out and
counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from rustray.client.log_lines import (
    Folding,
    Line,
    LineAssembler,
    LineBudget,
    shown_lines,
)
from rustray.client.submission import back_off
from rustray.common.errors import CommunicationError, RustRayError
from rustray.rpc.api import HeadApi
from rustray.task.output import LogRecord

FOLD_ENV: Final = "RUSTRAY_DEDUP_LOGS"
"""0 shows each line, also those that several processes print alike."""
MAX_WAITING_BYTES: Final = 1 << 20
SETTLE_QUIET_S: Final = 0.05
SETTLE_LIMIT_S: Final = 1.0
_ROOM_PAUSE_S: Final = 0.05
_TURN_S: Final = 0.1
_JOIN_S: Final = 2.0

logger = logging.getLogger("rustray.client")


class LogPrinter:
    """Writes records to this program's stdout and stderr, from a thread.

    Attributes:
        heard_at: Monotonic time of the last record.
    """

    def __init__(self, *, names_worker: bool) -> None:
        """Prepare; the thread starts with the first record.

        Args:
            names_worker: Whether tasks run elsewhere.
        """
        self.heard_at = 0.0
        self._names_worker = names_worker
        self._changed = threading.Condition()
        self._waiting: deque[LogRecord] = deque()
        self._size = 0
        self._is_closing = False
        self._is_broken = False
        self._thread: threading.Thread | None = None
        self._lines = LineAssembler()
        self._folding = Folding() if os.environ.get(FOLD_ENV, "1") != "0" else None
        self._budget = LineBudget()

    def put(self, records: Sequence[LogRecord]) -> None:
        """Have records shown; never waits."""
        if not records or self._is_closing:
            return
        self.heard_at = time.monotonic()
        with self._changed:
            self._waiting.extend(records)
            self._size += sum(len(record.data) for record in records)
            self._changed.notify()
        if self._thread is None:
            thread = threading.Thread(target=self._serve, name="rustray-output", daemon=True)
            # At the interpreter's end there are no new threads since Python 3.12: `close` shows it.
            with contextlib.suppress(RuntimeError):
                thread.start()
                self._thread = thread

    @property
    def is_full(self) -> bool:
        """Whether no more is to be fetched for now."""
        return self._size > MAX_WAITING_BYTES

    def close(self) -> None:
        """Show what is there and stop; waits a bounded time."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
        elif self._waiting:
            self._serve()

    # ---- the thread ---------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            with self._changed:
                if not self._waiting and not self._is_closing:
                    self._changed.wait(_TURN_S)
                records = list(self._waiting)
                self._waiting.clear()
                is_last = self._is_closing
            self._show(records, is_last)
            with self._changed:
                self._size -= sum(len(record.data) for record in records)
                if is_last and not self._waiting:
                    return

    def _show(self, records: Iterable[LogRecord], is_last: bool) -> None:
        now = time.monotonic()
        lines = [line for record in records for line in self._lines.add(record, now)]
        lines += self._lines.quiet(float("inf") if is_last else now)
        shown: list[tuple[Line, int]] = []
        folding = self._folding
        if folding is None:
            shown = [(line, 0) for line in lines]
        else:
            for line in lines:
                shown += folding.add(line, now)
            shown += folding.rest() if is_last else folding.due(now)
        kept: list[tuple[Line, int]] = []
        for line, count in shown:
            if self._budget.take(len(line.text) + 40, now):
                if self._budget.dropped:
                    kept.append((_left_out(self._budget.dropped), 0))
                    self._budget.dropped = 0
                kept.append((line, count))
        if kept and not self._is_broken:
            self._write(kept)

    def _write(self, lines: Iterable[tuple[Line, int]]) -> None:
        streams = {"stdout": sys.stdout, "stderr": sys.stderr}
        is_plain = bool(os.environ.get("NO_COLOR"))
        colours = frozenset(n for n, each in streams.items() if not is_plain and _is_tty(each))
        try:
            for name, text in shown_lines(lines, names_worker=self._names_worker, colours=colours):
                stream = streams[name]
                if stream is None:
                    continue
                try:
                    stream.write(text + "\n")
                except UnicodeEncodeError:
                    encoding = stream.encoding or "ascii"
                    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            for stream in streams.values():
                if stream is not None:
                    stream.flush()
        except (OSError, ValueError) as error:
            # Closed, or a pipe that nobody reads: there is nobody to show it to any more.
            self._is_broken = True
            logger.debug("tasks' output is shown no more: %r", error)


def _is_tty(stream: object) -> bool:
    try:
        return bool(stream is not None and stream.isatty())  # type: ignore[attr-defined]
    except (ValueError, AttributeError):
        return False


def _left_out(count: int) -> Line:
    return Line(("", 0), "rustray", "stderr", f"{count} lines of tasks' output were left out here")


async def show_logs(api: HeadApi, prefix: bytes, printer: LogPrinter) -> None:
    """Fetch what a session's tasks print and have it shown, until cancelled."""
    tries = 0
    while True:
        try:
            async for page in api.session_logs(prefix):
                tries = 0
                printer.put(page.records)
                while printer.is_full:  # noqa: ASYNC110 - a thread empties it
                    await asyncio.sleep(_ROOM_PAUSE_S)
            return  # somebody else asks for this session now
        except CommunicationError:
            tries = await back_off(tries, None)
        except RustRayError as error:
            logger.warning("what tasks print is not shown: %s", error)
            return


async def settle(printer: LogPrinter) -> None:
    """Wait until what the last tasks have printed has come, as far as can be told."""
    begin = time.monotonic()
    while True:
        now = time.monotonic()
        if now - begin >= SETTLE_LIMIT_S or now - max(begin, printer.heard_at) >= SETTLE_QUIET_S:
            return
        await asyncio.sleep(SETTLE_QUIET_S / 5)
