"""Tiled Cholesky factorisation: a graph with four kinds of tasks, checked against numpy.

Needs numpy. The loops only say which tile takes which: all of the work, and all of the waiting, is
in the cluster.
"""

from typing import Any

import numpy as np

import rustray

TILES, SIZE = 6, 64


@rustray.remote
def factor(tile: Any) -> Any:
    """Factorise a tile of the diagonal."""
    return np.linalg.cholesky(tile)


@rustray.remote
def solve(lower: Any, tile: Any) -> Any:
    """Solve for a tile below the diagonal."""
    return np.linalg.solve(lower, tile.T).T


@rustray.remote
def update(tile: Any, left: Any, right: Any) -> Any:
    """Take what two tiles of a column are worth out of a third."""
    return tile - left @ right.T


def cholesky(tiles: dict[tuple[int, int], Any]) -> dict[tuple[int, int], Any]:
    """Hand in the graph; returns references to the lower tiles."""
    for k in range(TILES):
        tiles[k, k] = factor.remote(tiles[k, k])
        for i in range(k + 1, TILES):
            tiles[i, k] = solve.remote(tiles[k, k], tiles[i, k])
        for i in range(k + 1, TILES):
            for j in range(k + 1, i + 1):
                tiles[i, j] = update.remote(tiles[i, j], tiles[i, k], tiles[j, k])
    return tiles


if __name__ == "__main__":
    with rustray.init():
        side = TILES * SIZE
        square = np.random.default_rng(1).random((side, side))
        matrix = square @ square.T + side * np.eye(side)
        lower = [(i, j) for i in range(TILES) for j in range(i + 1)]
        found = cholesky(
            {
                (i, j): rustray.put(matrix[i * SIZE : (i + 1) * SIZE, j * SIZE : (j + 1) * SIZE])
                for i, j in lower
            }
        )
        tiles = rustray.get([found[place] for place in lower])
        result = np.zeros_like(matrix)
        for (i, j), tile in zip(lower, tiles, strict=True):
            result[i * SIZE : (i + 1) * SIZE, j * SIZE : (j + 1) * SIZE] = tile
        error = float(np.abs(result - np.linalg.cholesky(matrix)).max())
        print(f"{side} x {side} in {TILES} x {TILES} tiles: differs from numpy by {error:.1e}")
        assert error < 1e-8
