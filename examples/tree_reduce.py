"""Tree-reduce: each level takes the references of the one below, and nothing waits here."""

import rustray


@rustray.remote
def load(number: int) -> int:
    return number * number


@rustray.remote
def add(*numbers: int) -> int:
    return sum(numbers)


if __name__ == "__main__":
    with rustray.init():
        level = [load.remote(number) for number in range(1_000)]
        while len(level) > 1:
            level = [add.remote(*level[at : at + 10]) for at in range(0, len(level), 10)]
        total = rustray.get(level[0])
        print("sum of squares:", total)
        assert total == sum(number * number for number in range(1_000))
