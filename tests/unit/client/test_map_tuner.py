"""Chunk size and prefetch of a map: pure numbers from measured ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustray.client.map_tuner import (
    GROWTH,
    MAX_AHEAD,
    MAX_ITEMS,
    MIN_AHEAD,
    TARGET_BYTES,
    TARGET_S,
    ChunkTuner,
)

_MEASURED = st.tuples(
    st.integers(1, MAX_ITEMS),
    st.floats(0, 1e4),
    st.integers(0, 1 << 30),
    st.floats(0, 1e4),
)


def _settle(tuner: ChunkTuner, item_s: float, item_bytes: int = 4, chunks: int = 20) -> int:
    """Run so many chunks of items that take so long each; returns the size."""
    for _ in range(chunks):
        run_s = tuner.size * item_s
        tuner.ended(tuner.size, run_s, tuner.size * item_bytes, run_s + 0.001)
    return tuner.size


def test_tiny_items_travel_by_the_ten_thousand_after_four_chunks() -> None:
    """From one item it goes up sixteenfold at each chunk."""
    tuner = ChunkTuner()
    sizes = []
    for _ in range(5):
        sizes.append(tuner.size)
        tuner.ended(tuner.size, tuner.size * 1e-6, tuner.size, 0.001)
    assert sizes == [1, 16, 256, 4096, 50_000]


@pytest.mark.parametrize("item_s", [1e-5, 1e-4, 1e-3, 0.01])
def test_a_chunk_takes_about_the_target(item_s: float) -> None:
    """Whatever an item takes below it, a chunk of them takes fifty milliseconds."""
    size = _settle(ChunkTuner(), item_s)
    assert 0.7 * TARGET_S <= size * item_s <= 1.01 * TARGET_S


def test_items_that_take_longer_than_the_target_travel_alone() -> None:
    """There is nothing to be won by putting them together."""
    assert _settle(ChunkTuner(), 1.0) == 1


def test_big_items_keep_chunks_small() -> None:
    """Arguments and results of a chunk stay below what the head keeps in files."""
    assert _settle(ChunkTuner(), 1e-6, item_bytes=4096) * 4096 <= TARGET_BYTES


def test_a_slow_first_item_is_soon_forgotten() -> None:
    """A function that imports something at its first call is not slow."""
    tuner = ChunkTuner()
    tuner.ended(1, 0.5, 10, 0.6)
    assert tuner.size == 1
    assert _settle(tuner, 1e-6, chunks=16) > 10_000


def test_items_that_become_slow_shrink_the_chunks() -> None:
    """Half of the way at each chunk."""
    tuner = ChunkTuner()
    _settle(tuner, 1e-6)
    tuner.ended(10, 1.0, 100, 1.1)  # ten of them took a second: the rest was given back
    assert tuner.size <= 1


def test_a_short_last_chunk_does_not_shrink_the_next() -> None:
    """What a slow source gave is no reason for small chunks."""
    tuner = ChunkTuner()
    size = _settle(tuner, 1e-6)
    tuner.ended(1, 1e-6, 4, 0.001)
    assert tuner.size >= size // 2


def test_a_fixed_size_stays() -> None:
    """Whatever is measured."""
    tuner = ChunkTuner(7)
    _settle(tuner, 1e-6)
    assert tuner.size == 7


@pytest.mark.parametrize("size", [0, -1, True])
def test_a_fixed_size_is_a_number_of_items(size: int) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        ChunkTuner(size)


def test_prefetch_hides_the_way() -> None:
    """Two chunks a slot where the way is short, more where it is long compared with the work."""
    near, far = ChunkTuner(), ChunkTuner()
    for tuner, way_s in ((near, 0.001), (far, 0.2)):
        for _ in range(20):
            run_s = tuner.size * 1e-4
            tuner.ended(tuner.size, run_s, tuner.size, run_s + way_s)
    assert near.prefetch(4) == 8
    assert 4 * 4 < far.prefetch(4) <= 4 * MAX_AHEAD


def test_waiting_behind_own_chunks_does_not_deepen_the_queue() -> None:
    """The shortest way counts: longer ones are of our own making."""
    tuner = ChunkTuner(10)
    tuner.ended(10, 0.05, 10, 0.051)
    before = tuner.prefetch(2)
    for waited_s in (0.1, 1.0, 10.0):
        tuner.ended(10, 0.05, 10, 0.051 + waited_s)
    assert tuner.prefetch(2) == before


@given(st.lists(_MEASURED, max_size=30), st.integers(0, 1000))
def test_whatever_is_measured_the_numbers_stay_in_their_bounds(
    measured: list[tuple[int, float, int, float]], slots: int
) -> None:
    """Size and prefetch are positive and bounded, and grow sixteenfold at most."""
    tuner = ChunkTuner()
    for items, run_s, data_bytes, turnaround_s in measured:
        before = tuner.size
        tuner.ended(items, run_s, data_bytes, turnaround_s)
        assert 1 <= tuner.size <= MAX_ITEMS
        assert tuner.size <= max(before, items * GROWTH)
        ahead = tuner.prefetch(slots) // max(slots, 1)
        assert MIN_AHEAD <= ahead <= MAX_AHEAD
