"""What a soak calls flat."""

from __future__ import annotations

import time

from chaos.soak import RESULT_TTL_S, Soak


def a_soak(age_s: float) -> Soak:
    """Return one that began so long ago."""
    return Soak(began_s=time.monotonic() - age_s)


def test_memory_that_grows_is_named() -> None:
    """By the second quarter and the last."""
    soak = a_soak(RESULT_TTL_S + 1)
    for value in (100, 100, 100, 110, 120, 150, 180, 200):
        soak.add("head, start 1", "rss_mb", value)
    assert [(one.name, one.unit) for one in soak.growing()] == [("head, start 1", "rss_mb")]


def test_memory_is_not_judged_while_what_is_kept_has_to_grow() -> None:
    """Before the first result has expired; descriptors and threads are judged from the start."""
    soak = a_soak(RESULT_TTL_S - 60)
    for value in range(8):
        soak.add("head, start 1", "rss_mb", 100.0 * value)
        soak.add("head, start 1", "descriptors", 20.0 * value)
    assert [one.unit for one in soak.growing()] == ["descriptors"]


def test_memory_may_grow_as_what_is_kept_does() -> None:
    """A machine that gets faster has more results at a time; a leak is seen all the same."""
    for values, growing in (((100, 100, 140, 140), 0), ((100, 100, 200, 200), 1)):
        soak = a_soak(RESULT_TTL_S + 1)
        for value, kept in zip(values, (1000, 1000, 1400, 1400), strict=True):
            soak.add("head, start 1", "rss_mb", value, kept)
        assert len(soak.growing()) == growing


def test_what_goes_up_and_down_is_flat() -> None:
    """Within the bounds."""
    soak = a_soak(RESULT_TTL_S + 1)
    for value in (100, 108, 99, 104, 110, 101, 107, 100):
        soak.add("state directory", "files_mb", value)
    assert soak.growing() == []
