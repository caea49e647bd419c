"""Map-reduce: count words in texts, in two stages that the cluster wires together."""

from collections import Counter

import rustray

TEXTS = [f"the quick brown fox {n} jumps over the lazy dog the end" for n in range(40)]
PARTS = 4


@rustray.remote(num_returns=PARTS)
def count(text: str) -> list[Counter[str]]:
    """Count one text's words, parted by their first letter: each part goes to another reducer."""
    parts: list[Counter[str]] = [Counter() for _ in range(PARTS)]
    for word in text.split():
        parts[ord(word[0]) % PARTS][word] += 1
    return parts


@rustray.remote
def merge(*counts: Counter[str]) -> Counter[str]:
    """Add up what the mappers found of one part."""
    return sum(counts, Counter())


if __name__ == "__main__":
    with rustray.init():
        mapped = [count.remote(text) for text in TEXTS]
        reduced = [merge.remote(*part) for part in zip(*mapped, strict=True)]
        words = sum(rustray.get(reduced), Counter())
        print(words.most_common(2))
        assert words["the"] == 3 * len(TEXTS)
