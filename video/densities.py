"""Densities of clips, frame by frame, and what they tell of prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nflib.contexts import map_context
from nflib.random import derived_generator
from video.latents.levels import log_step
from video.parts import Parts


class Densities(Parts):
    """Log-densities of clips under a pipeline's flow: of their latents, with the noise of training."""

    @torch.no_grad()
    def prompt_evidence(self, latents: Tensor, prompts: Sequence[str], *, is_image: bool = False) -> Tensor:
        """How much noisy latents show of their prompts, ``(B, K)``, in nats, by which candidates are compared.

        The mean over frames, each seen by itself, of ``log p(frame | prompt) - log p(frame)``: by Bayes' rule ``log
        p(prompt | frame)``, but for what all frames have in common. Prompts are the later ones, which say nothing of
        how a clip begins, and p(frame) is the density under no prompt.

        Args:
            latents: ``(B, K, T, c, h, w)``, K candidates for each prompt.
            prompts: B of them.
            is_image: whether the clips are images.
        """
        rows, count, length = latents.shape[:3]
        frames = latents.flatten(0, 2).unsqueeze(1)
        later = self.condition([self.settings.later_prompt(prompt) for prompt in prompts], is_image=is_image)
        conditional = map_context(lambda part: part.repeat_interleave(count * length, 0), later)
        none = self.condition([""], is_image=is_image)
        unconditional = map_context(lambda part: part.expand(len(frames), *part.shape[1:]), none)
        evidence = self.flow.log_prob(frames, conditional) - self.flow.log_prob(frames, unconditional)
        return evidence.view(rows, count, length).mean(-1)

    @torch.no_grad()
    def log_prob(self, clips: Tensor, prompts: Sequence[str], *, seed: int = 0) -> Tensor:
        """Log-densities ``(B,)``, in nats, of clips' latents with the noise of training.

        Of pixels that have levels, by the settings, they are of these: dequantised, a step being the unit, so that
        their mean is a bound on the log-probability of the levels.

        Args:
            clips: ``(B, T, C, H, W)`` in -1 … 1, of at most as many latent frames as the flow has positions for; see
                `log_prob_of_frames` for more.
            prompts: one a clip; an empty one for none.
            seed: of the noise.

        Raises:
            ValueError: clips or prompts that the model does not take.
        """
        latents = self.encode(clips, noise_generator(seed))
        density = self.flow.log_prob(latents, self.condition(prompts, is_image=clips.shape[1] == 1))
        return density + latents.shape[1:].numel() * self._log_step

    @torch.no_grad()
    def log_prob_of_frames(self, clips: Tensor, prompts: Sequence[str], *, seed: int = 0) -> Tensor:
        """Log-densities ``(B, latent frames)`` of each frame given those before it, in nats; their sum is `log_prob`.

        In longer clips a frame is given what it would be generated from, were windows moved on by single frames.

        Args:
            clips: ``(B, T, C, H, W)`` in -1 … 1.
            prompts: one a clip; an empty one for none.
            seed: of the noise.
        """
        latents = self.encode(clips, noise_generator(seed))
        context = self.condition(prompts, is_image=clips.shape[1] == 1)
        values = [self.flow.log_prob_of_frames(latents[:, : self.window], context)]
        for window in self._windows(latents.shape[1], self.window, self.window - 1):
            context = self.condition(prompts, window)
            values.append(self.flow.log_prob_of_frames(window.of(latents), context)[:, -1:])
        return torch.cat(values, dim=1) + latents.shape[2:].numel() * self._log_step

    def nats_per_dim(self, clips: Tensor, prompts: Sequence[str], *, seed: int = 0) -> Tensor:
        """Negative log-density per dimension of each latent frame given those before it, ``(B, latent frames)``.

        Args:
            clips: as of `log_prob_of_frames`.
            prompts: as of `log_prob_of_frames`.
            seed: as of `log_prob_of_frames`.
        """
        return -self.log_prob_of_frames(clips, prompts, seed=seed) / math.prod(self.flow.event_shape[1:])

    @property
    def _log_step(self) -> float:
        return log_step(self.settings.levels, self.settings.pixel_scale)


def clips_generator(seed: int) -> torch.Generator:
    """The generator of what is new in clips of this seed, which may be any whole number."""
    return torch.Generator().manual_seed(seed if abs(seed) < 2**63 else seed % 2**64)


def noise_generator(seed: int) -> torch.Generator:
    """The generator of noise on latents: another than the one of clips of this seed, or the two would be correlated."""
    return derived_generator(seed % 2**64, 0)
