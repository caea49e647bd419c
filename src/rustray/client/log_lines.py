"""What tasks print, as the lines of a program's own output: assembled, folded, within bounds.

Pure: records, lines and the time go in, text comes out.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from rustray.common.terminal import clean
from rustray.task.output import LogRecord, Stream

MAX_LINE_BYTES: Final = 16 * 1024
"""A longer line is shown in parts."""
MAX_OPEN_LINES: Final = 1_000
QUIET_S: Final = 0.3
"""A line without an end is shown when nothing has come for so long."""
FOLD_S: Final = 5.0
MAX_FOLDED: Final = 1_000
"""Different lines that are looked out for."""
MAX_BYTES_PER_S: Final = 1 << 20
_WITH_NUMBER: Final = re.compile(r"\d")


@dataclass(frozen=True, slots=True)
class Line:
    """One line that a task has printed.

    Attributes:
        source: Worker and process: those that say the same are told from one that repeats itself.
        function: What it ran.
        stream: Which stream.
        text: Without its end, safe for a terminal.
    """

    source: tuple[str, int]
    function: str
    stream: Stream
    text: str


class LineAssembler:
    """Makes lines of records; holds those that have not ended, for a while."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[str, int, str], tuple[float, bytes, LogRecord]]
        self._open = OrderedDict()

    def add(self, record: LogRecord, now: float) -> list[Line]:
        """Take a record; return the lines that end in it."""
        lines: list[Line] = []
        if record.data:
            key = (record.task_id, record.attempt, record.stream)
            _, held, _ = self._open.pop(key, (0.0, b"", record))
            *whole, rest = (held + record.data).split(b"\n")
            for part in whole:
                lines += _lines(record, part)
            if len(rest) >= MAX_LINE_BYTES:
                lines += _lines(record, rest)
                rest = b""
            if rest:
                self._open[key] = (now, rest, record)
                if len(self._open) > MAX_OPEN_LINES:
                    _, (_, oldest, of) = self._open.popitem(last=False)
                    lines += _lines(of, oldest)
        if record.dropped_bytes:
            text = (
                f"{record.dropped_bytes} bytes of output were left out here: tasks print faster "
                "than it is passed on (rustray logs TASK_ID shows more of a task's)"
            )
            lines.append(Line((record.worker_id, 0), "rustray", "stderr", text))
        return lines

    def quiet(self, now: float) -> list[Line]:
        """Return the unfinished lines to which nothing was added for a while."""
        lines: list[Line] = []
        while self._open:
            key, (since, held, record) = next(iter(self._open.items()))
            if now - since < QUIET_S:
                break
            del self._open[key]
            lines += _lines(record, held)
        return lines


def _lines(record: LogRecord, data: bytes) -> list[Line]:
    """Make a line, or parts of a very long one; of what overwrites itself the last is shown."""
    last = data.rstrip(b"\r").rpartition(b"\r")[2]
    parts = [last[low : low + MAX_LINE_BYTES] for low in range(0, len(last), MAX_LINE_BYTES)]
    source, function = (record.worker_id, record.pid), record.function.rpartition(".")[2]
    return [Line(source, function, record.stream, _text(part)) for part in parts or [b""]]


def _text(data: bytes) -> str:
    return clean(data.decode("utf-8", "backslashreplace").replace("\t", "    "))


@dataclass(slots=True)
class _Seen:
    """A line that was shown, and those like it since."""

    since: float
    line: Line
    count: int = 0
    sources: set[tuple[str, int]] = field(default_factory=set)


class Folding:
    """Folds lines that several processes print alike: the first is shown, then how many came.

    As in Ray: lines are alike if they differ only in words with digits; what one process repeats by
    itself is not folded.
    """

    def __init__(self, window_s: float = FOLD_S) -> None:
        self._window_s = window_s
        self._seen: OrderedDict[tuple[str, str], _Seen] = OrderedDict()

    def add(self, line: Line, now: float) -> list[tuple[Line, int]]:
        """Take a line; return what to show: lines, and how often they came (0: this once)."""
        key = (line.stream, _pattern(line.text))
        if not key[1]:
            return [(line, 0)]
        seen = self._seen.get(key)
        if seen is None:
            self._seen[key] = _Seen(now, line, sources={line.source})
            shown = [(line, 0)]
            if len(self._seen) > MAX_FOLDED:
                shown += _told(self._seen.popitem(last=False)[1])
            return shown
        seen.sources.add(line.source)
        if len(seen.sources) == 1:
            return [(line, 0)]
        seen.count += 1
        seen.line = line
        return []

    def due(self, now: float) -> list[tuple[Line, int]]:
        """Return what is to be shown of folded lines whose window is over."""
        return self._take(now - self._window_s, now)

    def rest(self) -> list[tuple[Line, int]]:
        """Return what is left, at the end."""
        return self._take(float("inf"), None)

    def _take(self, until: float, now: float | None) -> list[tuple[Line, int]]:
        shown: list[tuple[Line, int]] = []
        while self._seen:
            key, seen = next(iter(self._seen.items()))
            if seen.since > until:
                break
            del self._seen[key]
            shown += _told(seen)
            if seen.count > 1 and now is not None:  # it goes on, probably
                self._seen[key] = _Seen(now, seen.line, sources=seen.sources)
        return shown


def _told(seen: _Seen) -> list[tuple[Line, int]]:
    """Show what was folded: one as it is, more by their number."""
    return [(seen.line, seen.count if seen.count > 1 else 0)] if seen.count else []


def _pattern(text: str) -> str:
    return " ".join(word for word in text.split() if not _WITH_NUMBER.search(word))


class LineBudget:
    """Lets so many bytes a second pass, and counts the lines that are too many."""

    def __init__(self, bytes_per_s: float = MAX_BYTES_PER_S) -> None:
        self._rate = bytes_per_s
        self._left = bytes_per_s
        self._at = 0.0
        self.dropped = 0

    def take(self, size: int, now: float) -> bool:
        """Whether a line of this size may be shown."""
        self._left = min(self._rate, self._left + max(0.0, now - self._at) * self._rate)
        self._at = now
        if self._left < size:
            self.dropped += 1
            return False
        self._left -= size
        return True


def prefix_of(line: Line, *, names_worker: bool) -> str:
    """Return what stands before a line: ``(square pid=123, worker=w1)``."""
    worker_id, pid = line.source
    words = [line.function or "task"]
    if pid:
        words[0] += f" pid={pid}"
    if names_worker and worker_id:
        words.append(f"worker={worker_id.rpartition('-')[0] or worker_id}")
    return clean(f"({', '.join(words)})")


def shown_lines(
    lines: Iterable[tuple[Line, int]], *, names_worker: bool, colours: frozenset[str]
) -> list[tuple[Stream, str]]:
    """Return lines as they are written: stream, and text without its end."""
    found: list[tuple[Stream, str]] = []
    for line, count in lines:
        prefix = prefix_of(line, names_worker=names_worker)
        more = f" [repeated {count}x across cluster]" if count else ""
        if line.stream in colours:
            prefix = f"\x1b[36m{prefix}\x1b[0m"
            more = f"\x1b[32m{more}\x1b[0m" if more else ""
        found.append((line.stream, f"{prefix} {line.text}{more}"))
    return found
