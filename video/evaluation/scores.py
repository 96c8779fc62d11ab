"""What a pipeline makes of held-out clips, in one pass over them: densities, features, and samples beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from video.evaluation.features import ClipFeatures
from video.pipeline import Pipeline

# Batches of clips ``(B, T, C, H, W)`` in -1 … 1, each clip with its caption or the name of its class, "" for neither;
# and, where several are cut from one file, the number of each clip's file: errors then count files, not clips.
ClipBatches = Iterable[tuple[Tensor, Sequence[str]] | tuple[Tensor, Sequence[str], Sequence[int]]]


class Scores:
    """Prompts, densities and features of a set of clips, which are added batch by batch.

    Args:
        num_shown: how many of the clips themselves are kept, to be shown.
    """

    def __init__(self, num_shown: int = 0) -> None:
        self.num_shown = num_shown
        self.prompts: list[str] = []
        self._files: list[int] = []
        self._bits: list[Tensor] = []
        self._features: list[Tensor] = []
        self._shown: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.prompts)

    def add(
        self,
        prompts: Sequence[str],
        clips: Tensor,
        features: Tensor | None = None,
        bits: Tensor | None = None,
        files: Sequence[int] | None = None,
    ) -> None:
        """Add a batch of clips.

        Args:
            prompts: one a clip.
            clips: ``(B, T, C, H, W)``.
            features: ``(B, d)``.
            bits: per dimension, ``(B, latent frames)``.
            files: number of the file that each is cut from (default: each is a file of its own).
        """
        self._files += range(len(self), len(self) + len(clips)) if files is None else files
        self.prompts += prompts
        if features is not None:
            self._features.append(features)
        if bits is not None:
            self._bits.append(bits)
        room = self.num_shown - sum(map(len, self._shown))
        if room > 0 and (not self._shown or clips.shape[1:] == self._shown[0].shape[1:]):
            self._shown.append(clips[:room].cpu())

    @property
    def files(self) -> Tensor:
        """Number of the file that each clip is cut from, ``(N,)``."""
        return torch.tensor(self._files)

    @property
    def bits_of_frames(self) -> Tensor:
        """Bits per dimension of each latent frame given those before it, ``(N, latent frames)``."""
        return torch.cat(self._bits)

    @property
    def bits(self) -> Tensor:
        """Bits per dimension of each clip, ``(N,)``."""
        return self.bits_of_frames.mean(1)

    @property
    def features(self) -> Tensor:
        """``(N, d)``."""
        return torch.cat(self._features)

    @property
    def shown(self) -> Tensor:
        """Some of the clips, ``(n, T, C, H, W)``."""
        return torch.cat(self._shown)


@dataclass
class HeldOutScores:
    """Held-out clips, and what the pipeline makes of them.

    Args:
        held_out: under their prompts.
        samples: generated under the same prompts; their densities are those of any clip.
        reconstructions: of held-out clips, through the autoencoder and back; without densities.
        unconditional: bits per dimension of held-out clips without a prompt, ``(N,)``; None: not asked for.
        most_likely: number of the class under which each held-out clip is most likely, ``(N,)``; None: not asked for.
    """

    held_out: Scores
    samples: Scores
    reconstructions: Scores
    unconditional: Tensor | None
    most_likely: Tensor | None


def bits_per_dim(pipeline: Pipeline, clips: Tensor, prompts: Sequence[str], seed: int = 0) -> Tensor:
    """Bits per dimension of each latent frame given those before it, ``(B, latent frames)``, float64.

    Args:
        pipeline: the model.
        clips: ``(B, T, C, H, W)`` in -1 … 1.
        prompts: one a clip; an empty one for none.
        seed: of the noise; see `Pipeline.nats_per_dim`.
    """
    return pipeline.nats_per_dim(clips, prompts, seed=seed).double().cpu() / math.log(2)


def score(pipeline: Pipeline, batches: ClipBatches, *, seed: int = 0, conditional: bool = True) -> Scores:
    """Score clips: their densities under their prompts, or under none.

    Args:
        pipeline: the model.
        batches: clips with their prompts.
        seed: of the noise.
        conditional: whether prompts are given to the model.

    Raises:
        ValueError: no clips, or some that do not fit.
    """
    scores = Scores()
    for clips, prompts, *files in batches:
        told = list(prompts) if conditional else [""] * len(prompts)
        scores.add(told, clips, None, bits_per_dim(pipeline, clips, told, seed + len(scores)), *files)
    if not len(scores):
        raise ValueError("there are no clips to score; give a folder with some.")
    return scores


def score_held_out(
    pipeline: Pipeline,
    held_out: ClipBatches,
    features: ClipFeatures,
    *,
    classes: Sequence[str] = (),
    with_unconditional: bool = False,
    num_shown: int = 0,
    seed: int = 0,
    **drawing: Any,
) -> HeldOutScores:
    """Score held-out clips, generate and score a sample for each, and reconstruct each.

    Args:
        pipeline: the model.
        held_out: read once.
        features: of clips.
        classes: prompts under each of which all clips are scored, to tell which is the likeliest.
        with_unconditional: whether held-out clips are scored without a prompt as well.
        num_shown: clips of each kind that are kept.
        seed: of all random numbers; equal batches and seeds give equal results.
        drawing: as for `Pipeline.generate`.

    Raises:
        ValueError: no clips, prompts that the model does not know, or clips that do not fit.
    """
    own, samples, again = (Scores(num_shown) for _ in range(3))
    unconditional, most_likely = [], []
    for clips, prompts, *files in held_out:
        number, told = seed + len(own), list(prompts)
        made = pipeline.generate(told, clips.shape[1], seed=number, **drawing)
        decoded = pipeline.decode(pipeline.latents.encode(clips))
        if with_unconditional:
            unconditional.append(bits_per_dim(pipeline, clips, [""] * len(told), number).mean(1))
        if classes:
            under = [bits_per_dim(pipeline, clips, [name] * len(told), number).mean(1) for name in classes]
            most_likely.append(torch.stack(under).argmin(0))
        own.add(told, clips, features(clips), bits_per_dim(pipeline, clips, told, number), *files)
        samples.add(told, made, features(made), bits_per_dim(pipeline, made, told, number))
        again.add(told, decoded, features(decoded), None, *files)
    if not len(own):
        raise ValueError("there are no held-out clips to judge by; give a folder with some.")
    return HeldOutScores(
        own,
        samples,
        again,
        torch.cat(unconditional) if with_unconditional else None,
        torch.cat(most_likely) if classes else None,
    )
