"""Dead letters by request: which ones are meant, a bounded number of them in each call.

Those of a filter are walked through in the order of their ends, from a cursor to a horizon: what
ends while somebody retries is left for the next request. A call looks at a bounded number of tasks,
so that the event loop is free again after some milliseconds, however many there are.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

from rustray.common import ids
from rustray.common.counting import count_refused
from rustray.common.errors import PayloadError, RustRayError, TaskExpired, TaskNotFound
from rustray.head.driver import HeadDriver
from rustray.head.output_service import parse_id
from rustray.rpc.api import (
    LetterAnswer,
    LetterCursor,
    LetterFilter,
    LetterPage,
    LetterVerdict,
)
from rustray.scheduler.commands import RefuseLetters
from rustray.scheduler.events import LetterRange, PurgeRequested, RetryRequested
from rustray.scheduler.letters import letters_in
from rustray.scheduler.records import Batch, Part, StoredOutcome
from rustray.task.state import DEAD_STATES, TaskState
from rustray.task.views import DeadLetter

if TYPE_CHECKING:
    from rustray.head.core import HeadCore
    from rustray.security.roles import Caller

MAX_TASKS: Final = 10_000
"""Dead letters that one call retries or purges, and looks at."""
_RECORD: Final = 9
"""What a look at a record counts beside its tasks: it costs as much as some of them."""
MAX_BATCH_TASKS: Final = 200_000
"""Tasks of all batches that one call touches: to retry one costs a pass over its batch."""
MAX_EXPORTED: Final = 1_000
MAX_CURSOR: Final = 64
MAX_EXPORTED_BYTES: Final = 2 << 20

MayUse = Callable[[bytes], bool]
Kind = type[RetryRequested] | type[PurgeRequested]
_FAMILIES: Final[dict[Kind, str]] = {
    RetryRequested: "retries_refused",
    PurgeRequested: "purges_refused",
}


class Letters:
    """The dead letters that one caller may touch."""

    def __init__(self, driver: HeadDriver, may_use: MayUse) -> None:
        """Look at a head's.

        Args:
            driver: Of the head.
            may_use: Whether the tasks under a prefix are the caller's.
        """
        self._driver = driver
        self._state = driver.scheduler.state
        self._may_use = may_use

    def change(self, where: LetterFilter, cursor: LetterCursor, kind: Kind | None) -> LetterAnswer:
        """Retry or purge dead letters.

        Args:
            where: Which ones.
            cursor: Where to begin.
            kind: The event for what is to be done; None: nothing, they are only counted.
        """
        if where.task_ids:
            return self._change_named(where, self._horizon(cursor), kind)
        walk = _Walk(self._driver, where, cursor, self._horizon(cursor), self._may_use)
        ranges: list[LetterRange] = []
        touched: dict[int, int] = {}
        tasks = 0
        for part, _ in walk:
            batch = part.batch
            ranges.append(LetterRange(batch.prefix, batch.first + part.low, part.count))
            tasks += part.count
            touched[batch.number] = batch.count
            if tasks >= MAX_TASKS or sum(touched.values()) >= MAX_BATCH_TASKS:
                break
        refused, error = 0, None
        for command in self._feed(kind, ranges, walk.horizon):
            refused += command.count
            error = error or command.error
        return LetterAnswer((), tasks - refused, walk.horizon, error, walk.next)

    def _feed(
        self, kind: Kind | None, ranges: list[LetterRange], horizon: int
    ) -> list[RefuseLetters]:
        """Have it done, and return what was refused."""
        if kind is None or not ranges:
            return []
        commands = self._driver.handle(kind(tuple(ranges), horizon))
        return [command for command in commands if isinstance(command, RefuseLetters)]

    def _horizon(self, cursor: LetterCursor) -> int:
        return cursor.horizon or self._state.next_outcome - 1

    # -- by name ---------------------------------------------------------------

    def _find(self, name: str) -> tuple[Batch, int]:
        prefix, sequence = parse_id(name)
        found = self._state.find(prefix, sequence)
        is_own = self._may_use(prefix)
        if found is not None and is_own:
            return found
        if is_own and self._driver.scheduler.has_expired(prefix, sequence):
            kept_s = self._state.settings.result_ttl_s
            raise TaskExpired(
                f"task {name} has ended, and nothing is left of it: it has expired (kept "
                f"{kept_s:g} s, [scheduler] result_ttl_s) or was purged; hand it in again"
            )
        raise TaskNotFound(f"no task {name} of yours is known here")

    def _change_named(self, where: LetterFilter, horizon: int, kind: Kind | None) -> LetterAnswer:
        before: dict[str, int] = {}
        errors: dict[str, RustRayError] = {}
        ranges: list[LetterRange] = []
        for name in where.task_ids:
            try:
                batch, offset = self._find(name)
            except (PayloadError, TaskNotFound) as error:
                errors[name] = error
                if kind is not None:
                    count_refused(self._state.counters, _FAMILIES[kind], error)
                continue
            sequence = batch.first + offset
            plain = ids.task_id(batch.prefix, sequence)
            if plain not in before:
                before[plain] = _number(batch, offset)
                ranges.append(LetterRange(batch.prefix, sequence, 1))
        for command in self._feed(kind, ranges, horizon):
            for number in range(command.first, command.first + command.count):
                errors[ids.task_id(command.prefix, number)] = command.error
        verdicts = tuple(self._verdict(name, before, errors) for name in where.task_ids)
        if kind is None:
            changed = sum(0 < number <= horizon for number in before.values())
        else:
            # A task that was named twice has two verdicts, and has changed once.
            changed = len({_key(one.task_id) for one in verdicts if one.is_changed})
        return LetterAnswer(verdicts, changed, horizon, next(iter(errors.values()), None))

    def _verdict(
        self, name: str, before: dict[str, int], errors: dict[str, RustRayError]
    ) -> LetterVerdict:
        if name in errors:
            return LetterVerdict(name, None, False, errors[name])
        prefix, sequence = ids.split_task_id(name)
        plain = ids.task_id(prefix, sequence)
        number, error = before[plain], errors.get(plain)
        found = self._state.find(prefix, sequence)
        if found is None:  # purged with the last one of its batch
            return LetterVerdict(name, TaskState.FAILED, error is None and number > 0, error)
        is_changed = error is None and number > 0 and _number(*found) != number
        return LetterVerdict(name, TaskState(found[0].state[found[1]]), is_changed, error)

    # -- export ----------------------------------------------------------------

    def export(self, where: LetterFilter, cursor: LetterCursor) -> LetterPage:
        """Return some, bounded in number and bytes; one that is over the bound comes alone."""
        if where.task_ids:
            return self._export_named(where, cursor)
        walk = _Walk(self._driver, where, cursor, self._horizon(cursor), self._may_use)
        letters: list[DeadLetter] = []
        size = 0
        for part, stored in walk:
            for offset in range(part.low, part.high):
                letter = self._letter(part.batch, offset, stored)
                letters.append(letter)
                size += len(letter.failure) + len(letter.arguments or b"")
                if size >= MAX_EXPORTED_BYTES or len(letters) >= MAX_EXPORTED:
                    place = f"{stored.number}.{offset + 1}"
                    return LetterPage(tuple(letters), LetterCursor(place, walk.horizon))
        return LetterPage(tuple(letters), walk.next)

    def _export_named(self, where: LetterFilter, cursor: LetterCursor) -> LetterPage:
        start = _parse(cursor.after)[1]
        named: dict[str, str] = {}
        for name in where.task_ids:
            named.setdefault(_key(name), name)
        names = tuple(named.values())
        letters: list[DeadLetter] = []
        size = 0
        for place in range(start, len(names)):
            if size >= MAX_EXPORTED_BYTES:
                return LetterPage(tuple(letters), LetterCursor(f"0.{place}", cursor.horizon))
            batch, offset = self._find(names[place])
            for _, stored in letters_in(batch, offset, offset + 1):
                if stored is not None:
                    letters.append(self._letter(batch, offset, stored))
                    size += len(letters[-1].failure) + len(letters[-1].arguments or b"")
        return LetterPage(tuple(letters))

    def _letter(self, batch: Batch, offset: int, stored: StoredOutcome) -> DeadLetter:
        index = offset - stored.offset
        task_class = batch.queue.task_class
        clock = self._driver.clock_offset_s
        return DeadLetter(
            ids.task_id(batch.prefix, batch.first + offset),
            task_class.function,
            stored.state,
            task_class.priority,
            stored.attempts,
            stored.worker_id,
            batch.accepted_at_s + clock,
            stored.finished_at_s + clock,
            int(task_class.codec),
            stored.payloads[index],
            None if stored.arguments is None else stored.arguments[index],
        )


class _Walk:
    """The letters that fit, in the order of their ends, until a bounded number was looked at.

    Attributes:
        horizon: Number of the last outcome that is looked at.
        next: Where to go on behind what was yielded last; None at the end.
    """

    def __init__(
        self,
        driver: HeadDriver,
        where: LetterFilter,
        cursor: LetterCursor,
        horizon: int,
        may_use: MayUse,
    ) -> None:
        self.horizon = horizon
        self.next: LetterCursor | None = None
        self._queue = driver.scheduler.state.letters.queue
        self._where = where
        self._states = frozenset(where.states) or DEAD_STATES
        self._ended_by_s = driver.now() - where.min_age_s if where.min_age_s > 0 else math.inf
        self._after = _parse(cursor.after)
        self._may_use = may_use

    def __iter__(self) -> Iterator[tuple[Part, StoredOutcome]]:
        number, offset = self._after
        start = bisect_left(self._queue, number, key=lambda stored: stored.number)
        looked_at = 0
        for stored in list(islice(self._queue, start, start + MAX_TASKS)):
            if stored.number > self.horizon or stored.finished_at_s > self._ended_by_s:
                break
            low = stored.offset
            if stored.number == number:
                low = max(low, offset)
            if self._fits(stored):
                end = stored.offset + len(stored.payloads)
                for part, present in letters_in(stored.batch, low, end) if low < end else ():
                    if present is stored:
                        self.next = LetterCursor(f"{stored.number}.{part.high}", self.horizon)
                        yield part, stored
            looked_at += _RECORD + len(stored.payloads)
            if looked_at >= MAX_TASKS:
                self.next = LetterCursor(f"{stored.number + 1}.0", self.horizon)
                return
        self.next = None

    def _fits(self, stored: StoredOutcome) -> bool:
        if stored.is_evicted or stored.state not in self._states:
            return False
        batch = stored.batch
        if self._where.function and batch.queue.task_class.function != self._where.function:
            return False
        return self._may_use(batch.prefix)


def _number(batch: Batch, offset: int) -> int:
    """Return the number of a dead letter's outcome; 0 for other tasks and expired outcomes."""
    for _, stored in letters_in(batch, offset, offset + 1):
        return stored.number if stored is not None else 0
    return 0


def _key(name: str) -> str:
    """Return what two spellings of a task id have in common."""
    return name.replace("-", "").lower()


def _parse(after: str) -> tuple[int, int]:
    number, dot, offset = after.partition(".")
    if not after:
        return (0, 0)
    is_number = all(n.isascii() and n.isdigit() for n in (number, offset))
    if not (dot and is_number and len(after) <= MAX_CURSOR):
        raise PayloadError(f"{after[:40]!r} is not a cursor of an earlier call")
    return (int(number), int(offset))


class LetterService:
    """The part of HeadService that is about dead letters."""

    _core: HeadCore
    _caller: Caller

    def _letters(self) -> Letters:
        core, caller = self._core, self._caller
        return Letters(core.driver, lambda prefix: core.sessions.may_use(prefix, caller))

    async def retry(
        self, where: LetterFilter, cursor: LetterCursor, dry_run: bool = False
    ) -> LetterAnswer:
        """Make tasks of the caller's dead letters, or only count them."""
        answer = self._letters().change(where, cursor, None if dry_run else RetryRequested)
        await self._core.driver.safe()
        return answer

    async def purge(
        self, where: LetterFilter, cursor: LetterCursor, dry_run: bool = False
    ) -> LetterAnswer:
        """Forget the caller's dead letters, or only count them."""
        answer = self._letters().change(where, cursor, None if dry_run else PurgeRequested)
        await self._core.driver.safe()
        return answer

    async def export(self, where: LetterFilter, cursor: LetterCursor) -> LetterPage:
        """Return some of the caller's dead letters."""
        await self._core.driver.safe()
        return self._letters().export(where, cursor)
