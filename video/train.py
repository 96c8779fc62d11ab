"""Train a flow on latents of clips, with a denoiser beside it if asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import mse_loss
from tqdm import tqdm

from nflib.training import TrainingConfig, TrainingResult, fit
from video.data import CUTS, ON_AND_ON, WORDS, MovingDigits
from video.denoiser import UNIT
from video.latents import Latents, load_latents
from video.model import VideoModel
from video.recovery import load_recovery_clips
from video.settings import ModelSettings
from video.starflow_v import STARFlowV
from video.text import TextEncoder, Words, load_text

FRAME_RATE = 8.0
# What a clip's later windows are told: directions in prompts are those of a clip's beginning.
LATER = (r"moving (?:up|down|left|right)(?: and (?:left|right))?", "moving on")
# The same of windows that have the clip's first frame, whatever the prompt says of the motion, if anything.
ANCHORED = (r"(?: ?moving (?:up|down|left|right|on)(?: and (?:left|right|on))?)?(?=,|$)", f" moving {ON_AND_ON}")
TEXT_LENGTH = 8
VALIDATION_CLIPS = 256


def coded(clips: MovingDigits, latents: Latents, text: TextEncoder, noise: float = 0.0) -> dict[str, Tensor]:
    """What `NoisyLikelihood` takes, of clips: "inputs", latents, of which given frames already have their noise, their
    "context", "num_given" and "is_anchored".

    All at once: coding a clip takes about as long as a step of training on it, so that each had better be seen often.
    """
    inputs, prompts, given, is_anchored = [], [], [], []
    for numbers in tqdm(torch.arange(len(clips)).split(256), "coding clips", disable=len(clips) <= 1024):
        piece = clips.clips(numbers)
        inputs.append(latents.encode(piece.frames))
        prompts += piece.prompts
        given.append(piece.num_given)
        is_anchored.append(piece.is_anchored)
    latent, num_given = torch.cat(inputs), torch.cat(given)
    is_given = torch.arange(latent.shape[1]) < num_given[:, None]
    generator = torch.Generator().manual_seed(clips.seed)
    latent += noise * torch.randn(latent.shape, generator=generator) * is_given[..., None, None, None]
    return {
        "inputs": latent,
        "context": text(prompts),
        "num_given": num_given,
        "is_anchored": torch.cat(is_anchored),
    }


@dataclass(frozen=True)
class NoisyLikelihood:
    """Nats per dimension of latents with noise, plus a denoiser's flow-score matching where the flow has one.

    noise: standard deviation of what is added to latents (STARFlow, arXiv 2506.06276). dropout: share of contexts that
    become `unconditional` in training, which guidance takes: ``(2, L, D)``, of clips and of those whose "is_anchored"
    is true. The denoiser's target is Tweedie's noise
    ``-noise² d log p(x) / dx`` in units of `video.denoiser.UNIT`, of the flow as it is (STARFlow-V, arXiv 2511.20462);
    its loss leaves the flow alone. Where a batch has "num_given" ``(B,)``, so many first frames of each clip are taken
    as they are, without noise, and how likely they are is not learnt (`video.recovery`); the frame that follows them,
    the one that has to come back from what they show, counts `emphasis` times. context_noise: given frames, but an
    anchor, have more noise than others, of a deviation up to this, drawn for each clip: the flow learns to trust an
    anchor more than frames of its own, in which errors pile up (arXiv 2408.14837). Where it has "stills" ``(B, n,
    c, h, w)`` and "stills_context", single frames beside each clip, their nats per dimension are added: in a clip, what
    a frame looks like that follows no other is a small part of the loss. learn_denoiser: False leaves the flow's
    denoiser as it is, at 0.6 of the time.
    """

    noise: float
    dropout: float
    unconditional: Tensor
    learn_denoiser: bool = True
    emphasis: float = 1.0
    context_noise: float = 0.0

    def __call__(
        self, flow: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        clips = batch["inputs"]
        noisy, context = self._noisy(flow, clips, batch["context"], generator, batch.get("is_anchored"))
        weights = torch.ones(clips.shape[:2], device=clips.device)
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
            noisy, prompts = self._noisy(flow, stills, prompts, generator)
            likelihood = -_log_prob_of_frames(flow, noisy, prompts).mean() / stills[0].numel()
            loss, metrics = loss + likelihood, metrics | {"stills_nats_per_dim": likelihood.detach()}
        return loss, metrics

    def _noisy(
        self,
        flow: nn.Module,
        latents: Tensor,
        context: Tensor,
        generator: torch.Generator,
        is_anchored: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Latents with noise, and contexts of which, in training, some are those of no prompt."""
        noise = torch.randn(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)
        if self.dropout and flow.training:
            is_dropped = torch.rand(len(latents), generator=generator, device=latents.device) < self.dropout
            unconditional = self.unconditional.to(context)
            untold = unconditional[:1] if is_anchored is None else unconditional[is_anchored.long()]
            context = torch.where(is_dropped[:, None, None], untold, context)
        return latents + self.noise * noise, context

    def _with_context_noise(self, given: Tensor, is_anchored: Tensor | None, generator: torch.Generator) -> Tensor:
        deviation = torch.rand(len(given), 1, 1, 1, 1, generator=generator, device=given.device, dtype=given.dtype)
        noise = torch.randn(given.shape, generator=generator, device=given.device, dtype=given.dtype)
        if is_anchored is not None:
            noise[is_anchored, 0] = 0.0
        return given + self.context_noise * deviation * noise

    def _of_clips(
        self, flow: nn.Module, noisy: Tensor, context: Tensor, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        denoiser: Any = flow.denoiser
        learns_denoiser = denoiser is not None and self.learn_denoiser
        # The denoiser's target is a gradient, in validation as well.
        with torch.set_grad_enabled(torch.is_grad_enabled() or learns_denoiser):
            noisy.requires_grad_(learns_denoiser)
            log_prob = _log_prob_of_frames(flow, noisy, context)
            likelihood = -(weights * log_prob).sum() / (weights.sum() * noisy[0, 0].numel())
            metrics = {"nats_per_dim": likelihood.detach()}
            if not learns_denoiser:
                return likelihood, metrics
            (score,) = torch.autograd.grad(log_prob.sum(), noisy, retain_graph=torch.is_grad_enabled())
        target = -(self.noise**2) * score.detach() / UNIT
        error = mse_loss(denoiser(noisy.detach(), context), target)
        return likelihood + error, metrics | {"denoiser_error": error.detach()}


def _log_prob_of_frames(flow: nn.Module, latents: Tensor, context: Tensor) -> Tensor:
    log_prob: Tensor = flow.log_prob_of_frames(latents, context)  # type: ignore[operator]
    return log_prob


def train_on_digits(
    output: str | os.PathLike[str],
    config: TrainingConfig,
    *,
    autoencoder: str,
    text: str | None = None,
    initial: str | None = None,
    noise: float = 0.15,
    text_dropout: float = 0.1,
    num_frames: int = 16,
    frames_shown: int | None = None,
    num_clips: int = 8000,
    stills: int = 0,
    cuts: float = CUTS,
    drifted: float = 0.0,
    anchored: float = 0.0,
    recovery: Sequence[str] = (),
    channels: int = 128,
    layers_per_block: Sequence[int] = (1, 1, 1, 5),
    head_dim: int = 32,
    patch_size: int = 1,
    denoiser_layers: int = 0,
    more_layers: int = 0,
    learn_denoiser: bool = True,
    emphasis: float = 1.0,
    context_noise: float = 0.0,
) -> TrainingResult:
    """Train on moving digits; the arguments are those of the command line. Run again, it goes on where it stopped.

    Writes ``output/pipeline``, what `VideoModel.load` takes, beside the folders of `nflib.training.fit`. initial: a
    model's folder to start from, whose flow and text then hold; denoiser_layers gives it a denoiser if it has none,
    more_layers deepens its deep block. stills: single frames, half of them first ones, of other clips, learnt beside
    each clip: `VideoModel.prompt_evidence` takes likelihoods of single frames. cuts, drifted,
    anchored: as for `MovingDigits`; a model that has seen anchored clips keeps a clip's first frame in every window.
    recovery: files of `video.recovery`, learnt among the other clips. learn_denoiser: whether a denoiser is trained
    too. emphasis: how often the frame counts that follows what an anchored or a recovery clip is given. context_noise:
    as for `NoisyLikelihood`. Raises FileNotFoundError or ValueError for parts that are missing or do not fit.
    """
    frames_shown = num_frames if frames_shown is None else frames_shown
    if stills < 0:
        raise ValueError(f"stills must be zero or more, got {stills}.")
    if more_layers < 0 or (more_layers and initial is None):
        raise ValueError(
            f"more_layers are added to an initial model: name one, and give a positive number, not {more_layers}."
        )
    if emphasis <= 0:
        raise ValueError(f"emphasis must be a positive number, got {emphasis}.")
    if context_noise < 0:
        raise ValueError(f"context_noise must be zero or more, got {context_noise}.")
    if not 0 < frames_shown <= num_frames:
        raise ValueError(f"frames_shown must lie in 1 … num_frames ({num_frames}), got {frames_shown}.")
    latents = load_latents(autoencoder)
    clips = MovingDigits(
        "train", num_clips, frames_shown, cuts=cuts, drifted=drifted, anchored=anchored, seed=config.seed
    )
    clip_shape = (num_frames, *clips.clips(torch.zeros(1, dtype=torch.long)).frames.shape[2:])
    settings = ModelSettings(clip_shape, noise, FRAME_RATE, LATER, ANCHORED if anchored else None)
    torch.manual_seed(config.seed)
    denoiser = {"num_layers": denoiser_layers, "past": 4} if denoiser_layers else None
    if initial is None:
        encoder: TextEncoder = Words(WORDS, TEXT_LENGTH) if text is None else load_text(text)
        flow = STARFlowV(
            latents.latent_shape(clip_shape),
            patch_size,
            channels,
            layers_per_block,
            text_length=encoder.length,
            text_channels=encoder.channels,
            layer={"head_dim": head_dim},
            denoiser=denoiser,
        )
    else:
        begun = VideoModel.load(initial)
        flow, encoder = begun.flow, begun.text
        if settings.anchored is None:
            settings = replace(settings, anchored=begun.settings.anchored)
        if flow.denoiser is None and denoiser is not None:
            flow = _grown(flow, denoiser=denoiser)
        if more_layers:
            flow = with_more_layers(flow, more_layers)
    validation = MovingDigits("validation", VALIDATION_CLIPS, frames_shown, seed=config.seed + 1)
    data = coded(clips, latents, encoder, noise)
    if recovery:
        recovering = load_recovery_clips(recovery)
        for name, part in data.items():
            if recovering[name].shape[1:] != part.shape[1:]:
                raise ValueError(
                    f"recovery clips whose {name} are {tuple(recovering[name].shape[1:])} do not go with clips of "
                    f"{tuple(part.shape[1:])}: make them by a model of the same latents, words and number of frames."
                )
        data = {name: torch.cat([part, recovering[name]]) for name, part in data.items()}
    if stills:
        count = len(data["inputs"])
        singles = coded(MovingDigits("train", count * stills, 1, cuts=0.5, seed=config.seed + 2), latents, encoder)
        data["stills"] = singles["inputs"].squeeze(1).unflatten(0, (count, stills))
        data["stills_context"] = singles["context"].unflatten(0, (count, stills))
    result = fit(
        flow,
        data,
        coded(validation, latents, encoder),
        config=config,
        objective=NoisyLikelihood(
            noise, text_dropout, encoder(["", settings.anchored_prompt("")]), learn_denoiser, emphasis, context_noise
        ),
        output=Path(output),
    )
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        VideoModel(flow.cpu(), latents, encoder, settings).save(Path(output) / "pipeline")
    return result


def with_more_layers(flow: STARFlowV, number: int) -> STARFlowV:
    """The same flow with so many more layers in its deep block, which change nothing until they are trained."""
    *shallow, deep = (flow.config or {})["layers_per_block"]
    deeper = _grown(flow, layers_per_block=[*shallow, deep + number])
    network: Any = deeper._transform.deep.network
    for layer in network.layers[deep:]:
        for linear in (layer.attention.proj, layer.mlp.down):
            for parameter in linear.parameters():
                nn.init.zeros_(parameter)
    return deeper


def _grown(flow: STARFlowV, **changes: Any) -> STARFlowV:
    """The same weights in a flow of another configuration, which has more of them."""
    larger = STARFlowV(**{**(flow.config or {}), **changes})
    larger.load_state_dict(larger.state_dict() | flow.state_dict())
    return larger
