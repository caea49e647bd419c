"""Batch inference over images: a generator task loads them in batches, and labels come as they are.

Run it as it is: it starts a cluster on this machine. It needs numpy only.
"""

from collections.abc import Iterator

import numpy as np

import rustray

SIZE, KINDS = 16, ("dark", "bright", "striped")


def load(number: int) -> np.ndarray:
    """Make an image, where a program of yours would read one."""
    random = np.random.default_rng(number)
    image = random.normal(0.2 if number % 3 == 0 else 0.8, 0.05, (SIZE, SIZE))
    if number % 3 == 2:
        image[::2] = 0.0
    return image


def embed(images: np.ndarray) -> np.ndarray:
    """Describe each image by its brightness and by how much its rows differ; (n, 2)."""
    return np.stack([images.mean((1, 2)), images.mean(2).std(1)], axis=1)


@rustray.remote(generator_backpressure_num_objects=4)
def infer(first: int, last: int, batch: int) -> Iterator[list[tuple[int, str]]]:
    """Label images ``first`` to ``last - 1``, and yield the labels of each batch."""
    centres = np.array([[0.2, 0.0], [0.8, 0.0], [0.4, 0.4]])  # the "model"
    for low in range(first, last, batch):
        numbers = range(low, min(low + batch, last))
        found = embed(np.stack([load(number) for number in numbers]))
        nearest = np.linalg.norm(found[:, None] - centres[None], axis=2).argmin(1)
        yield [(number, KINDS[kind]) for number, kind in zip(numbers, nearest, strict=True)]


def main() -> None:
    """Label 64 images with two generators, and stop a third one early."""
    with rustray.init(num_cpus=2):
        halves = [infer.remote(0, 32, 8), infer.remote(32, 64, 8)]
        labels = [pair for half in halves for batch in half.values() for pair in batch]
        right = sum(KINDS[number % 3] == label for number, label in labels)
        print(f"{len(labels)} images, {right} labelled as they were made")

        # More images than anybody wants: the generator ends when its consumer leaves.
        with infer.remote(0, 10**9, 8) as endless:
            for batch in endless.values():
                striped = [number for number, label in batch if label == "striped"]
                if striped:
                    print(f"the first striped image is {striped[0]}")
                    break


if __name__ == "__main__":
    main()
