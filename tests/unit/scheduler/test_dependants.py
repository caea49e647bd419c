"""The edges of a graph, against a dictionary of lists."""

from __future__ import annotations

from random import Random

import pytest

from rustray.scheduler.dependants import Dependants


@pytest.mark.parametrize("seed", range(5))
def test_it_is_a_dictionary_of_lists(seed: int) -> None:
    """Whatever is added and taken: the same, in the same order."""
    random, edges = Random(seed), Dependants[str]()
    known: dict[int, list[tuple[str, int]]] = {}
    for _ in range(2_000):
        place = random.randrange(30)
        if random.random() < 0.8:
            owner, offset = random.choice("abc"), random.randrange(1 << 32)
            edges.add(place, owner, offset)
            known.setdefault(place, []).append((owner, offset))
        else:
            assert edges.of(place) == known.get(place, [])
            assert edges.pop(place) == known.pop(place, [])
        assert edges.count == sum(map(len, known.values()))
        assert bool(edges) == bool(known)
    for place in range(31):
        assert edges.pop(place) == known.pop(place, [])
    assert not edges


def test_who_has_been_told_is_let_go() -> None:
    """A batch whose tasks have got what they waited for is not held by the edges of others."""

    class Owner:
        pass

    edges, owner = Dependants[Owner](), Owner()
    edges.add(0, owner, 1)
    edges.add(1, Owner(), 1)
    edges.pop(0)
    inner = edges._edges
    assert inner is not None
    assert owner not in inner._owners
