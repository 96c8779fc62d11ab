"""How good a pipeline is, in figures with standard errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nflib.metrics import (
    Estimate,
    auroc,
    bootstrap,
    frechet_distance,
    grouped_jackknife,
    kernel_distance,
    precision_recall,
)
from video.evaluation.scores import HeldOutScores, Scores
from video.pipeline import Pipeline

NEIGHBOURS = 3
DISTANCES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "frechet_distance": frechet_distance,
    "kernel_distance": kernel_distance,
    "precision": lambda real, made: precision_recall(real, made, NEIGHBOURS).precision,
    "recall": lambda real, made: precision_recall(real, made, NEIGHBOURS).recall,
}
# The model's own clips, by name.
OWN = ("held-out", "samples")
# Fewer clips than this of a class give no distance that means something.
FEWEST = 10


@dataclass
class Judgement:
    """The result of `judge`: figures of a model, each an `Estimate` with its standard error.

    Args:
        quantity: what the densities are of.
        num_clips: held-out clips, and as many samples.
        bits_per_dim: of "held-out", "samples" and any others, by name.
        distances: of "samples" and "reconstructions" from held-out clips, and of one half of these from the other.
        classes: of each class its "bits_per_dim", "samples_bits_per_dim", "kernel_distance", and "accuracy", the share
            of its clips that are likelier under it than under any other.
        class_sizes: clips of each class.
        auroc: of each set of other clips, of "log-density" and "typicality".
        notes: what a reader must know.
    """

    quantity: str
    num_clips: int
    bits_per_dim: dict[str, Estimate]
    distances: dict[str, dict[str, Estimate]]
    classes: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    class_sizes: dict[str, int] = field(default_factory=dict)
    auroc: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The figures for JSON: of each its "value" and its "error", null where it is unknown."""

        def plain(value: Any) -> Any:
            if isinstance(value, Estimate):
                return value.summary()
            return {name: plain(one) for name, one in value.items()} if isinstance(value, dict) else value

        return {name: plain(value) for name, value in vars(self).items()}


def check_names(others: Iterable[str]) -> None:
    """Raise ValueError where clips of other kinds have a name that the model's own clips have."""
    if taken := sorted(set(OWN).intersection(others)):
        raise ValueError(f"others cannot be named {taken[0]!r}, as the model's own clips are; choose another name.")


def judge(
    pipeline: Pipeline,
    evaluated: HeldOutScores,
    others: Mapping[str, Scores],
    classes: Sequence[str] = (),
    seed: int = 0,
) -> Judgement:
    """Judge a model by held-out clips: all figures of what `score_held_out` found.

    Errors count files where several clips are cut from one: these resemble each other.

    Args:
        pipeline: the model.
        evaluated: what it found; with held-out clips' unconditional densities if there are others.
        others: clips of other kinds, scored without a prompt, by name.
        classes: names, which are prompts of the clips.
        seed: of resamples.

    Raises:
        ValueError: others of the names of the model's own clips.
    """
    own, samples, again = evaluated.held_out, evaluated.samples, evaluated.reconstructions
    check_names(others)
    sets = {**dict(zip(OWN, (own, samples), strict=True)), **others}
    notes = [
        "Errors of means and AUROCs are standard deviations over bootstrap resamples of files; those of distances are "
        "of a jackknife over ten groups of files. None covers what another training run would change.",
    ]
    files = own.files.unique()
    if len(files) < len(own):
        notes.append(f"The {len(own)} held-out clips are cut from {len(files)} files, which errors count.")
    dimension = own.features.shape[1]
    if len(own) <= 10 * dimension:
        notes.append(
            f"Fréchet distances of {len(own)} clips in {dimension} dimensions are too large on average: compare them "
            "with those of as many clips alone. Kernel distances have no such bias."
        )
    distances = {
        "samples": _distances(own.features, samples.features, [own.files, samples.files], seed),
        "reconstructions": _distances(own.features, again.features, [own.files, own.files], seed, paired=True),
    }
    order = files[torch.randperm(len(files), generator=torch.Generator().manual_seed(seed))]
    first, second = (torch.isin(own.files, half) for half in (order.chunk(2) if len(files) > 1 else (order, order)))
    distances["one half of held-out from the other"] = _distances(
        own.features[first], own.features[second], [own.files[first], own.files[second]], seed
    )
    found = Judgement(
        scored_quantity(pipeline),
        len(own),
        {name: bootstrap(_mean, one.bits, families=[one.files], seed=seed) for name, one in sets.items()},
        distances,
        notes=notes,
    )
    for number, name in enumerate(classes):
        rows = torch.tensor([prompt == name for prompt in own.prompts])
        if rows.any():
            found.classes[name] = _of_class(evaluated, rows, number, seed)
            found.class_sizes[name] = int(rows.sum())
    for name, other in others.items():
        assert evaluated.unconditional is not None
        typical = evaluated.unconditional.mean()
        scores = {
            "log-density": (-evaluated.unconditional, -other.bits),
            "typicality": (-(evaluated.unconditional - typical).abs(), -(other.bits - typical).abs()),
        }
        families = [own.files, other.files]
        found.auroc[name] = {
            kind: bootstrap(auroc, *pair, families=families, seed=seed) for kind, pair in scores.items()
        }
    return found


def scored_quantity(pipeline: Pipeline) -> str:
    """What the densities of a pipeline are of, in words."""
    shape, noise = pipeline.settings.clip_shape, pipeline.settings.noise
    latent = pipeline.latents.latent_shape(shape)
    noisy = f"with normal noise of standard deviation {noise:g} added" if noise else "without noise"
    if pipeline.settings.levels is not None:
        return (
            f"the probability of pixels of {pipeline.settings.levels} levels, {_product(shape)} a clip: the density of "
            "these, uniformly dequantised, with a step as its unit, which bounds the bits of a lossless code"
        )
    if latent == shape:
        units = (
            "add log2(127.5) = 6.994 bits for units of 8-bit levels"
            if noise
            else "at their levels alone, which bounds no code: bits are of dequantised pixels (convert the model anew)"
        )
        return f"the density of pixels in -1 … 1, {_product(shape)} a clip, {noisy}; {units}"
    return (
        f"the density of latents, {_product(latent)} a clip, that the model's autoencoder makes of {_product(shape)} "
        f"pixels, {noisy}: not a density of pixels, and to be compared on the same latents alone"
    )


def _distances(
    real: Tensor, made: Tensor, files: list[Tensor], seed: int, *, paired: bool = False
) -> dict[str, Estimate]:
    """Those that so many clips allow; paired: of clips and what was made of them."""
    fewest = min(len(real), len(made))
    needed = {"frechet_distance": 2, "kernel_distance": 2}
    known = DISTANCES | ({"kernel_distance": partial(kernel_distance, paired=True)} if paired else {})
    return {
        name: grouped_jackknife(distance, real, made, families=files, paired=paired, seed=seed)
        for name, distance in known.items()
        if fewest >= needed.get(name, NEIGHBOURS + 1)
    }


def _of_class(evaluated: HeldOutScores, rows: Tensor, number: int, seed: int) -> dict[str, Estimate]:
    own, samples = evaluated.held_out, evaluated.samples
    files = own.files[rows]
    found = {
        "bits_per_dim": bootstrap(_mean, own.bits[rows], families=[files], seed=seed),
        "samples_bits_per_dim": bootstrap(_mean, samples.bits[rows], seed=seed),
    }
    if rows.sum() >= FEWEST:
        found["kernel_distance"] = grouped_jackknife(
            kernel_distance,
            own.features[rows],
            samples.features[rows],
            families=[files, None],
            num_groups=5,
            seed=seed,
        )
    if evaluated.most_likely is not None:
        is_right = (evaluated.most_likely[rows] == number).double()
        found["accuracy"] = bootstrap(_mean, is_right, families=[files], seed=seed)
    return found


def _mean(values: Tensor) -> float:
    return float(values.mean())


def _product(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))
