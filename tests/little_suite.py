"""Two toy tasks for the tests of the commands: bright images are dogs, dark ones are cats. Images of 8 x 8 pixels."""

import numpy as np

from minflamingo.evaluation.task import Example, Task, Template

OPENED = []  # the split of each image that was opened


def example(split: str, i: int) -> Example:
    def media() -> np.ndarray:
        OPENED.append(split)
        rng = np.random.default_rng(i + 1000 * (split == "test"))
        return rng.integers(128 * (i % 2), 128 * (i % 2) + 128, (8, 8, 3), dtype=np.uint8)

    return Example(f"{split}-{i}", media, (("cat", "dog")[i % 2],))


def suite(split: str, queries: int) -> dict[str, Task]:
    shots, asked = [example("train", i) for i in range(16)], [example(split, i) for i in range(queries)]
    choices = [Example(e.key, e.media, (("yes", "no")[i % 2],), {}, ("yes", "no")) for i, e in enumerate(asked)]
    return {
        "named": Task("named", shots, asked, Template("Output:"), "exact_match", max_new_tokens=4),
        "chosen": Task("chosen", shots, choices, Template("Output:"), "accuracy"),
    }
