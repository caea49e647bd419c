"""Nested tasks: each estimate hands in as many batches of samples as its own error asks for."""

import random

import rustray


@rustray.remote
def batch(seed: int, count: int) -> tuple[int, int]:
    """Return (hits, count) of random points in the unit square that lie in the quarter circle."""
    rng = random.Random(seed)
    hits = sum(rng.random() ** 2 + rng.random() ** 2 <= 1.0 for _ in range(count))
    return hits, count


@rustray.remote
def pi(seed: int, tolerance: float) -> tuple[float, int]:
    """Estimate pi: hand in batches until the standard error is small enough."""
    hits = total = rounds = 0
    while True:
        seeds = range(seed + 4 * rounds, seed + 4 * rounds + 4)
        # The task gives back its core while it waits for these.
        for more, count in rustray.get([batch.remote(s, 20_000) for s in seeds]):
            hits, total = hits + more, total + count
        rounds += 1
        share = hits / total
        if 4 * (share * (1 - share) / total) ** 0.5 <= tolerance:
            return 4 * share, total


@rustray.remote
def study(tolerances: list[float]) -> list[tuple[float, int]]:
    """Two levels up: one estimate for each tolerance, all at once."""
    return rustray.get([pi.remote(1_000 * i, t) for i, t in enumerate(tolerances)])


with rustray.init(num_cpus=2):
    tolerances = [0.01, 0.006, 0.004]
    results = rustray.get(study.remote(tolerances))
    for tolerance, (value, samples) in zip(tolerances, results, strict=True):
        assert abs(value - 3.14159) < 5 * tolerance
        print(f"within {tolerance}: {value:.4f} from {samples} samples")
