"""Graphs on a cluster over gRPC, whose head is killed in the middle of them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import rustray
from helpers.cluster import Cluster

pytestmark = pytest.mark.slow

_CHAIN = 100
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


@rustray.remote
def hold(path: str, number: int) -> int:
    """Go on when a file is there."""
    while not Path(path).exists():
        time.sleep(0.01)  # the task's work
    return number


def _layers(gate: rustray.TaskRef[int]) -> list[rustray.TaskRef[int]]:
    level = [leaf.remote(number) for number in range(_WIDTH)]
    for depth in range(_LAYERS):
        more = [gate] if depth == _LAYERS // 2 else []
        level = [add.remote(level[at], level[at - 1], *more) for at in range(_WIDTH)]
    return level


def _layers_here() -> list[int]:
    level = list(range(_WIDTH))
    for _ in range(_LAYERS):
        level = [(level[at] + level[at - 1]) % 1_000_003 for at in range(_WIDTH)]
    return level


def test_graphs_go_on_after_a_kill_of_the_head(tmp_path: Path) -> None:
    """A chain, a task that takes thousands, and layers: all come to what they come to here.

    About half of each is done when the head dies.
    `benchmarks/large_graphs.py --kill` does so with a million tasks.
    """
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        cluster.start_worker("a", cpus=2)
        with cluster.session():
            gate = hold.remote(str(tmp_path / "go"), 0)
            chain = [leaf.remote(0)]
            for number in range(_CHAIN):
                more = [gate] if number == _CHAIN // 2 else []
                chain.append(add.remote(chain[-1], 1, *more))
            total = add.remote(gate, *[leaf.remote(number) for number in range(_LEAVES)])
            layers = _layers(gate)
            assert rustray.get(chain[_CHAIN // 2], timeout=60) == _CHAIN // 2
            cluster.restart_head()
            (tmp_path / "go").touch()
            assert rustray.get(chain[-1], timeout=60) == _CHAIN
            assert rustray.get(total, timeout=60) == sum(range(_LEAVES)) % 1_000_003
            assert rustray.get(layers, timeout=60) == _layers_here()
