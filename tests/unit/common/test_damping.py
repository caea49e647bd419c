"""What is told of a state that comes and goes."""

from __future__ import annotations

from rustray.common.damping import Damper


def test_a_state_that_flaps_is_told_once_in_a_while() -> None:
    """Bug: a worker whose disk was a little slow logged twice a second that it was full."""
    damper = Damper(30.0)
    changes = [(0.0, True), (1.0, False), (2.0, True), (3.0, False), (31.0, True), (90.0, False)]
    assert [damper.tells(is_there, now) for now, is_there in changes] == [
        True,
        True,
        False,
        False,
        True,
        True,
    ]
