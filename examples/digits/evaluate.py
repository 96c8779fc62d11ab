"""How likely a model finds the test part of the digits, and how well it tells them apart."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.digits.data import LEVELS, NAMES, Digits, parts
from nflib.io import write_json
from nflib.metrics import bootstrap
from video.pipeline import Pipeline


def log_probabilities(pipeline: Pipeline, part: Digits, prompts: list[str], draws: int, seed: int = 0) -> Tensor:
    """What `Pipeline.log_prob` gives of each picture, dequantised so many times: ``(draws, N)``, nats."""
    pictures = part.pictures()
    return torch.stack([pipeline.log_prob(pictures, prompts, seed=seed + draw) for draw in range(draws)])


def evaluate(model: Path, output: Path | None = None, draws: int = 16) -> dict[str, Any]:
    """Bits per dimension of the test part, and the share of its pictures most likely under their own class.

    Args:
        model: the folder of a pipeline of dequantised digits, or the name of a shipped one.
        output: a JSON file of what is found.
        draws: of the noise of dequantisation.

    Returns:
        Bits per dimension of the 17-level pixels given the class, of uniformly dequantised pictures, with the standard
        error over pictures; the tighter bound that the mean of the density over the draws gives; the same bits without
        a class; and the share.

    Raises:
        FileNotFoundError, ValueError: there is no such model, one that is not of such pixels, or no draw.
        OSError: the file cannot be written.
    """
    if draws < 1:
        raise ValueError(f"draws must be a positive number, got {draws}.")
    pipeline, test = Pipeline.load(model), parts()["test"]
    if pipeline.settings.levels != LEVELS:
        raise ValueError(f"{model} is no model of dequantised pixels of {LEVELS} levels.")
    scale = test.levels.shape[1] * math.log(2)
    given = log_probabilities(pipeline, test, test.prompts(), draws)
    classes = [log_probabilities(pipeline, test, [name] * len(test.labels), 1)[0] for name in NAMES]
    bits = bootstrap(lambda values: float(values.mean()), -given.mean(0) / scale)
    found = {
        "bits_per_dimension": bits.summary(),
        "bits_per_dimension_by_mean_density": float(-(given.logsumexp(0) - math.log(draws)).mean() / scale),
        "bits_per_dimension_without_class": float(
            -log_probabilities(pipeline, test, [""] * len(test.labels), draws).mean() / scale
        ),
        "share_most_likely_under_own_class": float((torch.stack(classes).argmax(0) == test.labels).float().mean()),
        "levels": LEVELS,
        "pictures": len(test.labels),
        "draws": draws,
    }
    if output is not None:
        write_json(output, found)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return found
