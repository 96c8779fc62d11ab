"""What a flow on noisy latents is trained on, with a denoiser beside it if it has one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from nflib.random import normal_like
from nflib.training.context_dropout import dropped
from video.flows.denoiser import UNIT


@dataclass(frozen=True)
class NoisyLikelihood:
    """Nats per dimension of latents with noise, plus a denoiser's flow-score matching where the flow has one.

    The denoiser's target is Tweedie's noise ``-noise² d log p(x) / dx`` in units of `video.flows.denoiser.UNIT`, of the
    flow as it is (STARFlow-V, arXiv 2511.20462); its loss leaves the flow alone.

    A batch has "inputs", clips ``(B, T, c, h, w)`` or, of a `STARFlow`, images ``(B, c, h, w)``, and their "context",
    unless the flow takes none. Where it has "num_given" ``(B,)``, so many first frames of each clip are taken as they
    are, without noise, and how likely they are is not learnt. Where it has "stills" ``(B, n, c, h, w)`` and
    "stills_context", single frames beside each clip, their nats per dimension are added: in a clip, what a frame looks
    like that follows no other is a small part of the loss.

    Args:
        noise: standard deviation of what is added to latents (STARFlow, arXiv 2506.06276).
        prompt_dropout: share of contexts that become `unconditional` in training, which guidance takes.
        unconditional: ``(2, L, D)``, of clips and of those whose "is_anchored" is true, or labels ``(2,)``; None for a
            flow without context.
        learn_denoiser: False leaves the flow's denoiser as it is; a step then takes 0.6 of the time.
        emphasis: weight in the loss of the first frame after the given ones; 1: as any other.
        context_noise: largest standard deviation of noise on given frames, drawn for each clip, but on no anchor: the
            flow learns to trust an anchor more than frames of its own, in which errors pile up (arXiv
            2408.14837).
    """

    noise: float
    prompt_dropout: float
    unconditional: Tensor | None
    learn_denoiser: bool = True
    emphasis: float = 1.0
    context_noise: float = 0.0

    def __call__(
        self, flow: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        clips = batch["inputs"]
        noisy, context = self._noisy(flow, clips, batch.get("context"), generator, batch.get("is_anchored"))
        weights = None
        if "num_given" in batch:
            num_given = batch["num_given"][:, None]
            frames = torch.arange(clips.shape[1], device=clips.device)
            given = clips
            if self.context_noise:
                given = self._with_context_noise(clips, batch.get("is_anchored"), generator)
            noisy = torch.where((frames < num_given)[..., None, None, None], given, noisy)
            weights = (frames >= num_given) + (self.emphasis - 1) * ((frames == num_given) & (num_given > 0))
        loss, metrics = self._of_clips(flow, noisy, context, weights)
        if "stills" in batch:
            stills, prompts = batch["stills"].flatten(0, 1).unsqueeze(1), batch["stills_context"].flatten(0, 1)
            noisy, context = self._noisy(flow, stills, prompts, generator)
            likelihood = -_log_prob_of_frames(flow, noisy, context).mean() / stills[0].numel()
            loss, metrics = loss + likelihood, metrics | {"stills_nats_per_dim": likelihood.detach()}
        return loss, metrics

    def _noisy(
        self,
        flow: nn.Module,
        latents: Tensor,
        context: Tensor | None,
        generator: torch.Generator,
        is_anchored: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Latents with noise, and contexts of which, in training, some are those of no prompt."""
        noise = normal_like(latents, generator)
        if context is not None and self.unconditional is not None and self.prompt_dropout and flow.training:
            none = self.unconditional.to(context)
            rows = none[:1] if is_anchored is None else none[is_anchored.long()]
            context = dropped(context, rows, self.prompt_dropout, generator)
        return latents + self.noise * noise, context

    def _with_context_noise(self, given: Tensor, is_anchored: Tensor | None, generator: torch.Generator) -> Tensor:
        deviation = torch.rand(len(given), 1, 1, 1, 1, generator=generator, device=given.device, dtype=given.dtype)
        noise = normal_like(given, generator)
        if is_anchored is not None:
            noise[is_anchored, 0] = 0.0
        return given + self.context_noise * deviation * noise

    def _of_clips(
        self, flow: nn.Module, noisy: Tensor, context: Tensor | None, weights: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        denoiser: Any = flow.denoiser
        learns_denoiser = denoiser is not None and self.learn_denoiser
        # The denoiser's target is a gradient, in validation as well.
        with torch.set_grad_enabled(torch.is_grad_enabled() or learns_denoiser):
            noisy.requires_grad_(learns_denoiser)
            log_prob = _log_prob_of_frames(flow, noisy, context)
            weights = torch.ones_like(log_prob) if weights is None else weights
            likelihood = -(weights * log_prob).sum() / (weights.sum() * noisy.shape[-3:].numel())
            metrics = {"nats_per_dim": likelihood.detach()}
            if not learns_denoiser:
                return likelihood, metrics
            (score,) = torch.autograd.grad(log_prob.sum(), noisy, retain_graph=torch.is_grad_enabled())
        target = -(self.noise**2) * score.detach() / UNIT
        error = mse_loss(denoiser(noisy.detach(), context), target)
        return likelihood + error, metrics | {"denoiser_error": error.detach()}


def _log_prob_of_frames(flow: nn.Module, latents: Tensor, context: Tensor | None) -> Tensor:
    log_prob: Tensor = flow.log_prob_of_frames(latents, context)  # type: ignore[operator]
    return log_prob
