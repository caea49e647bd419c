"""Graphs on a cluster over gRPC, whose head is killed in the middle of them."""

from __future__ import annotations

from pathlib import Path

import pytest

import rustray
from helpers.cluster import Cluster
from helpers.waiting import eventually

pytestmark = pytest.mark.slow

_CHAIN = 200
_LEAVES = 2_000
_LAYERS, _WIDTH = 40, 50


@rustray.remote
def leaf(number: int) -> int:
    """Begin."""
    return number


@rustray.remote
def add(*numbers: int) -> int:
    """Go on."""
    return sum(numbers) % 1_000_003


def _layers() -> list[rustray.TaskRef[int]]:
    level = [leaf.remote(number) for number in range(_WIDTH)]
    for _ in range(_LAYERS):
        level = [add.remote(level[at], level[at - 1]) for at in range(_WIDTH)]
    return level


def _layers_here() -> list[int]:
    level = list(range(_WIDTH))
    for _ in range(_LAYERS):
        level = [(level[at] + level[at - 1]) % 1_000_003 for at in range(_WIDTH)]
    return level


def test_graphs_go_on_after_a_kill_of_the_head(tmp_path: Path) -> None:
    """A chain, a task that takes thousands, and layers: all come to what they come to here.

    `benchmarks/large_graphs.py --kill` does so with a million tasks.
    """
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        cluster.start_worker("a", cpus=2)
        with cluster.session():
            chain = [leaf.remote(0)]
            for _ in range(_CHAIN):
                chain.append(add.remote(chain[-1], 1))
            total = add.remote(*[leaf.remote(number) for number in range(_LEAVES)])
            layers = _layers()
            eventually(lambda: chain[_CHAIN // 10].is_done, 20)
            assert not chain[-1].is_done
            cluster.restart_head()
            assert rustray.get(chain[-1], timeout=60) == _CHAIN
            assert rustray.get(total, timeout=60) == sum(range(_LEAVES)) % 1_000_003
            assert rustray.get(layers, timeout=60) == _layers_here()
