"""RangeSet against a plain set."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rustray.client.ranges import RangeSet

bounds = st.tuples(st.integers(0, 40), st.integers(0, 10)).map(lambda t: (t[0], t[0] + t[1]))


@given(st.lists(st.tuples(st.booleans(), bounds), max_size=12), bounds)
def test_it_holds_what_a_set_would_hold(
    changes: list[tuple[bool, tuple[int, int]]], asked: tuple[int, int]
) -> None:
    """Count, membership, gaps and iteration agree with a set of the same numbers."""
    ranges, model = RangeSet(), set[int]()
    for is_added, (low, high) in changes:
        if is_added:
            ranges.add(low, high)
            model.update(range(low, high))
        else:
            ranges.discard(low, high)
            model.difference_update(range(low, high))
    assert ranges.count == len(model)
    assert {n for n in range(60) if n in ranges} == model
    assert {n for low, high in ranges for n in range(low, high)} == model
    gaps = list(ranges.gaps(*asked))
    assert all(low < high for low, high in gaps)
    assert [n for low, high in gaps for n in range(low, high)] == [
        n for n in range(*asked) if n not in model
    ]


def test_neighbours_become_one_range() -> None:
    """Ranges that touch are merged, so numbers in order stay one range."""
    ranges = RangeSet()
    for low in range(0, 100, 10):
        ranges.add(low, low + 10)
    assert list(ranges) == [(0, 100)]
