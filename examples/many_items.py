"""A function over many items: lazily, with errors where they belong, and with a bar.

python many_items.py
"""

import itertools
import math
import random

import rustray


def hits(seed: int) -> int:
    """Throw 1,000 darts at a square, and count those that hit the circle in it."""
    throw = random.Random(seed).random
    return sum(math.hypot(throw(), throw()) < 1 for _ in range(1_000))


def ratio(line: str) -> float:
    """Parse a line of two numbers."""
    a, b = line.split("/")
    return int(a) / int(b)


def is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


with rustray.init():
    # A million darts in a thousand items; the bar is there if a person looks.
    results = rustray.map(hits, range(1_000), ordered=False)
    total = sum(rustray.progress(results, desc="darts"))
    print(f"pi is about {4 * total / 1_000_000:.2f}")

    # Errors by item: the others have their results.
    lines = ["6/3", "1/0", "seven", "9/3"]
    for found in rustray.map(ratio, lines, return_exceptions=True):
        if isinstance(found, rustray.RustRayError):
            print(f"line {found.item_index}: {found}")
        else:
            print(found)

    # An endless input is read as far as the answer needs: leaving the loop ends the work.
    numbers = itertools.count(1_000_000)
    for number, prime in zip(itertools.count(1_000_000), rustray.map(is_prime, numbers)):
        if prime:
            print("the first prime above a million is", number)
            break

    # The standard library's way.
    with rustray.Pool() as pool:
        print(pool.starmap(math.gcd, [(12, 18), (35, 49), (8, 9)]))
