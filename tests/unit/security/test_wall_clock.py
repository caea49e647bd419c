"""Unix time over jumps of the wall clock (F23)."""

from __future__ import annotations

import asyncio
import logging

import pytest

from rustray.head.driver import HeadDriver
from rustray.head.journal import MemoryJournal
from rustray.head.notifications import NotificationManager
from rustray.scheduler.scheduler import Scheduler
from rustray.security.wall_clock import FOLLOWED_S, LASTING_S, WallClock, unix_s

YEAR = 365 * 86_400.0


class Hands:
    """Both clocks of a machine, moved by the test."""

    def __init__(self) -> None:
        self.wall_s, self.elapsed_s = 1_800_000_000.0, 500.0
        self.clock = WallClock(lambda: self.wall_s, lambda: self.elapsed_s)

    def pass_s(self, seconds: float) -> None:
        """Let time go by."""
        self.wall_s += seconds
        self.elapsed_s += seconds


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0, 10 * YEAR, -10 * YEAR])
def test_a_jump_changes_nothing_until_it_has_lasted(
    jump_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Time goes on as before, is followed after an hour, and both are said once."""
    hands = Hands()
    start = hands.clock()
    hands.wall_s += jump_s
    for _ in range(59):
        hands.pass_s(LASTING_S / 60)
        assert hands.clock() == pytest.approx(start + hands.elapsed_s - 500.0)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"{jump_s:+.0f} s" in caplog.text
    hands.pass_s(LASTING_S / 30)
    hands.clock()
    assert hands.clock() == pytest.approx(hands.wall_s)
    assert len(caplog.records) == 2


async def test_a_head_follows_a_clock_that_was_set_right_for_deadlines_too() -> None:
    """Not for ever by the clock of its start, as if the machine had been right when it booted."""
    loop = asyncio.get_running_loop()
    driver = HeadDriver(Scheduler(), NotificationManager(), MemoryJournal(), loop)
    assert driver.wall_clock is unix_s
    hands = Hands()
    driver.wall_clock = hands.clock
    hands.wall_s += 7200.0
    assert driver.time_left_s(hands.wall_s + 60.0) == pytest.approx(7260.0)
    hands.pass_s(LASTING_S)
    driver.time_left_s(1.0)
    assert driver.time_left_s(hands.wall_s + 60.0) == pytest.approx(60.0)
    assert driver.time_left_s(0.0) is None


def test_a_jump_that_is_mended_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    """Back again, and away again: the time that must pass begins anew."""
    hands = Hands()
    for _ in range(3):
        hands.wall_s += YEAR
        hands.clock()
        hands.pass_s(LASTING_S - 60)
        right = hands.wall_s - YEAR
        assert hands.clock() == pytest.approx(right)
        hands.wall_s -= YEAR
        assert hands.clock() == pytest.approx(right)
    assert len(caplog.records) == 3


def test_both_times_are_good_while_they_differ_and_for_a_while_after() -> None:
    """That of before, then that of after first; the other one ends an hour after the change."""
    hands = Hands()
    hands.wall_s -= 7200.0
    hands.clock()
    assert hands.clock.moments() == pytest.approx((hands.wall_s + 7200.0, hands.wall_s))
    hands.pass_s(LASTING_S)
    hands.clock()
    assert hands.clock.moments() == pytest.approx((hands.wall_s, hands.wall_s + 7200.0))
    hands.pass_s(LASTING_S - 1.0)
    hands.wall_s += 0.5
    assert len(hands.clock.moments()) == 2
    hands.pass_s(2.0)
    assert hands.clock.moments() == pytest.approx((hands.wall_s,))


def test_there_is_one_time_while_nothing_jumps() -> None:
    """Small steps leave no second one behind."""
    hands = Hands()
    for step_s in (0.0, 5.0, -5.0, 0.0):
        hands.wall_s += step_s
        assert hands.clock.moments() == pytest.approx((hands.wall_s,))
        assert len(hands.clock.moments()) == 1


def test_small_steps_are_followed_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """As a time server makes them; however many."""
    hands = Hands()
    for step_s in (FOLLOWED_S, -FOLLOWED_S / 2, FOLLOWED_S, 0.1):
        hands.wall_s += step_s
        assert hands.clock() == pytest.approx(hands.wall_s)
    assert not caplog.records


def test_a_second_jump_begins_the_wait_anew() -> None:
    """A clock that wanders is not followed until it stays somewhere."""
    hands = Hands()
    hands.wall_s += 1000.0
    hands.clock()
    hands.pass_s(LASTING_S - 1)
    hands.wall_s += 1000.0
    hands.clock()
    hands.pass_s(LASTING_S - 1)
    assert hands.clock() == pytest.approx(hands.wall_s - 2000.0)
    hands.pass_s(2.0)
    hands.clock()
    assert hands.clock() == pytest.approx(hands.wall_s)
