"""How many calls of an `Executor` may be with the cluster at once."""

from __future__ import annotations

import functools

from rustray.client.windows import FULL, Window, Windows, kind_of


class Counter:
    """Has methods, and can be called."""

    def count(self) -> int:
        """Count to one."""
        return 1

    def __call__(self) -> int:
        """Count to two."""
        return 2


def _used(slots: int, *, is_strict: bool = False) -> Window:
    window = Window(slots, is_strict)
    window.restart(0.0)
    return window


def _fill(windows: Windows, kind: str, now: float = 0.0) -> int:
    """Hand over calls of one function while there is room; return how many."""
    window, count = windows.window_of(kind), 0
    while windows.load < FULL:
        if not window.in_flight:
            window.restart(now)
        windows.begin(window)
        count += 1
    return count


def _make_quick(windows: Windows, kind: str) -> Window:
    """Open a window wide: all calls end at once."""
    window = windows.window_of(kind)
    for _ in range(8):
        for _ in range(_fill(windows, kind)):
            windows.end(window, 0.0)
    return window


def test_a_window_follows_the_speed_of_the_calls() -> None:
    """It doubles while calls are fast, halves while they are slow, never below twice the slots."""
    window = _used(2)
    for _ in range(4 + 8 + 16):
        window.ended(0.01)
    assert window.size == 32
    now = 0.01
    for _ in range(200):
        now += 0.1
        window.ended(now)
    assert window.size == 4


def test_a_window_does_not_wait_for_a_slow_windowful_to_shrink() -> None:
    """The first calls that show that they are slow now are enough."""
    window = _used(2)
    for _ in range(4 + 8 + 16 + 32 + 64 + 128):
        window.ended(0.01)
    assert window.size == 256
    window.ended(0.15)
    window.ended(0.3)
    assert window.size == 4


def test_a_window_begins_anew_after_a_pause() -> None:
    """What comes then may be slow; after a short one what was measured holds."""
    window = _used(2)
    for _ in range(2_000):
        window.ended(0.01)
    size = window.size
    window.restart(0.1)
    assert window.size == size > 4
    window.restart(0.5)
    assert window.size == 4


def test_a_strict_window_stays_what_it_is() -> None:
    """However fast calls are, no more than the slots are handed over, of all functions."""
    windows = Windows(3, is_strict=True)
    assert _make_quick(windows, "quick").size == 3
    assert _fill(windows, "quick") == 3
    assert _fill(windows, "other") == 0


def test_a_floor_above_the_widest_window_stays() -> None:
    """A cluster of very many slots gets at least twice as many calls, quick ones too."""
    window = _used(10_000)
    for _ in range(20_000):
        window.ended(0.01)
    assert window.size == 20_000


def test_functions_share_the_cluster() -> None:
    """Half full of quick calls, there is room for half of a window of slow ones."""
    windows = Windows(2, is_strict=False)
    quick = _make_quick(windows, "quick")
    for _ in range(quick.size // 2):
        windows.begin(quick)
    assert _fill(windows, "slow") == 2
    assert _fill(windows, "third") == 0


def test_all_calls_ended_leave_no_load() -> None:
    """Windows that change their size under way take off what they have put on."""
    windows = Windows(3, is_strict=False)
    for kind, step_s in (("quick", 0.0), ("slow", 0.07), ("quick", 0.2)):
        window, now = windows.window_of(kind), 0.0
        for _ in range(5):
            for _ in range(_fill(windows, kind, now)):
                now += step_s
                windows.end(window, now)
    assert windows.load == 0


def test_idle_windows_are_forgotten_before_there_are_too_many() -> None:
    """A program may make functions without end; those with calls under way are kept."""
    windows = Windows(2, is_strict=False)
    busy = windows.window_of("busy")
    windows.begin(busy)
    for number in range(5_000):
        windows.window_of(number)
    assert len(windows._by_kind) <= 1_024
    assert windows.window_of("busy") is busy


def test_calls_of_one_line_are_of_one_kind() -> None:
    """Lambdas, methods and partials are new objects each time; callables count by their class."""

    def made(n: int) -> object:
        return kind_of(lambda: n)

    assert made(1) == made(2) != kind_of(lambda: 1)
    assert kind_of(Counter().count) == kind_of(Counter().count) == kind_of(Counter.count)
    assert kind_of(functools.partial(Counter().count)) == kind_of(Counter.count)
    assert kind_of(Counter()) == kind_of(Counter()) != kind_of(Counter().count)
    assert kind_of("a".join) == kind_of("b".join) != kind_of("a".split)
