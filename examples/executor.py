"""What the standard library taught people: a concurrent.futures.Executor."""

from concurrent.futures import as_completed

import rustray


def square(x: int) -> int:
    return x * x


with rustray.Executor() as ex:
    print(ex.submit(pow, 2, 10).result())
    print(sum(ex.map(square, range(1000), chunksize=100)))
    futures = [ex.submit(square, i) for i in range(5)]
    print(sorted(future.result() for future in as_completed(futures)))
