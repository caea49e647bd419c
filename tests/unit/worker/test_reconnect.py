"""ReconnectManager: how long to wait before the head is tried again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rustray.worker.reconnect import ReconnectManager


def test_the_ceiling_doubles_up_to_ten_seconds() -> None:
    """0.2 s, doubled with each failure, never above 10 s, for ever."""
    manager = ReconnectManager("w-1")
    ceilings = []
    for _ in range(9):
        ceilings.append(manager.ceiling_s())
        manager.pause_after_failure(0.0)
    assert ceilings == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0]
    for _ in range(5000):
        manager.pause_after_failure(0.0)
    assert manager.ceiling_s() == 10.0


@given(st.text(), st.integers(1, 60))
def test_pauses_lie_below_the_ceiling(seed: str, failures: int) -> None:
    """Full jitter: anything from nothing to the ceiling."""
    manager = ReconnectManager(seed)
    for _ in range(failures):
        ceiling = manager.ceiling_s()
        assert 0 <= manager.pause_after_failure(0.0) < ceiling


def test_workers_spread_out() -> None:
    """Two hundred workers that lose one head do not come back at one moment."""
    pauses = sorted(ReconnectManager(f"w-{i}").pause_after_failure(0.0) for i in range(200))
    assert pauses[20] < 0.04
    assert pauses[180] > 0.16


def test_a_session_that_lasted_starts_the_backoff_anew() -> None:
    """Five seconds of session forgive all failures, a shorter one none."""
    manager = ReconnectManager("w-1")
    for _ in range(4):
        manager.pause_after_failure(0.0)
    manager.session_opened(10.0)
    manager.pause_after_failure(12.0)
    assert manager.attempts == 5
    manager.session_opened(20.0)
    manager.pause_after_failure(25.0)
    assert manager.attempts == 1
