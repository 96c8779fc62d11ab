"""scikit-learn's handwritten digits, 1,797 pictures of 8 × 8 pixels and 17 levels, in fixed parts and as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

LEVELS = 17
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# How many pictures of each class are kept to test, and to validate.
TEST, VALIDATION = 30, 20


class Digits(NamedTuple):
    """levels: ``(N, 64)``, numbers 0 … 16 of rows of pixels; labels: ``(N,)``."""

    levels: Tensor
    labels: Tensor

    def pictures(self) -> Tensor:
        """As a pipeline takes them: clips of one frame ``(N, 1, 1, 8, 8)`` in -1 … 1."""
        return (self.levels / ((LEVELS - 1) / 2) - 1).view(-1, 1, 1, 8, 8)

    def prompts(self) -> list[str]:
        """Their classes in words."""
        return [NAMES[label] for label in self.labels.tolist()]


def parts() -> dict[str, Digits]:
    """ "train", "validation" and "test": always the same pictures, as many of each class in the last two."""
    from sklearn.datasets import load_digits

    data = load_digits()
    levels, labels = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    rows: dict[str, list[Tensor]] = {"test": [], "validation": [], "train": []}
    for label in range(len(NAMES)):
        of_class = order[labels[order] == label]
        sizes = [TEST, VALIDATION, len(of_class) - TEST - VALIDATION]
        for chosen, some in zip(rows.values(), of_class.split(sizes), strict=True):
            chosen.append(some)
    return {name: Digits(levels[torch.cat(chosen)], labels[torch.cat(chosen)]) for name, chosen in rows.items()}


def write(output: Path) -> None:
    """Write grey PNGs: output/learn (training and validation) and output/test, each of a folder for each class.

    Level k of 0 … 16 is the grey 255 k / 16, rounded, from which it is read again.

    Raises:
        OSError: they cannot be written.
    """
    from PIL import Image

    for name, part in parts().items():
        folder = output / ("test" if name == "test" else "learn")
        grey = (part.levels * 255 / (LEVELS - 1)).round().byte().view(-1, 8, 8).numpy()
        for number, (pixels, prompt) in enumerate(zip(grey, part.prompts(), strict=True)):
            (folder / prompt).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / prompt / f"{name}-{number:04}.png")
