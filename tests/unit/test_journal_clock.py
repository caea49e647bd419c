"""Heads that start one after the other while the wall clock jumps in between (F23)."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from helpers.scheduling import PREFIX, Bench
from rustray.head.core import Start
from rustray.head.journal_store import JournalStore
from rustray.scheduler import commands as c
from rustray.scheduler import events as e
from rustray.task.columns import PayloadColumn
from rustray.task.frames import Outcome
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState

YEAR = 365 * 86_400.0
NOW = 1_800_000_000.0
DAY = 86_400.0


class Heads:
    """One journal, and heads that start with it at any time of the clock."""

    def __init__(self, place: Path) -> None:
        self._path = place / "journal.db"
        self.now_s = NOW

    def run(self, *commands: c.JournalCommand, lasts_s: float = 0.0) -> tuple[Start, object]:
        """Start a head, let it commit something at its end, and stop it."""
        store = JournalStore(self._path, "process", lambda: self.now_s)
        found = store.load(22.0)
        self.now_s += lasts_s
        if commands:
            store.commit(commands)
        store.close()
        return Start(store.epoch_ms, is_first=store.starts == 1), found


def _batch(number: int) -> c.PersistBatch:
    return c.PersistBatch(
        number, PREFIX, 10 * number, TaskClass("f"), PayloadColumn.of([b"x"]), True
    )


def _outcome(number: int) -> c.PersistOutcome:
    outcome = Outcome(10 * number, TaskState.SUCCEEDED, PayloadColumn.of([b"y"]), "w-1", 1)
    return c.PersistOutcome(number, number, 0, outcome)


@pytest.mark.parametrize("jump_s", [-60.0, -3600.0, -10 * YEAR])
def test_a_clock_that_was_set_back_gives_no_number_out_again(tmp_path: Path, jump_s: float) -> None:
    """Leases and revisions of the new head are above a thousand a second of the old one's.

    One more than the old head's start (which came of a clock that says less) is not enough: the old
    one has given out more than the 16,384 leases and 4,096 revisions of one millisecond.
    """
    heads = Heads(tmp_path)
    first, _ = heads.run(_batch(1), lasts_s=7200.0)
    heads.now_s += jump_s - 7200.0
    for number in (2, 3):
        second, _ = heads.run(_batch(number), lasts_s=10.0)
        assert second.first_lease > first.first_lease + 7200 * 1_000_000
        assert (second.epoch_ms << 12) > (first.epoch_ms << 12) + 7200 * 1_000_000
        first = second


def test_a_year_ahead_deletes_nothing_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What a day's clock would keep is there for an hour, and the head says what it believes."""
    heads = Heads(tmp_path)
    heads.run(_batch(1), _outcome(1), lasts_s=60.0)
    heads.now_s += YEAR
    _, found = heads.run()
    assert isinstance(found, e.StateRecovered)
    assert found.outcomes[0].age_s == pytest.approx(YEAR)
    assert "365.0 days ago" in caplog.text
    assert "set the clock" in caplog.text

    bench = Bench(result_ttl_s=DAY)
    bench.feed(found)
    bench.pass_time(3599.0)
    assert bench.scheduler.task(PREFIX, 10) is not None
    bench.pass_time(2.0)
    assert bench.scheduler.task(PREFIX, 10) is None

    heads.now_s -= YEAR
    _, found = heads.run()
    assert isinstance(found, e.StateRecovered)
    assert found.outcomes[0].age_s == pytest.approx(0.0, abs=61.0)


def test_a_small_step_back_is_not_told_as_hours_at_later_restarts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The epoch stays ahead of a clock that a time server sets back by seconds; that is no jump."""
    heads = Heads(tmp_path)
    heads.run(_batch(1), lasts_s=60.0)
    heads.now_s -= 2.0
    heads.run(_batch(2), lasts_s=60.0)
    assert "2 s after" in caplog.text
    caplog.clear()
    for number in (3, 4):
        heads.now_s += 30.0
        heads.run(_batch(number), lasts_s=60.0)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_an_ordinary_restart_warns_of_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither at once, nor after a night."""
    heads = Heads(tmp_path)
    heads.run(_batch(1), lasts_s=60.0)
    for pause_s in (0.01, 8 * 3600.0):
        heads.now_s += pause_s
        heads.run(_outcome(1) if pause_s > 1 else _batch(2))
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_head_that_restarts_within_the_hour_is_as_careful_as_the_one_before(
    tmp_path: Path,
) -> None:
    """What a head writes at a wrong time does not make that time the right one."""
    heads = Heads(tmp_path)
    heads.run(_batch(1), _outcome(1), lasts_s=60.0)
    heads.now_s += YEAR
    heads.run(_batch(2), lasts_s=60.0)
    for number in (3, 4):
        heads.now_s += 600.0
        _, found = heads.run(_batch(number))
        assert isinstance(found, e.StateRecovered)
        bench = Bench(result_ttl_s=DAY)
        bench.feed(found)
        bench.pass_time(60.0)
        assert bench.scheduler.task(PREFIX, 10) is not None
    heads.now_s += 3000.0
    _, found = heads.run()
    assert isinstance(found, e.StateRecovered)
    assert found.is_clock_sure, "people had their hour"


def test_heads_that_restart_often_still_delete_what_is_old(tmp_path: Path) -> None:
    """Regression: each start kept all of it for its time to live anew."""
    heads = Heads(tmp_path)
    heads.run(_batch(1), _outcome(1))
    heads.now_s += 250.0
    heads.run(_batch(2), _outcome(2))
    _, found = heads.run()
    bench = Bench(result_ttl_s=300.0)
    bench.feed(found)  # type: ignore[arg-type]
    assert bench.scheduler.task(PREFIX, 10) is not None
    bench.pass_time(51.0)
    assert bench.scheduler.task(PREFIX, 10) is None
    assert bench.scheduler.task(PREFIX, 20) is not None
