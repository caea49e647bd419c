"""A parameter sweep that stops early: the first result that is good enough cancels the rest."""

import time

import rustray

GOOD_ENOUGH = 0.01


@rustray.remote
def train(data: list[float], rate: float) -> tuple[float, float]:
    """Fit a mean by gradient descent; returns (rate, error)."""
    guess, mean = 0.0, sum(data) / len(data)
    for _ in range(50):
        guess -= rate * 2 * (guess - mean)
        time.sleep(0.001)
    return rate, abs(guess - mean)


if __name__ == "__main__":
    with rustray.init():
        data = rustray.put([float(number) for number in range(1_000)])
        rest = [train.remote(data, rate) for rate in (1.1, 0.001, 0.01, 0.1, 0.3, *[0.002] * 50)]
        best = (0.0, float("inf"))
        while rest and best[1] > GOOD_ENOUGH:
            ready, rest = rustray.wait(rest)
            best = min([best, *rustray.get(ready)], key=lambda found: found[1])
        rustray.cancel(rest)
        print(f"rate {best[0]} has the error {best[1]:.2g}; {len(rest)} runs were not needed")
        assert best[1] <= GOOD_ENOUGH
        assert rest
